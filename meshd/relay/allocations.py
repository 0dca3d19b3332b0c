"""Which pair of members has which two ports of this relay, until when, and what is behind them.

    request ──▶ allotted ── both sides bound by hellos ──▶ forwarding
                   │                                          │
                   └──── released by all who asked, expired, ─┴──▶ gone: both are told
                         a member no more, port not to be had

| time      | what                                                                               |
| --------- | ---------------------------------------------------------------------------------- |
| 0         | a member of the pair asks: two ports, or the two that the pair has already          |
| 10 min    | without being asked again by who asked, the pair ends (`LIFETIME`)                   |
| a restart | pairs and bindings come back from disk, as the kernel still forwards them          |

Rule 1: a port belongs to one member of one pair.  Only that member's hellos bind an address to it,
        and only what comes from there is forwarded, to the address bound to the other's port.

Rule 2: asking again changes nothing but the time.  Either of the two may ask, and then both hold
        the pair: it lasts until everybody who has asked lets go of it.

Rule 3: bounded: two ports of the range a pair, `PAIRS_OF_ONE_MAX` pairs of one member, and a bucket
        of requests for each member.

Rule 4: ports that were let go of are allotted again last, so that what was still under way to the
        pair before finds nobody, and not somebody else.

Rule 5: an address that was bound until a moment ago is heard for `FORMER_LIFETIME` more, since a
        member that moves has datagrams on their way.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from meshd.bootstrap.limits import Buckets
from meshd.path.schedule import Schedule
from meshd.relay.maps import Flow
from meshd.relay.wire import LOAD_MAX, Reason
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from meshd.codec import IPAddress
    from meshd.keys import NodeId
    from meshd.values import PortRange

LIFETIME = 600.0  # seconds
FORMER_LIFETIME = 3.0
PAIRS_OF_ONE_MAX = 256
REQUESTS_PER_SECOND_MAX = 10
REQUESTS_BURST_MAX = 512  # all pairs of one member, and again
REQUESTERS_MAX = 4096


class Pair(NamedTuple):
    """Two members, the one with the lower id first."""

    lower: NodeId
    higher: NodeId


class Refusal(Exception):
    """A request cannot be met.  No state has changed."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class Binding(NamedTuple):
    """Where a member is: its address, and the one of ours that its hello came to."""

    endpoint: Endpoint
    local: IPAddress


@dataclass(frozen=True, slots=True)
class StoredSide:
    """What is kept of one side.  `asked_until` is Unix time; 0: it has not asked."""

    port: int
    asked_until: int
    binding: Binding | None


@dataclass(frozen=True, slots=True)
class StoredAllocation:
    """An allocation as it is on disk; the sides as in the pair."""

    pair: Pair
    sides: tuple[StoredSide, StoredSide]


@dataclass(frozen=True, slots=True)
class AllocationStatistics:
    """Counts since the start, but for the first four, which are of this moment."""

    pairs: int = 0
    pairs_max: int = 0
    bound: int = 0  # pairs that are forwarded
    draining: bool = False
    granted: int = 0
    refused: int = 0
    expired: int = 0
    datagrams: int = 0
    bytes: int = 0


@dataclass(slots=True, eq=False)
class Side:
    """One member's part of an allocation."""

    member: NodeId
    port: int
    asked_until: float = -math.inf
    binding: Binding | None = None
    former: Binding | None = None  # rule 5
    datagrams: int = 0  # that came in by this port and were forwarded
    bytes: int = 0


@dataclass(slots=True, eq=False)
class Allocation:
    """Two ports, and who has which."""

    pair: Pair
    sides: tuple[Side, Side]
    flows: tuple[Flow, ...] = field(default=())  # see `meshd.relay.maps`

    def side(self, member: NodeId) -> Side:
        """Return the side of one of the two."""
        return self.sides[0] if member == self.pair.lower else self.sides[1]

    def opposite(self, side: Side) -> Side:
        """Return the other side."""
        return self.sides[1] if side is self.sides[0] else self.sides[0]

    @property
    def expires_at(self) -> float:
        """When nobody who has asked has done so lately enough."""
        return max(side.asked_until for side in self.sides)

    @property
    def is_bound(self) -> bool:
        """Whether both members are known to be somewhere."""
        return all(side.binding is not None for side in self.sides)

    def update_flows(self) -> None:
        """Make the flows anew, after a binding has changed."""
        self.flows = tuple(self._flows())

    def _flows(self) -> Iterator[Flow]:
        for side in self.sides:
            opposite = self.opposite(side)
            ahead = opposite.binding
            if side.binding is None or ahead is None:
                continue
            for come in filter(None, (side.binding, side.former)):
                yield Flow(
                    source=come.endpoint,
                    arrives_at=Endpoint(come.local, side.port),
                    leaves_from=Endpoint(ahead.local, opposite.port),
                    target=ahead.endpoint,
                )


class Allocations:
    """See the module docstring."""

    def __init__(self, ports: PortRange) -> None:
        self._free = deque(range(ports.first, ports.last, 2))  # of two ports the lower
        self._pairs_max = len(self._free)
        self._allocations: dict[Pair, Allocation] = {}
        self._by_port: dict[int, Allocation] = {}
        self._of_member: Counter[NodeId] = Counter()
        self._due: Schedule[Pair] = Schedule()
        self._former_due: Schedule[int] = Schedule()
        self._requests: Buckets[NodeId] = Buckets(
            rate=REQUESTS_PER_SECOND_MAX, burst=REQUESTS_BURST_MAX, keys_max=REQUESTERS_MAX
        )
        self._counts: Counter[str] = Counter()
        self._bound = 0
        self._changed: dict[Pair, None] = {}  # since `take_changed`
        self.draining = False
        self.ports_revision = 0  # grows whenever other ports are allotted
        self.flows_revision = 0  # grows whenever something else is to be forwarded

    def __len__(self) -> int:
        return len(self._allocations)

    def __iter__(self) -> Iterator[Allocation]:
        return iter(self._allocations.values())

    # Changes

    def request(self, source: NodeId, other: NodeId, now: float, *, new: bool = True) -> Allocation:
        """Allot two ports to a pair, or hold on to those it has.  Raise Refusal.

        Both are members, other than this node, and the one is not the other.  `new`: whether pairs
        that have no ports are to get any.
        """
        assert source != other
        try:
            allocation = self._request(pair_of(source, other), source, now, new=new)
        except Refusal:
            self._counts["refused"] += 1
            raise
        allocation.side(source).asked_until = now + LIFETIME
        self._due.set(allocation.pair, allocation.expires_at)
        self._changed[allocation.pair] = None
        self._counts["granted"] += 1
        return allocation

    def release(self, source: NodeId, other: NodeId, now: float) -> Allocation | None:
        """Take that a member wants a pair no more.  Return it if that has ended it."""
        allocation = self._allocations.get(pair_of(source, other))
        if allocation is None:
            return None
        allocation.side(source).asked_until = -math.inf
        if allocation.expires_at <= now:
            return self._end(allocation)
        self._due.set(allocation.pair, allocation.expires_at)
        self._changed[allocation.pair] = None
        return None

    def remove_member(self, member: NodeId) -> list[Allocation]:
        """End all pairs of a node that is a member no more.  Return them."""
        return [self._end(each) for each in self.of_member(member)]

    def clear(self) -> list[Allocation]:
        """End all pairs.  Return them."""
        return [self._end(each) for each in list(self)]

    def exclude_port(self, port: int) -> Allocation | None:
        """Never allot a port: the host has it for something else.  Return the pair that ends."""
        allocation = self._by_port.get(port)
        if allocation is not None:
            self._end(allocation)
        for first in (port, port - 1):
            if first in self._free:
                self._free.remove(first)
        return allocation

    def bind(self, side: Side, binding: Binding, now: float) -> bool:
        """Take where a member has proven to be.  Return whether that is news."""
        if side.binding == binding:
            return False
        allocation = self._by_port[side.port]
        was_bound = allocation.is_bound
        side.former, side.binding = side.binding, binding
        if side.former is not None:
            self._former_due.set(side.port, now + FORMER_LIFETIME)
        self._bound += allocation.is_bound - was_bound
        self._changed[allocation.pair] = None
        self._reflow(allocation)
        return True

    def handle_timer(self, now: float) -> list[Allocation]:
        """Let go of what is over.  Return the pairs that have ended."""
        while (port := self._former_due.pop_due(now)) is not None:
            self._side_at(port).former = None
            self._reflow(self._by_port[port])
        ended = []
        while (pair := self._due.pop_due(now)) is not None:
            self._counts["expired"] += 1
            ended.append(self._end(self._allocations[pair]))
        return ended

    def count_traffic(self, port: int, datagrams: int, bytes_: int) -> None:
        """Take what was forwarded that came in by a port, since the last time."""
        self._counts["datagrams"] += datagrams
        self._counts["bytes"] += bytes_
        if port in self._by_port:
            side = self._side_at(port)
            side.datagrams += datagrams
            side.bytes += bytes_

    # Persistence

    def restore(
        self,
        stored: Iterable[StoredAllocation],
        is_member: Callable[[NodeId], bool],
        now: float,
        wall: float,
    ) -> list[Pair]:
        """Take up what an earlier run has left.  Return the pairs that are not taken up."""
        return [each.pair for each in stored if not self._adopt(each, is_member, now, wall)]

    def take_changed(self, now: float, wall: float) -> list[tuple[Pair, StoredAllocation | None]]:
        """Return what to keep of the pairs that have changed since; None: nothing, it has ended."""
        changed, self._changed = self._changed, {}
        return [(pair, self._stored(pair, now, wall)) for pair in changed]

    # Views

    def get(self, one: NodeId, other: NodeId) -> Allocation | None:
        """Return what a pair has."""
        return self._allocations.get(pair_of(one, other))

    def of_member(self, member: NodeId) -> list[Allocation]:
        """Return all pairs of a member."""
        if not self._of_member[member]:
            return []
        return [each for each in self if member in each.pair]

    def at_port(self, port: int) -> Side | None:
        """Return whose port it is; None if it is nobody's."""
        return self._side_at(port) if port in self._by_port else None

    @property
    def ports(self) -> frozenset[int]:
        """All ports that are allotted."""
        return frozenset(self._by_port)

    @property
    def load(self) -> int:
        """Per cent of all pairs that are allotted."""
        return round(LOAD_MAX * len(self) / self._pairs_max) if self._pairs_max else LOAD_MAX

    def soonest(self) -> float | None:
        """Return the soonest deadline."""
        return min((due[0] for due in self._soonest() if due is not None), default=None)

    def statistics(self) -> AllocationStatistics:
        """Return counts for people."""
        return AllocationStatistics(
            pairs=len(self),
            pairs_max=self._pairs_max,
            bound=self._bound,
            draining=self.draining,
            **self._counts,
        )

    # Inside

    def _soonest(self) -> tuple[tuple[float, Pair] | None, tuple[float, int] | None]:
        return self._due.soonest(), self._former_due.soonest()

    def _request(self, pair: Pair, source: NodeId, now: float, *, new: bool) -> Allocation:
        if not self._requests.take(source, now):
            raise Refusal(Reason.TOO_OFTEN)
        known = self._allocations.get(pair)
        if known is not None:
            return known
        if self.draining:
            raise Refusal(Reason.DRAINING)
        if not new:
            raise Refusal(Reason.NOT_RELAYING)
        if max(self._of_member[member] for member in pair) >= PAIRS_OF_ONE_MAX:
            raise Refusal(Reason.TOO_MANY)
        if not self._free:
            raise Refusal(Reason.FULL)
        return self._allot(pair, self._free.popleft())

    def _allot(self, pair: Pair, first_port: int) -> Allocation:
        allocation = Allocation(
            pair, (Side(pair.lower, first_port), Side(pair.higher, first_port + 1))
        )
        self._allocations[pair] = allocation
        for side in allocation.sides:
            self._by_port[side.port] = allocation
            self._of_member[side.member] += 1
        self.ports_revision += 1
        return allocation

    def _end(self, allocation: Allocation) -> Allocation:
        self._bound -= allocation.is_bound
        del self._allocations[allocation.pair]
        self._due.discard(allocation.pair)
        for side in allocation.sides:
            del self._by_port[side.port]
            self._former_due.discard(side.port)
            self._of_member[side.member] -= 1
            if not self._of_member[side.member]:
                del self._of_member[side.member]
        self._free.append(allocation.sides[0].port)
        self._changed[allocation.pair] = None
        self.ports_revision += 1
        self.flows_revision += bool(allocation.flows)
        return allocation

    def _reflow(self, allocation: Allocation) -> None:
        before = allocation.flows
        allocation.update_flows()
        self.flows_revision += allocation.flows != before

    def _adopt(
        self,
        stored: StoredAllocation,
        is_member: Callable[[NodeId], bool],
        now: float,
        wall: float,
    ) -> bool:
        lower, higher = stored.sides
        left = max(side.asked_until for side in stored.sides) - wall
        if (
            stored.pair != pair_of(*stored.pair)
            or stored.pair in self._allocations
            or not all(map(is_member, stored.pair))
            or max(self._of_member[member] for member in stored.pair) >= PAIRS_OF_ONE_MAX
            or higher.port != lower.port + 1
            or lower.port not in self._free
            or left <= 0
        ):
            return False
        self._free.remove(lower.port)
        allocation = self._allot(stored.pair, lower.port)
        for side, kept in zip(allocation.sides, stored.sides, strict=True):
            if kept.asked_until:
                # Whatever the clock has done in between, never for longer than if asked just now.
                side.asked_until = now + min(kept.asked_until - wall, LIFETIME)
            side.binding = kept.binding
        self._reflow(allocation)
        self._bound += allocation.is_bound
        self._due.set(stored.pair, allocation.expires_at)
        return True

    def _stored(self, pair: Pair, now: float, wall: float) -> StoredAllocation | None:
        allocation = self._allocations.get(pair)
        if allocation is None:
            return None
        lower, higher = (
            StoredSide(
                side.port,
                round(wall + side.asked_until - now) if side.asked_until > now else 0,
                side.binding,
            )
            for side in allocation.sides
        )
        return StoredAllocation(pair, (lower, higher))

    def _side_at(self, port: int) -> Side:
        first, second = self._by_port[port].sides
        return first if first.port == port else second


def pair_of(one: NodeId, other: NodeId) -> Pair:
    """Return a pair, whichever way round it was named."""
    return Pair(min(one, other), max(one, other))
