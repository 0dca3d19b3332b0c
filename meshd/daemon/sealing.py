"""`meshctl seal`, and new mesh and bootstrap keys: what may be done, keys, disk, engine.

Rule 1: in one step of the engine, and so all of one mind: drafted, put on disk in one transaction,
        published.  What cannot be written is not done.

Rule 2: the secret is asked for where this start of the daemon was not given it.  What it comes to
        is never kept.
"""

from __future__ import annotations

import base64
import binascii
import os
import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import trio

from meshd.control.api import not_allowed
from meshd.control.routes import ApiError, bad_request
from meshd.control.sealing import NewBootstrapAnswer, NewRootAnswer
from meshd.daemon import invites, startup
from meshd.daemon.roots import held_mesh_key
from meshd.engine.sealing import draft_bootstrap, draft_rotation, draft_seal
from meshd.errors import MeshdError, UsageError
from meshd.gossip.claim import MemberState
from meshd.keys import KEY_BYTES, BootstrapKey, MeshKey
from meshd.store import Secret
from meshd.trust.epoch import NUMBER_BY_MEMBERS_MAX
from meshd.trust.secret import derive

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.daemon.daemon import Daemon
    from meshd.engine.sealing import Draft
    from meshd.keys import MeshId, NodeId


async def seal(daemon: Daemon, secret: str | None, *, sure: bool) -> NewRootAnswer:
    """Move an open mesh to a fresh mesh key and bootstrap key.  Raise ApiError or StoreError."""
    engine = daemon.engine
    if not daemon.is_member or not engine.identity.chain:
        raise _conflict("not-in", "this node is in no mesh yet: see `meshctl status`")
    if not engine.identity.open_mesh:
        raise _conflict(
            "not-open",
            "no secret admits anybody to this mesh: it was founded without one, or is sealed",
        )
    given = daemon.config.secret if secret is None else secret.encode()
    if given is None:
        raise bad_request(
            "the daemon was started without the secret, which signs the seal: give it with "
            "`meshctl seal --secret-file FILE`"
        )
    try:
        old_key, _ = await trio.to_thread.run_sync(derive, given)
    except UsageError as error:
        raise bad_request(str(error)) from error
    if old_key.id != engine.ledger.roots.newest:
        raise _conflict("wrong-secret", "that is not the secret of this mesh")
    if not sure:
        return NewRootAnswer(done=False, root=None, members=_members(daemon))
    keys = MeshKey(os.urandom(KEY_BYTES)), BootstrapKey(os.urandom(KEY_BYTES))
    draft = await _publish(daemon, lambda wall: draft_seal(engine, old_key, *keys, wall))
    return _answer(daemon, draft)


async def rotate_mesh_key(
    daemon: Daemon, overlap: int, given: str | None, *, sure: bool
) -> NewRootAnswer:
    """Replace the mesh key: that on this disk, or the one given.  Raise ApiError or StoreError."""
    engine = daemon.engine
    if given is None:
        old_key = _held(daemon)
    else:
        old_key = _parsed(given)
        if old_key.id != engine.ledger.roots.newest:
            raise _conflict("wrong-key", "that is not the present key of this mesh")
    if not sure:
        until = time.time() + overlap
        return NewRootAnswer(done=False, root=None, members=_members(daemon), overlap_until=until)
    new_key = MeshKey(os.urandom(KEY_BYTES))
    draft = await _publish(
        daemon, lambda wall: draft_rotation(engine, old_key, new_key, wall, overlap=overlap)
    )
    return _answer(daemon, draft)


def export_mesh_key(daemon: Daemon) -> tuple[MeshId, str]:
    """Return whose the mesh key on this disk is, and the key as text.  Raise ApiError."""
    key = _held(daemon)
    return key.id, base64.urlsafe_b64encode(key.seed).decode()


def forget_mesh_key(daemon: Daemon, root: str) -> None:
    """Delete the mesh key from this disk.  Raise ApiError or StoreError."""
    if str(_held(daemon).id) != root:
        raise _conflict("wrong-key", "the mesh has another key by now: nothing was deleted")
    daemon.store.delete_secret(Secret.MESH_KEY)


def _held(daemon: Daemon) -> MeshKey:
    key = held_mesh_key(daemon.store, daemon.engine.identity)
    if key is None:
        raise not_allowed(
            "this node does not hold the mesh key: run this on the one that has made or sealed "
            "the mesh, or with the file that the key was exported to"
        )
    return key


def _parsed(text: str) -> MeshKey:
    try:
        seed = base64.b64decode(text.strip(), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        seed = b""
    if len(seed) != KEY_BYTES:
        raise bad_request("that is no mesh key as `meshctl keys export-mesh` writes it")
    return MeshKey(seed)


async def rotate_bootstrap_key(daemon: Daemon, *, sure: bool) -> NewBootstrapAnswer:
    """Replace the bootstrap key, which makes all tokens void.  Raise ApiError or StoreError."""
    engine, wall = daemon.engine, time.time()
    mesh_key = held_mesh_key(daemon.store, engine.identity)
    if mesh_key is None and not engine.ledger.may_admit(engine.identity.node, wall):
        able = [engine.name_of(n) for n, standing in engine.others() if standing.may_admit(wall)]
        raise not_allowed(
            f"this node may not change the bootstrap key; ask one of: {', '.join(able) or 'nobody'}"
        )
    epoch = engine.ledger.epoch
    if mesh_key is None and epoch is not None and epoch.number >= NUMBER_BY_MEMBERS_MAX:
        raise not_allowed(
            f"{engine.called(epoch.maker)} has left no number for another change by a member: run "
            "this where the mesh key is, or replace that (meshctl keys rotate --mesh)"
        )
    # A maker that has no key to show is thrown out first; then nobody waits for it.
    lacking = engine.epochs.lacking is not None
    if epoch is not None and lacking and engine.ledger.admitted(epoch.maker):
        raise _conflict(
            "bootstrap-key-missing",
            "this node has not got the present bootstrap key yet: try again in a moment, or on "
            f"another member; if no member has it, revoke {engine.name_of(epoch.maker)} first",
        )
    states = {view.node: view.state for view in engine.gossip.members()}
    away = tuple(
        engine.name_of(node)
        for node, _ in engine.others()
        if states.get(node) is not MemberState.ALIVE
    )
    void = sum(invite.state == "open" for invite in invites.own(daemon))
    if sure:
        key = BootstrapKey(os.urandom(KEY_BYTES))
        await _publish(daemon, lambda at: draft_bootstrap(engine, key, at, mesh_key=mesh_key))
    return NewBootstrapAnswer(done=sure, invites=void, away=away)


async def _publish(daemon: Daemon, make: Callable[[float], Draft]) -> Draft:
    outcome = await daemon.driver.submit(partial(_publish_now, daemon, make))
    if isinstance(outcome, MeshdError):
        raise outcome
    daemon.store.flush(durable=True)
    return outcome


def _publish_now(
    daemon: Daemon, make: Callable[[float], Draft], now: float, wall: float
) -> Draft | MeshdError:
    """Do it, as one input of the engine's.  What may be refused is returned: the driver goes on."""
    try:
        draft = make(wall)
        with daemon.store.together():
            if draft.mesh_key is not None:
                daemon.store.save_secret(Secret.MESH_KEY, draft.mesh_key.seed)
            daemon.store.save_facts_with(draft.facts)
            startup.update(daemon.store, draft.identity)
    except MeshdError as error:
        return error
    daemon.engine.publish(draft, now, wall)
    return draft


def _answer(daemon: Daemon, draft: Draft) -> NewRootAnswer:
    step = draft.identity.roots.last_step
    assert step is not None
    return NewRootAnswer(
        done=True,
        root=step.successor,
        members=tuple(m for m in _members(daemon) if m[0] in draft.granted),
        overlap_until=step.overlap_until or None,
    )


def _members(daemon: Daemon) -> tuple[tuple[NodeId, str, str], ...]:
    engine = daemon.engine
    me = engine.identity.node
    found = [(me, engine.name_of(me), "alive")]
    for node, _ in engine.others():
        view = engine.gossip.member(node)
        state = MemberState.DEAD if view is None else view.state
        found.append((node, engine.name_of(node), state.name.lower()))
    return tuple(sorted(found, key=lambda member: member[1]))


def _conflict(code: str, message: str) -> ApiError:
    return ApiError(HTTPStatus.CONFLICT, code, message)
