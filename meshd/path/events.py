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
    relay: NodeId | None = None  # whose port the endpoint is
    hurry: bool = False  # traffic waits for it: apply it, and send something by it, at once


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
class RelayWanted:
    """Have so many relays for a peer.  Comes again when the number changes, and is never 0."""

    node: NodeId
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class RelayUnwanted:
    """No relay is needed for a peer any longer, and none has been in use for a while."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class RelaySilent:
    """Hellos to our port of a relay are not answered, or nothing comes through it.

    The relay may be gone, or the peer may be unable to reach it.
    """

    node: NodeId
    relay: NodeId


@dataclass(frozen=True, slots=True)
class CallWanted:
    """A peer should ping us at this moment, as we ping it: have it called."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Insist:
    """WireGuard's endpoint has to be written again if it is another one, or not any longer.

    `Agent.insists` says which.  Packets that were on their way by the former path move it back.
    """

    node: NodeId


@dataclass(frozen=True, slots=True)
class KeepaliveChanged:
    """What keeps our NAT's binding for the path to a peer is another interval; 0 is none."""

    node: NodeId
    keepalive: int  # seconds


@dataclass(frozen=True, slots=True)
class PathFailed:
    """The path in use stopped answering while it carried traffic."""

    node: NodeId
    endpoint: Endpoint
    silent_for: float  # seconds since the last answer


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
    | RelayWanted
    | RelayUnwanted
    | RelaySilent
    | CallWanted
    | PathFailed
    | KeepaliveChanged
    | Insist
    | BadPacketReceived
)
