"""How soon news goes out: fresh at once, old at leisure, and no more of either than before."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.harness import Bench, accuse, alive, key
from meshd.gossip.broadcast import BACKLOG_MIN, BroadcastQueue
from meshd.gossip.config import GossipConfig
from meshd.gossip.pace import gossip_pause
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import CLAIM_ITEM, ITEM_BYTES_MAX, Item, MessageType

NAMES = [f"m{number}" for number in range(12)]
STILL = {"probe_interval": 1e5, "digest_settle": 1e5, "digest_interval": 1e5, "digest_retry": 1e5}
CONFIG = GossipConfig(**STILL)
EVEN = GossipConfig(**STILL, gossip_interval_min=GossipConfig().gossip_interval)


SOON, LATER = CONFIG.gossip_interval_min, CONFIG.gossip_interval


def to_tell(accusations=0, *, others=0):
    """A queue with so many items that were not sent yet."""
    broadcasts = BroadcastQueue(retransmit_mult=CONFIG.retransmit_mult)
    for number in range(accusations + others):
        subject = number.to_bytes(32, "big")
        accuser = b"" if number < others else bytes(32)
        broadcasts.put((CLAIM_ITEM, subject, accuser), Item(CLAIM_ITEM, subject * 3))
    return broadcasts


def sent_once(broadcasts, members):
    """Send all that was sent least often, once."""
    sends = broadcasts.sends_min
    while broadcasts and broadcasts.sends_min == sends:
        broadcasts.take(ITEM_BYTES_MAX, members=members, count_max=1)


@pytest.mark.parametrize(
    ("sends", "members", "limit", "pause"),
    [
        (0, 100, 12, SOON),
        (5, 100, 12, SOON),
        (6, 100, 12, LATER),
        (11, 100, 12, LATER),
        (0, 9, 4, SOON),
        (1, 9, 4, SOON),
        (2, 9, 4, LATER),
    ],
)
def test_what_was_sent_half_as_often_as_it_will_be_is_no_news(sends, members, limit, pause):
    broadcasts = to_tell(others=1)
    assert broadcasts.limit(members) == limit
    for _ in range(sends):
        sent_once(broadcasts, members)
    assert gossip_pause(broadcasts, members, CONFIG) == pause


@pytest.mark.parametrize(
    ("accusations", "others", "pause"),
    [
        (0, 1, SOON),
        (0, BACKLOG_MIN, SOON),
        (0, BACKLOG_MIN + 1, LATER),
        (1, BACKLOG_MIN - 1, SOON),
        (1, BACKLOG_MIN, SOON),
        (1, 1000, SOON),
        (BACKLOG_MIN, 0, SOON),
        (BACKLOG_MIN, 1, SOON),
        (BACKLOG_MIN + 1, 0, LATER),
        (BACKLOG_MIN + 1, 1000, LATER),
    ],
)
def test_with_much_to_tell_nothing_hurries_but_a_few_accusations(accusations, others, pause):
    broadcasts = to_tell(accusations, others=others)
    assert gossip_pause(broadcasts, 100, CONFIG) == pause


def test_with_much_to_tell_accusations_hurry_only_while_there_is_news():
    broadcasts = to_tell(3, others=BACKLOG_MIN)
    limit, pauses = broadcasts.limit(100), []
    while broadcasts:
        pauses.append(gossip_pause(broadcasts, 100, CONFIG))
        sent_once(broadcasts, 100)
    assert pauses == [SOON] * (limit // 2) + [LATER] * (limit // 2)


@given(
    st.integers(0, BACKLOG_MIN + 2), st.integers(0, BACKLOG_MIN + 2), st.sampled_from([3, 99, 5000])
)
def test_the_older_the_slower(accusations, others, members):
    broadcasts, pauses = to_tell(accusations, others=others), []
    while broadcasts:
        pauses.append(gossip_pause(broadcasts, members, CONFIG))
        assert gossip_pause(broadcasts, members, EVEN) == LATER
        sent_once(broadcasts, members)
    assert pauses == sorted(pauses)


def settled(config=CONFIG, names=NAMES):
    """A node with nothing left to tell."""
    bench = Bench(*names, config=config)
    bench.meet(*names)
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


@pytest.mark.parametrize(("accused", "pause"), [(False, LATER), (True, SOON)])
def test_a_mesh_that_tells_itself_everything_does_not_hurry_unless_somebody_is_suspected(
    accused, pause
):
    names = [f"m{number}" for number in range(BACKLOG_MIN + 20)]
    # No observers: what they tell each other is no round.
    bench = settled(GossipConfig(**STILL, observers=0), names)
    bench.receive("m0", items=[accuse("m1", by="m0")] if accused else [])
    for name in names[2:]:
        bench.receive(name, items=[alive(name, 2)])
    assert bench.node.statistics().broadcasts_queued > BACKLOG_MIN
    times, _ = rounds(bench, seconds=0.25)
    assert times[:2] == pytest.approx([0.0, pause])


def test_whoever_has_nobody_to_tell_anything_does_not_gossip():
    bench = Bench("a", config=CONFIG)
    assert bench.node.statistics().broadcasts_queued
    assert bench.deadline(TimerKind.GOSSIP) is None
    assert bench.view("a").node == key("a").id
