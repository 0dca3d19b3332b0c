"""Which addresses may be probed, which are preferred, and which we tell others of ourselves.

Rule 1: an address is never probed, let alone selected, when it can only be wrong: port 0,
        unspecified, loopback (but for what our own carrier has there), link-local (it means
        another machine on every link), multicast, broadcast, reserved, or inside the mesh's own
        networks: a tunnel whose endpoint is inside the tunnel carries nothing, for ever.

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
    RELAYED = 4  # a relay's port, which forwards ciphertext
    RELAYED_TCP = 5  # the same, carried over TCP


RELAYED_CLASSES = frozenset({PathClass.RELAYED, PathClass.RELAYED_TCP})


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


def observed_class(endpoint: Endpoint) -> PathClass:
    """Return the class of a path by an address that no record lists."""
    return PathClass.RELAYED_TCP if endpoint.address.is_loopback else PathClass.REFLEXIVE


class Fence:
    """Where nothing may go: `usable`, and this host itself."""

    def __init__(self, excluded: Iterable[IPNetwork]) -> None:
        """`excluded` are the mesh's own networks."""
        self._excluded = tuple(excluded)
        self.own: frozenset[Endpoint] = frozenset()  # where our own probes are received
        self.carried: frozenset[Endpoint] = frozenset()  # on loopback, and others: over TCP

    def exclude(self, networks: Iterable[IPNetwork]) -> None:
        """Take the networks that no endpoint may be in."""
        self._excluded = tuple(networks)

    def allows(self, endpoint: Endpoint) -> bool:
        """Whether probes and packets may go there."""
        if endpoint in self.carried:
            return True
        return usable(endpoint, self._excluded) and endpoint not in self.own

    def believes(self, observed: Endpoint) -> bool:
        """Whether that may be where others see us come from."""
        return usable(observed, self._excluded)


def path_class(candidate: Candidate) -> PathClass:
    """Return the class of a path by a candidate, once it is proven."""
    match candidate.kind:
        case CandidateKind.HOST:
            return PathClass.LAN if private(candidate.address) else PathClass.HOST
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
    mapped: Iterable[Endpoint] = (),
) -> tuple[Candidate, ...]:
    """Return what our record should say of where we are, the most useful first.

    `reflexive` is where our probes come from, as others see it.  That is also where WireGuard can
    be reached only when both share a port, or when the NAT has left our control port as it is and
    so, presumably, WireGuard's.  `mapped` is what routers have mapped to the port that both share.
    """
    found = [
        Candidate(CandidateKind.CONFIGURED, endpoint.address, endpoint.port, control_port)
        for endpoint in configured
    ]
    found += [Candidate(CandidateKind.MAPPED, *endpoint, 0) for endpoint in mapped]
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


def private(address: IPAddress) -> bool:
    """Whether an address is one that many sites have."""
    return any(
        address.version == network.version and address in network for network in PRIVATE_NETWORKS
    )
