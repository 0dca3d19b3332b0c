"""Who looks at a suspect at once, and keeps looking.

In SWIM a suspicion is confirmed by whoever happens to probe the suspect next, and it learns of its
accusation when gossip happens to reach it.  Here both are somebody's duty:

Rule 1: the observers of a member are the next `observers` live members after it on the circle of
        ids (see `member_table`): nobody has to say who they are.

Rule 2: whoever accuses a member sends its accusation to the member and to its observers at once,
        and looks on with them.

Rule 3: an observer probes the suspect when it hears of the accusation, and then pings it every
        `watch_interval`, or as often as its round trips allow, until it is alive or dead.  Each of
        these carries the accusation, so that a suspect that lives learns of it through any loss.
        With each goes one to some other member, which answers if it has heard a refutation.

Rule 4: everybody else looks when a suspicion has lived for as long as a confirmed one would
        (`timeout_min`), and again each such span: it may have missed the refutation.  So nobody
        concludes a death on few accusations without having asked the dead.

Rule 5: what an observer finds is only its own word: it signs an accusation of its own, or spreads
        the refutation that it was given.  To be a member's observer is no power: anybody may accuse
        anyone, and every accuser counts once.

     accuser ──accusation──▶ o1, o2, o3, o4, o5 ──ping──▶ suspect
                                 ◀── refutation: news to all, at once
                                 ◀── silence: an accusation by o1, …
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.gossip.config import GossipConfig
    from meshd.gossip.member_table import MemberTable
    from meshd.keys import NodeId

WATCHED_MAX = 16  # suspects at once: where more fall silent, the trouble is another one


def observers_of(suspect: NodeId, table: MemberTable, config: GossipConfig) -> list[NodeId]:
    """Return who is to look at a suspect, perhaps ourselves among them (rule 1)."""
    return table.followers(suspect, config.observers)
