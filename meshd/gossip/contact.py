"""When to ping a member that has not been heard, or is dead.

Rule 1: nobody pings a member whose kernel may not know us: WireGuard repeats a lost handshake only
        after 5 s (REKEY_TIMEOUT).  The first ping goes out when the path layer says that both sides
        are ready, or, where it cannot tell, after `first_contact_timeout`.

Rule 2: of two that become ready for each other, the one with the higher id waits, so that one
        handshake is made and not two that collide.  It waits for `contact_stagger`, and as long
        as the other may take to learn that it is ready, and its initiation to arrive: up to one
        and a half round trips and half of one.

Rule 3: nobody is given up.  A member that stays silent is pinged again, less and less often, so
        that a partition of whatever length heals by itself.

Rule 4: all pings to silent members together are no more than one every `retry_spacing`, however
        many are silent: any one that answers brings news of the others.

    silent for      0 s ──── 10 min ─────────── 1 day ──────▶
    a ping every    2,4,8,10 s   60 s               600 s        (times 0.75 to 1.25)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

    from meshd.gossip.config import GossipConfig
    from meshd.keys import NodeId


CONTACT_STAGGER_ROUND_TRIPS = 2.5


def contact_delay(own: NodeId, other: NodeId, config: GossipConfig, rtt: float = 0.0) -> float:
    """Return how long to wait once both sides are ready (rule 2)."""
    if own < other:
        return 0.0
    return config.contact_stagger + CONTACT_STAGGER_ROUND_TRIPS * rtt


def retry_delay(
    tries: int,
    *,
    first: float,
    silent_for: float,
    silent_members: int,
    config: GossipConfig,
    rng: Random,
) -> float:
    """Return how long to wait for an answer before pinging again (rules 3 and 4)."""
    if silent_for > config.retry_slow_lifetime:
        delay = config.retry_idle
    elif silent_for > config.retry_fast_lifetime:
        delay = config.retry_slow
    else:
        # The exponent is bounded because a float overflows after a thousand tries.
        delay = min(first * 2.0 ** min(tries, 16), config.retry_max)
    delay = max(delay, config.retry_spacing * silent_members)
    return delay * (0.75 + 0.5 * rng.random())
