"""What this node's network does, as others see it: `GET /v1/netcheck`, `meshd.netcheck/1`.

All of it was told by members in passing, so that asking costs nothing, and a node without members
knows nothing yet.  The words for NATs are those of RFC 4787.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.control.fields import Fields
from meshd.control.views import milliseconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meshd.control.routes import Document, Json, Request
    from meshd.wg.types import Endpoint

_DEPENDENT = frozenset({
    "dependent on the destination", "address-dependent", "address-and-port-dependent",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class NatSnapshot:
    """What stands between this node and the others, for one address family."""

    family: int  # 4 or 6
    addresses: tuple[str, ...]  # of this host
    mapping: str
    filtering: str
    port_preserving: bool | None  # None: no NAT, or not known
    told_by: int  # destinations that this was told from
    reflexive: tuple[Endpoint, ...]  # where others see us come from, as far as it is believed

    @property
    def depends(self) -> bool:
        """Whether each destination is shown another port, so that nobody else can use it."""
        return self.mapping in _DEPENDENT


@dataclass(frozen=True, slots=True)
class PortMappingSnapshot:
    """What the router was asked for."""

    state: str
    method: str | None  # PCP, NAT-PMP, UPnP
    endpoint: Endpoint | None
    expires_in: float | None
    reason: str  # when it was refused


@dataclass(frozen=True, slots=True)
class NearRelay:
    """A member that relays, as this node would use it."""

    name: str
    endpoint: Endpoint | None
    rtt: float | None


@dataclass(frozen=True, slots=True)
class NetcheckSnapshot:
    """See the module docstring."""

    listen_port: int
    control_port: int  # 0: meshd shares WireGuard's port
    mtu: int  # of the interface
    nats: tuple[NatSnapshot, ...]  # one for each address family that the host has
    port_mapping: PortMappingSnapshot | None  # None: not asked for
    candidates: tuple[tuple[str, Endpoint], ...]  # kind and address, as our record says
    relays: tuple[NearRelay, ...]  # the nearest first


def netcheck_route(
    netcheck: Callable[[], NetcheckSnapshot],
) -> Callable[[Request], Awaitable[Document]]:
    """Return the handler of `GET /v1/netcheck`."""

    async def handle(request: Request) -> Document:
        Fields(request.query).done()
        return netcheck_document(netcheck())

    return handle


def netcheck_document(snapshot: NetcheckSnapshot) -> Document:
    """Return `meshd.netcheck/1`."""
    return {
        "schema": "meshd.netcheck/1",
        "listen_port": snapshot.listen_port,
        "control_port": snapshot.control_port or None,
        "mtu": snapshot.mtu,
        "nats": [_nat(nat) for nat in snapshot.nats],
        "port_mapping": _port_mapping(snapshot.port_mapping),
        "candidates": [
            {"kind": kind, "endpoint": str(endpoint)} for kind, endpoint in snapshot.candidates
        ],
        "relays": [
            {
                "name": relay.name,
                "endpoint": None if relay.endpoint is None else str(relay.endpoint),
                "rtt_ms": milliseconds(relay.rtt),
            }
            for relay in snapshot.relays
        ],
    }


def _nat(nat: NatSnapshot) -> Json:
    return {
        "family": nat.family,
        "addresses": [*nat.addresses],
        "mapping": nat.mapping,
        "filtering": nat.filtering,
        "port_preserving": nat.port_preserving,
        "told_by": nat.told_by,
        "reflexive": [str(endpoint) for endpoint in nat.reflexive],
    }


def _port_mapping(mapping: PortMappingSnapshot | None) -> Json:
    if mapping is None:
        return None
    return {
        "state": mapping.state,
        "method": mapping.method,
        "endpoint": None if mapping.endpoint is None else str(mapping.endpoint),
        "expires_in_s": None if mapping.expires_in is None else round(mapping.expires_in),
        "reason": mapping.reason or None,
    }
