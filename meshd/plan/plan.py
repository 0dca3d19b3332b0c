"""Members + liveness + paths in, desired state out.

`make_plan` is the only place that decides what the kernel should hold.  It is a pure function, so
the daemon may run it as often as it likes, and a restart arrives at the same result.

Rule 1: a peer's allowed-ips are its own addresses and nothing else, so a packet with any other
        source does not come out of its tunnel (cryptokey routing).

Rule 2: one allowed-ip has one peer, and one WireGuard key has one member.  A key that two records
        name belongs to the earlier admitted member; the other one has no tunnel and is reported.

Rule 3: a member that is believed dead keeps its peer entry, so that it is back with its first
        packet; it gets no keepalive, which would be a handshake attempt every few seconds for ever.

Rule 4: an endpoint is named only when the path agent has chosen one; WireGuard's own roaming is
        left alone, but while the agent insists: just after a move.

Rule 5: the key a member will rotate to is not installed ahead: the member could send by it at once,
        and all of that would be dropped until its addresses had moved (docs/adr/0007).

Rule 6: a pre-shared key belongs to a pair of members, not to their WireGuard keys: a peer under a
        new key has it from the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from meshd.addresses import overlay_prefix
from meshd.codec import host_network
from meshd.net.link import LinkSpec
from meshd.wg.types import DeviceSpec, PeerSpec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv4Network, IPv6Address

    from meshd.codec import IPNetwork
    from meshd.keys import MeshId, NodeId, PresharedKey, WireGuardKey, WireGuardPrivateKey
    from meshd.wg.types import Endpoint

# 1500, less an IPv6 header (40), a UDP header (8) and WireGuard's data header and tag (32).
MTU_DEFAULT = 1420

ALLOWED_IPS_CACHED_MAX = 16_384  # a member's are the same in plan after plan


@dataclass(frozen=True, slots=True)
class PlannedMember:
    """Everything the plan needs to know of another member."""

    node: NodeId
    admitted_at: int
    wireguard_key: WireGuardKey
    ipv4: IPv4Address | None
    ipv6: IPv6Address
    live: bool  # alive or suspect
    endpoint: Endpoint | None
    insists: bool = False  # on the endpoint
    keepalive: int = 0  # seconds, where a NAT of ours needs one; 0: none
    preshared_key: PresharedKey | None = None  # 32 zero bytes: none; None: leave what is there


@dataclass(frozen=True, slots=True)
class PlannedSelf:
    """Everything the plan needs to know of this node."""

    mesh: MeshId
    private_key: WireGuardPrivateKey
    listen_port: int
    fwmark: int
    ipv4: IPv4Address | None
    ipv4_prefix: IPv4Network
    ipv6: IPv6Address
    retired_ipv4: tuple[IPv4Address, ...] = ()  # ours until a moment ago


@dataclass(frozen=True, slots=True)
class DesiredState:
    """What the kernel should hold."""

    device: DeviceSpec
    link: LinkSpec
    key_conflicts: tuple[NodeId, ...] = ()  # members without a tunnel, by rule 2


def make_plan(me: PlannedSelf, members: Iterable[PlannedMember]) -> DesiredState:
    """Return the desired state.  The order of `members` does not matter."""
    owners: dict[WireGuardKey, PlannedMember] = {}
    conflicts: list[NodeId] = []
    for member in sorted(members, key=lambda member: (member.admitted_at, member.node)):
        if member.wireguard_key in owners or member.wireguard_key == me.private_key.public:
            conflicts.append(member.node)
        else:
            owners[member.wireguard_key] = member
    peers = {key: _peer(member) for key, member in owners.items()}
    return DesiredState(
        device=DeviceSpec(
            private_key=me.private_key,
            listen_port=me.listen_port,
            fwmark=me.fwmark,
            peers=peers,
        ),
        link=_link(me),
        key_conflicts=tuple(conflicts),
    )


@lru_cache(ALLOWED_IPS_CACHED_MAX)
def _allowed_ips(ipv6: IPv6Address, ipv4: IPv4Address | None) -> frozenset[IPNetwork]:
    return frozenset(host_network(address) for address in (ipv6, ipv4) if address is not None)


def _peer(member: PlannedMember) -> PeerSpec:
    return PeerSpec(
        allowed_ips=_allowed_ips(member.ipv6, member.ipv4),
        endpoint=member.endpoint,
        insists=member.insists,
        preshared_key=member.preshared_key,
        persistent_keepalive=member.keepalive if member.live else 0,
    )


def _link(me: PlannedSelf) -> LinkSpec:
    addresses: set[IPNetwork] = {host_network(me.ipv6)}
    routes: set[IPNetwork] = {overlay_prefix(me.mesh)}
    if me.ipv4 is not None:
        addresses.add(host_network(me.ipv4))
        routes.add(me.ipv4_prefix)
    return LinkSpec(
        addresses=frozenset(addresses),
        routes=frozenset(routes),
        mtu=MTU_DEFAULT,
        retired=frozenset(map(host_network, me.retired_ipv4)),
    )
