"""PCP's datagrams (RFC 6887), as far as mapping one UDP port of ours over IPv4 takes them.

     0       1       2       3       4               8               24
    +-------+-------+---------------+---------------+----- - - -----+
    | 2     | 1     | 0             | lifetime      | our address   |        request, 60 bytes
    +-------+-------+-------+-------+---------------+---------------+
    | 2     | 129   | 0     | result| lifetime      | epoch, 0      |        response
    +-------+-------+-------+-------+---------------+----- - - -----+
    24              36      37      40      42      44              60
    +---- - - ------+-------+-------+-------+-------+----- - - -----+
    | nonce         | 17    | 0     | int.  | ext.  | ext. address  |        of both
    +---- - - ------+-------+-------+-------+-------+----- - - -----+

Addresses are written as IPv6, an IPv4 one as IPv4-mapped.  A mapping belongs to whoever knows its
nonce.  An announcement (opcode 0) is the first 24 bytes alone, and says that a router restarted.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

from meshd.errors import BadPacket

VERSION = 2
NONCE_BYTES = 12
_ANNOUNCE, _MAP, _RESPONSE = 0, 1, 128
_UDP = 17
_BYTES_MAX = 1100  # section 7

_REQUEST_HEAD = struct.Struct("!BBHI16s")
_RESPONSE_HEAD = struct.Struct("!BBBBII12x")
_MAP_BODY = struct.Struct("!12sB3xHH16s")
_ANY_IPV4 = b"\0" * 10 + b"\xff" * 2 + b"\0" * 4


class Result(enum.IntEnum):
    """Result codes (section 7.4)."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPPORTED_OPCODE = 4
    UNSUPPORTED_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPPORTED_PROTOCOL = 9
    USER_EXCEEDED_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12  # another NAT is between us and the router that answers
    EXCESSIVE_REMOTE_PEERS = 13


@dataclass(frozen=True, slots=True)
class Mapped:
    """What the router has mapped."""

    epoch: int  # seconds since the router has lost its mappings
    nonce: bytes
    internal_port: int
    external_port: int
    external_address: IPv4Address
    lifetime: int  # seconds; 0: it is gone


@dataclass(frozen=True, slots=True)
class Refused:
    """What the router says where it does not do it."""

    result: Result
    lifetime: int  # seconds for which asking again is useless


@dataclass(frozen=True, slots=True)
class Announced:
    """The router is up, and has been for `epoch` seconds."""

    epoch: int


Answer: TypeAlias = Mapped | Refused | Announced


def map_request(
    source: IPv4Address, nonce: bytes, internal_port: int, external_port: int, lifetime: int
) -> bytes:
    """Ask for a UDP port to be mapped; a lifetime of 0 ends the mapping."""
    assert len(nonce) == NONCE_BYTES
    head = _REQUEST_HEAD.pack(VERSION, _MAP, 0, lifetime, _mapped(source))
    wished = external_port if lifetime else 0
    return head + _MAP_BODY.pack(nonce, _UDP, internal_port, wished, _ANY_IPV4)


def decode_untrusted(data: bytes) -> Answer:
    """Read an answer, or an announcement."""
    if not _RESPONSE_HEAD.size <= len(data) <= _BYTES_MAX or len(data) % 4:
        raise BadPacket("PCP answer malformed")
    version, opcode, _, code, lifetime, epoch = _RESPONSE_HEAD.unpack_from(data)
    if version != VERSION:
        raise BadPacket("PCP version unknown")
    if opcode not in {_RESPONSE + _ANNOUNCE, _RESPONSE + _MAP}:
        raise BadPacket("PCP answer to no question of ours")
    if code:
        try:
            return Refused(Result(code), lifetime)
        except ValueError as exc:
            raise BadPacket("PCP result unknown") from exc
    if opcode == _RESPONSE + _ANNOUNCE:
        return Announced(epoch)
    if len(data) < _RESPONSE_HEAD.size + _MAP_BODY.size:
        raise BadPacket("PCP answer malformed")
    nonce, protocol, internal, external, packed = _MAP_BODY.unpack_from(data, _RESPONSE_HEAD.size)
    address = IPv6Address(packed).ipv4_mapped
    if protocol != _UDP or address is None:
        raise BadPacket("PCP answer to no question of ours")
    return Mapped(epoch, nonce, internal, external, address, lifetime)


def _mapped(address: IPv4Address) -> bytes:
    return b"\0" * 10 + b"\xff" * 2 + address.packed
