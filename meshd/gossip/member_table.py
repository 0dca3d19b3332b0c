"""All members by id, which of them are live or silent, and who follows whom.

Live are those shown alive or suspect, which can be told something; silent are those shown dead.

The ids of all members, our own included, form a circle.  Every node that knows the same members has
the same circle, so that all of them agree on who follows a member without a word about it.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

from meshd.gossip.claim import MemberState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.gossip.member import Member
    from meshd.keys import NodeId


LIVE = frozenset({MemberState.ALIVE, MemberState.SUSPECT})


class MemberTable:
    """The members other than `own`."""

    def __init__(self, own: NodeId) -> None:
        self._own = own
        self._members: dict[NodeId, Member] = {}
        self._circle: list[NodeId] = [own]
        self._live: dict[NodeId, None] = {}
        self.silent = 0
        self._live_nodes: tuple[NodeId, ...] | None = None

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def get(self, node: NodeId) -> Member | None:
        """Return a member."""
        return self._members.get(node)

    def add(self, member: Member) -> None:
        """Take in a member that is not there yet, and is shown dead."""
        self.silent += 1
        self._members[member.node] = member
        bisect.insort(self._circle, member.node)

    def remove(self, node: NodeId) -> None:
        """Drop a member that is there."""
        self.shown_changed(node, self._members[node].shown, MemberState.LEFT)
        del self._members[node]
        del self._circle[bisect.bisect_left(self._circle, node)]

    def shown_changed(self, node: NodeId, before: MemberState, after: MemberState) -> None:
        """Note that a member is shown otherwise."""
        self.silent += (after is MemberState.DEAD) - (before is MemberState.DEAD)
        if (before in LIVE) == (after in LIVE):
            return
        if after in LIVE:
            self._live[node] = None
        else:
            del self._live[node]
        self._live_nodes = None

    def is_live(self, node: NodeId) -> bool:
        """Return whether a member is shown alive or suspect."""
        return node in self._live

    @property
    def live(self) -> tuple[NodeId, ...]:
        """The live members, in the order in which they became so."""
        if self._live_nodes is None:
            self._live_nodes = tuple(self._live)
        return self._live_nodes

    def followers(self, node: NodeId, count: int) -> list[NodeId]:
        """Return the next live ones after a member on the circle, ourselves perhaps among them."""
        circle = self._circle
        found: list[NodeId] = []
        start = bisect.bisect_right(circle, node)
        for step in range(len(circle)):
            if len(found) == count:
                break
            other = circle[(start + step) % len(circle)]
            if other != node and (other == self._own or self.is_live(other)):
                found.append(other)
        return found
