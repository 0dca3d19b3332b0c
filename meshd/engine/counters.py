"""Whether packets come through the tunnels of members whose probes are late.

The gossip core asks (`EvidenceWanted`); WireGuard's receive counters answer.  They are told only
when somebody looks, so the device is looked at twice: at once, for what a counter was when the
probe turned out to be late, and a while later, for whether it has moved since.

    late            rx = 7140                                       rx = 7288: carried
     │ look ─────────▶│                    span                        │◀───────── look
     ├────────────────┼────────────────────────────────────────────────┤
     0                                                     2/3 of the least probe timeout

Rule 1: one look serves all who wait for one, and so does the reconciler's own.  There is a pause
        between two looks, the longer the more peers there are, whatever is asked for meanwhile.

Rule 2: a counter that is lower than before was reset with its peer, and tells nothing.

Rule 3: a look that fails ends all waiting.  The core goes by what it has, and so it does where
        there are so many peers that a look would take the time that others wait for our acks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.keys import NodeId

LOOK_INTERVAL_MIN = 0.05
SECONDS_PER_PEER = 10e-6  # that a look takes
LOOK_INTERVAL_PER_PEER = 4 * SECONDS_PER_PEER  # a quarter of the time at the most
PEERS_MAX = 4_000  # 40 ms


@dataclass(slots=True)
class _Wish:
    """To know of one member whether its counter moves."""

    at: float  # when the next look is due
    rx_bytes: int | None = None  # at the first look


class CounterWatch:
    """See the module docstring."""

    def __init__(self, *, span: float, now: float) -> None:
        """`span` is the time between the two looks."""
        self._span = span
        self._wishes: dict[NodeId, _Wish] = {}
        self._earliest = now  # when the device may be looked at again
        self._peers = 0

    def want(self, node: NodeId, now: float) -> None:
        """Begin to watch a member's counter; from now on, even if it is watched already."""
        if self._peers <= PEERS_MAX:
            self._wishes[node] = _Wish(now)

    @property
    def at(self) -> float:
        """When somebody should look: infinity if never."""
        if not self._wishes:
            return math.inf
        return max(self._earliest, min(wish.at for wish in self._wishes.values()))

    def observed(self, rx_bytes: Callable[[NodeId], int | None], now: float) -> list[NodeId]:
        """Take what the counters are, None for a member without a peer.

        Returns whose has moved.  Those are watched no longer, nor are those whose time is over.
        """
        moved: list[NodeId] = []
        for node, wish in list(self._wishes.items()):
            count = rx_bytes(node)
            if count is None:
                del self._wishes[node]
            elif wish.rx_bytes is None:
                wish.rx_bytes, wish.at = count, now + self._span
            elif count > wish.rx_bytes:
                moved.append(node)
                del self._wishes[node]
            elif now >= wish.at:
                del self._wishes[node]
        return moved

    def looked(self, peers: int, now: float) -> None:
        """Note that a device with so many peers was read: not again too soon."""
        self._peers = peers
        self._earliest = now + max(LOOK_INTERVAL_MIN, LOOK_INTERVAL_PER_PEER * peers)

    def give_up(self) -> None:
        """Stop watching: the counters cannot be read."""
        self._wishes.clear()
