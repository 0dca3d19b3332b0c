"""`meshctl keys rotate --node`: what is asked first, and what is on disk when.

    NEXT_NODE_KEY on disk ─▶ engine: credential, announcement ─▶ one transaction ─▶ this run ends,
                                                               (`Store.succeed`)   the next begins

The interface stays as it is in between, as it does at any restart.  Whatever ends in between leaves
one of the two identities, whole:

| on disk when it ends                       | who starts next                                   |
| ------------------------------------------ | ------------------------------------------------- |
| nothing yet                                | the former node                                   |
| NEXT_NODE_KEY; announced perhaps           | the former node, which goes on with that key when |
|                                            | it is asked to again                              |
| the transaction: node id, chain, record;   | the new node: `Store.open` puts its key into      |
| but `node.key` is the former one           | `node.key` before anything else                   |
| `node.key` too, and NEXT_NODE_KEY still    | the new node: `Store.open` overwrites the copy    |
"""

from __future__ import annotations

import os
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from meshd.control.rekeying import NodeKeyAnswer
from meshd.control.routes import ApiError
from meshd.control.snapshot import HealthFinding
from meshd.daemon import invites, startup
from meshd.daemon.roots import held_mesh_key
from meshd.engine import events
from meshd.errors import StoreError
from meshd.keys import KEY_BYTES, NodeKey
from meshd.state_directory import KEY_CREDENTIAL
from meshd.store import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.daemon.daemon import Daemon
    from meshd.engine.engine import Engine

_GIVEN = (
    f"the node key was given by systemd as the credential {KEY_CREDENTIAL}, so it is not this "
    "program's to replace: revoke this node, give another credential and an empty state directory, "
    "and join with a token for its name (`meshctl invite --name NAME`)"
)


async def rotate_node_key(daemon: Daemon, *, sure: bool) -> NodeKeyAnswer:
    """Begin to replace the node key, or say what that comes to.  Raise ApiError or StoreError."""
    engine, store = daemon.engine, daemon.store
    if store.locks:
        raise _conflict("node-key-given", _GIVEN)
    if not daemon.is_member:
        raise _conflict("not-in", "this node has not been let in yet, so its key is new")
    if sure and engine.rekeying.phase is None:
        hindrance = engine.rekeying.hindrance()
        if hindrance is not None:
            raise _conflict("node-key-kept", hindrance)
        await daemon.driver.submit(
            partial(
                engine.rotate_node_key, _prepared(daemon), held_mesh_key(store, engine.identity)
            )
        )
    return answer(daemon)


def answer(daemon: Daemon) -> NodeKeyAnswer:
    """Return who this node is, and how far it is on its way to be another one."""
    engine = daemon.engine
    return NodeKeyAnswer(
        node=engine.identity.node,
        name=engine.name_of(engine.identity.node),
        ipv4=None if engine.presence.ipv4 is None else str(engine.presence.ipv4),
        ipv6=str(engine.identity.ipv6),
        phase=engine.rekeying.phase,
        trouble=engine.rekeying.trouble or engine.rekeying.hindrance() or "",
        invites=sum(invite.state == "open" for invite in invites.own(daemon)),
    )


def switch(daemon: Daemon, event: events.SwitchNode) -> None:
    """Make this the node of another id on disk, and begin anew."""
    engine, store, identity = daemon.engine, daemon.store, event.identity
    try:
        store.flush(durable=True)
        daemon.audit.note("node-key-rotated", subject=identity.node, signer=engine.identity.node)
        with store.together():
            store.succeed(identity.node)
            startup.update(store, identity)
            store.save_facts_with([event.record])
    except StoreError as error:
        engine.rekeying.failed(str(error))
        return
    daemon.tell(
        events.Notice(
            "node-key-rotated",
            f"goes on as {identity.node.short} at {identity.ipv6}; it was "
            f"{engine.identity.node.short} at {engine.identity.ipv6}",
            identity.node,
            engine.name_of(engine.identity.node),
            {"former": str(engine.identity.node), "node": str(identity.node)},
        )
    )
    daemon.go_on()


def findings(engine: Engine) -> Iterator[HealthFinding]:
    """Say that another machine goes on in this one's place."""
    if engine.rekeyed.successor is not None:
        yield HealthFinding("error", "succeeded", engine.rekeyed.text)


def _prepared(daemon: Daemon) -> NodeKey:
    """Return the key to go on with; one that an earlier attempt has left, if there is one."""
    seed = daemon.store.load_secret(Secret.NEXT_NODE_KEY)
    if seed is None:
        seed = os.urandom(KEY_BYTES)
        daemon.store.save_secret(Secret.NEXT_NODE_KEY, seed)
    return NodeKey(seed)


def _conflict(code: str, message: str) -> ApiError:
    return ApiError(HTTPStatus.CONFLICT, code, message)
