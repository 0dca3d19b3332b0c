"""Nothing that touches bytes from outside is left out of the fuzzers' reach."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import reach

# Reached by a long search, or by tests of their own, and why not by a short one.
NOT_REACHED = {
    ("bootstrap/approval_member.py", "_drop_half_open_untrusted"): "takes 64 half-open sessions",
    ("engine/following.py", "take_token_untrusted"): "takes the answer to a request by token",
    ("engine/following.py", "verify_untrusted"): "takes the answer to a request by token",
    ("engine/rekeying.py", "_check_untrusted"): "takes the answer to a question just asked",
    ("engine/renewal.py", "_renewed_untrusted"): "takes the answer to a question just asked",
    ("gossip/store.py", "merge_untrusted"): "a protocol's; the ledger's is reached",
    ("preshared/kem.py", "decapsulate_untrusted"): "a protocol's; ML-KEM's is reached",
    ("preshared/kem.py", "encapsulate_untrusted"): "a protocol's; ML-KEM's is reached",
}


@pytest.fixture(scope="module")
def reached():
    tests = Path(__file__).resolve().parent.parent
    paths = os.pathsep.join(map(str, (tests.parent, tests, tests.parent / "netns-lab")))
    program = [sys.executable, "-m", "fuzz.reach"]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    return {tuple(function) for function in json.loads(done.stdout)}


def test_every_function_that_touches_bytes_from_outside_is_fuzzed(reached):
    missed = [f for f in reach.all_untrusted() if f not in reached and f not in NOT_REACHED]

    assert not missed, f"register them in a decoders_* module, it takes a line: {missed}"


def test_what_is_said_to_be_out_of_reach_is_there():
    assert [f for f in NOT_REACHED if f not in reach.all_untrusted()] == []
