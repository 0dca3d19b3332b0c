"""What meshd's own datagrams on the underlay have in common.

They share one UDP port with WireGuard, whose messages begin with a type byte 1-4 and three zero
bytes.  Ours begin with a magic, so that five bytes tell everything apart:

      0               4   5
     +---------------+---+------------------------------------------+
     | "mesh"        | t | sealed: see `bootstrap.noise`, `path.wire` |
     +---------------+---+------------------------------------------+

    t   1 bootstrap request    newcomer -> member     exactly 1,200 bytes
        2 bootstrap answer     member -> newcomer     at most 1,200 bytes
        3 path probe           member <-> member      at most 1,200 bytes
        4 bootstrap cookie     member -> newcomer     61 bytes: see `bootstrap.cookie`
        5 request with cookie  newcomer -> member     exactly 1,200 bytes
        6 approval hello       newcomer -> member     exactly 1,200 bytes
        7 approval welcome     member -> newcomer     89 bytes: see `bootstrap.approval`
        8 approval question    newcomer -> member     exactly 1,200 bytes
        9 approval reply       member -> newcomer     at most 1,200 bytes
       10 relay hello          member <-> relay       at most 1,200 bytes: see `path.wire`

Rule 1: 1,200 bytes of UDP payload fit, unfragmented, wherever IPv6 works (RFC 8200 section 5: an
        MTU of 1,280), with room for the encapsulations of providers.

Rule 2: work done for a datagram that proves no key is one look-up and one decryption; it is never
        answered, and it puts nothing into any table.  (But for hellos while an operator has opened
        a window for approval: `bootstrap.approval_member` says what those may cost.)
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from meshd.errors import BadPacket

if TYPE_CHECKING:
    from meshd.codec import IPAddress
    from meshd.wg.types import Endpoint

MAGIC = b"mesh"
HEADER_BYTES = len(MAGIC) + 1
DATAGRAM_BYTES_MAX = 1200


class DatagramType(enum.IntEnum):
    """The byte behind the magic.  The values are part of the wire format.  Only append."""

    BOOTSTRAP_REQUEST = 1
    BOOTSTRAP_ANSWER = 2
    PATH_PROBE = 3
    BOOTSTRAP_COOKIE = 4
    REQUEST_WITH_COOKIE = 5
    APPROVAL_HELLO = 6
    APPROVAL_WELCOME = 7
    APPROVAL_QUESTION = 8
    APPROVAL_REPLY = 9
    RELAY_HELLO = 10


class Outgoing(NamedTuple):
    """A datagram to send from meshd's underlay socket."""

    datagram: bytes
    target: Endpoint
    source: IPAddress | None  # the local address to send from; None leaves it to the kernel


class Timer(NamedTuple):
    """When to call `handle_timer`, and why.  The reason is for traces only."""

    at: float
    reason: str


def header(kind: DatagramType) -> bytes:
    """Return the five bytes a datagram of this kind begins with."""
    return MAGIC + bytes([kind])


def datagram_type_untrusted(datagram: bytes) -> DatagramType:
    """Tell the kind of a datagram from its first five bytes."""
    if len(datagram) > DATAGRAM_BYTES_MAX:
        raise BadPacket("datagram too long")
    if len(datagram) <= HEADER_BYTES or not datagram.startswith(MAGIC):
        raise BadPacket("not a meshd datagram")
    try:
        return DatagramType(datagram[len(MAGIC)])
    except ValueError as exc:
        raise BadPacket("unknown datagram type") from exc


class ReplayGuard:
    """Remembers the newest `capacity` authenticated datagrams by something unique in each.

    It stops the cheap attack: sending again, at once and at will, what was recorded.  A replay
    older than its memory gets through, so nothing may depend on the guard for safety: each user
    of it says why a replay changes nothing even then.
    """

    def __init__(self, capacity: int) -> None:
        assert capacity > 0
        self._capacity = capacity
        self._seen: dict[bytes, None] = {}

    def __contains__(self, mark: bytes) -> bool:
        return mark in self._seen

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, mark: bytes) -> None:
        """Remember a datagram, and forget the oldest one when there are too many."""
        self._seen[mark] = None
        if len(self._seen) > self._capacity:
            del self._seen[next(iter(self._seen))]


class TokenBucket:
    """Allows `rate` actions a second in the long run, and `burst` of them at once."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated_at")

    def __init__(self, *, rate: float, burst: int, now: float) -> None:
        assert rate > 0
        assert burst >= 1
        self._rate = rate
        self._burst = float(burst)
        self._tokens = float(burst)
        self._updated_at = now

    def take(self, now: float, *, cost: float = 1.0) -> bool:
        """Spend one token, or `cost` of them.  Return whether there were as many."""
        passed = max(0.0, now - self._updated_at)
        self._updated_at = now
        self._tokens = min(self._burst, self._tokens + passed * self._rate)
        if self._tokens < cost:
            return False
        self._tokens -= cost
        return True


def pad(body: bytes, size: int) -> bytes:
    """Return a body behind its length, filled up with zeros to at least `size` bytes.

    Padding makes a question as long as its answer, so that nobody is used to multiply traffic
    towards a forged source, and hides what is inside.
    """
    return (len(body).to_bytes(2, "big") + body).ljust(size, b"\0")


def unpad_untrusted(padded: bytes) -> bytes:
    """Return what `pad` was given."""
    if len(padded) < 2:
        raise BadPacket("padding malformed")
    end = 2 + int.from_bytes(padded[:2], "big")
    if end > len(padded) or any(padded[end:]):
        raise BadPacket("padding malformed")
    return padded[2:end]
