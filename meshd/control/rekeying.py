"""A new node key, as requests see it.

| request                     | answer                                                    |
| --------------------------- | --------------------------------------------------------- |
| `GET /v1/keys/node`         | `meshd.node-key/1`: who this is, and how far a new key is |
| `POST /v1/keys/node`        | the same: what a new key would change; nothing has begun  |
| `POST /v1/keys/node {sure}` | the same, once it has begun                               |

It ends with a daemon that answers as another node: the connection may be refused for a moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from meshd.control.fields import Fields

if TYPE_CHECKING:
    from meshd.control.routes import Document, Request, Routes
    from meshd.keys import NodeId


@dataclass(frozen=True, slots=True)
class NodeKeyAnswer:
    """Who this node is, and how far it is on its way to be another one."""

    node: NodeId
    name: str
    ipv4: str | None
    ipv6: str
    phase: str | None  # `asking`, `announced`; None: nothing is under way
    trouble: str  # what stands in the way, or has ended the last attempt; empty if nothing does
    invites: int  # of its own that may still be used, and could not be any more


class RekeyingController(Protocol):
    """The daemon, as requests about the node key see it."""

    def node_key(self) -> NodeKeyAnswer:
        """Return who this node is, and how far it is on its way to be another one."""

    async def rotate_node_key(self, *, sure: bool) -> NodeKeyAnswer:
        """Begin to go on under a new node key, if that is sure."""


def rekeying_routes(controller: RekeyingController) -> Routes:
    """Return the handlers of what is listed above."""

    async def show(request: Request) -> Document:
        Fields(request.query).done()
        return node_key_document(controller.node_key())

    async def rotate(request: Request) -> Document:
        fields = Fields(request.body)
        sure = fields.flag("sure")
        fields.done()
        return node_key_document(await controller.rotate_node_key(sure=sure))

    return {("GET", "/v1/keys/node"): show, ("POST", "/v1/keys/node"): rotate}


def node_key_document(answer: NodeKeyAnswer) -> Document:
    """Return `meshd.node-key/1`."""
    return {
        "schema": "meshd.node-key/1",
        "node": str(answer.node),
        "name": answer.name,
        "ipv4": answer.ipv4,
        "ipv6": answer.ipv6,
        "phase": answer.phase,
        "trouble": answer.trouble or None,
        "invites": answer.invites,
    }
