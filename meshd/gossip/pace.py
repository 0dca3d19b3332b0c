"""How soon what is queued is passed on.

Rule 1: news goes out at once, but no sooner than `gossip_interval_min` after the last round.

Rule 2: what has been sent half as often as it will be is no news: it goes out every
        `gossip_interval`, to the few that everybody else has missed.

The number of transmissions is the same as with one interval for all, and so is the traffic; but an
epidemic in a hundred members is through in four rounds, and each of them is four times shorter.

    sends of an item    0   1   2   3   4   5 │ 6   7   8   9  10  11
                        at most 0.05 s apart  │ 0.2 s apart
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.gossip.config import GossipConfig


def gossip_pause(sends: int, limit: int, config: GossipConfig) -> float:
    """Return the pause between rounds, given how often the newest item was sent, of how often."""
    return config.gossip_interval_min if 2 * sends < limit else config.gossip_interval
