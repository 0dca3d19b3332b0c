"""Lifeguard's countdown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gossip.suspicion import Suspicion, start_suspicion


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


def test_with_nobody_left_to_confirm_the_timeout_is_short_from_the_start():
    assert suspicion(confirmations_expected=0).deadline(1) == 102.0


@given(st.integers(1, 20), st.integers(0, 8))
def test_one_more_accuser_never_lengthens_the_timeout(accusers, expected):
    terms = suspicion(confirmations_expected=expected)
    assert 102.0 <= terms.deadline(accusers + 1) <= terms.deadline(accusers) <= 130.0


@pytest.mark.parametrize(
    ("members", "expected", "timeout_min"),
    [(2, 0, 4.0), (3, 1, 4.0), (4, 2, 4.0), (10, 2, 4.0), (100, 2, 8.0), (1000, 2, 12.0)],
)
def test_the_timeout_grows_with_the_logarithm_of_the_mesh(members, expected, timeout_min):
    terms = start_suspicion(
        5.0,
        members=members,
        probe_interval=1.0,
        suspicion_mult=4.0,
        suspicion_max_timeout_mult=6.0,
        confirmations_expected=2,
    )
    assert terms.confirmations_expected == expected
    assert terms.timeout_min == pytest.approx(timeout_min)
    assert terms.timeout_max == pytest.approx(6.0 * timeout_min)
