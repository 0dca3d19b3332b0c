"""Whether a router has lost its mappings: its own clock says since when it has had them.

    ours    ─────────┤ 100 s ├───     the router's clock has to go on as ours does, or it has
    router's  5000 ──┤       ├─ 5100  begun anew:  5000 ──┤       ├─ 2

RFC 6886 section 3.6, RFC 6887 section 8.5.
"""

from __future__ import annotations

SLACK = 2.0  # seconds, for the time that datagrams take
DRIFT = 15 / 16


class Epoch:
    """What the router's clock said, and when."""

    def __init__(self) -> None:
        self._heard: tuple[int, float] | None = None

    def forget(self) -> None:
        """Begin with another router."""
        self._heard = None

    def hear(self, epoch: int, now: float) -> bool:
        """Take what the router's clock says.  Return whether it has begun anew since the last."""
        before, self._heard = self._heard, (epoch, now)
        if before is None:
            return False
        ours, theirs = now - before[1], float(epoch - before[0])
        return theirs < -1.0 or ours + SLACK < theirs * DRIFT or theirs + SLACK < ours * DRIFT
