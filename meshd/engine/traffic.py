"""Through which tunnels something goes besides what meshd itself sends.

WireGuard's counters say how much has gone through each tunnel; what of that was gossip or a
handshake is known here, so what is left over is traffic, and its path is watched.

    look ──── 1 s ──── look          bytes = sent, or received, since the last look
                                           - our own datagrams, as WireGuard makes them
                                           - probes over TCP
                                           - a handshake, where there has been one

Rule 1: it is looked only while there is a path worth watching: one that has an alternative, or may
        get one from a relay.

Rule 2: looking takes a hundredth of the time at the most: with many peers it is done less often.

Rule 3: what has come in and waits in our own socket has been counted by WireGuard, and not yet by
        us.  On a busy machine that looks like traffic, and watching would keep it busy; so what is
        received counts when it does at two looks in a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.engine.counters import SECONDS_PER_PEER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.engine.engine import Engine
    from meshd.keys import NodeId
    from meshd.wg.types import PeerStatus

LOOK_INTERVAL_MIN = 1.0
LOOK_SHARE_MAX = 0.01  # of the time
BYTES_MIN = 400  # between two looks: more than keepalives, and what ICMP errors tell
HANDSHAKE_BYTES = 148 + 92 + 32  # initiation, response, and the keepalive that confirms
STREAM_BYTES = 1_500  # of a probe over TCP, each way: the connection, the frame, repetitions

_DATA_BYTES = 32  # of a WireGuard message besides the packet, which is padded to 16
_OVERLAY_BYTES = 48  # IPv6 and UDP


@dataclass(slots=True)
class _Count:
    """Bytes each way."""

    sent: int = 0
    received: int = 0


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the counters were at the last look."""

    peer: PeerStatus
    received_more: bool = False  # than we knew of: rule 3


class TrafficWatch:
    """See the module docstring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: dict[NodeId, _Seen] = {}
        self._ours: dict[NodeId, _Count] = {}  # since
        self.at = math.inf  # when to look

    def wake(self, now: float) -> None:
        """Look soon: there may be a path worth watching."""
        self.at = min(self.at, now + LOOK_INTERVAL_MIN)

    def note_sent(self, node: NodeId, payload: bytes) -> None:
        """Take that a datagram of meshd's goes through a member's tunnel."""
        if self.at < math.inf:
            self._ours.setdefault(node, _Count()).sent += _in_tunnel(payload)

    def note_received(self, node: NodeId, payload: bytes) -> None:
        """Take that a datagram of meshd's has come through a member's tunnel."""
        if self.at < math.inf:
            self._ours.setdefault(node, _Count()).received += _in_tunnel(payload)

    def note_stream(self, node: NodeId) -> None:
        """Take that there is a connection of meshd's through a member's tunnel."""
        if self.at < math.inf:
            ours = self._ours.setdefault(node, _Count())
            ours.sent += STREAM_BYTES
            ours.received += STREAM_BYTES

    def forget(self, node: NodeId) -> None:
        """Forget a node that is no member any more."""
        self._seen.pop(node, None)
        self._ours.pop(node, None)

    def observed(self, peers: Iterable[tuple[NodeId, PeerStatus]], now: float) -> None:
        """Take what the counters are: tell the path agent who has traffic."""
        if now < self.at:
            return
        path, worth, interval = self._engine.path, False, self._interval
        relays = any(standing.record.relay for _, standing in self._engine.others())
        for node, peer in peers:
            before = self._seen.get(node)
            ours = self._ours.pop(node, _Count())
            self._seen[node] = _Seen(peer)
            if not path.worth_watching(node, relays=relays):
                continue
            worth = True
            if before is None:
                continue
            handshake = peer.last_handshake_time != before.peer.last_handshake_time
            least = BYTES_MIN + HANDSHAKE_BYTES * handshake
            sends = peer.tx_bytes - before.peer.tx_bytes - ours.sent >= least
            receives = peer.rx_bytes - before.peer.rx_bytes - ours.received >= least
            self._seen[node] = _Seen(peer, received_more=receives)
            if sends or (receives and before.received_more):
                path.traffic(node, now, lasts=2.5 * interval)
        self.at = now + interval if worth else math.inf
        if not worth:
            self._seen.clear()
            self._ours.clear()

    def give_up(self, now: float) -> None:
        """Take that the counters cannot be read for the moment."""
        if self.at < math.inf:
            self.at = now + self._interval

    @property
    def _interval(self) -> float:
        return max(LOOK_INTERVAL_MIN, len(self._seen) * SECONDS_PER_PEER / LOOK_SHARE_MAX)


def _in_tunnel(payload: bytes) -> int:
    """Return how many bytes WireGuard counts for a datagram of ours."""
    return _DATA_BYTES + -(-(_OVERLAY_BYTES + len(payload)) // 16) * 16
