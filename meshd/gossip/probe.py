"""Who is pinged next, and how its silence is judged.

    0 s            allowance                              + what a helper may take
    │ PING ───────▶│ no ack: PING again, over TCP too      │ PING once more     │ judged
    │              │ PING_REQ to k others                  │ PING_REQ to k more │
    │              │   each PINGs the member for us        │                    │
    │◀── ACK       │◀── ACK (target) or NACK               │                    │
    ├──────────────┴───────────────────────────────────────┴────────────────────┤
      ack from the member itself at any time   → alive
      through another, or over TCP, only       → the path is at fault, not the member
      neither, but see `evidence`              → once more
      neither                                  → suspect

Rule 1: one turn each interval (see `order`).  Probes of suspects (see `observers`) come on top of
        that; there is one probe of a member at a time.

Rule 2: how long an ack may take follows what was measured (see `rtt`), and how healthy we are (see
        `health`).

Rule 3: a path is at fault when two probes in a row say so: one may have met with plain loss.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.gossip.claim import MemberState, Testimony
from meshd.gossip.events import EvidenceWanted, PathFault
from meshd.gossip.evidence import FAULTS_MIN, believable, excused, lives
from meshd.gossip.observers import WATCHED_MAX, observers_of
from meshd.gossip.order import ProbeOrder
from meshd.gossip.pings import PingPurpose
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import CLAIM_ITEM, Item, Message, MessageType

if TYPE_CHECKING:
    from random import Random

    from meshd.gossip.config import GossipConfig
    from meshd.gossip.health import Health
    from meshd.gossip.member import Member
    from meshd.gossip.membership import Membership
    from meshd.gossip.outbox import Outbox
    from meshd.gossip.pinger import Pinger
    from meshd.gossip.timers import Timers
    from meshd.keys import NodeId

PROBES_MAX = WATCHED_MAX + 16
ATTEMPTS_MAX = 4  # probes of one member without a pause


@dataclass(slots=True)
class Probe:
    """One member that was pinged and has not been judged."""

    target: NodeId
    started_at: float
    incarnation: int
    sequence: int  # of the first ping; requests to others bear it too
    allowance: float
    attempt: int
    asked: tuple[NodeId, ...] = ()
    asked_again: tuple[NodeId, ...] = ()
    nacks: set[NodeId] = field(default_factory=set)
    acked_via: NodeId | None = None
    streamed: bool = False  # it has answered over TCP


class Prober:
    """Our probes.  Part of a `Node`."""

    def __init__(
        self,
        membership: Membership,
        outbox: Outbox,
        pinger: Pinger,
        timers: Timers,
        health: Health,
        *,
        config: GossipConfig,
        rng: Random,
    ) -> None:
        self._membership = membership
        self._outbox = outbox
        self._pinger = pinger
        self._timers = timers
        self._health = health
        self._config = config
        self._rng = rng
        self._order = ProbeOrder(
            membership.id, membership.table, neighbour_every=config.neighbour_every, rng=rng
        )
        self._probes: dict[NodeId, Probe] = {}
        self._watched: dict[NodeId, float] = {}  # suspects, and the pauses between pings
        self.acked = 0
        self.acked_indirectly = 0
        self.acked_streams = 0
        self.excused = 0
        self.failed = 0

    # What begins a probe

    def take_turn(self, now: float) -> None:
        """Probe whose turn it is."""
        for node in self._membership.take_fresh():
            self._order.include(node)
        target = self._order.next()
        if target is not None:
            self._begin(target, now)
        pause = self._config.probe_interval * self._health.multiplier
        self._timers.set(TimerKind.PROBE, now + pause)

    def observe(self, node: NodeId, now: float) -> None:
        """Look at a suspect: at once if that is our duty, else when nobody has settled it."""
        member = self._membership.get(node)
        if member is None or member.suspicion is None or not self._config.observers:
            return
        if self._membership.id in observers_of(node, self._membership.table, self._config):
            self._begin(node, now)
            self._watch(node, self._config.watch_interval, now)
        else:
            self._watch(node, member.suspicion.timeout_min, now)

    def unreachable(self, node: NodeId, now: float) -> None:
        """Accuse a member whose host says that nobody listens there."""
        member = self._membership.get(node)
        if member is None or not believable(member, self._config):
            return
        if self._accuse(node, Testimony(0.0), now):
            self._end(node)
            member.faults += 1

    # What becomes of it

    def handle_late(self, target: NodeId, now: float) -> None:
        """Try harder: no ack has come in time."""
        probe = self._probes.get(target)
        if probe is None:
            return
        self._pinger.ping(target, PingPurpose.PROBE, now)
        if self._timers.at(TimerKind.PROBE_END, target) is not None:
            probe.asked_again = self._ask_others(probe)
            return
        probe.asked = self._ask_others(probe)
        if self._config.stream_timeout:
            self._pinger.ping_over_stream(target, now)
        if self._config.evidence_max:
            self._membership.events.append(EvidenceWanted(target))
        helpers = (self._membership.allowance(helper) for helper in probe.asked)
        wait = probe.allowance + max(helpers, default=probe.allowance)
        self._timers.set(TimerKind.PROBE_TIMEOUT, now + wait / 2, target)
        self._timers.set(TimerKind.PROBE_END, now + wait, target)

    def handle_ack(self, member: Member, purpose: PingPurpose, sent_at: float) -> None:
        """Take note that a member has answered us itself."""
        probe = self._probes.get(member.node)
        if purpose is PingPurpose.STREAM:
            if probe is not None:
                probe.streamed = True
            return
        member.faults = member.excuses = 0
        if probe is not None and sent_at >= probe.started_at:
            self._end(member.node)
            self._health.better()
            self.acked += 1

    def handle_told(self, source: NodeId, message: Message) -> None:
        """Take note of what a member that was asked has found: ACK or NACK."""
        probe = None if message.target is None else self._probes.get(message.target)
        if probe is None or probe.sequence != message.sequence:
            return
        if source not in probe.asked + probe.asked_again:
            return
        if message.type is MessageType.ACK:
            probe.acked_via = probe.acked_via or source
        else:
            probe.nacks.add(source)

    def judge(self, target: NodeId, now: float) -> None:
        """Conclude what the silence means."""
        probe, member = self._probes.get(target), self._membership.get(target)
        self._end(target)
        if probe is None or member is None:
            return
        since = probe.started_at
        if probe.acked_via is not None or probe.streamed:
            self._fault(member, probe, now)
        elif lives(member, since=since, incarnation=probe.incarnation) or excused(
            member, since=since, config=self._config
        ):
            self.excused += 1
            self._begin(target, now, attempt=probe.attempt + 1)
        else:
            self.failed += 1
            # Whoever was asked owes us a nack at least (Lifeguard, section IV-A).  Of those asked
            # late none is due yet.
            missing = len(set(probe.asked) - probe.nacks) if probe.asked else 1
            self._health.worse(missing)
            self._accuse(target, Testimony(now - since, probe.asked), now)

    def watch(self, node: NodeId, now: float) -> None:
        """Ping a suspect once more, with the accusation."""
        member = self._membership.get(node)
        if member is None or member.shown is not MemberState.SUSPECT:
            self._watched.pop(node, None)
            return
        self._pinger.ping(node, PingPurpose.WATCH, now)
        self._ask_around(member)
        pause = max(self._watched[node], self._membership.allowance(node))
        self._timers.set(TimerKind.WATCH, now + pause, node)

    def forget(self, node: NodeId) -> None:
        """Drop what is under way about a node that is a member no more."""
        self._end(node)
        self._watched.pop(node, None)
        self._timers.cancel(TimerKind.WATCH, node)

    def abandon(self) -> None:
        """Forget all probes."""
        self._probes.clear()
        self._watched.clear()

    # Steps

    def _begin(self, target: NodeId, now: float, *, attempt: int = 1) -> None:
        member = self._membership.get(target)
        if member is None or target in self._probes:
            return
        if len(self._probes) >= PROBES_MAX or attempt > ATTEMPTS_MAX:
            return
        wait = self._membership.allowance(target) * self._health.multiplier
        sequence = self._pinger.ping(target, PingPurpose.PROBE, now)
        self._probes[target] = Probe(target, now, member.incarnation, sequence, wait, attempt)
        self._timers.set(TimerKind.PROBE_TIMEOUT, now + wait, target)

    def _ask_others(self, probe: Probe) -> tuple[NodeId, ...]:
        others = [node for node in self._membership.live if node != probe.target]
        count = min(self._config.indirect_probes, len(others))
        asked = tuple(self._rng.sample(others, count))
        request = Message(MessageType.PING_REQ, probe.sequence, target=probe.target)
        for helper in asked:
            self._outbox.send(helper, request)
        return asked

    def _ask_around(self, suspect: Member) -> None:
        """Show another member what we believe: it answers if that has been refuted."""
        others = [node for node in self._membership.live if node != suspect.node]
        if others and suspect.belief is not None:
            items = [Item(CLAIM_ITEM, claim.blob) for claim in suspect.belief.accusations[:1]]
            asked = self._rng.choice(others)
            self._outbox.send_piggybacked(asked, MessageType.GOSSIP, 0, first=items)

    def _end(self, target: NodeId) -> None:
        self._probes.pop(target, None)
        self._timers.cancel(TimerKind.PROBE_TIMEOUT, target)
        self._timers.cancel(TimerKind.PROBE_END, target)

    def _fault(self, member: Member, probe: Probe, now: float) -> None:
        if probe.acked_via is not None:
            self.acked_indirectly += 1
        else:
            self.acked_streams += 1
        member.faults += 1
        if member.faults >= FAULTS_MIN:
            self._membership.events.append(PathFault(member.node, probe.acked_via))
        else:
            self._begin(member.node, now, attempt=probe.attempt + 1)

    def _accuse(self, node: NodeId, testimony: Testimony, now: float) -> bool:
        claim = self._membership.accuse(node, testimony, now)
        if claim is None:
            return False
        told = observers_of(node, self._membership.table, self._config)
        if self._config.staples:
            told.append(node)
        items = [Item(CLAIM_ITEM, claim.blob)]
        for target in told:
            if target != self._membership.id:
                self._outbox.send_piggybacked(target, MessageType.GOSSIP, 0, first=items)
        if self._config.observers:
            self._watch(node, self._config.watch_interval, now)
        return True

    def _watch(self, node: NodeId, pause: float, now: float) -> None:
        known = self._watched.get(node)
        if known is None and len(self._watched) >= WATCHED_MAX:
            # A duty comes before a late look.
            late = max(self._watched, key=lambda watched: self._watched[watched])
            if self._watched[late] <= pause:
                return
            del self._watched[late]
            self._timers.cancel(TimerKind.WATCH, late)
        if known is None or pause < known:
            self._watched[node] = pause
            self._timers.set(TimerKind.WATCH, now + pause, node)
