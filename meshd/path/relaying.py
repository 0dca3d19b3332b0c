"""Ports of relays: kept open, proven end to end, and asked for when they are needed.

    RelayWanted ──▶ (engine: a relay grants) ──▶ offered ─ hello ─▶ bound ─ ping, pong ─▶ proven
                                                   ▲          │ every 15 s        │ every 15 s
                                                   └─ silent ─┴──────── RelaySilent
    what is between us and the peer                     relays wanted
    no direct path for 0.3 s                            2
    a relayed path that carries traffic, or did lately  2: the one in use and its spare
    a relayed path, idle                                1
    a direct path, not in one LAN, that carries traffic 1: the spare
    anything else; the peer is not wanted               none, once none was in use for a while

Rule 1: a hello's pong counts only for a transaction that is open, from the port that was asked.
        It says whether the relay has bound the address it sees us at; where it has not, the
        challenge in it makes the next hello do so (`wire`, rule 4).

Rule 2: the peer is pinged through a port only while that is bound; a pair is used only when a pong
        has come through both ports.

Rule 3: nothing is asked for where meshd's socket is not behind WireGuard's port: a relay would
        learn the wrong one.

Rule 4: peers without a path get their relays a few at a time, and not before answers that take as
        long as the slowest of late could have come.  Where many start at once on busy machines,
        relays for all would keep them busy.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.path.candidates import PathClass
from meshd.path.events import RelaySilent, RelayUnwanted, RelayWanted
from meshd.path.schedule import Schedule
from meshd.underlay import Timer, TokenBucket

if TYPE_CHECKING:
    from meshd.keys import NodeId
    from meshd.path.agent import Agent
    from meshd.path.pair import Pair
    from meshd.path.peer import Peer
    from meshd.path.wire import Probe
    from meshd.wg.types import Endpoint

PORTS_PER_PEER_MAX = 4  # of relays; one that is offered beyond is not used
URGENT_PER_SECOND_MAX = 8.0  # peers without a path for which relays are asked
URGENT_BURST_MAX = 4
URGENT_RETRY = 0.25
ROUND_TRIPS_MIN = 4  # as slow as the slowest of late, to be waited for
HELLO_INTERVAL = 15.0  # a NAT may forget a binding after 30 s
HELLO_BACKOFF = (0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, HELLO_INTERVAL)
HELLOS_UNANSWERED_MAX = 4  # then the relay is taken for gone
TRANSACTIONS_MAX = 4  # open: an answer may take longer than the pause before the next hello
CHALLENGED_MAX = 4  # hellos in a row that are said at once because of a challenge
PROOF_BACKOFF = (0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, HELLO_INTERVAL)
THROUGH_WITHIN = 5.0  # after it is bound: else the peer cannot reach that relay
PINGS_UNANSWERED_MAX = 3  # then a spare is not proven any longer


@dataclass(slots=True, eq=False)
class Port:
    """One port of a relay that is ours, for one peer."""

    peer: Peer
    relay: NodeId
    pair: Pair
    hello_at: float
    ping_at: float = math.inf
    transactions: deque[bytes] = field(default_factory=lambda: deque(maxlen=TRANSACTIONS_MAX))
    said_at: float = -math.inf
    challenge: bytes | None = None
    challenged: int = 0  # hellos in a row that a challenge has drawn
    unanswered: int = 0  # hellos
    bound_at: float = math.inf  # since when nothing has come through, though it is bound


class Relaying:
    """See the module docstring."""

    def __init__(self, agent: Agent, *, now: float) -> None:
        self._agent = agent
        self.possible = True  # rule 3
        self._urgent = TokenBucket(rate=URGENT_PER_SECOND_MAX, burst=URGENT_BURST_MAX, now=now)
        self._ports: dict[NodeId, dict[NodeId, Port]] = {}  # by peer and relay
        self._by_address: dict[Endpoint, Port] = {}
        self._due: Schedule[tuple[NodeId, NodeId]] = Schedule()
        self._wishes: dict[NodeId, int] = {}  # relays wanted for a peer, as last said
        self._reviews: Schedule[NodeId] = Schedule()
        self._spared_at: dict[NodeId, float] = {}  # since when fewer would do

    def wait(self, now: float) -> float:
        """Return how long a peer may be without a path before others are to help (rule 4)."""
        agent = self._agent
        return max(agent.config.relay_wait, ROUND_TRIPS_MIN * agent.answers.slowest(now))

    # Inputs

    def offered(
        self,
        peer: Peer,
        relay: NodeId,
        endpoint: Endpoint,
        path_class: PathClass,
        *,
        draining: bool,
        now: float,
    ) -> None:
        """Take a port that a relay has allotted to us for a peer."""
        ports = self._ports.setdefault(peer.node, {})
        port = ports.get(relay)
        if port is not None and port.pair.control != endpoint:
            self.withdrawn(peer, relay, now)
            port = None
        if port is None:
            taken = endpoint in self._by_address or not self._agent.fence.allows(endpoint)
            if taken or len(ports) >= PORTS_PER_PEER_MAX or not self.possible:
                return
            pair = peer.offer(relay, endpoint, path_class)
            pair.bound = False
            port = ports[relay] = Port(peer, relay, pair, hello_at=now)
            self._by_address[endpoint] = port
            self._say_hello(port, now)
        port.pair.draining = draining
        self._agent.upgrading.review(peer, now)

    def withdrawn(self, peer: Peer, relay: NodeId, now: float) -> None:
        """Let go of a relay's port; what goes through it finds another way."""
        port = self._drop(peer.node, relay)
        if port is None:
            return
        peer.pairs.pop(port.pair.control, None)
        if peer.nominated is port.pair:
            peer.nominated = None
        if peer.selected is port.pair:
            port.pair.fail(now)
            self._agent.leave(peer, "relay withdrawn", now)
        self.review(peer, now)

    def forget(self, node: NodeId) -> None:
        """Forget all of a peer's that is none any longer."""
        for relay in list(self._ports.get(node, ())):
            self._drop(node, relay)
        self._ports.pop(node, None)
        self._reviews.discard(node)
        self._spared_at.pop(node, None)
        if self._wishes.pop(node, None):
            self._agent.emit(RelayUnwanted(node))

    def hello_again(self, now: float, peer: Peer | None = None) -> None:
        """Say hello at once by all ports, or by those for one peer: our address may be another."""
        nodes = list(self._ports) if peer is None else [peer.node]
        for port in [port for node in nodes for port in self._ports.get(node, {}).values()]:
            port.unanswered = port.challenged = 0
            self._say_hello(port, now)

    def on_pong(self, sender: NodeId, pong: Probe, source: Endpoint, now: float) -> bool:
        """Take the answer to a hello.  Return whether it is one."""
        port = self._by_address.get(source)
        if port is None or port.relay != sender or pong.transaction not in port.transactions:
            return False
        port.transactions.clear()
        port.unanswered = 0
        port.challenge = pong.challenge
        assert pong.observed is not None
        self._agent.surroundings.observed_by_relay(port.pair, pong.observed)
        if not pong.bound:
            port.pair.bound = False
            port.challenged += 1
            if port.challenged <= CHALLENGED_MAX:
                self._say_hello(port, now)
            return True
        port.challenged = 0
        port.hello_at = now + HELLO_INTERVAL
        if not port.pair.bound:
            port.pair.bound = True
            port.pair.unanswered = 0
            port.bound_at = now
            self._ask(port, now)
        self._plan(port)
        return True

    def review(self, peer: Peer, now: float) -> None:
        """Say how many relays are wanted for a peer, if that is news."""
        if not self.possible:
            return
        count, reason, again_at = self._need(peer, now)
        before = self._wishes.get(peer.node, 0)
        if count >= before:
            self._spared_at.pop(peer.node, None)
        elif now < (let_go_at := self._let_go_at(peer.node, now)):
            count, again_at = before, min(again_at, let_go_at)
        if count > before or 0 < count < before:
            self._wishes[peer.node] = count
            self._agent.emit(RelayWanted(peer.node, count, reason))
        elif count < before:
            del self._wishes[peer.node]
            self._agent.emit(RelayUnwanted(peer.node))
        if again_at < math.inf:
            self._reviews.set(peer.node, again_at)
        else:
            self._reviews.discard(peer.node)

    def handle_timer(self, now: float) -> None:
        """Say the hellos and the pings that are due, and look at what is wanted."""
        while (key := self._due.pop_due(now)) is not None:
            port = self._ports[key[0]][key[1]]
            if now >= port.hello_at:
                self._hello_due(port, now)
            if now >= port.ping_at:
                self._ask(port, now)
            self._plan(port)
        while (node := self._reviews.pop_due(now)) is not None:
            self.review(self._agent.peers[node], now)

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline and its reason."""
        timers = []
        if (due := self._due.soonest()) is not None:
            timers.append(Timer(due[0], f"port of {due[1][1].short} to {due[1][0].short}"))
        if (due_review := self._reviews.soonest()) is not None:
            timers.append(Timer(due_review[0], f"relays for {due_review[1].short}"))
        return min(timers, default=None)

    # Hellos and proofs

    def _hello_due(self, port: Port, now: float) -> None:
        if port.unanswered == HELLOS_UNANSWERED_MAX:
            port.pair.bound = False
            port.pair.doubt()
            self._agent.emit(RelaySilent(port.peer.node, port.relay))
        self._say_hello(port, now)

    def _say_hello(self, port: Port, now: float) -> None:
        prober = self._agent.prober
        hello = prober.hello(port.relay, port.pair.control, now, challenge=port.challenge)
        port.transactions.append(hello)
        port.said_at = now
        port.hello_at = now + HELLO_BACKOFF[min(port.unanswered, len(HELLO_BACKOFF) - 1)]
        port.unanswered += 1
        self._plan(port)

    def _ask(self, port: Port, now: float) -> None:
        """Prove the pair of a port, or that it still is."""
        pair = port.pair
        if not pair.bound:
            port.ping_at = math.inf
            return
        if pair.unanswered >= PINGS_UNANSWERED_MAX and pair is not port.peer.selected:
            pair.doubt()
        if now - port.bound_at >= THROUGH_WITHIN:
            port.bound_at = math.inf
            self._agent.emit(RelaySilent(port.peer.node, port.relay))
        if now - pair.asked_at >= self._agent.config.probe_spacing:
            self._agent.prober.ping(port.peer, pair, now)
        step = min(pair.unanswered, len(PROOF_BACKOFF)) - 1
        proven = pair.heard_at > -math.inf and pair.unanswered <= 1
        port.ping_at = now + (HELLO_INTERVAL if proven else PROOF_BACKOFF[max(step, 0)])

    def heard(self, pair: Pair, now: float) -> None:
        """Note that a pong has come through a port: it is asked again much later only."""
        port = self._by_address.get(pair.control)
        if port is not None:
            port.bound_at = math.inf
            port.ping_at = now + HELLO_INTERVAL
            self._plan(port)

    def _plan(self, port: Port) -> None:
        self._due.set((port.peer.node, port.relay), min(port.hello_at, port.ping_at))

    # What is wanted

    def _need(self, peer: Peer, now: float) -> tuple[int, str, float]:
        """Return how many relays are to be had, why, and when that is to be looked at again."""
        config = self._agent.config
        if peer.wanted_since == math.inf:
            return 0, "", math.inf
        if peer.selected is None or not peer.proven:
            urgent_at = max(peer.wanted_since, peer.searching_since) + self.wait(now)
            if now >= urgent_at:
                if not self._wishes.get(peer.node) and not self._urgent.take(now):
                    return 0, "", now + URGENT_RETRY
                return 2, "no path has been proven", math.inf
            return self._wishes.get(peer.node, 0), "", urgent_at
        lately_until = peer.traffic_at + config.spare_linger
        busy = now < lately_until
        if peer.selected.relayed:
            why = "no direct path has been proven"
            return (2, why, lately_until) if busy else (1, why, math.inf)
        if busy and peer.selected.path_class is not PathClass.LAN:
            return 1, "a spare for a path that carries traffic", lately_until
        return 0, "", math.inf

    def _let_go_at(self, node: NodeId, now: float) -> float:
        """Return from when on fewer relays are kept, where fewer would do."""
        return self._spared_at.setdefault(node, now) + self._agent.config.relay_linger

    def _drop(self, node: NodeId, relay: NodeId) -> Port | None:
        port = self._ports.get(node, {}).pop(relay, None)
        if port is not None:
            self._due.discard((node, relay))
            del self._by_address[port.pair.control]
        return port
