"""What a TCP connection may bring, cut up in whatever way."""

from random import Random

from fuzz.registry import decoder
from meshd.carrier.frames import Frame, FrameReader, encode_frame

_FRAMES = [Frame(0, b"mesh\x03" + bytes(40)), Frame(51900, b"\x04\0\0\0" + bytes(28))]


def _read(data):
    """Give the bytes to one reader whole, and to another in pieces."""
    frames = FrameReader().receive_untrusted(data)
    rng, reader, again, rest = Random(data), FrameReader(), [], data
    while rest:
        size = rng.randint(1, len(rest))
        again += reader.receive_untrusted(rest[:size])
        rest = rest[size:]
    assert again == frames
    return frames


decoder(
    "carrier-frames",
    _read,
    lambda: [b"".join(map(encode_frame, _FRAMES)), encode_frame(_FRAMES[0]) + b"\0\4"],
    encode=lambda frames: b"".join(map(encode_frame, frames)),
)
