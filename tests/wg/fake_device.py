"""A WireGuard device in memory, with the kernel's rules (`drivers/net/wireguard/netlink.c`).

The contract suite holds it against the real ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meshd.wg.types import DeviceStatus, PeerStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.codec import IPNetwork
    from meshd.keys import WireGuardKey
    from meshd.wg.types import DeviceChange, Endpoint, PeerChange

EMPTY_PEER = PeerStatus(
    allowed_ips=frozenset(),
    endpoint=None,
    persistent_keepalive=0,
    preshared_key=None,
    last_handshake_time=0.0,
    rx_bytes=0,
    tx_bytes=0,
)


class FakeDevice:
    """Does what WG_CMD_SET_DEVICE does, and remembers every state in between."""

    def __init__(self, status: DeviceStatus | None = None) -> None:
        self._status = status or DeviceStatus(private_key=None, listen_port=0, fwmark=0)
        self.history = [self._status]

    @property
    def backend(self) -> str:
        return "fake"

    def observe(self) -> DeviceStatus:
        return replace(self._status, peers=dict(self._status.peers))

    def apply(self, change: DeviceChange) -> None:
        settings = {
            name: value
            for name in ("private_key", "listen_port", "fwmark")
            if (value := getattr(change, name)) is not None
        }
        self._become(replace(self._status, **settings))
        if change.private_key is not None:
            # A peer with our own key is ourselves.
            self._become_without(change.private_key.public)
        for peer in change.peers:
            self._apply_peer(peer)

    def close(self) -> None:
        pass

    def roam(self, key: WireGuardKey, endpoint: Endpoint) -> None:
        """An authenticated packet of the peer's has come from there."""
        self._become_with(key, replace(self._status.peers[key], endpoint=endpoint))

    def _apply_peer(self, change: PeerChange) -> None:
        known = self._status.peers.get(change.public_key)
        if known is None and (change.remove or change.update_only):
            return
        if change.remove:
            self._become_without(change.public_key)
            return
        own = self._status.private_key
        if known is None and own is not None and own.public == change.public_key:
            return
        self._take_from_their_owners(change.allowed_ips, change.public_key)
        self._become_with(change.public_key, merged(known or EMPTY_PEER, change))

    def _take_from_their_owners(self, taken: frozenset[IPNetwork], taker: WireGuardKey) -> None:
        # Silently, and in one step with the giving: this is no state of its own.
        losers = {
            key: replace(peer, allowed_ips=peer.allowed_ips - taken)
            for key, peer in self._status.peers.items()
            if key != taker and not taken.isdisjoint(peer.allowed_ips)
        }
        if losers:
            self._status = replace(self._status, peers={**self._status.peers, **losers})

    def _become_with(self, key: WireGuardKey, peer: PeerStatus) -> None:
        self._become(replace(self._status, peers={**self._status.peers, key: peer}))

    def _become_without(self, key: WireGuardKey) -> None:
        peers = {other: peer for other, peer in self._status.peers.items() if other != key}
        self._become(replace(self._status, peers=peers))

    def _become(self, status: DeviceStatus) -> None:
        self._status = status
        self.history.append(status)


def merged(known: PeerStatus, change: PeerChange) -> PeerStatus:
    """A peer after a change of it."""
    kept = frozenset() if change.replace_allowed_ips else known.allowed_ips
    peer = replace(known, allowed_ips=kept | change.allowed_ips)
    if change.endpoint is not None:
        peer = replace(peer, endpoint=change.endpoint)
    if change.persistent_keepalive is not None:
        peer = replace(peer, persistent_keepalive=change.persistent_keepalive)
    if change.preshared_key is not None:
        cleared = not any(change.preshared_key)
        peer = replace(peer, preshared_key=None if cleared else change.preshared_key)
    return peer


def owners(status: DeviceStatus) -> dict[IPNetwork, WireGuardKey]:
    """Who has which allowed-ip."""
    return dict(_owned(status))


def _owned(status: DeviceStatus) -> Iterator[tuple[IPNetwork, WireGuardKey]]:
    for key, peer in status.peers.items():
        for network in peer.allowed_ips:
            yield network, key
