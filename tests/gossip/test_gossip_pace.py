"""How soon news goes out: fresh at once, old at leisure, and no more of either than before."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.harness import Bench, alive, key
from meshd.gossip.config import GossipConfig
from meshd.gossip.pace import gossip_pause
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import MessageType

NAMES = [f"m{number}" for number in range(12)]
STILL = {"probe_interval": 1e5, "digest_settle": 1e5, "digest_interval": 1e5, "digest_retry": 1e5}
CONFIG = GossipConfig(**STILL)
EVEN = GossipConfig(**STILL, gossip_interval_min=GossipConfig().gossip_interval)


@pytest.mark.parametrize(
    ("sends", "limit", "pause"),
    [(0, 12, 0.05), (5, 12, 0.05), (6, 12, 0.2), (11, 12, 0.2), (0, 4, 0.05), (2, 4, 0.2)],
)
def test_what_was_sent_half_as_often_as_it_will_be_is_no_news(sends, limit, pause):
    assert gossip_pause(sends, limit, CONFIG) == pause


@given(st.integers(0, 50), st.integers(1, 50))
def test_the_older_the_slower(sends, limit):
    assert gossip_pause(sends, limit, CONFIG) <= gossip_pause(sends + 1, limit, CONFIG)
    assert gossip_pause(sends, limit, EVEN) == CONFIG.gossip_interval


def settled(config=CONFIG):
    """A node with nothing left to tell."""
    bench = Bench(*NAMES, config=config)
    bench.meet(*NAMES)
    bench.advance(30.0)
    assert bench.deadline(TimerKind.GOSSIP) is None
    bench.now += 1.0
    return bench


def rounds(bench, seconds=10.0):
    """Let time pass.  Return when gossip went out, and how often the item was sent."""
    sent = [
        (at, message)
        for at, message, _ in bench.timeline(seconds)
        if message.type is MessageType.GOSSIP
    ]
    return sorted({round(at, 3) for at, _ in sent}), len(sent)


def test_news_goes_out_at_once_and_slows_down_when_half_of_it_is_sent():
    bench = settled()
    bench.receive("m0", items=[alive("m1", 2)])
    assert bench.deadline(TimerKind.GOSSIP) == 0.0
    times, sends = rounds(bench)
    limit = CONFIG.retransmit_mult * math.ceil(math.log10(len(NAMES) + 2))
    assert sends == limit == 8
    # Three members a round: 0, 3 and 6 sends made before the second, third and fourth.
    assert times == pytest.approx([0.0, 0.05, 0.25])


def test_with_one_interval_for_all_news_is_old_from_the_start():
    bench = settled(EVEN)
    bench.receive("m0", items=[alive("m1", 2)])
    times, sends = rounds(bench)
    assert sends == 8, "as often as otherwise"
    assert times == pytest.approx([0.0, 0.2, 0.4])


def test_rounds_are_never_closer_than_the_shortest_pause_however_much_comes_in():
    bench = settled()
    times = []
    for step in range(40):
        bench.receive("m0", items=[alive("m1", 2 + step)])
        now = bench.now
        sent = bench.timeline(0.01)
        times += [now + at for at, message, _ in sent if message.type is MessageType.GOSSIP]
    rounds_at = sorted({round(at, 6) for at in times})
    pauses = [after - before for before, after in itertools.pairwise(rounds_at)]
    assert len(pauses) == 8
    assert pauses == pytest.approx([CONFIG.gossip_interval_min] * 8)


def test_fresh_news_does_not_wait_for_the_slow_round_of_old_news():
    bench = settled()
    bench.receive("m0", items=[alive("m1", 2)])
    bench.advance(0.06)
    assert bench.deadline(TimerKind.GOSSIP) > 0.15, "what is left is old"
    bench.receive("m0", items=[alive("m2", 2)])
    assert bench.deadline(TimerKind.GOSSIP) <= CONFIG.gossip_interval_min


def test_whoever_has_nobody_to_tell_anything_does_not_gossip():
    bench = Bench("a", config=CONFIG)
    assert bench.node.statistics().broadcasts_queued
    assert bench.deadline(TimerKind.GOSSIP) is None
    assert bench.view("a").node == key("a").id
