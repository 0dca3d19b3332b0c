"""The table of a relay: who has which ports, until when, and what is forwarded."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshd.relay.allocations import (
    FORMER_LIFETIME,
    LIFETIME,
    PAIRS_OF_ONE_MAX,
    REQUESTS_BURST_MAX,
    Allocations,
    Pair,
    Refusal,
    StoredAllocation,
    StoredSide,
    pair_of,
)
from meshd.relay.maps import make_maps
from meshd.relay.wire import Reason
from meshd.values import PortRange
from meshd.wg.types import Endpoint
from relay.members import LOCAL, PORTS, A, B, C, D, binding, bound, endpoint, somebody, table

WALL = 1_700_000_000.0


def refusal(allocations, source, other, now=0.0, **options):
    with pytest.raises(Refusal) as caught:
        allocations.request(source, other, now, **options)
    return caught.value.reason


def flows(allocations):
    return make_maps(allocations).flows


# Requests


def test_a_pair_gets_two_ports_one_each():
    allocation = table().request(A.id, B.id, 0.0)

    assert {side.port for side in allocation.sides} == {PORTS.first, PORTS.first + 1}
    assert allocation.side(A.id).member == A.id
    assert allocation.opposite(allocation.side(A.id)).member == B.id


def test_asking_again_changes_nothing_but_the_time():
    allocations = table()
    first = allocations.request(A.id, B.id, 0.0)
    revision = allocations.ports_revision

    assert allocations.request(B.id, A.id, 5.0) is first
    assert allocations.request(A.id, B.id, 5.0) is first
    assert allocations.ports_revision == revision
    assert first.expires_at == 5.0 + LIFETIME


def test_a_pair_ends_when_nobody_has_asked_for_its_lifetime():
    allocations = table()
    allocation = allocations.request(A.id, B.id, 0.0)

    assert allocations.handle_timer(LIFETIME - 1) == []
    assert allocations.handle_timer(LIFETIME) == [allocation]
    assert allocations.ports == frozenset()
    assert allocations.soonest() is None


def test_a_pair_lasts_while_either_asks():
    allocations = table()
    allocations.request(A.id, B.id, 0.0)
    allocations.request(B.id, A.id, 100.0)

    assert allocations.handle_timer(LIFETIME) == []
    assert len(allocations.handle_timer(100.0 + LIFETIME)) == 1


def test_a_pair_that_only_one_has_asked_for_ends_when_that_one_lets_go():
    allocations = table()
    allocation = allocations.request(A.id, B.id, 0.0)

    assert allocations.release(B.id, A.id, 1.0) is None
    assert allocations.release(A.id, B.id, 1.0) is allocation
    assert not len(allocations)


def test_a_pair_that_both_have_asked_for_ends_when_both_let_go():
    allocations = table()
    allocation = allocations.request(A.id, B.id, 0.0)
    allocations.request(B.id, A.id, 0.0)

    assert allocations.release(A.id, B.id, 1.0) is None
    assert allocations.release(B.id, A.id, 1.0) is allocation


def test_letting_go_of_a_pair_that_is_not_there_changes_nothing():
    allocations = table()
    allocations.request(A.id, B.id, 0.0)

    assert allocations.release(A.id, C.id, 0.0) is None
    assert len(allocations) == 1


def test_a_full_range_is_refused_and_what_is_there_is_not():
    allocations = table()
    for number in range(10):
        allocations.request(A.id, somebody(number), 0.0)

    assert refusal(allocations, A.id, B.id) is Reason.FULL
    assert allocations.request(A.id, somebody(3), 1.0).expires_at == 1.0 + LIFETIME
    assert allocations.load == 100


def test_one_member_has_a_bounded_number_of_pairs_whoever_asks():
    allocations = table(PortRange(51900, 53947))
    for number in range(PAIRS_OF_ONE_MAX):
        allocations.request(somebody(number), A.id, 0.0)

    assert refusal(allocations, A.id, B.id) is Reason.TOO_MANY
    assert refusal(allocations, B.id, A.id) is Reason.TOO_MANY
    allocations.request(B.id, C.id, 0.0)


def test_asking_without_end_is_cut_short_for_that_member_only():
    allocations = table()
    for _ in range(REQUESTS_BURST_MAX):
        allocations.request(A.id, B.id, 0.0)

    assert refusal(allocations, A.id, B.id) is Reason.TOO_OFTEN
    allocations.request(B.id, A.id, 0.0)
    allocations.request(A.id, B.id, 1.0)


def test_a_draining_relay_takes_no_new_pair_and_keeps_those_it_has():
    allocations = table()
    allocations.request(A.id, B.id, 0.0)
    allocations.draining = True

    assert refusal(allocations, A.id, C.id) is Reason.DRAINING
    assert allocations.request(A.id, B.id, 100.0).expires_at == 100.0 + LIFETIME
    assert allocations.statistics().draining


def test_one_that_does_not_relay_takes_no_new_pair():
    assert refusal(table(), A.id, B.id, new=False) is Reason.NOT_RELAYING


def test_ports_that_were_let_go_of_are_allotted_last():
    allocations = table()
    first = allocations.request(A.id, B.id, 0.0).sides[0].port
    allocations.release(A.id, B.id, 0.0)

    later = [allocations.request(A.id, somebody(n), 0.0).sides[0].port for n in range(10)]

    assert later.index(first) == 9


def test_a_port_of_another_program_ends_its_pair_and_is_not_allotted_again():
    allocations = table()
    allocation = allocations.request(A.id, B.id, 0.0)
    taken = allocation.sides[1].port

    assert allocations.exclude_port(taken) is allocation
    ports = {
        side.port
        for number in range(9)
        for side in allocations.request(A.id, somebody(number), 0.0).sides
    }
    assert taken not in ports
    assert refusal(allocations, A.id, C.id) is Reason.FULL


def test_all_pairs_of_one_who_is_no_member_end_and_no_others():
    allocations = table()
    gone = [allocations.request(A.id, B.id, 0.0), allocations.request(C.id, A.id, 0.0)]
    kept = allocations.request(B.id, C.id, 0.0)

    assert allocations.remove_member(A.id) == gone
    assert list(allocations) == [kept]
    assert allocations.remove_member(A.id) == []


# Flows


def test_nothing_is_forwarded_until_both_are_bound():
    allocations = table()
    allocation = allocations.request(A.id, B.id, 0.0)
    assert not flows(allocations)

    allocations.bind(allocation.sides[0], binding("192.0.2.1"), 0.0)
    assert not flows(allocations)

    allocations.bind(allocation.sides[1], binding("192.0.2.2"), 0.0)
    assert len(flows(allocations)) == 2


def test_each_flow_has_its_reverse():
    allocations = table()
    bound(allocations.request(A.id, B.id, 0.0), allocations)

    one, back = flows(allocations)

    assert (one.source, one.arrives_at) == (back.target, back.leaves_from)
    assert (one.target, one.leaves_from) == (back.source, back.arrives_at)


def test_an_address_that_was_bound_is_heard_for_a_moment_more_and_not_sent_to():
    allocations = table()
    allocation = bound(allocations.request(A.id, B.id, 0.0), allocations)
    side = allocation.sides[0]
    before = side.binding.endpoint

    assert allocations.bind(side, binding("203.0.113.5"), 10.0)
    assert {flow.source for flow in flows(allocations)} > {before, endpoint("203.0.113.5")}
    assert before not in {flow.target for flow in flows(allocations)}

    assert allocations.soonest() == 10.0 + FORMER_LIFETIME
    assert allocations.handle_timer(10.0 + FORMER_LIFETIME) == []
    assert before not in {flow.source for flow in flows(allocations)}
    assert len(flows(allocations)) == 2


def test_a_pair_that_ends_is_forwarded_no_more():
    allocations = table()
    bound(allocations.request(A.id, B.id, 0.0), allocations)
    bound(allocations.request(C.id, D.id, 0.0), allocations)

    allocations.remove_member(A.id)

    assert len(flows(allocations)) == 2
    assert allocations.statistics().bound == 1


def test_the_same_binding_again_is_no_news():
    allocations = table()
    allocation = bound(allocations.request(A.id, B.id, 0.0), allocations)
    revision = allocations.flows_revision

    assert not allocations.bind(allocation.sides[0], allocation.sides[0].binding, 1.0)
    assert allocations.flows_revision == revision


def test_traffic_is_counted_for_the_port_it_came_in_by():
    allocations = table()
    allocation = allocations.request(A.id, B.id, 0.0)
    port = allocation.sides[1].port

    allocations.count_traffic(port, 3, 3000)
    allocations.count_traffic(port + 100, 1, 100)  # one that has just ended

    assert (allocation.sides[1].datagrams, allocation.sides[1].bytes) == (3, 3000)
    assert allocations.statistics().datagrams == 4


# Restarts


def kept(allocations, now=0.0, wall=WALL):
    return [stored for _, stored in allocations.take_changed(now, wall) if stored is not None]


def everybody(_node):
    return True


def test_a_restart_forwards_what_was_forwarded():
    before = table()
    bound(before.request(A.id, B.id, 0.0), before)
    stored = kept(before)

    after = table()
    assert after.restore(stored, everybody, now=1000.0, wall=WALL + 60) == []

    assert flows(after) == flows(before)
    assert after.ports == before.ports
    assert after.get(A.id, B.id).expires_at == 1000.0 + LIFETIME - 60
    assert after.statistics().bound == 1


def test_a_restart_does_not_allot_restored_ports_again():
    before = table()
    for number in range(4):
        before.request(A.id, somebody(number), 0.0)

    after = table()
    after.restore(kept(before), everybody, now=0.0, wall=WALL)
    for number in range(4, 10):
        after.request(A.id, somebody(number), 0.0)

    assert len(after.ports) == 20


def test_what_has_expired_meanwhile_or_is_no_member_is_not_restored():
    before = table()
    before.request(A.id, B.id, 0.0)
    before.request(B.id, C.id, 0.0)
    stored = kept(before)

    assert table().restore(stored, everybody, now=0.0, wall=WALL + LIFETIME) == [
        pair_of(A.id, B.id),
        pair_of(B.id, C.id),
    ]
    assert table().restore(stored, lambda node: node != A.id, now=0.0, wall=WALL) == [
        pair_of(A.id, B.id)
    ]


def test_a_clock_that_was_set_back_gives_no_pair_more_than_its_lifetime():
    before = table()
    before.request(A.id, B.id, 0.0)

    after = table()
    after.restore(kept(before), everybody, now=0.0, wall=WALL - 86_400)

    assert after.get(A.id, B.id).expires_at == LIFETIME


@pytest.mark.parametrize(
    "ports", [(51901, 51902), (51900, 51902), (51918, 51917), (51920, 51921), (1, 2)]
)
def test_ports_that_make_no_sense_are_not_restored(ports):
    sides = tuple(StoredSide(port, int(WALL) + 60, None) for port in ports)
    stored = StoredAllocation(pair_of(A.id, B.id), sides)

    assert table().restore([stored], everybody, now=0.0, wall=WALL) == [stored.pair]


def test_a_pair_the_wrong_way_round_or_twice_is_not_restored():
    sides = (StoredSide(51900, int(WALL) + 60, None), StoredSide(51901, 0, None))
    good = StoredAllocation(pair_of(A.id, B.id), sides)
    wrong = StoredAllocation(Pair(good.pair.higher, good.pair.lower), sides)

    assert table().restore([wrong], everybody, now=0.0, wall=WALL) == [wrong.pair]
    assert table().restore([good, good], everybody, now=0.0, wall=WALL) == [good.pair]


def test_each_change_is_to_be_kept_once():
    allocations = table()
    allocation = allocations.request(A.id, B.id, 0.0)
    allocations.bind(allocation.sides[0], binding("192.0.2.1"), 0.0)

    ((pair, stored),) = allocations.take_changed(0.0, WALL)
    assert stored.sides[0].binding == binding("192.0.2.1")
    assert allocations.take_changed(0.0, WALL) == []

    allocations.release(A.id, B.id, 1.0)
    allocations.release(B.id, A.id, 1.0)
    assert allocations.take_changed(1.0, WALL) == [(pair, None)]


# Whatever happens


PEOPLE = [A.id, B.id, C.id, D.id]
people = st.sampled_from(PEOPLE)
ADDRESSES = [binding(f"192.0.2.{n}", port) for n in (1, 2) for port in (51820, 4711)]


class AnyHistory(RuleBasedStateMachine):
    """Requests, releases, hellos, revocations, restarts, in any order."""

    def __init__(self):
        super().__init__()
        self.ports = PortRange(51900, 51905)  # three pairs, for four people who make six
        self.table = Allocations(self.ports)
        self.now = 0.0
        self.asked = {}  # (who, other) to when, last
        self.told = None
        self.said = {}  # port to every address its member has proven, since it was allotted

    @rule(source=people, other=people)
    def request(self, source, other):
        if source == other:
            return
        known = self.table.get(source, other)
        if known is None and len(self.table) == 3:
            assert refusal(self.table, source, other, self.now) is Reason.FULL
            return
        allocation = self.table.request(source, other, self.now)
        assert known in {None, allocation}
        self.asked[source, other] = self.now

    @rule(source=people, other=people)
    def release(self, source, other):
        if source != other:
            self.table.release(source, other, self.now)
            self.asked.pop((source, other), None)

    @rule(node=people)
    def revoke(self, node):
        self.table.remove_member(node)
        self.asked = {key: at for key, at in self.asked.items() if node not in key}

    @rule(port=st.integers(51899, 51906), where=st.sampled_from(ADDRESSES))
    def hello(self, port, where):
        side = self.table.at_port(port)
        if side is not None:
            self.table.bind(side, where, self.now)
            self.said.setdefault(side.port, {})[where.endpoint] = side.member

    @rule(pause=st.sampled_from([1.0, 4.0, 200.0, 400.0]))
    def wait(self, pause):
        self.now += pause
        self.table.handle_timer(self.now)

    @rule()
    def restart(self):
        stored = [
            stored
            for pair in itertools.combinations(sorted(PEOPLE), 2)
            if (stored := self.table._stored(Pair(*pair), self.now, WALL + self.now)) is not None
        ]
        before = flows(self.table)
        self.table = Allocations(self.ports)
        assert self.table.restore(stored, everybody, self.now, WALL + self.now) == []
        assert flows(self.table) <= before

    @invariant()
    def two_pairs_never_share_a_port(self):
        ports = [side.port for each in self.table for side in each.sides]
        assert len(ports) == len(set(ports)) == len(self.table.ports)
        assert all(self.ports.first <= port <= self.ports.last for port in ports)

    @invariant()
    def nothing_outlives_those_who_want_it(self):
        wanted = {pair_of(*key) for key, at in self.asked.items() if self.now - at < LIFETIME}
        assert {each.pair for each in self.table} == wanted

    @invariant()
    def nothing_is_forwarded_but_between_two_who_have_proven_where_they_are(self):
        for flow in flows(self.table):
            allocation = self.table._by_port[flow.arrives_at.port]
            assert flow.leaves_from.port in {side.port for side in allocation.sides}
            assert flow.leaves_from.port != flow.arrives_at.port
            sender = self.table.at_port(flow.arrives_at.port).member
            receiver = self.table.at_port(flow.leaves_from.port)
            assert self.said[flow.arrives_at.port][flow.source] in {sender, None}
            assert receiver.binding.endpoint == flow.target

    @invariant()
    def a_change_of_what_is_forwarded_is_told(self):
        told = flows(self.table), self.table.ports
        revisions = self.table.flows_revision, self.table.ports_revision
        if self.told is not None and self.told[0] is self.table:
            _, before, at = self.told
            assert (told[0] != before[0]) == (revisions[0] != at[0])
            assert told[1] == before[1] or revisions[1] != at[1]
        self.told = (self.table, told, revisions)

    @invariant()
    def a_datagram_has_one_way_at_most(self):
        keys = [(flow.source, flow.arrives_at) for flow in flows(self.table)]
        assert len(keys) == len(set(keys))

    @invariant()
    def counts_are_right(self):
        statistics = self.table.statistics()
        assert statistics.pairs == len(self.table)
        assert statistics.bound == sum(each.is_bound for each in self.table)


AnyHistory.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyHistory = AnyHistory.TestCase


def test_a_local_address_is_part_of_where_a_flow_arrives():
    allocations = table()
    allocation = bound(allocations.request(A.id, B.id, 0.0), allocations)
    port = allocation.sides[0].port

    assert Endpoint(LOCAL, port) in {flow.arrives_at for flow in flows(allocations)}
