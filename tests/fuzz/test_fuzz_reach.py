"""Nothing that touches bytes from outside is left out of the fuzzers' reach."""

import pytest

from fuzz import reach, targets
from fuzz.life import Life

INPUTS = 300
LIFE_INPUTS = 2_000

# Reached by a long search, or by tests of their own, and why not by a short one.
NOT_REACHED = {
    ("bootstrap/approval_member.py", "_drop_half_open_untrusted"): "takes 64 half-open sessions",
    ("engine/following.py", "take_token_untrusted"): "takes the answer to a request by token",
    ("engine/following.py", "verify_untrusted"): "takes the answer to a request by token",
    ("engine/renewal.py", "_renewed_untrusted"): "takes the answer to a question just asked",
    ("gossip/store.py", "merge_untrusted"): "a protocol's; the ledger's is reached",
    ("preshared/kem.py", "decapsulate_untrusted"): "a protocol's; ML-KEM's is reached",
    ("preshared/kem.py", "encapsulate_untrusted"): "a protocol's; ML-KEM's is reached",
}


@pytest.fixture(scope="module")
def reached():
    with reach.Reached() as noted:
        for name, make in targets.TARGETS.items():
            make.cache_clear()  # what makes its first inputs counts, whoever has used it before
            targets.fuzz(name, inputs=INPUTS, seed="reach")
        Life("reach", LIFE_INPUTS).run()
    return noted.functions


def test_every_function_that_touches_bytes_from_outside_is_fuzzed(reached):
    missed = [f for f in reach.all_untrusted() if f not in reached and f not in NOT_REACHED]

    assert not missed, f"register them in a decoders_* module, it takes a line: {missed}"


def test_what_is_said_to_be_out_of_reach_is_there():
    assert [f for f in NOT_REACHED if f not in reach.all_untrusted()] == []
