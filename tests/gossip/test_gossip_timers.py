"""Deadlines: replaced, cancelled, due in order."""

import math

from hypothesis import given
from hypothesis import strategies as st

from meshd.gossip.timers import TimerKind, Timers


def test_the_soonest_deadline_is_next_with_its_reason():
    timers = Timers()
    timers.set(TimerKind.PROBE, 2.0)
    timers.set(TimerKind.CONTACT, 1.0, b"a")
    assert timers.next() == (1.0, "contact")


def test_setting_a_deadline_again_replaces_it():
    timers = Timers()
    timers.set(TimerKind.PROBE, 1.0)
    timers.set(TimerKind.PROBE, 5.0)
    assert timers.pop_due(4.0) is None
    assert timers.pop_due(5.0) == (TimerKind.PROBE, None)
    assert timers.pop_due(5.0) is None


def test_a_cancelled_deadline_does_not_fall_due():
    timers = Timers()
    timers.set(TimerKind.CONTACT, 1.0, b"a")
    timers.cancel(TimerKind.CONTACT, b"a")
    timers.cancel(TimerKind.CONTACT, b"b")
    assert timers.next().at == math.inf
    assert timers.pop_due(9.0) is None


def test_of_deadlines_at_one_instant_the_one_set_first_falls_due_first():
    timers = Timers()
    for about in (b"c", b"a", b"b"):
        timers.set(TimerKind.CONTACT, 1.0, about)
    assert [timers.pop_due(1.0)[1] for _ in range(3)] == [b"c", b"a", b"b"]


def test_postponing_moves_only_the_kinds_named_and_none_to_before_the_earliest():
    timers = Timers()
    timers.set(TimerKind.SUSPICION, 1.0, b"a")
    timers.set(TimerKind.SUSPICION, 9.0, b"b")
    timers.set(TimerKind.PROBE_END, 2.0, b"a")
    timers.set(TimerKind.GOSSIP, 1.0)
    timers.postpone({TimerKind.SUSPICION, TimerKind.PROBE_END}, 3.0, earliest=4.5)
    assert timers.at(TimerKind.SUSPICION, b"a") == 4.5
    assert timers.at(TimerKind.SUSPICION, b"b") == 12.0
    assert timers.at(TimerKind.PROBE_END, b"a") == 5.0
    assert timers.at(TimerKind.GOSSIP) == 1.0


def test_what_deadlines_are_about_is_told_by_kind():
    timers = Timers()
    timers.set(TimerKind.SUSPICION, 1.0, b"a")
    timers.set(TimerKind.SUSPICION, 2.0, b"b")
    timers.set(TimerKind.CONTACT, 1.0, b"c")
    assert timers.about(TimerKind.SUSPICION) == [b"a", b"b"]
    assert timers.about(TimerKind.WATCH) == []
    assert timers.at(TimerKind.WATCH, b"a") is None


def test_when_nothing_is_set_there_is_nothing_to_do():
    timers = Timers()
    timers.set(TimerKind.PROBE, 1.0)
    timers.clear()
    assert timers.next() == (math.inf, "nothing to do")


def test_replacing_deadlines_over_and_over_costs_no_memory():
    timers = Timers()
    for step in range(10_000):
        timers.set(TimerKind.DIGEST, float(step))
    assert len(timers) == 1
    assert len(timers._heap) < 100


@given(
    st.lists(
        st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.none() | st.floats(0, 100)), max_size=60
    )
)
def test_it_behaves_like_a_dictionary_of_deadlines(steps):
    timers, model = Timers(), {}
    for about, at in steps:
        if at is None:
            timers.cancel(TimerKind.CONTACT, about)
            model.pop(about, None)
        else:
            timers.set(TimerKind.CONTACT, at, about)
            model[about] = at
    assert len(timers) == len(model)
    assert timers.next().at == min(model.values(), default=math.inf)
    due = []
    while (popped := timers.pop_due(100.0)) is not None:
        due.append(model.pop(popped[1]))
    assert due == sorted(due)
    assert not model
