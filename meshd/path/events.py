"""What the path agent tells its driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from meshd.keys import NodeId
    from meshd.path.candidates import PathClass
    from meshd.wg.types import Endpoint


@dataclass(frozen=True, slots=True)
class EndpointSelected:
    """The address WireGuard shall use for a peer.  `before` is None for the first one."""

    node: NodeId
    endpoint: Endpoint
    path_class: PathClass
    before: Endpoint | None
    reason: str


@dataclass(frozen=True, slots=True)
class PeerReady:
    """A proven path, and each side has the other in its kernel: traffic may start.

    Comes once for each time a path had to be proven.
    """

    node: NodeId
    rtt: float  # seconds


@dataclass(frozen=True, slots=True)
class RecordReceived:
    """A record that came in a ping, not looked at.

    `source` sealed the ping, so it is the only node whose record this may be.  Verify, then call
    `update_peer`: that also answers the ping of a sender that was not known before.
    """

    blob: bytes
    source: NodeId


@dataclass(frozen=True, slots=True)
class PeerCalling:
    """A peer pings that our kernel does not have: there is no tunnel it could call us by."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class PresharedHeard:
    """A pong says which pre-shared keys its sender holds; None: it takes no part in them."""

    node: NodeId
    told: bytes | None


@dataclass(frozen=True, slots=True)
class ReflexiveAddress:
    """A peer says where our datagrams come from, as it sees it.  One witness, not yet a belief."""

    by: NodeId
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class ReflexiveChanged:
    """What we believe of our own addresses as others see them has changed.

    `Agent.reflexive` and `Agent.behind_nat` hold it; our record should say it.
    """

    reflexive: tuple[Endpoint, ...]
    behind_nat: bool


@dataclass(frozen=True, slots=True)
class BadPacketReceived:
    """Somebody sent something it must not."""

    source: Endpoint
    reason: str


Event: TypeAlias = (
    EndpointSelected
    | PeerReady
    | RecordReceived
    | PeerCalling
    | PresharedHeard
    | ReflexiveAddress
    | ReflexiveChanged
    | BadPacketReceived
)
