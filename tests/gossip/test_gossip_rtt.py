"""How long an ack may take: RFC 6298, clamped, and what all take for whom nobody has measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.harness import QUIET, Bench, key, to
from meshd.gossip.config import GossipConfig
from meshd.gossip.rtt import RoundTrip, allowance, measured
from meshd.gossip.wire import MessageType

CONFIG = GossipConfig()
samples = st.lists(st.floats(1e-5, 10.0), min_size=1, max_size=50)


def estimate(values):
    known = None
    for value in values:
        known = measured(known, value)
    return known


def clamped(known):
    return allowance(known, minimum=0.1, maximum=0.5)


def test_the_first_measurement_is_the_estimate_and_half_of_it_the_variation():
    assert measured(None, 0.08) == RoundTrip(0.08, 0.04)
    assert measured(None, 0.08).allowance == pytest.approx(0.08 + 4 * 0.04)


def test_the_estimate_is_that_of_rfc_6298():
    # SRTT = 7/8 SRTT + 1/8 R; RTTVAR = 3/4 RTTVAR + 1/4 |SRTT - R|, by the SRTT before.
    known = measured(RoundTrip(0.1, 0.02), 0.3)
    assert known.smoothed == pytest.approx(0.875 * 0.1 + 0.125 * 0.3)
    assert known.variation == pytest.approx(0.75 * 0.02 + 0.25 * 0.2)


@given(samples)
def test_any_history_gives_what_the_rfc_gives(values):
    smoothed, variation = values[0], values[0] / 2
    for value in values[1:]:
        variation = 3 / 4 * variation + 1 / 4 * abs(smoothed - value)
        smoothed = 7 / 8 * smoothed + 1 / 8 * value
    known = estimate(values)
    assert known.smoothed == pytest.approx(smoothed)
    assert known.variation == pytest.approx(variation)


def test_a_sudden_delay_is_followed_within_a_few_samples():
    known, allowed = None, []
    for value in (0.010, 0.010, 0.012, 0.080, 0.080, 0.080):
        known = measured(known, value)
        allowed.append(round(clamped(known), 3))
    assert allowed == [0.1, 0.1, 0.1, 0.1, 0.147, 0.177]


@given(samples)
def test_the_estimate_stays_among_what_was_measured(values):
    known = estimate(values)
    assert min(values) * 0.999 <= known.smoothed <= max(values) * 1.001
    assert 0 <= known.variation <= max(values)


@given(st.none() | st.builds(RoundTrip, st.floats(0, 100), st.floats(0, 100)))
def test_the_allowance_is_clamped(known):
    assert 0.1 <= clamped(known) <= 0.5


@pytest.mark.parametrize(
    ("known", "allowed"),
    [
        (None, 0.5),
        (RoundTrip(0.001, 0.0005), 0.1),
        (RoundTrip(0.2, 0.02), 0.28),
        (RoundTrip(0.2, 0.2), 0.5),
    ],
)
def test_the_allowance_is_short_on_a_lan_and_long_across_an_ocean(known, allowed):
    assert clamped(known) == pytest.approx(allowed)


# In a node


def answer_operator(bench, name, rtt):
    """Have a member be measured."""
    sequence = bench.node.ping(key(name).id, bench.now)
    bench.now += rtt
    bench.receive(name, MessageType.ACK, sequence=sequence)


def allowed(bench, name):
    return bench.node._membership.allowance(key(name).id)


def test_a_member_is_allowed_what_its_own_round_trips_take():
    bench = Bench("a", "b", config=QUIET)
    bench.meet("a", "b")
    for _ in range(30):
        answer_operator(bench, "a", 0.001)
        answer_operator(bench, "b", 0.3)
    assert allowed(bench, "a") == CONFIG.probe_timeout_min
    assert 0.3 < allowed(bench, "b") < 0.35
    assert bench.view("b").rtt == pytest.approx(0.3)


def test_a_member_that_was_not_measured_is_allowed_what_all_take():
    bench = Bench("a", "b", config=QUIET)
    bench.meet("a", "b")
    assert allowed(bench, "b") == CONFIG.probe_timeout, "nobody was measured"
    for _ in range(30):
        answer_operator(bench, "a", 0.2)
    assert bench.view("b").rtt is None
    assert allowed(bench, "b") == pytest.approx(allowed(bench, "a"))
    assert allowed(bench, "b") < CONFIG.probe_timeout


def test_with_one_timeout_for_all_round_trips_are_not_followed():
    bench = Bench("a", config=GossipConfig(probe_timeout_min=0.5, probe_interval=1e5))
    bench.meet("a")
    for _ in range(30):
        answer_operator(bench, "a", 0.001)
    assert allowed(bench, "a") == CONFIG.probe_timeout


def test_an_ack_that_another_asked_for_measures_nothing():
    bench = Bench("a", "b", config=QUIET)
    bench.meet("a", "b")
    sent = bench.receive("a", MessageType.PING_REQ, sequence=5, target=key("b").id)
    (ping,) = to(sent, "b", MessageType.PING)
    bench.now += 0.05
    bench.receive("b", MessageType.ACK, sequence=ping.sequence)
    assert bench.view("b").rtt is None
