"""How long an ack may take, by the round trips that were measured.

Rule 1: the allowance follows RFC 6298, section 2: the smoothed round trip and four times its
        variation.  A fixed timeout is either too long on a LAN or too short across an ocean.

Rule 2: it is never less than `probe_timeout_min`, because the other side is a process among others
        on a busy machine, and never more than `probe_timeout`.

Rule 3: a member that was not measured yet is allowed as much as any of the last `RECENT_MAX` acks
        took, whosever they were; and what is typical of the mesh is their median, which a bad
        moment does not move.

Rule 4: a round trip during which we did not run, or were otherwise in trouble, is not measured.

     sample    10 ms   10 ms   12 ms   80 ms   80 ms   80 ms
     smoothed  10      10      10.2    19.0    26.6    33.3
     allowed   100     100     100     100     147     177    (ms, between 100 and 500)
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

_SMOOTHED_WEIGHT = 1 / 8  # RFC 6298: alpha
_VARIATION_WEIGHT = 1 / 4  # RFC 6298: beta
_VARIATIONS = 4  # RFC 6298: K

RECENT_MAX = 9
_ROOM = 2.0


class RoundTrip(NamedTuple):
    """An estimate, in seconds."""

    smoothed: float
    variation: float

    @property
    def allowance(self) -> float:
        """How long the next one may take."""
        return self.smoothed + _VARIATIONS * self.variation


def measured(before: RoundTrip | None, sample: float) -> RoundTrip:
    """Return the estimate with one more measurement taken into it."""
    if before is None:
        return RoundTrip(sample, sample / 2)
    deviation = abs(before.smoothed - sample)
    return RoundTrip(
        before.smoothed + _SMOOTHED_WEIGHT * (sample - before.smoothed),
        before.variation + _VARIATION_WEIGHT * (deviation - before.variation),
    )


class RecentRoundTrips:
    """The last round trips to anybody."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=RECENT_MAX)

    def add(self, sample: float) -> None:
        """Take in one more."""
        self._samples.append(sample)

    @property
    def typical(self) -> float:
        """The median; 0 where nothing was measured."""
        return sorted(self._samples)[len(self._samples) // 2] if self._samples else 0.0

    @property
    def allowance(self) -> float | None:
        """The longest, with room to spare; None where nothing was measured."""
        return _ROOM * max(self._samples) if self._samples else None


def allowance(
    known: RoundTrip | None, recent: RecentRoundTrips, *, minimum: float, maximum: float
) -> float:
    """Return how long an ack may take (rules 2 and 3)."""
    taken = recent.allowance if known is None else known.allowance
    return maximum if taken is None else min(max(taken, minimum), maximum)
