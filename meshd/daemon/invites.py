"""Invites of this daemon: issued, listed, taken back.  What is issued is on disk before its token.

An invite that this node has issued is kept for KEPT_FOR, twice as long as any can be used, so that
one can look up who came in by it.  Of the others' only what is on record is known: uses and
withdrawals.
"""

from __future__ import annotations

import os
import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from meshd.control.api import not_allowed
from meshd.control.invites import InviteSnapshot, OtherInviteSnapshot
from meshd.control.routes import ApiError, bad_request
from meshd.control.snapshot import HealthFinding
from meshd.daemon.audit import invite_details
from meshd.daemon.doors import token_seeds
from meshd.errors import UsageError
from meshd.keys import KEY_BYTES, InviteId, InviteKey
from meshd.plan.claims import usable
from meshd.store import StoredInvite
from meshd.trust.credential import excess
from meshd.trust.invite import Invite, Token, open_invite_untrusted, sign_invite

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Address

    from meshd.control.invites import InviteRequest, InviteStateName
    from meshd.daemon.daemon import Daemon
    from meshd.engine.engine import Engine
    from meshd.trust.invite_use import InviteState

KEPT_FOR = 60 * 86400
KEPT_MAX = 4096  # all of them are opened, and so verified, for each list
ID_PREFIX_MIN = 4


def issue(daemon: Daemon, request: InviteRequest) -> tuple[InviteSnapshot, Token]:
    """Make an invite, keep it, and return it with its token.  Raise ApiError."""
    engine, wall = daemon.engine, time.time()
    identity = engine.identity
    require_right(daemon)
    credential = engine.own_credential
    assert credential is not None
    key = InviteKey(os.urandom(KEY_BYTES))
    invite = Invite(
        id=key.id,
        issuer=identity.node,
        expires_at=int(wall + request.lifetime),
        uses=request.uses,
        name=request.name or "",
        tags=request.tags,
        ipv4=request.ipv4,
        routes=request.routes,
        admit=request.admit,
        relay=credential.relay,
        lifetime=int(request.credential_lifetime),
    )
    too_much = excess(credential, invite)
    if too_much is not None:
        raise not_allowed(f"this node may not grant that: {too_much}")
    if request.ipv4 is not None:
        _check_pin(engine, request.ipv4)
    try:
        blob = sign_invite(invite, identity.node_key, identity.mesh)
    except UsageError as error:
        raise bad_request(str(error)) from error
    _make_room(daemon, wall)
    stored = StoredInvite(invite.id, int(wall), blob)
    daemon.store.save_invite(stored)
    daemon.audit.note(
        "invite-issued", subject=invite.id, signer=identity.node, details=invite_details(invite)
    )
    token = Token(
        mesh=identity.mesh,
        bootstrap_key=identity.bootstrap_key,
        seeds=token_seeds(daemon),
        invite_key=key,
        invite=blob,
        ipv4_prefix=identity.ipv4_prefix,
        open_mesh=identity.open_mesh,
        root=identity.roots.newest if identity.roots.number else None,
        root_number=identity.roots.number,
    )
    return _snapshot(engine, invite, stored.issued_at, wall), token


def require_right(daemon: Daemon) -> None:
    """Raise ApiError if this node may not let anybody in."""
    engine, wall = daemon.engine, time.time()
    if not engine.ledger.may_admit(engine.identity.node, wall):
        able = [engine.name_of(n) for n, standing in engine.others() if standing.may_admit(wall)]
        raise not_allowed(f"this node may not invite; ask one of: {', '.join(able) or 'nobody'}")


def own(daemon: Daemon) -> list[InviteSnapshot]:
    """Return the invites this node has issued, those among them that are over for a while yet."""
    wall = time.time()
    return [
        _snapshot(daemon.engine, invite, issued_at, wall) for invite, issued_at in _issued(daemon)
    ]


def others(daemon: Daemon) -> list[OtherInviteSnapshot]:
    """Return what is known of other members' invites: they were used, or withdrawn."""
    engine = daemon.engine
    mine = {invite.id for invite, _ in _issued(daemon)}
    return [
        _other_snapshot(engine, invite) for invite in engine.ledger.invites() if invite not in mine
    ]


async def withdraw(daemon: Daemon, text: str) -> OtherInviteSnapshot:
    """Take back the one invite that is meant.  Raise ApiError."""
    require_right(daemon)
    engine, wall = daemon.engine, time.time()
    issued = {invite.id: invite for invite, _ in _issued(daemon)}
    invite = find_invite((*issued, *engine.ledger.invites()), text)
    state = engine.ledger.invite(invite)
    _check_open(engine, invite, state, issued.get(invite), wall)
    uses = issued[invite].uses if invite in issued else (state.limit or 0)
    await daemon.driver.submit(partial(engine.invites.withdraw, invite, uses))
    return _other_snapshot(engine, invite)


def find_invite(known: Iterable[InviteId], text: str) -> InviteId:
    """Return the invite whose id, or whose only beginning of an id, a text is.  Raise ApiError.

    A whole id needs not be known: other members' invites show only once they are used.
    """
    wanted = text.lower()
    ids = {str(invite): invite for invite in known}
    if wanted in ids:
        return ids[wanted]
    found = [id_ for id_ in ids if len(wanted) >= ID_PREFIX_MIN and id_.startswith(wanted)]
    if len(found) == 1:
        return ids[found[0]]
    if found:
        shown = ", ".join(id_[: len(wanted) + 4] for id_ in sorted(found)[:5])
        raise ApiError(
            HTTPStatus.CONFLICT, "ambiguous-invite", f"{text!r} may mean {shown}: type more of it"
        )
    try:
        return InviteId.parse(wanted)
    except ValueError:
        raise ApiError(
            HTTPStatus.NOT_FOUND,
            "unknown-invite",
            f"no invite is known by {text!r}; `meshctl invites` shows them",
        ) from None


def findings(engine: Engine) -> Iterator[HealthFinding]:
    """Say who is out because an invite was used twice; or that this node is."""
    me = engine.identity.node
    if lost := engine.invites.own_loss(engine.ledger.standing(me)):
        yield HealthFinding("error", "invite-lost", lost)
    losers = [standing.credential.name for _, standing in engine.invites.losers()]
    if losers:
        shown = ", ".join(losers[:5]) + (f" and {len(losers) - 5} more" if losers[5:] else "")
        yield HealthFinding(
            "warning",
            "invite-lost-by",
            f"{shown}: out, for the token had been used before, or withdrawn; start it with a new "
            "token to have it back, or `meshctl forget` it (see `meshctl events`)",
        )


def _issued(daemon: Daemon) -> list[tuple[Invite, int]]:
    mesh = daemon.engine.identity.mesh
    return [
        (open_invite_untrusted(stored.blob, mesh), stored.issued_at)
        for stored in daemon.store.load_invites()
    ]


def _make_room(daemon: Daemon, wall: float) -> None:
    kept = 0
    for stored in daemon.store.load_invites():
        if stored.issued_at + KEPT_FOR < wall:
            daemon.store.delete_invite(stored.id)
        else:
            kept += 1
    if kept >= KEPT_MAX:
        raise ApiError(
            HTTPStatus.CONFLICT,
            "too-many-invites",
            f"this node has issued {kept} invites in {KEPT_FOR // 86400} days, and keeps account "
            "of them all: make one for many machines with --reusable, or use another member",
        )


def _check_pin(engine: Engine, ipv4: IPv4Address) -> None:
    prefix = engine.identity.ipv4_prefix
    if not usable(ipv4, prefix):
        raise bad_request(f"{ipv4} cannot be an address in this mesh, whose network is {prefix}")
    for node, standing in engine.ledger.members().items():
        if standing.admitted and standing.pinned and standing.ipv4 == ipv4:
            raise bad_request(f"{ipv4} is pinned to {engine.name_of(node)} already")


def _check_open(
    engine: Engine, invite: InviteId, state: InviteState, issued: Invite | None, wall: float
) -> None:
    """Raise ApiError if an invite admits nobody anyway, and say so."""
    how = state_name(state, issued, wall)
    if how == "withdrawn":
        over = "is withdrawn already"
    elif how == "used":
        names = ", ".join(_users(engine, invite))
        over = f"is used up, by {names}; to throw a member out: `meshctl revoke NAME`"
    elif how == "expired":
        over = "has expired, and admits nobody any more"
    else:
        return
    raise ApiError(HTTPStatus.CONFLICT, f"invite-{how}", f"invite {invite.short} {over}")


def state_name(
    state: InviteState, issued: Invite | None, wall: float, *, void: bool = False
) -> InviteStateName:
    """Return in a word what may be done with an invite; of others' the end is not known."""
    if state.withdrawn_at is not None:
        return "withdrawn"
    if state.spent:
        return "used"
    if issued is None:
        return "unknown"
    if wall > issued.expires_at:
        return "expired"
    return "void" if void else "open"


def _snapshot(engine: Engine, invite: Invite, issued_at: float, wall: float) -> InviteSnapshot:
    state = engine.ledger.invite(invite.id)
    how = state_name(state, invite, wall, void=_is_void(engine, invite, issued_at))
    return InviteSnapshot(
        id=invite.id,
        issued_at=issued_at,
        expires_at=invite.expires_at,
        uses=invite.uses,
        uses_left=_uses_left(invite.uses, len(state.winners)) if how == "open" else 0,
        state=how,
        withdrawn_at=state.withdrawn_at,
        admit=invite.admit,
        name=invite.name or None,
        ipv4=invite.ipv4,
        tags=invite.tags,
        routes=invite.routes,
        used_by=_users(engine, invite.id),
    )


def _other_snapshot(engine: Engine, invite: InviteId) -> OtherInviteSnapshot:
    state = engine.ledger.invite(invite)
    left = None if state.limit is None else _uses_left(state.limit, len(state.winners))
    return OtherInviteSnapshot(
        id=invite,
        uses=state.limit,
        uses_left=left if state.withdrawn_at is None else 0,
        state=state_name(state, None, 0.0),
        withdrawn_at=state.withdrawn_at,
        used_by=_users(engine, invite),
    )


def _is_void(engine: Engine, invite: Invite, issued_at: float) -> bool:
    """Whether the bootstrap key was replaced since, or our node key: then no member honours it."""
    epoch = engine.ledger.epoch
    return invite.issuer != engine.identity.node or (epoch is not None and issued_at < epoch.dated)


def _uses_left(uses: int, used: int) -> int | None:
    return None if uses == 0 else max(0, uses - used)


def _users(engine: Engine, invite: InviteId) -> tuple[str, ...]:
    """Name who came in by an invite.  One without limit leaves its name in credentials only."""
    winners = engine.ledger.invite(invite).winners
    holders = (n for n in engine.ledger.admitted_by(invite) if engine.ledger.admitted(n))
    return tuple(engine.name_of(node) for node in dict.fromkeys((*winners, *holders)))
