"""Through which tunnels something goes besides what meshd itself sends.

WireGuard's counters say how much has gone through each tunnel; what of that was gossip or a
handshake is known here, so what is left over is traffic, and its path is watched.

    look ──── 1 s ──── look          bytes = received + sent since the last look
                                           - our own datagrams, as WireGuard makes them
                                           - a handshake, where there has been one

Rule 1: it is looked only while there is a path worth watching: one that has an alternative, or may
        get one from a relay.

Rule 2: looking takes a hundredth of the time at the most: with many peers it is done less often.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meshd.engine.counters import SECONDS_PER_PEER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.engine.engine import Engine
    from meshd.keys import NodeId
    from meshd.wg.types import PeerStatus

LOOK_INTERVAL_MIN = 1.0
LOOK_SHARE_MAX = 0.01  # of the time
BYTES_MIN = 200  # between two looks: more than a few keepalives
HANDSHAKE_BYTES = 148 + 92 + 32  # initiation, response, and the keepalive that confirms

_DATA_BYTES = 32  # of a WireGuard message besides the packet, which is padded to 16
_OVERLAY_BYTES = 48  # IPv6 and UDP


class TrafficWatch:
    """See the module docstring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._counts: dict[NodeId, tuple[int, float]] = {}  # bytes and handshake, at the last look
        self._ours: dict[NodeId, int] = {}  # bytes since
        self.at = math.inf  # when to look

    def wake(self, now: float) -> None:
        """Look soon: there may be a path worth watching."""
        self.at = min(self.at, now + LOOK_INTERVAL_MIN)

    def note_own(self, node: NodeId, payload: bytes) -> None:
        """Take that a datagram of meshd's goes through a member's tunnel, or has come so."""
        size = _OVERLAY_BYTES + len(payload)
        if self.at < math.inf:
            self._ours[node] = self._ours.get(node, 0) + _DATA_BYTES + -(-size // 16) * 16

    def forget(self, node: NodeId) -> None:
        """Forget a node that is no member any more."""
        self._counts.pop(node, None)
        self._ours.pop(node, None)

    def observed(self, peers: Iterable[tuple[NodeId, PeerStatus]], now: float) -> None:
        """Take what the counters are: tell the path agent who has traffic."""
        if now < self.at:
            return
        path, worth, interval = self._engine.path, False, self._interval
        relays = any(standing.record.relay for _, standing in self._engine.others())
        for node, peer in peers:
            before = self._counts.get(node)
            self._counts[node] = peer.rx_bytes + peer.tx_bytes, peer.last_handshake_time
            ours = self._ours.pop(node, 0)
            if not path.worth_watching(node, relays=relays):
                continue
            worth = True
            if before is None:
                continue
            handshake = HANDSHAKE_BYTES * (peer.last_handshake_time != before[1])
            if peer.rx_bytes + peer.tx_bytes - before[0] - ours - handshake >= BYTES_MIN:
                path.traffic(node, now, lasts=2.5 * interval)
        self.at = now + interval if worth else math.inf
        if not worth:
            self._counts.clear()
            self._ours.clear()

    def give_up(self, now: float) -> None:
        """Take that the counters cannot be read for the moment."""
        if self.at < math.inf:
            self.at = now + self._interval

    @property
    def _interval(self) -> float:
        return max(LOOK_INTERVAL_MIN, len(self._counts) * SECONDS_PER_PEER / LOOK_SHARE_MAX)
