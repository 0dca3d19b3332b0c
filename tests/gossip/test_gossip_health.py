"""Lifeguard's local health: what makes us doubt ourselves, and what we do then."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.harness import QUIET, Bench, accuse, alive, key, name_of, to
from meshd.gossip.config import GossipConfig
from meshd.gossip.health import Health
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import MessageType

NAMES = "abcde"
CONFIG = GossipConfig()


def probing(*names, config=None):
    """A node that has just probed somebody.  Return it, the probe and whom it is of."""
    bench = Bench(*names, config=config or GossipConfig(stream_timeout=0))
    bench.meet(*names)
    probe, target = bench.advance_to(MessageType.PING)
    bench.node._timers.cancel(TimerKind.PROBE)  # this one is enough
    return bench, probe, name_of(target, names)


def until_judged(bench, name):
    """Let time pass until the silence of a member is judged."""
    bench.advance(bench.deadline(TimerKind.PROBE_TIMEOUT, name))
    bench.advance(bench.deadline(TimerKind.PROBE_END, name) - 0.001)


# The score


def test_a_score_stretches_by_one_more_than_itself():
    health = Health(score_max=8)
    assert (health.score, health.multiplier) == (0, 1)
    health.worse(3)
    assert (health.score, health.multiplier) == (3, 4)
    health.better()
    assert (health.score, health.multiplier) == (2, 3)


@given(st.integers(0, 10), st.lists(st.integers(-1, 4), max_size=60))
def test_the_score_never_leaves_its_bounds(score_max, hints):
    health, score = Health(score_max=score_max), 0
    for hint in hints:
        if hint < 0:
            health.better()
        else:
            health.worse(hint)
        score = min(max(score + hint, 0), score_max)
        assert health.score == score
        assert health.multiplier == score + 1


def test_who_never_doubts_itself_has_no_score():
    health = Health(score_max=0)
    health.worse(100)
    assert health.multiplier == 1


@pytest.mark.parametrize("trouble", ["refuted", "stumbled"])
def test_the_same_trouble_counts_once_until_something_goes_as_it_should(trouble):
    health = Health(score_max=8)
    for _ in range(5):
        getattr(health, trouble)()
    assert health.score == 1
    health.better()
    assert health.score == 0
    for _ in range(5):
        getattr(health, trouble)()
    assert health.score == 1


def test_two_troubles_are_two():
    health = Health(score_max=8)
    health.stumbled()
    health.refuted()
    health.stumbled()
    assert health.score == 2
    health.worse()
    assert health.score == 3, "nor do they hide others"


# The table


def test_an_ack_makes_it_better():
    bench, probe, target = probing(*NAMES)
    bench.node._health.worse(3)
    bench.receive(target, MessageType.ACK, sequence=probe.sequence)
    assert bench.health == 2


def test_an_ack_to_a_ping_from_before_the_probe_is_no_ack_of_the_probe():
    bench = Bench("a", config=QUIET)
    bench.meet("a")
    sequence = bench.node.ping(key("a").id, bench.now)
    bench.advance(0.1)
    bench.node._health.worse(3)
    bench.node._prober.take_turn(bench.now)
    bench.receive("a", MessageType.ACK, sequence=sequence)
    assert bench.health == 3


@pytest.mark.parametrize("nacks", [0, 1, 2, 3])
def test_a_failed_probe_makes_it_worse_by_each_nack_that_did_not_come(nacks):
    bench, probe, target = probing(*NAMES)
    sent = bench.advance(bench.deadline(TimerKind.PROBE_TIMEOUT, target))
    helpers = [name for name in NAMES if to(sent, name, MessageType.PING_REQ)]
    assert len(helpers) == 3
    for name in helpers[:nacks]:
        bench.receive(name, MessageType.NACK, sequence=probe.sequence, target=key(target).id)
    bench.advance(bench.deadline(TimerKind.PROBE_END, target) - 0.001)
    assert bench.health == 0
    bench.advance(0.002)
    assert bench.node.statistics().probes_failed == 1
    assert bench.health == 3 - nacks


def test_a_nack_said_twice_is_one_nack():
    bench, probe, target = probing(*NAMES)
    sent = bench.advance(bench.deadline(TimerKind.PROBE_TIMEOUT, target))
    helper = next(name for name in NAMES if to(sent, name, MessageType.PING_REQ))
    for _ in range(3):
        bench.receive(helper, MessageType.NACK, sequence=probe.sequence, target=key(target).id)
    bench.advance(bench.deadline(TimerKind.PROBE_END, target) + 0.001)
    assert bench.health == 2


def test_a_nack_from_who_was_not_asked_is_none():
    bench, probe, target = probing(*NAMES)
    bench.advance(bench.deadline(TimerKind.PROBE_TIMEOUT, target))
    asked = bench.node._prober._probes[key(target).id].asked
    stranger = next(n for n in NAMES if key(n).id not in asked and n != target)
    for name in (stranger, target):
        bench.receive(name, MessageType.NACK, sequence=probe.sequence, target=key(target).id)
    # The target was heard, and so is asked again; see `evidence`.
    assert bench.node._prober._probes[key(target).id].nacks == set()


def test_of_those_asked_late_no_nack_is_missed():
    names = [f"m{number}" for number in range(20)]
    bench, probe, target = probing(*names)
    bench.advance(bench.deadline(TimerKind.PROBE_TIMEOUT, target))
    asked = bench.node._prober._probes[key(target).id].asked
    for node in asked:
        helper = name_of(node, names)
        bench.receive(helper, MessageType.NACK, sequence=probe.sequence, target=key(target).id)
    bench.advance(bench.deadline(TimerKind.PROBE_TIMEOUT, target))
    assert set(bench.node._prober._probes[key(target).id].asked_again) - set(asked)
    bench.advance(bench.deadline(TimerKind.PROBE_END, target) + 0.001)
    assert bench.node.statistics().probes_failed == 1
    assert bench.health == 0


def test_a_failed_probe_with_nobody_to_ask_makes_it_worse_by_one():
    bench, _, target = probing("a")
    until_judged(bench, target)
    assert bench.health == 0
    bench.advance(0.002)
    assert bench.health == 1


def test_to_be_suspected_makes_it_worse_by_one():
    bench = Bench("a", "b", config=QUIET)
    bench.meet("a", "b")
    bench.receive("a", items=[accuse("me", by="a"), accuse("me", by="b")])
    assert bench.node.incarnation == 2
    assert bench.health == 1, "it was refuted once"
    bench.receive("a", items=[accuse("me", 1, by="b")])
    assert bench.health == 1, "that is refuted already"


def test_whoever_accuses_us_again_and_again_does_not_slow_us_down():
    bench = Bench(*NAMES)
    bench.meet(*NAMES)
    for _ in range(60):
        bench.receive("a", items=[accuse("me", bench.node.incarnation, by="a")])
        bench.run_with(0.5, *NAMES)
        assert bench.health <= 1
    assert bench.node.incarnation == 61


def test_to_be_suspected_counts_again_after_an_ack():
    bench, probe, target = probing(*NAMES)
    bench.receive("a", items=[accuse("me", 1, by="a")])
    bench.receive("a", items=[accuse("me", 2, by="a")])
    assert bench.health == 1
    bench.receive(target, MessageType.ACK, sequence=probe.sequence)
    assert bench.health == 0
    bench.receive("a", items=[accuse("me", 3, by="a")])
    assert bench.health == 1


def test_our_own_word_from_an_earlier_run_says_nothing_of_our_health():
    bench = Bench("a", config=QUIET)
    bench.meet("a")
    bench.receive("a", items=[alive("me", 7)])
    assert bench.node.incarnation == 8
    assert bench.health == 0


@pytest.mark.parametrize(("late", "score"), [(0.0, 0), (0.04, 0), (0.09, 0), (0.11, 1), (60.0, 1)])
def test_a_timer_that_is_late_by_as_long_as_an_ack_may_take_makes_it_worse_by_one(late, score):
    bench = Bench("a", "b")
    bench.meet("a", "b")
    bench.now = bench.node.get_timer().at
    bench.stop(late)
    bench.resume()
    assert bench.health == score


def test_a_late_confirmation_is_not_a_late_timer():
    bench = Bench(*NAMES, config=QUIET)
    bench.meet(*NAMES)
    bench.receive("a", items=[accuse("e", by="a")])
    bench.advance(2.0)
    health = bench.health
    bench.receive("a", items=[accuse("e", by=name) for name in "bcd"])
    assert bench.deadline(TimerKind.SUSPICION, "e") == 0.0, "it is due, but not overdue"
    bench.resume()
    assert bench.health == health


# What follows


@pytest.mark.parametrize("score", [0, 1, 5, 8])
def test_who_doubts_itself_probes_less_often_and_waits_longer(score):
    bench = Bench(*NAMES)
    bench.meet(*NAMES)
    bench.node._health.worse(score)
    _, target = bench.advance_to(MessageType.PING)
    name = name_of(target, NAMES)
    assert bench.deadline(TimerKind.PROBE) == pytest.approx((score + 1) * CONFIG.probe_interval)
    wait = bench.deadline(TimerKind.PROBE_TIMEOUT, name)
    assert wait == pytest.approx((score + 1) * CONFIG.probe_timeout)


def test_who_doubts_itself_gives_others_the_same_time_once_it_has_asked_for_help():
    bench, _, target = probing(*NAMES)
    bench.node._health.worse(8)
    bench.advance(bench.deadline(TimerKind.PROBE_TIMEOUT, target))
    probe = bench.node._prober._probes[key(target).id]
    until_end = bench.deadline(TimerKind.PROBE_END, target)
    assert until_end == pytest.approx(probe.allowance + CONFIG.probe_timeout)
