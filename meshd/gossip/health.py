"""How much this node trusts its own judgement: Lifeguard's local health.

A node that is short of CPU, or badly connected, finds everybody else at fault.  So whatever hints
that it is itself the one in trouble raises its score, and a score of s makes it probe s + 1 times
less often and wait s + 1 times longer for answers (Lifeguard, section IV-A, LHA-Probe).

    an ack came in time                                          -1
    a probe failed, and members that were asked sent no nack     +1 each
    a probe failed, and there was nobody to ask                  +1
    somebody suspected us, and we had to refute                  +1, once until the next ack
    a timer was late by as long as an ack may take               +1, once until the next ack
"""

from __future__ import annotations


class Health:
    """A score between 0, healthy, and `score_max`."""

    def __init__(self, *, score_max: int) -> None:
        self._score_max = score_max
        self.score = 0
        self._refuted = self._stumbled = False

    @property
    def multiplier(self) -> int:
        """By how much to stretch intervals and timeouts (the paper's LHM)."""
        return self.score + 1

    def better(self) -> None:
        """Note that something went as it should."""
        self.score = max(self.score - 1, 0)
        self._refuted = self._stumbled = False

    def refuted(self) -> None:
        """Note that we were suspected.  Were each time to count, one member could slow us down."""
        if not self._refuted:
            self._refuted = True
            self.worse()

    def stumbled(self) -> None:
        """Note that we did not run for a while.  Many such whiles are one trouble."""
        if not self._stumbled:
            self._stumbled = True
            self.worse()

    def worse(self, by: int = 1) -> None:
        """Note hints that we are in trouble."""
        self.score = min(self.score + by, self._score_max)
