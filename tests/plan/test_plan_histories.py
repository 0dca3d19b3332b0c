"""Whatever happens to claims ends in one plan; `claim_histories` run as a program tries more."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan.claim_histories import History, run_history


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_every_history_of_claims_ends_in_one_plan_without_conflicts(seed):
    run_history(seed)


def test_the_histories_have_what_they_are_meant_to_have():
    """Conflicts, moves, pins, full prefixes: else the property above says little."""
    moved = pinned = without = 0
    for seed in range(40):
        history = History(seed)
        history.run()
        for node in history.running:
            moved += node.moves
            pinned += node.credential.ipv4 is not None
            without += node.ipv4 is None

    assert moved > 20
    assert pinned > 5
    assert without


def test_a_rule_that_depends_on_the_order_is_found_out(monkeypatch):
    """The histories fail where the first to be heard wins, as they should."""

    def first_come(claims, prefix):
        holders = {}
        for claim in reversed(list(claims)):
            holders[claim.address] = claim
        return {claim.node: address for address, claim in holders.items()}

    monkeypatch.setattr("plan.claim_histories.resolve_claims", first_come)

    def run_some():
        for seed in range(50):
            run_history(seed)

    with pytest.raises(AssertionError):
        run_some()
