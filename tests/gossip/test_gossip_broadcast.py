"""The broadcast queue: retransmit limit, byte budget, fairness, bounds."""

import math

from hypothesis import given
from hypothesis import strategies as st

from meshd.gossip.broadcast import BACKLOG_MIN, QUEUE_MAX, BroadcastQueue
from meshd.gossip.wire import ITEM_BYTES_MAX, ITEMS_MAX, Item


def key(number):
    return (0, number.to_bytes(4, "big"), b"")


def item(number, size=64):
    return Item(0, number.to_bytes(4, "big").rjust(size, b"\0"))


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
    assert queue.take(75, members=10) == [item(2)]
    queue.put(key(3), item(3))
    assert queue.take(75, members=10) == [item(3)]
    assert queue.take(75, members=10) == [item(1)]


def test_an_item_that_does_not_fit_lets_a_smaller_one_pass():
    queue = BroadcastQueue(retransmit_mult=4)
    queue.put(key(1), item(1))
    queue.put(key(2), item(2, size=1000))
    assert queue.take(100, members=10) == [item(1)]
    assert queue.take(1100, members=10) == [item(2, size=1000), item(1)]


def test_a_newer_item_about_the_same_thing_replaces_the_older_one():
    queue = BroadcastQueue(retransmit_mult=4)
    queue.put(key(1), item(1))
    queue.take(100, members=10)
    queue.put(key(1), item(2))
    assert len(queue) == 1
    assert queue.take(100, members=10) == [item(2)]


def test_how_often_the_newest_item_was_sent():
    queue = BroadcastQueue(retransmit_mult=4)
    queue.put(key(1), item(1))
    assert queue.sends_min == 0
    queue.take(100, members=10)
    assert queue.sends_min == 1
    queue.put(key(2), item(2))
    assert queue.sends_min == 0


def test_a_dropped_item_is_not_sent():
    queue = BroadcastQueue(retransmit_mult=4)
    queue.put(key(1), item(1))
    queue.drop(key(1))
    queue.drop(key(2))
    assert queue.take(100, members=10) == []


def test_the_queue_is_bounded_and_gives_up_what_was_sent_most():
    queue = BroadcastQueue(retransmit_mult=4)
    queue.put(key(0), item(0))
    queue.take(100, members=10)
    for number in range(1, QUEUE_MAX + 10):
        queue.put(key(number), item(number))
    assert len(queue) == QUEUE_MAX
    everything = []
    while batch := queue.take(ITEM_BYTES_MAX, members=9):
        everything += batch
    assert item(0) not in everything
    assert item(QUEUE_MAX + 9) in everything


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(64, 600)), max_size=40),
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
    sent = []
    while batch := queue.take(ITEM_BYTES_MAX, members=9):
        sent += batch
    assert len(queue) == 0
    if not budgets:
        assert sorted(sent) == sorted(list(latest.values()) * 2)


def test_with_much_to_tell_what_comes_back_counts_as_sent():
    queue = BroadcastQueue(retransmit_mult=4)
    for number in range(BACKLOG_MIN + 1):
        queue.put(key(number), item(number))
    for _ in range(8):
        queue.came_back(key(1), item(1).blob, members=50)
    assert len(queue) == BACKLOG_MIN, "others have told it as often as we would have"


def test_with_little_to_tell_each_copy_is_needed():
    queue = BroadcastQueue(retransmit_mult=4)
    queue.put(key(1), item(1))
    for _ in range(100):
        queue.came_back(key(1), item(1).blob, members=50)
    assert len(queue) == 1
    assert queue.sends_min == 0


def test_an_older_item_that_comes_back_says_nothing_of_the_newer():
    queue = BroadcastQueue(retransmit_mult=4)
    for number in range(BACKLOG_MIN + 1):
        queue.put(key(number), item(number))
    for _ in range(100):
        queue.came_back(key(1), b"older", members=50)
        queue.came_back(key(9999), b"unknown", members=50)
    assert len(queue) == BACKLOG_MIN + 1
