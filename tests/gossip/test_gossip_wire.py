"""Datagrams: round trip, junk, and bytes that do not change."""

import contextlib

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshd.errors import BadPacket
from meshd.gossip.wire import (
    BUCKETS_BYTES,
    DATAGRAM_BYTES_MAX,
    HEADER_BYTES_MAX,
    ITEM_BYTES_MAX,
    ITEM_OVERHEAD,
    ITEMS_MAX,
    SEQUENCE_MAX,
    SUMMARY_ENTRIES_MAX,
    VERSION,
    WANT_IDS_MAX,
    EntrySummary,
    Item,
    Message,
    MessageType,
    Summary,
    decode_untrusted,
    encode,
)
from meshd.keys import NodeId

NODE = NodeId(bytes(range(32)))

uint32 = st.integers(0, SEQUENCE_MAX)
uint64 = st.integers(0, 2**64 - 1)
eight = st.binary(min_size=8, max_size=8)
nodes = st.binary(min_size=32, max_size=32).map(NodeId)
items = st.builds(Item, st.integers(0, 127), st.binary(max_size=30))
entries = st.builds(EntrySummary, eight, uint64, eight)
summaries = st.builds(
    Summary, uint64, eight, eight, st.lists(entries, max_size=SUMMARY_ENTRIES_MAX).map(tuple)
)
ids = st.lists(eight, min_size=1, max_size=WANT_IDS_MAX).map(tuple)

_OWN_FIELDS = {
    MessageType.PING_REQ: {"target": nodes},
    MessageType.NACK: {"target": nodes},
    MessageType.ACK: {"target": st.none() | nodes},
    MessageType.DIGEST: {"buckets": st.binary(min_size=BUCKETS_BYTES, max_size=BUCKETS_BYTES)},
    MessageType.SUMMARY: {"summary": summaries},
    MessageType.WANT: {"ids": ids},
}
_WITH_ITEMS = {MessageType.PING, MessageType.ACK, MessageType.GOSSIP, MessageType.FACTS}


@st.composite
def messages(draw):
    type_ = draw(st.sampled_from(MessageType))
    fields = {name: draw(values) for name, values in _OWN_FIELDS.get(type_, {}).items()}
    if type_ in _WITH_ITEMS:
        fields["items"] = draw(st.lists(items, max_size=ITEMS_MAX).map(tuple))
    return Message(type_, draw(uint32), draw(uint64), draw(st.none() | uint64), **fields)


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.integers(0, 80), inner),
    max_leaves=6,
)


@given(messages())
def test_roundtrip(message):
    assert decode_untrusted(encode(message)) == message


@given(st.binary(max_size=1500))
@example(b"")
@example(bytes([VERSION]))
@example(bytes([VERSION, MessageType.PING]) + b"\x91" * 1200)  # nested as deep as it gets
@example(bytes([VERSION, MessageType.PING]) + b"\x81\x01\xdf\xff\xff\xff\xff")
def test_arbitrary_bytes_only_ever_raise_bad_packet(datagram):
    with contextlib.suppress(BadPacket):
        decode_untrusted(datagram)


@given(st.sampled_from(MessageType), st.dictionaries(st.integers(0, 80) | st.text(), junk))
def test_well_formed_msgpack_of_the_wrong_shape_only_ever_raises_bad_packet(type_, fields):
    with contextlib.suppress(BadPacket):
        decode_untrusted(bytes([VERSION, type_]) + msgpack.packb(fields))


@given(messages(), st.integers(0, DATAGRAM_BYTES_MAX), st.integers(0, 255))
def test_a_flipped_byte_only_ever_raises_bad_packet(message, position, value):
    datagram = bytearray(encode(message))
    datagram[position % len(datagram)] = value
    with contextlib.suppress(BadPacket):
        decode_untrusted(bytes(datagram))


@pytest.mark.parametrize(
    ("message", "datagram"),
    [
        (Message(MessageType.PING, 7, 1), "01 00 82 0107 0201"),
        (
            Message(MessageType.PING, 7, 1, 2, items=(Item(0, b"claim"), Item(1, b"record"))),
            "01 00 84 0107 0201 0302 0492 9200c405636c61696d 9201c4067265636f7264",
        ),
        (Message(MessageType.ACK, 2**32 - 1, 300), "01 01 82 01ceffffffff 02cd012c"),
        (
            Message(MessageType.ACK, 7, 1, target=NODE),
            "01 01 83 0107 0201 05c420" + bytes(NODE).hex(),
        ),
        (
            Message(MessageType.PING_REQ, 7, 1, target=NODE),
            "01 02 83 0107 0201 05c420" + bytes(NODE).hex(),
        ),
        (
            Message(MessageType.NACK, 7, 1, target=NODE),
            "01 03 83 0107 0201 05c420" + bytes(NODE).hex(),
        ),
        (
            Message(MessageType.GOSSIP, 0, 1, items=(Item(0, b"claim"),)),
            "01 04 83 0100 0201 0491 9200c405636c61696d",
        ),
        (
            Message(MessageType.DIGEST, 9, 1, buckets=b"\xab" * 512),
            "01 05 83 0109 0201 06c50200" + "ab" * 512,
        ),
        (
            Message(
                MessageType.SUMMARY,
                9,
                1,
                summary=Summary(
                    1 << 63,
                    bytes(8),
                    b"\xff" * 8,
                    (EntrySummary(b"entry id", 5, b"digest  "),),
                ),
            ),
            (
                "01 06 85 0109 0201 07c4088000000000000000"
                "08c410 0000000000000000 ffffffffffffffff"
                "09c418 656e747279206964 0000000000000005 6469676573742020"
            ),
        ),
        (
            Message(MessageType.WANT, 9, 1, ids=(b"entry id", b"other id")),
            "01 07 83 0109 0201 0ac410 656e747279206964 6f74686572206964",
        ),
        (
            Message(MessageType.FACTS, 9, 1, items=(Item(1, b"record"),)),
            "01 08 83 0109 0201 0491 9201c4067265636f7264",
        ),
    ],
)
def test_the_bytes_on_the_wire_do_not_change(message, datagram):
    assert encode(message) == bytes.fromhex(datagram)
    assert decode_untrusted(bytes.fromhex(datagram)) == message


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "too short"),
        (b"\x01", "too short"),
        (b"\x02\x00\x82\x01\x07\x02\x01", "unknown gossip version"),
        (b"\x01\x63\x82\x01\x07\x02\x01", "unknown message type"),
        (b"\x01\x00" + bytes(DATAGRAM_BYTES_MAX), "too long"),
        (b"\x01\x00\x81\x01\x07", "malformed"),
        (b"\x01\x00\x83\x01\x07\x02\x01\x0b\x00", "unknown critical field"),
        (b"\x01\x00\x83\x01\x07\x02\x01\x05\xc4\x20" + bytes(32), "unknown critical field"),
        (b"\x01\x02\x82\x01\x07\x02\x01", "malformed"),
        (b"\x01\x07\x83\x01\x07\x02\x01\x0a\xc4\x03abc", "bad length"),
        (b"\x01\x07\x83\x01\x07\x02\x01\x0a\xc4\x00", "bad length"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_a_reason(datagram, reason):
    with pytest.raises(BadPacket, match=reason):
        decode_untrusted(datagram)


def test_items_in_a_datagram_are_bounded():
    fields = {1: 7, 2: 1, 4: [[0, b""]] * (ITEMS_MAX + 1)}
    with pytest.raises(BadPacket, match="field 4 malformed"):
        decode_untrusted(bytes([VERSION, MessageType.GOSSIP]) + msgpack.packb(fields))


@pytest.mark.parametrize(
    "malformed",
    [7, b"blob", [], [0], [0, b"x", 1], [True, b"x"], [-1, b"x"], [128, b"x"], [0, "x"], {0: b"x"}],
    ids=repr,
)
def test_an_item_of_another_shape_is_refused(malformed):
    fields = {1: 7, 2: 1, 4: [[127, b""], malformed]}
    with pytest.raises(BadPacket, match="malformed item"):
        decode_untrusted(bytes([VERSION, MessageType.GOSSIP]) + msgpack.packb(fields))


def test_an_optional_field_of_a_later_version_is_ignored():
    fields = {1: 7, 2: 1, 64: "whatever"}
    datagram = bytes([VERSION, MessageType.PING]) + msgpack.packb(fields)
    assert decode_untrusted(datagram) == Message(MessageType.PING, 7, 1)


def test_a_datagram_filled_to_its_budget_fits():
    largest = Item(127, bytes(ITEM_BYTES_MAX - ITEM_OVERHEAD))
    message = Message(
        MessageType.ACK, SEQUENCE_MAX, 2**64 - 1, 2**64 - 1, items=(largest,), target=NODE
    )
    assert largest.cost == ITEM_BYTES_MAX
    assert len(encode(message)) <= DATAGRAM_BYTES_MAX


def test_many_small_items_filled_to_the_budget_fit():
    size = ITEM_BYTES_MAX // ITEMS_MAX - ITEM_OVERHEAD
    message = Message(
        MessageType.ACK,
        SEQUENCE_MAX,
        2**64 - 1,
        2**64 - 1,
        items=(Item(127, bytes(size)),) * ITEMS_MAX,
        target=NODE,
    )
    datagram = encode(message)
    assert len(datagram) + ITEMS_MAX * ITEM_OVERHEAD > DATAGRAM_BYTES_MAX - HEADER_BYTES_MAX
    assert len(datagram) <= DATAGRAM_BYTES_MAX


def test_the_longest_summary_and_want_fit():
    entry = EntrySummary(b"\xff" * 8, 2**64 - 1, b"\xff" * 8)
    summary = Summary(2**64 - 1, bytes(8), b"\xff" * 8, (entry,) * SUMMARY_ENTRIES_MAX)
    longest = Message(MessageType.SUMMARY, SEQUENCE_MAX, 2**64 - 1, 2**64 - 1, summary=summary)
    assert decode_untrusted(encode(longest)) == longest
    wants = Message(
        MessageType.WANT, SEQUENCE_MAX, 2**64 - 1, 2**64 - 1, ids=(b"\xff" * 8,) * WANT_IDS_MAX
    )
    assert decode_untrusted(encode(wants)) == wants
