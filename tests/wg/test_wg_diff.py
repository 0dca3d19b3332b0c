from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from meshd.wg.diff import diff_device, renewal, with_fresh_starts
from meshd.wg.types import DeviceSpec, Endpoint, PeerChange, PeerSpec
from wg.fake_device import EMPTY_PEER, FakeDevice, owners
from wg.wg_strategies import (
    ENDPOINTS,
    KEYS,
    NO_PRESHARED_KEY,
    PRESHARED_KEYS,
    PRIVATE_KEYS,
    device_specs,
    device_statuses,
)

A, B, C = KEYS[:3]
X, Y, Z = (ip_network(f"10.0.0.{i}/32") for i in range(3))
ROAMED = Endpoint(IPv4Address("198.51.100.9"), 4444)


def spec(**peers):
    """A device whose peers are given as A=PeerSpec(...)."""
    return DeviceSpec(PRIVATE_KEYS[0], 51820, 0, {globals()[name]: p for name, p in peers.items()})


def having(*allowed_ips, **settings):
    return PeerSpec(frozenset(allowed_ips), **settings)


def holding(desired):
    """A device that is as desired."""
    device = FakeDevice()
    reconcile(device, desired)
    return device


def reconcile(device, desired, applied_endpoints=None):
    change = diff_device(desired, device.observe(), applied_endpoints=applied_endpoints or {})
    if change is not None:
        device.apply(change)
    return change


def assert_as_desired(status, desired):
    assert status.private_key == desired.private_key
    assert status.listen_port == desired.listen_port
    assert status.fwmark == desired.fwmark
    assert status.peers.keys() == desired.peers.keys()
    for key, wanted in desired.peers.items():
        peer = status.peers[key]
        assert peer.allowed_ips == wanted.allowed_ips
        if wanted.endpoint is not None:
            assert peer.endpoint == wanted.endpoint
        if wanted.persistent_keepalive is not None:
            assert peer.persistent_keepalive == wanted.persistent_keepalive
        if wanted.preshared_key is not None:
            assert (peer.preshared_key or NO_PRESHARED_KEY) == wanted.preshared_key


@given(desired=device_specs(), observed=device_statuses())
def test_applying_the_diff_gives_the_desired_device(desired, observed):
    device = FakeDevice(observed)

    reconcile(device, desired)

    assert_as_desired(device.observe(), desired)


@given(desired=device_specs(), observed=device_statuses())
def test_a_device_as_desired_needs_no_change(desired, observed):
    device = FakeDevice(observed)
    reconcile(device, desired)

    assert reconcile(device, desired) is None


@given(desired=device_specs(), observed=device_statuses())
def test_what_is_left_unset_stays_as_it_was(desired, observed):
    device = FakeDevice(observed)
    reconcile(device, desired)
    after = device.observe()

    for key in observed.peers.keys() & desired.peers.keys():
        wanted, before = desired.peers[key], observed.peers[key]
        if wanted.endpoint is None:
            assert after.peers[key].endpoint == before.endpoint
        if wanted.persistent_keepalive is None:
            assert after.peers[key].persistent_keepalive == before.persistent_keepalive
        if wanted.preshared_key is None:
            assert after.peers[key].preshared_key == before.preshared_key


@given(desired=device_specs(), observed=device_statuses())
def test_an_allowed_ip_with_an_owner_before_and_after_has_one_at_each_step(desired, observed):
    device = FakeDevice(observed)
    reconcile(device, desired)

    lasting = owners(observed).keys() & owners(device.observe()).keys()
    for state in device.history:
        assert lasting <= owners(state).keys()


@given(desired=device_specs(), observed=device_statuses())
def test_a_peer_that_stays_is_never_removed_in_between(desired, observed):
    device = FakeDevice(observed)
    reconcile(device, desired)

    lasting = observed.peers.keys() & desired.peers.keys()
    for state in device.history:
        assert lasting <= state.peers.keys()


@given(desired=device_specs(), observed=device_statuses())
def test_a_peer_that_has_what_it_should_is_not_mentioned(desired, observed):
    change = diff_device(desired, observed, applied_endpoints={})
    mentioned = {peer.public_key for peer in change.peers} if change else set()

    for key in mentioned & observed.peers.keys() & desired.peers.keys():
        assert desired.peers[key] != PeerSpec(
            allowed_ips=observed.peers[key].allowed_ips,
            endpoint=observed.peers[key].endpoint,
            persistent_keepalive=observed.peers[key].persistent_keepalive,
            preshared_key=observed.peers[key].preshared_key,
        )


@given(desired=device_specs(), observed=device_statuses(), seed=st.randoms(use_true_random=False))
def test_the_diff_does_not_depend_on_the_order_of_peers(desired, observed, seed):
    def shuffled(peers):
        return dict(seed.sample(sorted(peers.items()), len(peers)))

    assert diff_device(
        replace(desired, peers=shuffled(desired.peers)),
        replace(observed, peers={k: observed.peers[k] for k in reversed(observed.peers)}),
        applied_endpoints={},
    ) == diff_device(desired, observed, applied_endpoints={})


def test_an_unset_endpoint_leaves_a_roamed_peer_alone():
    device = holding(spec(A=having(X, endpoint=ENDPOINTS[0])))
    device.roam(A, ROAMED)

    assert reconcile(device, spec(A=having(X))) is None


def test_a_roamed_endpoint_is_not_reverted_to_the_one_applied_before():
    desired = spec(A=having(X, endpoint=ENDPOINTS[0]))
    device = holding(desired)
    device.roam(A, ROAMED)

    assert reconcile(device, desired, {A: ENDPOINTS[0]}) is None


def test_an_endpoint_that_is_insisted_on_is_written_again_and_only_if_it_is_another():
    desired = spec(A=having(X, endpoint=ENDPOINTS[0], insists=True))
    device = holding(desired)
    assert reconcile(device, desired, {A: ENDPOINTS[0]}) is None
    device.roam(A, ROAMED)

    change = reconcile(device, desired, {A: ENDPOINTS[0]})

    assert change.peers == (PeerChange(A, update_only=True, endpoint=ENDPOINTS[0]),)


def test_a_new_decision_moves_a_roamed_endpoint():
    device = holding(spec(A=having(X, endpoint=ENDPOINTS[0])))
    device.roam(A, ROAMED)

    change = reconcile(device, spec(A=having(X, endpoint=ENDPOINTS[1])), {A: ENDPOINTS[0]})

    assert change.peers == (PeerChange(A, update_only=True, endpoint=ENDPOINTS[1]),)


def test_a_decision_that_roaming_has_anticipated_needs_no_change():
    device = holding(spec(A=having(X, endpoint=ENDPOINTS[0])))
    device.roam(A, ROAMED)

    assert reconcile(device, spec(A=having(X, endpoint=ROAMED)), {A: ENDPOINTS[0]}) is None


def test_a_peer_made_anew_gets_its_endpoint_even_if_it_was_applied_before():
    desired = spec(A=having(X, endpoint=ENDPOINTS[0]))
    device = holding(spec())

    reconcile(device, desired, {A: ENDPOINTS[0]})

    assert device.observe().peers[A].endpoint == ENDPOINTS[0]


def test_a_peer_that_lost_its_endpoint_gets_it_even_if_it_was_applied_before():
    device = holding(spec(A=having(X)))

    reconcile(device, spec(A=having(X, endpoint=ENDPOINTS[0])), {A: ENDPOINTS[0]})

    assert device.observe().peers[A].endpoint == ENDPOINTS[0]


def test_giving_an_allowed_ip_away_is_one_change_of_the_taker():
    device = holding(spec(A=having(X, Y), B=having(Z)))

    change = reconcile(device, spec(A=having(Y), B=having(X, Z)))

    assert change.peers == (PeerChange(B, update_only=True, allowed_ips=frozenset({X})),)


def test_two_peers_that_swap_and_shrink_first_take_and_then_let_go():
    device = holding(spec(A=having(X, ip_network("10.1.0.0/16")), B=having(Y, Z)))

    change = reconcile(device, spec(A=having(Y), B=having(X)))

    assert [(peer.public_key, peer.replace_allowed_ips) for peer in change.peers] == [
        (A, False),
        (B, False),
        (A, True),
        (B, True),
    ]


def test_a_peer_whose_address_passes_to_another_is_removed_last():
    device = holding(spec(A=having(X), B=having(Y)))

    change = reconcile(device, spec(C=having(X)))

    assert [(peer.public_key, peer.remove) for peer in change.peers] == [
        (B, True),
        (C, False),
        (A, True),
    ]


def test_zero_bytes_clear_a_preshared_key_once():
    device = holding(spec(A=having(X, preshared_key=PRESHARED_KEYS[0])))
    cleared = spec(A=having(X, preshared_key=NO_PRESHARED_KEY))

    assert reconcile(device, cleared) is not None
    assert device.observe().peers[A] == replace(EMPTY_PEER, allowed_ips=frozenset({X}))
    assert reconcile(device, cleared) is None


def test_listen_port_zero_takes_whatever_port_there_is():
    device = holding(spec())

    assert reconcile(device, replace(spec(), listen_port=0)) is None


def test_no_secret_shows_in_a_change():
    secret, preshared = PRIVATE_KEYS[1], PRESHARED_KEYS[1]
    desired = replace(spec(A=having(X, preshared_key=preshared)), private_key=secret)

    change = diff_device(desired, FakeDevice().observe(), applied_endpoints={})

    for value in (desired, change, holding(desired).observe()):
        for key in (secret, preshared):
            assert key.hex() not in repr(value)
            assert repr(bytes(key)) not in repr(value)


def test_a_peer_that_has_had_a_session_is_not_renewed():
    desired = spec(A=having(X), B=having(Y))
    device = holding(desired)
    shaken = replace(device.observe().peers[A], last_handshake_time=1.0)
    status = replace(device.observe(), peers={**device.observe().peers, A: shaken})

    assert renewal(desired, status, A) is None
    assert renewal(desired, status, C) is None
    assert [peer.public_key for peer in renewal(desired, status, B).peers] == [B, B]


@given(device_specs())
def test_a_renewed_peer_is_as_desired(desired):
    device = holding(desired)

    for key in desired.peers:
        device.apply(renewal(desired, device.observe(), key))

    assert_as_desired(device.observe(), desired)


def test_a_renewed_peer_keeps_a_preshared_key_that_is_not_for_us_to_say():
    device = holding(spec(A=having(X, preshared_key=PRESHARED_KEYS[0])))

    device.apply(renewal(spec(A=having(X)), device.observe(), A))

    assert device.observe().peers[A].preshared_key == PRESHARED_KEYS[0]


def fresh_start(desired, observed):
    change = diff_device(desired, observed, applied_endpoints={})
    return with_fresh_starts(change, desired, observed)


def test_a_peer_that_gets_its_first_endpoint_is_made_anew_in_the_same_change():
    device = holding(spec(A=having(X), B=having(Y)))
    desired = spec(A=having(X, endpoint=ENDPOINTS[0]), B=having(Y, persistent_keepalive=25))

    change = fresh_start(desired, device.observe())
    device.apply(change)

    assert [(peer.public_key, peer.remove) for peer in change.peers] == [
        (A, True),
        (A, False),
        (B, False),
    ]
    assert_as_desired(device.observe(), desired)


def test_a_peer_with_a_session_or_another_endpoint_is_never_made_anew():
    known = holding(spec(A=having(X), B=having(Y, endpoint=ROAMED))).observe()
    shaken = replace(known.peers[A], last_handshake_time=1.0)
    observed = replace(known, peers={**known.peers, A: shaken})
    desired = spec(A=having(X, endpoint=ENDPOINTS[0]), B=having(Y, endpoint=ENDPOINTS[0]))

    assert not any(peer.remove for peer in fresh_start(desired, observed).peers)


@given(desired=device_specs(), observed=device_statuses())
def test_a_device_is_as_desired_with_fresh_starts_too(desired, observed):
    device = FakeDevice(observed)
    change = diff_device(desired, observed, applied_endpoints={})

    if change is not None:
        device.apply(with_fresh_starts(change, desired, observed))

    assert diff_device(desired, device.observe(), applied_endpoints={}) is None
