"""How long a suspect may stay silent before this node concludes that it is dead.

Rule 1: the countdown starts long, so that a node which is itself in trouble kills nobody, and is
        shortened by other members who suspect the same member independently (Lifeguard, section
        IV-B).

Rule 2: an accuser counts once, whoever relays its accusation and how often.

Rule 3: the wait is for a refutation, and is counted in what one takes: for the suspect to be told,
        and for its answer to reach the mesh.  (In SWIM it is counted in probe intervals, because
        there the next accuser must first come upon the suspect in its turn.)

Rule 4: fewer witnesses do not mean less doubt.  Where there are not as many members as
        confirmations are expected, the wait stays long.  (Lifeguard lowers its expectation.)

    timeout = max - (max - min) * log(confirmations + 1) / log(confirmations_expected + 1)
    min     = suspicion_mult * max(1, log10(members)) * (refutation_interval + round trip / 2)
    max     = suspicion_max_timeout_mult * min
    where the round trip is what is typical of the mesh, and at most probe_timeout

     accused                    min                                       max
        │────────────────────────┼─────────────────────────────────────────┤
        └─ by one ───────────────────────────────────────────────────────▶ dead
        └─ by confirmations_expected more ▶ dead
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.gossip.config import GossipConfig


@dataclass(frozen=True, slots=True)
class Suspicion:
    """The terms of one countdown."""

    started_at: float
    timeout_min: float
    timeout_max: float
    confirmations_expected: int
    extensions: int = 0

    def extended(self, now: float) -> Suspicion:
        """Return the same terms, begun anew."""
        return replace(self, started_at=now, extensions=self.extensions + 1)

    def postponed(self, late: float) -> Suspicion:
        """Return the same terms, begun later."""
        return replace(self, started_at=self.started_at + late)

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
    now: float, *, members: int, round_trip: float, config: GossipConfig
) -> Suspicion:
    """Begin a countdown in a mesh of so many live members with a typical round trip."""
    one_way = min(round_trip, config.probe_timeout) / 2
    refutation = config.refutation_interval + one_way
    timeout_min = config.suspicion_mult * max(1.0, math.log10(max(members, 1))) * refutation
    return Suspicion(
        started_at=now,
        timeout_min=timeout_min,
        timeout_max=timeout_min * config.suspicion_max_timeout_mult,
        confirmations_expected=config.confirmations_expected,
    )
