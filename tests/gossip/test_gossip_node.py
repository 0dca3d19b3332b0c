"""The node as its driver sees it: contact, suspicion, refutation, facts, leaving."""

import random

import pytest

from gossip.harness import (
    ALIVE,
    DEAD,
    LEFT,
    MESH,
    QUIET,
    SUSPECT,
    WALL,
    Bench,
    accuse,
    alive,
    claims,
    items_in,
    key,
    left,
    record,
    revocation,
    to,
)
from meshd.gossip.cause import Cause, CauseKind
from meshd.gossip.config import GossipConfig
from meshd.gossip.events import (
    FactLearned,
    Heard,
    IncarnationRaised,
    LeaveAnnounced,
    MemberJoined,
    MemberStateChanged,
    PingAnswered,
)
from meshd.gossip.membership import EXTENSIONS_MAX
from meshd.gossip.node import Node
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import Item, MessageType, Summary
from meshd.trust.fact import FactKind
from meshd.trust.ledger import Ledger

# First contact


def test_a_member_known_from_its_record_is_shown_dead_until_it_is_heard():
    bench = Bench("a")
    assert bench.state("a") is DEAD
    assert bench.seen(MemberStateChanged) == []
    bench.receive("a", MessageType.PING, items=[alive("a")])
    assert bench.state("a") is ALIVE
    (change,) = bench.seen(MemberStateChanged)
    assert (change.before, change.after, change.cause) == (DEAD, ALIVE, Cause(CauseKind.HEARD))
    assert bench.seen(Heard) == [Heard(key("a").id)]


def test_a_member_that_only_others_have_heard_is_not_shown_alive():
    bench = Bench("a", "b")
    bench.receive("b", MessageType.PING, items=[alive("b"), alive("a")])
    assert bench.state("b") is ALIVE
    assert bench.state("a") is DEAD


def test_a_member_that_is_heard_but_has_claimed_nothing_is_not_shown_alive():
    bench = Bench("a")
    bench.receive("a", MessageType.PING)
    assert bench.state("a") is DEAD
    bench.receive("a", items=[alive("a")])
    assert bench.state("a") is ALIVE


def test_nobody_is_pinged_before_the_path_is_ready_or_the_fallback_has_passed():
    bench = Bench("a", "b")
    assert bench.advance(2.99) == []
    sent = bench.advance(0.8)
    assert to(sent, "a", MessageType.PING)
    assert to(sent, "b", MessageType.PING)


def lower_and_higher():
    """The name of a member with a lower id than `me`, and of one with a higher."""
    names = [f"x{number}" for number in range(20)]
    low = next(name for name in names if key(name).id < key("me").id)
    high = next(name for name in names if key(name).id > key("me").id)
    return low, high


def test_on_contact_the_lower_id_pings_at_once_and_the_higher_gives_way():
    low, high = lower_and_higher()
    bench = Bench(low, high)
    assert to(bench.do("contact", key(high).id, bench.now), high, MessageType.PING)
    assert bench.do("contact", key(low).id, bench.now) == []
    assert bench.advance(0.14) == []
    assert to(bench.advance(0.02), low, MessageType.PING)


def test_on_contact_the_higher_id_need_not_ping_whom_it_hears_meanwhile():
    low, _ = lower_and_higher()
    bench = Bench(low)
    bench.do("contact", key(low).id, bench.now)
    bench.meet(low)
    assert to(bench.advance(0.3), low, MessageType.PING) == []


def test_contact_with_a_live_member_pings_it_at_once():
    low, _ = lower_and_higher()
    bench = Bench(low)
    bench.meet(low)
    bench.advance(1.0)
    assert to(bench.do("contact", key(low).id, bench.now), low, MessageType.PING)


def test_contact_with_a_member_that_was_just_met_or_pinged_is_no_second_ping():
    low, high = lower_and_higher()
    bench = Bench(low, high)
    bench.meet(low)
    assert not to(bench.do("contact", key(low).id, bench.now), low, MessageType.PING)

    pings = [to(bench.do("contact", key(high).id, bench.now), high, MessageType.PING)]
    pings.append(to(bench.do("contact", key(high).id, bench.now), high, MessageType.PING))
    assert [len(sent) for sent in pings] == [1, 0]


def test_contact_with_a_stranger_is_nothing():
    bench = Bench("a")
    assert bench.do("contact", key("stranger").id, bench.now) == []


def test_first_contact_introduces_us_until_the_other_knows():
    bench = Bench("a")
    (ping,) = bench.do("contact", key("a").id, bench.now) or bench.advance(0.2)
    assert [claim.subject for claim in claims(ping[0].items)] == [key("me").id]
    sent = bench.receive("a", MessageType.PING, items=[alive("a")], known=None)
    assert key("me").id in [claim.subject for claim in claims(items_in(sent))]
    bench.advance(3)  # the broadcasts of it are over
    sent = bench.receive("a", MessageType.PING, known=1)
    assert key("me").id not in [claim.subject for claim in claims(items_in(sent))]


def test_a_silent_member_is_pinged_less_and_less_often():
    bench = Bench("a")
    bench.do("contact", key("a").id, bench.now)
    bench.advance(0.2)
    counts = [len(to(bench.advance(60), "a", MessageType.PING)) for _ in range(5)]
    assert 6 <= counts[0] <= 13
    assert all(4 <= count <= 8 for count in counts[1:])
    bench.advance(600)
    assert 7 <= len(to(bench.advance(600), "a", MessageType.PING)) <= 14


def test_the_pings_to_many_silent_members_are_spaced_out():
    bench = Bench(*(f"m{number}" for number in range(200)))
    bench.advance(30)
    sent = bench.advance(60)
    assert 400 < len(sent) < 800  # ten a second, not two hundred in ten


# Pings of the operator


def test_the_operators_ping_comes_back_as_an_event():
    bench = Bench("a")
    bench.meet("a")
    sequence = bench.node.ping(key("a").id, bench.now)
    bench.now += 0.25
    bench.receive("a", MessageType.ACK, sequence=sequence)
    assert bench.seen(PingAnswered) == [PingAnswered(key("a").id, sequence, 0.25)]


def test_a_ping_to_a_stranger_is_not_sent():
    bench = Bench("a")
    bench.node.ping(key("stranger").id, bench.now)
    assert bench.node.datagrams_to_send() == []


# Suspicion and refutation


def test_a_suspect_is_told_first_what_is_held_against_it():
    bench = Bench("a", "b", "c")
    bench.meet("a", "b", "c")
    bench.receive("a", items=[accuse("b", by="a")])
    sent = bench.receive("b", MessageType.PING, known=1)
    (ack,) = to(sent, "b", MessageType.ACK)
    assert claims(ack.items)[0].subject == key("b").id
    assert claims(ack.items)[0].signer == key("a").id


def test_an_accusation_of_us_is_refuted_to_its_bearer_at_once():
    bench = Bench("a", "b")
    bench.meet("a", "b")
    sent = bench.receive("a", items=[accuse("me", 1, by="b")])
    assert bench.node.incarnation == 2
    assert bench.seen(IncarnationRaised) == [IncarnationRaised(2)]
    (gossip,) = to(sent, "a", MessageType.GOSSIP)
    own = claims(gossip.items)[0]
    assert (own.subject, own.incarnation, own.state) == (key("me").id, 2, ALIVE)
    sent = bench.advance(1.0)
    assert to(sent, "b"), "and broadcast"


def test_two_accusations_of_one_incarnation_are_refuted_once():
    bench = Bench("a", "b")
    bench.meet("a", "b")
    bench.receive("a", items=[accuse("me", by="a"), accuse("me", by="b")])
    assert bench.node.incarnation == 2


def test_whoever_passes_on_what_was_refuted_is_told_of_the_refutation():
    bench = Bench("a", "b", "c")
    bench.meet("a", "b", "c")
    bench.receive("b", items=[alive("b", 2)], incarnation=2)
    bench.advance(5.0)
    sent = bench.receive("c", items=[accuse("b", 1, by="a")])
    (gossip,) = to(sent, "c", MessageType.GOSSIP)
    told = claims(gossip.items)[0]
    assert (told.subject, told.incarnation, told.state) == (key("b").id, 2, ALIVE)
    assert bench.state("b") is ALIVE


def test_whoever_passes_on_what_we_believe_as_well_is_told_nothing():
    bench = Bench("a", "b", "c", config=QUIET)
    bench.meet("a", "b", "c")
    bench.receive("a", items=[accuse("b", by="a")])
    bench.advance(0.01)
    assert bench.receive("c", items=[accuse("b", by="a")]) == []


def test_our_own_word_from_an_earlier_run_is_outbid():
    bench = Bench("a", incarnation=1)
    bench.receive("a", MessageType.PING, items=[alive("a"), alive("me", 7)], known=7)
    assert bench.node.incarnation == 8


def test_our_own_leaving_at_this_incarnation_is_outbid():
    bench = Bench("a", incarnation=3)
    bench.receive("a", MessageType.PING, items=[left("me", 3)], known=3)
    assert bench.node.incarnation == 4


def test_a_member_back_with_an_old_incarnation_is_told_of_its_newer_one():
    bench = Bench("a")
    bench.meet("a", incarnation=5)
    bench.run_with(3, "a")
    sent = bench.receive("a", MessageType.PING, incarnation=1, known=1)
    (ack,) = to(sent, "a", MessageType.ACK)
    assert [(c.subject, c.incarnation) for c in claims(ack.items)] == [(key("a").id, 5)]


def test_nobody_says_of_another_that_it_is_dead():
    bench = Bench("a", "b", "c", "d", "e")
    bench.meet("a", "b", "c", "d", "e")
    bench.run_with(20.0, "a", "c", "d", "e")
    assert bench.state("b") is DEAD
    said = [claim for claim in claims(items_in(bench.sent)) if claim.subject == key("b").id]
    assert {claim.state for claim in said if not claim.by_subject} == {SUSPECT}
    assert {claim.signer for claim in said if not claim.by_subject} == {key("me").id}


def test_a_death_says_who_accused_and_for_how_long_it_was_silent():
    bench = Bench("a", "b", "c", "d", "e")
    bench.meet("a", "b", "c", "d", "e")
    bench.receive("a", items=[accuse("b", by=name, waited=0.25) for name in "acde"])
    wait = bench.deadline(TimerKind.SUSPICION, "b")
    bench.advance(wait)
    suspected, died = (e for e in bench.seen(MemberStateChanged) if e.before is not DEAD)
    assert (suspected.node, suspected.after) == (key("b").id, SUSPECT)
    assert suspected.cause.kind is CauseKind.SUSPECTED
    assert suspected.cause.accusers == (key("a").id,)
    assert suspected.cause.testimony.waited == 0.25
    assert (died.node, died.before, died.after) == (key("b").id, SUSPECT, DEAD)
    assert died.cause.kind is CauseKind.UNREFUTED
    assert set(died.cause.accusers) == {key(name).id for name in "acde"}
    assert died.cause.silent_for == pytest.approx(wait)


def test_a_suspect_that_is_heard_is_not_concluded_dead_on_what_others_say():
    bench = Bench("a", "b", "c", "d", "e", config=QUIET)
    bench.meet("a", "b", "c", "d", "e")
    bench.receive("a", items=[accuse("b", by=name) for name in "acde"])
    wait = bench.deadline(TimerKind.SUSPICION, "b")
    bench.advance(wait / 2)
    bench.receive("b")  # whatever it is that it has to say
    bench.advance(wait / 2 + 0.001)
    assert bench.state("b") is SUSPECT
    assert bench.deadline(TimerKind.SUSPICION, "b") == pytest.approx(wait, abs=0.01)
    bench.advance(wait)
    assert bench.state("b") is DEAD, "it has been silent since"


def test_a_suspect_that_is_heard_but_never_refutes_is_dead_in_the_end_as_it_is_to_all():
    bench = Bench("a", "b", "c", "d", "e", config=QUIET)
    bench.meet("a", "b", "c", "d", "e")
    bench.receive("a", items=[accuse("b", by=name) for name in "acde"])
    wait = bench.deadline(TimerKind.SUSPICION, "b")
    for _ in range(EXTENSIONS_MAX):
        bench.advance(wait / 2)
        bench.receive("b")
        bench.advance(wait / 2)
        assert bench.state("b") is SUSPECT
    bench.advance(wait / 2)
    bench.receive("b")
    bench.advance(wait / 2 + 0.01)
    assert bench.state("b") is DEAD


def test_a_refutation_says_so():
    bench = Bench("a", "b")
    bench.meet("a", "b")
    bench.receive("a", items=[accuse("b", by="a")])
    bench.receive("a", items=[alive("b", 2)])
    change = bench.seen(MemberStateChanged)[-1]
    assert (change.before, change.after, change.incarnation) == (SUSPECT, ALIVE, 2)
    assert change.cause == Cause(CauseKind.REFUTED)


def test_one_accusation_of_whom_nobody_here_has_heard_is_believed_at_once():
    bench = Bench("a", "b")
    bench.meet("a")
    bench.receive("a", items=[alive("b")])
    bench.receive("a", items=[accuse("b", by="a")])
    bench.receive("b", MessageType.PING, known=1)
    assert bench.state("b") is DEAD, "until it has refuted that"
    bench.receive("b", MessageType.PING, items=[alive("b", 2)], incarnation=2)
    assert bench.state("b") is ALIVE


def test_a_member_declared_dead_is_alive_only_once_it_is_heard_again():
    bench = Bench("a", "b", "c")
    bench.meet("a", "b", "c")
    bench.receive("a", items=[accuse("b", by="a"), accuse("b", by="c")])
    bench.advance(4.5)
    assert bench.state("b") is DEAD
    bench.meet("a", "c")
    bench.receive("a", items=[alive("b", 2)])
    assert bench.state("b") is DEAD, "so far it is but hearsay"
    sent = bench.advance(0.2)
    assert to(sent, "b", MessageType.PING), "which is checked without delay"
    bench.receive("b", MessageType.PING, incarnation=2)
    assert bench.state("b") is ALIVE


# Facts


def test_a_fact_heard_of_is_an_event_a_member_and_news_for_others():
    bench = Bench("a", "b")
    bench.meet("a", "b")
    bench.receive("a", items=[alive("f"), Item(FactKind.RECORD, record("f"))])
    (event,) = bench.seen(FactLearned)
    assert (event.fact.key, event.source) == (key("f").id, key("a").id)
    assert MemberJoined(key("f").id) in bench.events
    assert bench.view("f").incarnation == 1, "a record is taken in before the claims beside it"
    assert record("f") in [item.blob for item in items_in(bench.advance(1.0))]


def fetched(bench):
    """Which items a fetch brings, and which of them are told on."""
    items = [Item(FactKind.RECORD, record("f")), alive("f")]
    bench.receive("a", MessageType.FACTS, items=items)
    told = [item for item in items_in(bench.advance(1.0)) if item in items]
    return len(set(told))


def test_what_a_newcomer_fetches_it_does_not_tell_on():
    bench = Bench("a")
    bench.meet("a")
    assert fetched(bench) == 0


def test_what_a_settled_member_fetches_it_tells_on():
    bench = Bench("a")
    bench.meet("a")
    digest = to(bench.advance(0.1), "a", MessageType.DIGEST)[0]
    equal = Summary(0, bytes(8), b"\xff" * 8)
    bench.receive("a", MessageType.SUMMARY, sequence=digest.sequence, summary=equal)
    assert fetched(bench) == 2


def test_a_fact_added_by_others_is_broadcast():
    bench = Bench("a")
    bench.meet("a")
    merge = bench.ledger.merge_untrusted(FactKind.RECORD, record("f"), WALL)
    bench.do("fact_added", merge.fact, bench.now)
    assert bench.state("f") is DEAD
    assert bench.seen(FactLearned) == [], "who adds it knows it"
    assert record("f") in [item.blob for item in items_in(bench.advance(1.0))]


def test_a_revocation_that_begins_here_goes_to_every_live_member_at_once():
    names = [f"m{number}" for number in range(20)]
    bench = Bench(*names)
    bench.meet(*names)
    bench.advance(1.0)
    merge = bench.ledger.merge_untrusted(FactKind.REVOCATION, revocation("m3"), WALL)
    sent = bench.do("fact_added", merge.fact, bench.now, at_once=True)
    told = {target for message, target in sent if revocation("m3") in _blobs(message)}
    assert told == {key(name).id for name in names if name != "m3"}
    later = [message for message, _ in bench.advance(0.1) if revocation("m3") in _blobs(message)]
    assert later, "and it is gossiped, for whom that has missed"


def test_a_revocation_that_came_by_others_waits_for_its_rounds():
    names = [f"m{number}" for number in range(20)]
    bench = Bench(*names)
    bench.meet(*names)
    bench.advance(1.0)
    merge = bench.ledger.merge_untrusted(FactKind.REVOCATION, revocation("m3"), WALL)
    assert not bench.do("fact_added", merge.fact, bench.now)


def _blobs(message):
    return [item.blob for item in message.items]


def test_a_forgotten_member_is_gone_and_may_come_back():
    bench = Bench("a", "b")
    bench.meet("a", "b")
    entries = bench.node.statistics().entries
    bench.ledger.forget(key("b").id)
    bench.do("forget", key("b").id, bench.now)
    assert bench.state("b") is None
    assert bench.node.statistics().entries == entries - 2
    bench.receive("a", items=[Item(FactKind.RECORD, record("b")), alive("b")])
    assert bench.state("b") is DEAD


# Leaving


def test_leaving_tells_several_members_at_once_and_ends():
    names = [f"m{number}" for number in range(20)]
    bench = Bench(*names)
    bench.meet(*names)
    sent = bench.do("leave", bench.now)
    assert len({target for _, target in sent}) == 8
    assert all(LEFT in {claim.state for claim in claims(message.items)} for message, _ in sent)
    assert bench.seen(LeaveAnnounced) == []
    sent = bench.advance(1.0)
    assert {message.type for message, _ in sent} == {MessageType.GOSSIP}
    assert bench.seen(LeaveAnnounced) == [LeaveAnnounced()]
    assert bench.advance(60.0) == [], "it probes no more"


def test_who_is_alone_has_left_at_once():
    bench = Bench("a")
    bench.do("leave", bench.now)
    assert bench.seen(LeaveAnnounced) == [LeaveAnnounced()]


def test_leaving_twice_is_leaving_once():
    bench = Bench("a")
    bench.do("leave", bench.now)
    assert bench.do("leave", bench.now) == []
    assert bench.seen(LeaveAnnounced) == [LeaveAnnounced()]


def test_a_node_that_has_left_refutes_nothing_and_still_answers():
    bench = Bench("a")
    bench.meet("a")
    bench.do("leave", bench.now)
    (answer,) = bench.receive("a", MessageType.PING, items=[accuse("me", by="a")], sequence=5)
    assert (answer[0].type, answer[0].sequence) == (MessageType.ACK, 5)
    assert bench.node.incarnation == 1
    assert bench.do("contact", key("a").id, bench.now) == []


def test_a_member_that_has_left_is_neither_probed_nor_suspected():
    bench = Bench("a", "b")
    bench.meet("a", "b")
    bench.receive("a", items=[left("a")])
    bench.receive("b", items=[accuse("a", by="b")])
    assert bench.state("a") is LEFT
    before = len(bench.sent)
    bench.run_with(60.0, "b")
    assert bench.state("a") is LEFT
    assert to(bench.sent[before:], "a", MessageType.PING) == []


def test_a_member_that_left_is_alive_again_at_a_higher_incarnation_only():
    bench = Bench("a")
    bench.meet("a")
    bench.receive("a", items=[left("a", 1)])
    sent = bench.receive("a", MessageType.PING, items=[alive("a", 1)])
    assert bench.state("a") is LEFT
    assert LEFT in [claim.state for claim in claims(items_in(sent))], "and is told why"
    bench.receive("a", MessageType.PING, items=[alive("a", 2)], incarnation=2)
    assert bench.state("a") is ALIVE


def test_a_member_that_left_is_shown_alive_only_once_it_is_heard_again():
    bench = Bench("a", "b")
    bench.meet("a", "b")
    bench.receive("a", items=[left("a", 1)])
    assert bench.seen(MemberStateChanged)[-1].cause == Cause(CauseKind.LEFT)
    bench.receive("b", items=[alive("a", 2)])
    assert bench.state("a") is DEAD, "so far it is but hearsay"
    assert bench.seen(MemberStateChanged)[-1].cause == Cause(CauseKind.CLAIMED)
    bench.receive("a", MessageType.PING, incarnation=2)
    assert bench.state("a") is ALIVE


def test_a_member_that_left_and_came_back_during_a_probe_is_not_accused_for_it():
    bench = Bench("a", "b")
    bench.meet("a", "b")
    _, target = bench.advance_to(MessageType.PING)
    name = next(name for name in "ab" if key(name).id == target)
    other = "a" if name == "b" else "b"
    bench.receive(other, items=[left(name, 1), alive(name, 2)])
    bench.run_with(10.0, other)
    assert bench.node.statistics().suspicions == 0
    assert bench.state(name) is DEAD, "it is not heard"


# The driver's contract


def test_every_deadline_has_a_reason_and_handling_it_moves_on():
    bench = Bench("a", "b", "c")
    bench.meet("a", "b", "c")
    for _ in range(300):
        timer = bench.node.get_timer()
        assert timer.reason
        bench.now = max(bench.now, timer.at)
        bench.node.handle_timer(bench.now)
        bench._drain()
        assert bench.node.get_timer() != timer


def test_a_timer_handled_early_does_nothing():
    bench = Bench("a")
    timer = bench.node.get_timer()
    assert bench.do("handle_timer", bench.now) == []
    assert bench.node.get_timer() == timer


def test_the_same_inputs_give_the_same_outputs():
    histories = []
    for _ in range(2):
        bench = Bench("a", "b", "c")
        bench.meet("a", "b")
        bench.advance(60)
        histories.append((bench.sent, bench.events))
    assert histories[0] == histories[1]


def test_a_node_alone_is_at_rest():
    node = Node(
        key("me"),
        MESH,
        Ledger(MESH),
        config=GossipConfig(),
        rng=random.Random(1),
        now=0.0,
        incarnation=1,
    )
    for _ in range(100):
        node.handle_timer(node.get_timer().at)
    assert node.datagrams_to_send() == []
    assert node.next_event() is None
    assert node.members() == []


@pytest.mark.parametrize("count", [40, 300])
def test_no_datagram_is_too_long_however_much_there_is_to_tell(count):
    names = [f"m{number}" for number in range(count)]
    bench = Bench(*names)
    bench.meet(*names[:5])
    for name in names[5:]:
        bench.receive("m0", items=[alive(name)])
    bench.receive("m1", MessageType.DIGEST, buckets=bytes(512), sequence=3)
    summaries = [message.summary for message, _ in bench.sent if message.summary is not None]
    ids = [entry.id for summary in summaries for entry in summary.entries]
    assert len(ids) == len(set(ids)) == 2 * count + 2
    assert summaries[0].first == bytes(8)
    assert summaries[-1].last == b"\xff" * 8
    bench.advance(2.0)
