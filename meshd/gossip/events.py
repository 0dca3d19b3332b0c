"""What a node tells its driver.  The driver logs, counts, persists and acts on these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from meshd.gossip.cause import Cause
    from meshd.gossip.claim import MemberState
    from meshd.keys import NodeId
    from meshd.trust.fact import Fact


@dataclass(frozen=True, slots=True)
class MemberJoined:
    """A node was admitted; it is shown dead until it is heard."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class MemberRemoved:
    """A member was forgotten, or is admitted no more."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class MemberStateChanged:
    """What is shown of a member has changed."""

    node: NodeId
    before: MemberState
    after: MemberState
    incarnation: int
    cause: Cause


@dataclass(frozen=True, slots=True)
class Believed:
    """By its own word a member is alive, and nothing refutes that; or this is so no longer.

    It may not have been heard here: then it is shown dead, and worth finding a path to.
    """

    node: NodeId
    live: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """A message came through a member's tunnel: the first in this run, or since it was dead."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class PathFault:
    """A member does not answer us, but does answer `via`: the path is broken, not the member.

    Where `via` is None, it has answered us over TCP.
    """

    node: NodeId
    via: NodeId | None


@dataclass(frozen=True, slots=True)
class EvidenceWanted:
    """A probe is late.  Whether packets still come through the member's tunnel is worth knowing."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class PingAnswered:
    """The operator's ping came back."""

    node: NodeId
    sequence: int
    rtt: float


@dataclass(frozen=True, slots=True)
class FactLearned:
    """The ledger has changed by what a member sent: persist it, make a new plan."""

    fact: Fact
    source: NodeId


@dataclass(frozen=True, slots=True)
class EquivocationSeen:
    """Two different statements under one version: its author's identity exists twice."""

    fact: Fact
    source: NodeId


@dataclass(frozen=True, slots=True)
class RecordEvicted:
    """The ledger has dropped a node's record for one that came: it holds as many as it can."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class IncarnationRaised:
    """Our own incarnation has grown: persist it, so that a restart begins above it."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class LeaveAnnounced:
    """Our departure has been told to several members; nothing more will be sent unasked."""


@dataclass(frozen=True, slots=True)
class BadPacketReceived:
    """A peer sent something it must not.  It was dropped."""

    source: NodeId
    reason: str


Event: TypeAlias = (
    MemberJoined
    | MemberRemoved
    | MemberStateChanged
    | Believed
    | Heard
    | PathFault
    | EvidenceWanted
    | PingAnswered
    | FactLearned
    | EquivocationSeen
    | RecordEvicted
    | IncarnationRaised
    | LeaveAnnounced
    | BadPacketReceived
)
