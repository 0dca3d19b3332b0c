"""A new WireGuard key for this node, without a gap: make before break.

     we                        disk                      each member that lives
     │ make the next key ───────▶│ kept
     │ record: key, next key ────────────────────────────▶│ whose it will be
     │            … SPREAD_TIME, and whoever has announced with a lower id goes first …
     │ switch ──────────────────▶│ kept
     │ device: next key          │                        │  ▲ it still sends by the old session,
     │ record: next key, shown by path probes ───────────▶│  │ and we still receive by that
     │                                                    │ in one change: new peer, its
     │◀══════════════ initiation (from the member) ═══════│ addresses, no old peer; then a ping
     │ what we had to send waited meanwhile: ════════════▶│

A change of its private key makes a device stop sending by its sessions, not receiving; what is to
be sent waits (128 packets a peer) for a handshake.  Handshakes of ours cannot succeed before the
other side has our new key, theirs can as soon as they have: so theirs it is, docs/adr/0007.

Rule 1: the device holds no key but one that is on disk, and that a signed record of ours has named.

Rule 2: a record says that a key is ours once the device has it: who believes it may begin at once.
        The exception are members that probes do not reach.  They are told through their tunnel, and
        that has to be before it stops sending.  They alone are told then, and act SHOW_LEAD later.

Rule 3: we begin a handshake, in vain, before anybody can have believed the record.  WireGuard does
        not begin another for 5 s, so none of ours crosses theirs: two that cross destroy each
        other.  For the same reason no two members change at a time, as long as they hear of each
        other.  Should one be destroyed or lost all the same, the member makes its peer anew, and
        thereby its handshake, long before WireGuard would.

Rule 4: what is on disk decides how a run that was killed is carried on: a key announced is
        announced again, and a switch that was kept is a switch.

At a member's end this module does two things: it has the device brought to the plan in the very
step in which the record comes in, and sends something through the new peer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from meshd.engine import events
from meshd.engine.handover import Handover, mark, split
from meshd.errors import BadPacket
from meshd.gossip.claim import MemberState
from meshd.keys import KEY_BYTES, WireGuardPrivateKey, fingerprint
from meshd.trust.fact import FactKind
from meshd.trust.record import open_record_untrusted
from meshd.underlay import Timer, TokenBucket

if TYPE_CHECKING:
    from random import Random

    from meshd.engine.engine import Engine
    from meshd.keys import NodeId, WireGuardKey
    from meshd.trust.record import Record
    from meshd.wg.types import DeviceStatus

AGE_JITTER = 0.1  # of the age at which a key is due, earlier: not all nodes of a day on one day
SPREAD_TIME = 3.0  # by then a record is everywhere (docs/gossip.md)
TURN_SETTLE = 1.0  # after a member before us has changed its key
TURN_PATIENCE = 30.0  # with one that has announced a change and does not make it
SHOW_PATIENCE = 3.0  # with members that do not answer probes
RECHECK_INTERVAL = 0.25
AGE_CHECK_INTERVAL = 3600.0  # the wall clock may be set
RETRY_INTERVAL = 60.0  # after the disk has refused
HEAD_START = 0.001  # for what goes by the old sessions

# When the record is shown again to those who have not answered that they hold it.
_SHOW_AFTER = (0.0, 0.05, 0.15, 0.4, 1.0, 2.0)
SHOW_LEAD = 0.01  # of our vain handshakes: datagrams may overtake each other on their way

# How long a member's new peer may be without a session before it is made anew, and how often.
GREETING_PATIENCE = 0.5  # and three round trips; doubled each time
GREETINGS_MAX = 3

# Changes of members' keys that skip the queue: one who changes it all the time waits like all.
HURRIES_PER_SECOND_MAX = 5.0
HURRIES_BURST_MAX = 16

_LIVE = {MemberState.ALIVE, MemberState.SUSPECT}


@dataclass(slots=True)
class _Greeting:
    """A member's new peer, through which something has to come."""

    key: WireGuardKey
    due_at: float = math.inf  # the next time; not before the device has the peer
    count: int = 0


@dataclass(frozen=True, slots=True)
class WireGuardKeys:
    """A node's WireGuard keys, as they are on disk."""

    current: WireGuardPrivateKey
    made_at: int  # wall clock
    next: WireGuardPrivateKey | None = None  # to be announced, or announced already
    former: WireGuardKey | None = None  # the one before, which the device may still hold

    def due_at(self, node: NodeId, after: float) -> float:
        """Return when `current` is to be replaced by age; infinity if `after` is 0."""
        if not after:
            return math.inf
        spread = fingerprint(node, self.current.public, size=4, person=b"meshd.rotate")
        share = int.from_bytes(spread, "big") / (1 << 32)
        return self.made_at + after * (1 - AGE_JITTER * share)


class Rotation:
    """See the module docstring."""

    def __init__(
        self, engine: Engine, *, keys: WireGuardKeys | None, rng: Random, now: float, wall: float
    ) -> None:
        """`keys` is what the disk has; None before anything of them is there."""
        self._engine = engine
        self._rng = rng
        self.keys = keys or WireGuardKeys(engine.identity.wireguard_key, int(wall))
        assert self.keys.current == engine.identity.wireguard_key
        self._asked = False
        self._saving: WireGuardKeys | None = None
        self._switching = False  # the disk has the switch, and the device not yet
        self._told_early = False  # see rule 2
        self._not_before = now + SPREAD_TIME  # the switch
        self._first: NodeId | None = None  # whose turn it is, if not ours
        self._first_since = now
        self._stuck: set[NodeId] = set()  # who has had its turn and has not taken it
        self._check_at = now
        self._hurry_at = math.inf
        self._show_at: list[float] = []
        self._told: dict[NodeId, tuple[float, bytes]] = {}  # records by tunnel, until they are due
        self._hurries = TokenBucket(rate=HURRIES_PER_SECOND_MAX, burst=HURRIES_BURST_MAX, now=now)
        self._known: dict[NodeId, WireGuardKey] = {}  # members' keys
        self._greetings: dict[NodeId, _Greeting] = {}

    # Inputs

    def ask(self, now: float, wall: float) -> None:
        """Rotate now, as the operator wants."""
        self._asked = True
        self._advance(now, wall)

    def saved(self, keys: WireGuardKeys, now: float) -> None:
        """Note that the disk has what `SaveKeys` asked for."""
        if keys != self._saving:
            return
        before, self.keys, self._saving = self.keys, keys, None
        self._check_at = now
        if keys.current == before.current:
            self._not_before = now + SPREAD_TIME
            assert keys.next is not None
            self._notice("key-announced", "members are told of our next WireGuard key", keys.next)
            self._show(now)
        else:
            self._switch(now)

    def not_saved(self, now: float) -> None:
        """Note that the disk has refused: all stays as it is, for the time being."""
        self._saving = None
        self._check_at = now + RETRY_INTERVAL
        self._engine.emit(
            events.Notice(
                "key-kept",
                "our WireGuard key stays: the disk does not take the next one; "
                f"trying again in {RETRY_INTERVAL:.0f} s",
            )
        )

    def receive_handover(self, datagram: bytes, source: NodeId, now: float, wall: float) -> None:
        """Take a member's own record, which came through its tunnel: to be acted on a little later.

        Its device takes the key right after it; by then its handshake, in vain, is over (rule 3).
        """
        del wall
        _, blob = split(datagram)
        ledger = self._engine.ledger
        try:
            open_record_untrusted(blob, ledger.mesh, ledger.cache)
        except BadPacket as exc:
            self._engine.bad_packets[exc.reason] += 1
        else:
            self._told[source] = (now + SHOW_LEAD, blob)

    def member_says(self, node: NodeId, record: Record, now: float) -> None:
        """Take a member's record; if its key is another one, the device is to follow at once."""
        key = record.wireguard_key
        before = self._known.get(node, key)
        self._known[node] = key
        if before == key:
            return
        self._greetings[node] = _Greeting(key)
        name = self._engine.name_of(node)
        self._engine.emit(
            events.Notice("member-key-rotated", "has a new WireGuard key", node, name)
        )
        if self._hurries.take(now):
            self._engine.emit(events.HurryDevice())

    def member_dropped(self, node: NodeId) -> None:
        """Forget a member."""
        self._known.pop(node, None)
        self._greetings.pop(node, None)
        self._told.pop(node, None)

    def device_observed(self, device: DeviceStatus, now: float) -> None:
        """Take what the device holds, after a change."""
        if self._switching and device.private_key == self.keys.current:
            self._switching = False
            self._notice("key-rotated", "our WireGuard key is another one", self.keys.current)
            for node in self._live():
                self._engine.gossip.ping(node, now)  # rule 3
            self._show(now + SHOW_LEAD)
        for node, greeting in list(self._greetings.items()):
            peer = device.peers.get(greeting.key)
            if peer is not None and peer.last_handshake_time:
                del self._greetings[node]
            elif peer is not None and not greeting.count:
                self._greet(node, greeting, now)

    def handle_timer(self, now: float, wall: float) -> None:
        """Do what is due."""
        if now >= self._hurry_at:
            self._hurry_at = math.inf
            self._engine.emit(events.HurryDevice())
        if self._show_at and now >= self._show_at[0]:
            del self._show_at[0]
            if not self._engine.path.show_record(self._live(), now):
                self._show_at.clear()
        for node, greeting in list(self._greetings.items()):
            if now < greeting.due_at:
                continue
            if greeting.count > GREETINGS_MAX:
                del self._greetings[node]
                continue
            self._greet(node, greeting, now)
            self._engine.emit(events.RenewPeer(greeting.key))
        for node, (due_at, blob) in list(self._told.items()):
            if now >= due_at:
                del self._told[node]
                self._believe(blob, now, wall)
        if now >= self._check_at:
            self._advance(now, wall)

    # Outputs

    @property
    def public_keys(self) -> tuple[WireGuardKey, WireGuardKey | None]:
        """What our record says: the key that is ours, and the one that will be."""
        keys = self.keys
        if self._switching and not self._told_early:
            assert keys.former is not None
            return keys.former, keys.current.public
        return keys.current.public, None if keys.next is None else keys.next.public

    @property
    def busy(self) -> bool:
        """Whether a rotation is under way."""
        return self._asked or self._switching or self.keys.next is not None

    @property
    def due_at(self) -> float:
        """When the key will be replaced by age, by the wall clock; infinity for never."""
        return self.keys.due_at(self._engine.identity.node, self._engine.config.rotate_keys_after)

    def get_timer(self) -> Timer:
        """Return the soonest deadline."""
        show_at = self._show_at[0] if self._show_at else math.inf
        greet_at = min((each.due_at for each in self._greetings.values()), default=math.inf)
        told_at = min((due_at for due_at, _ in self._told.values()), default=math.inf)
        soonest = min(self._check_at, self._hurry_at, show_at, greet_at, told_at)
        return Timer(soonest, "WireGuard key")

    # The steps

    def _advance(self, now: float, wall: float) -> None:
        self._check_at = now + RECHECK_INTERVAL
        if self._saving is not None or self._switching or not self._engine.presence.blob:
            return
        keys = self.keys
        if keys.next is not None:
            if self._is_our_turn(now):
                self._asked = False
                self._save(
                    WireGuardKeys(keys.next, int(wall), next=None, former=keys.current.public)
                )
        elif self._asked or wall >= self.due_at:
            made = WireGuardPrivateKey(self._rng.randbytes(KEY_BYTES))
            self._save(replace(keys, next=made))
        else:
            left = self.due_at - wall
            self._check_at = now + min(max(left, RECHECK_INTERVAL), AGE_CHECK_INTERVAL)

    def _is_our_turn(self, now: float) -> bool:
        """Whether the announcement is everywhere, and nobody is to change before us (rule 3)."""
        engine, me = self._engine, self._engine.identity.node
        ahead = [
            node
            for node, standing in engine.others()
            if node < me and standing.record.next_wireguard_key is not None and self._lives(node)
        ]
        self._stuck.intersection_update(ahead)
        first = next((node for node in ahead if node not in self._stuck), None)
        if first != self._first:
            self._first, self._first_since = first, now
        elif first is not None and now - self._first_since >= TURN_PATIENCE:
            self._stuck.add(first)
        if first is not None:
            self._not_before = max(self._not_before, now + TURN_SETTLE)
        if now < self._not_before:
            return False
        # Who has not answered by now may answer the next time; there is no hurry.
        lacking = self._engine.path.show_record(self._live(), now)
        return not lacking or now >= self._not_before + SHOW_PATIENCE

    def _save(self, keys: WireGuardKeys) -> None:
        self._saving = keys
        self._engine.emit(events.SaveKeys(keys))

    def _switch(self, now: float) -> None:
        """Have the device take the key that the disk has."""
        engine = self._engine
        unreached = [node for node in self._live() if not engine.path.shown_to(node)]
        self._switching = True
        self._told_early = bool(unreached)
        engine.become(replace(engine.identity, wireguard_key=self.keys.current), now)
        if not unreached:
            engine.emit(events.HurryDevice())
            return
        engine.presence.sign(now)  # to them alone: gossip would bring it too soon
        for node in unreached:
            engine.send_overlay(mark(Handover.OWN_RECORD, engine.presence.blob), node)
        self._hurry_at = now + HEAD_START

    def _believe(self, blob: bytes, now: float, wall: float) -> None:
        """Take a record that came early; the ledger may have learned since that it is void."""
        try:
            self._engine.learn(FactKind.RECORD, blob, now, wall)
        except BadPacket as exc:
            self._engine.bad_packets[exc.reason] += 1

    def _show(self, at: float) -> None:
        """Sign a record with what has changed, and show it to everybody from an instant on."""
        self._engine.presence.due = True
        self._show_at = [at + after for after in _SHOW_AFTER]

    def _greet(self, node: NodeId, greeting: _Greeting, now: float) -> None:
        """Have our kernel begin a handshake: it does when there is something to send."""
        view = self._engine.gossip.member(node)
        rtt = 0.0 if view is None else view.rtt or 0.0
        patience = GREETING_PATIENCE * (1 << greeting.count) + 3 * rtt
        greeting.count, greeting.due_at = greeting.count + 1, now + patience
        self._engine.gossip.ping(node, now)

    def _notice(self, event: str, message: str, key: WireGuardPrivateKey) -> None:
        self._engine.emit(events.Notice(event, message, details={"public_key": str(key.public)}))

    def _live(self) -> list[NodeId]:
        return [node for node, _ in self._engine.others() if self._lives(node)]

    def _lives(self, node: NodeId) -> bool:
        view = self._engine.gossip.member(node)
        return view is not None and view.state in _LIVE
