"""Pings on their way, so that an ack is believed only if it answers one.

Rule 1: an ack counts once, and only from the member that the ping was sent to.

Rule 2: a ping that was not answered for `_PING_LIFETIME`, or that is the oldest of `PINGS_MAX`, is
        forgotten.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.gossip.wire import SEQUENCE_MAX

if TYPE_CHECKING:
    from random import Random

    from meshd.keys import NodeId

PINGS_MAX = 1024
RELAYED_MAX = 256  # of them, those sent because another member asked
_PING_LIFETIME = 10.0


class PingPurpose(enum.Enum):
    """Why a ping was sent: decides what its ack means."""

    PROBE = enum.auto()
    CONTACT = enum.auto()
    WATCH = enum.auto()
    STREAM = enum.auto()  # over TCP
    OPERATOR = enum.auto()
    RELAYED = enum.auto()


@dataclass(frozen=True, slots=True)
class SentPing:
    """A ping that may still be answered."""

    target: NodeId
    sent_at: float
    purpose: PingPurpose
    requester: NodeId | None = None  # of a relayed one: who asked, and by what sequence
    requester_sequence: int = 0
    crowded: bool = False  # sent while many meet at once


class PingTable:
    """Pings on their way, by sequence."""

    def __init__(self, rng: Random) -> None:
        # Beginning anywhere, so that an ack to a former run is not taken for one to this.
        self._sequence = rng.getrandbits(32)
        self._pings: dict[int, SentPing] = {}
        self._relayed = 0

    def __len__(self) -> int:
        return len(self._pings)

    @property
    def relay_full(self) -> bool:
        """Whether no more pings are sent for others just now."""
        return self._relayed >= RELAYED_MAX

    def next_sequence(self) -> int:
        """Return a sequence that was not used lately."""
        self._sequence = (self._sequence + 1) & SEQUENCE_MAX
        return self._sequence

    def add(self, ping: SentPing) -> int:
        """Remember a ping.  Return the sequence to send it with."""
        while self._pings:
            sequence, oldest = next(iter(self._pings.items()))
            stale = oldest.sent_at + _PING_LIFETIME < ping.sent_at
            if not stale and len(self._pings) < PINGS_MAX:
                break
            self.pop(sequence)
        sequence = self.next_sequence()
        self._pings[sequence] = ping
        self._relayed += ping.purpose is PingPurpose.RELAYED
        return sequence

    def pop(self, sequence: int) -> SentPing | None:
        """Forget a ping."""
        ping = self._pings.pop(sequence, None)
        if ping is not None:
            self._relayed -= ping.purpose is PingPurpose.RELAYED
        return ping

    def answered(self, sequence: int, source: NodeId) -> SentPing | None:
        """Return the ping that an ack answers, once, and only to whom the ping was sent."""
        ping = self._pings.get(sequence)
        if ping is None or ping.target != source:
            return None
        return self.pop(sequence)
