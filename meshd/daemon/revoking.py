"""`meshctl revoke`: who is meant, whether that may be, and doing it."""

from __future__ import annotations

import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from meshd.control.api import not_allowed
from meshd.control.revoking import RevokeAnswer, find_exactly
from meshd.control.routes import ApiError
from meshd.daemon.roots import held_mesh_key
from meshd.trust.granting import utc

if TYPE_CHECKING:
    from meshd.control.revoking import RevokeRequest
    from meshd.daemon.daemon import Daemon
    from meshd.engine.engine import Engine
    from meshd.engine.revoking import Draft
    from meshd.keys import MeshKey, NodeId


async def revoke(daemon: Daemon, request: RevokeRequest) -> RevokeAnswer:
    """Throw a member out, or say what that would come to.  Raise ApiError or StoreError."""
    mesh_key = held_mesh_key(daemon.store, daemon.engine.identity)
    draft = _draft(daemon.engine, request, mesh_key, time.time())
    # Before it is carried out, which takes away what is shown.
    answer = _answer(daemon.engine, draft, done=request.sure)
    if not request.sure:
        return answer
    if await daemon.driver.submit(partial(daemon.engine.revoke, draft)) is None:
        raise _conflict("full", "this mesh holds as many revocations as members may sign")
    # It has been written, unless the disk refused; then this says so.
    daemon.store.flush(durable=True)
    return answer


def _draft(engine: Engine, request: RevokeRequest, mesh_key: MeshKey | None, wall: float) -> Draft:
    me = engine.identity.node
    members: dict[NodeId, str] = {me: engine.name_of(me)}
    gone: dict[NodeId, str] = {}
    for node, standing in engine.ledger.members().items():
        (members if standing.admitted else gone)[node] = engine.called(node)
    subject = find_exactly(members, gone, request.name)
    if subject == me:
        raise _conflict(
            "own-name", f"{request.name!r} is this node itself: end it with `meshctl leave`"
        )
    if engine.identity.open_mesh:
        raise _conflict(
            "open-mesh",
            "whoever knows the secret of this mesh can sign as the mesh, so nobody can be thrown "
            "out of it: run `meshctl seal` while all in it are trusted, and revoke after that",
        )
    draft = engine.revoking.draft(subject, cascade=request.cascade, mesh_key=mesh_key, wall=wall)
    if draft is None:
        able = [engine.name_of(n) for n, standing in engine.others() if standing.may_admit(wall)]
        raise not_allowed(f"this node may not revoke; ask one of: {', '.join(able) or 'nobody'}")
    if not draft.changes:
        held = engine.ledger.revocation(subject)
        when = "" if held is None else f" since {utc(held.revoked_at)}"
        raise _conflict("already-revoked", f"{engine.called(subject)} is revoked already{when}")
    if me in draft.falls:
        raise _conflict(
            "own-chain",
            f"this node was let in through {engine.called(subject)} and would be out as well: "
            "revoke without --cascade, or on a member that was let in by others",
        )
    return draft


def _answer(engine: Engine, draft: Draft, *, done: bool) -> RevokeAnswer:
    subject = draft.revocation.subject
    ipv4 = engine.presence.addresses.get(subject)
    view = engine.gossip.member(subject)
    return RevokeAnswer(
        done=done,
        id=subject,
        name=engine.called(subject),
        ipv4=None if ipv4 is None else str(ipv4),
        ipv6=str(engine.ipv6_of(subject)),
        state=None if view is None else view.state.name.lower(),
        cascade=draft.revocation.cascade,
        signer=engine.revoking.signer(draft.revocation),
        revoked_at=draft.revocation.revoked_at,
        falls=tuple((n, engine.called(n)) for n in draft.falls if n != subject),
        stays=tuple((n, engine.called(n)) for n in draft.stays),
    )


def _conflict(code: str, message: str) -> ApiError:
    return ApiError(HTTPStatus.CONFLICT, code, message)
