"""Search for a seed that breaks the mesh: `tests/sim/soak.py --seeds 1000`.

Each seed is one history (see `scenarios`).  A failing one is printed with what was seen, as a line
for `corpus.txt`, where it belongs once it is understood.  In the end a table says what the mesh is
worth in each setting (see `settings`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import multiprocessing
import sys
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from sim import settings  # noqa: E402
from sim.memo import remember_signatures  # noqa: E402
from sim.scenarios import run_chaos, run_partition  # noqa: E402

CORPUS = Path(__file__).with_name("corpus.txt")
SIZES = [2, 3, 5, 6, 8, 12]
_PROGRESS_INTERVAL = 5.0


def corpus():
    """Return the kept histories as (seed, size)."""
    lines = [line.partition("#")[0].split() for line in CORPUS.read_text().splitlines()]
    return [(int(seed), int(size)) for seed, size in filter(None, lines)]


def history(seed_and_size):
    """Run one history.  Return (seed, size), seconds it took to heal, and what was wrong."""
    remember_signatures()
    seed, size = seed_and_size
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            cluster = run_chaos(seed, size=size)
        except Exception:  # any error at all is what is searched for
            return seed_and_size, 0.0, traceback.format_exc()
    return seed_and_size, cluster.healed_after, ""


def search(histories, *, processes):
    """Run histories on all cores.  Return those that failed, and the slowest healing."""
    failed = []
    slowest = 0.0
    said_at = begin = time.monotonic()
    with multiprocessing.Pool(processes) as pool:
        done = enumerate(pool.imap_unordered(history, histories, chunksize=4), start=1)
        for count, ((seed, size), healed_after, wrong) in done:
            slowest = max(slowest, healed_after)
            if wrong:
                failed.append((seed, size))
                print(f"\n{wrong}\n{seed} {size} # for {CORPUS.name}\n", flush=True)
            if time.monotonic() - said_at > _PROGRESS_INTERVAL:
                said_at = time.monotonic()
                rate = count / (said_at - begin)
                print(f"{count} of {len(histories)}, {rate:.1f} / s, {len(failed)} failed")
    return failed, slowest


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="how many to try")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="where to begin")
    parser.add_argument("--size", type=int, default=None, help="hosts in each mesh")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), metavar="N")
    parser.add_argument("--long", action="store_true", help="also a partition of an hour, N = 100")
    parser.add_argument("--no-table", action="store_true", help="search only")
    arguments = parser.parse_args()
    sizes = itertools.cycle([arguments.size] if arguments.size else SIZES)
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    failed, slowest = search(list(zip(seeds, sizes, strict=False)), processes=arguments.jobs)
    print(f"{arguments.seeds} seeds, slowest healed after {slowest:.1f} s, failed: {failed or 0}")
    if arguments.long:
        healed_after = run_partition(arguments.first, size=100).healed_after
        print(f"two halves of 100, an hour apart, merged in {healed_after:.1f} s")
    if not arguments.no_table:
        every = itertools.product(settings.SETTINGS, (5, 25), range(3))
        jobs = [settings.Job(setting.name, size, None, seed) for setting, size, seed in every]
        print("\n" + settings.by_setting(settings.run_all(jobs, processes=arguments.jobs)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
