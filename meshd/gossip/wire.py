"""The bytes that members exchange inside the tunnel.

A datagram is a version, a message type and a msgpack map:

     0        1        2
    ┌────────┬────────┬──────────────────────────────
    │version │  type  │ map {field: value}        ...     at most 1,232 bytes
    └────────┴────────┴──────────────────────────────

    field           value                                     in
     1 sequence     uint32, echoed in the answer              all
     2 incarnation  uint, the sender's own                    all
     3 known        uint, the receiver's as the sender has    all, absent if unknown
                    seen it claimed
     4 items        array of [kind, blob]: claims and facts   all
     5 target       32 bytes, a member                        PING_REQ, NACK, ACK if indirect
     6 buckets      512 bytes, 64 sums of entry digests       DIGEST
     7 differing    8 bytes, bit i is bucket i, most          SUMMARY
                    significant first
     8 first, last  16 bytes, the range of entry ids that     SUMMARY
                    this datagram covers, ends included
     9 entries      24 bytes each: id, version, digest        SUMMARY
    10 ids          8 bytes each                              WANT

The source of a datagram is known from the tunnel it came through, so it is not in the datagram.
`incarnation` and `known` only save work: they say whose claim is worth sending, and prove nothing.

An item of kind 0 is a claim (see `claim`); other kinds are facts, and the ledger's business.  Facts
and claims are carried verbatim.

Every function here that touches bytes from the network has a name ending in `_untrusted`, and
raises nothing but BadPacket, whatever the bytes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from meshd.codec import Fields, pack
from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, NodeId

VERSION = 1
DATAGRAM_BYTES_MAX = 1280 - 40 - 8  # the IPv6 minimum MTU, less the IPv6 and UDP headers
HEADER_BYTES_MAX = 80  # version, type, map, fields 1-3 and 5 at their longest, head of field 4
ITEM_BYTES_MAX = DATAGRAM_BYTES_MAX - HEADER_BYTES_MAX
ITEM_OVERHEAD = 6  # array head, kind, length of the blob
ITEMS_MAX = 32  # each may cost a signature check

CLAIM_ITEM = 0
ITEM_KIND_MAX = 127

SEQUENCE_MAX = 2**32 - 1
UINT_MAX = 2**64 - 1

BUCKETS = 64
ID_BYTES = 8
BUCKETS_BYTES = BUCKETS * 8
ENTRY_BYTES = 24
SUMMARY_ENTRIES_MAX = 44
WANT_IDS_MAX = 64


class MessageType(enum.IntEnum):
    """The values are part of the wire format.  Only append."""

    PING = 0
    ACK = 1
    PING_REQ = 2
    NACK = 3
    GOSSIP = 4
    DIGEST = 5
    SUMMARY = 6
    WANT = 7
    FACTS = 8


class Item(NamedTuple):
    """A signed statement on its way around the mesh."""

    kind: int
    blob: bytes

    @property
    def cost(self) -> int:
        """How many bytes of a datagram it takes, at most."""
        return len(self.blob) + ITEM_OVERHEAD


class EntrySummary(NamedTuple):
    """What one node holds under one entry id."""

    id: bytes
    version: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Summary:
    """Which buckets differ, and what the sender holds in a range of them."""

    differing: int  # bit 63 - i for bucket i
    first: bytes
    last: bytes
    entries: tuple[EntrySummary, ...] = ()


class Message(NamedTuple):
    """One datagram.  Fields that do not belong to its type are empty."""

    type: MessageType
    sequence: int
    incarnation: int = 0
    known: int | None = None
    items: tuple[Item, ...] = ()
    target: NodeId | None = None
    buckets: bytes = b""
    summary: Summary | None = None
    ids: tuple[bytes, ...] = ()


def encode(message: Message) -> bytes:
    """Return the datagram for a message."""
    fields: dict[int, object] = {1: message.sequence, 2: message.incarnation}
    if message.known is not None:
        fields[3] = message.known
    if message.items:
        fields[4] = [(item.kind, item.blob) for item in message.items]
    if message.target is not None:
        fields[5] = bytes(message.target)
    if message.buckets:
        fields[6] = message.buckets
    if message.summary is not None:
        summary = message.summary
        fields[7] = summary.differing.to_bytes(8, "big")
        fields[8] = summary.first + summary.last
        fields[9] = b"".join(
            entry.id + entry.version.to_bytes(8, "big") + entry.digest for entry in summary.entries
        )
    if message.ids:
        fields[10] = b"".join(message.ids)
    datagram = bytes((VERSION, message.type)) + pack(fields)
    assert len(datagram) <= DATAGRAM_BYTES_MAX, "the caller budgets items"
    return datagram


def decode_untrusted(datagram: bytes) -> Message:
    """Parse a datagram, or raise BadPacket."""
    if len(datagram) > DATAGRAM_BYTES_MAX:
        raise BadPacket("datagram too long")
    if len(datagram) < 2:
        raise BadPacket("datagram too short")
    if datagram[0] != VERSION:
        raise BadPacket("unknown gossip version")
    try:
        type_ = MessageType(datagram[1])
    except ValueError as exc:
        raise BadPacket("unknown message type") from exc
    fields = Fields.unpack_untrusted(datagram[2:], what="message")
    message = Message(
        type=type_,
        sequence=fields.uint(1, maximum=SEQUENCE_MAX),
        incarnation=fields.uint(2),
        known=fields.uint(3) if fields.has(3) else None,
        items=tuple(_item_untrusted(value) for value in fields.items(4, count_max=ITEMS_MAX)),
        target=_target_untrusted(fields, type_),
        buckets=fields.blob(6, size=BUCKETS_BYTES) if type_ is MessageType.DIGEST else b"",
        summary=_summary_untrusted(fields) if type_ is MessageType.SUMMARY else None,
        ids=_ids_untrusted(fields) if type_ is MessageType.WANT else (),
    )
    fields.done()
    return message


def _item_untrusted(value: object) -> Item:
    if type(value) is tuple and len(value) == 2:
        kind, blob = value
        if type(kind) is int and type(blob) is bytes and 0 <= kind <= ITEM_KIND_MAX:
            return Item(kind, blob)
    raise BadPacket("malformed item")


def _target_untrusted(fields: Fields, type_: MessageType) -> NodeId | None:
    if type_ is MessageType.ACK and not fields.has(5):
        return None
    if type_ in {MessageType.PING_REQ, MessageType.NACK, MessageType.ACK}:
        return NodeId(fields.blob(5, size=KEY_BYTES))
    return None


def _summary_untrusted(fields: Fields) -> Summary:
    differing = int.from_bytes(fields.blob(7, size=8), "big")
    bounds = fields.blob(8, size=2 * ID_BYTES)
    packed = fields.blob(9, maximum=SUMMARY_ENTRIES_MAX * ENTRY_BYTES)
    if len(packed) % ENTRY_BYTES:
        raise BadPacket("summary of bad length")
    entries = tuple(
        EntrySummary(
            packed[at : at + 8],
            int.from_bytes(packed[at + 8 : at + 16], "big"),
            packed[at + 16 : at + 24],
        )
        for at in range(0, len(packed), ENTRY_BYTES)
    )
    return Summary(differing, bounds[:ID_BYTES], bounds[ID_BYTES:], entries)


def _ids_untrusted(fields: Fields) -> tuple[bytes, ...]:
    packed = fields.blob(10, maximum=WANT_IDS_MAX * ID_BYTES)
    if not packed or len(packed) % ID_BYTES:
        raise BadPacket("want of bad length")
    return tuple(packed[at : at + ID_BYTES] for at in range(0, len(packed), ID_BYTES))
