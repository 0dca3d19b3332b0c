"""Search for bytes that break a node: `tests/fuzz/fuzz_gossip.py --inputs 10_000_000`.

Each life (see `life`) is one node that is handed mutated messages by its members.  After every
input there must be nothing but events: any exception ends the search of that life.  What the node
believes must have been signed (see `oracle`), and what it holds must have bounds (see `bounds`).

A seed is a sequence of inputs, whatever the number of jobs.  What fails is done again to record its
steps, shortened, and saved as a file for `corpus/`, under a name that is a claim, where
`test_fuzz_gossip.py` replays it.

`--target NAME` fuzzes one of the ways in instead (see `targets`), `--target all` each of them; what
breaks one is saved likewise, as `NAME.hex`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import multiprocessing
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from fuzz import targets  # noqa: E402
from fuzz.bounds import RSS_GROWTH_MAX, resident_bytes  # noqa: E402
from fuzz.life import Life  # noqa: E402
from fuzz.oracle import Violation  # noqa: E402
from fuzz.steps import format_history, shorten, signature_of  # noqa: E402

LIFE_INPUTS = 2_000
# Some live for long, so that what grows slowly grows far enough to be seen.
LONG_LIFE_EVERY, LONG_LIFE_INPUTS = 16, 50_000
LONGEST_LIFE_EVERY, LONGEST_LIFE_INPUTS = 256, 500_000
WARM_UP_INPUTS = 60_000  # of a process; what it holds then is what its memory is compared with
STUCK_SECONDS = 120  # for some 2,000 inputs, on a machine that has other things to do
SHORTENING_SECONDS = 60.0
# What a search that was worth its while has met.
STATES = [
    "timer: end of probe",
    "timer: suspicion",
    "IncarnationRaised",
    "LeaveAnnounced",
    "SUSPECT to DEAD: unrefuted",
    "SUSPECT to ALIVE: refuted",
    "FactLearned",
    "answer on a stream",
    "input after leaving",
]
_PROGRESS_INTERVAL = 10.0


@dataclass
class Report:
    """What came of one life, or of many."""

    number: int = 0
    length: int = 0
    inputs: int = 0
    met: Counter = field(default_factory=Counter)
    reasons: set = field(default_factory=set)
    seconds: float = 0.0  # of CPU
    growth: int = 0  # bytes of memory
    wrong: str = ""
    kind: str = ""  # of what was wrong

    def add(self, other):
        self.inputs += other.inputs
        self.seconds += other.seconds
        self.reasons |= other.reasons
        self.growth = max(self.growth, other.growth)
        peaks = {what: max(n, self.met[what]) for what, n in other.met.items() if _is_peak(what)}
        self.met += other.met
        for what, peak in peaks.items():
            self.met[what] = peak


def _is_peak(what):
    return what.startswith("most ")


class _Process:
    """What one process remembers between lives."""

    inputs = 0
    warm_bytes = None


def life_length(number):
    """Return how many inputs a life has."""
    if number % LONGEST_LIFE_EVERY == LONGEST_LIFE_EVERY - 1:
        return LONGEST_LIFE_INPUTS
    if number % LONG_LIFE_EVERY == LONG_LIFE_EVERY - 1:
        return LONG_LIFE_INPUTS
    return LIFE_INPUTS


def new_life(seed, number, length):
    """Return a life that depends on nothing but these."""
    return Life(f"{seed} {number}", length, leaves=length <= LONG_LIFE_INPUTS)


def live(task, *, seed, until):
    """Run one life.  Return its report."""
    number, length = task
    if time.monotonic() > until:
        return Report(number)
    begin = time.process_time()
    life = new_life(seed, number, length)
    wrong = kind = ""

    def pause():
        signal.alarm(STUCK_SECONDS)
        return time.monotonic() > until

    before = signal.signal(signal.SIGALRM, _stuck)
    pause()
    try:
        life.run(until=pause)
        _check_memory(life.inputs)
    except Exception as exc:  # any error at all is what is searched for
        wrong, kind = traceback.format_exc(), signature_of(exc)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    seconds = time.process_time() - begin
    growth = resident_bytes() - (_Process.warm_bytes or resident_bytes())
    return Report(
        number=number,
        length=length,
        inputs=life.inputs,
        met=life.table.met,
        reasons=life.table.reasons,
        seconds=seconds,
        growth=growth,
        wrong=wrong,
        kind=kind,
    )


def _check_memory(inputs):
    _Process.inputs += inputs
    if _Process.warm_bytes is None:
        if _Process.inputs >= WARM_UP_INPUTS:
            _Process.warm_bytes = resident_bytes()
    elif resident_bytes() > _Process.warm_bytes + RSS_GROWTH_MAX:
        raise Violation(f"memory: {_Process.warm_bytes} bytes warm, {resident_bytes()} now")


def _stuck(*_):
    raise Violation(f"no end of one input within {STUCK_SECONDS} s")


def tasks_for(inputs):
    """Give (number, length) of the lives that make up so many inputs."""
    for number in itertools.count():
        if inputs <= 0:
            return
        yield number, min(life_length(number), inputs)
        inputs -= life_length(number)


def search(inputs, *, seed, jobs, seconds):
    """Run lives on several processes.  Return the sum of their reports, and those that failed."""
    begin = said_at = time.monotonic()
    run = functools.partial(live, seed=seed, until=begin + seconds)
    total, failed = Report(), []
    with multiprocessing.Pool(jobs) as pool:
        for report in pool.imap_unordered(run, tasks_for(inputs)):
            total.add(report)
            if report.wrong:
                failed.append(report)
                print(f"\nlife {report.number} of seed {seed}:\n{report.wrong}", flush=True)
            now = time.monotonic()
            if now - said_at > _PROGRESS_INTERVAL:
                said_at = now
                print(
                    f"{total.inputs:,} of {inputs:,}, {total.inputs / (now - begin):,.0f} / s, "
                    f"memory +{total.growth >> 10:,} KiB, {len(failed)} failed",
                    flush=True,
                )
    return total, failed


def save(failure, *, seed, path):
    """Do a failed life again, shorten it, and save its steps."""
    steps = []
    life = new_life(seed, failure.number, failure.length)
    with contextlib.suppress(Exception):
        life.run(record_step=steps.append)
    kept = shorten(life.rng_seed, steps, seconds=SHORTENING_SECONDS)
    path.write_text(format_history(life.rng_seed, kept, why=failure.kind))
    print(f"{len(kept)} of {len(steps)} steps: {path}")


def distinct(failed):
    """Return one of each kind of failure: the one that took the fewest inputs."""
    by_length = sorted(failed, key=lambda report: report.inputs, reverse=True)
    return list({report.kind: report for report in by_length}.values())


def fuzz_node(arguments):
    """Fuzz whole nodes.  Return the exit status."""
    total, failed = search(
        arguments.inputs, seed=arguments.seed, jobs=arguments.jobs, seconds=arguments.seconds
    )
    for what, count in sorted(total.met.items()):
        print(f"{count:12,}  {what}")
    print(f"{len(total.reasons)} reasons: {', '.join(sorted(total.reasons))}")
    for number, failure in enumerate(distinct(failed)):
        path = arguments.save.with_stem(arguments.save.stem + (f"-{number}" if number else ""))
        save(failure, seed=arguments.seed, path=path)
    unmet = [state for state in STATES if not total.met[state]]
    if total.inputs < WARM_UP_INPUTS:
        unmet = []  # a few lives need not meet everything
    if unmet:
        print(f"never met: {', '.join(unmet)}")
    rate = total.inputs / max(total.seconds, 1e-9)
    print(
        f"seed {arguments.seed}: {total.inputs:,} inputs, {rate:,.0f} / s of CPU, "
        f"memory +{total.growth >> 10:,} KiB since warm, {len(failed)} lives failed"
    )
    return 1 if failed or unmet else 0


def fuzz_decoders(arguments, names):
    """Fuzz decoders.  Return the exit status."""
    failures = 0
    for name in names:
        result = targets.fuzz(
            name,
            inputs=arguments.inputs // len(names),
            seed=arguments.seed,
            seconds=arguments.seconds / len(names),
        )
        print(
            f"{name:20} {result.inputs:12,} inputs, {result.accepted:10,} accepted, "
            f"{len(result.reasons):3} reasons, {result.rate:9,.0f} / s",
            flush=True,
        )
        if result.wrong:
            failures += 1
            print(f"{result.wrong}\n{name} {result.data.hex()}")
            arguments.save.write_text(f"# {name}\n{result.data.hex()}\n")
    print(f"seed {arguments.seed}: {failures} of {len(names)} targets failed")
    return 1 if failures else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--inputs", type=int, default=100_000, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), metavar="N")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--target", default="node", choices=["node", "all", *targets.TARGETS])
    default = Path(tempfile.gettempdir()) / "fuzz-failure.txt"
    parser.add_argument("--save", type=Path, default=default, help="where what fails is written to")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    if arguments.target == "node":
        return fuzz_node(arguments)
    return fuzz_decoders(
        arguments, list(targets.TARGETS) if arguments.target == "all" else [arguments.target]
    )


if __name__ == "__main__":
    sys.exit(main())
