"""How each peer is reached: the single writer of the endpoint chosen for a peer.

The agent does no IO, reads no clock and owns no source of randomness.  Each input is told the
time; after each, the driver drains `datagrams_to_send`, `next_event` and asks `get_timer`.

    us                                     peer
    │ ping (our record, installed?)          │   to every address it may have, with backoff
    │───────────────────────────────────────▶│   unknown: RecordReceived; verified: update_peer
    │ pong (installed?, address seen)        │
    │◀───────────────────────────────────────│   that address is proven: EndpointSelected
    │ ping (installed!)                      │   ◀── peer_installed, once its kernel has us
    │◀───────────────────────────────────────│
    │ ping, pong                             │   the flag counts only in a pong
    │◀──────────────────────────────────────▶│   PeerReady: a handshake will be answered at once

Rule 1: a ping asserts nothing.  An old one, sent again, gets an answer as long as itself, to
        whatever address it came from, has that address pinged a few times, and that is all; so
        the replay guard and the limit on answers are for cost, not for safety.

Rule 2: a pong counts only from the very address that was asked, for a transaction still open.

Rule 3: nothing in a record is used before `update_peer` brings it back, verified.

Rule 4: an address no pong came from gets our record only if the peer's own record lists it, so a
        forged source cannot draw datagrams longer than its own.

Rule 5: after a change of the bootstrap key, members are asked under both keys until they are heard
        under the new one, and answered under the one by which they asked.  Strangers are only
        heard under the new one.

Rule 6: who answers from a proven address, and does not know the newest record of its own that we
        hold, is shown it: it may be out of a backup, or not the only one with its keys.

Rule 7: where all is well, nothing is sent.  A path is questioned when somebody has a reason: the
        gossip suspects the peer, our addresses change, its record drops the address in use, or
        the peer is heard from elsewhere.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import replace
from typing import TYPE_CHECKING

from meshd.errors import BadPacket
from meshd.path.candidates import control_endpoint, usable
from meshd.path.config import PathConfig
from meshd.path.events import (
    BadPacketReceived,
    EndpointSelected,
    PeerCalling,
    PeerReady,
    PresharedHeard,
    RecordReceived,
    ReflexiveAddress,
    ReflexiveChanged,
)
from meshd.path.peer import Pair, Peer
from meshd.path.schedule import Schedule
from meshd.path.strangers import Parked, Strangers
from meshd.path.views import PathStatistics, PathView, view_of
from meshd.path.wire import NONCE_BYTES, TRANSACTION_BYTES, Probe, ProbeSealer, ProbeType
from meshd.path.witnesses import OwnAddresses
from meshd.underlay import Outgoing, ReplayGuard, Timer, TokenBucket
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from meshd.codec import IPAddress, IPNetwork
    from meshd.keys import BootstrapKey, MeshId, NodeId, NodeKey
    from meshd.path.events import Event
    from meshd.trust.record import Candidate

REPLAYS_REMEMBERED_MAX = 16_384
PEERS_PER_BATCH_MAX = 64
WELCOMES_MAX = 4  # unanswered questions beyond which a ping gets no immediate one in return

# A round of a peer's pings may reach us at each of our candidates, three rounds in a second.
ANSWERS_PER_SECOND_MAX = 32
ANSWERS_BURST_MAX = 64


class Agent:
    """See the module docstring.  `rng` must be unpredictable outside tests: `SystemRandom`."""

    def __init__(
        self,
        key: NodeKey,
        mesh: MeshId,
        bootstrap_key: BootstrapKey,
        *,
        excluded: Iterable[IPNetwork],
        rng: Random,
        now: float,
        config: PathConfig | None = None,
        older_bootstrap_key: BootstrapKey | None = None,
    ) -> None:
        self._key = key
        self._config = config or PathConfig()
        self._rng = rng
        self._sealer = ProbeSealer(key, mesh, bootstrap_key, older_bootstrap_key)
        self._excluded = tuple(excluded)
        self._own_endpoints: frozenset[Endpoint] = frozenset()
        self._record = b""
        self._sequence = 0
        self._peers: dict[NodeId, Peer] = {}
        self._schedule: Schedule[NodeId] = Schedule()
        self._paced_until = now
        self._replays = ReplayGuard(REPLAYS_REMEMBERED_MAX)
        self._strangers = Strangers(now=now)
        self._own = OwnAddresses()
        self._outbox: list[Outgoing] = []
        self._events: deque[Event] = deque()
        self._counts: Counter[str] = Counter()

    # Inputs

    def receive_datagram(
        self, datagram: bytes, source: Endpoint, local: IPAddress | None, now: float
    ) -> bool:
        """Handle a probe, which may be anything at all.  `local` is the address it was sent to.

        Return whether it was one that is new and not one too many.
        """
        try:
            return self._receive_untrusted(datagram, source, local, now)
        except BadPacket as exc:
            self._counts["bad_packets"] += 1
            self._events.append(BadPacketReceived(source, exc.reason))
            return False

    def handle_timer(self, now: float) -> None:
        """Do everything that is due, up to a batch of peers."""
        if self._own.due_at is not None and now >= self._own.due_at:
            self._review_own(now)
        if now < self._paced_until:
            return
        for _ in range(PEERS_PER_BATCH_MAX):
            node = self._schedule.pop_due(now)
            if node is None:
                return
            self._advance(self._peers[node], now)
        self._paced_until = now + self._config.pace

    def local_changed(
        self, addresses: Iterable[IPAddress], *, port: int, control_port: int, now: float
    ) -> None:
        """Take our underlay addresses and ports; when they differ, prove every path anew.

        `control_port` is 0 where meshd and WireGuard share a port.
        """
        local = tuple(dict.fromkeys(addresses))
        own = frozenset(Endpoint(address, control_port or port) for address in local)
        if own == self._own_endpoints:
            return
        self._own_endpoints = own
        self._own.local_changed(local, settles_at=now + self._config.sole_witness_wait)
        for peer in self._peers.values():
            for pair in peer.pairs.values():
                if pair.local not in local:
                    pair.local = None
            peer.searching_since = now
            self._demand_proof(peer, now)

    def rekey(self, bootstrap_key: BootstrapKey, older: BootstrapKey | None) -> None:
        """Take the present bootstrap key, and the one before."""
        self._sealer.rekey(bootstrap_key, older)
        for peer in self._peers.values():
            peer.rekeyed = False

    def record_changed(self, blob: bytes, sequence: int) -> None:
        """Take our own signed record, to show to those who lack it."""
        self._record, self._sequence = blob, sequence

    def show_record(self, nodes: Iterable[NodeId], now: float) -> bool:
        """Show our newest record to those of these peers that have not said that they hold it.

        Return whether there are any.
        """
        lacking = [node for node in nodes if not self.shown_to(node)]
        for peer in filter(None, map(self._peers.get, lacking)):
            in_use = [peer.selected] if peer.selected is not None and peer.proven else []
            for pair in in_use or peer.pairs.values():
                self._ping(peer, pair, now)
        return bool(lacking)

    def shown_to(self, node: NodeId) -> bool:
        """Whether a peer has answered that it holds our newest record."""
        peer = self._peers.get(node)
        return peer is not None and peer.holds >= self._sequence > 0

    def exclude(self, networks: Iterable[IPNetwork], now: float) -> None:
        """Take the networks that no endpoint may be in: the mesh's own."""
        self._excluded = tuple(networks)
        for peer in self._peers.values():
            for control in [c for c in peer.pairs if not self._usable(c)]:
                del peer.pairs[control]
            if peer.selected is not None and not self._usable(peer.selected.control):
                peer.selected = None
                self._demand_proof(peer, now)

    def update_peer(
        self,
        node: NodeId,
        candidates: Iterable[Candidate],
        *,
        sequence: int,
        now: float,
        record: bytes = b"",
        preshared: bytes | None = None,
    ) -> None:
        """Take what an admitted member's verified record says of where it is, and the record.

        `preshared` is what probes are to say of keys shared with a member not known yet.
        """
        assert node != self._key.id
        peer = self._peers.get(node)
        if peer is None:
            if not self._sealer.can_seal(node):
                self._counts["unsealable"] += 1
                return
            answers = TokenBucket(rate=ANSWERS_PER_SECOND_MAX, burst=ANSWERS_BURST_MAX, now=now)
            peer = self._peers[node] = Peer(node, answers=answers, now=now, preshared=preshared)
        peer.sequence, peer.record = sequence, record
        known = set(peer.pairs)
        delisted = peer.set_candidates(
            c for c in candidates if self._usable(control_endpoint(c)) and c.port
        )
        if delisted:
            self._demand_proof(peer, now, announce=False)
        elif not known.issuperset(peer.pairs):
            peer.attempt = 0
            self._schedule.set_sooner(node, now)
        parked = self._strangers.take(node, now)
        if parked is not None:
            self._on_ping(peer, parked.ping, parked.source, parked.local, now)

    def remove_peer(self, node: NodeId, now: float) -> None:
        """Forget a peer: it has been revoked, or reaped."""
        if self._peers.pop(node, None) is not None:
            self._schedule.discard(node)
            self._own.forget(node)
            self._review_own(now)

    def peer_installed(self, node: NodeId, now: float, *, installed: bool = True) -> None:
        """Take whether the kernel has the peer, and let the peer know at once."""
        peer = self._peers.get(node)
        if peer is None or peer.installed == installed:
            return
        peer.installed = installed
        peer.announced = peer.announced and installed
        self._announce(peer)
        in_use = [peer.selected] if peer.selected is not None and peer.proven else []
        for pair in in_use or peer.pairs.values():
            self._ping(peer, pair, now)
        self._reschedule(peer, now)

    def preshared_changed(self, node: NodeId, *, ours: bytes | None, theirs: bytes | None) -> None:
        """Take what our probes are to say of pre-shared keys, and what the peer is known to."""
        peer = self._peers.get(node)
        if peer is not None:
            peer.preshared_ours, peer.preshared_theirs = ours, theirs

    def peer_suspect(self, node: NodeId, now: float) -> None:
        """Question a peer's path: the gossip has a fault or a death to explain."""
        peer = self._peers.get(node)
        if peer is None:
            return
        config = self._config
        interval = config.recheck_interval if peer.proven else config.suspect_interval
        if now - peer.demanded_at >= interval:
            self._demand_proof(peer, now)

    def endpoint_observed(self, node: NodeId, endpoint: Endpoint, now: float) -> None:
        """Take the endpoint that the kernel has for a peer.

        When WireGuard has moved it, an authenticated packet came from there, and that is where the
        peer is.  An observation that only repeats the last one says nothing: what we selected in
        between may not have been applied yet.
        """
        peer = self._peers.get(node)
        if peer is None or endpoint == peer.in_kernel:
            return
        first = peer.in_kernel is None
        peer.in_kernel = endpoint
        selected = peer.selected
        if not self._usable(endpoint) or (selected is not None and selected.endpoint == endpoint):
            return
        if first and selected is not None:
            return
        pair = peer.pair_of_endpoint(endpoint)
        pair.proven_at = max(pair.proven_at, now)
        self._select(peer, pair, "peer roamed")
        self._announce(peer)
        self._reschedule(peer, now)

    # Outputs

    def datagrams_to_send(self) -> list[Outgoing]:
        """Take the queued datagrams."""
        datagrams, self._outbox = self._outbox, []
        return datagrams

    def next_event(self) -> Event | None:
        """Take the oldest queued event."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline; None while nothing is due ever."""
        timers = []
        soonest = self._schedule.soonest()
        if soonest is not None:
            timers.append(Timer(max(soonest[0], self._paced_until), f"path to {soonest[1].short}"))
        if self._own.due_at is not None:
            timers.append(Timer(self._own.due_at, "reflexive addresses"))
        return min(timers, default=None)

    def endpoint(self, node: NodeId) -> Endpoint | None:
        """Return the endpoint chosen for a peer."""
        peer = self._peers.get(node)
        return None if peer is None or peer.selected is None else peer.selected.endpoint

    def view(self, node: NodeId) -> PathView | None:
        """Return everything known of the paths to a peer."""
        peer = self._peers.get(node)
        return None if peer is None else view_of(peer)

    @property
    def reflexive(self) -> tuple[Endpoint, ...]:
        """Where our probes come from as others see it, as far as that is to be believed."""
        return self._own.reflexive

    @property
    def behind_nat(self) -> bool:
        """Whether a member sees us come from an address that is not on this host."""
        return self._own.behind_nat

    def statistics(self) -> PathStatistics:
        """Return counts since the start."""
        return replace(PathStatistics(**self._counts), peers=len(self._peers))

    # Probes in

    def _receive_untrusted(
        self, datagram: bytes, source: Endpoint, local: IPAddress | None, now: float
    ) -> bool:
        sealed = self._sealer.open_sender_untrusted(datagram)
        mark = sealed.sender + sealed.nonce
        if mark in self._replays:
            self._counts["replayed"] += 1
            return False
        peer = self._peers.get(sealed.sender)
        if peer is None and (sealed.older or not self._strangers.admit(now)):
            self._counts["strangers_dropped"] += 1
            return False
        probe = self._sealer.open_probe_untrusted(sealed)
        self._replays.add(mark)
        if not self._usable(source):
            raise BadPacket("probe from an impossible address")
        if peer is None:
            self._on_stranger(sealed.sender, probe, source, local, now)
            return True
        peer.rekeyed = peer.rekeyed or not sealed.older
        if probe.type is ProbeType.PING:
            self._on_ping(peer, probe, source, local, now, older=sealed.older)
        else:
            self._on_pong(peer, probe, source, now)
        return True

    def _on_stranger(
        self, node: NodeId, probe: Probe, source: Endpoint, local: IPAddress | None, now: float
    ) -> None:
        if probe.record is None:
            # It takes us for somebody who knows it; its next search brings its record.
            self._counts["strangers_dropped"] += 1
            return
        self._counts["strangers"] += 1
        self._strangers.park(node, Parked(probe, source, local, now))
        self._events.append(RecordReceived(probe.record, node))

    def _on_ping(
        self,
        peer: Peer,
        ping: Probe,
        source: Endpoint,
        local: IPAddress | None,
        now: float,
        *,
        older: bool = False,
    ) -> None:
        self._counts["pings_received"] += 1
        if not peer.answers.take(now):
            self._counts["limited"] += 1
            return
        pong = Probe(
            type=ProbeType.PONG,
            transaction=ping.transaction,
            installed=peer.awaits(ping),
            held=peer.sequence,
            sequence=self._sequence,
            observed=source,
            preshared=peer.preshared_ours,
        )
        self._counts["pongs_sent"] += 1
        self._send(pong, peer, source, local, older=older)
        if ping.record is not None and ping.sequence > peer.sequence:
            self._events.append(RecordReceived(ping.record, peer.node))
        if ping.yours is not None:
            self._events.append(RecordReceived(ping.yours, peer.node))
        if not peer.installed:
            self._events.append(PeerCalling(peer.node))
        self._ask_back(peer, ping, peer.observe(source, local), now)

    def _ask_back(self, peer: Peer, ping: Probe, pair: Pair, now: float) -> None:
        """Let a ping be the occasion for our own questions."""
        config = self._config
        moved = peer.proven and pair is not peer.selected and pair.proven_at < peer.demanded_at
        if moved and now - peer.demanded_at >= config.recheck_interval:
            self._demand_proof(peer, now, announce=False)
        unproven = pair.proven_at < peer.demanded_at
        if peer.differs(ping):
            peer.preshared_doubted = True
            self._reschedule(peer, now)
        if unproven or ping.installed != peer.installs_us or peer.preshared_doubted:
            # "You are in my kernel" is news both sides should have at once: the sooner of the two
            # to be ready starts a handshake, and if the other does so before it hears, they cross.
            # Only once, though: where answers take long, pings that beget pings would never end.
            welcome = ping.installed and not peer.installs_us and pair.unanswered < WELCOMES_MAX
            if welcome or now - pair.asked_at >= self._answer_spacing(pair):
                self._ping(peer, pair, now)
            if not peer.proven:
                # It is back: do not sit out a long pause.
                peer.attempt = min(peer.attempt, config.returning_attempt)
                peer.searching_since = now
                self._reschedule(peer, now)
        elif ping.held < self._sequence and now - pair.asked_at >= config.update_spacing:
            self._ping(peer, pair, now)

    def _answer_spacing(self, pair: Pair) -> float:
        """Return how long to wait after a question before a ping may be the occasion for another.

        It grows while nothing is answered: two sides that are slow because they are overloaded must
        not keep each other so.
        """
        config = self._config
        step = min(pair.unanswered, len(config.backoff)) - 1
        return min(config.backoff[max(step, 0)], config.recheck_interval)

    def _on_pong(self, peer: Peer, pong: Probe, source: Endpoint, now: float) -> None:
        pair = peer.pairs.get(source)
        since = now - self._config.transaction_lifetime
        if pair is None or not pair.close_transaction(pong.transaction, since=since, now=now):
            self._counts["pongs_unasked"] += 1
            return
        self._counts["pongs_received"] += 1
        peer.holds = pong.held
        peer.installs_us = pong.installed
        peer.announced = peer.announced and pong.installed
        self._choose(peer, now)
        if peer.hear_preshared(pong.preshared):
            # Before `PeerReady`: the first handshake needs the right key.
            self._events.append(PresharedHeard(peer.node, pong.preshared))
        self._announce(peer)
        assert pong.observed is not None
        self._on_observed(peer.node, pong.observed, now)
        spacing = self._config.update_spacing
        if peer.holds < self._sequence and now - pair.shown_at >= spacing:
            self._ping(peer, pair, now)
        elif pong.sequence < peer.sequence and now - pair.returned_at >= spacing:
            self._ping(peer, pair, now, yours=peer.record or None)
        self._reschedule(peer, now)

    # Searching

    def _advance(self, peer: Peer, now: float) -> None:
        """Ask one round of questions, and plan the next."""
        self._choose(peer, now)
        targets = peer.targets(self._config.upgrade_attempts_max)
        if not targets:
            return
        for pair in targets:
            if now - pair.asked_at >= self._config.probe_spacing:
                self._ping(peer, pair, now)
        peer.drop_silent()
        peer.attempt += 1
        self._schedule.set(peer.node, self._next_round_at(peer, now))

    def _next_round_at(self, peer: Peer, now: float) -> float:
        config = self._config
        if not peer.proven and now - peer.searching_since >= config.patience:
            pause = config.patient_interval
        else:
            pause = config.backoff[min(max(peer.attempt, 1), len(config.backoff)) - 1]
        at = now + pause * (1.0 - config.backoff_jitter * self._rng.random())
        grace_ends_at = peer.demanded_at + config.selection_grace
        if peer.selected is not None and not peer.proven and now < grace_ends_at:
            return min(at, grace_ends_at)
        return at

    def _reschedule(self, peer: Peer, now: float) -> None:
        """Have the next round no later than the backoff would, and none where all is well."""
        if peer.targets(self._config.upgrade_attempts_max):
            self._schedule.set_sooner(peer.node, self._next_round_at(peer, now))
        else:
            self._schedule.discard(peer.node)

    def _demand_proof(self, peer: Peer, now: float, *, announce: bool = True) -> None:
        peer.demand_proof(now, announce=announce)
        self._schedule.set_sooner(peer.node, now)

    def _choose(self, peer: Peer, now: float) -> None:
        choice = peer.choose(now, grace=self._config.selection_grace)
        if choice is not None:
            self._select(peer, *choice)

    def _select(self, peer: Peer, pair: Pair, reason: str) -> None:
        assert pair.endpoint is not None
        assert self._usable(pair.endpoint)
        before = None if peer.selected is None else peer.selected.endpoint
        peer.selected = pair
        if pair.endpoint != before:
            self._events.append(
                EndpointSelected(peer.node, pair.endpoint, pair.path_class, before, reason)
            )

    def _announce(self, peer: Peer) -> None:
        if peer.ready and not peer.announced:
            assert peer.selected is not None
            peer.announced = True
            self._events.append(PeerReady(peer.node, peer.selected.rtt))

    # Our own addresses

    def _on_observed(self, by: NodeId, observed: Endpoint, now: float) -> None:
        if usable(observed, self._excluded) and self._own.report(by, observed):
            self._events.append(ReflexiveAddress(by, observed))
            self._review_own(now)

    def _review_own(self, now: float) -> None:
        if self._own.review(self._others_heard_at, now):
            self._events.append(ReflexiveChanged(self._own.reflexive, self._own.behind_nat))

    def _others_heard_at(self, version: int) -> float:
        """Return when all who could tell us our address will have had their chance."""
        return max(
            (
                peer.searching_since + self._config.sole_witness_wait
                for node, peer in self._peers.items()
                if not self._own.heard(node, version)
                and any(control.address.version == version for control in peer.pairs)
            ),
            default=-math.inf,
        )

    # Probes out

    def _usable(self, endpoint: Endpoint) -> bool:
        return usable(endpoint, self._excluded) and endpoint not in self._own_endpoints

    def _ping(self, peer: Peer, pair: Pair, now: float, *, yours: bytes | None = None) -> None:
        if not self._usable(pair.control):
            return
        lacks_record = peer.holds < self._sequence and yours is None
        may_have_it = pair.listed or pair.proven_at > -math.inf
        ping = Probe(
            type=ProbeType.PING,
            transaction=self._rng.randbytes(TRANSACTION_BYTES),
            installed=peer.installed,
            held=peer.sequence,
            sequence=self._sequence,
            record=self._record if lacks_record and may_have_it else None,
            yours=yours,
            preshared=peer.preshared_ours,
        )
        pair.open_transaction(ping.transaction, now)
        if ping.record is not None:
            pair.shown_at = now
        if yours is not None:
            pair.returned_at = now
        self._counts["pings_sent"] += 1
        self._send(ping, peer, pair.control, pair.local)
        if self._sealer.has_older and not peer.rekeyed:
            self._send(ping, peer, pair.control, pair.local, older=True)

    def _send(
        self,
        probe: Probe,
        peer: Peer,
        target: Endpoint,
        source: IPAddress | None,
        *,
        older: bool = False,
    ) -> None:
        nonce = self._rng.randbytes(NONCE_BYTES)
        datagram = self._sealer.seal(probe, peer.node, nonce, older=older)
        self._outbox.append(Outgoing(datagram, target, source))
