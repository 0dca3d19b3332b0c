"""What the engine tells the daemon.  The daemon logs, persists, shows and obeys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv6Address

    from meshd.engine.identity import Identity
    from meshd.engine.rotation import WireGuardKeys
    from meshd.keys import NodeId, WireGuardKey
    from meshd.preshared.keys import Keyring
    from meshd.relay.allocations import Pair, StoredAllocation
    from meshd.relay.maps import RelayMaps
    from meshd.trust.fact import Fact


# What a field of an event may be.
Detail: TypeAlias = str | int | float | bool | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something an operator cares about: a log line and an entry in `meshctl events`."""

    event: str  # constant, in kebab case
    message: str
    member: NodeId | None = None
    name: str | None = None
    details: Mapping[str, Detail] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Admitted:
    """The mesh has let us in, or taught us its settings: persist the identity."""

    identity: Identity


@dataclass(frozen=True, slots=True)
class RefusedByMesh:
    """A member that holds the bootstrap key has refused us.  A final refusal will not pass."""

    text: str
    seed: str
    final: bool


@dataclass(frozen=True, slots=True)
class ResolveSeeds:
    """The seeds' names should be looked up (again)."""

    seeds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FactChanged:
    """A fact is new or newer: persist it."""

    fact: Fact


@dataclass(frozen=True, slots=True)
class RecordForgotten:
    """A member's record was dropped: delete it."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class IncarnationRaised:
    """Our own incarnation has grown: persist it."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class SequenceOutrun:
    """Our record has a higher sequence elsewhere than here: persist it, and go on above it."""

    sequence: int


@dataclass(frozen=True, slots=True)
class SaveKeys:
    """Persist these WireGuard keys, durably, and tell `Engine.rotation` whether that was done."""

    keys: WireGuardKeys


@dataclass(frozen=True, slots=True)
class SwitchNode:
    """Make this the node of another id, durably and in one step, and begin anew with that.

    Or call `Engine.rekeying.failed`, and stay who we are.
    """

    identity: Identity
    record: Fact  # the first one of the new id


@dataclass(frozen=True, slots=True)
class HurryDevice:
    """A WireGuard key is another one: bring the device to the plan before anything is sent."""


@dataclass(frozen=True, slots=True)
class EndRest:
    """The plan takes away what must not stay: apply it soon, but after what is to be sent."""


@dataclass(frozen=True, slots=True)
class KeyringChanged:
    """What is kept of the pre-shared keys with a member: persist it.  Without keys: delete it."""

    node: NodeId
    ring: Keyring


@dataclass(frozen=True, slots=True)
class KemWanted:
    """Call `Engine.take_kem`.  Comes once at most."""


@dataclass(frozen=True, slots=True)
class RenewPeer:
    """This peer should have a session: if it has had none, make it anew."""

    key: WireGuardKey


@dataclass(frozen=True, slots=True)
class AllocationChanged:
    """What is kept of a pair that this node relays for: persist it.  None: delete it."""

    pair: Pair
    allocation: StoredAllocation | None


@dataclass(frozen=True, slots=True)
class RelayPortsChanged:
    """These are the ports that this node relays by: open them before anything is sent."""

    ports: frozenset[int]


@dataclass(frozen=True, slots=True)
class RelayMapsChanged:
    """This is all that is to be forwarded.  Comes once at the start, whatever there is."""

    maps: RelayMaps


@dataclass(frozen=True, slots=True)
class CarriersChanged:
    """`Engine.carriage.wanted` is another: have those connections, and say what becomes of them."""


@dataclass(frozen=True, slots=True)
class PingAnswered:
    """The operator's ping came back."""

    node: NodeId
    sequence: int
    rtt: float


@dataclass(frozen=True, slots=True)
class Departed:
    """Our departure has been announced; the interface may go."""


class OverlayStream(NamedTuple):
    """A frame to be sent over a TCP connection of its own.  No event: see `streams_to_open`."""

    frame: bytes
    target: IPv6Address
    timeout: float  # seconds, for all of it


Event: TypeAlias = (
    Notice
    | Admitted
    | RefusedByMesh
    | ResolveSeeds
    | FactChanged
    | RecordForgotten
    | IncarnationRaised
    | SequenceOutrun
    | SaveKeys
    | SwitchNode
    | HurryDevice
    | RenewPeer
    | EndRest
    | KeyringChanged
    | KemWanted
    | AllocationChanged
    | RelayPortsChanged
    | RelayMapsChanged
    | CarriersChanged
    | PingAnswered
    | Departed
)
