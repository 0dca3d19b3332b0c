"""Throwing a member out, as requests see it.

| request                              | answer                                            |
| ------------------------------------ | ------------------------------------------------- |
| `POST /v1/revoke {name,cascade}`      | `meshd.revoke/1`: what would happen; nothing has  |
| `POST /v1/revoke {name,cascade,sure}` | `meshd.revoke/1`: what has happened; it is on disk |

The one that is meant is named in full: its name, its id, or the short form of its id as it is
shown.  No beginning of anything will do, for this cannot be taken back.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from meshd.control.fields import Fields
from meshd.control.lookup import hint
from meshd.control.routes import ApiError
from meshd.control.views import rfc3339
from meshd.keys import NodeId

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from meshd.control.routes import Document, Json, Request


@dataclass(frozen=True, slots=True)
class RevokeRequest:
    """What `meshctl revoke` asks for."""

    name: str
    cascade: bool
    sure: bool  # else only say what would happen


@dataclass(frozen=True, slots=True)
class RevokeAnswer:
    """What is, or would be, revoked, and who goes with it."""

    done: bool
    id: NodeId
    name: str
    ipv4: str | None
    ipv6: str
    state: str | None  # None for one that is no member, or not known here
    cascade: bool
    signer: str
    revoked_at: float
    falls: tuple[tuple[NodeId, str], ...]  # members, but the revoked one itself, with their names
    stays: tuple[tuple[NodeId, str], ...]  # members it let in that stay


def revoke_route(
    revoke: Callable[[RevokeRequest], Awaitable[RevokeAnswer]],
) -> Callable[[Request], Awaitable[Document]]:
    """Return the handler of `POST /v1/revoke`."""

    async def handle(request: Request) -> Document:
        fields = Fields(request.body)
        wanted = RevokeRequest(
            name=fields.needed_text("name"),
            cascade=fields.flag("cascade"),
            sure=fields.flag("sure"),
        )
        fields.done()
        return revoke_document(await revoke(wanted))

    return handle


def revoke_document(answer: RevokeAnswer) -> Document:
    """Return `meshd.revoke/1`."""
    return {
        "schema": "meshd.revoke/1",
        "revoked": answer.done,
        "id": str(answer.id),
        "name": answer.name,
        "ipv4": answer.ipv4,
        "ipv6": answer.ipv6,
        "state": answer.state,
        "cascade": answer.cascade,
        "signer": answer.signer,
        "revoked_at": rfc3339(answer.revoked_at),
        "falls": [_named(node, name) for node, name in answer.falls],
        "stays": [_named(node, name) for node, name in answer.stays],
    }


def find_exactly(members: Mapping[NodeId, str], gone: Mapping[NodeId, str], text: str) -> NodeId:
    """Return the node that is meant.  Raise ApiError when it is none, or several.

    `members` and `gone` are nodes with their names; who is gone is meant only if no member is.  A
    full id may be that of a node of which nothing else is known.
    """
    for nodes in (members, gone):
        found = [node for node, name in nodes.items() if text in {name, str(node), node.short}]
        if len(found) > 1:
            # A member can choose its name, even if it looks like another's id.
            ids = ", ".join(f"{nodes[node]} ({node})" for node in found)
            raise ApiError(
                HTTPStatus.CONFLICT, "ambiguous-member", f"{text!r} may mean {ids}: give its id"
            )
        if found:
            return found[0]
    try:
        return NodeId.parse(text)
    except ValueError:
        raise ApiError(
            HTTPStatus.NOT_FOUND,
            "unknown-member",
            f"no member is called just {text!r}{hint(members.values(), text)}",
        ) from None


def _named(node: NodeId, name: str) -> Json:
    return {"id": str(node), "name": name}
