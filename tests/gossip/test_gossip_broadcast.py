"""The broadcast queue: retransmit limit, byte budget, fairness, bounds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.harness import accuse, alive, left, record, revocation
from meshd.gossip.broadcast import BACKLOG_MIN, COME_BACK_SENDS, QUEUE_MAX, BroadcastQueue
from meshd.gossip.wire import ITEM_BYTES_MAX, ITEMS_MAX, Item
from meshd.trust.fact import FactKind

SIZE_MIN = 96  # a signature, and the key of whom it is about
numbers = st.integers(0, BACKLOG_MIN + 8)


def key(number, accuser=b""):
    return (0, number.to_bytes(4, "big"), accuser)


def item(number, size=SIZE_MIN):
    return Item(0, number.to_bytes(4, "big").rjust(size, b"\0"))


ROOM = item(0).cost  # for one item of the smallest


def drained(queue, *, members=9):
    """All that a queue will still send, as often as it will."""
    sent = []
    while batch := queue.take(ITEM_BYTES_MAX, members=members):
        sent += batch
    return sent


def test_an_item_is_sent_as_often_as_the_limit_says():
    for members in (1, 8, 9, 10, 99, 100, 5000):
        queue = BroadcastQueue(retransmit_mult=4)
        queue.put(key(1), item(1))
        sent = 0
        while queue.take(ITEM_BYTES_MAX, members=members):
            sent += 1
        assert sent == 4 * math.ceil(math.log10(members + 1))
        assert len(queue) == 0


def test_what_was_sent_least_goes_first_and_among_equals_the_newest():
    queue = BroadcastQueue(retransmit_mult=4)
    queue.put(key(1), item(1))
    queue.put(key(2), item(2))
    assert queue.take(ROOM, members=10) == [item(2)]
    queue.put(key(3), item(3))
    assert queue.take(ROOM, members=10) == [item(3)]
    assert queue.take(ROOM, members=10) == [item(1)]


def test_an_item_that_does_not_fit_lets_a_smaller_one_pass():
    queue = BroadcastQueue(retransmit_mult=4)
    queue.put(key(1), item(1))
    queue.put(key(2), item(2, size=1000))
    large = item(2, size=1000)
    assert queue.take(large.cost - 1, members=10) == [item(1)]
    assert queue.take(large.cost + ROOM - 1, members=10) == [large]
    assert queue.take(large.cost + ROOM, members=10) == [large, item(1)]


@pytest.mark.parametrize(
    "smallest",
    [
        alive("a"),
        left("a"),
        accuse("a", by="b"),
        Item(FactKind.RECORD, record("a")),
        Item(FactKind.REVOCATION, revocation("a")),
    ],
    ids=["alive", "left", "accusation", "record", "revocation"],
)
def test_no_real_item_is_too_small_for_the_room_it_needs_to_be_looked_at(smallest):
    assert len(smallest.blob) >= SIZE_MIN
    queue = BroadcastQueue(retransmit_mult=4)
    queue.put(key(1), smallest)
    assert queue.take(smallest.cost - 1, members=10) == []
    assert queue.take(smallest.cost, members=10) == [smallest]


def test_a_newer_item_about_the_same_thing_replaces_the_older_one():
    queue = BroadcastQueue(retransmit_mult=4)
    queue.put(key(1), item(1))
    queue.take(ROOM, members=10)
    queue.put(key(1), item(2))
    assert len(queue) == 1
    assert queue.sends_min == 0
    assert queue.take(ROOM, members=10) == [item(2)]


def test_how_often_the_newest_item_was_sent():
    queue = BroadcastQueue(retransmit_mult=4)
    queue.put(key(1), item(1))
    assert queue.sends_min == 0
    queue.take(ROOM, members=10)
    assert queue.sends_min == 1
    queue.put(key(2), item(2))
    assert queue.sends_min == 0


def test_a_dropped_item_is_not_sent():
    queue = BroadcastQueue(retransmit_mult=4)
    queue.put(key(1), item(1))
    queue.drop(key(1))
    queue.drop(key(2))
    assert queue.take(ITEM_BYTES_MAX, members=10) == []


def test_the_queue_is_bounded_and_gives_up_what_was_sent_most():
    queue = BroadcastQueue(retransmit_mult=4)
    queue.put(key(0), item(0))
    assert queue.take(ROOM, members=10) == [item(0)]
    for number in range(1, QUEUE_MAX + 10):
        queue.put(key(number), item(number))
    assert len(queue) == QUEUE_MAX
    everything = drained(queue)
    assert item(0) not in everything
    assert item(QUEUE_MAX + 9) in everything


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(SIZE_MIN, 600)), max_size=40),
    st.lists(st.integers(0, ITEM_BYTES_MAX), max_size=40),
)
def test_no_datagram_is_overfilled_and_nothing_starves(puts, budgets):
    queue = BroadcastQueue(retransmit_mult=2)
    latest = {}
    for number, size in puts:
        latest[number] = item(number, size)
        queue.put(key(number), latest[number])
    for budget in budgets:
        taken = queue.take(budget, members=9)
        assert sum(one.cost for one in taken) <= budget
        assert len(taken) <= ITEMS_MAX
    sent = drained(queue)
    assert len(queue) == 0
    if not budgets:
        assert sorted(sent) == sorted(list(latest.values()) * 2)


def backlogged():
    """A queue with one item more than a few datagrams hold."""
    queue = BroadcastQueue(retransmit_mult=4)
    for number in range(BACKLOG_MIN + 1):
        queue.put(key(number), item(number))
    return queue


@pytest.mark.parametrize(("times", "sends"), [(0, 8), (1, 5), (2, 2), (3, 0), (8, 0)])
def test_with_much_to_tell_what_comes_back_counts_as_sent_several_times(times, sends):
    queue = backlogged()
    assert sends == max(0, queue.limit(50) - times * COME_BACK_SENDS)
    for _ in range(times):
        queue.came_back(key(1), item(1).blob, members=50)
    assert drained(queue, members=50).count(item(1)) == sends


def test_what_came_back_waits_until_all_else_was_sent_as_often():
    queue = backlogged()
    newest = BACKLOG_MIN
    queue.came_back(key(newest), item(newest).blob, members=50)
    sent = [queue.take(ROOM, members=50)[0] for _ in range(BACKLOG_MIN * COME_BACK_SENDS)]
    assert item(newest) not in sent
    assert item(newest) in drained(queue, members=50)


def test_with_little_to_tell_each_copy_is_needed():
    queue = BroadcastQueue(retransmit_mult=4)
    queue.put(key(1), item(1))
    for _ in range(100):
        queue.came_back(key(1), item(1).blob, members=50)
    assert len(queue) == 1
    assert queue.sends_min == 0


def test_an_older_item_that_comes_back_says_nothing_of_the_newer():
    queue = backlogged()
    for _ in range(100):
        queue.came_back(key(1), b"older", members=50)
        queue.came_back(key(9999), b"unknown", members=50)
    assert len(queue) == BACKLOG_MIN + 1
    assert drained(queue, members=50).count(item(1)) == queue.limit(50)


# What hurries


def told(number, accuser, version):
    """An item that says what it is about, so that an accusation is known by its bytes."""
    return Item(0, (bytes([number, version]) + accuser).ljust(SIZE_MIN, b"\0"))


whose = st.tuples(numbers, st.sampled_from([b"", b"x", b"y"]), st.integers(0, 1))
steps = st.one_of(
    st.tuples(st.just("put"), whose),
    st.tuples(st.just("drop"), whose),
    st.tuples(st.just("came_back"), whose),
    st.tuples(st.just("take"), st.integers(0, ITEM_BYTES_MAX)),
)


@given(st.lists(whose, max_size=60), st.lists(steps, max_size=60))
def test_accusations_are_counted_right_whatever_comes_and_goes(first, then):
    queue = BroadcastQueue(retransmit_mult=4)
    for step, about in [("put", one) for one in first] + then:
        match step, about:
            case "put", (number, accuser, _):
                queue.put(key(number, accuser), told(*about))
            case "drop", (number, accuser, _):
                queue.drop(key(number, accuser))
            case "came_back", (number, accuser, _):
                queue.came_back(key(number, accuser), told(*about).blob, members=9)
            case "take", budget:
                queue.take(budget, members=9)
    counted, queued = queue.accusations, len(queue)
    items = set(drained(queue))
    assert len(items) == queued
    assert counted == sum(one.blob[2:3] != b"\0" for one in items)
    assert queue.accusations == 0


def test_accusations_given_up_for_want_of_room_are_not_counted():
    queue = BroadcastQueue(retransmit_mult=4)
    for number in range(QUEUE_MAX + 10):
        queue.put(key(number, b"x"), item(number))
    assert queue.accusations == len(queue) == QUEUE_MAX
    for number in range(10):
        queue.put(key(number), item(number))
    assert queue.accusations == QUEUE_MAX - 10
