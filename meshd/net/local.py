"""Which of the host's own addresses others may reach it at: its host candidates.

An address counts when it is global unicast, usable now, and on an interface that is up, has a
carrier, is not a tunnel of any kind and is not ours.  A private address counts as well: members
in the same LAN, or in the same routed site, reach each other by it.

The order is the same on every call: first what the kernel would send from towards the internet,
then by interface as they were made; temporary IPv6 addresses (RFC 8981) last, because they are
meant to be forgotten within a day.  Choosing is pure; `meshd.net.rtnetlink` observes.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from meshd.portmap.gateway import Gateway

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.codec import IPAddress, IPNetwork

HOST_ADDRESSES_MAX = 8  # as many candidates as a record holds

# Kinds of links that carry packets inside packets: an address on one is an overlay's.
TUNNEL_KINDS = frozenset({
    "erspan", "gre", "gretap", "ip6erspan", "ip6gre", "ip6gretap", "ip6tnl", "ipip", "ovpn",
    "sit", "tun", "vti", "vti6", "wireguard", "xfrm",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """How the host's datagrams leave towards the internet, by one IP version."""

    interface: str
    gateway: IPAddress | None  # None: the whole internet is on the wire
    source: IPAddress | None  # what the kernel sends from there


@dataclass(frozen=True, slots=True)
class HostAddress:
    """One address of the host, as the kernel tells it."""

    address: IPAddress
    interface: str
    interface_index: int
    interface_kind: str | None  # None for hardware
    running: bool  # the interface is up and has a carrier
    loopback: bool
    global_scope: bool
    usable: bool  # neither tentative, nor a duplicate, nor deprecated
    temporary: bool  # IPv6 privacy address
    primary: bool  # the kernel prefers it towards the internet


def router_of(routes: Iterable[DefaultRoute]) -> Gateway | None:
    """Return the router that IPv4 leaves by; None where there is none."""
    for route in routes:
        if isinstance(route.gateway, IPv4Address) and isinstance(route.source, IPv4Address):
            return Gateway(route.gateway, route.source, route.interface)
    return None


def host_candidates(
    observed: Iterable[HostAddress], *, interface: str, excluded: Iterable[IPNetwork]
) -> tuple[IPAddress, ...]:
    """Return the addresses worth telling others, best first, at most `HOST_ADDRESSES_MAX`.

    `interface` is our own; `excluded` are the mesh's own networks.
    """
    networks = tuple(excluded)
    chosen = sorted(
        (
            host
            for host in observed
            if _reachable_from_outside(host)
            and host.interface != interface
            and not any(host.address in network for network in networks)
        ),
        key=_order,
    )
    return tuple(dict.fromkeys(host.address for host in chosen))[:HOST_ADDRESSES_MAX]


def _reachable_from_outside(host: HostAddress) -> bool:
    address = host.address
    return (
        host.running
        and host.usable
        and host.global_scope
        and not host.loopback
        and host.interface_kind not in TUNNEL_KINDS
        and not address.is_loopback
        and not address.is_link_local
        and not address.is_multicast
        and not address.is_unspecified
    )


def _order(host: HostAddress) -> tuple[bool, bool, int, int, bytes]:
    address = host.address
    return (
        host.temporary,
        not host.primary,
        host.interface_index,
        address.version,
        address.packed,
    )
