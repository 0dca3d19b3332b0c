"""Which member is shown under which name.

Rule 1: a name belongs to the member that was admitted first, the lower node id among equals.

Rule 2: each other member of that name, in the same order, is shown as `name-2`, `name-3`, …: the
        first of these that nobody else is called or shown as.  Of a name so long that the number
        would not fit, the first 57 bytes are taken.

Both depend on signed facts alone, so a member has one name on every node.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from meshd.trust.grammar import NAME_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.keys import NodeId

_STEM_BYTES_MAX = NAME_BYTES_MAX - len("-65536")


class Named(NamedTuple):
    """What a member is called by its credential.  Sorted, the first is the one to keep a name."""

    admitted_at: int
    node: NodeId
    name: str


class Names:
    """The names of a set of members."""

    def __init__(self, members: Iterable[Named]) -> None:
        self.owners: dict[str, NodeId] = {}
        self.shown: dict[NodeId, str] = {}
        others: list[Named] = []
        for member in sorted(members):
            if member.name in self.owners:
                others.append(member)
            else:
                self.owners[member.name] = member.node
                self.shown[member.node] = member.name
        taken = set(self.owners)
        # One counter for each stem, so that many members of one name do not search it anew.
        counters: dict[str, itertools.count[int]] = {}
        for member in others:
            stem = member.name[:_STEM_BYTES_MAX].rstrip("-")
            counter = counters.setdefault(stem, itertools.count(2))
            shown = next(name for number in counter if (name := f"{stem}-{number}") not in taken)
            taken.add(shown)
            self.shown[member.node] = shown
