"""What this node keeps about one other member.

Rule 1: `state` is what the claims and our own suspicion amount to.

Rule 2: `shown` is what people and the planner are told.  It is `alive` only if the member was heard
        through its tunnel in this run, and since it was last dead.  A member known from state on
        disk or from its record is shown `dead` until then, which counts as nobody's death.

    belief      dead   heard    shown
    none        -      -        dead
    ALIVE       no     no       dead      nobody here has heard it yet
    ALIVE       no     yes      alive
    accused     no     yes      suspect   the suspicion is running
    accused     yes    any      dead      it has run out
    LEFT        -      -        left
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.gossip.claim import MemberState

if TYPE_CHECKING:
    from meshd.gossip.claim import Belief
    from meshd.gossip.rtt import RoundTrip
    from meshd.gossip.suspicion import Suspicion
    from meshd.keys import NodeId

UNKNOWN_INCARNATION = -1
NEVER = -math.inf


@dataclass(frozen=True, slots=True)
class MemberView:
    """A member as told to the outside."""

    node: NodeId
    state: MemberState
    incarnation: int  # UNKNOWN_INCARNATION if it never claimed one
    heard: bool
    rtt: float | None  # smoothed
    accusers: tuple[NodeId, ...]


@dataclass(slots=True)
class Member:
    """See the module docstring."""

    node: NodeId
    silent_since: float
    belief: Belief | None = None
    dead: bool = False  # our conclusion, for the incarnation believed in
    heard: bool = False
    live: bool = False  # in `state`, as last told: see `events.Believed`
    suspicion: Suspicion | None = None
    # What its last datagram said: its own incarnation, and ours as it knows it.
    claims: int = UNKNOWN_INCARNATION
    knows: int = UNKNOWN_INCARNATION
    round_trip: RoundTrip | None = None
    # Evidence (see `evidence`): when it was last heard, when its tunnel last carried something, and
    # how many failed probes in a row that has excused.
    heard_at: float = NEVER
    contact_at: float = NEVER  # when it was last pinged for contact, or first heard after that
    carried_at: float = NEVER
    excuses: int = 0
    faults: int = 0  # times in a row that it was there after all, but had not answered us
    tries: int = 0  # contact pings since it was last heard, or its path changed
    retry_min: float = 0.0  # what the pauses between contact pings begin with

    @property
    def incarnation(self) -> int:
        """The newest incarnation that the member has claimed."""
        return UNKNOWN_INCARNATION if self.belief is None else self.belief.incarnation

    @property
    def state(self) -> MemberState:
        """What is believed (rule 1).  Only meaningful where there is a belief."""
        if self.belief is None or self.dead:
            return MemberState.DEAD
        if self.belief.own.state is MemberState.LEFT:
            return MemberState.LEFT
        return MemberState.SUSPECT if self.belief.accusations else MemberState.ALIVE

    @property
    def shown(self) -> MemberState:
        """What is told (rule 2)."""
        state = self.state
        return state if self.heard or state is MemberState.LEFT else MemberState.DEAD

    @property
    def view(self) -> MemberView:
        """A frozen copy for the outside."""
        accusations = self.belief.accusations if self.belief is not None else ()
        accusers = tuple(claim.signer for claim in accusations)
        rtt = None if self.round_trip is None else self.round_trip.smoothed
        return MemberView(self.node, self.shown, self.incarnation, self.heard, rtt, accusers)

    @property
    def version(self) -> int:
        """What anti-entropy compares.  A suspicion is not in it: it is over before it is synced."""
        state = self.state
        if state is MemberState.SUSPECT:
            state = MemberState.ALIVE
        return belief_version(self.incarnation, state)


def belief_version(incarnation: int, state: MemberState) -> int:
    """Return a number that grows as beliefs about one member supersede each other."""
    return incarnation << 2 | state
