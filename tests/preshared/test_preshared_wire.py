"""What an agreement says, byte by byte; and that any bytes are a message or a bad packet."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.codec import pack
from meshd.errors import BadPacket
from meshd.keys import MeshKey, NodeKey, PresharedKey
from meshd.preshared.keys import (
    NO_KEY,
    SharedKey,
    Transcript,
    derive,
    join_tags,
    split_tags_untrusted,
    tag_in_use,
)
from meshd.preshared.wire import (
    Answer,
    Confirm,
    Offer,
    decode_answer_untrusted,
    decode_confirm_untrusted,
    decode_offer_untrusted,
    encode,
)

OVERLAY_BYTES_MAX = 1232

tags = st.lists(st.binary(min_size=8, max_size=8), max_size=2).map(tuple)
references = st.binary(min_size=8, max_size=8)
offers = st.builds(
    Offer,
    references,
    st.binary(min_size=1184, max_size=1184),
    st.none() | st.binary(min_size=8, max_size=8),
)
answers = st.builds(
    Answer, references, st.binary(min_size=1088, max_size=1088), tags, st.none() | tags
)
confirms = st.builds(Confirm, st.none() | tags, st.none() | tags, st.booleans())
DECODERS = [decode_offer_untrusted, decode_answer_untrusted, decode_confirm_untrusted]


@given(offers)
def test_an_offer_comes_back_and_fits(offer):
    assert decode_offer_untrusted(encode(offer)) == offer
    assert 1 + len(encode(offer)) <= OVERLAY_BYTES_MAX


@given(answers)
def test_an_answer_comes_back_and_fits(answer):
    assert decode_answer_untrusted(encode(answer)) == answer
    assert 1 + len(encode(answer)) <= OVERLAY_BYTES_MAX


@given(confirms)
def test_a_confirmation_comes_back(confirm):
    assert decode_confirm_untrusted(encode(confirm)) == confirm


@pytest.mark.parametrize("decode", DECODERS)
@given(
    data=st.binary(max_size=1300)
    | st.dictionaries(
        st.integers(0, 70),
        st.none() | st.booleans() | st.integers(0, 2**64 - 1) | st.binary(max_size=20),
        max_size=5,
    ).map(pack)
)
def test_any_bytes_are_a_message_or_a_bad_packet(decode, data):
    with contextlib.suppress(BadPacket):
        decode(data)


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (decode_offer_untrusted, {1: bytes(8), 2: bytes(1183)}),
        (decode_offer_untrusted, {1: bytes(7), 2: bytes(1184)}),
        (decode_offer_untrusted, {1: bytes(8), 2: bytes(1184), 3: bytes(9)}),
        (decode_answer_untrusted, {1: bytes(8), 2: bytes(1089), 3: b""}),
        (decode_answer_untrusted, {1: bytes(8), 2: bytes(1088)}),
        (decode_answer_untrusted, {1: bytes(8), 2: bytes(1088), 3: bytes(24)}),
        (decode_confirm_untrusted, {1: bytes(7)}),
        (decode_confirm_untrusted, {4: 1}),
    ],
)
def test_what_has_another_size_or_an_unknown_field_is_a_bad_packet(decode, body):
    with pytest.raises(BadPacket):
        decode(pack(body))


@given(tags)
def test_lists_of_tags_come_back(listed):
    assert split_tags_untrusted(join_tags(listed)) == listed


@given(tags, tags)
def test_the_newest_key_that_both_hold_is_used(lower, higher):
    common = [tag for tag in lower if tag in higher]

    assert tag_in_use(lower, higher) == (common[0] if common else None)


LOWER, HIGHER = sorted(NodeKey(bytes([number]) * 32).id for number in (1, 2))
TRANSCRIPT = Transcript(
    MeshKey(b"\x07" * 32).id, LOWER, HIGHER, b"reference"[:8], b"\1" * 1184, b"\2" * 1088
)
PREVIOUS = SharedKey(PresharedKey(b"\5" * 32), 1)


def derived(transcript=TRANSCRIPT, *, secret=b"\3" * 32, static=b"\4" * 32, previous=None):
    return derive(transcript, secret=secret, static=static, previous=previous)


def test_every_part_of_an_agreement_makes_another_key():
    variants = [
        derived(),
        derived(secret=b"\x13" * 32),
        derived(static=b"\x14" * 32),
        derived(previous=PREVIOUS),
        *(
            derived(replace(TRANSCRIPT, **{part: b"\x21" * len(getattr(TRANSCRIPT, part))}))
            for part in TRANSCRIPT.__slots__
        ),
    ]

    assert len(set(variants)) == len(variants)
    assert NO_KEY not in variants


def test_the_key_of_a_known_agreement_does_not_change():
    assert derived().hex() == ("2702c2a36073a87ca6fa61733a30310c795ffdc75c448ea5e1124047633b4e72")
    assert SharedKey(derived(), 1).tag.hex() == "7c34f4bf84a1ff55"
    assert derived(previous=PREVIOUS).hex() == (
        "8eeeaf27196f19692edd4b8d4d31a28036f5cb639fa2c328de676b2aa3b30019"
    )


def test_the_bytes_of_a_confirmation_do_not_change():
    confirm = Confirm((b"newest12", b"older123"), (), asks=True)

    assert encode(confirm).hex() == "8301c4106e657765737431326f6c64657231323302c40003c3"
