"""This node's WireGuard keys: on disk, and as `meshctl keys` shows them."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import trio

from meshd.control.keys import KeysSnapshot
from meshd.daemon.roots import held_mesh_key
from meshd.engine.rotation import WireGuardKeys
from meshd.errors import StartError, StoreError
from meshd.keys import WireGuardKey, WireGuardPrivateKey
from meshd.store import Meta, Secret
from meshd.store_schema import damaged

if TYPE_CHECKING:
    from meshd.daemon.daemon import Daemon
    from meshd.store import Store

TIME_BYTES = 8


def load_keys(store: Store, wall: float) -> WireGuardKeys | None:
    """Return the keys that are on disk; None if there are none yet.

    Where the disk does not say how old the key is, its age is counted from here on.  Raise
    StartError or StoreError.
    """
    current = store.load_secret(Secret.WIREGUARD_KEY)
    if current is None:
        return None
    following = store.load_secret(Secret.NEXT_WIREGUARD_KEY)
    former = store.load_meta(Meta.FORMER_WIREGUARD_KEY)
    made_at = store.load_meta(Meta.WIREGUARD_KEY_MADE_AT)
    if made_at is None:
        made_at = _time(wall)
        store.save_meta(Meta.WIREGUARD_KEY_MADE_AT, made_at)
    try:
        return WireGuardKeys(
            current=WireGuardPrivateKey(current),
            made_at=int.from_bytes(made_at, "big"),
            next=None if following is None else WireGuardPrivateKey(following),
            former=None if former is None else WireGuardKey(former),
        )
    except ValueError as exc:
        raise damaged(store.path, "a WireGuard key in it makes no sense") from exc


def save_keys(store: Store, keys: WireGuardKeys) -> None:
    """Put keys on disk, all or none of it.  Raise StoreError."""
    with store.together():
        store.save_secret(Secret.WIREGUARD_KEY, bytes(keys.current))
        store.save_meta(Meta.WIREGUARD_KEY_MADE_AT, _time(keys.made_at))
        if keys.next is None:
            store.delete_secret(Secret.NEXT_WIREGUARD_KEY)
        else:
            store.save_secret(Secret.NEXT_WIREGUARD_KEY, bytes(keys.next))
        if keys.former is not None:
            store.save_meta(Meta.FORMER_WIREGUARD_KEY, bytes(keys.former))


def keep_keys(daemon: Daemon, keys: WireGuardKeys) -> None:
    """Put keys on disk, and tell the engine whether they are there."""
    try:
        save_keys(daemon.store, keys)
    except (StoreError, StartError):
        done = False
    else:
        done = True
    daemon.engine.keys_saved(keys, trio.current_time(), time.time(), done=done)


def keys_snapshot(daemon: Daemon) -> KeysSnapshot:
    """Return what may be shown of this node's keys."""
    engine = daemon.engine
    rotation = engine.rotation
    due_at, epoch = rotation.due_at, engine.ledger.epoch
    return KeysSnapshot(
        node=engine.identity.node,
        mesh=engine.identity.mesh,
        root=engine.ledger.roots.newest,
        public_key=engine.identity.wireguard_key.public,
        made_at=rotation.keys.made_at,
        age=max(0.0, time.time() - rotation.keys.made_at),
        next_public_key=rotation.public_keys[1],
        due_at=None if math.isinf(due_at) else due_at,
        rotating=rotation.busy,
        bootstrap_epoch=0 if epoch is None else epoch.number,
        bootstrap_key_held=engine.epochs.lacking is None,
        holds_mesh_key=held_mesh_key(daemon.store, engine.identity) is not None,
    )


def _time(at: float) -> bytes:
    return int(at).to_bytes(TIME_BYTES, "big")
