"""Invites over the control socket, and as documents.

| request                           | answer                                                   |
| --------------------------------- | -------------------------------------------------------- |
| `POST /v1/invites {…}`            | `meshd.invite/1`, the only document that holds a token   |
| `GET /v1/invites`                 | `meshd.invites/1`: our own, and what is known of others' |
| `POST /v1/invites/withdraw {id}`  | `meshd.invite-withdraw/1`                                |

An invite's `state` is `open`, `used`, `withdrawn`, `expired`, or `void`: its token holds a
bootstrap key that was replaced since.  Of another member's invite that is neither used up nor
withdrawn it is `unknown`, because its end is known to its issuer only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from meshd.control.bounds import (
    CREDENTIAL_LIFETIME_DEFAULT,
    CREDENTIAL_LIFETIME_MAX,
    CREDENTIAL_LIFETIME_MIN,
    INVITE_LIFETIME_DEFAULT,
    INVITE_LIFETIME_MAX,
    INVITE_LIFETIME_MIN,
)
from meshd.control.fields import Fields
from meshd.control.routes import bad_request
from meshd.control.views import rfc3339
from meshd.trust.grammar import is_name, is_tag
from meshd.trust.invite import USES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshd.codec import IPNetwork
    from meshd.control.routes import Document, Json, Request, Routes
    from meshd.keys import InviteId

InviteStateName: TypeAlias = Literal["open", "used", "withdrawn", "expired", "void", "unknown"]


@dataclass(frozen=True, slots=True)
class InviteSnapshot:
    """An invite that this node has issued.  It does not hold the token."""

    id: InviteId
    issued_at: float
    expires_at: float
    uses: int = 1  # 0 = without limit
    uses_left: int | None = 1  # None = without limit
    state: InviteStateName = "open"
    withdrawn_at: float | None = None
    admit: bool = False
    name: str | None = None
    ipv4: IPv4Address | None = None
    tags: tuple[str, ...] = ()
    routes: tuple[IPNetwork, ...] = ()
    used_by: tuple[str, ...] = ()  # names of those who came in by it


@dataclass(frozen=True, slots=True)
class OtherInviteSnapshot:
    """What is known of an invite by its uses alone."""

    id: InviteId
    uses: int | None  # None = without limit, or not known
    uses_left: int | None
    state: InviteStateName
    withdrawn_at: float | None
    used_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InviteRequest:
    """What `meshctl invite` asks for."""

    lifetime: float
    uses: int = 1  # 0 = without limit
    admit: bool = False
    name: str | None = None
    ipv4: IPv4Address | None = None
    tags: tuple[str, ...] = ()
    routes: tuple[IPNetwork, ...] = ()
    credential_lifetime: float = CREDENTIAL_LIFETIME_DEFAULT  # 0 = as long as its issuer's


@dataclass(frozen=True, slots=True)
class NewInvite:
    """A fresh invite with its token: the one moment in which the token leaves the daemon."""

    invite: InviteSnapshot
    token: str = field(repr=False)


class InviteController(Protocol):
    """The daemon, as requests about invites see it."""

    async def invite(self, request: InviteRequest) -> NewInvite:
        """Issue an invite.  It is on disk before its token is returned."""

    def invites(self) -> Sequence[InviteSnapshot]:
        """Return the invites this node has issued."""

    def other_invites(self) -> Sequence[OtherInviteSnapshot]:
        """Return what is known of other members' invites."""

    async def withdraw_invite(self, text: str) -> OtherInviteSnapshot:
        """Take back the invite whose id, or whose only beginning of an id, this is."""


def invite_routes(controller: InviteController) -> Routes:
    """Return the handlers."""

    async def invite(request: Request) -> Document:
        return invite_document(await controller.invite(read_invite_request(request)))

    async def show(request: Request) -> Document:
        Fields(request.query).done()
        return invites_document(controller.invites(), controller.other_invites())

    async def withdraw(request: Request) -> Document:
        fields = Fields(request.body)
        text = fields.needed_text("id")
        fields.done()
        withdrawn = await controller.withdraw_invite(text)
        return {"schema": "meshd.invite-withdraw/1", **_other(withdrawn)}

    return {
        ("POST", "/v1/invites"): invite,
        ("GET", "/v1/invites"): show,
        ("POST", "/v1/invites/withdraw"): withdraw,
    }


def read_invite_request(request: Request) -> InviteRequest:
    """Return what is asked for.  Raise ApiError."""
    fields = Fields(request.body)
    lifetime = fields.number(
        "lifetime",
        minimum=INVITE_LIFETIME_MIN,
        maximum=INVITE_LIFETIME_MAX,
        default=INVITE_LIFETIME_DEFAULT,
    )
    uses = fields.whole("uses", minimum=0, maximum=USES_MAX, default=1)
    wanted = read_grants(fields, lifetime=lifetime, uses=uses)
    fields.done()
    if uses != 1 and wanted.name is not None:
        raise bad_request("a reusable invite cannot give all who use it the same name")
    if uses != 1 and wanted.ipv4 is not None:
        raise bad_request("a reusable invite cannot give all who use it the same address")
    return wanted


def read_grants(fields: Fields, *, lifetime: float, uses: int) -> InviteRequest:
    """Read what is to be granted, and leave other fields to the caller.  Raise ApiError."""
    address = fields.text("address")
    try:
        ipv4 = None if address is None else IPv4Address(address)
    except ValueError:
        raise bad_request(f"{address!r} is not an IPv4 address") from None
    wanted = InviteRequest(
        lifetime=lifetime,
        uses=uses,
        admit=fields.flag("admit"),
        name=fields.text("name"),
        ipv4=ipv4,
        tags=fields.texts("tags"),
        routes=fields.networks("routes"),
        credential_lifetime=fields.number(
            "credential_lifetime",
            minimum=0.0,
            maximum=CREDENTIAL_LIFETIME_MAX,
            default=CREDENTIAL_LIFETIME_DEFAULT,
        ),
    )
    if 0 < wanted.credential_lifetime < CREDENTIAL_LIFETIME_MIN:
        raise bad_request(
            f"a credential of {wanted.credential_lifetime:g} s would not live to be renewed: take "
            f"{CREDENTIAL_LIFETIME_MIN:g} s or more, or 0 for as long as this node's own"
        )
    if wanted.name is not None and not is_name(wanted.name):
        raise bad_request(f"{wanted.name!r} cannot be a name: take a-z, 0-9 and - only")
    for tag in wanted.tags:
        if not is_tag(tag):
            raise bad_request(f"{tag!r} cannot be a tag: take a-z, 0-9 and - only")
    return wanted


def invite_document(new: NewInvite) -> Document:
    """Return `meshd.invite/1`."""
    return {"schema": "meshd.invite/1", **_invite(new.invite), "token": new.token}


def invites_document(
    own: Iterable[InviteSnapshot], others: Iterable[OtherInviteSnapshot]
) -> Document:
    """Return `meshd.invites/1`."""
    in_order = sorted(own, key=lambda invite: (invite.issued_at, invite.id))
    known: list[Json] = [_other(invite) for invite in sorted(others, key=lambda other: other.id)]
    return {
        "schema": "meshd.invites/1",
        "invites": [_invite(invite) for invite in in_order],
        "others": known,
    }


def _invite(invite: InviteSnapshot) -> Document:
    return {
        "id": str(invite.id),
        "issued_at": rfc3339(invite.issued_at),
        "expires_at": rfc3339(invite.expires_at),
        "reusable": invite.uses != 1,
        "uses": invite.uses,
        "uses_left": invite.uses_left,
        "state": invite.state,
        "withdrawn_at": _at(invite.withdrawn_at),
        "admit": invite.admit,
        "name": invite.name,
        "ipv4": None if invite.ipv4 is None else str(invite.ipv4),
        "tags": list(invite.tags),
        "routes": [str(route) for route in invite.routes],
        "used_by": list(invite.used_by),
    }


def _other(invite: OtherInviteSnapshot) -> Document:
    return {
        "id": str(invite.id),
        "uses": invite.uses,
        "uses_left": invite.uses_left,
        "state": invite.state,
        "withdrawn_at": _at(invite.withdrawn_at),
        "used_by": list(invite.used_by),
    }


def _at(instant: float | None) -> str | None:
    return None if instant is None else rfc3339(instant)
