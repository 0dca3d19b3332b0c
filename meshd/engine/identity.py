"""Who this node is, and what it holds to prove it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.addresses import overlay_address
from meshd.trust.roots import Roots

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Address

    from meshd.keys import BootstrapKey, MeshId, NodeId, NodeKey, WireGuardPrivateKey
    from meshd.trust.invite import Token


@dataclass(frozen=True, slots=True)
class Identity:
    """A node in one mesh.  Without a chain it is no member yet, and must show its token.

    `open_mesh`: whoever knows a secret can sign as this mesh, so nobody can be thrown out of it.
    `pinned`: the line of roots it follows, see `roots`.
    `former_word`: of the node key before, where there was one: see `meshd.trust.node_succession`.
    `origin`: the chain it came in by, where a renewal has replaced that: see `meshd.trust.line`.
    """

    mesh: MeshId
    node_key: NodeKey
    wireguard_key: WireGuardPrivateKey
    bootstrap_key: BootstrapKey
    name: str
    ipv4_prefix: IPv4Network
    chain: tuple[bytes, ...] = ()
    token: Token | None = None
    open_mesh: bool = False
    pinned: Roots | None = None
    older_bootstrap_key: BootstrapKey | None = None  # that before the present one
    origin: tuple[bytes, ...] = ()
    former_word: bytes = b""

    @property
    def node(self) -> NodeId:
        """The node's own id."""
        return self.node_key.id

    @property
    def roots(self) -> Roots:
        """The roots of the mesh as this node has pinned them; the mesh id alone where none are."""
        return self.pinned or Roots.first(self.mesh)

    @property
    def ipv6(self) -> IPv6Address:
        """The node's overlay address."""
        return overlay_address(self.mesh, self.node)
