"""Many at once: whose paths fall silent, and who start on machines too slow for it."""

import itertools

import pytest

from meshd.path.events import PathFailed
from path.internet import INTERNET, Internet

OTHERS = 6


def busy(others):
    """A public member with traffic to and from others, which can be reached by IPv4 alone."""
    internet = Internet(seed=1, delay=(0.005, 0.02))
    for index in range(others + 1):
        internet.add(index, INTERNET, f"203.0.113.{index + 1}")
    internet.introduce_all()
    here, *there = internet.nodes
    internet.run_until(lambda: all(here.ready(other) for other in there), within=10)
    for other in there:
        internet.stream(here, other, rate=20.0)
        internet.stream(other, here, rate=20.0)
    internet.run_for(5)
    return internet, here, there


def failed(node):
    return [event for _, event in node.log if isinstance(event, PathFailed)]


def pings_of(node):
    return node.agent.statistics().pings_sent


def test_where_all_fall_silent_nothing_is_judged_and_little_is_sent():
    internet, here, there = busy(OTHERS)
    before = pings_of(here)
    internet.run_for(4)
    usual = pings_of(here) - before

    here.cut = True
    internet.run_for(1)
    before = pings_of(here)
    internet.run_for(4)
    assert not failed(here)
    assert pings_of(here) - before <= usual

    here.cut = False
    internet.run_for(5)
    assert all(here.ready(other) for other in there)
    assert not failed(here)


@pytest.mark.parametrize("capacity", [60.0, 20.0])
def test_twenty_that_start_on_busy_machines_find_each_other_and_come_to_rest(capacity):
    internet = Internet(seed=1, capacity=capacity)
    for index in range(20):
        internet.add(index, INTERNET, f"203.0.113.{index + 1}", f"2001:db8::{index + 1:x}")
    internet.introduce_all()
    nodes = internet.nodes

    def whole():
        return all(a.ready(b) for a, b in itertools.permutations(nodes, 2))

    internet.run_until(whole, within=60)
    internet.run_for(30)

    internet.sent.clear()
    internet.run_for(60)
    assert whole()
    assert len(internet.sent) < len(nodes)


@pytest.mark.parametrize("others", [1, 2, OTHERS])
def test_one_that_falls_silent_is_judged_among_however_many(others):
    internet, here, (gone, *_) = busy(others)

    gone.cut = True
    internet.run_for(2)

    assert {event.node for event in failed(here)} == {gone.key.id}
