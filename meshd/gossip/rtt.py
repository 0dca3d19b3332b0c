"""How long an ack may take, by the round trips that were measured.

Rule 1: the allowance follows RFC 6298, section 2: the smoothed round trip and four times its
        variation.  A fixed timeout is either too long on a LAN or too short across an ocean.

Rule 2: it is never less than `probe_timeout_min`, because the other side is a process among others
        on a busy machine, and never more than `probe_timeout`.

Rule 3: a member that was not measured yet is allowed what all members together take.

Rule 4: a round trip during which we did not run is not measured.

     sample    10 ms   10 ms   12 ms   80 ms   80 ms   80 ms
     smoothed  10      10      10.2    19.0    26.6    33.3
     allowed   100     100     100     100     147     177    (ms, between 100 and 500)
"""

from __future__ import annotations

from typing import NamedTuple

_SMOOTHED_WEIGHT = 1 / 8  # RFC 6298: alpha
_VARIATION_WEIGHT = 1 / 4  # RFC 6298: beta
_VARIATIONS = 4  # RFC 6298: K


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


def allowance(known: RoundTrip | None, *, minimum: float, maximum: float) -> float:
    """Return how long an ack may take (rule 2)."""
    if known is None:
        return maximum
    return min(max(known.allowance, minimum), maximum)
