"""What may be shown of a node's keys, and what can be asked for.

| request                | answer                                                           |
| ---------------------- | ---------------------------------------------------------------- |
| `GET /v1/keys`         | `meshd.keys/1`                                                   |
| `POST /v1/keys/rotate` | `meshd.keys/1`, as soon as it has begun; `rotating` until it ends |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.control.views import rfc3339

if TYPE_CHECKING:
    from meshd.control.routes import Document
    from meshd.keys import MeshId, NodeId, WireGuardKey


@dataclass(frozen=True, slots=True)
class KeysSnapshot:
    """Public halves, and how old they are."""

    node: NodeId
    mesh: MeshId
    root: MeshId  # which key the credentials of new members start from
    public_key: WireGuardKey
    made_at: float
    age: float
    next_public_key: WireGuardKey | None  # announced, and not in use yet
    due_at: float | None  # None: never by age
    rotating: bool
    bootstrap_epoch: int  # 0: the key the mesh began with
    bootstrap_key_held: bool  # whether this node has the key of that epoch
    holds_mesh_key: bool = False


def keys_document(keys: KeysSnapshot) -> Document:
    """Return `meshd.keys/1`."""
    return {
        "schema": "meshd.keys/1",
        "node": str(keys.node),
        "mesh": str(keys.mesh),
        "root": str(keys.root),
        "holds_mesh_key": keys.holds_mesh_key,
        "wireguard": {
            "public_key": str(keys.public_key),
            "made_at": rfc3339(keys.made_at),
            "age_s": round(keys.age),
            "next_public_key": None if keys.next_public_key is None else str(keys.next_public_key),
            "rotates_at": None if keys.due_at is None else rfc3339(keys.due_at),
            "rotating": keys.rotating,
        },
        "bootstrap": {"epoch": keys.bootstrap_epoch, "held": keys.bootstrap_key_held},
    }
