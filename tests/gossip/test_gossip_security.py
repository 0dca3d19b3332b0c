"""What a member, or whoever speaks in its name, cannot do to the others."""

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.harness import (
    ALIVE,
    DEAD,
    LEFT,
    MESH,
    SUSPECT,
    Bench,
    Mesh,
    accuse,
    alive,
    items_in,
    key,
    left,
    record,
    revocation,
    to,
)
from meshd.codec import pack
from meshd.errors import BadPacket
from meshd.gossip.claim import INCARNATION_MAX
from meshd.gossip.config import GossipConfig
from meshd.gossip.events import (
    BadPacketReceived,
    EquivocationSeen,
    FactLearned,
    Heard,
    IncarnationRaised,
    MemberJoined,
    MemberRemoved,
    MemberStateChanged,
)
from meshd.gossip.observers import WATCHED_MAX
from meshd.gossip.probe import PROBES_MAX
from meshd.gossip.sync import TRIES_MAX
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import (
    CLAIM_ITEM,
    ITEMS_MAX,
    SUMMARY_ENTRIES_MAX,
    VERSION,
    EntrySummary,
    Item,
    Message,
    MessageType,
    Summary,
    decode_untrusted,
    encode,
)
from meshd.keys import MeshKey
from meshd.trust.fact import FactKind


def others(bench):
    """Everything that an attack must leave as it was."""
    return bench.node.members(), bench.node.incarnation


def forged(item, position=3):
    blob = bytearray(item.blob)
    blob[position] ^= 1
    return Item(item.kind, bytes(blob))


@pytest.fixture
def bench():
    bench = Bench("a", "b", "c", "d", "e")
    bench.meet("a", "b", "c", "d", "e")
    bench.advance(0.3)
    bench.events.clear()
    return bench


# Forged, stale, replayed


@pytest.mark.parametrize(
    "claim",
    [alive("b", 2), left("b", 1), accuse("b", by="c"), accuse("me", by="c"), alive("me", 9)],
    ids=["alive", "left", "accusation", "accusation of us", "our own word"],
)
def test_a_forged_claim_changes_nothing(bench, claim):
    before = others(bench)
    bench.receive("a", items=[forged(claim)])
    assert others(bench) == before
    assert bench.events == [BadPacketReceived(key("a").id, "bad signature")]


def test_a_claim_from_another_mesh_changes_nothing(bench):
    before = others(bench)
    foreign = MeshKey(b"other".ljust(32)).id
    assert foreign != MESH
    blob = bytearray(alive("b", 2).blob)
    body = bytes(blob[64:])
    signature = key("b").sign(b"meshd.claim.1\0" + foreign + body)
    bench.receive("a", items=[Item(CLAIM_ITEM, signature + body)])
    assert others(bench) == before


def test_a_stale_accusation_changes_nothing(bench):
    bench.receive("b", items=[alive("b", 5)], incarnation=5)
    before = others(bench)
    bench.events.clear()
    bench.receive("a", items=[accuse("b", 4, by="c"), accuse("b", 1, by="d")])
    assert others(bench) == before
    assert bench.events == []


def test_a_stale_alive_resurrects_nobody(bench):
    bench.receive("b", items=[left("b", 3)], incarnation=3)
    bench.events.clear()
    for incarnation in (1, 2, 3):
        bench.receive("a", items=[alive("b", incarnation)])
    assert bench.state("b") is LEFT
    assert bench.events == []


def test_a_replayed_claim_changes_nothing_and_is_not_even_verified(bench):
    bench.receive("a", items=[accuse("b", by="a")])
    before, verified = others(bench), bench.node.statistics().claims_verified
    deadline = bench.node.get_timer()
    for _ in range(5):
        bench.receive("c", items=[accuse("b", by="a"), alive("b")])
    assert others(bench) == before
    assert bench.node.statistics().claims_verified == verified
    assert bench.node.get_timer() == deadline


def test_an_ack_that_answers_no_ping_of_ours_changes_nothing(bench):
    (request,) = to(bench.do("contact", key("b").id, bench.now), "b", MessageType.PING)
    bench.receive("c", MessageType.ACK, sequence=request.sequence)
    assert bench.view("c").rtt is None
    assert bench.view("b").rtt is None
    bench.now += 0.02
    bench.receive("b", MessageType.ACK, sequence=request.sequence)
    assert bench.view("b").rtt == pytest.approx(0.02)
    bench.now += 0.5
    bench.receive("b", MessageType.ACK, sequence=request.sequence)
    assert bench.view("b").rtt == pytest.approx(0.02), "an ack counts once"


# What third parties say


def test_what_a_third_party_says_kills_nobody(bench):
    bench.receive("a", items=[accuse("b", by="a")])
    assert bench.state("b") is SUSPECT
    bench.run_with(10.0, *"abcde")
    assert bench.state("b") is SUSPECT, "it does not refute, but it does answer us"
    bench.receive("b", items=[alive("b", 2)], incarnation=2)
    assert bench.state("b") is ALIVE


def test_nobody_is_dead_by_another_ones_word(bench):
    """Rule 5 of claims: that word does not exist, by whomever it is signed."""
    before = others(bench)
    bench.events.clear()
    fields = {1: bytes(key("b").id), 2: 1, 3: int(DEAD), 4: bytes(key("a").id)}
    by_itself = {1: bytes(key("b").id), 2: 1, 3: int(DEAD)}
    for body, signer in ((pack(fields), "a"), (pack(by_itself), "b")):
        signature = key(signer).sign(b"meshd.claim.1\0" + MESH + body)
        bench.receive("a", items=[Item(CLAIM_ITEM, signature + body)])
    assert others(bench) == before
    assert bench.events == [BadPacketReceived(key("a").id, "claim of unknown state")] * 2


@pytest.mark.parametrize(
    ("testimony", "reason"),
    [
        ({5: 65_536}, "claim field 5 malformed"),
        ({5: -1}, "claim field 5 malformed"),
        ({5: b"now"}, "claim field 5 malformed"),
        ({6: b"abcd"}, "unknown critical field"),
        ({5: 300, 6: b"abcdef"}, "testimony of bad length"),
        ({5: 300, 6: bytes(20)}, "claim field 6 malformed"),
        ({5: 300, 6: [b"abcd"]}, "claim field 6 malformed"),
        ({5: 300, 6: b"abcd", 7: b"more"}, "unknown critical field"),
    ],
)
def test_a_malformed_testimony_is_a_bad_packet_and_no_accusation(bench, testimony, reason):
    before = others(bench)
    fields = {1: bytes(key("b").id), 2: 1, 3: int(SUSPECT), 4: bytes(key("a").id)}
    body = pack(fields | testimony)
    signature = key("a").sign(b"meshd.claim.1\0" + MESH + body)
    bench.receive("a", items=[Item(CLAIM_ITEM, signature + body)])
    assert others(bench) == before
    (event,) = bench.events
    assert isinstance(event, BadPacketReceived)
    assert reason in event.reason


def test_what_was_witnessed_is_for_people_and_decides_nothing(bench):
    bench.receive("a", items=[accuse("b", by="a", waited=0.0)])
    refused = bench.deadline(TimerKind.SUSPICION, "b")
    bench.receive("a", items=[accuse("c", by="a", waited=65.0, asked="bde")])
    assert bench.deadline(TimerKind.SUSPICION, "c") == pytest.approx(refused)


def test_nobody_leaves_by_another_ones_word(bench):
    before = others(bench)
    blob = left("b").blob
    body = blob[64:]
    for signer in ("a", "me"):
        signature = key(signer).sign(b"meshd.claim.1\0" + MESH + body)
        bench.receive("a", items=[Item(CLAIM_ITEM, signature + body)])
    assert others(bench) == before


def test_a_relayed_suspicion_is_not_an_independent_confirmation(bench):
    bench.receive("a", items=[accuse("b", by="a")])
    for relay in ("c", "d", "e", "a"):
        bench.receive(relay, items=[accuse("b", by="a"), accuse("b", by="a", waited=9)])
    assert bench.view("b").accusers == (key("a").id,)
    slow = bench.deadline(TimerKind.SUSPICION, "b")
    bench.receive("c", items=[accuse("b", by="c"), accuse("b", by="d")])
    assert bench.deadline(TimerKind.SUSPICION, "b") < slow / 1.5, "distinct accusers shorten it"
    assert set(bench.view("b").accusers) == {key(name).id for name in ("a", "c", "d")}


def test_one_accuser_alone_cannot_hurry_a_death():
    bench = Bench("a", "b", "c", "d", "e")
    bench.meet("a", "b", "c", "d", "e")
    for waited in (0.0, 0.3, 60.0):
        bench.receive("a", items=[accuse("b", by="a", waited=waited)])
    terms = bench.member("b").suspicion
    left_to_go = bench.deadline(TimerKind.SUSPICION, "b")
    config = GossipConfig()
    refutations = config.suspicion_mult * config.suspicion_max_timeout_mult
    assert left_to_go == pytest.approx(terms.timeout_max)
    assert left_to_go == pytest.approx(refutations * config.refutation_interval)


def test_nobodys_word_but_its_own_revives_a_member(bench):
    bench.receive("a", items=[accuse("b", by=name) for name in ("a", "c", "d")])
    bench.advance(4.1)
    assert bench.state("b") is DEAD
    bench.receive("a", items=[alive("b", 1)])
    bench.receive("b", incarnation=7)  # what a header says proves nothing
    assert bench.state("b") is DEAD
    bench.receive("b", items=[alive("b", 2)], incarnation=2)
    assert bench.state("b") is ALIVE


def test_another_encoding_of_the_same_word_refutes_nothing(bench):
    bench.receive("a", items=[accuse("b", by="a")])
    body = b"\x83\x03\x00\x02\x01\x01\xc4\x20" + key("b").id  # the same fields in another order
    again = Item(CLAIM_ITEM, key("b").sign(b"meshd.claim.1\0" + MESH + body) + body)
    bench.receive("b", items=[again])
    assert bench.state("b") is SUSPECT


# Incarnations


@pytest.mark.parametrize("incarnation", [2, 1000, INCARNATION_MAX])
def test_an_accusation_at_an_incarnation_never_claimed_does_not_matter(bench, incarnation):
    before = others(bench)
    bench.receive("a", items=[accuse("b", incarnation, by="a")])
    bench.receive("a", items=[accuse("b", incarnation, by="c")])
    assert others(bench) == before
    bench.receive("b", items=[alive("b", incarnation)], incarnation=incarnation)
    assert bench.state("b") is ALIVE, "nor does it lie in wait for the day it is claimed"


@pytest.mark.parametrize("incarnation", [2, 1000, INCARNATION_MAX])
def test_an_accusation_of_us_at_an_incarnation_we_never_had_does_not_raise_ours(bench, incarnation):
    bench.receive("a", items=[accuse("me", incarnation, by="a")])
    assert bench.node.incarnation == 1
    assert bench.seen(IncarnationRaised) == []


def test_a_member_that_claims_a_huge_incarnation_harms_only_itself(bench):
    bench.receive("b", items=[alive("b", INCARNATION_MAX)], incarnation=INCARNATION_MAX)
    assert bench.state("b") is ALIVE
    assert [bench.state(name) for name in ("a", "c", "d", "e")] == [ALIVE] * 4
    # It cannot go higher, so it cannot refute.
    bench.receive("a", items=[accuse("b", INCARNATION_MAX, by=name) for name in ("a", "c", "d")])
    bench.advance(4.1)
    assert bench.state("b") is DEAD


def test_a_node_at_the_highest_incarnation_does_not_overflow():
    bench = Bench("a", incarnation=INCARNATION_MAX)
    bench.meet("a")
    bench.receive("a", items=[accuse("me", INCARNATION_MAX, by="a")])
    assert bench.node.incarnation == INCARNATION_MAX


def test_the_incarnations_in_a_header_prove_nothing(bench):
    bench.receive("b", incarnation=2**64 - 1, known=2**64 - 1)
    assert bench.view("b").incarnation == 1
    assert bench.node.incarnation == 1
    bench.receive("b", MessageType.PING, sequence=1)


# Strangers


def test_a_stranger_is_not_listened_to(bench):
    before = others(bench)
    bench.receive("stranger", MessageType.PING, items=[alive("b", 9)])
    assert others(bench) == before
    assert bench.events == [BadPacketReceived(key("stranger").id, "not a member")]


def test_claims_about_and_by_strangers_are_dropped_unverified(bench):
    before, statistics = others(bench), bench.node.statistics()
    claims = [alive(f"stranger{number}") for number in range(10)]
    claims += [accuse("b", by=f"stranger{number}") for number in range(10)]
    for at in range(0, len(claims), 5):
        bench.receive("a", items=claims[at : at + 5])
    assert others(bench) == before
    after = bench.node.statistics()
    assert after.claims_dropped == statistics.claims_dropped + 20
    assert after.claims_verified == statistics.claims_verified
    assert after.entries == statistics.entries


def test_a_revoked_member_is_out_with_all_it_has_said(bench):
    bench.receive("a", items=[accuse("b", by="a")])
    assert bench.state("b") is SUSPECT
    bench.receive("c", items=[Item(FactKind.REVOCATION, revocation("a"))])
    assert bench.state("a") is None
    assert bench.state("b") is ALIVE
    assert bench.seen(MemberRemoved) == [MemberRemoved(key("a").id)]
    bench.receive("a", MessageType.PING, items=[accuse("b", by="a")])
    bench.receive("c", items=[accuse("b", by="a"), alive("a", 9), Item(1, record("a", 9))])
    assert bench.state("a") is None
    assert bench.state("b") is ALIVE


def test_what_the_revoked_have_confirmed_hurries_no_death(bench):
    bench.receive("a", items=[accuse("b", by="a")])
    alone = bench.deadline(TimerKind.SUSPICION, "b")
    bench.receive("a", items=[accuse("b", by=name) for name in "cde"])
    assert bench.deadline(TimerKind.SUSPICION, "b") < alone / 2
    for name in "cde":
        bench.receive("a", items=[Item(FactKind.REVOCATION, revocation(name))])
    assert bench.view("b").accusers == (key("a").id,)
    assert bench.deadline(TimerKind.SUSPICION, "b") == pytest.approx(alone)


def test_a_revocation_is_judged_before_what_comes_along_with_it(bench):
    items = [alive("f"), Item(FactKind.RECORD, record("f"))]
    bench.receive("c", items=[*items, Item(FactKind.REVOCATION, revocation("f"))])
    assert bench.state("f") is None
    assert bench.seen(MemberJoined) == []
    assert next(e.fact.kind for e in bench.seen(FactLearned)) is FactKind.REVOCATION


def test_a_datagram_that_revokes_its_own_sender_is_its_last(bench):
    sent = bench.receive(
        "a", MessageType.PING, items=[Item(FactKind.REVOCATION, revocation("a"))], sequence=5
    )
    assert to(sent, "a") == []


# Facts


def test_a_forged_fact_changes_nothing(bench):
    bench.receive("a", items=[forged(Item(FactKind.RECORD, record("f")))])
    assert bench.state("f") is None
    assert bench.seen(FactLearned) == []
    assert [type(event) for event in bench.events] == [BadPacketReceived]


def test_a_fact_of_a_kind_not_known_here_is_nobodys_fault(bench):
    bench.receive("a", items=[Item(99, b"from a later version")])
    assert bench.events == []


def test_two_records_under_one_sequence_raise_an_alarm(bench):
    bench.receive("a", items=[Item(FactKind.RECORD, record("b", version="another"))])
    (event,) = bench.seen(EquivocationSeen)
    assert event.fact.key == key("b").id


def test_one_bad_item_does_not_spoil_the_others(bench):
    bench.receive("a", items=[forged(alive("c", 2)), alive("b", 2), Item(CLAIM_ITEM, b"")])
    assert bench.view("b").incarnation == 2
    assert [event.reason for event in bench.seen(BadPacketReceived)] == [
        "bad signature",
        "statement too short",
    ]


# Accusing everybody


def test_who_accuses_everybody_at_once_makes_us_look_at_a_bounded_number():
    names = [f"m{number}" for number in range(80)]
    bench = Bench("a", *names)
    bench.meet("a", *names)
    bench.advance(0.2)
    before = len(bench.sent)
    for name in names:
        bench.receive("a", items=[accuse(name, by="a")])
    assert sum(bench.state(name) is SUSPECT for name in names) == 80
    prober = bench.node._prober
    assert len(prober._probes) <= PROBES_MAX
    assert len(prober._watched) <= WATCHED_MAX
    pinged = [m for m, _ in bench.sent[before:] if m.type is MessageType.PING]
    assert len(pinged) <= PROBES_MAX
    before = len(bench.sent)
    bench.advance(1.0)
    assert len(prober._watched) <= WATCHED_MAX
    pings = [m for m, _ in bench.sent[before:] if m.type is MessageType.PING]
    watching = WATCHED_MAX * 1.0 / GossipConfig().watch_interval
    assert len(pings) <= watching + 3 * PROBES_MAX


def test_who_accuses_everybody_again_and_again_kills_nobody_who_answers():
    names = [f"m{number}" for number in range(1, 24)]
    mesh = Mesh("liar", *names)
    mesh.run(2.0)
    for _ in range(6):
        for target in names:
            for subject in names:
                if subject != target:
                    incarnation = mesh.nodes[subject].incarnation
                    mesh.give("liar", target, accuse(subject, incarnation, by="liar"))
        mesh.run(1.0)
    mesh.run(2.0)
    dead = [e for e in mesh.events if isinstance(e, MemberStateChanged) and e.after is DEAD]
    assert dead == []
    for name in names:
        states = {view.node: view.state for view in mesh.nodes[name].members()}
        assert set(states.values()) == {ALIVE}
        assert mesh.nodes[name].incarnation > 6


def test_one_datagram_of_what_was_refuted_is_answered_by_one(bench):
    for name in "bcde":
        bench.receive(name, items=[alive(name, 9)], incarnation=9)
    bench.run_with(5.0, *"abcde")
    stale = [accuse("b", incarnation, by="a") for incarnation in range(1, 7)]
    sent = bench.receive("a", items=stale)
    assert [(message.type, target) for message, target in sent] == [
        (MessageType.GOSSIP, key("a").id)
    ]


def test_who_comes_and_goes_all_the_time_takes_no_turns_from_the_others(bench):
    for incarnation in range(1, 120):
        items = [left("b", incarnation), alive("b", incarnation + 1)]
        bench.receive("b", items=items, incarnation=incarnation + 1)
        bench.run_with(1.0, *"abcde")
    assert len(bench.node._prober._order._round) <= 5


# Helpers


def test_only_a_member_that_was_asked_speaks_for_a_silent_member(bench):
    probe = next(
        message for message, _ in bench.advance(1.5) if message.type is MessageType.PING_REQ
    )
    assert probe.target is not None
    strangers = [
        name
        for name in "abcde"
        if key(name).id
        not in {target for message, target in bench.sent if message.type is MessageType.PING_REQ}
        and key(name).id != probe.target
    ]
    for name in strangers:
        bench.receive(name, MessageType.ACK, sequence=probe.sequence, target=probe.target)
    bench.advance(0.6)
    suspected = [event.node for event in bench.seen(MemberStateChanged)]
    assert suspected == [probe.target]


def test_nobody_is_made_to_ping_a_node_that_it_has_not_heard():
    bench = Bench("a", "b")
    bench.meet("a")
    for target in ("b", "a", "stranger", "me"):
        sent = bench.receive("a", MessageType.PING_REQ, sequence=9, target=key(target).id)
        assert [message.type for message, _ in sent] == [MessageType.NACK]
        assert sent[0][1] == key("a").id


def test_pings_for_others_are_bounded(bench):
    pings = 0
    for sequence in range(400):
        sent = bench.receive("a", MessageType.PING_REQ, sequence=sequence, target=key("b").id)
        pings += len(to(sent, "b", MessageType.PING))
    assert pings == 256
    bench.advance(0.5)  # all are answered, if only with a NACK
    nacks = [m for m, t in bench.sent if m.type is MessageType.NACK and t == key("a").id]
    assert {message.sequence for message in nacks} == set(range(400))


# Anti-entropy


def test_a_summary_nobody_asked_for_is_not_looked_at(bench):
    entries = tuple(
        EntrySummary(number.to_bytes(8, "big"), 1, bytes(8))
        for number in range(SUMMARY_ENTRIES_MAX)
    )
    summary = Summary(2**64 - 1, bytes(8), b"\xff" * 8, entries)
    assert bench.receive("a", MessageType.SUMMARY, sequence=1, summary=summary) == []


def test_what_is_asked_for_in_vain_is_given_up():
    bench = Bench("a")
    bench.meet("a")
    (digest,) = to(bench.advance(0.1), "a", MessageType.DIGEST)
    entries = tuple(
        EntrySummary(number.to_bytes(8, "big"), 1, bytes(8))
        for number in range(SUMMARY_ENTRIES_MAX)
    )
    summary = Summary(2**64 - 1, bytes(8), b"\xff" * 8, entries)
    bench.receive("a", MessageType.SUMMARY, sequence=digest.sequence, summary=summary)
    bench.run_with(20, "a")
    assert len(to(bench.sent, "a", MessageType.WANT)) == 1 + TRIES_MAX
    sent = bench.sent[bench.sent.index((digest, key("a").id)) + 1 :]
    assert to(sent, "a", MessageType.DIGEST)[0].sequence != digest.sequence, "it begins anew"


def test_what_is_asked_for_at_once_is_bounded(bench):
    ids = tuple(entry.summary.id for entry in bench.node._index) * 5
    sent = bench.receive("a", MessageType.WANT, sequence=1, ids=ids[:64])
    assert sum(len(message.items) for message, _ in sent) <= 3 * 32
    assert all(len(message.items) <= ITEMS_MAX for message, _ in sent)


# Anything at all


@settings(max_examples=200)
@given(st.binary(max_size=1500))
def test_any_bytes_that_are_no_message_give_an_event(datagram):
    bench = Bench("a")
    before = others(bench)
    with contextlib.suppress(BadPacket):
        decode_untrusted(datagram)
        return
    bench.receive_bytes("a", datagram)
    assert [type(event) for event in bench.events[1:]] == [BadPacketReceived]
    assert others(bench) == before


@settings(max_examples=200)
@given(
    st.sampled_from(MessageType),
    st.dictionaries(
        st.integers(1, 12),
        st.integers(0, 2**64 - 1)
        | st.binary(max_size=600)
        | st.lists(st.tuples(st.integers(0, 4), st.binary(max_size=200)), max_size=5),
    ),
)
def test_any_well_formed_map_gives_at_worst_events(type_, fields):
    bench = Bench("a")
    bench.receive_bytes("a", bytes((VERSION, type_)) + pack({1: 1, 2: 1} | fields))
    assert {type(event) for event in bench.events} <= {MemberJoined, BadPacketReceived, Heard}


def test_mutated_datagrams_never_raise():
    """A seeded fuzz loop: honest datagrams of every type, with some bytes changed."""
    rng = random.Random(20)
    bench = Bench("a", "b", "c")
    bench.meet("a", "b", "c")
    honest = [
        encode(Message(MessageType.PING, 1, 1, 1, (alive("a", 3), accuse("b", by="a")))),
        encode(Message(MessageType.ACK, 1, 1, 1, (left("c"),))),
        encode(Message(MessageType.ACK, 1, 1, 1, target=key("b").id)),
        encode(Message(MessageType.NACK, 1, 1, 1, target=key("b").id)),
        encode(Message(MessageType.PING_REQ, 1, 1, 1, target=key("b").id)),
        encode(Message(MessageType.GOSSIP, 1, 1, 1, (Item(1, record("d")), alive("d")))),
        encode(Message(MessageType.DIGEST, 1, 1, 1, buckets=bytes(512))),
        encode(
            Message(
                MessageType.SUMMARY,
                1,
                1,
                1,
                summary=Summary(
                    2**64 - 1, bytes(8), b"\xff" * 8, (EntrySummary(b"a" * 8, 1, b"b" * 8),)
                ),
            )
        ),
        encode(Message(MessageType.WANT, 1, 1, 1, ids=(b"a" * 8, b"b" * 8))),
        encode(Message(MessageType.FACTS, 1, 1, 1, (Item(3, b"not a use"),))),
    ]
    for step in range(5000):
        datagram = bytearray(rng.choice(honest))
        for _ in range(rng.randint(0, 4)):
            datagram[rng.randrange(len(datagram))] = rng.randrange(256)
        if rng.random() < 0.1:
            datagram = datagram[: rng.randrange(len(datagram))]
        bench.receive_bytes(rng.choice("abc"), bytes(datagram))
        if step % 50 == 0:
            bench.advance(rng.random())
    assert bench.node.statistics().bad_packets > 500
    assert bench.seen(BadPacketReceived)
    assert items_in(bench.sent), "and it still has something to say"
