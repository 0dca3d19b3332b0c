"""What else speaks for or against a member that has not answered a probe.

Rule 1: a member that was heard since the probe began is alive, whatever became of our ping.

Rule 2: a member that has said something newer of itself since then, which only it can sign, is
        alive, whoever brought the news.

Rule 3: packets through its tunnel since then (WireGuard's receive counter has moved) show that its
        host is alive and the path works.  That is no word of its daemon, so it excuses no more than
        `evidence_max` probes in a row, and each of them is followed by another at once.

Rule 4: an ICMP error from the member's own address, which came through its tunnel, says that its
        daemon does not listen.  It is accused at once, and nothing excuses it.

Rule 5: a firewall that rejects sends the same error.  A member that was there after all
        `FAULTS_MIN` times, and has not answered us in between, is behind one: it is left to the
        probes, which find the path at fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.gossip.config import GossipConfig
    from meshd.gossip.member import Member

FAULTS_MIN = 2  # failures of the path in a row that are no chance


def lives(member: Member, *, since: float, incarnation: int) -> bool:
    """Return whether a member has been heard, or has spoken, since a probe began (rules 1, 2)."""
    return member.heard_at >= since or member.incarnation > incarnation


def believable(member: Member, config: GossipConfig) -> bool:
    """Return whether an ICMP error means what it says (rules 4, 5)."""
    return config.evidence_max > 0 and member.faults < FAULTS_MIN


def excused(member: Member, *, since: float, config: GossipConfig) -> bool:
    """Return whether traffic excuses a member's silence once more (rule 3), and count it."""
    if member.carried_at < since or member.excuses >= config.evidence_max:
        return False
    member.excuses += 1
    return True
