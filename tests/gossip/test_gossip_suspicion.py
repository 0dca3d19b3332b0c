"""Lifeguard's countdown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gossip.config import GossipConfig
from meshd.gossip.suspicion import Suspicion, start_suspicion

CONFIG = GossipConfig()


def suspicion(**kwargs):
    defaults = {
        "started_at": 100.0,
        "timeout_min": 2.0,
        "timeout_max": 30.0,
        "confirmations_expected": 3,
    }
    return Suspicion(**(defaults | kwargs))


@pytest.mark.parametrize(
    ("accusers", "timeout"), [(1, 30.0), (2, 16.0), (3, 7.8105), (4, 2.0), (5, 2.0)]
)
def test_confirmations_shorten_the_timeout(accusers, timeout):
    assert suspicion().deadline(accusers) - 100.0 == pytest.approx(timeout, abs=1e-3)


def test_without_confirmations_the_timeout_is_the_same_for_all():
    assert suspicion(confirmations_expected=0).deadline(1) == 102.0
    assert suspicion(confirmations_expected=0).deadline(9) == 102.0


@given(st.integers(1, 20), st.integers(0, 8))
def test_one_more_accuser_never_lengthens_the_timeout(accusers, expected):
    terms = suspicion(confirmations_expected=expected)
    assert 102.0 <= terms.deadline(accusers + 1) <= terms.deadline(accusers) <= 130.0


def begun(*, members=10, round_trip=0.0, **numbers):
    config = GossipConfig(**numbers)
    return start_suspicion(5.0, members=members, round_trip=round_trip, config=config)


def refutations(count, *, interval=CONFIG.refutation_interval, one_way=0.0):
    """How long so many take."""
    return pytest.approx(count * (interval + one_way))


@pytest.mark.parametrize(
    ("members", "count"),
    [(0, 4), (2, 4), (4, 4), (10, 4), (100, 8), (1000, 12), (10_000, 16)],
)
def test_the_timeout_grows_with_the_logarithm_of_the_mesh(members, count):
    terms = begun(members=members)
    assert terms.started_at == 5.0
    assert terms.timeout_min == refutations(count)
    assert terms.timeout_max == refutations(6 * count)


def test_the_wait_is_counted_in_what_a_refutation_takes():
    # Half a round trip more: for the answer to come our way.
    assert begun(round_trip=0.12).timeout_min == refutations(4, one_way=0.06)
    assert begun(refutation_interval=0.3).timeout_min == refutations(4, interval=0.3)
    assert begun(probe_interval=9.0).timeout_min == begun().timeout_min


def test_round_trips_that_take_for_ever_do_not_make_it_wait_for_ever():
    longest = CONFIG.probe_timeout
    assert begun(round_trip=longest).timeout_min == refutations(4, one_way=longest / 2)
    assert begun(round_trip=9.0).timeout_min == begun(round_trip=longest).timeout_min


@pytest.mark.parametrize("members", [2, 3, 4, 100])
def test_fewer_witnesses_do_not_mean_less_doubt(members):
    terms = begun(members=members)
    assert terms.confirmations_expected == 3
    assert terms.deadline(1) == pytest.approx(5.0 + terms.timeout_max)


def test_a_countdown_begun_anew_has_the_same_terms_and_is_counted():
    terms = begun()
    again = terms.extended(9.0)
    assert again.extensions == terms.extensions + 1
    for accusers in range(1, 6):
        assert again.deadline(accusers) - 9.0 == pytest.approx(terms.deadline(accusers) - 5.0)
