"""Addresses that follow from identities alone.

IPv6: `fd` + 40 bits of the mesh id + 80 bits of the node id (a ULA prefix, RFC 4193).  Nobody
assigns it, nothing can take it away, and the control plane runs on it.

IPv4 comes from claims instead, because 22 bits of a shared prefix can collide: see
`meshd.plan.claims`.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from meshd.keys import fingerprint

if TYPE_CHECKING:
    from meshd.keys import MeshId, NodeId

OVERLAY_PREFIX_LENGTH = 48
ADDRESSES_CACHED_MAX = 16_384  # of nodes: each datagram and each plan asks for them again
PREFIXES_CACHED_MAX = 8  # of meshes; a daemon is in one


@lru_cache(PREFIXES_CACHED_MAX)
def overlay_prefix(mesh: MeshId) -> IPv6Network:
    """Return the mesh's own /48."""
    global_id = fingerprint(mesh, size=5, person=b"meshd.prefix")
    return IPv6Network((b"\xfd" + global_id + bytes(10), OVERLAY_PREFIX_LENGTH))


@lru_cache(ADDRESSES_CACHED_MAX)
def overlay_address(mesh: MeshId, node: NodeId) -> IPv6Address:
    """Return a node's IPv6 address in its mesh."""
    interface_id = fingerprint(node, size=10, person=b"meshd.address")
    return IPv6Address(overlay_prefix(mesh).network_address.packed[:6] + interface_id)
