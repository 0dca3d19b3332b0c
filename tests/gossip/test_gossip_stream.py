"""Probes over TCP: what goes out, what is answered, and what an answer means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.harness import (
    ALIVE,
    DEAD,
    LEFT,
    SUSPECT,
    Bench,
    accuse,
    alive,
    claims,
    key,
    record,
    revocation,
)
from meshd.gossip.config import GossipConfig
from meshd.gossip.events import BadPacketReceived, FactLearned, PathFault
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import (
    DATAGRAM_BYTES_MAX,
    Item,
    Message,
    MessageType,
    decode_untrusted,
    encode,
)
from meshd.trust.fact import FactKind

NAMES = "abcde"
CONFIG = GossipConfig(probe_interval=1e5)


def met(config=CONFIG):
    bench = Bench(*NAMES, config=config)
    bench.meet(*NAMES)
    bench.events.clear()
    return bench


def late(bench, name):
    """Let time pass until a probe is late.  Return what goes over TCP."""
    bench.advance(bench.deadline(TimerKind.PROBE_TIMEOUT, name))
    streams, bench.streams = bench.streams, []
    return streams


def begin(bench, name):
    bench.advance(0.01)
    bench.node._prober._begin(key(name).id, bench.now)
    bench._drain()


def judged(bench, name):
    bench.advance(bench.deadline(TimerKind.PROBE_END, name))


# Ours


def test_what_goes_over_tcp_is_a_ping_with_all_that_goes_along():
    bench = met()
    bench.receive("b", items=[accuse("a", by="b")])
    if bench.deadline(TimerKind.PROBE_TIMEOUT, "a") is None:
        begin(bench, "a")
    (stream,) = late(bench, "a")
    assert (stream.target, stream.timeout) == (key("a").id, CONFIG.stream_timeout)
    ping = decode_untrusted(stream.datagram)
    assert ping.type is MessageType.PING
    assert key("a").id in [claim.subject for claim in claims(ping.items)]


def test_each_stream_has_a_sequence_of_its_own():
    bench = met()
    begin(bench, "a")
    (stream,) = late(bench, "a")
    sequence = decode_untrusted(stream.datagram).sequence
    assert sequence not in {message.sequence for message, _ in bench.sent}


def answer(bench, name, stream):
    sequence = decode_untrusted(stream.datagram).sequence
    bench.receive(name, MessageType.ACK, sequence=sequence)


def test_one_that_answers_over_tcp_only_is_not_accused_and_after_two_probes_a_path_fault():
    bench = met()
    begin(bench, "a")
    (stream,) = late(bench, "a")
    answer(bench, "a", stream)
    judged(bench, "a")
    assert bench.seen(PathFault) == []
    (stream,) = late(bench, "a")
    answer(bench, "a", stream)
    judged(bench, "a")
    assert bench.seen(PathFault) == [PathFault(key("a").id, None)]
    assert bench.state("a") is ALIVE
    statistics = bench.node.statistics()
    assert (statistics.probes_acked_streams, statistics.probes_acked) == (2, 0)
    assert (statistics.suspicions, statistics.streams_opened) == (0, 2)


def test_an_answer_over_tcp_does_not_end_the_probe_since_udp_may_yet_be_answered():
    bench = met()
    begin(bench, "a")
    ping = bench.sent[-1][0]
    (stream,) = late(bench, "a")
    answer(bench, "a", stream)
    assert bench.deadline(TimerKind.PROBE_END, "a") is not None
    bench.receive("a", MessageType.ACK, sequence=ping.sequence)
    assert bench.deadline(TimerKind.PROBE_END, "a") is None
    assert bench.node.statistics().probes_acked == 1


def test_an_answer_over_tcp_measures_no_round_trip():
    bench = met()
    begin(bench, "a")
    (stream,) = late(bench, "a")
    bench.now += 0.02
    answer(bench, "a", stream)
    assert bench.view("a").rtt is None


def test_an_answer_over_tcp_that_comes_after_the_judgement_counts_as_heard():
    bench = met()
    begin(bench, "a")
    (stream,) = late(bench, "a")
    judged(bench, "a")
    assert bench.state("a") is SUSPECT
    bench.advance(0.1)
    answer(bench, "a", stream)
    before = bench.member("a").suspicion.started_at
    bench.advance(bench.deadline(TimerKind.SUSPICION, "a"))
    assert bench.state("a") is SUSPECT
    assert bench.member("a").suspicion.started_at > before, "it is begun anew"


def test_an_answer_by_another_than_who_was_asked_is_none():
    bench = met()
    begin(bench, "a")
    (stream,) = late(bench, "a")
    answer(bench, "b", stream)
    judged(bench, "a")
    assert bench.state("a") is SUSPECT


def test_without_a_stream_timeout_there_are_no_streams():
    bench = met(GossipConfig(probe_interval=1e5, stream_timeout=0))
    begin(bench, "a")
    assert late(bench, "a") == []
    judged(bench, "a")
    assert bench.state("a") is SUSPECT
    assert bench.node.statistics().streams_opened == 0


def test_what_was_taken_to_be_opened_is_not_given_again():
    bench = met()
    begin(bench, "a")
    late(bench, "a")
    assert bench.node.streams_to_open() == []


# Theirs


def test_a_ping_over_tcp_is_answered_over_tcp():
    bench = met()
    before = len(bench.sent)
    ack = bench.ask_over_stream("a", sequence=77)
    assert (ack.type, ack.sequence, ack.target) == (MessageType.ACK, 77, None)
    assert bench.sent[before:] == [], "and not otherwise"
    assert bench.events == []


def test_the_answer_bears_what_whoever_asks_should_know():
    bench = Bench("a", "b", config=CONFIG)
    bench.meet("b")
    bench.receive("b", items=[Item(FactKind.RECORD, record("f"))])
    ack = bench.ask_over_stream("a", sequence=1)
    assert claims(ack.items)[0].subject == key("me").id, "who we are"
    assert record("f") in [item.blob for item in ack.items], "and what is new"


def test_a_suspect_that_asks_over_tcp_is_told_so():
    bench = met()
    bench.receive("b", items=[accuse("a", by="b")])
    ack = bench.ask_over_stream("a", sequence=1)
    assert key("b").id in [claim.signer for claim in claims(ack.items)]


def test_an_accusation_of_us_over_tcp_is_refuted_in_the_answer():
    bench = met()
    ack = bench.ask_over_stream("a", sequence=1, items=[accuse("me", by="b")])
    (own,) = [claim for claim in claims(ack.items) if claim.subject == key("me").id]
    assert (own.incarnation, own.state) == (2, ALIVE)


def test_what_comes_over_tcp_is_taken_in_like_any_other_message():
    bench = met()
    items = [Item(FactKind.RECORD, record("f")), alive("f"), alive("b", 3)]
    bench.ask_over_stream("a", items=items)
    assert len(bench.seen(FactLearned)) == 1
    assert bench.view("f").incarnation == 1
    assert bench.view("b").incarnation == 3


def test_a_member_that_asks_over_tcp_is_heard():
    bench = Bench("a", config=CONFIG)
    assert bench.state("a") is DEAD
    bench.ask_over_stream("a", items=[alive("a")])
    assert bench.state("a") is ALIVE


@pytest.mark.parametrize("type_", [type_ for type_ in MessageType if type_ is not MessageType.PING])
def test_anything_but_a_ping_is_not_answered_and_counted(type_):
    bench = met()
    fields = {
        MessageType.PING_REQ: {"target": key("b").id},
        MessageType.NACK: {"target": key("b").id},
        MessageType.DIGEST: {"buckets": bytes(512)},
        MessageType.WANT: {"ids": (bytes(8),)},
    }
    frame = bytes((1, type_)) + b"\x82\x01\x07\x02\x01"
    if type_ is not MessageType.SUMMARY:
        frame = encode(Message(type_, 7, 1, **fields.get(type_, {})))
    assert bench.ask_bytes_over_stream("a", frame) is None
    (event,) = bench.seen(BadPacketReceived)
    assert event.source == key("a").id
    assert bench.node.statistics().bad_packets == 1
    if type_ is not MessageType.SUMMARY:
        assert event.reason == "no ping on a stream"


@given(st.binary(max_size=DATAGRAM_BYTES_MAX + 100))
def test_any_bytes_over_tcp_are_answered_or_counted(frame):
    bench = Bench("a", config=CONFIG)
    bench.events.clear()
    ack = bench.ask_bytes_over_stream("a", frame)
    assert (ack is None) == (bench.node.statistics().bad_packets == 1)
    if ack is None:
        assert [type(event) for event in bench.events] == [BadPacketReceived]


def test_a_stranger_gets_no_answer_over_tcp():
    bench = met()
    assert bench.ask_over_stream("stranger", items=[alive("b", 9)]) is None
    assert bench.seen(BadPacketReceived) == [BadPacketReceived(key("stranger").id, "not a member")]
    assert bench.view("b").incarnation == 1


def test_a_member_that_revokes_itself_over_tcp_gets_no_answer():
    bench = met()
    items = [Item(FactKind.REVOCATION, revocation("a"))]
    assert bench.ask_over_stream("a", items=items) is None
    assert bench.state("a") is None


def test_a_forged_claim_over_tcp_changes_nothing_but_the_ping_is_answered():
    bench = met()
    blob = bytearray(alive("b", 2).blob)
    blob[3] ^= 1
    assert bench.ask_over_stream("a", items=[Item(0, bytes(blob))]) is not None
    assert bench.seen(BadPacketReceived) == [BadPacketReceived(key("a").id, "bad signature")]
    assert bench.view("b").incarnation == 1


def test_who_has_left_still_answers_over_tcp_and_says_so():
    bench = met()
    bench.do("leave", bench.now)
    ack = bench.ask_over_stream("a", sequence=9, items=[accuse("me", by="a"), alive("b", 5)])
    assert (ack.type, ack.sequence) == (MessageType.ACK, 9)
    own = claims(ack.items)[0]
    assert (own.subject, own.state) == (key("me").id, LEFT)
    assert bench.node.incarnation == 1, "but takes nothing in"
    assert bench.view("b").incarnation == 1


def test_an_answer_over_tcp_fits_a_frame_however_much_there_is_to_tell():
    names = [f"m{number}" for number in range(40)]
    bench = Bench(*names, config=CONFIG)
    bench.meet(*names)
    for number in range(60):
        bench.receive("m0", items=[Item(FactKind.RECORD, record(f"f{number}"))])
    frame = encode(Message(MessageType.PING, 1, 1, None))
    answered = bench.node.answer_stream(frame, key("m1").id, bench.now, 0.0)
    assert DATAGRAM_BYTES_MAX / 2 < len(answered) <= DATAGRAM_BYTES_MAX
