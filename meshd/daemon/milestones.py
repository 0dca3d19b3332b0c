"""How long it took to become a member, by phase: what `status` calls `startup`.

exec ─ import ─▶ configured ─ interface ─▶ made ─ bootstrap ─▶ let in ─ apply ─▶ first peer in
the kernel ─ handshake ─▶ first member heard ─ gossip ─▶ all known members heard
"""

from __future__ import annotations

import os
import time
from pathlib import Path

# Fields of /proc/PID/stat behind the command's closing parenthesis: see proc_pid_stat(5).
_STARTTIME_FIELD = 19

PHASES = ("import", "interface", "bootstrap", "apply", "handshake", "gossip")


class Milestones:
    """Each phase ends once, in the order of `PHASES`; one that is skipped took no time."""

    def __init__(self) -> None:
        self._reached_at = _process_started_at()
        self.phases: dict[str, float] = {}

    def reach(self, phase: str) -> None:
        """Note that a phase is over.  Only the first time counts."""
        if phase in self.phases:
            return
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.phases[phase] = round(now - self._reached_at, 4)
        self._reached_at = now


def _process_started_at() -> float:
    """Return when this process was started, by the clock that counts from boot."""
    stat = Path("/proc/self/stat").read_text()
    fields = stat.rpartition(")")[2].split()
    return int(fields[_STARTTIME_FIELD]) / os.sysconf("SC_CLK_TCK")
