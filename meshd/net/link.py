"""What meshd puts on its interface, and the changes that bring it there.

Rule 1: only what meshd made is ever taken away.  Routes are told apart by their protocol number
        (`ROUTE_PROTOCOL`), addresses by lying inside the mesh's own prefixes: not every kernel
        keeps a protocol number with an address.

Rule 2: nothing is missing in between.  An address is there before the route that prefers it, a
        route is replaced in one step, and an old address goes last.

Rule 3: an address in the way goes first: one that is wanted with another prefix length, and one
        with a network of its own, for which the kernel makes a route that may collide with ours.
        The routes that lean on it are written anew, because the kernel strips them.

    IPv6 settings → mtu → up → addresses in the way → new addresses → routes → old routes → old
    addresses

A link that is to be down carries nothing: the kernel keeps neither routes nor IPv6 addresses on
it.  This module is pure; `meshd.net.rtnetlink` observes and applies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from meshd.codec import IPNetwork

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshd.codec import IPAddress

IPInterface: TypeAlias = IPv4Interface | IPv6Interface

ROUTE_PROTOCOL = 0x6D  # "m"; free in the kernel's rtnetlink.h and in iproute2's rt_protos
MTU_MIN = 1280  # below it the kernel takes IPv6 off the interface (RFC 8200, section 5)


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """What we want of the interface.  Each of its addresses is the network of one address only.

    Those `retired` still take what comes, and are the source of nothing new.
    """

    addresses: frozenset[IPNetwork]
    routes: frozenset[IPNetwork]
    mtu: int
    up: bool = True
    retired: frozenset[IPNetwork] = frozenset()

    def __post_init__(self) -> None:
        assert self.mtu >= MTU_MIN, f"IPv6 needs an MTU of {MTU_MIN}, not {self.mtu}"
        assert all(map(_is_one_address, self.addresses | self.retired)), "one address each"


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """What the kernel says of the interface: of addresses and routes only our own."""

    index: int
    kind: str | None  # "wireguard", "tun", ...; None for hardware
    mtu: int
    up: bool
    ipv6_ready: bool  # its IPv6 sysctls are as meshd needs them
    addresses: frozenset[IPInterface] = frozenset()
    routes: Mapping[IPNetwork, IPAddress | None] = field(default_factory=dict)  # to source


@dataclass(frozen=True, slots=True)
class PrepareIPv6:
    """Switch IPv6 on, and link-local addresses and router advertisements off."""


@dataclass(frozen=True, slots=True)
class SetMtu:
    """Set the largest packet the interface takes."""

    mtu: int


@dataclass(frozen=True, slots=True)
class SetUp:
    """Bring the interface up or down."""

    up: bool


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Give the interface an address that is usable at once."""

    address: IPInterface


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    """Take an address off the interface."""

    address: IPInterface


@dataclass(frozen=True, slots=True)
class SetRoute:
    """Route a network through the interface, preferring `source` as source address.

    Only a route of ours may be replaced: one that somebody else has made for the same network is
    an error, not ours to overwrite.
    """

    destination: IPNetwork
    source: IPAddress | None
    replace: bool


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Remove a route of ours."""

    destination: IPNetwork


LinkChange: TypeAlias = (
    PrepareIPv6 | SetMtu | SetUp | AddAddress | RemoveAddress | SetRoute | RemoveRoute
)


T = TypeVar("T", IPInterface, IPNetwork)


def wanted_addresses(spec: LinkSpec) -> frozenset[IPInterface]:
    """Return the addresses in the form in which an interface has them."""
    wanted = spec.addresses | spec.retired if spec.up else frozenset()
    return frozenset(_interface(network) for network in wanted)


def wanted_routes(spec: LinkSpec) -> dict[IPNetwork, IPAddress | None]:
    """Return the routes in a fixed order, each with our own address of its family as source."""
    if not spec.up:
        return {}
    sources: dict[int, IPAddress] = {}
    for network in _ordered(spec.addresses):
        sources.setdefault(network.version, network.network_address)
    return {network: sources.get(network.version) for network in _ordered(spec.routes)}


def diff_link(desired: LinkSpec, observed: LinkStatus) -> tuple[LinkChange, ...]:
    """Return the fewest changes, in the order of the module's docstring.

    Equal inputs give no changes, so the reconciler may run as often as it likes.
    """
    addresses = wanted_addresses(desired)
    unwanted = observed.addresses - addresses
    kept = {address.ip for address in addresses}
    in_the_way = frozenset(a for a in unwanted if a.ip in kept or not _is_one_address(a.network))
    changes: list[LinkChange] = []
    if desired.up and not observed.ipv6_ready:
        changes.append(PrepareIPv6())
    if observed.mtu != desired.mtu:
        changes.append(SetMtu(desired.mtu))
    if desired.up and not observed.up:
        changes.append(SetUp(True))
    changes += [RemoveAddress(address) for address in _ordered(in_the_way)]
    changes += [AddAddress(address) for address in _ordered(addresses - observed.addresses)]
    changes += _diff_routes(
        wanted_routes(desired), observed.routes, stripped={address.ip for address in in_the_way}
    )
    changes += [RemoveAddress(address) for address in _ordered(unwanted - in_the_way)]
    if observed.up and not desired.up:
        changes.append(SetUp(False))
    return tuple(changes)


def _diff_routes(
    desired: Mapping[IPNetwork, IPAddress | None],
    observed: Mapping[IPNetwork, IPAddress | None],
    *,
    stripped: set[IPAddress],
) -> list[LinkChange]:
    changes: list[LinkChange] = [
        SetRoute(destination, source, replace=destination in observed)
        for destination, source in desired.items()
        if destination not in observed or observed[destination] != source or source in stripped
    ]
    return changes + [RemoveRoute(d) for d in _ordered(observed.keys() - desired.keys())]


def _is_one_address(network: IPNetwork) -> bool:
    return network.prefixlen == network.max_prefixlen


def _interface(network: IPNetwork) -> IPInterface:
    if network.version == 4:
        return IPv4Interface((network.network_address.packed, network.prefixlen))
    return IPv6Interface((network.network_address.packed, network.prefixlen))


def _ordered(items: Iterable[T]) -> list[T]:
    """Sort addresses or networks, IPv4 first: Python compares within one version only."""
    return sorted(items, key=_order)


def _order(item: IPInterface | IPNetwork) -> tuple[int, bytes, int]:
    network = item if isinstance(item, IPv4Network | IPv6Network) else item.network
    address = item.network_address if isinstance(item, IPv4Network | IPv6Network) else item.ip
    return item.version, address.packed, network.prefixlen
