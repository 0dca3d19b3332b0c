"""Tells when this machine has slept.

CLOCK_MONOTONIC, by which all deadlines go, stands still while a machine is suspended;
CLOCK_BOOTTIME goes on.  So what they differ by grows by each sleep, and by nothing else.

    monotonic  ────────┤├──────   deadlines: nothing was missed
    boottime   ────────┤ sleep ├──────   others: we were silent, NATs have forgotten us
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

READING_MAX = 0.1
SLEPT_MIN = 5.0  # seconds; shorter is a stall, which gossip and paths bear as they are


def seconds_asleep() -> float:
    """Return for how long this machine has been asleep since it was booted."""
    while True:
        before = time.clock_gettime(time.CLOCK_MONOTONIC)
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        if time.clock_gettime(time.CLOCK_MONOTONIC) - before < READING_MAX:
            return since_boot - before
        # Stopped between two clocks: that would look like a sleep.


class SleepWatch:
    """Remembers for how long it had been asleep when it was last asked."""

    def __init__(self, asleep: Callable[[], float] = seconds_asleep) -> None:
        self._asleep = asleep
        self._before = asleep()

    def slept(self) -> float:
        """Return the seconds slept since the last time, if they are worth a word; else 0."""
        asleep = self._asleep()
        if asleep - self._before < SLEPT_MIN:
            return 0.0
        slept, self._before = asleep - self._before, asleep
        return slept
