"""What an engine begins with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.gossip.config import GossipConfig
from meshd.path.config import PathConfig
from meshd.preshared.agreements import PresharedConfig
from meshd.values import DEFAULT_RELAY_PORTS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address

    from meshd.codec import IPNetwork
    from meshd.engine.rotation import WireGuardKeys
    from meshd.keys import NodeId
    from meshd.preshared.keys import Keyring
    from meshd.relay.allocations import StoredAllocation
    from meshd.trust.fact import Fact
    from meshd.values import PortRange
    from meshd.wg.types import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What the operator and the host decide."""

    listen_port: int = 51820
    control_port: int = 0  # 0 when meshd's datagrams share WireGuard's port
    fwmark: int = 0
    configured: tuple[Endpoint, ...] = ()
    advertise: tuple[IPNetwork, ...] = ()
    relay: bool | None = False  # None: if we have a public address
    relay_ports: PortRange = DEFAULT_RELAY_PORTS
    tcp: int = 0  # port at which datagrams are carried for members whose UDP is blocked; 0 is none
    tls: int = 0  # the same with TLS
    wanted_ipv4: IPv4Address | None = None
    seeds: tuple[str, ...] = ()
    version: str = ""
    rotate_keys_after: float = 0.0  # seconds; 0 is never
    gossip: GossipConfig = field(default_factory=GossipConfig)
    path: PathConfig = field(default_factory=PathConfig)
    preshared: PresharedConfig = field(default_factory=PresharedConfig)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a node remembers of earlier runs."""

    facts: tuple[Fact, ...] = ()
    sequence: int = 1  # the first that may be used for a record
    incarnation: int = 0
    keyrings: Mapping[NodeId, Keyring] = field(default_factory=dict, repr=False)
    keys: WireGuardKeys | None = None  # None on a first start
    allocations: tuple[StoredAllocation, ...] = ()  # of what we relay
