"""Networks as data: which wires there are, which routers join them, who is plugged in where.

A `Topology` says everything about an underlay and does nothing.  `lablib.fabric` turns one into
commands, `lablib.drawing` into a picture.  Three are made here, for any number of members, and a
fourth by `lablib.sites`:

| name       | what it is                                                                 |
| ---------- | -------------------------------------------------------------------------- |
| `lan`      | all members on one wire, no router                                         |
| `internet` | each member on a subnet of its own; routers joined by a transit network    |
| `nat`      | the same, but the second member (`b`) is behind a masquerading router      |
| `nats`     | two members behind each kind of NAT; `nats:ei-apd,home` has those kinds    |

Public addresses are those reserved for documentation: 192.0.2.0/24 for transit, subnets out of
203.0.113.0/24 and 198.51.100.0/24 for sites, 2001:db8::/32 for both (RFC 5737, RFC 3849).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import TYPE_CHECKING

from lablib.errors import UsageError
from lablib.nats import MASQUERADE, Nat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lablib.nats import Firewall

MEMBERS_MAX = 64  # as many as two documentation networks have /29 subnets

TRANSIT_IPV4 = IPv4Network("192.0.2.0/24")
TRANSIT_IPV6 = IPv6Network("2001:db8::/64")
SITES_IPV4 = (IPv4Network("203.0.113.0/24"), IPv4Network("198.51.100.0/24"))
SITE_PREFIX_LENGTH = 29
SITES_IPV6 = IPv6Network("2001:db8::/32")
LAN_IPV4 = IPv4Network("10.77.0.0/24")
LAN_IPV6 = IPv6Network("2001:db8:77::/64")
HOME_IPV4 = IPv4Network("192.168.0.0/16")


@dataclass(frozen=True, slots=True)
class Segment:
    """A wire: everything plugged into it hears each other."""

    name: str
    ipv4: IPv4Network
    ipv6: IPv6Network | None = None


@dataclass(frozen=True, slots=True)
class Port:
    """A network interface and the segment it is plugged into."""

    interface: str
    segment: str
    ipv4: IPv4Interface
    ipv6: IPv6Interface | None = None


@dataclass(frozen=True, slots=True)
class Router:
    """Forwards between its ports; the first one is its uplink.

    What it does to the traffic between its uplink and the others, if anything, is its `behaviour`.
    """

    name: str
    ports: tuple[Port, ...]
    behaviour: Nat | Firewall | None = None
    routes: tuple[tuple[IPv4Network | IPv6Network, IPv4Address | IPv6Address], ...] = ()

    @property
    def uplink(self) -> Port:
        """The port towards the core."""
        return self.ports[0]

    @property
    def masquerades(self) -> bool:
        """Whether what comes from its other ports gets its uplink's address."""
        return isinstance(self.behaviour, Nat)


@dataclass(frozen=True, slots=True)
class Member:
    """A machine that meshd runs on."""

    name: str
    port: Port
    gateway_ipv4: IPv4Address | None = None
    gateway_ipv6: IPv6Address | None = None
    behind_nat: bool = False


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole underlay."""

    name: str
    summary: str
    segments: tuple[Segment, ...]
    routers: tuple[Router, ...]
    members: tuple[Member, ...]

    def member(self, name: str) -> Member:
        """Return a member by its name."""
        return next(member for member in self.members if member.name == name)

    def reachable(self, source: Member, target: Member) -> bool:
        """Whether the underlay lets `source` start a conversation with `target` over IPv4."""
        return not target.behind_nat or source.port.segment == target.port.segment


def member_name(index: int) -> str:
    """Return a, b, ..., z, aa, ab, ... for 0, 1, ..."""
    name = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        name = chr(ord("a") + letter) + name
    return name


def plug(interface: str, segment: Segment, host: int) -> Port:
    """Plug an interface into a segment as its `host`-th address."""
    ipv4 = IPv4Interface((segment.ipv4[host], segment.ipv4.prefixlen))
    if segment.ipv6 is None:
        return Port(interface, segment.name, ipv4)
    ipv6 = IPv6Interface((segment.ipv6[host], segment.ipv6.prefixlen))
    return Port(interface, segment.name, ipv4, ipv6)


def lan(members: int) -> Topology:
    """Put all members on one wire."""
    check_count(members)
    wire = Segment("lan", LAN_IPV4, LAN_IPV6)
    return Topology(
        name="lan",
        summary="all members on one wire",
        segments=(wire,),
        routers=(),
        members=tuple(
            Member(member_name(index), plug("eth0", wire, index + 1)) for index in range(members)
        ),
    )


def internet(members: int) -> Topology:
    """Put each member on a subnet of its own behind a router; both IP versions everywhere."""
    return _routed("internet", "members on subnets of their own, behind routers", members)


def nat(members: int) -> Topology:
    """Make the internet, with the second member behind a router that masquerades, without IPv6."""
    summary = "members on subnets of their own; b is behind a router that masquerades"
    return _routed("nat", summary, members, masqueraded=frozenset({1}))


def check_count(members: int) -> None:
    """Raise UsageError for a number of members that no topology has."""
    if not 1 <= members <= MEMBERS_MAX:
        raise UsageError(f"a topology has 1 to {MEMBERS_MAX} members, not {members}")


def site_segment(index: int, *, private: bool) -> Segment:
    """Make the wire of the `index`-th site; a private one has no IPv6."""
    name = f"site-{member_name(index)}"
    if private:
        third = HOME_IPV4.network_address + ((index + 1) << 8)
        return Segment(name, IPv4Network((third, 24)))
    network = SITES_IPV4[index % len(SITES_IPV4)]
    size = 1 << (32 - SITE_PREFIX_LENGTH)
    ipv4 = IPv4Network(
        (network.network_address + index // len(SITES_IPV4) * size, SITE_PREFIX_LENGTH)
    )
    ipv6 = IPv6Network((SITES_IPV6.network_address + ((index + 1) << 80), 64))
    return Segment(name, ipv4, ipv6)


def _routed(
    name: str, summary: str, members: int, *, masqueraded: frozenset[int] = frozenset()
) -> Topology:
    check_count(members)
    transit = transit_segment()
    sites, routers, machines = [], [], []
    for index in range(members):
        private = index in masqueraded
        site = site_segment(index, private=private)
        wan = plug("wan", transit, index + 1)
        gateway = plug("lan", site, 1)
        if private:
            wan = replace(wan, ipv6=None)
        sites.append(site)
        behaviour = MASQUERADE if private else None
        routers.append(Router(f"router-{member_name(index)}", (wan, gateway), behaviour))
        machines.append(
            Member(
                name=member_name(index),
                port=plug("eth0", site, 2),
                gateway_ipv4=gateway.ipv4.ip,
                gateway_ipv6=gateway.ipv6.ip if gateway.ipv6 else None,
                behind_nat=private,
            )
        )
    return Topology(
        name=name,
        summary=summary,
        segments=(transit, *sites),
        routers=with_routes(routers, sites),
        members=tuple(machines),
    )


def transit_segment() -> Segment:
    """Make the wire that joins the sites' routers."""
    return Segment("transit", TRANSIT_IPV4, TRANSIT_IPV6)


def with_routes(routers: Sequence[Router], sites: Sequence[Segment]) -> tuple[Router, ...]:
    """Give each of the routers on the transit wire a route to every public site of another.

    `sites` are the wires behind them, in the same order.
    """
    return tuple(_with_routes(router, routers, sites) for router in routers)


def _with_routes(router: Router, routers: Sequence[Router], sites: Sequence[Segment]) -> Router:
    routes = list(router.routes)
    for other, site in zip(routers, sites, strict=True):
        if other is router:
            continue
        if other.behaviour is None:
            routes.append((site.ipv4, other.uplink.ipv4.ip))
        if site.ipv6 and other.uplink.ipv6 and router.uplink.ipv6:
            routes.append((site.ipv6, other.uplink.ipv6.ip))
    return replace(router, routes=tuple(routes))
