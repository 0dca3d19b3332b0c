"""Hypothesis strategies for WireGuard devices."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import strategies as st

from meshd.keys import PresharedKey, WireGuardKey, WireGuardPrivateKey
from meshd.wg.types import (
    DeviceChange,
    DeviceSpec,
    DeviceStatus,
    Endpoint,
    PeerChange,
    PeerSpec,
    PeerStatus,
)

NO_PRESHARED_KEY = PresharedKey(bytes(32))

KEYS = [WireGuardKey(bytes([i]) * 32) for i in range(1, 6)]
PRIVATE_KEYS = [WireGuardPrivateKey(bytes([i]) * 32) for i in range(10, 12)]
PRESHARED_KEYS = [PresharedKey(bytes([i]) * 32) for i in range(20, 22)]
NETWORKS = [IPv4Network((i, 32)) for i in range(4)] + [IPv6Network((i, 128)) for i in range(4)]
ENDPOINTS = [Endpoint(IPv4Address("192.0.2.1"), port) for port in (1, 2, 3)]

keys = st.binary(min_size=32, max_size=32).map(WireGuardKey)
preshared_keys = st.binary(min_size=32, max_size=32).map(PresharedKey)
private_keys = st.binary(min_size=32, max_size=32).map(WireGuardPrivateKey)
networks = st.one_of(
    st.builds(
        lambda address, length: IPv4Network((address, length), strict=False),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda address, length: IPv6Network((address, length), strict=False),
        st.integers(0, 2**128 - 1),
        st.integers(0, 128),
    ),
)
endpoints = st.builds(
    Endpoint,
    st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address),
    st.integers(0, 2**16 - 1),
)


@st.composite
def ownerships(draw):
    """Peers among whom each allowed-ip has one owner at most, as WireGuard enforces."""
    peers = draw(st.lists(st.sampled_from(KEYS), unique=True))
    owner = st.sampled_from([None, *peers])
    owners = draw(st.fixed_dictionaries(dict.fromkeys(NETWORKS, owner)))
    return {
        peer: frozenset(network for network in NETWORKS if owners[network] == peer)
        for peer in peers
    }


@st.composite
def device_specs(draw):
    return DeviceSpec(
        private_key=draw(st.sampled_from(PRIVATE_KEYS)),
        listen_port=draw(st.integers(1, 3)),
        fwmark=draw(st.integers(0, 2)),
        peers={
            key: PeerSpec(
                allowed_ips=allowed_ips,
                endpoint=draw(st.sampled_from([None, *ENDPOINTS])),
                persistent_keepalive=draw(st.sampled_from([None, 0, 25])),
                preshared_key=draw(st.sampled_from([None, NO_PRESHARED_KEY, *PRESHARED_KEYS])),
            )
            for key, allowed_ips in draw(ownerships()).items()
        },
    )


@st.composite
def device_statuses(draw):
    return DeviceStatus(
        private_key=draw(st.sampled_from([None, *PRIVATE_KEYS])),
        listen_port=draw(st.integers(0, 3)),
        fwmark=draw(st.integers(0, 2)),
        peers={
            key: PeerStatus(
                allowed_ips=allowed_ips,
                endpoint=draw(st.sampled_from([None, *ENDPOINTS])),
                persistent_keepalive=draw(st.sampled_from([0, 25])),
                preshared_key=draw(st.sampled_from([None, *PRESHARED_KEYS])),
                last_handshake_time=draw(st.sampled_from([0.0, 1.5e9])),
                rx_bytes=draw(st.integers(0, 2)),
                tx_bytes=draw(st.integers(0, 2)),
            )
            for key, allowed_ips in draw(ownerships()).items()
        },
    )


peer_changes = st.builds(
    PeerChange,
    public_key=keys,
    remove=st.booleans(),
    update_only=st.booleans(),
    replace_allowed_ips=st.booleans(),
    allowed_ips=st.frozensets(networks, max_size=5),
    endpoint=st.none() | endpoints,
    persistent_keepalive=st.none() | st.integers(0, 2**16 - 1),
    preshared_key=st.none() | preshared_keys,
)
device_changes = st.builds(
    DeviceChange,
    private_key=st.none() | private_keys,
    listen_port=st.none() | st.integers(0, 2**16 - 1),
    fwmark=st.none() | st.integers(0, 2**32 - 1),
    peers=st.lists(peer_changes, max_size=4).map(tuple),
)
