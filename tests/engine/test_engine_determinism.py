"""The same seed gives the same history, in this process and in any other."""

import os
import subprocess
import sys
from pathlib import Path

from engine.engine_world import World

TESTS = Path(__file__).parents[1]


def history(seed):
    """Return the trace of a small mesh to which all sorts of things happen."""
    world = World(seed=seed)
    world.underlay.loss = 0.05
    machines = world.mesh_of(4, within=30.0)
    late = world.machine("late")
    late.start(token=machines[0].invite())
    world.run_for(2.0)
    machines[1].renumber("198.51.100.1")
    machines[2].kill()
    world.run_for(5.0)
    machines[2].start()
    late.leave()
    world.run_for(5.0)
    underlay = world.underlay
    return world.trace_hash, underlay.bytes, underlay.sealed_bytes


def test_one_seed_has_one_history():
    assert history(1) == history(1)


def test_another_seed_has_another():
    assert history(1) != history(2)


def test_the_order_of_sets_and_hashes_has_no_part_in_it():
    code = "from engine.test_engine_determinism import history; print(history(3))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("1", "2")
    ]

    first, second = (process.communicate()[0] for process in processes)

    assert first == second
    assert first.startswith("(")
