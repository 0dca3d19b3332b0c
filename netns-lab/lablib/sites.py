"""Two members behind each kind of NAT, all on one internet; and topologies by their names.

                              transit
      +-----------+----------+---+-----------+--------------+
      |           |          |               |              |
    r-public1   r-apd1     r-apd2         r-home1         c-cgn        the carrier's NAT
      |           |          |               |              |
    public1     apd1       apd2         home1 home2      +--+-----+    100.64.0.0/24 (RFC 6598)
                                                       r-cgn1   r-cgn2
                                                         |        |
                                                       cgn1     cgn2

The public members are always there: everybody reaches them, so they let the others in, and relay.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from lablib.errors import UsageError
from lablib.nats import KINDS, LAN, PUBLIC, WAN, Firewall, kinds_named
from lablib.topology import (
    Member,
    Router,
    Segment,
    Topology,
    internet,
    lan,
    nat,
    plug,
    site_segment,
    transit_segment,
    with_routes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ipaddress import IPv4Address

    from lablib.nats import Kind, Nat

CARRIER_IPV4 = IPv4Network("100.64.0.0/10")  # RFC 6598: between a carrier and its customers
CARRIER_PREFIX_LENGTH = 24
ANYWHERE = IPv4Network("0.0.0.0/0")
NATS = "nats"
NATS_SUMMARY = "two members behind each kind of NAT"
MEMBERS_DEFAULT = 5
MEMBERS_EACH = 2  # of a kind

TOPOLOGIES: dict[str, Callable[[int], Topology]] = {"lan": lan, "internet": internet, "nat": nat}


def topology(name: str, members: int | None = None) -> Topology:
    """Return a topology by its name; that of `nats` may go on with a colon and names of kinds."""
    base, _, kinds = name.partition(":")
    if base == NATS:
        plan = nats(kinds_named(kinds.split(",") if kinds else ()))
        if members not in {None, len(plan.members)}:
            raise UsageError(f"{name} has {len(plan.members)} members, two of each kind")
        return plan
    try:
        make = TOPOLOGIES[name]
    except KeyError:
        known = ", ".join([*TOPOLOGIES, NATS])
        raise UsageError(f"no topology is called {name!r}; there are {known}") from None
    return make(MEMBERS_DEFAULT if members is None else members)


def member_of(kind: Kind, number: int) -> str:
    """Return the name of the first or second member of a kind."""
    return f"{kind.name}{number}"


def nats(kinds: Sequence[Kind]) -> Topology:
    """Make the sites of all these kinds, PUBLIC among them."""
    assert PUBLIC in kinds
    builder = _Builder()
    for kind in kinds:
        builder.add(kind)
    names = "" if len(kinds) == len(KINDS) else f":{','.join(kind.name for kind in kinds)}"
    return Topology(
        name=f"{NATS}{names}",
        summary=NATS_SUMMARY,
        segments=(builder.transit, *builder.segments),
        routers=(*with_routes(builder.routers, builder.behind), *builder.inner),
        members=tuple(builder.members),
    )


class _Builder:
    """What has been made so far."""

    def __init__(self) -> None:
        self.transit = transit_segment()
        self.segments: list[Segment] = []
        self.routers: list[Router] = []  # on the transit wire
        self.behind: list[Segment] = []  # the wire behind each of them
        self.inner: list[Router] = []  # behind a carrier
        self.members: list[Member] = []
        self._carriers = 0
        self._sites = 0

    def add(self, kind: Kind) -> None:
        """Make the sites of a kind, and two members."""
        carrier = self._carrier(kind)
        numbers = range(1, MEMBERS_EACH + 1)
        if kind.shared:
            self._site(kind, list(numbers), carrier)
            return
        for number in numbers:
            self._site(kind, [number], carrier)

    def _carrier(self, kind: Kind) -> Segment | None:
        """Make the router in front of a kind's own, if there is one; return the wire behind it."""
        if kind.carrier is None:
            return None
        size = 1 << (CARRIER_IPV4.max_prefixlen - CARRIER_PREFIX_LENGTH)
        first = CARRIER_IPV4.network_address + self._carriers * size
        wire = Segment(f"s-{kind.name}", IPv4Network((first, CARRIER_PREFIX_LENGTH)))
        self._carriers += 1
        self.segments.append(wire)
        self._on_transit(f"c-{kind.name}", wire, kind.carrier)
        return wire

    def _on_transit(self, name: str, wire: Segment, behaviour: Nat | Firewall | None) -> None:
        """Make a router between the transit wire and another."""
        uplink = plug(WAN, self.transit, len(self.routers) + 1)
        if wire.ipv6 is None:
            uplink = replace(uplink, ipv6=None)
        self.routers.append(Router(name, (uplink, plug(LAN, wire, 1)), behaviour))
        self.behind.append(wire)

    def _site(self, kind: Kind, numbers: Sequence[int], carrier: Segment | None) -> None:
        """Make one router and the members behind it."""
        wire = site_segment(self._sites, private=kind.router is not None)
        if isinstance(kind.router, Firewall):
            wire = replace(wire, ipv6=site_segment(self._sites, private=False).ipv6)
        self._sites += 1
        self.segments.append(wire)
        inside = plug(LAN, wire, 1)
        name = f"r-{member_of(kind, numbers[0])}"
        if carrier is None:
            self._on_transit(name, wire, kind.router)
        else:
            uplink = plug(WAN, carrier, 1 + numbers[0])  # behind the carrier's own address
            route = (ANYWHERE, carrier.ipv4[1])
            self.inner.append(Router(name, (uplink, inside), kind.router, (route,)))
        gateway: IPv4Address | None = inside.ipv4.ip
        if isinstance(kind.router, Firewall):
            gateway = None
        for number in numbers:
            self.members.append(
                Member(
                    name=member_of(kind, number),
                    port=plug("eth0", wire, 1 + number),
                    gateway_ipv4=gateway,
                    gateway_ipv6=inside.ipv6.ip if inside.ipv6 else None,
                    behind_nat=kind.router is not None,
                )
            )
