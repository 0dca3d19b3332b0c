"""Relays, as requests see them: who relays for this node, and for whom this node does.

| request                      | answer                                                          |
| ---------------------------- | --------------------------------------------------------------- |
| `GET /v1/relays`             | `meshd.relays/1`                                                |
| `POST /v1/drain {draining}`  | `meshd.relays/1`, after this node has begun or ended to drain   |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from meshd.control.fields import Fields
from meshd.control.views import milliseconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from meshd.control.routes import Document, Json, Request
    from meshd.wg.types import Endpoint


@dataclass(frozen=True, slots=True)
class RelayMember:
    """Another member that relays."""

    name: str
    state: str
    endpoint: Endpoint | None  # where it is reached
    rtt: float | None
    in_use: tuple[str, ...]  # members that are reached by it
    spare: tuple[str, ...]  # members for which it stands ready


@dataclass(frozen=True, slots=True)
class RelayedPair:
    """Two members that this node relays for."""

    members: tuple[str, str]
    ports: tuple[int, int]
    bound: bool  # both are heard, so that it is forwarded
    expires_in: float
    datagrams: int
    bytes: int


@dataclass(frozen=True, slots=True)
class RelaysSnapshot:
    """See the module docstring."""

    relaying: bool  # this node's record says that it relays
    why_not: str | None  # in words, where it does not
    draining: bool
    ports: tuple[int, int]  # the range
    pairs_max: int
    strangers: int  # datagrams dropped at its ports
    pairs: tuple[RelayedPair, ...]
    relays: tuple[RelayMember, ...]


class RelayController(Protocol):
    """What the requests here need of the daemon."""

    def relays(self) -> RelaysSnapshot:
        """Return who relays for whom."""

    async def drain(self, *, draining: bool) -> None:
        """Have those that are relayed here move elsewhere, or take new ones again."""


def relay_routes(
    controller: RelayController,
) -> Mapping[tuple[str, str], Callable[[Request], Awaitable[Document]]]:
    """Return the handlers of the requests above."""

    async def relays(request: Request) -> Document:
        Fields(request.query).done()
        return relays_document(controller.relays())

    async def drain(request: Request) -> Document:
        fields = Fields(request.body)
        draining = fields.flag("draining")
        fields.done()
        await controller.drain(draining=draining)
        return relays_document(controller.relays())

    return {("GET", "/v1/relays"): relays, ("POST", "/v1/drain"): drain}


def relays_document(snapshot: RelaysSnapshot) -> Document:
    """Return `meshd.relays/1`."""
    return {
        "schema": "meshd.relays/1",
        "self": {
            "relaying": snapshot.relaying,
            "why_not": snapshot.why_not,
            "draining": snapshot.draining,
            "ports": [*snapshot.ports],
            "pairs_max": snapshot.pairs_max,
            "strangers": snapshot.strangers,
            "pairs": [_pair(pair) for pair in snapshot.pairs],
        },
        "relays": [_relay(relay) for relay in snapshot.relays],
    }


def _pair(pair: RelayedPair) -> Json:
    return {
        "members": [*pair.members],
        "ports": [*pair.ports],
        "bound": pair.bound,
        "expires_in_s": round(pair.expires_in),
        "datagrams": pair.datagrams,
        "bytes": pair.bytes,
    }


def _relay(relay: RelayMember) -> Json:
    return {
        "name": relay.name,
        "state": relay.state,
        "endpoint": None if relay.endpoint is None else str(relay.endpoint),
        "rtt_ms": milliseconds(relay.rtt),
        "in_use": [*relay.in_use],
        "spare": [*relay.spare],
    }
