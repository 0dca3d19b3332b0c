"""Search for a seed that breaks the mesh: `tests/sim/soak.py --seeds 1000`.

Each seed is one history (see `scenarios`).  A failing one is printed with what was seen; add it to
CORPUS in `test_sim_chaos.py` once it is understood.
"""

import argparse
import itertools
import sys
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from sim.scenarios import run_chaos  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="how many to try")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="where to begin")
    parser.add_argument("--size", type=int, default=None, help="hosts in each mesh")
    arguments = parser.parse_args()
    sizes = itertools.cycle([2, 3, 5, 6, 8, 12])
    failed = []
    slowest = 0.0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        size = arguments.size or next(sizes)
        try:
            cluster = run_chaos(seed, size=size)
        except AssertionError:
            traceback.print_exc()
            failed.append((seed, size))
        else:
            slowest = max(slowest, cluster.healed_after)
    print(f"{arguments.seeds} seeds, slowest healed after {slowest:.1f} s, failed: {failed or 0}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
