"""The member's side: whom it asks, what it keeps, what it does when a relay goes."""

from __future__ import annotations

import math
from ipaddress import ip_address

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshd.relay.client import (
    ANSWER_TIMEOUT,
    ASKED_TIMES_MAX,
    EXPLORE_PAUSE,
    HELD_MAX,
    PAUSES,
    SILENT_PAUSE,
    Client,
    Offered,
    RelayView,
    Withdrawn,
)
from meshd.relay.wire import Draining, Gone, Grant, Reason, Refused, Release, Request
from relay.members import A, somebody

PEER = A.id
R1, R2, R3, R4, R5 = map(somebody, range(1, 6))
LIFE = 600


def view(relay, rtt, **options):
    return RelayView(ip_address(f"198.51.100.{relay[-1]}"), rtt, **options)


class Member:
    """A client, what it says, and what it has been offered."""

    def __init__(self):
        self.client = Client()
        self.now = 0.0
        self.ports = {}  # relay to (port, draining), of the one peer
        self.have({R1: 0.010, R2: 0.020, R3: 0.030})

    def have(self, rtts, **options):
        self.views = {relay: view(relay, rtt, **options) for relay, rtt in rtts.items()}
        self.client.relays_changed(self.views, self.now)

    def said(self):
        """Take what it has said since, in its order."""
        while (event := self.client.next_event()) is not None:
            match event:
                case Offered(node, relay, address, port, draining):
                    assert node == PEER
                    assert address == self.views[relay].address
                    self.ports[relay] = (port, draining)
                case Withdrawn(_, relay, port):
                    assert self.ports.pop(relay, (port, False))[0] == port
        return self.client.messages_to_send()

    def grant(self, *relays, rtt=0.010, load=0, port=51900, life=LIFE):
        for relay in relays:
            self.client.receive(Grant(PEER, port, life, rtt, load), relay, self.now)

    def wait(self, until):
        """Let time pass, answering nothing.  Return what it said by then."""
        said = self.said()
        while (timer := self.client.get_timer()) is not None and timer.at <= until:
            self.now = max(self.now, timer.at)
            self.client.handle_timer(self.now)
            said += self.said()
        self.now = until
        return said

    def want(self, count):
        self.client.want(PEER, count, self.now)
        return self.said()

    def settled(self, count=2, **grants):
        """Want relays, and have all that are asked grant."""
        for message, relay in self.want(count):
            assert message == Request(PEER)
            self.grant(relay, **grants)
        assert self.said() == []
        return self


@pytest.fixture
def member():
    return Member()


# Asking


def test_the_nearest_two_are_asked(member):
    assert member.want(2) == [(Request(PEER), R1), (Request(PEER), R2)]


def test_of_two_that_are_as_near_the_one_with_less_to_do_is_asked():
    member = Member()
    member.have({R1: 0.010, R2: 0.011, R3: 0.012})
    member.settled(load=0)
    member.grant(R1, load=90)
    member.client.unwant(PEER, member.now)
    member.client.receive(Gone(PEER), R1, member.now)
    member.client.receive(Gone(PEER), R2, member.now)
    member.said()

    assert [relay for _, relay in member.want(2)] == [R2, R3]


def test_nobody_is_asked_for_itself(member):
    member.client.want(R1, 2, 0.0)

    assert member.said() == [(Request(R1), R2), (Request(R1), R3)]


def test_a_relay_that_takes_nothing_new_is_not_asked():
    member = Member()
    member.views = {R1: view(R1, 0.01, offers=False), R2: view(R2, 0.02), R3: view(R3, 0.03)}
    member.client.relays_changed(member.views, 0.0)

    assert [relay for _, relay in member.want(2)] == [R2, R3]


def test_grants_are_offered_at_the_relays_address(member):
    member.settled(port=51907)

    assert member.ports == {R1: (51907, False), R2: (51907, False)}


def test_one_that_is_wanted_is_the_better_of_two(member):
    member.want(1)
    member.grant(R1, rtt=0.200)
    assert member.said() == []  # the other may be better
    member.grant(R2, rtt=0.010)

    assert member.said() == [(Release(PEER), R1)]


def test_load_counts(member):
    member.want(1)
    member.grant(R1, rtt=0.010, load=100)
    member.grant(R2, rtt=0.010, load=0)

    assert member.said() == [(Release(PEER), R1)]


def test_silence_has_another_asked_at_once_and_the_same_again(member):
    member.want(2)
    member.grant(R1)

    said = member.wait(ANSWER_TIMEOUT + 0.01)

    assert said == [(Request(PEER), R2), (Request(PEER), R3)]


def test_one_that_stays_silent_is_given_up_and_asked_much_later(member):
    member.have({R1: 0.010})
    member.want(2)

    said = member.wait(SILENT_PAUSE)
    assert said == [(Request(PEER), R1)] * (ASKED_TIMES_MAX - 1)

    assert (Request(PEER), R1) in member.wait(SILENT_PAUSE + 10)


@pytest.mark.parametrize("reason", list(Reason))
def test_a_refusal_has_another_asked_and_the_same_after_a_pause(member, reason):
    member.have({R1: 0.010, R2: 0.020})
    member.want(2)
    member.grant(R2)
    member.client.receive(Refused(PEER, reason), R1, 0.0)
    assert member.said() == []

    assert member.wait(PAUSES[reason] - 0.1) == []
    assert member.wait(PAUSES[reason] + 0.1) == [(Request(PEER), R1)]


def test_a_refusal_that_nobody_asked_for_changes_nothing(member):
    member.settled()
    member.client.receive(Refused(PEER, Reason.FULL), R1, 0.0)

    assert member.said() == []
    assert set(member.ports) == {R1, R2}


# Holding


def test_each_is_asked_for_again_at_half_of_its_life(member):
    member.settled()

    said = member.wait(LIFE / 2 + 0.5)

    assert (Request(PEER), R1) in said
    assert (Request(PEER), R2) in said
    assert member.wait(0.0) == []


def test_one_that_is_not_renewed_is_withdrawn_when_it_ends(member):
    member.settled()
    member.wait(LIFE + 1)

    assert member.ports == {}


def test_what_the_peer_has_asked_for_is_offered_and_not_joined_unless_wanted(member):
    member.grant(R2)

    assert member.said() == []
    assert set(member.ports) == {R2}
    assert member.wait(LIFE - 1) == []


def test_what_the_peer_has_asked_for_counts_and_is_joined_when_wanted(member):
    member.grant(R2, rtt=0.001)

    assert member.want(1) == [(Request(PEER), R1), (Request(PEER), R3)]
    member.grant(R1, R3, rtt=0.100)
    assert member.said() == [(Request(PEER), R2), (Release(PEER), R1), (Release(PEER), R3)]


def test_two_that_want_the_same_come_to_the_same_relays():
    one, other = Member(), Member()
    other.have({R3: 0.005, R2: 0.010, R1: 0.050})  # it is near others
    sums = {R1: 0.060, R2: 0.030, R3: 0.035}  # of both ways
    for member in (one, other):
        for _, relay in member.want(2):
            # Each grant goes to both, with the round trip to the other one.
            for receiver in (one, other):
                receiver.grant(relay, rtt=sums[relay] - receiver.views[relay].rtt)
    for _ in range(3):
        for member in (one, other):
            for message, relay in member.said():
                if isinstance(message, Request):
                    one.grant(relay, rtt=sums[relay] - one.views[relay].rtt)
                    other.grant(relay, rtt=sums[relay] - other.views[relay].rtt)
    joined = [
        {r for r, held in member.client._wishes[PEER].held.items() if held.joined}
        for member in (one, other)
    ]
    assert joined == [{R2, R3}, {R2, R3}]


def test_what_is_let_go_of_is_there_until_the_relay_says_otherwise(member):
    member.settled()
    member.client.unwant(PEER, 0.0)

    assert member.said() == [(Release(PEER), R1), (Release(PEER), R2)]
    assert set(member.ports) == {R1, R2}

    member.client.receive(Gone(PEER), R1, 0.0)
    member.client.receive(Gone(PEER), R2, 0.0)
    assert member.said() == []
    assert member.ports == {}
    assert member.client.idle


def test_a_grant_that_comes_after_nothing_is_wanted_any_more_was_let_go_of(member):
    member.want(2)
    member.client.unwant(PEER, 0.0)

    assert member.said() == [(Release(PEER), R1), (Release(PEER), R2)]
    assert member.client.idle


def test_the_one_in_use_is_kept_when_fewer_are_wanted(member):
    member.settled()
    member.client.in_use(PEER, R2, 0.0)

    assert member.want(1) == [(Release(PEER), R1)]


def test_a_relay_that_came_later_is_tried_at_half_time_and_kept_if_it_is_better(member):
    member.have({R1: 0.010, R2: 0.020})
    member.settled()
    member.have({R1: 0.010, R2: 0.020, R4: 0.001})
    said = member.wait(LIFE / 2 + 0.1)
    assert (Request(PEER), R4) in said

    member.grant(R1, R2, rtt=0.010)
    member.grant(R4, rtt=0.001)

    assert member.said() == [(Release(PEER), R2)]


def test_one_about_as_good_takes_nobodys_place_and_is_left_alone_for_a_while(member):
    member.settled()
    said = member.wait(LIFE / 2 + 0.1)
    assert (Request(PEER), R3) in said
    member.grant(R1, R2, rtt=0.010)
    member.grant(R3, rtt=0.000)
    assert member.said() == [(Release(PEER), R3)]
    member.client.receive(Gone(PEER), R3, member.now)

    assert EXPLORE_PAUSE > LIFE / 2
    said = member.wait(member.now + LIFE / 2 + 0.1)
    assert (Request(PEER), R3) not in said


def test_no_more_is_held_than_the_bound(member):
    relays = list(map(somebody, range(1, 20)))
    member.have(dict.fromkeys(relays, 0.01))
    member.grant(*relays)

    member.said()
    assert len(member.ports) == HELD_MAX


# Relays that go


def test_one_that_may_not_relay_any_more_is_withdrawn_and_another_asked(member):
    member.settled()
    member.have({R2: 0.020, R3: 0.030})

    assert member.said() == [(Request(PEER), R3)]
    assert set(member.ports) == {R2}


def test_a_relay_that_is_dead_is_replaced_and_left_to_the_path_agent(member):
    member.settled()
    member.client.in_use(PEER, R1, 0.0)
    member.views = {**member.views, R1: view(R1, 0.010, offers=False)}
    member.client.relays_changed(member.views, 0.0)
    assert member.said() == [(Request(PEER), R3)]
    member.grant(R3)
    assert member.said() == []
    assert member.ports[R1] == (51900, True)

    member.client.silent(PEER, R1, 0.0)
    member.client.silent(PEER, R1, 0.0)

    assert member.said() == [(Request(PEER), R1), (Release(PEER), R1)]
    assert set(member.ports) == {R2, R3}


def test_a_relay_that_is_not_reached_directly_for_a_moment_is_not_given_up(member):
    member.settled(port=51907)
    before = dict(member.views)
    member.views = {**before, R1: RelayView(None, 0.010)}
    member.client.relays_changed(member.views, 0.0)
    assert member.said() == [(Request(PEER), R3)]
    assert set(member.ports) == {R2}
    assert set(member.client.held(PEER)) == {R1, R2}

    member.views = before
    member.client.relays_changed(before, 1.0)

    assert member.said() == []
    assert member.ports[R1] == (51907, False)


def test_one_that_is_reached_by_a_relay_only_is_not_asked():
    member = Member()
    member.views = {**member.views, R1: RelayView(None, 0.001)}
    member.client.relays_changed(member.views, 0.0)

    assert [relay for _, relay in member.want(2)] == [R2, R3]


def test_a_relay_at_another_address_is_offered_there(member):
    member.settled()
    member.views = {**member.views, R1: RelayView(ip_address("203.0.113.1"), 0.010)}
    member.client.relays_changed(member.views, 0.0)

    assert member.said() == []
    assert set(member.ports) == {R1, R2}


def test_a_relay_that_has_nothing_any_more_is_replaced(member):
    member.settled()
    member.client.receive(Gone(PEER), R1, 0.0)

    # The nearest is asked: it may just have been restarted.
    assert member.said() == [(Request(PEER), R1)]
    assert set(member.ports) == {R2}


def test_a_port_that_is_silent_is_asked_for_again_and_then_left(member):
    member.settled()
    member.client.silent(PEER, R1, 0.0)
    assert member.said() == [(Request(PEER), R1)]
    member.grant(R1)

    member.client.silent(PEER, R1, 0.0)

    assert member.said() == [(Release(PEER), R1), (Request(PEER), R3)]
    assert set(member.ports) == {R2}


def test_a_relay_that_was_restarted_without_its_memory_gives_another_port(member):
    member.settled()
    member.client.silent(PEER, R1, 0.0)
    member.grant(R1, port=51950)

    member.said()
    assert member.ports[R1] == (51950, False)
    member.client.silent(PEER, R1, 0.0)
    assert member.said() == [(Request(PEER), R1)]


def test_a_draining_relay_is_replaced_first_and_let_go_of_when_it_is_not_in_use(member):
    member.settled()
    member.client.in_use(PEER, R1, 0.0)
    member.client.receive(Draining(draining=True), R1, 0.0)
    assert member.said() == [(Request(PEER), R3)]
    assert member.ports[R1] == (51900, True)

    member.grant(R3)
    assert member.said() == []
    assert R1 in member.ports

    member.client.in_use(PEER, R2, 0.0)
    assert member.said() == [(Release(PEER), R1)]


def test_a_draining_spare_is_let_go_of_once_there_is_another(member):
    member.have({R1: 0.010, R2: 0.020})
    member.want(1)
    member.grant(R1)
    member.grant(R2, rtt=0.200)
    assert member.said() == [(Release(PEER), R2)]
    member.client.receive(Gone(PEER), R2, 0.0)
    assert member.said() == []

    member.client.receive(Draining(draining=True), R1, 0.0)
    assert member.said() == [(Request(PEER), R2)]
    member.grant(R2)

    assert member.said() == [(Release(PEER), R1)]


def test_the_only_relay_is_kept_though_it_drains(member):
    member.have({R1: 0.010})
    member.settled()
    member.client.receive(Draining(draining=True), R1, 0.0)

    assert member.said() == []
    assert member.ports == {R1: (51900, True)}

    member.client.receive(Draining(draining=False), R1, 0.0)
    assert member.said() == []
    assert member.ports == {R1: (51900, False)}


def test_one_whose_record_says_that_it_takes_nothing_new_drains(member):
    member.settled()
    member.views = {**member.views, R1: view(R1, 0.010, offers=False)}
    member.client.relays_changed(member.views, 0.0)

    assert member.said() == [(Request(PEER), R3)]
    assert member.ports[R1] == (51900, True)


def test_a_peer_that_is_no_member_is_forgotten_without_a_word(member):
    member.settled()
    member.client.remove_peer(PEER)

    assert member.said() == []
    assert member.ports == {}
    assert member.client.idle
    assert member.client.get_timer() is None


def test_what_one_says_that_is_no_relay_here_is_ignored(member):
    member.want(2)
    member.grant(R5)
    member.client.receive(Gone(PEER), R5, 0.0)
    member.client.receive(Draining(draining=True), R5, 0.0)

    assert member.said() == []
    assert member.ports == {}


def test_a_grant_about_the_relay_itself_is_ignored(member):
    member.client.receive(Grant(R1, 51900, LIFE), R1, 0.0)

    assert member.said() == []
    assert member.client.idle


RELAYS = [R1, R2, R3, R4, R5]
relays = st.sampled_from(RELAYS)


class AnyHistory(RuleBasedStateMachine):
    """Relays that answer, refuse, drain, die and lie, in any order."""

    def __init__(self):
        super().__init__()
        self.member = Member()
        self.wanted = 0

    @rule(count=st.integers(1, 2))
    def want(self, count):
        self.wanted = count
        self.member.client.want(PEER, count, self.member.now)

    @rule()
    def unwant(self):
        self.wanted = 0
        self.member.client.unwant(PEER, self.member.now)

    @rule(relay=relays, rtt=st.sampled_from([0.0, 0.01, 0.5]), load=st.sampled_from([0, 50, 100]))
    def grant(self, relay, rtt, load):
        self.member.grant(relay, rtt=rtt, load=load)

    @rule(relay=relays, reason=st.sampled_from(Reason))
    def refuse(self, relay, reason):
        self.member.client.receive(Refused(PEER, reason), relay, self.member.now)

    @rule(relay=relays)
    def gone(self, relay):
        self.member.client.receive(Gone(PEER), relay, self.member.now)

    @rule(relay=relays, draining=st.booleans())
    def drain(self, relay, draining):
        self.member.client.receive(Draining(draining), relay, self.member.now)

    @rule(relay=relays)
    def silent(self, relay):
        self.member.client.silent(PEER, relay, self.member.now)

    @rule(relay=st.none() | relays)
    def use(self, relay):
        self.member.client.in_use(PEER, relay, self.member.now)

    @rule(there=st.lists(relays, unique=True), offers=st.booleans())
    def relays_change(self, there, offers):
        self.member.have({relay: relay[-1] / 100 for relay in there}, offers=offers)

    @rule(pause=st.sampled_from([0.5, 2.0, 40.0, 400.0]))
    def wait(self, pause):
        self.member.wait(self.member.now + pause)

    @invariant()
    def what_is_offered_is_held_and_bounded(self):
        for message, relay in self.member.said():
            assert relay in self.member.views
            assert isinstance(message, Request | Release)
        assert set(self.member.ports) == set(self.member.client.held(PEER))
        assert len(self.member.ports) <= HELD_MAX
        assert set(self.member.ports) <= set(self.member.views)

    @invariant()
    def no_deadline_is_missed(self):
        timer = self.member.client.get_timer()
        if timer is not None:
            assert self.member.now <= timer.at < math.inf
        else:
            assert not self.member.client.held(PEER)


AnyHistory.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnyHistory = AnyHistory.TestCase
