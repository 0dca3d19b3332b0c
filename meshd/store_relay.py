"""What this node relays as a table: two rows a pair, one for each of its ports.

| port    | member, other  | asked_until           | address, address_port, local               |
| ------- | -------------- | --------------------- | ------------------------------------------ |
| its own | 32 bytes each  | Unix time; 0: has not | where the member is, and where we heard it |

The last three are NULL until it has said hello.  A pair of which a row is missing is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.codec import address_untrusted, pack_address
from meshd.keys import NodeId
from meshd.relay.allocations import Binding, Pair, StoredAllocation, StoredSide
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping


def write(
    database: sqlite3.Connection, allocations: Mapping[Pair, StoredAllocation | None]
) -> None:
    """Keep allocations in place of those of the same pairs, inside the caller's transaction."""
    database.executemany(
        "DELETE FROM relay_ports WHERE member IN (?1, ?2) AND other IN (?1, ?2)",
        [(bytes(pair.lower), bytes(pair.higher)) for pair in allocations],
    )
    database.executemany(
        # Of two pairs that had a port one after the other, the later one is written last.
        "INSERT OR REPLACE INTO relay_ports VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (side.port, bytes(member), bytes(other), side.asked_until, *_columns(side.binding))
            for allocation in allocations.values()
            if allocation is not None
            for side, member, other in zip(
                allocation.sides, allocation.pair, reversed(allocation.pair), strict=True
            )
        ],
    )


def read(database: sqlite3.Connection) -> list[StoredAllocation]:
    """Return all allocations.  Raise ValueError, TypeError or BadPacket for what is none."""
    sides: dict[tuple[NodeId, NodeId], StoredSide] = {}
    for port, member, other, asked_until, *binding in database.execute(
        "SELECT port, member, other, asked_until, address, address_port, local FROM relay_ports "
        "ORDER BY port"
    ):
        side = StoredSide(port, asked_until, _binding(*binding))
        sides[NodeId(member), NodeId(other)] = side
    return [
        StoredAllocation(Pair(member, other), (side, sides[other, member]))
        for (member, other), side in sides.items()
        if member < other and (other, member) in sides
    ]


def _columns(binding: Binding | None) -> tuple[bytes, int, bytes] | tuple[None, None, None]:
    if binding is None:
        return None, None, None
    address, port = binding.endpoint
    return pack_address(address), port, pack_address(binding.local)


def _binding(address: object, port: object, local: object) -> Binding | None:
    if address is None:
        return None
    if not isinstance(port, int):
        raise TypeError(port)
    return Binding(Endpoint(address_untrusted(address), port), address_untrusted(local))
