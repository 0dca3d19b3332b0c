"""What members hand to one another through the tunnel besides gossip: requests to admit somebody.

     0      1
    ┌──────┬──────────────────────────────────────────────┐
    │ mark │ see `meshd.bootstrap.messages`               │     at most 1,232 bytes
    └──────┴──────────────────────────────────────────────┘

The mark is no version of gossip's, so that both share one port.
"""

from __future__ import annotations

import enum


class Handover(enum.IntEnum):
    """The first byte.  The values are part of the wire format.  Only append."""

    ADMISSION_REQUEST = 0xF1
    ADMISSION_VERDICT = 0xF2


_MARKS = frozenset(Handover)


def is_handover(datagram: bytes) -> bool:
    """Whether a datagram from the tunnel is for `meshd.engine.admission`, not for gossip."""
    return bool(datagram) and datagram[0] in _MARKS


def mark(kind: Handover, data: bytes) -> bytes:
    """Return the datagram that carries `data`."""
    return bytes([kind]) + data


def split(datagram: bytes) -> tuple[Handover, bytes]:
    """Undo `mark`, for a datagram of which `is_handover` holds."""
    return Handover(datagram[0]), datagram[1:]
