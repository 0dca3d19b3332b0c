"""What members and their relays say to each other, inside their tunnels.

    mark  message   from, to          1          2               3         4         5
    ────  ────────  ────────────────  ─────────  ──────────────  ────────  ────────  ─────────
    0xE0  request   member to relay   other
    0xE1  grant     relay to both     other      port            lifetime  rtt       load
    0xE2  refused   relay to member   other      reason
    0xE3  release   member to relay   other
    0xE4  draining  relay to members  draining
    0xE5  gone      relay to both     other

    other     id of the member at the other end of the pair
    port      of the relay, for the receiver to use as if it were the other's
    lifetime  seconds, 1 to 3,600, until the pair ends if nobody asks again
    rtt       microseconds from the relay to the other and back; absent = not measured
    load      per cent of the relay's pairs that are allotted, 0 to 100; absent = 0
    reason    see `Reason`; one that is not known is read as OTHER
    draining  bool: no new pairs, and those there are should move; absent = false, no longer so

Each is a map.  They need no signature: WireGuard lets nobody but the member through.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from meshd.codec import Fields, pack
from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, NodeId

PORT_MAX = 0xFFFF
LIFETIME_MAX = 3600
RTT_MICROSECONDS_MAX = 60_000_000
LOAD_MAX = 100
REASON_MAX = 0xFFFF


class Reason(enum.IntEnum):
    """Why a relay does not relay.  The values are part of the wire format.  Only append."""

    OTHER = 0
    NOT_RELAYING = 1
    DRAINING = 2
    FULL = 3
    TOO_MANY = 4  # pairs of one of the two members
    UNKNOWN_MEMBER = 5  # the other is none, as far as the relay knows
    TOO_OFTEN = 6


@dataclass(frozen=True, slots=True)
class Request:
    """Please relay between the sender and the other; or go on doing so."""

    other: NodeId


@dataclass(frozen=True, slots=True)
class Grant:
    """What is sent to `port` of the relay comes out at the other, once both have said hello."""

    other: NodeId
    port: int
    lifetime: int  # seconds
    rtt: float | None = None  # seconds, from the relay to the other
    load: int = 0  # per cent


@dataclass(frozen=True, slots=True)
class Refused:
    """The relay does not, and why."""

    other: NodeId
    reason: Reason


@dataclass(frozen=True, slots=True)
class Release:
    """The sender wants the pair of itself and the other no more."""

    other: NodeId


@dataclass(frozen=True, slots=True)
class Draining:
    """The relay is being taken out of service, or is back."""

    draining: bool


@dataclass(frozen=True, slots=True)
class Gone:
    """The relay has nothing for the pair of the receiver and the other, from here on."""

    other: NodeId


Message: TypeAlias = Request | Grant | Refused | Release | Draining | Gone


def encode(message: Message) -> bytes:
    """Return the map of a message."""
    match message:
        case Grant(other, port, lifetime, rtt, load):
            fields: dict[int, object] = {1: other, 2: port, 3: lifetime}
            if rtt is not None:
                fields[4] = min(round(rtt * 1e6), RTT_MICROSECONDS_MAX)
            if load:
                fields[5] = load
            return pack(fields)
        case Refused(other, reason):
            return pack({1: other, 2: int(reason)})
        case Draining(draining):
            return pack({1: True} if draining else {})
        case Request(other) | Release(other) | Gone(other):
            return pack({1: other})


def decode_request_untrusted(data: bytes) -> Request:
    """Parse a request."""
    return Request(_only_other_untrusted(data, "relay request"))


def decode_grant_untrusted(data: bytes) -> Grant:
    """Parse a grant."""
    fields = Fields.unpack_untrusted(data, what="relay grant")
    port = fields.uint(2, maximum=PORT_MAX)
    lifetime = fields.uint(3, maximum=LIFETIME_MAX)
    if not port or not lifetime:
        raise BadPacket("relay grant of nothing")
    grant = Grant(
        _other(fields),
        port,
        lifetime,
        rtt=fields.uint(4, maximum=RTT_MICROSECONDS_MAX) / 1e6 if fields.has(4) else None,
        load=fields.uint(5, maximum=LOAD_MAX, default=0),
    )
    fields.done()
    return grant


def decode_refused_untrusted(data: bytes) -> Refused:
    """Parse a refusal."""
    fields = Fields.unpack_untrusted(data, what="relay refusal")
    number = fields.uint(2, maximum=REASON_MAX)
    reason = Reason(number) if number in set(Reason) else Reason.OTHER
    refused = Refused(_other(fields), reason)
    fields.done()
    return refused


def decode_release_untrusted(data: bytes) -> Release:
    """Parse a release."""
    return Release(_only_other_untrusted(data, "relay release"))


def decode_draining_untrusted(data: bytes) -> Draining:
    """Parse what a relay says of its service."""
    fields = Fields.unpack_untrusted(data, what="relay draining")
    draining = Draining(fields.flag(1))
    fields.done()
    return draining


def decode_gone_untrusted(data: bytes) -> Gone:
    """Parse the end of a pair."""
    return Gone(_only_other_untrusted(data, "relay gone"))


def _only_other_untrusted(data: bytes, what: str) -> NodeId:
    fields = Fields.unpack_untrusted(data, what=what)
    other = _other(fields)
    fields.done()
    return other


def _other(fields: Fields) -> NodeId:
    return NodeId(fields.blob(1, size=KEY_BYTES))
