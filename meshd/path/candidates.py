"""Which addresses may be probed, which are preferred, and which we tell others of ourselves.

Rule 1: an address is never probed, let alone selected, when it can only be wrong: port 0,
        unspecified, loopback, link-local (it means another machine on every link), multicast,
        broadcast, reserved, or inside the mesh's own networks: a tunnel whose endpoint is inside
        the tunnel carries nothing, for ever.

Rule 2: of two addresses that are both proven the one of the better class is used.  The classes
        follow RFC 8445 section 5.1.2: what is nearer to the peer itself first, relays last.

A candidate has two ports when its node could not put meshd's socket behind WireGuard's port:
probes go to `control`, WireGuard's datagrams to `endpoint`.  Otherwise they are the same.
"""

from __future__ import annotations

import enum
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import TYPE_CHECKING

from meshd.trust.record import CANDIDATES_MAX, Candidate, CandidateKind
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from meshd.codec import IPAddress, IPNetwork

# RFC 1918 and RFC 4193.  Not `is_private`, which also has documentation and benchmark networks.
PRIVATE_NETWORKS: tuple[IPNetwork, ...] = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv6Network("fc00::/7"),
)
THIS_NETWORK = IPv4Network("0.0.0.0/8")  # RFC 6890: this host on this network


class PathClass(enum.IntEnum):
    """How good a path is; the lower, the better."""

    LAN = 0  # a private address of the peer itself answered: we share a LAN or a site
    HOST = 1  # any other address of the peer itself
    MAPPED = 2  # a port that a NAT forwards, by protocol or by the operator's word
    REFLEXIVE = 3  # a NAT's mapping, as others see it
    RELAYED = 4


def usable(endpoint: Endpoint, excluded: Iterable[IPNetwork]) -> bool:
    """Whether rule 1 lets an address be probed."""
    address = endpoint.address
    if not 0 < endpoint.port <= 0xFFFF:
        return False
    if (
        address.is_unspecified
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
    ):
        return False
    if isinstance(address, IPv4Address):
        if address.is_reserved or address in THIS_NETWORK:  # reserved includes broadcast
            return False
    elif address.ipv4_mapped is not None:
        return False
    return not any(
        address.version == network.version and address in network for network in excluded
    )


def path_class(candidate: Candidate) -> PathClass:
    """Return the class of a path by a candidate, once it is proven."""
    match candidate.kind:
        case CandidateKind.HOST:
            return PathClass.LAN if _private(candidate.address) else PathClass.HOST
        case CandidateKind.MAPPED | CandidateKind.CONFIGURED:
            return PathClass.MAPPED
        case CandidateKind.REFLEXIVE:
            return PathClass.REFLEXIVE
        case CandidateKind.RELAYED:
            return PathClass.RELAYED


def data_endpoint(candidate: Candidate) -> Endpoint:
    """Return where WireGuard's datagrams go."""
    return Endpoint(candidate.address, candidate.port)


def control_endpoint(candidate: Candidate) -> Endpoint:
    """Return where probes go."""
    return Endpoint(candidate.address, candidate.control_port or candidate.port)


def own_candidates(
    *,
    hosts: Iterable[IPAddress],
    port: int,
    control_port: int,
    configured: Iterable[Endpoint],
    reflexive: Iterable[Endpoint],
    excluded: Collection[IPNetwork],
) -> tuple[Candidate, ...]:
    """Return what our record should say of where we are, the most useful first.

    `reflexive` is where our probes come from, as others see it.  That is also where WireGuard can
    be reached only when both share a port, or when the NAT has left our control port as it is and
    so, presumably, WireGuard's.
    """
    found = [
        Candidate(CandidateKind.CONFIGURED, endpoint.address, endpoint.port, control_port)
        for endpoint in configured
    ]
    found += [Candidate(CandidateKind.HOST, address, port, control_port) for address in hosts]
    for endpoint in reflexive:
        if control_port == 0:
            found.append(Candidate(CandidateKind.REFLEXIVE, endpoint.address, endpoint.port, 0))
        elif endpoint.port == control_port:
            found.append(Candidate(CandidateKind.REFLEXIVE, endpoint.address, port, control_port))
    distinct: dict[Endpoint, Candidate] = {}
    for candidate in found:
        if usable(data_endpoint(candidate), excluded):
            distinct.setdefault(data_endpoint(candidate), candidate)
    kept = list(distinct.values())
    while len(kept) > CANDIDATES_MAX:
        # Of many host addresses the last is missed least; what the NAT shows is often the only way.
        hosts_kept = [c for c in kept if c.kind is CandidateKind.HOST]
        kept.remove(hosts_kept[-1] if hosts_kept else kept[-1])
    return tuple(kept)


def _private(address: IPAddress) -> bool:
    return any(
        address.version == network.version and address in network for network in PRIVATE_NETWORKS
    )
