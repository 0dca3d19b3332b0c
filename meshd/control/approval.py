"""Approval mode over the control socket, and as documents.

| request                          | answer                                                      |
| -------------------------------- | ----------------------------------------------------------- |
| `GET /v1/pending`                | `meshd.pending/1`: who waits here, and whom we wait for     |
| `POST /v1/pending {open: s}`     | `meshd.pending/1`; newcomers may ask for that time          |
| `POST /v1/pending {close: true}` | `meshd.pending/1`; nobody is answered any more              |
| `POST /v1/approve {code, …}`     | `meshd.approve/1`; with the grants of an invite             |
| `POST /v1/deny {code}`           | `meshd.deny/1`                                              |

A newcomer that waits is named by its code and by nothing else: whoever asks has chosen the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from meshd.bootstrap.approval_code import parse_code
from meshd.control.bounds import WINDOW_MAX, WINDOW_MIN
from meshd.control.fields import Fields
from meshd.control.invites import read_grants
from meshd.control.routes import ApiError, bad_request

if TYPE_CHECKING:
    from meshd.control.invites import InviteRequest
    from meshd.control.routes import Document, Json, Request, Routes
    from meshd.keys import NodeId
    from meshd.wg.types import Endpoint

APPROVED_LIFETIME = 600.0  # of the token that an approved newcomer gets


@dataclass(frozen=True, slots=True)
class PendingSnapshot:
    """Somebody who waits for a decision, or for the news of it."""

    code: str
    name: str
    id: NodeId
    source: Endpoint
    age: float
    state: str  # waiting, approved or denied


@dataclass(frozen=True, slots=True)
class OwnCode:
    """What this node shows while it asks to be let in itself."""

    code: str
    member: Endpoint


@dataclass(frozen=True, slots=True)
class ApprovalSnapshot:
    """Who waits here, and what we wait for ourselves."""

    open_for: float | None = None  # seconds; None: no window
    pending: tuple[PendingSnapshot, ...] = ()
    own: OwnCode | None = None


class ApprovalController(Protocol):
    """The daemon, as requests about approval see it."""

    def approval(self) -> ApprovalSnapshot:
        """Return who waits here."""

    async def open_approval(self, span: float) -> None:
        """Let newcomers ask for so many seconds."""

    async def close_approval(self) -> None:
        """Answer no newcomer any more."""

    async def approve(self, code: str, grants: InviteRequest) -> PendingSnapshot:
        """Let in the newcomer with a code.  Raise ApiError if there is none."""

    async def deny(self, code: str) -> PendingSnapshot:
        """Send away the newcomer with a code.  Raise ApiError if there is none."""


def approval_routes(controller: ApprovalController) -> Routes:
    """Return the handlers."""

    async def show(request: Request) -> Document:
        Fields(request.query).done()
        return pending_document(controller.approval())

    async def change(request: Request) -> Document:
        fields = Fields(request.body)
        span = fields.number("open", minimum=WINDOW_MIN, maximum=WINDOW_MAX, default=0.0)
        close = fields.flag("close")
        fields.done()
        if bool(span) == close:
            raise bad_request("either open, with seconds, or close")
        if close:
            await controller.close_approval()
        else:
            await controller.open_approval(span)
        return pending_document(controller.approval())

    async def approve(request: Request) -> Document:
        fields = Fields(request.body)
        code = _code(fields)
        grants = read_grants(fields, lifetime=APPROVED_LIFETIME, uses=1)
        fields.done()
        pending = await controller.approve(code, grants)
        return {"schema": "meshd.approve/1", **_pending(pending)}

    async def deny(request: Request) -> Document:
        fields = Fields(request.body)
        code = _code(fields)
        fields.done()
        return {"schema": "meshd.deny/1", **_pending(await controller.deny(code))}

    return {
        ("GET", "/v1/pending"): show,
        ("POST", "/v1/pending"): change,
        ("POST", "/v1/approve"): approve,
        ("POST", "/v1/deny"): deny,
    }


def pending_document(approval: ApprovalSnapshot) -> Document:
    """Return `meshd.pending/1`."""
    own: Json = None
    if approval.own is not None:
        own = {"code": approval.own.code, "member": str(approval.own.member)}
    return {
        "schema": "meshd.pending/1",
        "open_for_s": None if approval.open_for is None else round(approval.open_for, 1),
        "pending": [_pending(pending) for pending in approval.pending],
        "own": own,
    }


def unknown_code(code: str) -> ApiError:
    """Return the refusal of a code that nobody shows."""
    return ApiError(
        HTTPStatus.NOT_FOUND,
        "unknown-code",
        f"no newcomer waits with the code {code}; `meshctl pending` lists those who do",
    )


def _code(fields: Fields) -> str:
    text = fields.needed_text("code")
    code = parse_code(text)
    if code is None:
        raise bad_request(f"{text!r} is no code: those are like K7QF-2MXA")
    return code


def _pending(pending: PendingSnapshot) -> Document:
    return {
        "code": pending.code,
        "name": pending.name,
        "id": str(pending.id),
        "address": str(pending.source),
        "age_s": round(pending.age, 1),
        "state": pending.state,
    }
