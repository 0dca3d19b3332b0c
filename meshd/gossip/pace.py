"""How soon what is queued is passed on.

Rule 1: news goes out at once, but no sooner than `gossip_interval_min` after the last round.

Rule 2: where there is more to tell than a few datagrams hold there is no hurry: a whole mesh
        starts, merges or falls apart, and everybody has enough to read.  A few accusations hurry
        even so.

Rule 3: what has been sent half as often as it will be is no news: it goes out every
        `gossip_interval`, to the few that everybody else has missed.

Rule 4: what decides on the rest, a revocation, does not wait for rounds: the member at which it
        begins tells all live ones at once, or URGENT_MAX of them.  The rounds follow, for whom that
        has missed.  Those that hear of it do not do the same, or each would cost n² datagrams.

The number of transmissions is the same as with one interval for all, and so is the traffic; but an
epidemic in a hundred members is through in four rounds, and each of them is four times shorter.

    sends of an item    0   1   2   3   4   5 │ 6   7   8   9  10  11
    little to tell      at most 0.05 s apart  │ 0.2 s apart
    much to tell        0.2 s apart
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.gossip.broadcast import BACKLOG_MIN

URGENT_MAX = 256  # datagrams in one go

if TYPE_CHECKING:
    from meshd.gossip.broadcast import BroadcastQueue
    from meshd.gossip.config import GossipConfig


def gossip_pause(broadcasts: BroadcastQueue, members: int, config: GossipConfig) -> float:
    """Return the pause between rounds.  There is something to tell."""
    news = 2 * broadcasts.sends_min < broadcasts.limit(members)
    few = not broadcasts.backlogged or 0 < broadcasts.accusations <= BACKLOG_MIN
    return config.gossip_interval_min if news and few else config.gossip_interval
