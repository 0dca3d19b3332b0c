"""Datagrams in a TCP connection between a member and a relay host.

      0        2        4                        4 + length
     +--------+--------+------------------------+---
     | length | port   | datagram, as by UDP    | the next frame …
     +--------+--------+------------------------+---
       big endian

`port` is the relay host's side of the datagram, whichever way it goes: one of its relay ports, or
0 for the one port of WireGuard and meshd.

Rule 1: a frame adds nothing to its datagram and proves nothing.  Whatever is inside is sealed end
        to end, as it is by UDP; so TLS around it is to look like others, not to protect.

Rule 2: what breaks a frame ends the connection: behind it nobody can tell where the next begins.
        No more of one than its head is kept before its length is found to be allowed.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from meshd.errors import BadPacket

HEAD: Final = struct.Struct("!HH")
OWN_PORT = 0
DATAGRAM_BYTES_MAX = 2048  # above WireGuard's at an MTU of 1,500, and meshd's


class Frame(NamedTuple):
    """One datagram."""

    port: int
    datagram: bytes


def encode_frame(frame: Frame) -> bytes:
    """Return the bytes of a frame."""
    assert 0 < len(frame.datagram) <= DATAGRAM_BYTES_MAX
    return HEAD.pack(len(frame.datagram), frame.port) + frame.datagram


class FrameReader:
    """Finds the frames in what a connection brings, however that is cut up."""

    def __init__(self) -> None:
        self._rest = b""

    def receive_untrusted(self, data: bytes) -> list[Frame]:
        """Take bytes, and return the frames that have ended.  Raise BadPacket: all is over."""
        data = self._rest + data
        frames: list[Frame] = []
        begin = 0
        while len(data) - begin >= HEAD.size:
            length, port = HEAD.unpack_from(data, begin)
            if not 0 < length <= DATAGRAM_BYTES_MAX:
                raise BadPacket("frame of an impossible length")
            end = begin + HEAD.size + length
            if end > len(data):
                break
            frames.append(Frame(port, data[begin + HEAD.size : end]))
            begin = end
        self._rest = data[begin:]
        return frames
