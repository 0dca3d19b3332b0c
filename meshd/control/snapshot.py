"""What the daemon shows of itself: frozen values, filled by the daemon, read by `views`.

A snapshot is consistent: it is taken between two inputs of the engine.  Times are spans in seconds
unless a name ends in `_at`; those are wall clock, seconds since the Unix epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address, IPv6Address

    from meshd.audit import Head
    from meshd.codec import IPNetwork
    from meshd.keys import MeshId, NodeId, WireGuardKey
    from meshd.wg.types import Endpoint

Level: TypeAlias = Literal["info", "warning", "error"]
State: TypeAlias = Literal["alive", "suspect", "dead", "left"]
PathKind: TypeAlias = Literal["direct", "relayed"]
Transport: TypeAlias = Literal["udp", "tcp"]

STATES: tuple[State, ...] = ("alive", "suspect", "dead", "left")


@dataclass(frozen=True, slots=True)
class HealthFinding:
    """One thing an operator should know, with what to do about it."""

    level: Level
    code: str  # constant, in kebab case: what scripts match
    message: str


@dataclass(frozen=True, slots=True)
class CredentialSnapshot:
    """What admits this node, and what it may."""

    issuer: str  # a member's name; empty for the mesh key
    issued_at: float
    expires_at: float | None  # None: never
    tags: tuple[str, ...] = ()  # `*` among them: it may give any
    routes: tuple[IPNetwork, ...] = ()
    admit: bool = False
    relay: bool = False


@dataclass(frozen=True, slots=True)
class SelfSnapshot:
    """This node."""

    id: NodeId
    name: str
    ipv4: IPv4Address | None
    ipv6: IPv6Address
    public_key: WireGuardKey
    interface: str
    listen_port: int
    backend: str
    relay: bool
    ready: bool  # the interface is up and the mesh is known
    uptime: float
    version: str
    health_score: int = 0  # 0 is healthy: see `meshd.gossip.health`
    startup: Mapping[str, float] = field(default_factory=dict)  # phase -> seconds it took
    bad_packets: Mapping[str, int] = field(default_factory=dict)  # reason -> how many were dropped
    credential: CredentialSnapshot | None = None  # None before it is admitted
    audit_head: Head | None = None  # None: no log yet
    holds_mesh_key: bool = False


@dataclass(frozen=True, slots=True)
class MemberSnapshot:
    """Another member."""

    id: NodeId
    name: str
    state: State
    incarnation: int
    ipv4: IPv4Address | None
    ipv6: IPv6Address
    public_key: WireGuardKey
    endpoint: Endpoint | None = None
    path: PathKind | None = None
    relay: str | None = None  # name of the member that relays
    transport: Transport | None = None  # of the tunnel's datagrams as they leave this node
    rtt: float | None = None
    handshake_age: float | None = None  # None before the first handshake
    rx_bytes: int = 0
    tx_bytes: int = 0
    tags: tuple[str, ...] = ()
    routes: tuple[IPNetwork, ...] = ()
    version: str = ""
    expires_at: float | None = None  # of its credential; None: never
    post_quantum: bool = False  # its session comes from a handshake with a pre-shared key
    psk_age: float | None = None  # of the pre-shared key in use; None without one


@dataclass(frozen=True, slots=True)
class MeshSnapshot:
    """What this node sees of the whole mesh.  `members` does not hold the node itself."""

    id: MeshId
    name: str
    me: SelfSnapshot
    members: tuple[MemberSnapshot, ...] = ()
    health: tuple[HealthFinding, ...] = ()
    open: bool = False  # who knows its secret is a member

    def count(self, state: State) -> int:
        """How many members are in a state; this node counts as alive."""
        others = sum(member.state == state for member in self.members)
        return others + (state == "alive")


@dataclass(frozen=True, slots=True)
class PeerSnapshot:
    """One entry of the WireGuard device, and whom it belongs to."""

    public_key: WireGuardKey
    member: str | None  # None for a peer that no member accounts for
    endpoint: Endpoint | None
    allowed_ips: tuple[IPNetwork, ...]
    persistent_keepalive: int
    handshake_age: float | None
    rx_bytes: int
    tx_bytes: int
    relay: str | None = None  # name of the member whose port the endpoint is


@dataclass(frozen=True, slots=True)
class PingAnswer:
    """How one ping through the tunnel went."""

    rtt: float | None  # None when nothing came back in time
    path: PathKind | None = None
    endpoint: Endpoint | None = None
    relay: str | None = None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened, as an operator would tell it."""

    at: float
    event: str  # constant, in kebab case: `member-joined`, `path-changed`, …
    member: str | None = None
    message: str = ""
    details: Mapping[str, str | int | float | bool | tuple[str, ...] | None] = field(
        default_factory=dict
    )
