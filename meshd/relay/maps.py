"""What a relay forwards at present: made from its allocations, obeyed by nft and the forwarder.

           a's port p                       b's port q
    a ───▶ arrives_at: r:p │ leaves_from: r:q ───▶ b         a flow
    a ◀─── r:p             │            r:q   ◀─── b         the one back

Rule 1: there are flows only between two addresses that are both bound, so a pair of which one
        side has not said hello yet has none.

Rule 2: a flow is told by where a datagram comes from and where to: all else is dropped.  Hellos
        are no part of it: they are told by their type, before any flow is looked for.

Rule 3: while what was sent before a binding moved may be on its way, the address before has a flow
        too; it has none back.

Rule 4: the two sides may be of different IP versions, or one of them this very host.  What the
        kernel can forward of it is for the shell to say; the flow is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.relay.allocations import Allocation
    from meshd.wg.types import Endpoint


@dataclass(frozen=True, slots=True)
class Flow:
    """What comes from `source` to `arrives_at` leaves from `leaves_from` to `target`."""

    source: Endpoint
    arrives_at: Endpoint
    leaves_from: Endpoint
    target: Endpoint
    # Sets of thousands are made anew with each change, mostly of the same flows.
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compute the hash once."""
        parts = (self.source, self.arrives_at, self.leaves_from, self.target)
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class RelayMaps:
    """All flows; of two flows never both source and arrives_at are the same."""

    flows: frozenset[Flow] = frozenset()


def make_maps(allocations: Iterable[Allocation]) -> RelayMaps:
    """Return what is to be forwarded for these allocations."""
    return RelayMaps(frozenset(flow for each in allocations for flow in each.flows))
