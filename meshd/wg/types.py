"""What WireGuard devices and peers are wanted to be, are, and shall become.

`…Spec` is desired, `…Status` is observed, `…Change` is what leads from one to the other.  Names
are those of wg(8) and the kernel's `linux/wireguard.h`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.codec import IPAddress, IPNetwork
    from meshd.keys import PresharedKey, WireGuardKey, WireGuardPrivateKey


class Endpoint(NamedTuple):
    """Where a peer's datagrams go on the underlay."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """What we want of a peer.  None means: leave what the device has."""

    allowed_ips: frozenset[IPNetwork]
    endpoint: Endpoint | None = None
    insists: bool = False  # on the endpoint, where the peer has roamed
    persistent_keepalive: int | None = None  # seconds; 0 turns it off
    preshared_key: PresharedKey | None = None  # 32 zero bytes clear it


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What a device says of a peer."""

    allowed_ips: frozenset[IPNetwork]
    endpoint: Endpoint | None
    persistent_keepalive: int  # seconds; 0 when off
    preshared_key: PresharedKey | None  # None when unset
    last_handshake_time: float  # seconds since the Unix epoch; 0.0 before the first
    rx_bytes: int
    tx_bytes: int


@dataclass(frozen=True, slots=True)
class PeerChange:
    """One entry of WGDEVICE_A_PEERS."""

    public_key: WireGuardKey
    remove: bool = False
    update_only: bool = False
    replace_allowed_ips: bool = False
    allowed_ips: frozenset[IPNetwork] = frozenset()
    endpoint: Endpoint | None = None
    persistent_keepalive: int | None = None
    preshared_key: PresharedKey | None = None


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """What we want of a device."""

    private_key: WireGuardPrivateKey
    listen_port: int
    fwmark: int
    peers: Mapping[WireGuardKey, PeerSpec]


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """What a device says of itself."""

    private_key: WireGuardPrivateKey | None  # None before one is set
    listen_port: int
    fwmark: int
    peers: Mapping[WireGuardKey, PeerStatus] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """One call of WG_CMD_SET_DEVICE.  None means: leave what the device has."""

    private_key: WireGuardPrivateKey | None = None
    listen_port: int | None = None
    fwmark: int | None = None
    peers: tuple[PeerChange, ...] = ()


class Device(Protocol):
    """A WireGuard interface that exists, whoever implements it.

    All methods raise `DeviceError`, and block for no longer than the kernel takes (milliseconds).
    """

    @property
    def backend(self) -> str:
        """`kernel` or `userspace`."""

    def observe(self) -> DeviceStatus:
        """Return the device with all its peers."""

    def apply(self, change: DeviceChange) -> None:
        """Make a change.  Peers are handled in the order given."""

    def close(self) -> None:
        """Let go of sockets.  The interface and its sessions stay."""
