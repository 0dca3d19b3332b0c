"""Chaos asserts safety; then the network heals, and convergence is demanded in a stated time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshd.gossip.config import GossipConfig
from sim.scenarios import run_chaos
from sim.soak import corpus

ROOT = Path(__file__).parents[2]

SEEDS = [(seed, size) for size in (2, 3, 6) for seed in range(8)]


@pytest.mark.parametrize(("seed", "size"), SEEDS + corpus())
def test_whatever_happens_the_mesh_heals_once_the_network_has(seed, size):
    run_chaos(seed, size=size)


def test_a_larger_mesh_heals_as_well():
    run_chaos(1, size=16, chaos_seconds=40.0)


def run_many(seeds, **kwargs):
    for seed in seeds:
        run_chaos(seed, **kwargs)


def test_chaos_finds_out_a_mesh_that_concludes_too_soon():
    hasty = GossipConfig(suspicion_mult=0.2, confirmations_expected=0, observers=0)
    with pytest.raises(AssertionError, match="is dead"):
        run_many(range(20), size=8, config=hasty)


def test_one_seed_is_one_history():
    first, second = (run_chaos(7, chaos_seconds=30.0) for _ in range(2))
    assert first.trace == second.trace
    assert first.trace_hash == second.trace_hash
    assert first.trace_hash != run_chaos(8, chaos_seconds=30.0).trace_hash


def test_a_history_does_not_depend_on_how_python_hashes_strings():
    script = (
        "from sim.scenarios import run_chaos; print(run_chaos(7, chaos_seconds=30.0).trace_hash)"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": path, "PATH": os.defpath},
            capture_output=True,
            check=True,
            text=True,
            cwd=ROOT,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1, outputs


def test_the_soak_runs_and_says_what_it_found():
    command = [sys.executable, str(ROOT / "tests" / "sim" / "soak.py"), "--seeds", "2"]
    command.append("--no-table")
    result = subprocess.run(command, capture_output=True, check=True, text=True, cwd=ROOT)
    assert "2 seeds" in result.stdout
    assert "failed: 0" in result.stdout
