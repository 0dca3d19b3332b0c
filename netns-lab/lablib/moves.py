"""Steady traffic between two members while the path between them is changed, step by step.

    relayed ──mend──▶ direct ──cut──▶ relayed ──mend──▶ direct
       │ 100 datagrams a second each way, all the time        │
       └── each step: what was lost, the longest silence, how long until both say so ──┘

A step lasts from what was done until the next one, so that whatever comes late counts for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lablib import faults, mesh
from lablib.traffic import Traffic
from lablib.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from lablib.lab import Lab
    from lablib.node import Node

RATE = 100.0
DWELL = 3.0  # seconds that traffic goes on after a step's end is seen
PATH_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """What a change of path cost.  Times are seconds."""

    what: str
    lost: int
    silence: float
    took: float  # until both said what was to be

    def __str__(self) -> str:
        return f"{self.what}: {self.lost} lost, {self.silence:.2f} s silent, took {self.took:.2f} s"


class Moves:
    """Traffic between two members, and steps in it."""

    def __init__(self, one: Node, other: Node) -> None:
        self._nodes = (one, other)
        addresses = mesh.addresses(self._nodes, version=4)
        self._traffic = Traffic(self._nodes, addresses, rate=RATE)
        self._begun: list[tuple[str, float, float]] = []  # what, when, how long it took

    def step(self, what: str, act: Callable[[], object], until: Callable[[], object]) -> None:
        """Do something to the underlay, and wait until a condition holds and for a while more."""
        began_at = time.monotonic()
        act()
        wait_until(until, what, timeout=PATH_TIMEOUT)
        self._begun.append((what, began_at, time.monotonic() - began_at))
        time.sleep(DWELL)

    def stop(self) -> list[Step]:
        """End the traffic and return what each step cost."""
        ends = [began_at for _, began_at, _ in self._begun[1:]] + [float("inf")]
        report = self._traffic.stop()
        return [
            Step(
                what=what,
                lost=len(report.lost_between(began_at, end)),
                silence=report.longest_silence(began_at, end),
                took=took,
            )
            for (what, began_at, took), end in zip(self._begun, ends, strict=True)
        ]


def path(node: Node, other: Node) -> str | None:
    """Return how a node says that packets to another flow: direct, relayed or not at all."""
    found = [m["path"] for m in node.status()["members"] if m["name"] == other.name]
    return found[0] if found else None


def endpoint(node: Node, other: Node) -> str | None:
    """Return where a node sends what is for another."""
    found = [m["endpoint"] for m in node.status()["members"] if m["name"] == other.name]
    return found[0] if found else None


def both_are(one: Node, other: Node, wanted: str) -> Callable[[], bool]:
    """Return the condition that both sides say of their path that it is this one."""

    def holds() -> bool:
        there, back = path(one, other), path(other, one)
        assert (there, back) == (wanted, wanted), f"{there} there, {back} back"
        return True

    return holds


def cut_direct(lab: Lab, one: Node, other: Node) -> None:
    """Have both members' routers lose what they send to each other; relays stay in reach."""
    faults.cut(lab, one, faults.outside_address(lab, other))
    faults.cut(lab, other, faults.outside_address(lab, one))


def mend_direct(lab: Lab, one: Node, other: Node) -> None:
    """Undo that."""
    faults.mend(lab, one)
    faults.mend(lab, other)


def relay_and_back(lab: Lab, one: Node, other: Node) -> list[Step]:
    """Go relayed, direct, relayed, direct.  The direct path is cut before, and mended after."""
    wait_until(both_are(one, other, "relayed"), "they are relayed", timeout=PATH_TIMEOUT)
    moves = Moves(one, other)
    direct, relayed = (both_are(one, other, wanted) for wanted in ("direct", "relayed"))
    moves.step("to direct", lambda: mend_direct(lab, one, other), direct)
    moves.step("direct path cut", lambda: cut_direct(lab, one, other), relayed)
    moves.step("to direct again", lambda: mend_direct(lab, one, other), direct)
    return moves.stop()
