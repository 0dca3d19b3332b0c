"""What an engine begins with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.gossip.config import GossipConfig
from meshd.path.config import PathConfig
from meshd.preshared.agreements import PresharedConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address

    from meshd.codec import IPNetwork
    from meshd.engine.rotation import WireGuardKeys
    from meshd.keys import NodeId
    from meshd.preshared.keys import Keyring
    from meshd.trust.fact import Fact
    from meshd.wg.types import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What the operator and the host decide."""

    listen_port: int = 51820
    control_port: int = 0  # 0 when meshd's datagrams share WireGuard's port
    fwmark: int = 0
    configured: tuple[Endpoint, ...] = ()
    advertise: tuple[IPNetwork, ...] = ()
    relay: bool = False
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
