"""How much work one member may make us by gossip.

    unit: about what it takes to verify one signature, 50 µs on a small machine

    any datagram          1, and 1 for each 104 bytes: no statement is shorter
    DIGEST               64  as many datagrams as its answer may have
    WANT                 32  as many facts as its answer may have

Rule 1: it is asked before a datagram is parsed, so what is too much costs next to nothing.

Rule 2: the burst is what a newcomer and its partner exchange in a mesh of ten thousand: 3,400
        datagrams of three records each and 64 SUMMARYs come to 41,000 units one way, 313 WANTs
        and some DIGESTs to 14,000 the other.  In the long run a member may take a tenth of a core.

Rule 3: one that is over its budget is not heard, so to us it is silent, like one that is off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.gossip.sync import SUMMARIES_MAX, WINDOW_MAX
from meshd.gossip.wire import MessageType
from meshd.underlay import TokenBucket

if TYPE_CHECKING:
    from meshd.keys import NodeId

UNITS_PER_SECOND_MAX = 2_000
UNITS_BURST_MAX = 50_000
STATEMENT_BYTES_MIN = 104
TOO_MUCH = "too much gossip from one member"  # how it is counted

_EXTRA: dict[int, int] = {MessageType.DIGEST: SUMMARIES_MAX, MessageType.WANT: WINDOW_MAX}


class Budget:
    """One token bucket for each member, from its first datagram until it is one no more."""

    def __init__(self) -> None:
        self._buckets: dict[NodeId, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, source: NodeId, datagram: bytes, now: float) -> bool:
        """Spend what a datagram from a member may cost.  Return whether there was as much."""
        bucket = self._buckets.get(source)
        if bucket is None:
            bucket = TokenBucket(rate=UNITS_PER_SECOND_MAX, burst=UNITS_BURST_MAX, now=now)
            self._buckets[source] = bucket
        return bucket.take(now, cost=cost_of(datagram))

    def forget(self, node: NodeId) -> None:
        """Drop the bucket of one that is no member any more."""
        self._buckets.pop(node, None)


def cost_of(datagram: bytes) -> int:
    """Return how much work a datagram may make, in units."""
    extra = _EXTRA.get(datagram[1], 0) if len(datagram) > 1 else 0
    return 1 + len(datagram) // STATEMENT_BYTES_MIN + extra
