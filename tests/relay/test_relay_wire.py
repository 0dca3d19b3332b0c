"""What members and relays say to each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.codec import pack
from meshd.errors import BadPacket
from meshd.keys import NodeId
from meshd.relay import wire
from meshd.relay.wire import Draining, Gone, Grant, Reason, Refused, Release, Request

OTHER = NodeId(bytes(range(32)))
DECODERS = {
    Request: wire.decode_request_untrusted,
    Grant: wire.decode_grant_untrusted,
    Refused: wire.decode_refused_untrusted,
    Release: wire.decode_release_untrusted,
    Draining: wire.decode_draining_untrusted,
    Gone: wire.decode_gone_untrusted,
}

others = st.binary(min_size=32, max_size=32).map(NodeId)
grants = st.builds(
    Grant,
    others,
    st.integers(1, 65535),
    st.integers(1, wire.LIFETIME_MAX),
    st.none() | st.integers(0, wire.RTT_MICROSECONDS_MAX).map(lambda us: us / 1e6),
    st.integers(0, 100),
)
messages = (
    st.builds(Request, others)
    | grants
    | st.builds(Refused, others, st.sampled_from(Reason))
    | st.builds(Release, others)
    | st.builds(Draining, st.booleans())
    | st.builds(Gone, others)
)


@given(messages)
def test_roundtrip(message):
    assert DECODERS[type(message)](wire.encode(message)) == message


@given(messages, st.sampled_from(sorted(DECODERS, key=lambda type_: type_.__name__)))
def test_any_body_is_a_message_or_a_bad_packet(message, type_):
    try:
        decoded = DECODERS[type_](wire.encode(message))
    except BadPacket:
        return
    assert isinstance(decoded, type_)


def test_the_bytes_are_pinned():
    id_ = OTHER.hex()
    assert wire.encode(Request(OTHER)).hex() == "8101c420" + id_
    assert (
        wire.encode(Grant(OTHER, 51900, 600, rtt=0.0125, load=7)).hex()
        == "8501c420" + id_ + "02cdcabc03cd025804cd30d40507"
    )
    assert wire.encode(Refused(OTHER, Reason.FULL)).hex() == "8201c420" + id_ + "0203"
    assert wire.encode(Draining(draining=True)).hex() == "8101c3"
    assert wire.encode(Draining(draining=False)).hex() == "80"


@pytest.mark.parametrize(
    "fields",
    [
        {2: 51900, 3: 600},
        {1: OTHER, 2: 0, 3: 600},
        {1: OTHER, 2: 65536, 3: 600},
        {1: OTHER, 2: 51900, 3: 0},
        {1: OTHER, 2: 51900, 3: wire.LIFETIME_MAX + 1},
        {1: OTHER, 2: 51900, 3: 600, 5: 101},
        {1: OTHER, 2: 51900, 3: 600, 9: 1},
        {1: OTHER[:31], 2: 51900, 3: 600},
    ],
)
def test_a_grant_of_nonsense_is_a_bad_packet(fields):
    with pytest.raises(BadPacket):
        wire.decode_grant_untrusted(pack(fields))


def test_a_reason_that_is_not_known_is_another():
    data = pack({1: OTHER, 2: 999})
    assert wire.decode_refused_untrusted(data) == Refused(OTHER, Reason.OTHER)


def test_a_field_that_may_be_ignored_is():
    assert wire.decode_request_untrusted(pack({1: OTHER, 64: "later"})) == Request(OTHER)
