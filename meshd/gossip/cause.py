"""Why what is shown of a member has changed: for people, and for programs that ask."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.gossip.claim import MemberState

if TYPE_CHECKING:
    from meshd.gossip.claim import Belief, Claim, Testimony
    from meshd.keys import NodeId


class CauseKind(enum.StrEnum):
    """What has happened.  The values are in the JSON of events.  Only append."""

    HEARD = "heard"  # a message came through its tunnel
    CLAIMED = "claimed"  # its own word: alive, or back
    REFUTED = "refuted"  # its own word against an accusation
    SUSPECTED = "suspected"  # by `accusers`, the first of whom testifies
    UNREFUTED = "unrefuted"  # `accusers` stand, and it was silent for `silent_for`
    LEFT = "left"  # its own word
    RETRACTED = "retracted"  # its accuser is a member no more


@dataclass(frozen=True, slots=True)
class Cause:
    """See `CauseKind` for which of these are set."""

    kind: CauseKind
    accusers: tuple[NodeId, ...] = ()
    testimony: Testimony | None = None
    silent_for: float = 0.0  # seconds between the first accusation and the conclusion


def cause_of(claim: Claim, known: Belief | None) -> Cause:
    """Return why a member is shown otherwise, where a claim has changed that."""
    if not claim.by_subject:
        return Cause(CauseKind.SUSPECTED, (claim.signer,), claim.testimony)
    if claim.state is MemberState.LEFT:
        return Cause(CauseKind.LEFT)
    refuted = known is not None and bool(known.accusations)
    return Cause(CauseKind.REFUTED if refuted else CauseKind.CLAIMED)
