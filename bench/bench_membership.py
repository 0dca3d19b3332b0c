#!/usr/bin/env python3
"""How fast, how rightly and at what cost membership knows, beside serf.

Ours are processes with the real node, ledger and sockets; serf's are its agents with their defaults
for a LAN.  Both run on one machine, in a network namespace of their own, without WireGuard, and one
after the other: ours, serf, ours, serf, so that neither bears the load of the other.

    bench/bench_membership.py [--quick] [--sizes 5,25,100] [--only crash,join] [--json FILE]

Times begin when processes are up, and end when the last member that has to know does.  Everything
that is sent is counted in IP bytes by the same rules of nftables, for both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from operator import methodcaller
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from membership import memory, namespace, scenarios, serf
from membership.cluster import NotInTime
from membership.results import Results

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = (5, 25, 100)
QUICK_SIZES = (5, 25)
SIZE_MIN = 3
TRIALS = 7
COLD_TRIALS = 10  # with as many members as there may be
LONG_SIZE = 25  # members under loss, and with stalls


def main() -> int:
    """Measure, print a table, and write JSON if asked to.  Exit with 2 where that cannot be."""
    arguments = _parse()
    if os.geteuid() != 0:
        print("this needs root: it makes a network namespace, and loses packets", file=sys.stderr)
        return 2
    if "serf" in arguments.sides and serf.version() is None:
        print(serf.INSTALL, file=sys.stderr)
        return 2
    return namespace.run_inside(lambda: _measure(arguments))


def _parse() -> argparse.Namespace:
    every = (*scenarios.PARTS, *scenarios.LONG)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=_numbers, metavar="N,N")
    parser.add_argument("--trials", type=int, metavar="N", help=f"of each (default {TRIALS})")
    parser.add_argument(
        "--only", type=_choice(every), default=every, metavar="WHAT,WHAT", help=", ".join(every)
    )
    parser.add_argument(
        "--sides", type=_choice(scenarios.SIDES), default=tuple(scenarios.SIDES), metavar="SIDE"
    )
    parser.add_argument("--quick", action="store_true", help="see that it works, in minutes")
    parser.add_argument(
        "--random", type=int, default=1, metavar="N", help="who is chosen, and when"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.trials is None:
        arguments.trials = 1 if arguments.quick else TRIALS
    if arguments.sizes is None:
        arguments.sizes = QUICK_SIZES if arguments.quick else SIZES
    return arguments


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers") from None
    if min(numbers) < SIZE_MIN:
        raise argparse.ArgumentTypeError(
            f"with fewer than {SIZE_MIN} members nobody is left to tell"
        )
    return numbers


def _choice(known: Any) -> Any:  # noqa: ANN401 - argparse takes whatever is called
    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        for part in chosen:
            if part not in known:
                raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(known)}")
        return chosen

    return parse


def _measure(arguments: argparse.Namespace) -> int:
    """Measure, and report; when interrupted, what there is.  Return the exit status."""
    results = Results()
    spans = scenarios.spans_for(quick=arguments.quick)
    status = 0
    try:
        for size in arguments.sizes:
            _trials(arguments, size, results, spans)
        _long(arguments, results, spans)
    except KeyboardInterrupt:
        results.say("interrupted")
        status = 130
    imports = memory.imports_mib()
    results.print()
    print("\nmemory of one of ours before it knows anybody, MiB: ", end="")
    print(", ".join(f"{name} {mib:+.1f}" for name, mib in imports.items()))
    if arguments.json is not None:
        report = {
            "machine": _machine(),
            "trials": arguments.trials,
            "spans": scenarios.describe(spans),
            "imports_mib": imports,
            **results.as_json(),
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return status or int(bool(results.failed))


def _trials(
    arguments: argparse.Namespace, size: int, results: Results, spans: scenarios.Spans
) -> None:
    parts = {part for part in scenarios.PARTS if part in arguments.only}
    if not parts:
        return
    cold_only = 0
    if "cold" in parts and size == max(SIZES) and arguments.trials == TRIALS:
        cold_only = COLD_TRIALS - TRIALS
    for number in range(arguments.trials + cold_only):
        chosen = parts if number < arguments.trials else {"cold"}
        if number > 0:
            chosen = chosen - {"steady"}  # its minute is a mean already
        for side in arguments.sides:
            results.say(f"N={size} {side}: trial {number + 1}")
            rng = Random(f"{arguments.random} {size} {number}")
            _run(side, size, results, spans, rng, methodcaller("run", chosen))


def _long(arguments: argparse.Namespace, results: Results, spans: scenarios.Spans) -> None:
    size = LONG_SIZE if LONG_SIZE in arguments.sizes else min(arguments.sizes)
    for what, do in (("loss", scenarios.Trial.run_loss), ("stalls", scenarios.Trial.run_stalls)):
        for side in arguments.sides if what in arguments.only else ():
            results.say(f"N={size} {side}: {what}")
            _run(side, size, results, spans, Random(f"{arguments.random} {what}"), do)


def _run(
    side: str,
    size: int,
    results: Results,
    spans: scenarios.Spans,
    rng: Random,
    do: Callable[[scenarios.Trial], None],
) -> None:
    """Do something to a cluster of its own.  Where that cannot be, the other trials go on."""
    try:
        with scenarios.SIDES[side]() as cluster:
            do(scenarios.Trial(cluster, size, results, spans=spans, rng=rng))
    except NotInTime as exc:
        results.fail(f"N={size}: {exc}")


def _machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "serf": serf.version(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
