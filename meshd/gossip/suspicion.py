"""How long a suspect may stay silent before this node concludes that it is dead.

Rule 1: the countdown starts long, so that a node which is itself in trouble kills nobody, and is
        shortened by other members who suspect the same member independently (Lifeguard, section
        IV-B).

Rule 2: an accuser counts once, whoever relays its accusation and how often.

    timeout = max - (max - min) * log(confirmations + 1) / log(confirmations_expected + 1)
    min     = suspicion_mult * max(1, log10(members)) * probe_interval
    max     = suspicion_max_timeout_mult * min

     accused                    min                                       max
        │────────────────────────┼─────────────────────────────────────────┤
        └─ by one ───────────────────────────────────────────────────────▶ dead
        └─ by confirmations_expected more ▶ dead
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Suspicion:
    """The terms of one countdown."""

    started_at: float
    timeout_min: float
    timeout_max: float
    confirmations_expected: int

    def deadline(self, accusers: int) -> float:
        """When to conclude death, given how many distinct members accuse."""
        if self.confirmations_expected == 0:
            return self.started_at + self.timeout_min
        # The first accuser starts the countdown; it does not confirm itself.
        confirmations = min(max(accusers - 1, 0), self.confirmations_expected)
        progress = math.log(confirmations + 1) / math.log(self.confirmations_expected + 1)
        spread = self.timeout_max - self.timeout_min
        return self.started_at + self.timeout_max - spread * progress


def start_suspicion(
    now: float,
    *,
    members: int,
    probe_interval: float,
    suspicion_mult: float,
    suspicion_max_timeout_mult: float,
    confirmations_expected: int,
) -> Suspicion:
    """Begin a countdown in a mesh of so many live members, ourselves and the suspect included."""
    timeout_min = suspicion_mult * max(1.0, math.log10(max(members, 1))) * probe_interval
    # Of the others, one is the suspect, one the first accuser.
    witnesses = max(members - 2, 0)
    return Suspicion(
        started_at=now,
        timeout_min=timeout_min,
        timeout_max=timeout_min * suspicion_max_timeout_mult,
        confirmations_expected=min(confirmations_expected, witnesses),
    )
