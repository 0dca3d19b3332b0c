"""The line of roots and the bootstrap keys: in the store, and what is wrong with them.

What is adopted is on disk before it is acted on: `save_roots` is part of every change of identity.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meshd.control.snapshot import HealthFinding
from meshd.errors import BadPacket, StartError
from meshd.keys import BootstrapKey, MeshKey
from meshd.store import Meta, Secret
from meshd.trust.roots import Roots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.engine.engine import Engine
    from meshd.engine.identity import Identity
    from meshd.store import Store


def save_roots(store: Store, identity: Identity) -> None:
    """Keep what an identity says of roots and bootstrap keys.  Raise StoreError."""
    store.save_meta(Meta.ROOTS, identity.roots.encode())
    store.save_secret(Secret.BOOTSTRAP_KEY, bytes(identity.bootstrap_key))
    if identity.older_bootstrap_key is not None:
        store.save_secret(Secret.OLDER_BOOTSTRAP_KEY, bytes(identity.older_bootstrap_key))


def load_roots(store: Store, identity: Identity) -> Identity:
    """Return an identity with what the store says of roots and the older bootstrap key."""
    stored = store.load_meta(Meta.ROOTS)
    older = store.load_secret(Secret.OLDER_BOOTSTRAP_KEY)
    if older is not None:
        identity = replace(identity, older_bootstrap_key=BootstrapKey(older))
    if stored is None:
        return identity
    try:
        return replace(identity, pinned=Roots.decode_untrusted(stored, identity.mesh))
    except BadPacket as exc:
        raise StartError(
            f"{store.path}: holds roots of the mesh that make no sense ({exc.reason}); move it "
            "away and join again with a token: node.key, the identity, stays"
        ) from exc


def held_mesh_key(store: Store, identity: Identity) -> MeshKey | None:
    """Return the mesh key if this node holds it, and it has not been replaced."""
    seed = store.load_secret(Secret.MESH_KEY)
    key = None if seed is None else MeshKey(seed)
    return key if key is not None and key.id == identity.roots.newest else None


def root_findings(engine: Engine) -> Iterator[HealthFinding]:
    """Say what is wrong with this node's place under the mesh's root."""
    following, ledger = engine.following, engine.ledger
    if following.left_behind:
        yield HealthFinding(
            "error",
            "left-behind",
            "the mesh has another key since, made by a member that did not know this node: start "
            "it once with --token-file and a token from `meshctl invite`; it stays the same node",
        )
    if ledger.rival is not None:
        yield HealthFinding(
            "error",
            "rival-succession",
            f"refused to follow another root of the mesh ({ledger.rival.successor.short}), "
            f"{ledger.rivals} times: somebody uses its former secret or key, or it was sealed "
            "twice; members that follow that root rejoin with a token from this side",
        )
    if engine.epochs.lacking is not None:
        yield HealthFinding(
            "warning",
            "bootstrap-key",
            "lacks the mesh's present bootstrap key, which no member in reach has; until then "
            "whoever joins needs another member as seed",
        )
