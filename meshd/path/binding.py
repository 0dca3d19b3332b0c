"""How long our NAT keeps a binding, and so how often something has to be sent.

    pong: "you come from :40000"  ── idle for 25 s ──  pong: "you come from :40007"
                                                        the binding did not live so long

Rule 1: 25 s is what WireGuard's own documentation recommends, and enough for NATs that obey
        RFC 4787 (REQ-5: two minutes).  A binding that was seen to die sooner halves that, once for
        each time, down to a floor.

Rule 2: many peers that find out together are one event: NATs forget all bindings when they start
        anew, which says nothing of how long they live, and costs a few packets more until our
        addresses change.
"""

from __future__ import annotations

import math

KEEPALIVE_MAX = 25  # seconds
KEEPALIVE_MIN = 6
ONE_EVENT = 60.0  # seconds: changes closer together than that are one


class Bindings:
    """See the module docstring."""

    def __init__(self) -> None:
        self.keepalive = KEEPALIVE_MAX
        self._died_at = -math.inf

    def clear(self) -> None:
        """Begin anew: it may be another NAT."""
        self.keepalive = KEEPALIVE_MAX

    def moved(self, idle: float, now: float) -> bool:
        """Take that a binding was replaced after so many idle seconds.  Return whether it counts.

        The tunnel's own keepalives go by the same binding, so it was idle for no longer than the
        interval of those.
        """
        fresh = now - self._died_at >= ONE_EVENT
        if idle >= self.keepalive / 2 and fresh and self.keepalive > KEEPALIVE_MIN:
            self._died_at = now
            self.keepalive = max(KEEPALIVE_MIN, self.keepalive // 2)
            return True
        return False
