"""How long an ack may take: RFC 6298, clamped, and what others took for who was not measured."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.harness import QUIET, Bench, accuse, key, to
from meshd.gossip.config import GossipConfig
from meshd.gossip.pinger import CROWD_INTERVAL, CROWD_MIN
from meshd.gossip.pings import PingPurpose
from meshd.gossip.rtt import RECENT_MAX, RecentRoundTrips, RoundTrip, allowance, measured
from meshd.gossip.wire import MessageType

CONFIG = GossipConfig()
durations = st.floats(1e-5, 10.0)
samples = st.lists(durations, min_size=1, max_size=50)


def estimate(values):
    known = None
    for value in values:
        known = measured(known, value)
    return known


def recent(values=()):
    round_trips = RecentRoundTrips()
    for value in values:
        round_trips.add(value)
    return round_trips


def clamped(known, others=()):
    return allowance(known, recent(others), minimum=0.1, maximum=0.5)


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


@given(
    st.none() | st.builds(RoundTrip, st.floats(0, 100), st.floats(0, 100)),
    st.lists(st.floats(0, 100), max_size=20),
)
def test_the_allowance_is_clamped(known, others):
    assert 0.1 <= clamped(known, others) <= 0.5


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


# Of all members together


@pytest.mark.parametrize(
    ("others", "allowed"),
    [
        ([], 0.5),
        ([0.001] * 9, 0.1),
        ([0.08], 0.16),
        ([0.001] * 4 + [0.12] + [0.001] * 4, 0.24),
        ([0.12] + [0.001] * 8, 0.24),
        ([0.12] + [0.001] * 9, 0.1),
        ([0.3, 0.001], 0.5),
    ],
)
def test_who_was_not_measured_is_allowed_twice_the_longest_of_the_last(others, allowed):
    assert clamped(None, others) == pytest.approx(allowed)


@given(samples)
def test_only_the_last_few_round_trips_matter(values):
    last = values[-RECENT_MAX:]
    assert recent(values).allowance == 2 * max(last)
    assert recent(values).typical == statistics.median_high(last)


@given(samples)
def test_whoever_was_measured_is_not_judged_by_others(others):
    assert clamped(RoundTrip(0.2, 0.02), others) == clamped(RoundTrip(0.2, 0.02))


def test_where_nothing_was_measured_nothing_is_typical():
    assert recent().typical == 0.0
    assert recent().allowance is None


@given(
    st.lists(durations, min_size=RECENT_MAX, max_size=RECENT_MAX),
    st.integers(0, RECENT_MAX - 1),
    st.floats(0, 1e6),
)
def test_one_bad_moment_does_not_move_what_is_typical_beyond_its_neighbours(values, at, outlier):
    calm, middle = sorted(values), RECENT_MAX // 2
    assert recent(values).typical == calm[middle]
    values[at] = outlier
    assert calm[middle - 1] <= recent(values).typical <= calm[middle + 1]


# In a node


def answer_operator(bench, name, rtt):
    """Have a member be measured."""
    sequence = bench.node.ping(key(name).id, bench.now)
    bench.now += rtt
    bench.receive(name, MessageType.ACK, sequence=sequence)


def answer(bench, name, rtt, purpose=PingPurpose.PROBE):
    """Have a member be measured by a ping of some purpose."""
    sequence = bench.node._pinger.ping(key(name).id, purpose, bench.now)
    bench._drain()
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


def test_a_member_that_was_not_measured_is_allowed_twice_what_others_took():
    bench = Bench("a", "b", "c", config=QUIET)
    bench.meet("a", "b", "c")
    assert allowed(bench, "b") == CONFIG.probe_timeout, "nobody was measured"
    answer(bench, "a", 0.15)
    for _ in range(RECENT_MAX - 1):
        answer(bench, "c", 0.06)
    assert bench.view("b").rtt is None
    assert allowed(bench, "b") == pytest.approx(2 * 0.15), "whosever it was"
    answer(bench, "c", 0.06)
    assert allowed(bench, "b") == pytest.approx(2 * 0.06), "that of the other is long ago"


@pytest.mark.parametrize(
    ("purpose", "typical"),
    [
        (PingPurpose.PROBE, True),
        (PingPurpose.WATCH, True),
        (PingPurpose.CONTACT, False),
        (PingPurpose.OPERATOR, False),
    ],
)
def test_only_pings_at_ordinary_times_tell_what_is_typical_of_the_mesh(purpose, typical):
    bench = Bench("a", "b", config=QUIET)
    bench.meet("a", "b")
    answer(bench, "a", 0.08, purpose)
    assert bench.view("a").rtt == pytest.approx(0.08), "it is measured itself"
    assert allowed(bench, "b") == pytest.approx(2 * 0.08 if typical else CONFIG.probe_timeout)


@pytest.mark.parametrize(
    ("round_trips", "typical"), [([], 0.0), ([0.06], 0.06), ([0.06] * 5 + [0.4] * 4, 0.06)]
)
def test_a_suspect_has_as_long_as_is_typical_of_the_mesh(round_trips, typical):
    bench = Bench("a", "b", "c", config=QUIET)
    bench.meet("a", "b", "c")
    for rtt in round_trips:
        answer(bench, "a", rtt)
    bench.receive("a", items=[accuse("b", by="a")])
    refutation = CONFIG.refutation_interval + typical / 2
    timeout_min = bench.member("b").suspicion.timeout_min
    assert timeout_min == pytest.approx(CONFIG.suspicion_mult * refutation)


@pytest.mark.parametrize("purpose", [PingPurpose.PROBE, PingPurpose.CONTACT, PingPurpose.OPERATOR])
def test_who_is_in_trouble_measures_nobody(purpose):
    bench = Bench("a", "b", config=QUIET)
    bench.meet("a", "b")
    bench.node._health.worse()
    answer(bench, "a", 0.08, purpose)
    assert bench.view("a").rtt is None
    assert allowed(bench, "b") == CONFIG.probe_timeout
    bench.node._health.better()
    answer(bench, "a", 0.08, purpose)
    assert bench.view("a").rtt == pytest.approx(0.08)


# A crowd: many members met at once

CROWD = [f"m{number}" for number in range(CROWD_MIN + 3)]


def contacts(bench, names, pause=0.0):
    """Have paths become ready one after the other.  Return each member's ping."""
    pings = {}
    for name in names:
        (pings[name],) = to(bench.do("contact", key(name).id, bench.now), name, MessageType.PING)
        bench.now += pause
    return pings


def measured_in(pings, bench):
    """Answer pings a little later.  Return who has been measured by it."""
    bench.now += 0.05
    for name, ping in pings.items():
        bench.receive(name, MessageType.ACK, sequence=ping.sequence)
    return [name for name in pings if bench.view(name).rtt is not None]


def crowd():
    bench = Bench(*CROWD, config=QUIET)
    bench.meet(*CROWD)
    bench.now += 10.0
    return bench


def test_who_is_met_in_a_crowd_is_not_measured():
    bench = crowd()
    assert measured_in(contacts(bench, CROWD), bench) == CROWD[: CROWD_MIN - 1]


def test_members_met_one_after_the_other_are_no_crowd():
    bench = crowd()
    unhurried = CROWD_INTERVAL / (CROWD_MIN - 1) * 1.01
    assert measured_in(contacts(bench, CROWD, unhurried), bench) == CROWD
    bench = crowd()
    hurried = CROWD_INTERVAL / (CROWD_MIN - 1) * 0.99
    assert measured_in(contacts(bench, CROWD, hurried), bench) == CROWD[: CROWD_MIN - 1]


def test_after_a_crowd_members_are_measured_again():
    bench = crowd()
    contacts(bench, CROWD)
    bench.now += CROWD_INTERVAL
    assert measured_in(contacts(bench, CROWD[-1:]), bench) == CROWD[-1:]


def test_many_pings_at_ordinary_times_are_no_crowd():
    bench = crowd()
    for name in CROWD:
        answer(bench, name, 0.001)
    assert all(bench.view(name).rtt is not None for name in CROWD)
    bench.now += 0.2
    assert measured_in(contacts(bench, CROWD[:1]), bench) == CROWD[:1]


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
