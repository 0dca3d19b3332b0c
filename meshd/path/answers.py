"""How long answers have taken of late: before that, a question is not worth asking again.

    pongs of the last 30 s, eight at most ─▶ the slowest ─▶ next round of a search, relays, calls,
                                                            giving up an address for another

Where machines are busy answers come late.  Who then asked more often, and more of the others, would
keep them busy; all of them together would do so for ever.
"""

from __future__ import annotations

from collections import deque

ANSWERS_REMEMBERED = 8
ANSWER_AGE_MAX = 30.0  # seconds


class Answers:
    """See the module docstring."""

    def __init__(self) -> None:
        self._last: deque[tuple[float, float]] = deque(maxlen=ANSWERS_REMEMBERED)

    def note(self, rtt: float, now: float) -> None:
        """Take how long a pong has taken that came directly, in seconds."""
        self._last.append((now, rtt))

    def slowest(self, now: float) -> float:
        """Return the longest round trip of late, in seconds; 0 where there was none."""
        return max((rtt for at, rtt in self._last if now - at <= ANSWER_AGE_MAX), default=0.0)
