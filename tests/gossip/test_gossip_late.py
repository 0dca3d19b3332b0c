"""Time in which we did not run: it counts against nobody but ourselves.

What the others have sent meanwhile lies in the socket, and is read after the timers: the driver
gives a deadline that has passed precedence.
"""

import heapq
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.harness import (
    ALIVE,
    DEAD,
    QUIET,
    SUSPECT,
    Bench,
    accuse,
    alive,
    key,
    name_of,
    to,
)
from meshd.gossip.config import GossipConfig
from meshd.gossip.events import MemberStateChanged
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import MessageType

NAMES = "abcdef"
CONFIG = GossipConfig()


class World:
    """A node, and members that answer every ping after a while, whether or not we run."""

    def __init__(self, *, silent=(), rtt=0.02, config=None):
        self.bench = Bench(*NAMES, config=config or GossipConfig(stream_timeout=0))
        self.bench.meet(*NAMES)
        self._silent = set(silent)
        self._rtt = rtt
        self._count = itertools.count()
        self._answers = []  # on their way, or in our socket
        self._heed(self.bench.sent)
        self.bench.sent.clear()

    def run(self, seconds):
        bench, end = self.bench, self.bench.now + seconds
        while True:
            timer = bench.node.get_timer().at
            arrival = self._answers[0][0] if self._answers else float("inf")
            if min(timer, arrival) > end:
                break
            bench.now = max(bench.now, min(timer, arrival))
            if timer <= bench.now:
                self._heed(bench.do("handle_timer", bench.now))
            else:
                self._read()
        bench.now = end

    def stop(self, seconds):
        self.bench.stop(seconds)

    def _read(self):
        _, _, name, sequence = heapq.heappop(self._answers)
        self._heed(self.bench.receive(name, MessageType.ACK, sequence=sequence))

    def _heed(self, sent):
        for name in NAMES:
            if name not in self._silent:
                for ping in to(sent, name, MessageType.PING):
                    arrival = self.bench.now + self._rtt
                    heapq.heappush(self._answers, (arrival, next(self._count), name, ping.sequence))


@pytest.mark.parametrize("after", [0.05, 0.3, 0.52, 1.0, 1.6])
def test_who_was_stopped_accuses_nobody_when_the_answers_lie_in_its_socket(after):
    world = World()
    world.run(10.0)
    world.run(after)
    world.stop(10.0)
    world.run(20.0)
    statistics = world.bench.node.statistics()
    assert (statistics.suspicions, statistics.deaths, statistics.probes_failed) == (0, 0, 0)
    assert {world.bench.state(name) for name in NAMES} == {ALIVE}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 3.0), st.floats(0.01, 12.0)), min_size=1, max_size=8))
def test_who_is_stopped_again_and_again_accuses_nobody(stops):
    world = World()
    world.run(3.0)
    for running, stopped in stops:
        world.run(running)
        world.stop(stopped)
    world.run(5.0)
    assert world.bench.node.statistics().suspicions == 0
    assert {world.bench.state(name) for name in NAMES} == {ALIVE}


def test_who_was_stopped_still_finds_the_dead_afterwards():
    world = World(silent="f")
    world.run(0.3)
    world.stop(10.0)
    world.run(30.0)
    assert world.bench.state("f") is DEAD
    assert {world.bench.state(name) for name in NAMES[:-1]} == {ALIVE}


def test_a_probe_under_way_is_judged_later_by_as_much_as_we_were_late():
    bench = Bench(*NAMES)
    bench.meet(*NAMES)
    bench.node._health.worse(8)
    _, target = bench.advance_to(MessageType.PING)
    name = name_of(target, NAMES)
    wait = bench.deadline(TimerKind.PROBE_TIMEOUT, name)
    assert wait == pytest.approx(9 * CONFIG.probe_timeout)
    due = bench.node.get_timer().at - bench.now
    bench.stop(10.0)
    bench.resume()
    assert bench.deadline(TimerKind.PROBE_TIMEOUT, name) == pytest.approx(wait - due)
    assert bench.node.statistics().probes_failed == 0


def test_whatever_was_due_has_at_least_one_allowance_left():
    bench = Bench(*NAMES, config=QUIET)
    bench.meet(*NAMES)
    bench.receive("a", items=[accuse("f", by=name) for name in "abcd"])
    bench.node._prober._begin(key("b").id, bench.now)
    bench.node._timers.cancel(TimerKind.GOSSIP)
    bench.stop(bench.deadline(TimerKind.SUSPICION, "f") + 0.06)
    bench.resume()
    assert bench.deadline(TimerKind.SUSPICION, "f") >= CONFIG.probe_timeout_min
    assert bench.deadline(TimerKind.PROBE_TIMEOUT, "b") >= CONFIG.probe_timeout_min


def test_a_suspicion_does_not_run_out_while_we_are_stopped():
    bench = Bench(*NAMES)
    bench.meet(*NAMES)
    bench.receive("a", items=[accuse("b", by=name) for name in "acde"])
    bench.stop(60.0)
    bench.resume()
    assert bench.state("b") is SUSPECT
    assert bench.deadline(TimerKind.SUSPICION, "b") >= CONFIG.probe_timeout_min
    bench.receive("b", items=[alive("b", 2)], incarnation=2)
    assert bench.state("b") is ALIVE


def test_accusations_in_the_socket_do_not_outrun_the_refutation_behind_them():
    bench = Bench(*NAMES)
    bench.meet(*NAMES)
    bench.receive("a", items=[accuse("b", by="a")])
    bench.advance(0.1)
    bench.stop(10.0)
    bench.resume()
    for accuser in "cdef":
        bench.receive(accuser, items=[accuse("b", by=accuser)])
        if bench.node.get_timer().at <= bench.now:
            bench.resume()
        assert bench.state("b") is SUSPECT
    bench.receive("b", items=[alive("b", 2)], incarnation=2)
    assert bench.state("b") is ALIVE
    assert bench.seen(MemberStateChanged)[-1].after is ALIVE
    assert bench.node.statistics().deaths == 0


def test_a_round_trip_across_a_stop_is_not_measured():
    world = World()
    world.run(30.0)
    before = {name: world.bench.view(name).rtt for name in NAMES}
    assert all(rtt == pytest.approx(0.02) for rtt in before.values())
    while not any(m.type is MessageType.PING for m, _ in world.bench.sent[-1:]):
        world.run(max(0.0, world.bench.node.get_timer().at - world.bench.now))
    world.stop(10.0)
    world.run(10.0)
    assert {name: pytest.approx(world.bench.view(name).rtt) for name in NAMES} == before


@pytest.mark.parametrize(("late", "score"), [(0.09, 0), (5.0, 1)])
def test_an_ack_to_a_ping_from_before_a_stop_is_an_ack_all_the_same(late, score):
    bench = Bench(*NAMES)
    bench.meet(*NAMES)
    ping, target = bench.advance_to(MessageType.PING)
    name = name_of(target, NAMES)
    bench.now = bench.node.get_timer().at
    bench.stop(late)
    bench.resume()
    assert bench.health == score, "short or long, what it measures is our stop"
    bench.receive(name, MessageType.ACK, sequence=ping.sequence)
    assert bench.node.statistics().probes_acked == 1
    assert bench.view(name).rtt is None


def test_stops_make_us_doubt_ourselves_once_until_the_next_ack():
    bench = Bench(*NAMES, config=QUIET)
    bench.meet(*NAMES)
    for _ in range(3):
        for _ in range(3):
            bench.advance(0.5)
            bench.stop(10.0 + max(0.0, bench.node.get_timer().at - bench.now))
            bench.resume()
            assert bench.health == 1, "many stops are one trouble"
        bench.node._prober._begin(key("a").id, bench.now)
        (ping,) = to(bench._drain(), "a", MessageType.PING)
        bench.receive("a", MessageType.ACK, sequence=ping.sequence)
        assert bench.health == 0


def test_a_timer_a_little_late_moves_nothing():
    bench = Bench(*NAMES, config=QUIET)
    bench.meet(*NAMES)
    bench.node._prober._begin(key("a").id, bench.now)
    bench._drain()
    judged_at = bench.now + bench.deadline(TimerKind.PROBE_TIMEOUT, "a")
    bench.now = bench.node.get_timer().at + CONFIG.probe_timeout_min * 0.4
    bench.resume()
    assert bench.health == 0
    assert bench.now + bench.deadline(TimerKind.PROBE_TIMEOUT, "a") == pytest.approx(judged_at)
