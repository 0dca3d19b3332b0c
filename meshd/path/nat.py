"""What this node's NAT does, told from pongs that it gets anyway, in the terms of RFC 4787.

    our socket ─▶ NAT ─▶ 198.51.100.1:40000 ─▶ member x     all the same, to several addresses:
                     └─▶ 198.51.100.1:40000 ─▶ member y       mapping endpoint-independent
                     └─▶ 198.51.100.1:40007 ─▶ member z     another one: it depends on where to

Rule 1: two destinations tell whether the mapping depends on them; which part of them, only two
        ports of one address do (a relay's ports are such), so it may stay open.

Rule 2: filtering is told from what is let in unasked: a ping from an address that we have not sent
        to shows that it is endpoint-independent, one from another port of an address that we have
        sent to, that it does not depend on ports.  What is not let in tells nothing: it may not
        have been sent.

Rule 3: this is for people and for expectations.  No path is chosen by it: they are proven.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from meshd.codec import IPAddress
    from meshd.wg.types import Endpoint

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

DESTINATIONS_MAX = 1024  # the oldest gives way
BINDING_LIFETIME_MAX = 600.0  # a NAT may remember for so long whom we have sent to


class Mapping(enum.Enum):
    """RFC 4787 section 4.1: what the outside port depends on besides our own."""

    UNKNOWN = "unknown"
    NONE = "no NAT"
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    DEPENDENT = "dependent on the destination"  # on its address, or on its port as well
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"


class Filtering(enum.Enum):
    """RFC 4787 section 5: from whom the NAT lets something in."""

    UNKNOWN = "unknown"
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"  # or endpoint-independent


@dataclass(frozen=True, slots=True)
class NatBehaviour:
    """What is known of the NAT for one address family."""

    mapping: Mapping = Mapping.UNKNOWN
    filtering: Filtering = Filtering.UNKNOWN
    port_preserving: bool | None = None  # None: not known, or no NAT
    destinations: int = 0  # that this was told from


class Contacted:
    """Whom we have sent something to lately."""

    def __init__(self) -> None:
        self._endpoints: dict[Endpoint, float] = {}
        self._addresses: dict[IPAddress, float] = {}

    def note(self, destination: Endpoint, now: float) -> None:
        """Take that a datagram goes there."""
        _remember(self._endpoints, destination, now)
        _remember(self._addresses, destination.address, now)

    def endpoint(self, endpoint: Endpoint, now: float) -> bool:
        """Whether a NAT may remember that we sent there."""
        return now - self._endpoints.get(endpoint, -math.inf) < BINDING_LIFETIME_MAX

    def address(self, address: IPAddress, now: float) -> bool:
        """Whether a NAT may remember that we sent to any port of an address."""
        return now - self._addresses.get(address, -math.inf) < BINDING_LIFETIME_MAX


class NatWatch:
    """Gathers what is seen, for one address family."""

    def __init__(self) -> None:
        self._seen: dict[Endpoint, Endpoint] = {}  # by destination: where it saw us
        self._let_in = Filtering.UNKNOWN

    def clear(self) -> None:
        """Begin anew: our addresses are others, or the way out is."""
        self._seen.clear()
        self._let_in = Filtering.UNKNOWN

    def observed(self, destination: Endpoint, endpoint: Endpoint) -> None:
        """Take where a destination outside sees us come from."""
        _remember(self._seen, destination, endpoint)

    def heard(self, source: Endpoint, contacted: Contacted, now: float) -> None:
        """Take that something was let in from outside: rule 2."""
        if not contacted.address(source.address, now):
            self._let_in = Filtering.ENDPOINT_INDEPENDENT
        elif not contacted.endpoint(source, now) and self._let_in is Filtering.UNKNOWN:
            self._let_in = Filtering.ADDRESS_DEPENDENT

    def behaviour(self, local: frozenset[IPAddress], port: int) -> NatBehaviour:
        """Return what follows.  `local` and `port` are our own addresses and port."""
        mapping = self._mapping(local)
        natted = mapping not in {Mapping.UNKNOWN, Mapping.NONE}
        return NatBehaviour(
            mapping=mapping,
            filtering=self._let_in,
            port_preserving=(
                all(seen.port == port for seen in self._seen.values()) if natted else None
            ),
            destinations=len(self._seen),
        )

    def _mapping(self, local: frozenset[IPAddress]) -> Mapping:
        seen = set(self._seen.values())
        if not seen:
            return Mapping.UNKNOWN
        if all(endpoint.address in local for endpoint in seen):
            return Mapping.NONE
        if len(seen) > 1:
            return self._dependence()
        addresses = {destination.address for destination in self._seen}
        return Mapping.ENDPOINT_INDEPENDENT if len(addresses) > 1 else Mapping.UNKNOWN

    def _dependence(self) -> Mapping:
        by_address: dict[IPAddress, list[Endpoint]] = {}
        for destination, endpoint in self._seen.items():
            by_address.setdefault(destination.address, []).append(endpoint)
        if any(len(set(endpoints)) > 1 for endpoints in by_address.values()):
            return Mapping.ADDRESS_AND_PORT_DEPENDENT
        if any(len(endpoints) > 1 for endpoints in by_address.values()):
            return Mapping.ADDRESS_DEPENDENT
        return Mapping.DEPENDENT


def _remember(table: dict[KeyT, ValueT], key: KeyT, value: ValueT) -> None:
    table.pop(key, None)
    table[key] = value
    if len(table) > DESTINATIONS_MAX:
        del table[next(iter(table))]
