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

Rule 7: where all is well and there is no traffic, nothing is sent.  A path is questioned when
        somebody has a reason: the gossip suspects the peer, our addresses or the default route
        change, its record drops the address in use, or the peer is heard from elsewhere.

Its parts, each in a module of its own, share the peers and the pairs, and `select`:

    prober         what is said             relaying   ports of relays, and when they are wanted
    hearing        what is heard            watching   the path in use, while it carries traffic
    surroundings   our addresses, our NAT   upgrading  planned moves
    roaming        us, the peer, elsewhere  answers    how long they have taken of late
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import replace
from typing import TYPE_CHECKING

from meshd.errors import BadPacket
from meshd.path.answers import Answers
from meshd.path.candidates import Fence, PathClass, control_endpoint
from meshd.path.config import PathConfig
from meshd.path.events import (
    BadPacketReceived,
    CallWanted,
    EndpointSelected,
    PeerReady,
    RecordReceived,
)
from meshd.path.hearing import Hearing
from meshd.path.hosts import Hosts
from meshd.path.pair import Pair
from meshd.path.peer import Peer, rank
from meshd.path.prober import Prober
from meshd.path.relaying import Relaying
from meshd.path.roaming import Roaming
from meshd.path.schedule import Schedule
from meshd.path.surroundings import Surroundings
from meshd.path.upgrading import Upgrading
from meshd.path.views import PathStatistics, PathView, view_of
from meshd.path.watching import Watching
from meshd.path.wire import ProbeSealer
from meshd.underlay import Timer, TokenBucket
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from meshd.codec import IPAddress, IPNetwork
    from meshd.keys import BootstrapKey, MeshId, NodeId, NodeKey
    from meshd.path.events import Event
    from meshd.path.nat import NatBehaviour
    from meshd.trust.record import Candidate
    from meshd.underlay import Outgoing

PEERS_PER_BATCH_MAX = 64

# A round of a peer's pings may reach us at each of our candidates, three rounds in a second; its
# bursts bring 25 a second more.
ANSWERS_PER_SECOND_MAX = 64
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
        self.config = config or PathConfig()
        self.peers: dict[NodeId, Peer] = {}
        self.counts: Counter[str] = Counter()
        self.answers = Answers()
        self.fence = Fence(excluded)
        self._hosts = Hosts()
        self._key = key
        self._rng = rng
        sealer = ProbeSealer(key, mesh, bootstrap_key, older_bootstrap_key)
        self.prober = Prober(sealer, fence=self.fence, counts=self.counts, rng=rng)
        self.surroundings = Surroundings(self)
        self.relaying = Relaying(self, now=now)
        self.upgrading = Upgrading(self, key.id)
        self.watching = Watching(self)
        self._hearing = Hearing(self, now=now)
        self._roaming = Roaming(self)
        self._schedule: Schedule[NodeId] = Schedule()
        self._paced_until = now
        self._events: deque[Event] = deque()

    # Inputs

    def receive_datagram(
        self, datagram: bytes, source: Endpoint, local: IPAddress | None, now: float
    ) -> bool:
        """Handle a probe or a hello's pong, which may be anything at all.

        `local` is the address it was sent to.  Return whether it was one that is new and not one
        too many.
        """
        try:
            return self._hearing.receive_untrusted(datagram, source, local, now)
        except BadPacket as exc:
            self.counts["bad_packets"] += 1
            self.emit(BadPacketReceived(source, exc.reason))
            return False

    def handle_timer(self, now: float) -> None:
        """Do everything that is due, up to a batch of peers that are searched for."""
        own = self.surroundings.own
        if own.due_at is not None and now >= own.due_at:
            self.surroundings.review(now)
        self.relaying.handle_timer(now)
        self.watching.handle_timer(now)
        self.upgrading.handle_timer(now)
        if now < self._paced_until:
            return
        for _ in range(PEERS_PER_BATCH_MAX):
            node = self._schedule.pop_due(now)
            if node is None:
                return
            self._advance(self.peers[node], now)
        self._paced_until = now + self.config.pace

    def local_changed(
        self, addresses: Iterable[IPAddress], *, port: int, control_port: int, now: float
    ) -> None:
        """Take our underlay addresses and ports; when they differ, prove every path anew.

        `control_port` is 0 where meshd and WireGuard share a port.
        """
        local = tuple(dict.fromkeys(addresses))
        self.relaying.possible = not control_port
        own = frozenset(Endpoint(address, control_port or port) for address in local)
        if own == self.fence.own:
            return
        self.fence.own = own
        self.surroundings.local_changed(local, control_port or port, now)
        for peer in self.peers.values():
            for pair in peer.pairs.values():
                if pair.local not in local:
                    pair.local = None
        self._roaming.begin_anew(now)

    def routes_changed(self, now: float) -> None:
        """Take that the way out is another: prove anew what does not stay within a LAN."""
        self.surroundings.way_changed(now)
        self._roaming.begin_anew(now, but=PathClass.LAN)

    def resumed(self, now: float) -> None:
        """Take that the machine has slept: nothing that was proven before says anything."""
        self._roaming.begin_anew(now)

    def rekey(self, bootstrap_key: BootstrapKey, older: BootstrapKey | None) -> None:
        """Take the present bootstrap key, and the one before."""
        self.prober.sealer.rekey(bootstrap_key, older)
        for peer in self.peers.values():
            peer.rekeyed = False

    def record_changed(self, blob: bytes, sequence: int) -> None:
        """Take our own signed record, to show to those who lack it."""
        self.prober.record, self.prober.sequence = blob, sequence

    def show_record(self, nodes: Iterable[NodeId], now: float) -> bool:
        """Show our newest record to those of these peers that have not said that they hold it.

        Return whether there are any.
        """
        lacking = [node for node in nodes if not self.shown_to(node)]
        for peer in filter(None, map(self.peers.get, lacking)):
            self._ping_in_use(peer, now)
        return bool(lacking)

    def shown_to(self, node: NodeId) -> bool:
        """Whether a peer has answered that it holds our newest record."""
        peer = self.peers.get(node)
        return peer is not None and peer.holds >= self.prober.sequence > 0

    def exclude(self, networks: Iterable[IPNetwork], now: float) -> None:
        """Take the networks that no endpoint may be in: the mesh's own."""
        self.fence.exclude(networks)
        self.drop_forbidden(now)

    def drop_forbidden(self, now: float) -> None:
        """Let go of addresses that no longer may be used."""
        for peer in self.peers.values():
            for pair in [p for p in peer.pairs.values() if not self.fence.allows(p.control)]:
                if pair.relay is not None:
                    self.relaying.withdrawn(peer, pair.relay, now)
                peer.pairs.pop(pair.control, None)
            if peer.selected is not None and not self.fence.allows(peer.selected.control):
                peer.selected = None
                self.demand_proof(peer, now)

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
        peer = self.peers.get(node)
        if peer is None:
            if not self.prober.sealer.can_seal(node):
                self.counts["unsealable"] += 1
                return
            answers = TokenBucket(rate=ANSWERS_PER_SECOND_MAX, burst=ANSWERS_BURST_MAX, now=now)
            peer = self.peers[node] = Peer(
                node, hosts=self._hosts, answers=answers, now=now, preshared=preshared
            )
        candidates = tuple(candidates)
        self._hosts.listed(node, candidates)
        peer.sequence, peer.record = sequence, record
        known = set(peer.pairs)
        delisted = peer.set_candidates(
            c for c in candidates if self.fence.allows(control_endpoint(c)) and c.port
        )
        if delisted:
            self.demand_proof(peer, now, announce=False)
        elif not known.issuperset(peer.pairs):
            peer.attempt = 0
            self._schedule.set_sooner(node, now)
        self._hearing.admitted(peer, now)

    def remove_peer(self, node: NodeId, now: float) -> None:
        """Forget a peer: it has been revoked, or reaped."""
        if self.peers.pop(node, None) is not None:
            self._hosts.forget(node)
            self._schedule.discard(node)
            self.relaying.forget(node)
            self.watching.forget(node)
            self.upgrading.forget(node)
            self.surroundings.forget(node, now)

    def peer_installed(self, node: NodeId, now: float, *, installed: bool = True) -> None:
        """Take whether the kernel has the peer, and let the peer know at once."""
        peer = self.peers.get(node)
        if peer is None or peer.installed == installed:
            return
        peer.installed = installed
        peer.announced = peer.announced and installed
        self.announce(peer)
        self._ping_in_use(peer, now)
        self.search(peer, now)

    def peer_at(self, node: NodeId, endpoint: Endpoint, now: float) -> None:
        """Take that a peer may be reached at an endpoint that its record does not list."""
        peer = self.peers.get(node)
        if peer is None or not self.fence.allows(endpoint):
            return
        self.prober.ping(peer, peer.observe(endpoint, None), now)
        peer.attempt = min(peer.attempt, self.config.returning_attempt)
        self.search(peer, now)

    def peer_wanted(self, node: NodeId, now: float, *, wanted: bool) -> None:
        """Take whether a peer is there to be reached: relays are asked for those only."""
        peer = self.peers.get(node)
        if peer is None or wanted == (peer.wanted_since < math.inf):
            return
        peer.wanted_since = now if wanted else math.inf
        self.relaying.review(peer, now)

    def preshared_changed(self, node: NodeId, *, ours: bytes | None, theirs: bytes | None) -> None:
        """Take what our probes are to say of pre-shared keys, and what the peer is known to."""
        peer = self.peers.get(node)
        if peer is not None:
            peer.preshared_ours, peer.preshared_theirs = ours, theirs

    def peer_suspect(self, node: NodeId, now: float) -> None:
        """Question a peer's path: the gossip has a fault or a death to explain."""
        peer = self.peers.get(node)
        if peer is None:
            return
        config = self.config
        interval = config.recheck_interval if peer.proven else config.suspect_interval
        if now - peer.demanded_at >= interval:
            self.demand_proof(peer, now)

    def endpoint_observed(self, node: NodeId, endpoint: Endpoint, now: float) -> None:
        """Take the endpoint that the kernel has for a peer."""
        peer = self.peers.get(node)
        if peer is not None:
            self._roaming.endpoint_observed(peer, endpoint, now)

    def traffic(self, node: NodeId, now: float, *, lasts: float) -> None:
        """Take that a peer's tunnel carries something besides what meshd sends, and may go on."""
        peer = self.peers.get(node)
        if peer is not None:
            self.watching.traffic(peer, now, lasts=lasts)
            self.relaying.review(peer, now)

    def called(
        self, node: NodeId, record: bytes, now: float, *, seen_at: Endpoint | None = None
    ) -> None:
        """Take that a peer pings us at this moment, and cannot reach us: ping it everywhere.

        `record` is its own, not looked at: see `RecordReceived`.  `seen_at` is where others see it,
        behind a NAT that gives it another port for us: a ping there is lost, but a NAT of ours that
        filters by address lets the peer in from then on.
        """
        peer = self.peers.get(node)
        if peer is None or now - peer.calls_us_at < self.config.called_interval:
            return
        peer.calls_us_at = now
        self.emit(RecordReceived(record, node))
        peer.attempt = min(peer.attempt, self.config.returning_attempt)
        for pair in peer.askable:
            if pair.relay is None and now - pair.asked_at >= self.config.probe_spacing:
                self.prober.ping(peer, pair, now)
        if seen_at is not None and seen_at not in peer.pairs:
            opener = Pair(seen_at, None, PathClass.REFLEXIVE, listed=False)
            self.prober.ping(peer, opener, now)
        self.search(peer, now)

    def relay_offered(
        self,
        node: NodeId,
        relay: NodeId,
        endpoint: Endpoint,
        *,
        now: float,
        draining: bool = False,
        path_class: PathClass = PathClass.RELAYED,
    ) -> None:
        """Take our port of a relay for a peer; again when it changes, or the relay is to go."""
        peer = self.peers.get(node)
        if peer is not None:
            self.relaying.offered(peer, relay, endpoint, path_class, draining=draining, now=now)

    def relay_withdrawn(self, node: NodeId, relay: NodeId, now: float) -> None:
        """Take that a relay forwards for this peer no longer."""
        peer = self.peers.get(node)
        if peer is not None:
            self.relaying.withdrawn(peer, relay, now)

    # Outputs

    def datagrams_to_send(self) -> list[Outgoing]:
        """Take the queued datagrams."""
        return self.prober.datagrams_to_send()

    def next_event(self) -> Event | None:
        """Take the oldest queued event."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline; None while nothing is due ever."""
        parts = (self.relaying, self.watching, self.upgrading)
        timers = [timer for part in parts if (timer := part.get_timer()) is not None]
        soonest = self._schedule.soonest()
        if soonest is not None:
            timers.append(Timer(max(soonest[0], self._paced_until), f"path to {soonest[1].short}"))
        if self.surroundings.own.due_at is not None:
            timers.append(Timer(self.surroundings.own.due_at, "reflexive addresses"))
        return min(timers, default=None)

    def endpoint(self, node: NodeId) -> Endpoint | None:
        """Return the endpoint chosen for a peer."""
        peer = self.peers.get(node)
        return None if peer is None or peer.selected is None else peer.selected.endpoint

    def insists(self, node: NodeId) -> bool:
        """Whether WireGuard is to have the endpoint chosen, wherever it has moved to by itself."""
        peer = self.peers.get(node)
        return peer is not None and peer.insist_until > -math.inf

    def keepalive(self, node: NodeId) -> int:
        """Return every how many seconds a living peer is to be sent something; 0 for never."""
        peer = self.peers.get(node)
        return 0 if peer is None else self.surroundings.keepalive(peer)

    def view(self, node: NodeId) -> PathView | None:
        """Return everything known of the paths to a peer."""
        peer = self.peers.get(node)
        return None if peer is None else view_of(peer)

    def nat(self, version: int) -> NatBehaviour:
        """Return what our NAT does to IPv4, or to IPv6."""
        return self.surroundings.nat(version)

    @property
    def reflexive(self) -> tuple[Endpoint, ...]:
        """Where our probes come from as others see it, as far as that is to be believed."""
        return self.surroundings.own.reflexive

    @property
    def seen_at(self) -> Endpoint | None:
        """Where somebody sees us come from, where others see another port: for calls only."""
        return self.surroundings.own.unsteady

    @property
    def behind_nat(self) -> bool:
        """Whether a member sees us come from an address that is not on this host."""
        return self.surroundings.own.behind_nat

    def worth_watching(self, node: NodeId, *, relays: bool) -> bool:
        """Whether there is another way to a peer than the one in use, or may be one by a relay."""
        peer = self.peers.get(node)
        if peer is None or peer.selected is None:
            return False
        return len(peer.pairs) > 1 or (relays and peer.path_class is not PathClass.LAN)

    def statistics(self) -> PathStatistics:
        """Return counts since the start."""
        return replace(
            PathStatistics(**self.counts), peers=len(self.peers), watched=len(self.watching)
        )

    # For the parts of the agent

    def emit(self, event: Event) -> None:
        """Queue an event."""
        self._events.append(event)

    def select(
        self, peer: Peer, pair: Pair, reason: str, now: float, *, hurry: bool = False
    ) -> None:
        """Use a pair for a peer."""
        assert pair.endpoint is not None
        assert self.fence.allows(pair.endpoint)
        before = None if peer.selected is None else peer.selected.endpoint
        if peer.selected is None:
            peer.found_at = now
        if pair is not peer.selected:
            peer.left = peer.selected
            peer.selected, peer.selected_at = pair, now
            peer.attempt = 0
            pair.end_trial()
        if pair.endpoint == before:
            return
        moved = before is not None and peer.proven
        self.emit(
            EndpointSelected(
                peer.node,
                pair.endpoint,
                pair.path_class,
                before,
                reason,
                relay=pair.relay,
                hurry=hurry or moved,
            )
        )
        if moved:
            self.upgrading.moved(peer, now)
            # "uses": so that the other side follows, be it in use or not.
            self.prober.ping(peer, pair, now)
        self.watching.again(peer, now)
        self.surroundings.review_keepalive(peer)
        self.search(peer, now)

    def leave(self, peer: Peer, reason: str, now: float) -> None:
        """Move to the best other pair that is proven; search where there is none."""
        others = [pair for pair in peer.proven_pairs if pair is not peer.selected]
        peer.attempt = 0
        if others:
            self.select(peer, min(others, key=rank), reason, now, hurry=True)
        else:
            peer.searching_since = now
            self.demand_proof(peer, now, announce=False)
        self.surroundings.ask_again(now)
        self.relaying.review(peer, now)

    def choose(self, peer: Peer, now: float) -> None:
        """Use another pair for a peer if there is reason to."""
        choice = peer.choose(now, grace=self._grace(now))
        if choice is not None:
            self.select(peer, *choice, now)
            self.relaying.review(peer, now)

    def demand_proof(self, peer: Peer, now: float, *, announce: bool = True) -> None:
        """Let no earlier proof count, and ask at once."""
        peer.demand_proof(now, announce=announce)
        self._schedule.set_sooner(peer.node, now)
        self.relaying.review(peer, now)

    def announce(self, peer: Peer) -> None:
        """Say that traffic may start, once for each demand."""
        if peer.ready and not peer.announced:
            assert peer.selected is not None
            peer.announced = True
            self.emit(PeerReady(peer.node, peer.selected.rtt))

    def search(self, peer: Peer, now: float) -> None:
        """Have the next round no later than the backoff would, and none where all is well."""
        if self._targets(peer):
            self._schedule.set_sooner(peer.node, self._next_round_at(peer, now))
        else:
            self._schedule.discard(peer.node)

    # Searching

    def _advance(self, peer: Peer, now: float) -> None:
        """Ask one round of questions, and plan the next."""
        self.choose(peer, now)
        targets = self._targets(peer)
        if not targets:
            return
        self._call(peer, now)
        for pair in targets:
            if now - pair.asked_at >= self.config.probe_spacing:
                self.prober.ping(peer, pair, now)
        peer.drop_silent()
        peer.attempt += 1
        self._schedule.set(peer.node, self._next_round_at(peer, now))

    def _targets(self, peer: Peer) -> list[Pair]:
        return peer.targets(
            attempts_max=self.config.upgrade_attempts_max,
            nominates=self.upgrading.nominates(peer),
        )

    def _call(self, peer: Peer, now: float) -> None:
        """Have the peer ping us in this moment as well, if there is no direct path to it."""
        interval = self.config.call_interval
        if peer.attempt >= len(self.config.backoff):
            interval = self.config.upgrade_interval
        soon = now - peer.searching_since < max(self.config.call_wait, self.relaying.wait(now))
        if soon or peer.wanted_since == math.inf or peer.direct:
            return
        if now - peer.called_at < interval:
            return
        peer.called_at = now
        self.emit(CallWanted(peer.node))

    def _next_round_at(self, peer: Peer, now: float) -> float:
        config = self.config
        if peer.proven and peer.attempt > len(config.backoff):
            pause = config.upgrade_interval
        elif not peer.proven and now - peer.searching_since >= config.patience:
            pause = config.patient_interval
        else:
            pause = config.backoff[min(max(peer.attempt, 1), len(config.backoff)) - 1]
        pause = max(pause, self.answers.slowest(now))
        at = now + pause * (1.0 - config.backoff_jitter * self._rng.random())
        grace_ends_at = peer.demanded_at + self._grace(now)
        if peer.selected is not None and not peer.proven and now < grace_ends_at:
            return min(at, grace_ends_at)
        return at

    def _grace(self, now: float) -> float:
        """Return how long the address in use may take to prove itself again."""
        return max(self.config.selection_grace, self.answers.slowest(now))

    def _ping_in_use(self, peer: Peer, now: float) -> None:
        """Ping by the path in use, by all where none is proven."""
        in_use = [peer.selected] if peer.selected is not None and peer.proven else []
        for pair in in_use or peer.askable:
            self.prober.ping(peer, pair, now)
