"""What pongs tell of ourselves: our addresses as others see them, our NAT, its bindings.

Rule 1: `witnesses` says what is believed of our addresses; only that gets into our record.

Rule 2: when a path fails it may be our NAT that has begun anew, so a few who see us are asked.

Rule 3: whether a path goes through a binding of our NAT is told by its own pongs: the peer sees us
        come from an address that is not on this host.  Until one has told, we go by whether
        anybody says so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meshd.path.binding import Bindings
from meshd.path.candidates import PathClass, private
from meshd.path.events import KeepaliveChanged, ReflexiveAddress, ReflexiveChanged
from meshd.path.nat import NatWatch
from meshd.path.witnesses import OwnAddresses

if TYPE_CHECKING:
    from meshd.codec import IPAddress
    from meshd.keys import NodeId
    from meshd.path.agent import Agent
    from meshd.path.nat import NatBehaviour
    from meshd.path.pair import Pair
    from meshd.path.peer import Peer
    from meshd.wg.types import Endpoint

WITNESSES_ASKED = 4  # when a path has failed
ASK_AGAIN_INTERVAL = 5.0  # between two such times


class Surroundings:
    """See the module docstring."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.own = OwnAddresses()
        self._bindings = Bindings()
        self._nats = {4: NatWatch(), 6: NatWatch()}
        self._local: frozenset[IPAddress] = frozenset()
        self._port = 0
        self._asked_again_at = -math.inf
        self._keepalives: dict[NodeId, int] = {}  # as last said

    def local_changed(self, local: tuple[IPAddress, ...], port: int, now: float) -> None:
        """Take our addresses, and the port that our probes come from."""
        self._local, self._port = frozenset(local), port
        self.way_changed(now)

    def way_changed(self, now: float) -> None:
        """Let no report count any longer: we come out somewhere else."""
        settles_at = now + self._agent.config.sole_witness_wait
        self.own.local_changed(self._local, settles_at=settles_at)
        self._bindings.clear()
        for nat in self._nats.values():
            nat.clear()

    def sees_family(self, endpoint: Endpoint) -> bool:
        """Whether we have an address of an endpoint's family."""
        return any(address.version == endpoint.address.version for address in self._local)

    def heard(self, source: Endpoint, now: float) -> None:
        """Take that a ping has come from there, before it is answered."""
        if self._agent.fence.believes(source) and not private(source.address):
            self._nats[source.address.version].heard(source, self._agent.prober.contacted, now)

    def observed(self, by: NodeId, pair: Pair, observed: Endpoint, idle: float, now: float) -> None:
        """Take where a peer sees us come from, by one of its pairs that was idle before."""
        if not self._agent.fence.believes(observed):
            return
        before, pair.seen_from = pair.seen_from, observed
        moved = before is not None and before.port != observed.port
        if moved and self._bindings.moved(idle, now):
            for peer in self._agent.peers.values():
                self.review_keepalive(peer)
        self._take(pair.control, observed)
        if self.own.report(by, observed, pair.control.address):
            self._agent.emit(ReflexiveAddress(by, observed))
            self.review(now)

    def observed_by_relay(self, pair: Pair, observed: Endpoint) -> None:
        """Take where a relay sees us come from: no member's report, for it has many ports."""
        if self._agent.fence.believes(observed):
            pair.seen_from = observed
            self._take(pair.control, observed)

    def ask_again(self, now: float) -> None:
        """Ask a few who see us whether they still see us come from there: a path has failed."""
        if now - self._asked_again_at < ASK_AGAIN_INTERVAL:
            return
        self._asked_again_at = now
        witnesses = [
            peer
            for peer in self._agent.peers.values()
            if peer.direct and peer.path_class is not PathClass.LAN
        ]
        for peer in witnesses[:WITNESSES_ASKED]:
            assert peer.selected is not None
            self._agent.prober.ping(peer, peer.selected, now)

    def forget(self, by: NodeId, now: float) -> None:
        """Drop what a peer said that is none any longer."""
        self.own.forget(by)
        self._keepalives.pop(by, None)
        self.review(now)

    def review(self, now: float) -> None:
        """Decide anew what is believed of our addresses."""
        if self.own.review(self._others_heard_at, now):
            self._agent.emit(ReflexiveChanged(self.own.reflexive, self.own.behind_nat))
            for peer in self._agent.peers.values():
                self.review_keepalive(peer)

    def nat(self, version: int) -> NatBehaviour:
        """Return what our NAT does, for one address family."""
        return self._nats[version].behaviour(self._local, self._port)

    # Keepalives

    def keepalive(self, peer: Peer) -> int:
        """Return every how many seconds something is to be sent, 0 for never (rule 3)."""
        pair = peer.selected
        if pair is None or pair.path_class is PathClass.LAN:
            return 0
        natted = self.own.behind_nat
        if pair.seen_from is not None:
            natted = pair.seen_from.address not in self._local
        return self._bindings.keepalive if natted else 0

    def review_keepalive(self, peer: Peer) -> None:
        """Tell if what `keepalive` says of a peer is news."""
        keepalive = self.keepalive(peer)
        if keepalive != self._keepalives.get(peer.node, 0):
            self._keepalives[peer.node] = keepalive
            self._agent.emit(KeepaliveChanged(peer.node, keepalive))

    def _take(self, destination: Endpoint, observed: Endpoint) -> None:
        if not private(destination.address):
            self._nats[observed.address.version].observed(destination, observed)

    def _others_heard_at(self, version: int) -> float:
        """Return when all who could tell us our address will have had their chance."""
        return max(
            (
                peer.searching_since + self._agent.config.sole_witness_wait
                for node, peer in self._agent.peers.items()
                if not self.own.heard(node, version)
                and any(
                    pair.control.address.version == version and pair.relay is None
                    for pair in peer.pairs.values()
                )
            ),
            default=-math.inf,
        )
