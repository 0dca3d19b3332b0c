"""Whose turn it is: everybody's within two rounds, and the neighbour's at even intervals."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.harness import ALIVE, DEAD, SUSPECT, Bench, key, name_of
from meshd.gossip.member import Member
from meshd.gossip.member_table import MemberTable
from meshd.gossip.order import ProbeOrder
from meshd.gossip.wire import MessageType
from meshd.keys import NodeId


def node(number):
    return NodeId(number.to_bytes(2, "big") * 16)


def live_table(own, numbers):
    table = MemberTable(node(own))
    for number in numbers:
        join(table, number)
    return table


def join(table, number):
    table.add(Member(node(number), silent_since=0.0))
    table.shown_changed(node(number), DEAD, ALIVE)


def crash(table, number):
    table.shown_changed(node(number), SUSPECT, DEAD)


def order_of(table, own=0, *, every=2, seed=1):
    return ProbeOrder(node(own), table, neighbour_every=every, rng=random.Random(seed))


def turns(order, count):
    return [order.next() for _ in range(count)]


meshes = st.sets(st.integers(1, 500), min_size=1, max_size=30).map(sorted)


@given(meshes, st.integers(0, 500), st.sampled_from([0, 2, 3, 5]), st.integers(0, 99))
def test_nobody_waits_longer_than_two_rounds(numbers, own, every, seed):
    numbers = [number for number in numbers if number != own] or [own + 1]
    order = order_of(live_table(own, numbers), own, every=every, seed=seed)
    drawn = turns(order, 12 * len(numbers))
    # From the first place of one round to the last of the next, with the neighbour in between.
    window = 2 * len(numbers)
    if every:
        window = window * every // (every - 1) + 1
    for begin in range(len(drawn) - window):
        assert set(drawn[begin : begin + window]) == set(map(node, numbers))


@given(meshes, st.integers(0, 99))
def test_each_round_has_everybody_once_in_an_order_of_its_own(numbers, seed):
    order = order_of(live_table(0, numbers), every=0, seed=seed)
    rounds = [tuple(turns(order, len(numbers))) for _ in range(20)]
    assert all(sorted(one) == list(map(node, numbers)) for one in rounds)
    if len(numbers) > 4:
        assert len(set(rounds)) > 1


@given(meshes, st.integers(0, 501), st.sampled_from([2, 3, 4]))
def test_every_so_many_turns_it_is_the_neighbours(numbers, own, every):
    numbers = [number for number in numbers if number != own] or [own + 1]
    order = order_of(live_table(own, numbers), own, every=every)
    after = min((n for n in numbers if n > own), default=min(numbers))
    assert set(turns(order, 60)[every - 1 :: every]) == {node(after)}


@given(st.sets(st.integers(0, 500), min_size=2, max_size=30))
def test_everybody_is_the_neighbour_of_exactly_one(numbers):
    probed = []
    for own in numbers:
        order = order_of(live_table(own, numbers - {own}), own)
        probed.append(turns(order, 2)[1])
    assert sorted(probed) == [node(number) for number in sorted(numbers)]


def test_the_neighbour_of_the_dead_takes_over_at_once():
    table = live_table(0, [1, 2, 3])
    order = order_of(table)
    assert turns(order, 2)[1] == node(1)
    crash(table, 1)
    assert turns(order, 2)[1] == node(2)


def test_who_has_died_has_no_turn_in_the_round_under_way():
    table = live_table(0, range(1, 11))
    order = order_of(table, every=0)
    drawn = turns(order, 3)
    victim = next(number for number in range(1, 11) if node(number) not in drawn)
    crash(table, victim)
    drawn += turns(order, 6)
    assert node(victim) not in drawn
    assert len(set(drawn)) == 9


@pytest.mark.parametrize("seed", range(20))
def test_a_newcomer_has_its_turn_in_the_round_under_way(seed):
    table = live_table(0, range(1, 11))
    order = order_of(table, every=0, seed=seed)
    drawn = turns(order, 4)
    join(table, 11)
    order.include(node(11))
    drawn += turns(order, 7)
    assert sorted(drawn) == [node(number) for number in range(1, 12)]


def test_newcomers_come_in_anywhere():
    places = set()
    for seed in range(60):
        table = live_table(0, range(1, 6))
        order = order_of(table, every=0, seed=seed)
        turns(order, 1)
        join(table, 9)
        order.include(node(9))
        places.add(turns(order, 5).index(node(9)))
    assert places == set(range(5))


def test_who_comes_again_and_again_has_one_turn_in_a_round():
    table = live_table(0, range(1, 11))
    order = order_of(table, every=0)
    drawn = turns(order, 1)
    for _ in range(100):
        order.include(node(7))
    drawn += turns(order, 10)
    assert drawn.count(node(7)) <= 2


def test_where_there_is_nobody_it_is_nobodys_turn():
    assert turns(order_of(MemberTable(node(0))), 4) == [None] * 4


def test_a_node_probes_everybody_and_its_neighbour_every_other_second():
    names = "abcde"
    bench = Bench(*names)
    bench.meet(*names)
    before = len(bench.sent)
    bench.run_with(40.0, *names)
    pings = [target for message, target in bench.sent[before:] if message.type is MessageType.PING]
    probed = [name_of(target, names) for target in pings]
    assert len(probed) == 40
    circle = sorted(key(name).id for name in ("me", *names))
    neighbour = circle[(circle.index(key("me").id) + 1) % len(circle)]
    assert set(probed[1::2]) == {name_of(neighbour, names)}
    rounds = [probed[at : at + 10 : 2] for at in range(0, 40, 10)]
    assert all(sorted(one) == list(names) for one in rounds)
