"""Frames: the bytes as written down, found again however a connection cuts them up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.carrier.frames import DATAGRAM_BYTES_MAX, HEAD, Frame, FrameReader, encode_frame
from meshd.errors import BadPacket

frames = st.builds(Frame, st.integers(0, 65535), st.binary(min_size=1, max_size=80))


def test_the_bytes_of_a_frame():
    assert encode_frame(Frame(51900, b"\4\0\0\0")) == bytes.fromhex("0004cabc04000000")
    assert encode_frame(Frame(0, b"mesh\3")) == bytes.fromhex("00050000") + b"mesh\3"


@given(st.lists(frames, max_size=10), st.lists(st.integers(1, 50)))
def test_frames_are_found_however_they_are_cut_up(given, sizes):
    data = b"".join(map(encode_frame, given))
    reader, found = FrameReader(), []
    for size in sizes:
        found += reader.receive_untrusted(data[:size])
        data = data[size:]
    found += reader.receive_untrusted(data)

    assert found == given


@pytest.mark.parametrize("length", [0, DATAGRAM_BYTES_MAX + 1, 65535])
def test_an_impossible_length_is_known_by_the_head(length):
    with pytest.raises(BadPacket, match="impossible length"):
        FrameReader().receive_untrusted(HEAD.pack(length, 0))


@given(st.binary(max_size=300))
def test_no_more_than_a_frame_is_kept(data):
    reader = FrameReader()
    try:
        for byte in data:
            reader.receive_untrusted(bytes([byte]))
    except BadPacket:
        pass
    assert len(reader._rest) < HEAD.size + DATAGRAM_BYTES_MAX
