"""Who has a place in the table of records when there are more than it holds.

    best                                                                           worst
    ├── members, those for longest first ───────────────┼── no members any more ──────┤
                                                         ◀── the worst makes room for any better

Rule 1: those that are no members any more rank behind all that are, for whatever reason
        (`standing`).  What puts them out is kept, and for that their records are not needed.

Rule 2: of the others, whoever has been a member for longer ranks before (`line`, rule 4: nobody
        for longer than whoever let it in), the lower id among equals.

Rule 3: nobody's word brings in more than a share, one half of the places.  It is counted for all
        whom the chain of a record shows, but for the first, whom a root has let in: in a mesh that
        one member has begun all others are in on its word.  Of lines (`line`) those count that a
        root has written, or one that a root has let in; others could name whom they like, and so
        fill the shares of those.

Rule 4: what comes has a place if none of the numbers is exceeded, or if those that rank behind it
        can make room in each of those that are.  So the best always gets in, and ledgers that were
        offered the same records hold the same in the end, whatever the order, though one may have
        to be offered again what was refused before it was known to be better: gossip does that.

Rule 5: ranks follow from standings, of which one fact may change many.  They are only looked up
        anew (`outdate`) when somebody would have to make room, or would get no place.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, NamedTuple

from meshd.trust.line import line_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from meshd.keys import NodeId
    from meshd.trust.credential import Credential
    from meshd.trust.standing import Standing

SHARES = 2  # of so many one is the most that one member's word brings in


class Rank(NamedTuple):
    """Where a record ranks.  Lower is better."""

    out: bool
    admitted_at: int
    node: NodeId


Seat = tuple[Rank, tuple[bytes, ...]]  # of a record; and on whose share it counts


class Places:
    """See the module docstring."""

    def __init__(self, *, places_max: int, seats: Callable[[], Iterable[Seat]] = tuple) -> None:
        """`seats` gives the present ones of all that have a place, and may give others too."""
        self.places_max = places_max
        self._seats = seats
        self._outdated = False
        self._ranks: dict[NodeId, Rank] = {}
        self._sponsors: dict[NodeId, tuple[bytes, ...]] = {}
        self._all: list[Rank] = []  # sorted
        self._by_sponsor: dict[bytes, list[Rank]] = {}  # sorted

    def __contains__(self, node: NodeId) -> bool:
        return node in self._ranks

    def outdate(self) -> None:
        """Take that those with a place may rank otherwise by now."""
        self._outdated = True

    def rank_anew(self) -> None:
        """Rank all that have a place by what is known at present."""
        self.reset([seat for seat in self._seats() if seat[0].node in self])

    def reset(self, seats: Iterable[Seat]) -> None:
        """Begin anew with these, all of which have a place."""
        self._outdated = False
        self._ranks.clear()
        self._sponsors.clear()
        self._all.clear()
        self._by_sponsor.clear()
        for rank, sponsors in sorted(seats):
            self._ranks[rank.node] = rank
            self._sponsors[rank.node] = sponsors
            for ranks in self._lists(sponsors):
                ranks.append(rank)

    def put(self, rank: Rank, sponsors: tuple[bytes, ...]) -> None:
        """Give a place to a record, which has none, or has another one."""
        self.drop(rank.node)
        self._ranks[rank.node] = rank
        self._sponsors[rank.node] = sponsors
        for ranks in self._lists(sponsors):
            bisect.insort(ranks, rank)

    def drop(self, node: NodeId) -> None:
        """Take a record's place, if it has one."""
        rank = self._ranks.pop(node, None)
        if rank is None:
            return
        sponsors = self._sponsors.pop(node)
        for ranks in self._lists(sponsors):
            del ranks[bisect.bisect_left(ranks, rank)]
        for sponsor in sponsors:
            if not self._by_sponsor[sponsor]:
                del self._by_sponsor[sponsor]

    def room_for(self, rank: Rank, sponsors: tuple[bytes, ...]) -> tuple[NodeId, ...] | None:
        """Return who makes room for a record, for most nobody; None if it gets no place."""
        leaving = self._leaving_for(rank, sponsors)
        if leaving != () and self._outdated:
            self.rank_anew()
            leaving = self._leaving_for(rank, sponsors)
        return leaving

    def _leaving_for(self, rank: Rank, sponsors: tuple[bytes, ...]) -> tuple[NodeId, ...] | None:
        leave: dict[NodeId, None] = {}
        own = self._ranks.get(rank.node)
        held = self._sponsors.get(rank.node, ())
        for sponsor in (*sponsors, None):
            ranks = self._all if sponsor is None else self._by_sponsor.get(sponsor, [])
            most = self.places_max if sponsor is None else max(1, self.places_max // SHARES)
            counted = own is not None and (sponsor is None or sponsor in held)
            gone = sum(sponsor is None or sponsor in self._sponsors[node] for node in leave)
            excess = len(ranks) - counted - gone + 1 - most
            for worst in reversed(ranks):
                if excess <= 0:
                    break
                if worst.node == rank.node or worst.node in leave:
                    continue
                if worst < rank:
                    return None
                leave[worst.node] = None
                excess -= 1
        return tuple(leave)

    def _lists(self, sponsors: Iterable[bytes]) -> list[list[Rank]]:
        return [self._all, *(self._by_sponsor.setdefault(sponsor, []) for sponsor in sponsors)]


def seat_of(standing: Standing) -> Seat:
    """Return the rank of a record, and on whose share it counts."""
    rank = Rank(not standing.admitted, standing.admitted_at, standing.record.node)
    return rank, sponsors_of(standing.chain)


def sponsors_of(chain: Sequence[Credential]) -> tuple[bytes, ...]:
    """Return on whose share a record counts, given the chain that admits its node."""
    first = chain[0]
    shown = [*first.line, *(line_id(link.subject) for link in chain[:-1])]
    if not first.line and len(chain) > 1:
        shown += chain[1].line
    return tuple(dict.fromkeys(shown))[1:]
