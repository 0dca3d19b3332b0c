"""WireGuard's generic netlink family: changes to bytes, dumps to a status (`linux/wireguard.h`).

    WGDEVICE_A_IFNAME, …_PRIVATE_KEY, …_LISTEN_PORT, …_FWMARK
    WGDEVICE_A_PEERS
        0: WGPEER_A_PUBLIC_KEY, …_FLAGS, …_PRESHARED_KEY, …_ENDPOINT, …
           WGPEER_A_ALLOWEDIPS
               0: WGALLOWEDIP_A_FAMILY, …_IPADDR, …_CIDR_MASK
               0: …
        0: …

Rule 1: an attribute holds less than 64 KiB, and a device's peers are one attribute.  So a change
        goes out as several messages, and a peer with many allowed-ips in several pieces: the
        first carries its settings and flags, the others only add to it.

Rule 2: a dump comes in as several messages, and one peer may span two of them: its later parts
        hold a public key and allowed-ips only, and are merged into the first.

Rule 3: whatever bytes come in, the outcome is a status or a `DeviceError` with EBADMSG.

This module is pure: `meshd.wg.kernel` owns the socket.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from meshd.keys import KEY_BYTES, PresharedKey, WireGuardKey, WireGuardPrivateKey
from meshd.wg.genetlink import (
    NLA_F_NESTED,
    U16,
    U32,
    attributes,
    body,
    encode_attribute,
    encode_request,
    exactly,
    fields,
    malformed,
)
from meshd.wg.types import DeviceStatus, Endpoint, PeerStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meshd.codec import IPNetwork
    from meshd.wg.genetlink import Request
    from meshd.wg.types import DeviceChange, PeerChange

# linux/wireguard.h
WG_GENL_NAME = "wireguard"
WG_GENL_VERSION = 1
WG_CMD_GET_DEVICE = 0
WG_CMD_SET_DEVICE = 1
WGDEVICE_A_IFNAME = 2
WGDEVICE_A_PRIVATE_KEY = 3
WGDEVICE_A_LISTEN_PORT = 6
WGDEVICE_A_FWMARK = 7
WGDEVICE_A_PEERS = 8
WGPEER_F_REMOVE_ME = 1 << 0
WGPEER_F_REPLACE_ALLOWEDIPS = 1 << 1
WGPEER_F_UPDATE_ONLY = 1 << 2
WGPEER_A_PUBLIC_KEY = 1
WGPEER_A_PRESHARED_KEY = 2
WGPEER_A_FLAGS = 3
WGPEER_A_ENDPOINT = 4
WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL = 5
WGPEER_A_LAST_HANDSHAKE_TIME = 6
WGPEER_A_RX_BYTES = 7
WGPEER_A_TX_BYTES = 8
WGPEER_A_ALLOWEDIPS = 9
WGALLOWEDIP_A_FAMILY = 1
WGALLOWEDIP_A_IPADDR = 2
WGALLOWEDIP_A_CIDR_MASK = 3

AF_INET = 2  # linux/socket.h
AF_INET6 = 10

# Peers in one message.  Well below what an attribute holds, because the kernel keeps its routing
# lock for as long as a message takes.
CHUNK_BYTES_MAX = 32 * 1024
PEER_BYTES_MAX = 256  # of a peer without allowed-ips; it is 124 at most
ALLOWED_IP_BYTES_MAX = 40  # an IPv6 network; an IPv4 one takes 28
PIECE_ALLOWED_IPS_MAX = (CHUNK_BYTES_MAX - PEER_BYTES_MAX) // ALLOWED_IP_BYTES_MAX

# What is polled again and again is made once.
NETWORKS_CACHED_MAX = 65_536
ENDPOINTS_CACHED_MAX = 16_384

_SOCKADDR_IN = struct.Struct("=H2s4s8x")  # family, port in network order, address
_SOCKADDR_IN6 = struct.Struct("=H2s4s16sI")  # family, port, flow information, address, scope
_TIMESPEC = struct.Struct("=qq")
_U64 = struct.Struct("=Q")
_NO_KEY = bytes(KEY_BYTES)


def encode_get_device(interface: str) -> Request:
    """Ask for a dump of a device with all its peers."""
    return encode_request(WG_CMD_GET_DEVICE, WG_GENL_VERSION, _name(interface), dump=True)


def encode_set_device(interface: str, change: DeviceChange) -> Iterator[Request]:
    """Encode a change as requests to be sent in order, each after the answer to the one before.

    A change of nothing gives no request.
    """
    name = _name(interface)
    settings = _device_settings(change)
    for peers in _chunks(change.peers):
        nested = encode_attribute(WGDEVICE_A_PEERS | NLA_F_NESTED, peers)
        yield encode_request(WG_CMD_SET_DEVICE, WG_GENL_VERSION, name + settings + nested)
        settings = b""
    if settings:
        yield encode_request(WG_CMD_SET_DEVICE, WG_GENL_VERSION, name + settings)


class DeviceReader:
    """Puts the messages of one dump together."""

    def __init__(self) -> None:
        self._private_key: WireGuardPrivateKey | None = None
        self._listen_port = 0
        self._fwmark = 0
        self._peers: dict[WireGuardKey, PeerStatus] = {}

    def feed(self, payload: bytes) -> None:
        """Take in one message's payload, in the order in which they came."""
        device: dict[int, bytes] = {}
        for kind, value in attributes(body(payload)):
            if kind == WGDEVICE_A_PEERS:
                for _, peer in attributes(value):
                    self._feed_peer(fields(peer))
            else:
                device[kind] = value
        # Only the first message has these.
        if WGDEVICE_A_PRIVATE_KEY in device:
            raw = exactly(device, WGDEVICE_A_PRIVATE_KEY, KEY_BYTES)
            self._private_key = None if raw == _NO_KEY else WireGuardPrivateKey(raw)
        if WGDEVICE_A_LISTEN_PORT in device:
            self._listen_port = _number(device, WGDEVICE_A_LISTEN_PORT, U16)
        if WGDEVICE_A_FWMARK in device:
            self._fwmark = _number(device, WGDEVICE_A_FWMARK, U32)

    def status(self) -> DeviceStatus:
        """Return the device, all messages having come."""
        return DeviceStatus(
            private_key=self._private_key,
            listen_port=self._listen_port,
            fwmark=self._fwmark,
            peers=self._peers,
        )

    def _feed_peer(self, peer: dict[int, bytes]) -> None:
        key = WireGuardKey(exactly(peer, WGPEER_A_PUBLIC_KEY, KEY_BYTES))
        allowed_ips = frozenset(
            _decode_allowed_ip(entry) for _, entry in attributes(peer.get(WGPEER_A_ALLOWEDIPS, b""))
        )
        known = self._peers.get(key)
        if known is None:
            self._peers[key] = _decode_peer(peer, allowed_ips)
        else:
            self._peers[key] = replace(known, allowed_ips=known.allowed_ips | allowed_ips)


def _name(interface: str) -> bytes:
    return encode_attribute(WGDEVICE_A_IFNAME, interface.encode() + b"\0")


def _device_settings(change: DeviceChange) -> bytes:
    settings = b""
    if change.private_key is not None:
        settings += encode_attribute(WGDEVICE_A_PRIVATE_KEY, bytes(change.private_key))
    if change.listen_port is not None:
        settings += encode_attribute(WGDEVICE_A_LISTEN_PORT, U16.pack(change.listen_port))
    if change.fwmark is not None:
        settings += encode_attribute(WGDEVICE_A_FWMARK, U32.pack(change.fwmark))
    return settings


def _chunks(peers: Sequence[PeerChange]) -> Iterator[bytes]:
    """Gather encoded pieces of peers into values of the peers' attribute."""
    chunk = bytearray()
    for peer in peers:
        for piece in _encode_peer(peer):
            if chunk and len(chunk) + len(piece) > CHUNK_BYTES_MAX:
                yield bytes(chunk)
                chunk.clear()
            chunk += piece
    if chunk:
        yield bytes(chunk)


def _encode_peer(peer: PeerChange) -> Iterator[bytes]:
    """Encode a peer as one piece, or as several when it has many allowed-ips."""
    flags = (
        WGPEER_F_REMOVE_ME * peer.remove
        | WGPEER_F_REPLACE_ALLOWEDIPS * peer.replace_allowed_ips
        | WGPEER_F_UPDATE_ONLY * peer.update_only
    )
    settings = b""
    if peer.preshared_key is not None:
        settings += encode_attribute(WGPEER_A_PRESHARED_KEY, bytes(peer.preshared_key))
    if peer.endpoint is not None:
        settings += encode_attribute(WGPEER_A_ENDPOINT, _encode_endpoint(peer.endpoint))
    if peer.persistent_keepalive is not None:
        seconds = U16.pack(peer.persistent_keepalive)
        settings += encode_attribute(WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, seconds)
    entries = [_encode_allowed_ip(network) for network in sorted(peer.allowed_ips, key=_order)]
    yield _piece(peer.public_key, flags, settings, entries[:PIECE_ALLOWED_IPS_MAX])
    for start in range(PIECE_ALLOWED_IPS_MAX, len(entries), PIECE_ALLOWED_IPS_MAX):
        # The first piece has made the peer, or has found that it is not to be made.
        more = entries[start : start + PIECE_ALLOWED_IPS_MAX]
        yield _piece(peer.public_key, WGPEER_F_UPDATE_ONLY, b"", more)


def _piece(key: WireGuardKey, flags: int, settings: bytes, allowed_ips: list[bytes]) -> bytes:
    content = encode_attribute(WGPEER_A_PUBLIC_KEY, bytes(key))
    content += encode_attribute(WGPEER_A_FLAGS, U32.pack(flags)) + settings
    assert len(content) <= PEER_BYTES_MAX
    if allowed_ips:
        content += encode_attribute(WGPEER_A_ALLOWEDIPS | NLA_F_NESTED, b"".join(allowed_ips))
    return encode_attribute(NLA_F_NESTED, content)


def _order(network: IPNetwork) -> tuple[int, bytes, int]:
    return network.version, network.network_address.packed, network.prefixlen


@functools.lru_cache(NETWORKS_CACHED_MAX)
def _encode_allowed_ip(network: IPNetwork) -> bytes:
    family = AF_INET if network.version == 4 else AF_INET6
    content = encode_attribute(WGALLOWEDIP_A_FAMILY, U16.pack(family))
    content += encode_attribute(WGALLOWEDIP_A_IPADDR, network.network_address.packed)
    content += encode_attribute(WGALLOWEDIP_A_CIDR_MASK, bytes([network.prefixlen]))
    return encode_attribute(NLA_F_NESTED, content)


def _encode_endpoint(endpoint: Endpoint) -> bytes:
    port = endpoint.port.to_bytes(2, "big")
    if isinstance(endpoint.address, IPv4Address):
        return _SOCKADDR_IN.pack(AF_INET, port, endpoint.address.packed)
    scope = int(endpoint.address.scope_id or 0)
    return _SOCKADDR_IN6.pack(AF_INET6, port, bytes(4), endpoint.address.packed, scope)


def _decode_peer(peer: dict[int, bytes], allowed_ips: frozenset[IPNetwork]) -> PeerStatus:
    endpoint = peer.get(WGPEER_A_ENDPOINT)
    preshared_key = exactly(peer, WGPEER_A_PRESHARED_KEY, KEY_BYTES)
    seconds, nanoseconds = _TIMESPEC.unpack(
        exactly(peer, WGPEER_A_LAST_HANDSHAKE_TIME, _TIMESPEC.size)
    )
    return PeerStatus(
        allowed_ips=allowed_ips,
        endpoint=None if endpoint is None else _decode_endpoint(endpoint),
        persistent_keepalive=_number(peer, WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, U16),
        preshared_key=None if preshared_key == _NO_KEY else PresharedKey(preshared_key),
        last_handshake_time=seconds + nanoseconds / 1e9,
        rx_bytes=_number(peer, WGPEER_A_RX_BYTES, _U64),
        tx_bytes=_number(peer, WGPEER_A_TX_BYTES, _U64),
    )


def _number(found: dict[int, bytes], kind: int, layout: struct.Struct) -> int:
    number: int = layout.unpack(exactly(found, kind, layout.size))[0]
    return number


@functools.lru_cache(NETWORKS_CACHED_MAX)
def _decode_allowed_ip(entry: bytes) -> IPNetwork:
    found = fields(entry)
    family = _number(found, WGALLOWEDIP_A_FAMILY, U16)
    prefix_length = exactly(found, WGALLOWEDIP_A_CIDR_MASK, 1)[0]
    try:
        if family == AF_INET:
            return IPv4Network((exactly(found, WGALLOWEDIP_A_IPADDR, 4), prefix_length))
        if family == AF_INET6:
            return IPv6Network((exactly(found, WGALLOWEDIP_A_IPADDR, 16), prefix_length))
    except ValueError:
        pass  # no such prefix length, or bits set behind it
    raise malformed()


@functools.lru_cache(ENDPOINTS_CACHED_MAX)
def _decode_endpoint(value: bytes) -> Endpoint:
    if len(value) == _SOCKADDR_IN.size:
        family, port, packed = _SOCKADDR_IN.unpack(value)
        if family == AF_INET:
            return Endpoint(IPv4Address(packed), int.from_bytes(port, "big"))
    elif len(value) == _SOCKADDR_IN6.size:
        family, port, _, packed, scope = _SOCKADDR_IN6.unpack(value)
        if family == AF_INET6:
            address = IPv6Address(packed)
            # The kernel sets a scope for link-local addresses only.
            scoped = IPv6Address(f"{address}%{scope}") if scope else address
            return Endpoint(scoped, int.from_bytes(port, "big"))
    raise malformed()
