"""The last resort: when this node goes over TCP, to which hosts, and when it lets go of that.

A *host* is a member whose record has TCP ports, or a seed.  A *carrier* is what keeps a connection
to one; whoever does IO has those that are `wanted`, and says in which state they are.

      UDP works ──no host answers by UDP for `SILENT_AFTER`──▶ over TCP
          ▲                                                       │ a host answers by UDP
          └── for `SETTLED_AFTER`, and no path in use needs it ◀──┘

Rule 1: nothing is connected while any host answers by UDP, or nobody has TCP ports.  Where answers
        of late have taken long, silence has to last longer: a busy machine is not a blocked one.

Rule 2: `CARRIERS_MAX` hosts at a time: one to use, one in reserve.  One that does not come up in
        `ROTATE_AFTER` makes room for the next.  All members begin with the lowest ids, so that two
        without UDP meet at one relay.

Rule 3: what carries a path in use is kept, whatever else has changed.

Rule 4: seeds are asked over TCP only while nobody else is there to talk to.  A seed that lets us in
        becomes the host that it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from meshd.carrier.frames import OWN_PORT
from meshd.keys import NodeId
from meshd.underlay import Timer

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from meshd.wg.types import Endpoint

SILENT_AFTER = 4.0  # a path that was cut is left within a second, and searched for in vain since
SILENT_ROUND_TRIPS = 4  # as slow as those of late
SETTLED_AFTER = 10.0
ROTATE_AFTER = 10.0  # all doors have been tried by then
CARRIERS_MAX = 2
SEEDS_MAX = 4  # asked over TCP at a time
DOORS_MAX = 8
PORTS_MAX = 1024  # of one host

Owner: TypeAlias = "NodeId | str"  # a seed goes by its text


class Door(NamedTuple):
    """A TCP port of a host's."""

    endpoint: Endpoint
    tls: bool


@dataclass(frozen=True, slots=True)
class WantedCarrier:
    """What there should be a connection to; `number` is never used twice."""

    number: int
    doors: tuple[Door, ...]
    ports: tuple[int, ...]  # of the host's, each to have an endpoint on this one


@dataclass(frozen=True, slots=True)
class CarrierState:
    """What has become of a wanted carrier."""

    up: bool
    endpoints: Mapping[int, Endpoint]  # by the host's port


@dataclass(slots=True)
class _Carrier:
    number: int
    doors: tuple[Door, ...]
    began_at: float
    ports: tuple[int, ...] = (OWN_PORT,)
    state: CarrierState = field(default_factory=lambda: CarrierState(up=False, endpoints={}))


class LastResort:
    """See the module docstring."""

    def __init__(self, *, now: float) -> None:
        self._carriers: dict[Owner, _Carrier] = {}
        self._hosts: dict[NodeId, tuple[Door, ...]] = {}  # in the order of preference
        self._numbers = 0
        self._by_udp = False
        self._since = now  # when `_by_udp` has become what it is, or there is a host
        self._silent_after = SILENT_AFTER
        self._in_use: frozenset[Endpoint] = frozenset()
        self._active = False

    # Inputs

    def hosts_changed(
        self, hosts: Mapping[NodeId, tuple[Door, ...]], members: Collection[NodeId], now: float
    ) -> None:
        """Take the members that have TCP ports and may be there, and all members."""
        if not self._hosts:
            self._since = now
        for owner in [owner for owner in self._carriers if isinstance(owner, NodeId)]:
            if owner not in members:
                del self._carriers[owner]
        known = [node for node in self._hosts if node in hosts]
        new = sorted(node for node in hosts if node not in self._hosts)
        self._hosts = {node: hosts[node][:DOORS_MAX] for node in (*known, *new) if hosts[node]}
        for node, doors in self._hosts.items():
            carrier = self._carriers.get(node)
            if carrier is not None:
                # What its record says comes first; where it was reached may be in no record.
                carrier.doors = tuple(dict.fromkeys((*doors, *carrier.doors)))[:DOORS_MAX]

    def seeds_changed(self, seeds: Mapping[str, tuple[Door, ...]], now: float) -> None:
        """Take the seeds that are to be asked over TCP at present: none, as long as others do."""
        wanted = {text: doors for text, doors in list(seeds.items())[:SEEDS_MAX] if doors}
        for owner in [owner for owner in self._carriers if isinstance(owner, str)]:
            if owner not in wanted and not self._is_used(self._carriers[owner]):
                del self._carriers[owner]
        for text, doors in wanted.items():
            if text not in self._carriers:
                self._connect(text, doors[:DOORS_MAX], now)

    def joined(self, node: NodeId, endpoint: Endpoint) -> None:
        """Take who has turned out to be at a seed's endpoint on this host."""
        for owner, carrier in list(self._carriers.items()):
            if isinstance(owner, str) and endpoint in carrier.state.endpoints.values():
                del self._carriers[owner]
                self._carriers.setdefault(node, carrier)
                self._active = True

    def reached(
        self, *, by_udp: bool, slowest: float, in_use: Collection[Endpoint], now: float
    ) -> None:
        """Take whether any host answers by UDP, and which endpoints carry paths in use.

        `slowest` is the longest that answers by UDP have taken of late, in seconds.
        """
        if by_udp != self._by_udp:
            self._by_udp, self._since = by_udp, now
        self._silent_after = max(SILENT_AFTER, SILENT_ROUND_TRIPS * slowest)
        self._in_use = frozenset(in_use)

    def observed(self, states: Mapping[int, CarrierState]) -> None:
        """Take what has become of the carriers, by number."""
        for carrier in self._carriers.values():
            carrier.state = states.get(carrier.number, carrier.state)

    def use_ports(self, node: NodeId, ports: Collection[int]) -> None:
        """Take the relay ports of a host that are of use, besides its own."""
        carrier = self._carriers.get(node)
        if carrier is not None:
            carrier.ports = (OWN_PORT, *sorted(ports)[: PORTS_MAX - 1])

    def handle_timer(self, now: float) -> None:
        """Begin, rotate or let go, as the rules have it."""
        if not self._by_udp and now >= self._since + self._silent_after:
            self._active = self._active or bool(self._hosts)
        elif self._by_udp and now >= self._since + SETTLED_AFTER:
            self._active = False
        nodes = [owner for owner in self._carriers if isinstance(owner, NodeId)]
        for node in nodes:
            if not self._is_used(self._carriers[node]) and not self._stays(node, now):
                del self._carriers[node]
        if not self._active or self._by_udp:
            return
        for node in self._hosts:
            if sum(isinstance(owner, NodeId) for owner in self._carriers) >= CARRIERS_MAX:
                return
            if node not in self._carriers:
                self._connect(node, self._hosts[node], now)

    # Outputs

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline and its reason."""
        timers = []
        if not self._by_udp and not self._active and self._hosts:
            timers.append(Timer(self._since + self._silent_after, "no host answers by UDP"))
        if self._by_udp and self._active:
            timers.append(Timer(self._since + SETTLED_AFTER, "UDP works again"))
        timers += [
            Timer(carrier.began_at + ROTATE_AFTER, "a host over TCP does not answer")
            for owner, carrier in self._carriers.items()
            if isinstance(owner, NodeId)
            and not carrier.state.up
            and not self._is_used(carrier)
            and self._others(owner)
        ]
        return min(timers, default=None)

    @property
    def active(self) -> bool:
        """Whether this node is over TCP, as far as there is a host that lets it."""
        return self._active

    @property
    def wanted(self) -> tuple[WantedCarrier, ...]:
        """What there should be connections to."""
        return tuple(
            WantedCarrier(carrier.number, carrier.doors, carrier.ports)
            for carrier in self._carriers.values()
        )

    @property
    def endpoints(self) -> dict[Endpoint, Owner]:
        """All endpoints on this host that stand for a host's port, and whose they are."""
        return {
            endpoint: owner
            for owner, carrier in self._carriers.items()
            for endpoint in carrier.state.endpoints.values()
        }

    @property
    def hosts_up(self) -> frozenset[NodeId]:
        """The members that there is a connection to."""
        return frozenset(
            owner
            for owner, carrier in self._carriers.items()
            if isinstance(owner, NodeId) and carrier.state.up
        )

    def endpoint(self, owner: Owner, port: int = OWN_PORT) -> Endpoint | None:
        """Return where a host's port seems to be; None if it is not connected."""
        carrier = self._carriers.get(owner)
        if carrier is None or not carrier.state.up:
            return None
        return carrier.state.endpoints.get(port)

    def doors(self, owner: Owner) -> tuple[Door, ...]:
        """Return the TCP ports of a host that there is a carrier for."""
        carrier = self._carriers.get(owner)
        return () if carrier is None else carrier.doors

    # Inside

    def _connect(self, owner: Owner, doors: tuple[Door, ...], now: float) -> None:
        self._numbers += 1
        self._carriers[owner] = _Carrier(self._numbers, doors, began_at=now)

    def _is_used(self, carrier: _Carrier) -> bool:
        return not self._in_use.isdisjoint(carrier.state.endpoints.values())

    def _stays(self, node: NodeId, now: float) -> bool:
        """Whether an unused carrier is of use: it is up, or new, or no other could take over."""
        carrier = self._carriers[node]
        if not self._active:
            return False
        if carrier.state.up:
            return True
        if node not in self._hosts or not self._others(node):
            return node in self._hosts
        if now < carrier.began_at + ROTATE_AFTER:
            return True
        self._hosts[node] = self._hosts.pop(node)  # to the end
        return False

    def _others(self, node: NodeId) -> bool:
        return any(host != node and host not in self._carriers for host in self._hosts)
