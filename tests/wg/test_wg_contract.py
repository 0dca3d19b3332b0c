"""What every WireGuard device does, be it the kernel's, wireguard-go's or the fake."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from meshd.keys import PresharedKey, WireGuardKey, WireGuardPrivateKey
from meshd.wg.backend import open_device
from meshd.wg.diff import diff_device, renewal
from meshd.wg.types import DeviceChange, DeviceSpec, Endpoint, PeerChange, PeerSpec
from wg.fake_device import FakeDevice
from wg.wg_backends import REAL, REQUIRED
from wg.wg_namespaces import eventually, isolated, run
from wg.wg_strategies import NO_PRESHARED_KEY

OURS = WireGuardPrivateKey(b"\x11" * 32)
THEIRS = WireGuardPrivateKey(b"\x22" * 32)
WASTING = WireGuardPrivateKey(b"\x44" * 32)
PRESHARED = PresharedKey(b"\x33" * 32)
A, B, C = (WireGuardKey(bytes([number]) * 32) for number in (1, 2, 3))
X, Y, Z = (IPv4Network(f"10.0.0.{i}/32") for i in (1, 2, 3))
V6 = IPv6Network("fd00::1/128")
EVERYTHING = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))

PEERS_MANY = 1200
ALLOWED_IPS_MANY = 5500

pytestmark = pytest.mark.netns


@pytest.fixture(params=REQUIRED)
def device(request):
    if request.param == "fake":
        yield FakeDevice()
        return
    with isolated():
        device = open_device("wgtest0", backend=request.param)
        yield device
        device.close()


def change_peers(device, *peers):
    device.apply(DeviceChange(peers=peers))


def peer_of(key, *allowed_ips, **settings):
    return PeerChange(key, allowed_ips=frozenset(allowed_ips), **settings)


def allowed_ips(device):
    return {key: set(peer.allowed_ips) for key, peer in device.observe().peers.items()}


def test_a_new_device_has_no_key_and_no_peers(device):
    status = device.observe()

    assert (status.private_key, status.fwmark, dict(status.peers)) == (None, 0, {})


def test_settings_are_observed_as_they_were_set(device):
    device.apply(DeviceChange(private_key=OURS, listen_port=51821, fwmark=0x6D))

    status = device.observe()
    assert (status.private_key, status.listen_port, status.fwmark) == (OURS, 51821, 0x6D)


def test_what_is_not_mentioned_stays(device):
    device.apply(DeviceChange(private_key=OURS, listen_port=51821, fwmark=0x6D))
    device.apply(DeviceChange(fwmark=0))

    status = device.observe()
    assert (status.private_key, status.listen_port, status.fwmark) == (OURS, 51821, 0)


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint(IPv4Address("192.0.2.1"), 51820),
        Endpoint(IPv6Address("2001:db8::1"), 51820),
        None,
    ],
    ids=["IPv4", "IPv6", "none"],
)
def test_a_peer_is_observed_as_it_was_set(device, endpoint):
    change_peers(
        device,
        peer_of(A, X, V6, endpoint=endpoint, persistent_keepalive=25, preshared_key=PRESHARED),
    )

    peer = device.observe().peers[A]
    assert peer.allowed_ips == {X, V6}
    assert peer.endpoint == endpoint
    assert peer.persistent_keepalive == 25
    assert peer.preshared_key == PRESHARED
    assert peer.last_handshake_time == 0


def test_networks_of_any_size_are_allowed(device):
    networks = {IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/48"), *EVERYTHING}

    change_peers(device, peer_of(A, *networks))

    assert allowed_ips(device) == {A: networks}


def test_a_peers_settings_are_changed_one_by_one(device):
    change_peers(device, peer_of(A, X, persistent_keepalive=25, preshared_key=PRESHARED))
    change_peers(device, PeerChange(A, update_only=True, persistent_keepalive=0))
    change_peers(device, PeerChange(A, update_only=True, preshared_key=NO_PRESHARED_KEY))

    peer = device.observe().peers[A]
    assert (peer.persistent_keepalive, peer.preshared_key) == (0, None)
    assert peer.allowed_ips == {X}


def test_allowed_ips_are_added_to_those_there(device):
    change_peers(device, peer_of(A, X))
    change_peers(device, peer_of(A, Y, update_only=True))

    assert allowed_ips(device) == {A: {X, Y}}


def test_replaced_allowed_ips_are_all_there_are(device):
    change_peers(device, peer_of(A, X, Y))
    change_peers(device, peer_of(A, Y, Z, update_only=True, replace_allowed_ips=True))

    assert allowed_ips(device) == {A: {Y, Z}}


def test_an_allowed_ip_moves_silently_to_whom_it_is_given(device):
    change_peers(device, peer_of(A, X, Y), peer_of(B, Z))
    change_peers(device, peer_of(B, X, update_only=True))

    assert allowed_ips(device) == {A: {Y}, B: {X, Z}}


def test_replacing_allowed_ips_does_not_take_back_what_has_moved(device):
    change_peers(device, peer_of(A, X, Y), peer_of(B))
    change_peers(
        device,
        peer_of(B, X, update_only=True),
        peer_of(A, Y, update_only=True, replace_allowed_ips=True),
    )

    assert allowed_ips(device) == {A: {Y}, B: {X}}


def test_update_only_makes_no_peer(device):
    change_peers(
        device, peer_of(A, X), peer_of(B, X, update_only=True, replace_allowed_ips=True), peer_of(C)
    )

    assert allowed_ips(device) == {A: {X}, C: set()}


def test_removing_a_peer_frees_its_allowed_ips(device):
    change_peers(device, peer_of(A, X), peer_of(B, Y))
    change_peers(device, PeerChange(A, remove=True), peer_of(B, X))

    assert allowed_ips(device) == {B: {X, Y}}


def test_removing_a_peer_that_is_not_there_is_nothing(device):
    change_peers(device, PeerChange(A, remove=True), peer_of(B, X))

    assert allowed_ips(device) == {B: {X}}


def test_changes_of_one_peer_are_made_in_order(device):
    change_peers(
        device,
        peer_of(A, X, persistent_keepalive=25),
        PeerChange(A, remove=True),
        peer_of(A, Y),
        peer_of(B, Y),
    )

    assert allowed_ips(device) == {A: set(), B: {Y}}
    assert device.observe().peers[A].persistent_keepalive == 0


def test_our_own_key_is_no_peer(device):
    device.apply(DeviceChange(private_key=OURS))
    change_peers(device, peer_of(OURS.public, X), peer_of(A, Y))

    assert allowed_ips(device) == {A: {Y}}


def test_a_peer_whose_key_becomes_ours_is_gone(device):
    change_peers(device, peer_of(OURS.public, X), peer_of(A, Y))
    device.apply(DeviceChange(private_key=OURS))

    assert allowed_ips(device) == {A: {Y}}


def test_more_peers_than_fit_one_message_are_set_and_read(device):
    peers = {
        WireGuardKey(number.to_bytes(32, "little")): frozenset(
            {
                IPv4Network((number, 32)),
                IPv6Network((number, 128)),
            }
        )
        for number in range(1, PEERS_MANY + 1)
    }

    device.apply(
        DeviceChange(
            private_key=OURS, peers=tuple(peer_of(key, *ips) for key, ips in peers.items())
        )
    )
    assert allowed_ips(device) == peers

    device.apply(DeviceChange(peers=tuple(PeerChange(key, remove=True) for key in peers)))
    assert device.observe().peers == {}


def test_more_allowed_ips_than_fit_one_message_are_set_read_and_replaced(device):
    many = {IPv6Network((number, 128)) for number in range(ALLOWED_IPS_MANY)}
    others = {IPv4Network(((10 << 24) + number, 32)) for number in range(ALLOWED_IPS_MANY)}
    change_peers(device, peer_of(A, X), peer_of(B, *many, replace_allowed_ips=True), peer_of(C, Y))
    assert allowed_ips(device) == {A: {X}, B: many, C: {Y}}

    change_peers(device, peer_of(B, *others, update_only=True, replace_allowed_ips=True))
    assert allowed_ips(device) == {A: set(), B: others, C: set()}

    change_peers(device, peer_of(C, *others, V6, update_only=True))
    assert allowed_ips(device) == {A: set(), B: set(), C: others | {V6}}


def comparable(status):
    return replace(status, listen_port=0, peers=dict(status.peers))


@pytest.mark.parametrize("seed", range(3))
def test_the_fake_and_the_device_agree_on_any_changes(device, seed):
    rng = random.Random(seed)
    fake = FakeDevice()

    for _ in range(40):
        change = random_change(rng)
        fake.apply(change)
        device.apply(change)
        assert comparable(device.observe()) == comparable(fake.observe())


@pytest.mark.parametrize("seed", range(3))
def test_a_device_becomes_as_desired_in_one_change(device, seed):
    rng = random.Random(seed)

    for _ in range(20):
        desired = random_spec(rng)
        change = diff_device(desired, device.observe(), applied_endpoints={})
        if change is not None:
            device.apply(change)
        assert diff_device(desired, device.observe(), applied_endpoints={}) is None
        assert allowed_ips(device) == {k: set(p.allowed_ips) for k, p in desired.peers.items()}


KEYS = [A, B, C, OURS.public, THEIRS.public]
NETWORKS = [X, Y, Z, V6, *EVERYTHING]
ENDPOINTS = [Endpoint(IPv4Address("192.0.2.1"), port) for port in (1, 2)]


def random_change(rng):
    return DeviceChange(
        private_key=rng.choice([None, None, OURS, THEIRS]),
        fwmark=rng.choice([None, 0, 7]),
        peers=tuple(
            PeerChange(
                rng.choice(KEYS),
                remove=rng.random() < 0.2,
                update_only=rng.random() < 0.4,
                replace_allowed_ips=rng.random() < 0.3,
                allowed_ips=frozenset(rng.sample(NETWORKS, rng.randrange(4))),
                endpoint=rng.choice([None, *ENDPOINTS]),
                persistent_keepalive=rng.choice([None, 0, 25]),
                preshared_key=rng.choice([None, NO_PRESHARED_KEY, PRESHARED]),
            )
            for _ in range(rng.randrange(4))
        ),
    )


def random_spec(rng):
    # No device has itself as a peer.
    keys = rng.sample([A, B, C], rng.randrange(4))
    owners = {network: rng.choice([None, *keys]) for network in NETWORKS}
    return DeviceSpec(
        private_key=rng.choice([OURS, THEIRS]),
        listen_port=rng.choice([51821, 51822]),
        fwmark=rng.choice([0, 7]),
        peers={
            key: PeerSpec(
                frozenset(network for network in NETWORKS if owners[network] == key),
                endpoint=rng.choice([None, *ENDPOINTS]),
                persistent_keepalive=rng.choice([None, 0, 25]),
                preshared_key=rng.choice([None, NO_PRESHARED_KEY, PRESHARED]),
            )
            for key in keys
        },
    )


@pytest.fixture(params=REAL)
def pair(request):
    """Two devices that are each other's peers; only the second knows where the first is."""
    with isolated():
        first, second = (
            open_device(name, backend=request.param) for name in ("wgtest0", "wgtest1")
        )
        first.apply(
            DeviceChange(
                private_key=OURS, listen_port=51821, peers=(peer_of(THEIRS.public, *EVERYTHING),)
            )
        )
        second.apply(
            DeviceChange(
                private_key=THEIRS,
                listen_port=51822,
                peers=(
                    peer_of(
                        OURS.public,
                        *EVERYTHING,
                        endpoint=Endpoint(IPv4Address("127.0.0.1"), 51821),
                    ),
                ),
            )
        )
        for name in ("wgtest0", "wgtest1"):
            run("ip", "link", "set", name, "up")
        yield first, second
        first.close()
        second.close()


def send_now(device, key):
    """Make a device send a packet: switching its keepalive on does so at once."""
    for seconds in (0, 25):
        change_peers(device, PeerChange(key, update_only=True, persistent_keepalive=seconds))


def test_a_handshake_shows_in_times_counters_and_a_learnt_endpoint(pair):
    first, second = pair
    send_now(second, OURS.public)

    seen = eventually(
        lambda: (peer := first.observe().peers[THEIRS.public]).last_handshake_time and peer
    )
    assert seen.endpoint == Endpoint(IPv4Address("127.0.0.1"), 51822)
    assert seen.rx_bytes > 0
    assert seen.tx_bytes > 0


def test_changes_of_others_and_the_same_key_again_keep_a_session(pair):
    first, second = pair
    send_now(second, OURS.public)
    before = eventually(
        lambda: (peer := second.observe().peers[OURS.public]).last_handshake_time and peer
    )

    second.apply(DeviceChange(private_key=THEIRS, peers=(peer_of(A, X), peer_of(B, Y))))
    second.apply(DeviceChange(peers=(PeerChange(A, remove=True),)))
    received = first.observe().peers[THEIRS.public].rx_bytes
    send_now(second, OURS.public)
    eventually(lambda: first.observe().peers[THEIRS.public].rx_bytes > received)

    assert second.observe().peers[OURS.public].last_handshake_time == before.last_handshake_time


def test_a_learnt_endpoint_is_kept_by_the_diff(pair):
    first, second = pair
    send_now(second, OURS.public)
    eventually(lambda: first.observe().peers[THEIRS.public].endpoint)
    spec = DeviceSpec(OURS, 51821, 0, {THEIRS.public: PeerSpec(frozenset(EVERYTHING))})

    assert diff_device(spec, first.observe(), applied_endpoints={}) is None


def test_a_peer_made_anew_begins_a_handshake_before_one_that_repeats_a_wasted_initiation(pair):
    first, second = pair
    third = open_device("wgtest2", backend=first.backend)
    ports = {THEIRS: 51822, WASTING: 51823}
    third.apply(DeviceChange(private_key=WASTING, listen_port=51823, peers=(peer_of(OURS.public),)))
    run("ip", "link", "set", "wgtest2", "up")
    # What the interfaces say by themselves, of IPv6, may have made a session.
    for device, key in ((first, THEIRS.public), (second, OURS.public)):
        change_peers(device, PeerChange(key, remove=True))
    change_peers(second, peer_of(OURS.public))
    nowhere = Endpoint(IPv4Address("127.0.0.1"), 51824)
    for key in ports:
        change_peers(first, peer_of(key.public, endpoint=nowhere))
        send_now(first, key.public)
        eventually(lambda key=key: first.observe().peers[key.public].tx_bytes)

    peers = {
        key.public: PeerSpec(frozenset(), endpoint=Endpoint(IPv4Address("127.0.0.1"), port))
        for key, port in ports.items()
    }
    desired = DeviceSpec(OURS, 51821, 0, peers)
    first.apply(diff_device(desired, first.observe(), applied_endpoints={}))
    first.apply(renewal(desired, first.observe(), THEIRS.public))
    for key in peers:
        send_now(first, key)
    eventually(lambda: first.observe().peers[THEIRS.public].last_handshake_time)

    assert not first.observe().peers[WASTING.public].last_handshake_time
    third.close()
