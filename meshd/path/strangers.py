"""Pings of nodes that are not peers: held, unanswered, while their record is being verified.

Anybody with the mesh's bootstrap key can make one, whoever they say they are.  So they are few,
they are let go of soon, and nothing follows from them until `Agent.update_peer` names their
sender.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meshd.underlay import TokenBucket

if TYPE_CHECKING:
    from meshd.codec import IPAddress
    from meshd.keys import NodeId
    from meshd.path.wire import Probe
    from meshd.wg.types import Endpoint

# Each costs us a key agreement, and whoever verifies its record a few signatures.
STRANGERS_PER_SECOND_MAX = 50
STRANGERS_BURST_MAX = 256
PARKED_MAX = 256
PARKED_LIFETIME = 5.0


class Parked(NamedTuple):
    """A stranger's ping, and how it came."""

    ping: Probe
    source: Endpoint
    local: IPAddress | None
    at: float


class Strangers:
    """See the module docstring."""

    def __init__(self, *, now: float) -> None:
        self._limit = TokenBucket(rate=STRANGERS_PER_SECOND_MAX, burst=STRANGERS_BURST_MAX, now=now)
        self._parked: dict[NodeId, Parked] = {}

    def __len__(self) -> int:
        return len(self._parked)

    def admit(self, now: float) -> bool:
        """Whether one more of them may be looked at."""
        return self._limit.take(now)

    def park(self, node: NodeId, parked: Parked) -> None:
        """Hold a ping; a newer one of the same node replaces it."""
        self._parked.pop(node, None)
        self._parked[node] = parked
        if len(self._parked) > PARKED_MAX:
            del self._parked[next(iter(self._parked))]

    def take(self, node: NodeId, now: float) -> Parked | None:
        """Take the ping of a node that has become a peer, unless it is too old."""
        parked = self._parked.pop(node, None)
        return parked if parked is not None and now - parked.at < PARKED_LIFETIME else None
