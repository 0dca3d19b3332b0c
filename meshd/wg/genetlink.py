"""Netlink messages and attributes, and generic netlink's own family (`linux/netlink.h`).

A message is a header, for generic netlink a second header, and attributes, each of them with its
length in front and padded to four bytes.  Numbers are in the machine's own byte order:

    nlmsghdr    length 4 │ type 2 │ flags 2 │ sequence 4 │ port 4
    genlmsghdr  command 1 │ version 1 │ reserved 2
    nlattr      length 2 │ type 2 │ value │ 0 to 3 bytes of padding

Whatever bytes come in, the outcome is a value or a `DeviceError` with EBADMSG.  This module is
pure: `meshd.wg.kernel` owns the socket.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/netlink.h
NLM_F_REQUEST = 0x01
NLM_F_MULTI = 0x02
NLM_F_ACK = 0x04
NLM_F_DUMP_INTR = 0x10  # what is dumped has changed under way
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLM_F_DUMP = 0x300
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

# linux/genetlink.h
GENL_ID_CTRL = 16
CTRL_VERSION = 2
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID = 1
CTRL_ATTR_FAMILY_NAME = 2

ATTRIBUTE_BYTES_MAX = 0xFFFF  # the length is 16 bits, and counts its own header
ERRNO_MAX = 4095  # linux/err.h
TEXT_CHARACTERS_MAX = 200  # of what the kernel says in an extended acknowledgement

U16: Final = struct.Struct("=H")
U32: Final = struct.Struct("=I")
_S32 = struct.Struct("=i")
_MESSAGE = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by length modulo 4


class Request(NamedTuple):
    """What is to be sent, but for the number of the family and of the request."""

    flags: int
    payload: bytes


class Message(NamedTuple):
    """One message out of what a read of the socket gave."""

    type: int
    flags: int
    sequence: int
    payload: bytes


def malformed() -> DeviceError:
    """Return the error for an answer that breaks the format."""
    return DeviceError("read an answer of the kernel", errno.EBADMSG)


def encode_attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute."""
    length = _ATTRIBUTE.size + len(value)
    assert length <= ATTRIBUTE_BYTES_MAX, "chunk it"
    return _ATTRIBUTE.pack(length, kind) + value + _PADDING[length % 4]


def encode_request(command: int, version: int, attributes: bytes, *, dump: bool = False) -> Request:
    """Return a request of a generic netlink family: an acknowledged one, or one for a dump."""
    flags = NLM_F_REQUEST | (NLM_F_DUMP if dump else NLM_F_ACK)
    return Request(flags, _GENERIC.pack(command, version, 0) + attributes)


def frame(request: Request, family: int, sequence: int) -> bytes:
    """Return the datagram for a request; `sequence` comes back in the answer."""
    length = _MESSAGE.size + len(request.payload)
    return _MESSAGE.pack(length, family, request.flags, sequence, 0) + request.payload


def encode_get_family(name: str) -> Request:
    """Ask for the number that a family has in the running kernel; ENOENT when it has none.

    The kernel loads the family's module for this question, where there is one.
    """
    attribute = encode_attribute(CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0")
    return encode_request(CTRL_CMD_GETFAMILY, CTRL_VERSION, attribute)


def decode_family(payload: bytes) -> int:
    """Read the number that `encode_get_family` has asked for."""
    number: int = U16.unpack(exactly(fields(body(payload)), CTRL_ATTR_FAMILY_ID, U16.size))[0]
    return number


def split_messages(datagram: bytes) -> list[Message]:
    """Take apart what one read of the socket gave."""
    messages = []
    offset = 0
    while offset < len(datagram):
        if len(datagram) - offset < _MESSAGE.size:
            raise malformed()
        length, kind, flags, sequence, _ = _MESSAGE.unpack_from(datagram, offset)
        if not _MESSAGE.size <= length <= len(datagram) - offset:
            raise malformed()
        payload = datagram[offset + _MESSAGE.size : offset + length]
        messages.append(Message(kind, flags, sequence, payload))
        offset += _aligned(length)
    return messages


def raise_for_error(message: Message, operation: str) -> None:
    """Raise what an NLMSG_ERROR or NLMSG_DONE message says, unless it says that all is well.

    The kernel's own words (its extended acknowledgement), where it has some, follow `operation`.
    """
    if len(message.payload) < _S32.size:
        raise malformed()
    number = -_S32.unpack_from(message.payload)[0]
    if number == 0:
        return
    if not 0 < number <= ERRNO_MAX:
        raise malformed()
    text = _extended_acknowledgement(message)
    raise DeviceError(f"{operation} ({text})" if text else operation, number)


def body(payload: bytes) -> bytes:
    """Return what follows the generic netlink header."""
    if len(payload) < _GENERIC.size:
        raise malformed()
    return payload[_GENERIC.size :]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Take attributes apart into type and value, flags removed."""
    offset = 0
    end = len(data)
    while offset < end:
        if end - offset < _ATTRIBUTE.size:
            raise malformed()
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= end - offset:
            raise malformed()
        yield kind & NLA_TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)


def fields(data: bytes) -> dict[int, bytes]:
    """Return attributes by type, for where each type comes but once."""
    return dict(attributes(data))


def exactly(found: dict[int, bytes], kind: int, size: int) -> bytes:
    """Return the attribute of a type, which must be there with just this size."""
    value = found.get(kind)
    if value is None or len(value) != size:
        raise malformed()
    return value


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _extended_acknowledgement(message: Message) -> str:
    if not message.flags & NLM_F_ACK_TLVS:
        return ""
    offset = _S32.size
    if message.type == NLMSG_ERROR:
        # The request follows: all of it, or its header alone when capped.
        request = message.payload[offset : offset + _MESSAGE.size]
        if len(request) < _MESSAGE.size:
            raise malformed()
        length = _MESSAGE.unpack(request)[0]
        offset += _MESSAGE.size if message.flags & NLM_F_CAPPED else _aligned(length)
    text = fields(message.payload[offset:]).get(NLMSGERR_ATTR_MSG, b"")
    characters = text.rstrip(b"\0").decode("ascii", "replace")[:TEXT_CHARACTERS_MAX]
    return "".join(character if character.isprintable() else "?" for character in characters)
