"""Pre-shared keys as a table: at most two rows a pair, the newest in place 0.

| node     | place | key      | agreed_at | used_since                  |
| -------- | ----- | -------- | --------- | --------------------------- |
| 32 bytes | 0, 1  | 32 bytes | Unix time | Unix time; NULL: not in use |

They are secrets like all else in the database, which none but its owner can read.  A row that has
changed is no harm: its key is one that the other end does not hold, and a new one is agreed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.keys import NodeId, PresharedKey
from meshd.preshared.keys import HELD_MAX, Keyring, SharedKey

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping


def write(
    database: sqlite3.Connection,
    rings: Mapping[NodeId, Keyring],
    lock: Callable[[bytes], bytes],
) -> None:
    """Keep keys in place of those of the same pairs, inside the caller's transaction."""
    database.executemany(
        "DELETE FROM preshared_keys WHERE node = ?", [(bytes(node),) for node in rings]
    )
    database.executemany(
        "INSERT INTO preshared_keys VALUES (?, ?, ?, ?, ?)",
        [
            (
                bytes(node),
                place,
                lock(bytes(key.key)),
                key.agreed_at,
                ring.used_since if key == ring.used else None,
            )
            for node, ring in rings.items()
            for place, key in enumerate(ring.held)
        ],
    )


def read(database: sqlite3.Connection, unlock: Callable[[bytes], bytes]) -> dict[NodeId, Keyring]:
    """Return the keys of all pairs.  Raise ValueError, or BadPacket, for what is none."""
    rings: dict[NodeId, Keyring] = {}
    for node, key, agreed_at, used_since in database.execute(
        "SELECT node, key, agreed_at, used_since FROM preshared_keys WHERE place < ? "
        "ORDER BY node, place",
        (HELD_MAX,),
    ):
        shared = SharedKey(PresharedKey(unlock(key)), agreed_at)
        ring = rings.get(NodeId(node), Keyring())
        rings[NodeId(node)] = Keyring(
            held=(*ring.held, shared),
            used=ring.used if used_since is None else shared,
            used_since=ring.used_since if used_since is None else used_since,
        )
    return rings
