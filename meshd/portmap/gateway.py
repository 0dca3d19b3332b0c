"""Whom to ask, and which of a router's addresses are worth telling others.

host ── source ─────── address ─▶ router ── external address ─▶ internet
        private                             public: a candidate
                                            private, or shared: another NAT comes after it
"""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import TYPE_CHECKING, NamedTuple

from meshd.path.candidates import PRIVATE_NETWORKS, usable
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address

    from meshd.codec import IPNetwork

# RFC 1918, and RFC 6598: what a provider's own NAT gives its customers.
BEHIND_NAT = (
    *(network for network in PRIVATE_NETWORKS if network.version == 4),
    IPv4Network("100.64.0.0/10"),
)


class Gateway(NamedTuple):
    """The router that the host's IPv4 datagrams leave by."""

    address: IPv4Address
    source: IPv4Address  # ours towards it
    interface: str


def behind_nat(address: IPv4Address) -> bool:
    """Whether an address is one that nobody on the internet can send to."""
    return any(address in network for network in BEHIND_NAT)


def reachable(address: IPv4Address, port: int, excluded: Iterable[IPNetwork]) -> bool:
    """Whether what a router says is its outside may be told to others."""
    return usable(Endpoint(address, port), excluded) and not behind_nat(address)
