"""Over TCP, as one node sees it: whom it reaches that way, and who reaches it.

    records, gossip, paths, seeds ──▶ `LastResort` ──wanted──▶ sockets (`meshd.daemon.carrier`)
                                                                  │
    path agent ◀── endpoints on loopback that stand for others ───┘

Rule 1: a loopback endpoint is another node's only while our own carrier says that it is.

Rule 2: where a relay is reached over TCP, so are the ports that it has allotted to us, and no path
        is tried by UDP and TCP through one port at a time: a relay port has one address behind it.

Rule 3: what changes seldom is looked at every `LOOK_INTERVAL`, and only while there is a member
        with TCP ports, or a seed that does not answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.carrier.resort import Door, LastResort
from meshd.engine import events
from meshd.gossip.claim import MemberState
from meshd.path.candidates import PathClass, usable
from meshd.underlay import Timer
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from meshd.carrier.resort import CarrierState, WantedCarrier
    from meshd.engine.engine import Engine
    from meshd.keys import NodeId
    from meshd.trust.record import Record

LOOK_INTERVAL = 1.0
SCHEMES = {"tcp": False, "tls": True}  # of seeds; whether that is TLS
_LIVE = {MemberState.ALIVE, MemberState.SUSPECT}


class Carriage:
    """See the module docstring."""

    def __init__(self, engine: Engine, *, now: float) -> None:
        self._engine = engine
        self._resort = LastResort(now=now)
        self._offers: dict[NodeId, tuple[Door, ...]] = {}
        self._found: dict[str, tuple[Endpoint, ...]] = {}  # the seeds' addresses
        self._clients: frozenset[Endpoint] = frozenset()
        self._ports: dict[NodeId, dict[int, None]] = {}  # allotted to us by relays, by relay
        self._carried: frozenset[NodeId] = frozenset()  # relays that are reached over TCP
        self._wanted: tuple[WantedCarrier, ...] = ()
        self._look_at: float | None = None
        self._gone = False  # something that was carried is not any longer

    # Inputs

    def record_changed(self, record: Record, now: float) -> None:
        """Take what a member's record says of its TCP ports."""
        doors = tuple(self._doors_of(record))
        if doors != self._offers.get(record.node, ()):
            self._offers[record.node] = doors
            if not doors:
                del self._offers[record.node]
            self._look_soon(now)

    def member_dropped(self, node: NodeId, now: float) -> None:
        """Forget a node that is no member any more."""
        self._ports.pop(node, None)
        if self._offers.pop(node, None) is not None:
            self._look_soon(now)

    def seeds_resolved(
        self, found: Mapping[str, tuple[Endpoint, ...]], now: float
    ) -> dict[str, tuple[Endpoint, ...]]:
        """Take the addresses of the seeds, and return where to ask: over TCP, some of them."""
        self._found = dict(found)
        self._look_soon(now)
        return self._where_to_ask()

    def joined(self, node: NodeId, endpoint: Endpoint, now: float) -> None:
        """Take who has let us in, and where it was asked."""
        self._resort.joined(node, endpoint)
        self._look_soon(now)

    def observed(
        self, states: Mapping[int, CarrierState], clients: frozenset[Endpoint], now: float
    ) -> None:
        """Take what has become of what was `wanted`, by number, and where clients seem to be."""
        resort = self._resort
        before, were_up, asked = resort.endpoints, resort.hosts_up, self._where_to_ask()
        resort.observed(states)
        self._clients = clients
        self._tell_fence()
        ask = self._where_to_ask()
        if (before, were_up, asked) == (resort.endpoints, resort.hosts_up, ask):
            self._look_later(now)  # for strangers come and go, too
            return
        for node in sorted(resort.hosts_up - were_up):
            endpoint = resort.endpoint(node)
            if endpoint is not None:
                self._engine.path.peer_at(node, endpoint, now)
                self._engine.path.relaying.hello_again(now)
        if resort.endpoints != before:
            for node in sorted(resort.hosts_up):
                self._engine.relays.carriage_changed(node, now)
        if ask != asked:
            self._engine.entry.seeds_resolved(ask, now)
        self._look(now)

    def client_came(self, endpoint: Endpoint) -> None:
        """Take where somebody who has just connected to us seems to be."""
        self._clients |= {endpoint}
        self._tell_fence()

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        if self._look_at is not None and now >= self._look_at:
            self._look(now)

    # Outputs

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline and its reason."""
        return None if self._look_at is None else Timer(self._look_at, "whether UDP works")

    @property
    def wanted(self) -> tuple[WantedCarrier, ...]:
        """What there should be connections to."""
        return self._wanted

    def endpoint_of(self, relay: NodeId, endpoint: Endpoint) -> tuple[Endpoint, PathClass] | None:
        """Return where a relay's port is to be found, and the class of what goes through it.

        None: nowhere for the moment.  When that changes, `Relays.carriage_changed` is called.
        """
        self._ports.setdefault(relay, {})[endpoint.port] = None
        if not self._goes_over_tcp(relay):
            return endpoint, PathClass.RELAYED
        self._resort.use_ports(relay, self._ports[relay])
        self._publish()
        local = self._resort.endpoint(relay, endpoint.port)
        return None if local is None else (local, PathClass.RELAYED_TCP)

    def host(self, relay: NodeId) -> Endpoint | None:
        """Return where a relay is over TCP, however it is reached itself; None if it is not."""
        return self._resort.endpoint(relay) if self._goes_over_tcp(relay) else None

    def port_released(self, relay: NodeId, port: int) -> None:
        """Forget a port that a relay had allotted to us."""
        ports = self._ports.get(relay, {})
        ports.pop(port, None)
        self._resort.use_ports(relay, ports)
        self._publish()

    def is_over_tcp(self, endpoint: Endpoint | None) -> bool:
        """Whether an endpoint on this host stands for another one, over TCP."""
        return endpoint is not None and endpoint in self._engine.path.fence.carried

    def shown(self, endpoint: Endpoint) -> str:
        """Return an endpoint as an operator knows it."""
        owner = self._resort.endpoints.get(endpoint)
        doors = () if owner is None else self._resort.doors(owner)
        if not doors:
            return f"{endpoint}"
        return f"{'tls' if doors[0].tls else 'tcp'}://{doors[0].endpoint}"

    @property
    def over_tcp(self) -> tuple[NodeId, ...]:
        """The members that are reached over TCP because UDP does not get through to them."""
        return tuple(sorted(self._carried))

    # Inside

    def _look_soon(self, now: float) -> None:
        self._look_at = now

    def _look_later(self, now: float) -> None:
        if self._look_at is None:
            self._look_at = now + LOOK_INTERVAL

    def _look(self, now: float) -> None:
        """Take in how things are, and act on it."""
        engine, resort = self._engine, self._resort
        if self._gone:
            self._gone = False
            engine.path.drop_forbidden(now)
        resort.seeds_changed(self._seeds_over_tcp(), now)
        resort.hosts_changed(self._hosts(), engine.ledger.members().keys(), now)
        endpoints = resort.endpoints
        in_use = [
            endpoint
            for node, _ in (engine.others() if endpoints else ())
            if (endpoint := engine.path.endpoint(node)) in endpoints and self._works(node)
        ]
        by_udp = any(self._works(node) and not self._is_carried(node) for node in self._offers)
        resort.reached(
            by_udp=by_udp,
            slowest=engine.path.answers.slowest(now),
            in_use=[e for e in in_use if e is not None],
            now=now,
        )
        resort.handle_timer(now)
        self._note_carried(now)
        self._publish()
        idle = not self._offers and not resort.wanted and not engine.entry.asks_alone
        self._look_at = None if idle else now + LOOK_INTERVAL
        timer = resort.get_timer()
        if timer is not None and self._look_at is not None:
            self._look_at = min(self._look_at, max(timer.at, now))

    def _note_carried(self, now: float) -> None:
        """Have the ports of relays looked for where they are to be found from here on."""
        carried = frozenset(filter(self._goes_over_tcp, self._resort.hosts_up))
        changed, self._carried = sorted(carried ^ self._carried), carried
        for node in changed:
            self._resort.use_ports(node, self._ports.get(node, {}))
            self._engine.relays.carriage_changed(node, now)

    def _goes_over_tcp(self, node: NodeId) -> bool:
        """Whether a member is reached over TCP, or can be and not otherwise."""
        up = node in self._resort.hosts_up
        return up and (self._is_carried(node) or not self._works(node))

    def _works(self, node: NodeId) -> bool:
        peer = self._engine.path.peers.get(node)
        return peer is not None and peer.proven

    def _is_carried(self, node: NodeId) -> bool:
        return self._engine.path.endpoint(node) in self._resort.endpoints

    def _hosts(self) -> dict[NodeId, tuple[Door, ...]]:
        """Return who may be there; all, where we hear nobody and so cannot tell."""
        gossip = self._engine.gossip
        if not gossip.accompanied:
            return self._offers
        return {
            node: doors
            for node, doors in self._offers.items()
            if (view := gossip.member(node)) is not None and view.state in _LIVE
        }

    def _doors_of(self, record: Record) -> Iterator[Door]:
        for port, tls in ((record.tcp, False), (record.tls, True)):
            if not port:
                continue
            for address in dict.fromkeys(c.address for c in record.candidates):
                door = Door(Endpoint(address, port), tls)
                if usable(door.endpoint, self._engine.presence.networks):
                    yield door

    # Seeds

    def _seeds_over_tcp(self) -> dict[str, tuple[Door, ...]]:
        """Return the seeds to be asked over TCP: those that say so, and all that are silent."""
        entry = self._engine.entry
        if not entry.asks_alone:
            return {}
        wanted = {}
        for text, endpoints in self._found.items():
            scheme = _scheme(text)
            if scheme or entry.silent:
                doors = tuple(Door(endpoint, SCHEMES.get(scheme, False)) for endpoint in endpoints)
                wanted[text] = doors
        return wanted

    def _where_to_ask(self) -> dict[str, tuple[Endpoint, ...]]:
        asked = {}
        for text, endpoints in self._found.items():
            local = self._resort.endpoint(text)
            by_udp = () if _scheme(text) else endpoints
            asked[text] = by_udp if local is None else (*by_udp, local)
        return asked

    def _publish(self) -> None:
        wanted = self._resort.wanted
        if wanted != self._wanted:
            self._wanted = wanted
            self._engine.emit(events.CarriersChanged())

    def _tell_fence(self) -> None:
        """Let nothing on loopback be used but what is carried at present (rule 1)."""
        fence = self._engine.path.fence
        carried = self._clients.union(self._resort.endpoints)
        self._gone = self._gone or not carried.issuperset(fence.carried)
        fence.carried = carried


def _scheme(text: str) -> str:
    """Return how a seed says that it is to be asked; empty for UDP."""
    scheme, separator, _ = text.partition("://")
    return scheme if separator else ""
