"""Every deadline of a node, each with its reason.

A deadline is known by its kind and, where there are several of a kind, by whom or what it is about.
Setting one again replaces it.  Deadlines at the same instant fall due in the order they were set,
so that one seed is one history.
"""

from __future__ import annotations

import enum
import heapq
import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection


class TimerKind(enum.StrEnum):
    """Why a node wants to be woken."""

    PROBE = "next probe"
    PROBE_TIMEOUT = "probe timeout"
    PROBE_END = "end of probe"
    WATCH = "watched suspect"
    RELAY = "relayed ping"
    SUSPICION = "suspicion"
    CONTACT = "contact"
    GOSSIP = "gossip"
    DIGEST = "digest"
    LEAVE = "leave"


TimerKey: TypeAlias = tuple[TimerKind, bytes | int | None]

_COMPACT_MIN = 64


class Timer(NamedTuple):
    """When to call `handle_timer`, and why.  The reason is for traces only."""

    at: float
    reason: str


class Timers:
    """A heap of deadlines in which replaced and cancelled ones are skipped when they surface."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, TimerKey]] = []
        self._set: dict[TimerKey, tuple[float, int]] = {}
        self._counter = 0

    def __len__(self) -> int:
        return len(self._set)

    def set(self, kind: TimerKind, at: float, about: bytes | int | None = None) -> None:
        """Set a deadline, replacing the one of the same kind about the same."""
        self._counter += 1
        self._set[kind, about] = (at, self._counter)
        heapq.heappush(self._heap, (at, self._counter, (kind, about)))
        if len(self._heap) > _COMPACT_MIN + 4 * len(self._set):
            self._heap = [(at, count, key) for key, (at, count) in self._set.items()]
            heapq.heapify(self._heap)

    def cancel(self, kind: TimerKind, about: bytes | int | None = None) -> None:
        """Drop a deadline, if there is one."""
        self._set.pop((kind, about), None)

    def clear(self) -> None:
        """Drop all deadlines."""
        self._set.clear()
        self._heap.clear()

    def postpone(self, kinds: Collection[TimerKind], by: float, *, earliest: float) -> None:
        """Move all deadlines of some kinds by as much, none of them to before `earliest`."""
        moved = [(key, at) for key, (at, _) in self._set.items() if key[0] in kinds]
        for (kind, about), at in moved:
            self.set(kind, max(at + by, earliest), about)

    def about(self, kind: TimerKind) -> list[bytes | int | None]:
        """Return what the deadlines of a kind are about."""
        return [about for set_kind, about in self._set if set_kind is kind]

    def at(self, kind: TimerKind, about: bytes | int | None = None) -> float | None:
        """Return when a deadline falls due, or None if it is not set."""
        deadline = self._set.get((kind, about))
        return deadline[0] if deadline is not None else None

    def next(self) -> Timer:
        """Return the soonest deadline."""
        self._skip()
        if not self._heap:
            return Timer(math.inf, "nothing to do")
        at, _, (kind, _) = self._heap[0]
        return Timer(at, kind.value)

    def pop_due(self, now: float) -> TimerKey | None:
        """Take the soonest deadline if it is due."""
        self._skip()
        if not self._heap or self._heap[0][0] > now:
            return None
        _, _, key = heapq.heappop(self._heap)
        del self._set[key]
        return key

    def _skip(self) -> None:
        while self._heap:
            at, count, key = self._heap[0]
            if self._set.get(key) == (at, count):
                return
            heapq.heappop(self._heap)
