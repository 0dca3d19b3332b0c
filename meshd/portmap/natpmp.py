"""NAT-PMP's datagrams (RFC 6886): what routers without PCP speak on the same port.

     0       1       2               4               8              12              16
    +-------+-------+---------------+---------------+
    | 0     | 0     |   question: which is your external address?   (2 bytes)
    +-------+-------+---------------+---------------+---------------+
    | 0     | 128   | result        | epoch         | address       |
    +-------+-------+---------------+---------------+---------------+
    | 0     | 1     | 0             | int.  | ext.  | lifetime      |   map a UDP port
    +-------+-------+---------------+---------------+---------------+---------------+
    | 0     | 129   | result        | epoch         | int.  | ext.  | lifetime      |
    +-------+-------+---------------+---------------+---------------+---------------+

An answer names no question: it is believed because it came from the router's address.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TypeAlias

from meshd.errors import BadPacket

VERSION = 0
PORT = 5351  # PCP's as well
_ADDRESS, _MAP_UDP, _RESPONSE = 0, 1, 128

_HEAD = struct.Struct("!BBHI")
_MAP_REQUEST = struct.Struct("!BBHHHI")
_MAP_REST = struct.Struct("!HHI")


class Result(enum.IntEnum):
    """Result codes (section 3.5)."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


@dataclass(frozen=True, slots=True)
class ExternalAddress:
    """Which address the router has on its outside; also what it announces after a restart."""

    epoch: int  # seconds since the router has lost its mappings
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class Mapped:
    """What the router has mapped."""

    epoch: int
    internal_port: int
    external_port: int
    lifetime: int  # seconds; 0: it is gone


@dataclass(frozen=True, slots=True)
class Refused:
    """What the router says where it does not do it."""

    result: Result


Answer: TypeAlias = ExternalAddress | Mapped | Refused


def address_request() -> bytes:
    """Ask for the external address."""
    return bytes([VERSION, _ADDRESS])


def map_request(internal_port: int, external_port: int, lifetime: int) -> bytes:
    """Ask for a UDP port to be mapped; a lifetime of 0 ends the mapping."""
    wished = external_port if lifetime else 0
    return _MAP_REQUEST.pack(VERSION, _MAP_UDP, 0, internal_port, wished, lifetime)


def decode_untrusted(data: bytes) -> Answer:
    """Read an answer, or an announcement."""
    if len(data) < 4 or data[0] != VERSION:
        raise BadPacket("NAT-PMP answer malformed")
    opcode, code = data[1], int.from_bytes(data[2:4], "big")
    if opcode not in {_RESPONSE + _ADDRESS, _RESPONSE + _MAP_UDP}:
        raise BadPacket("NAT-PMP answer to no question of ours")
    if code:
        try:
            return Refused(Result(code))
        except ValueError as exc:
            raise BadPacket("NAT-PMP result unknown") from exc
    wanted = _HEAD.size + (_MAP_REST.size if opcode == _RESPONSE + _MAP_UDP else 4)
    if len(data) != wanted:
        raise BadPacket("NAT-PMP answer malformed")
    epoch = _HEAD.unpack_from(data)[3]
    rest = data[_HEAD.size :]
    if opcode == _RESPONSE + _ADDRESS:
        return ExternalAddress(epoch, IPv4Address(rest))
    return Mapped(epoch, *_MAP_REST.unpack(rest))
