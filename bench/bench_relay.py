#!/usr/bin/env python3
"""What a relay costs: its own part with plain datagrams, a new pair's wait, and tunnels end to end.

    plain     packets a second and CPU per GB of the same hops without a relay, with one in the
              kernel, with one in userspace
    crowd     the same in the kernel, and the wait of a new pair, with 1 and with 1,000 allocations
    tunnels   iperf3 over meshd, nebula and tinc, direct and relayed

Variants take turns, so that whatever else the machine does falls on all; figures are medians.

    bench/bench_relay.py [--parts plain crowd tunnels] [--trials N] [--datagrams N] [--seconds S]
                         [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "netns-lab"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from relaying import first, plain, tunnels
from relaying.processes import come_first

PARTS = ("plain", "crowd", "tunnels")
CROWD = 1000


def main() -> int:
    """Measure, print tables, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--datagrams", type=int, default=500_000, help="of each plain run")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each iperf3")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    come_first()
    measured: dict[str, Any] = {}
    for part in arguments.parts:
        measured |= _MEASURES[part](arguments)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(measured, indent=2) + "\n")
    return 0


def _plain(arguments: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[plain.Run]] = {mode: [] for mode in plain.MODES}
    for _ in range(arguments.trials):
        for mode in plain.MODES:
            _tell(run := plain.measure(mode, arguments.datagrams))
            runs[mode].append(run)
    rate = {mode: _median(some, "per_second") for mode, some in runs.items()}
    cpu = {mode: _median(some, "cpu_per_gb") for mode, some in runs.items()}
    own = {mode: cpu[mode] - cpu["wire"] for mode in plain.MODES}
    process = _median(runs["userspace"], "forwarder_cpu_per_gb")
    print(f"\n{'plain datagrams':16}{'packets/s':>12}{'of router':>12}{'CPU s/GB':>12}{'own':>8}")
    for mode in plain.MODES:
        ratio = rate[mode] / rate["router"]
        print(f"{mode:16}{rate[mode]:>12,.0f}{ratio:>12.2f}{cpu[mode]:>12.2f}{own[mode]:>8.2f}")
    print(
        f"the forwarder's process alone: {process:.2f} CPU s/GB; "
        f"in the kernel it takes {own['kernel'] / own['userspace']:.2f} of userspace"
    )
    return {"plain": [asdict(run) for some in runs.values() for run in some]}


def _crowd(arguments: argparse.Namespace) -> dict[str, Any]:
    runs: dict[int, list[plain.Run]] = {1: [], CROWD: []}
    for _ in range(arguments.trials):
        for allocations in runs:
            run = plain.measure("kernel", arguments.datagrams, allocations=allocations)
            _tell(run)
            runs[allocations].append(run)
    waits = {}
    for allocations in runs:
        _tell(wait := first.measure(allocations, 3 * arguments.trials))
        waits[allocations] = wait
    print(f"\n{'allocations':16}{'packets/s':>12}{'first, ms':>12}{'kernel, ms':>12}")
    for allocations, some in runs.items():
        wait = waits[allocations]
        rate = _median(some, "per_second")
        print(f"{allocations:<16}{rate:>12,.0f}{wait.first_ms:>12.1f}{wait.kernel_ms:>12.1f}")
    return {
        "crowd": [asdict(run) for some in runs.values() for run in some],
        "first": [asdict(wait) for wait in waits.values()],
    }


def _tunnels(arguments: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[tunnels.Transfer]] = {variant: [] for variant in tunnels.VARIANTS}
    for _ in range(arguments.trials):
        for variant in tunnels.VARIANTS:
            _tell(transfer := tunnels.measure(variant, arguments.seconds))
            runs[variant].append(transfer)
    print(f"\n{'tunnels':16}{'Mbit/s':>12}{'of direct':>12}{'CPU s/GB':>12}")
    for variant, some in runs.items():
        direct = _median(runs[f"{variant.partition('-')[0]}-direct"], "megabits_per_second")
        rate, cpu = _median(some, "megabits_per_second"), _median(some, "cpu_per_gb")
        print(f"{variant:16}{rate:>12,.0f}{rate / direct:>12.2f}{cpu:>12.1f}")
    return {"tunnels": [asdict(transfer) for some in runs.values() for transfer in some]}


def _median(runs: list[Any], field: str) -> float:
    return statistics.median(getattr(run, field) for run in runs)


def _tell(run: object) -> None:
    print(json.dumps(asdict(run)), flush=True)


_MEASURES = {"plain": _plain, "crowd": _crowd, "tunnels": _tunnels}

if __name__ == "__main__":
    raise SystemExit(main())
