"""What is due when: one instant for each key, the soonest found in logarithmic time."""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT")

STALE_ENTRIES_MAX = 64  # beyond twice the live ones, the heap is rebuilt


class Schedule(Generic[KeyT]):
    """A priority queue in which an instant can be moved.

    Moving leaves a stale entry in the heap; stale entries are skipped when they surface.
    """

    def __init__(self) -> None:
        self._due: dict[KeyT, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, KeyT]] = []
        self._order = itertools.count()  # equal instants come out in the order they were set

    def set(self, key: KeyT, at: float) -> None:
        """Make the key due at an instant, whatever it was before."""
        entry = (at, next(self._order))
        self._due[key] = entry
        heapq.heappush(self._heap, (*entry, key))
        if len(self._heap) > 2 * len(self._due) + STALE_ENTRIES_MAX:
            self._heap = [(*entry, key) for key, entry in self._due.items()]
            heapq.heapify(self._heap)

    def set_sooner(self, key: KeyT, at: float) -> None:
        """Make the key due at an instant, unless it is due before."""
        known = self._due.get(key)
        if known is None or at < known[0]:
            self.set(key, at)

    def discard(self, key: KeyT) -> None:
        """Make the key due never."""
        self._due.pop(key, None)

    def soonest(self) -> tuple[float, KeyT] | None:
        """Return the first instant and its key."""
        while self._heap:
            at, order, key = self._heap[0]
            if self._due.get(key) == (at, order):
                return at, key
            heapq.heappop(self._heap)
        return None

    def pop_due(self, now: float) -> KeyT | None:
        """Take the first key that is due, if any."""
        soonest = self.soonest()
        if soonest is None or soonest[0] > now:
            return None
        heapq.heappop(self._heap)
        del self._due[soonest[1]]
        return soonest[1]
