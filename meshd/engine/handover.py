"""What members hand to one another through the tunnel besides gossip.

     0      1
    ┌──────┬──────────────────────────────────────────────┐
    │ mark │ what the part that it is for makes of it     │     at most 1,232 bytes
    └──────┴──────────────────────────────────────────────┘

    0xE0 - 0xE5  relays                       `meshd.engine.relays`
    0xE8         a call, to ping us at once   `meshd.engine.calling`
    0xF1, 0xF2   requests to admit somebody   `meshd.engine.admission`
    0xF3, 0xF4   renewals of credentials      `meshd.engine.renewal`
    0xF8, 0xF9   the bootstrap key            `meshd.engine.epochs`
    0xFA         a revocation, to its subject `meshd.engine.revoking`
    0xFB         the sender's own record      `meshd.engine.rotation`
    0xFC, 0xFD   a new node key               `meshd.engine.rekeying`

The mark is no version of gossip's, so that both share one port.  The engine knows which part of it
each mark is for (`Receiver`).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from meshd.keys import NodeId

# From one member: as many as a seed may have to hand over when it is asked by all at once.  Each
# may cost a few signatures.
HANDOVERS_PER_SECOND_MAX = 100
HANDOVERS_BURST_MAX = 200


class Handover(enum.IntEnum):
    """The first byte.  The values are part of the wire format.  Only append."""

    RELAY_REQUEST = 0xE0
    RELAY_GRANT = 0xE1
    RELAY_REFUSED = 0xE2
    RELAY_RELEASE = 0xE3
    RELAY_DRAINING = 0xE4
    RELAY_GONE = 0xE5
    CALL = 0xE8
    ADMISSION_REQUEST = 0xF1
    ADMISSION_VERDICT = 0xF2
    RENEWAL_REQUEST = 0xF3
    RENEWAL_VERDICT = 0xF4
    KEY_OFFER = 0xF5
    KEY_ANSWER = 0xF6
    KEY_CONFIRM = 0xF7
    BOOTSTRAP_WANTED = 0xF8
    BOOTSTRAP_KEY = 0xF9
    REVOKED = 0xFA
    OWN_RECORD = 0xFB
    REKEY_REQUEST = 0xFC
    REKEY_VERDICT = 0xFD


class Receiver(Protocol):
    """A part of the engine that takes what bears certain marks."""

    def receive_handover(self, datagram: bytes, source: NodeId, now: float, wall: float) -> None:
        """Handle a datagram, which may be anything at all behind its mark, from a member."""


_MARKS = frozenset(Handover)


def is_handover(datagram: bytes) -> bool:
    """Whether a datagram from the tunnel is for a `Receiver`, not for gossip."""
    return bool(datagram) and datagram[0] in _MARKS


def mark(kind: Handover, data: bytes) -> bytes:
    """Return the datagram that carries `data`."""
    return bytes([kind]) + data


def split(datagram: bytes) -> tuple[Handover, bytes]:
    """Undo `mark`, for a datagram of which `is_handover` holds."""
    return Handover(datagram[0]), datagram[1:]
