"""Who looks at a suspect: the same few by everybody's reckoning, at once, until it is settled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.harness import (
    ALIVE,
    DEAD,
    LEFT,
    QUIET,
    SUSPECT,
    Bench,
    accusations,
    accuse,
    alive,
    claims,
    items_in,
    key,
    name_of,
    to,
)
from meshd.gossip.cause import Cause, CauseKind
from meshd.gossip.claim import MemberState
from meshd.gossip.config import GossipConfig
from meshd.gossip.events import MemberStateChanged
from meshd.gossip.member import Member
from meshd.gossip.member_table import MemberTable
from meshd.gossip.observers import WATCHED_MAX, observers_of
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import MessageType
from meshd.keys import NodeId

NAMES = [f"m{number}" for number in range(20)]
CIRCLE = sorted(key(name).id for name in ("me", *NAMES))
CONFIG = GossipConfig()


def quiet(**numbers):
    """Nobody is probed in turn, and nothing else differs but what is told."""
    return GossipConfig(**({"probe_interval": 1e5} | numbers))


# The table, against a model


def node(number):
    return NodeId(number.to_bytes(1, "big") * 32)


class Model:
    """What the table is to know, by brute force."""

    def __init__(self, own):
        self.own = own
        self.shown = {}

    def followers(self, member, count):
        walk = [NodeId(member)]
        for _ in range(256):
            number = (walk[-1][0] + 1) % 256
            walk.append(node(number))
        around = [other for other in walk[1:] if other != member]
        live = [
            other
            for other in around
            if other == self.own or self.shown.get(other) in {ALIVE, SUSPECT}
        ]
        return live[:count]


numbers = st.integers(0, 255)
steps = st.lists(st.tuples(numbers, st.none() | st.sampled_from(MemberState)), max_size=60)


def table_after(own, history):
    table, model = MemberTable(own), Model(own)
    for number, state in history:
        member = node(number)
        if member == own:
            continue
        if state is None:
            if member in model.shown:
                # The table asks a member itself what it is shown as.
                table.shown_changed(member, model.shown.pop(member), DEAD)
                table.remove(member)
            continue
        if member not in model.shown:
            table.add(Member(member, silent_since=0.0))
            model.shown[member] = DEAD
        if model.shown[member] is not state:
            table.shown_changed(member, model.shown[member], state)
            model.shown[member] = state
    return table, model


@given(numbers, steps, numbers, st.integers(0, 8))
def test_the_followers_are_the_next_live_ones_on_the_circle(own, history, member, count):
    table, model = table_after(node(own), history)
    assert table.followers(node(member), count) == model.followers(node(member), count)


@given(numbers, steps)
def test_the_table_knows_who_is_live_and_how_many_are_silent(own, history):
    table, model = table_after(node(own), history)
    live = [member for member, state in model.shown.items() if state in {ALIVE, SUSPECT}]
    assert sorted(table.live) == sorted(live)
    assert all(table.is_live(member) == (member in live) for member in model.shown)
    assert table.silent == sum(state is DEAD for state in model.shown.values())
    assert len(table) == len(model.shown)
    assert {member.node for member in table} == set(model.shown)


def test_the_live_are_in_the_order_in_which_they_became_so():
    history = [(3, ALIVE), (1, ALIVE), (2, ALIVE), (3, SUSPECT), (1, DEAD), (1, ALIVE)]
    table, _ = table_after(node(0), history)
    assert table.live == (node(3), node(2), node(1))


@given(st.sets(numbers, min_size=2, max_size=40), st.integers(0, 8))
def test_all_that_know_the_same_members_name_the_same_observers(mesh, observers):
    config = GossipConfig(observers=observers)
    tables = [table_after(node(own), [(n, ALIVE) for n in mesh - {own}])[0] for own in mesh]
    for suspect in mesh:
        # The suspect itself counts among the live, and never among its own observers.
        named = {tuple(observers_of(node(suspect), table, config)) for table in tables}
        assert len(named) == 1
        assert len(named.pop()) == min(observers, len(mesh) - 1)


@given(st.sets(numbers, min_size=8, max_size=40))
def test_everybody_has_as_many_to_observe_as_observe_it(mesh):
    table, _ = table_after(node(min(mesh)), [(n, ALIVE) for n in mesh - {min(mesh)}])
    duties = [other for suspect in mesh for other in observers_of(node(suspect), table, CONFIG)]
    assert {duties.count(node(member)) for member in mesh} == {CONFIG.observers}


# In a node


def observers(name):
    """Who is to look at a member where all are live."""
    at = CIRCLE.index(key(name).id)
    return [CIRCLE[(at + step) % len(CIRCLE)] for step in range(1, CONFIG.observers + 1)]


OURS = next(name for name in NAMES if key("me").id in observers(name))
NOT_OURS = next(name for name in NAMES if key("me").id not in observers(name))
OTHERS = [name for name in NAMES if name not in {OURS, NOT_OURS}]


def met(config=QUIET):
    """A node that has met everybody, and has nothing left to tell."""
    bench = Bench(*NAMES, config=config)
    bench.meet(*NAMES)
    bench.advance(5.0)
    bench.events.clear()
    return bench


def pings_to(bench, name, seconds):
    """When a member is pinged."""
    target = key(name).id
    return [
        round(at, 3)
        for at, message, node in bench.timeline(seconds)
        if node == target and message.type is MessageType.PING
    ]


def first_claim(message):
    return claims(message.items[:1])[0]


# Who accuses


@pytest.mark.parametrize("name", [OURS, NOT_OURS])
def test_whoever_accuses_tells_the_suspect_and_its_observers_at_once(name):
    bench = met()
    sent = bench.do("unreachable", key(name).id, bench.now)
    told = [target for message, target in sent if message.type is MessageType.GOSSIP]
    expected = [*observers(name), key(name).id]
    assert sorted(told) == sorted(node for node in expected if node != key("me").id)
    for message, _ in sent:
        if message.type is MessageType.GOSSIP:
            claim = first_claim(message)
            assert (claim.subject, claim.signer) == (key(name).id, key("me").id)
            assert claim.state is SUSPECT


@pytest.mark.parametrize(
    ("numbers", "count"),
    [({"staples": 0}, 5), ({"observers": 0}, 1), ({"staples": 0, "observers": 0}, 0)],
)
def test_what_is_switched_off_is_not_told_at_once(numbers, count):
    bench = met(quiet(**numbers))
    sent = bench.do("unreachable", key(NOT_OURS).id, bench.now)
    told = [target for message, target in sent if message.type is MessageType.GOSSIP]
    assert len(told) == count
    assert (key(NOT_OURS).id in told) == bool(numbers.get("staples", 1))


def test_whoever_accuses_looks_on():
    bench = met()
    bench.do("unreachable", key(NOT_OURS).id, bench.now)
    pings = pings_to(bench, NOT_OURS, 1.3)
    # Nobody's round trips are known here, so that a pause is as long as an ack may take.
    assert pings == pytest.approx([0.2, 0.7, 1.2])


# Who observes


def test_an_observer_probes_the_suspect_when_it_hears_of_it():
    bench = met()
    sent = bench.receive(OTHERS[0], items=[accuse(OURS, by=OTHERS[0])])
    (ping,) = to(sent, OURS, MessageType.PING)
    assert [claim.signer for claim in accusations(ping.items, OURS)] == [key(OTHERS[0]).id]
    assert bench.deadline(TimerKind.PROBE_TIMEOUT, OURS) == CONFIG.probe_timeout


def test_an_observer_probes_the_suspect_once_however_many_accuse_it():
    bench = met()
    sent = []
    for accuser in OTHERS[:4]:
        sent += bench.receive(accuser, items=[accuse(OURS, by=accuser)])
    assert len(to(sent, OURS, MessageType.PING)) == 1


def test_an_observer_that_finds_silence_signs_its_own_accusation():
    bench = met()
    bench.receive(OTHERS[0], items=[accuse(OURS, by=OTHERS[0])])
    bench.run_with(1.6, *OTHERS)
    assert set(bench.view(OURS).accusers) == {key(OTHERS[0]).id, key("me").id}


def test_an_observer_pings_until_the_suspect_is_alive():
    bench = met()
    for _ in range(20):  # on a path of some round trip, which is measured
        sequence = bench.node.ping(key(OURS).id, bench.now)
        bench.advance(0.01)
        bench.receive(OURS, MessageType.ACK, sequence=sequence)
    bench.receive(OTHERS[0], items=[accuse(OURS, by=OTHERS[0])])
    bench._drain()
    bench.node._prober._end(key(OURS).id)  # what the probe itself sends is not asked here
    assert pings_to(bench, OURS, 0.9) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    bench.receive(OURS, items=[alive(OURS, 2)], incarnation=2)
    assert bench.state(OURS) is ALIVE
    assert pings_to(bench, OURS, 5.0) == []
    assert bench.deadline(TimerKind.WATCH, OURS) is None


def test_an_observer_pings_until_the_suspect_is_dead():
    bench = met()
    accusers = OTHERS[:4]
    for accuser in accusers:
        bench.receive(accuser, items=[accuse(OURS, by=accuser)])
    bench.advance(bench.deadline(TimerKind.SUSPICION, OURS) + 0.001)
    assert bench.state(OURS) is DEAD
    bench.advance(0.6)
    assert bench.deadline(TimerKind.WATCH, OURS) is None
    assert key(OURS).id not in bench.node._prober._watched


def test_everybody_else_looks_only_after_the_time_in_which_a_confirmed_suspicion_is_over():
    bench = met()
    bench.receive(OTHERS[0], items=[accuse(NOT_OURS, by=OTHERS[0])])
    span = bench.member(NOT_OURS).suspicion.timeout_min
    assert pings_to(bench, NOT_OURS, span - 0.001) == []
    assert pings_to(bench, NOT_OURS, 2.0 * span) == pytest.approx([0.001, span], abs=0.002)


def test_who_looks_late_is_told_of_the_refutation_that_it_has_missed():
    bench = met()
    bench.receive(OTHERS[0], items=[accuse(NOT_OURS, by=OTHERS[0])])
    ping, _ = bench.advance_to(MessageType.PING)
    bench.receive(NOT_OURS, MessageType.ACK, items=[alive(NOT_OURS, 2)], sequence=ping.sequence)
    assert bench.state(NOT_OURS) is ALIVE


def test_each_look_shows_another_member_what_we_believe():
    bench = met(quiet(suspicion_mult=100.0))
    bench.receive(OTHERS[0], items=[accuse(OURS, by=OTHERS[0])])
    bench.advance(3.0)  # what is told to all is told
    asked = [
        target
        for _, message, target in bench.timeline(2.0)
        if message.type is MessageType.GOSSIP and accusations(message.items[:1], OURS)
    ]
    assert len(asked) >= 3
    assert key(OURS).id not in asked


def test_a_suspect_that_is_forgotten_is_watched_no_more():
    bench = met()
    bench.receive(OTHERS[0], items=[accuse(OURS, by=OTHERS[0])])
    bench.ledger.forget(key(OURS).id)
    bench.do("forget", key(OURS).id, bench.now)
    assert bench.deadline(TimerKind.WATCH, OURS) is None
    assert bench.node._prober._watched == {}
    assert bench.node._prober._probes == {}


def test_without_observers_nobody_looks_but_in_turn():
    bench = met(quiet(observers=0))
    bench.receive(OTHERS[0], items=[accuse(OURS, by=OTHERS[0])])
    assert pings_to(bench, OURS, 3.0) == []
    assert bench.deadline(TimerKind.WATCH, OURS) is None


def test_to_be_an_observer_is_no_power():
    bench = met()
    outsider = next(name for name in OTHERS if key(name).id not in observers(OURS))
    insider = next(name for name in OTHERS if key(name).id in observers(NOT_OURS))
    bench.receive(outsider, items=[accuse(OURS, by=outsider)])
    bench.receive(insider, items=[accuse(NOT_OURS, by=insider)])
    waits = [bench.deadline(TimerKind.SUSPICION, name) for name in (OURS, NOT_OURS)]
    assert waits[0] == pytest.approx(waits[1])


def test_no_more_suspects_are_watched_than_we_can_follow():
    bench = met()
    for name in NAMES:
        if name != OTHERS[0]:
            bench.receive(OTHERS[0], items=[accuse(name, by=OTHERS[0])])
    assert len(bench.node._prober._watched) == WATCHED_MAX


def test_a_duty_comes_before_a_late_look():
    names = [f"m{number}" for number in range(40)]
    bench = Bench("a", *names, config=QUIET)
    bench.meet("a", *names)
    table = bench.node._membership.table
    ours = [n for n in names if key("me").id in observers_of(key(n).id, table, CONFIG)]
    late = [name for name in names if name not in ours]
    for name in late[:WATCHED_MAX]:
        bench.receive("a", items=[accuse(name, by="a")])
    assert len(bench.node._prober._watched) == WATCHED_MAX
    for name in (*ours, *late[WATCHED_MAX:]):
        bench.receive("a", items=[accuse(name, by="a")])
    assert len(bench.node._prober._watched) == WATCHED_MAX
    for name in ours:
        assert bench.deadline(TimerKind.WATCH, name) == pytest.approx(CONFIG.watch_interval)
    watching = [name for name in late if bench.deadline(TimerKind.WATCH, name) is not None]
    assert len(watching) == WATCHED_MAX - len(ours)


# The suspect


def stapled(bench, name):
    """Which accusations go along to a member that pings us."""
    sent = bench.receive(name, MessageType.PING, known=1)
    (ack,) = to(sent, name, MessageType.ACK)
    return accusations(ack.items, name)


@pytest.mark.parametrize("staples", [0, 1, 2, 4])
def test_a_suspect_is_told_of_so_many_accusations_and_no_more(staples):
    bench = met(quiet(staples=staples, observers=0, suspicion_mult=100.0))
    for accuser in OTHERS[:3]:
        bench.receive(accuser, items=[accuse(NOT_OURS, by=accuser)])
    bench.advance(10.0)  # what is told to all is told
    assert bench.node.statistics().broadcasts_queued == 0
    assert bench.state(NOT_OURS) is SUSPECT
    assert len(stapled(bench, NOT_OURS)) == min(staples, 3)


def test_a_refutation_travels_back_in_the_ack():
    bench = met()
    sent = bench.receive(
        OTHERS[0], MessageType.PING, items=[accuse("me", by=OTHERS[0])], known=1, sequence=5
    )
    (ack,) = to(sent, OTHERS[0], MessageType.ACK)
    own = first_claim(ack)
    assert (own.subject, own.incarnation, own.state) == (key("me").id, 2, ALIVE)


def test_a_refutation_in_an_ack_is_news_for_all_and_overtakes_the_accusation():
    bench = met()
    sent = bench.receive(OTHERS[0], items=[accuse(OURS, by=OTHERS[0])])
    (ping,) = to(sent, OURS, MessageType.PING)
    bench.receive(OURS, MessageType.ACK, items=[alive(OURS, 2)], sequence=ping.sequence)
    change = bench.seen(MemberStateChanged)[-1]
    assert (change.after, change.cause) == (ALIVE, Cause(CauseKind.REFUTED))
    told = [c for c in claims(items_in(bench.advance(3.0))) if c.subject == key(OURS).id]
    assert {(claim.incarnation, claim.state) for claim in told} == {(2, ALIVE)}


# How long it has


@pytest.mark.parametrize("accusers", [1, 2, 3, 4, 6])
def test_a_confirmed_accusation_concludes_sooner(accusers):
    bench = met(quiet(observers=0))
    for accuser in OTHERS[:accusers]:
        bench.receive(accuser, items=[accuse(NOT_OURS, by=accuser)])
    terms = bench.member(NOT_OURS).suspicion
    wait = bench.deadline(TimerKind.SUSPICION, NOT_OURS)
    if accusers == 1:
        assert wait == pytest.approx(terms.timeout_max)
    elif accusers > CONFIG.confirmations_expected:
        assert wait == pytest.approx(terms.timeout_min)
    else:
        assert terms.timeout_min < wait < terms.timeout_max
    bench.advance(wait - 0.01)
    assert bench.state(NOT_OURS) is SUSPECT
    bench.advance(0.02)
    assert bench.state(NOT_OURS) is DEAD
    cause = bench.seen(MemberStateChanged)[-1].cause
    assert cause.kind is CauseKind.UNREFUTED
    assert len(cause.accusers) == accusers
    assert cause.silent_for == pytest.approx(wait)


def test_an_accuser_counts_once_whoever_relays_it():
    bench = met(quiet(observers=0))
    bench.receive(OTHERS[0], items=[accuse(NOT_OURS, by=OTHERS[0])])
    wait = bench.deadline(TimerKind.SUSPICION, NOT_OURS)
    for relay in OTHERS[1:8]:
        bench.receive(relay, items=[accuse(NOT_OURS, by=OTHERS[0])])
    assert bench.deadline(TimerKind.SUSPICION, NOT_OURS) == wait
    assert bench.view(NOT_OURS).accusers == (key(OTHERS[0]).id,)


def test_a_confirmation_that_comes_when_it_would_have_been_over_concludes_at_once():
    bench = met(quiet(observers=0))
    bench.receive(OTHERS[0], items=[accuse(NOT_OURS, by=OTHERS[0])])
    bench.advance(2.0)
    for accuser in OTHERS[1:4]:
        bench.receive(accuser, items=[accuse(NOT_OURS, by=accuser)])
    bench.advance(0.0)
    assert bench.state(NOT_OURS) is DEAD


def test_a_member_that_left_is_neither_observed_nor_an_observer():
    bench = met()
    assert bench.state(OURS) is ALIVE
    table = bench.node._membership.table
    first = name_of(observers(OURS)[0], ["me", *NAMES])
    if first != "me":
        table.shown_changed(key(first).id, ALIVE, LEFT)
        assert key(first).id not in observers_of(key(OURS).id, table, CONFIG)
