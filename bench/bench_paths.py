#!/usr/bin/env python3
"""How soon members behind NATs reach each other, and what a change of path costs.

The matrix: for each pair of kinds of NAT the two members' daemons are ended, their interfaces
deleted, and both started again.  The time runs from the later start to the first answered ping, and
to both sides' saying that their path is direct where RFC 4787 lets it be.

The moves: 100 datagrams a second each way between two members, while the direct path is mended,
cut without notice, and mended again; while a NAT is restarted; while a default route moves.

    bench/bench_paths.py [--kinds KIND,…] [--trials N] [--lossy MINUTES] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "netns-lab"))

from lablib import Lab, faults, matrix, mesh, moves, topology, wait_until
from lablib.moves import Moves, both_are

if TYPE_CHECKING:
    from collections.abc import Callable

    from lablib.moves import Step

LOSS_PERCENT = 20
POLL_INTERVAL = 0.25
SECONDS_A_MINUTE = 60.0
PATIENCE = 60.0


def main() -> int:
    """Measure, print tables, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", default="", help="as `lab list` names them; by default all")
    parser.add_argument("--trials", type=int, default=3, help="of each move")
    parser.add_argument(
        "--lossy", type=float, default=0.0, metavar="MINUTES", help=f"at {LOSS_PERCENT} % loss"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    names = arguments.kinds.split(",") if arguments.kinds else []
    grid = matrix.run(names, name=f"bench-{os.getpid()}", one_by_one=True)
    print(f"{grid.render()}\n")
    report: dict[str, Any] = {"matrix": grid.document(), "moves": _moves(arguments.trials)}
    _print_moves(report["moves"])
    if arguments.lossy:
        report["lossy"] = _lossy(arguments.lossy)
        print(f"\n{arguments.lossy:g} minutes of {LOSS_PERCENT} % loss: {report['lossy']}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _moves(trials: int) -> dict[str, list[dict[str, Any]]]:
    """Return the steps of all trials, by what they were."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(trials):
        for scenario in (_relay_and_back, _restarted_nat):
            for step in scenario():
                found.setdefault(step.what, []).append(asdict(step))
    return found


def _relay_and_back() -> list[Step]:
    with Lab(topology("nats:ei-apd")) as lab:
        one, other = lab["ei-apd1"], lab["ei-apd2"]
        moves.cut_direct(lab, one, other)
        mesh.start(lab, secret=mesh.new_secret())
        return moves.relay_and_back(lab, one, other)


def _restarted_nat() -> list[Step]:
    with Lab(topology("nats:ei-apd-r")) as lab:
        one, other = lab["ei-apd-r1"], lab["ei-apd-r2"]
        mesh.start(lab, secret=mesh.new_secret())
        direct = both_are(one, other, "direct")
        wait_until(direct, "they are direct", timeout=PATIENCE)
        before = moves.endpoint(other, one)
        traffic = Moves(one, other)
        traffic.step(
            "NAT restarted",
            lambda: faults.rebind(lab, one),
            lambda: moves.endpoint(other, one) != before and direct(),
        )
        return traffic.stop()


def _lossy(minutes: float) -> dict[str, Any]:
    """Count how often the path changes while a part of what goes directly is lost."""
    with Lab(topology("nats:ei-apd")) as lab:
        one, other = lab["ei-apd1"], lab["ei-apd2"]
        mesh.start(lab, secret=mesh.new_secret())
        wait_until(both_are(one, other, "direct"), "they are direct", timeout=PATIENCE)
        traffic = Moves(one, other)
        changes = 0

        def suffer() -> None:
            nonlocal changes
            faults.cut(lab, one, faults.outside_address(lab, other), percent=LOSS_PERCENT)
            ends_at = time.monotonic() + minutes * SECONDS_A_MINUTE
            last = moves.path(one, other)
            while time.monotonic() < ends_at:
                time.sleep(POLL_INTERVAL)
                current = moves.path(one, other)
                changes += current != last
                last = current

        traffic.step("lossy", suffer, _always)
        [step] = traffic.stop()
        return {"path_changes": changes, "lost": step.lost, "longest_silence_s": step.silence}


def _always() -> bool:
    return True


def _print_moves(found: dict[str, list[dict[str, Any]]]) -> None:
    print(f"{'':24}{'lost':>12}{'silent s':>16}{'until seen s':>18}   (median, worst)")
    columns: dict[str, Callable[[float], str]] = {
        "lost": lambda value: f"{value:.0f}",
        "silence": lambda value: f"{value:.2f}",
        "took": lambda value: f"{value:.2f}",
    }
    for what, steps in found.items():
        cells = []
        for (name, text), width in zip(columns.items(), (12, 16, 18), strict=True):
            values = [step[name] for step in steps]
            cells.append(f"{text(statistics.median(values))}, {text(max(values))}".rjust(width))
        print(f"{what:24}{''.join(cells)}")


if __name__ == "__main__":
    raise SystemExit(main())
