"""The fewest changes that bring a WireGuard device from what it is to what it should be.

Rule 1: never start over.  No `replace_peers`, no key or port written that is there already: a peer
        that is not to change keeps its session.

Rule 2: an allowed-ip that has an owner before and after has one in between.  The kernel moves an
        allowed-ip silently to whoever is given it, so that givers come last:

            drops (hold nothing others want) → gains and settings → shrinkings → drops (the others)

        A peer that only hands allowed-ips over needs no change of its own.

Rule 3: WireGuard roams by itself, and what it has seen is newer than what we once decided.  An
        endpoint is written when it is a new decision, or when the peer has none.

This module is pure: `meshd.wg.kernel` and `meshd.wg.userspace` observe and apply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from meshd.wg.types import DeviceChange, PeerChange, PeerStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshd.codec import IPNetwork
    from meshd.keys import PresharedKey, WireGuardKey
    from meshd.wg.types import DeviceSpec, DeviceStatus, Endpoint, PeerSpec

T = TypeVar("T")

_NO_PEER = PeerStatus(
    allowed_ips=frozenset(),
    endpoint=None,
    persistent_keepalive=0,
    preshared_key=None,
    last_handshake_time=0.0,
    rx_bytes=0,
    tx_bytes=0,
)


def diff_device(
    desired: DeviceSpec,
    observed: DeviceStatus,
    *,
    applied_endpoints: Mapping[WireGuardKey, Endpoint],
) -> DeviceChange | None:
    """Return the change to apply, or None when there is nothing to do.

    `applied_endpoints` holds the endpoint decided and applied last for each peer, so that a peer
    which has roamed since is left alone.  A desired listen port of 0 means: any.
    """
    change = DeviceChange(
        private_key=_if_changed(desired.private_key, observed.private_key),
        listen_port=_if_changed(desired.listen_port, observed.listen_port) or None,
        fwmark=_if_changed(desired.fwmark, observed.fwmark),
        peers=_diff_peers(desired.peers, observed.peers, applied_endpoints),
    )
    return None if change == DeviceChange() else change


def _diff_peers(
    desired: Mapping[WireGuardKey, PeerSpec],
    observed: Mapping[WireGuardKey, PeerStatus],
    applied_endpoints: Mapping[WireGuardKey, Endpoint],
) -> tuple[PeerChange, ...]:
    moving = _moving(desired, observed)
    early: list[PeerChange] = []
    late: list[PeerChange] = []
    for key in sorted(observed.keys() - desired.keys()):
        removals = early if moving.isdisjoint(observed[key].allowed_ips) else late
        removals.append(PeerChange(key, remove=True))
    settings: list[PeerChange] = []
    shrinkings: list[PeerChange] = []
    for key, spec in sorted(desired.items()):
        known = observed.get(key)
        if known is None:
            settings.append(_added(key, spec))
            continue
        dropped = known.allowed_ips - spec.allowed_ips - moving
        # It may not let go of all at once while another has yet to take some of it.
        gives = not moving.isdisjoint(known.allowed_ips - spec.allowed_ips)
        setting = _changed(
            key, spec, known, applied_endpoints.get(key), replace=bool(dropped) and not gives
        )
        if setting != PeerChange(key, update_only=True):
            settings.append(setting)
        if dropped and gives:
            shrinkings.append(_replaced(key, spec))
    return (*early, *settings, *shrinkings, *late)


def _moving(
    desired: Mapping[WireGuardKey, PeerSpec], observed: Mapping[WireGuardKey, PeerStatus]
) -> frozenset[IPNetwork]:
    """Return the allowed-ips that leave one peer for another."""
    gained = [
        spec.allowed_ips - observed.get(key, _NO_PEER).allowed_ips for key, spec in desired.items()
    ]
    lost = [
        known.allowed_ips - desired[key].allowed_ips if key in desired else known.allowed_ips
        for key, known in observed.items()
    ]
    return _union(gained) & _union(lost)


def _union(sets: Iterable[frozenset[IPNetwork]]) -> frozenset[IPNetwork]:
    return frozenset().union(*sets)


def _added(key: WireGuardKey, spec: PeerSpec) -> PeerChange:
    return PeerChange(
        key,
        # The peer may have come into being, with whatever allowed-ips, since we looked.
        replace_allowed_ips=True,
        allowed_ips=spec.allowed_ips,
        endpoint=spec.endpoint,
        persistent_keepalive=_if_changed(spec.persistent_keepalive, 0),
        preshared_key=_if_changed_secret(spec.preshared_key, None),
    )


def _changed(
    key: WireGuardKey,
    spec: PeerSpec,
    known: PeerStatus,
    applied_endpoint: Endpoint | None,
    *,
    replace: bool,
) -> PeerChange:
    return PeerChange(
        key,
        # Without it a peer that somebody else has just removed would come back half-made.
        update_only=True,
        replace_allowed_ips=replace,
        allowed_ips=spec.allowed_ips if replace else spec.allowed_ips - known.allowed_ips,
        endpoint=_endpoint_to_write(spec.endpoint, known.endpoint, applied_endpoint),
        persistent_keepalive=_if_changed(spec.persistent_keepalive, known.persistent_keepalive),
        preshared_key=_if_changed_secret(spec.preshared_key, known.preshared_key),
    )


def _replaced(key: WireGuardKey, spec: PeerSpec) -> PeerChange:
    return PeerChange(key, update_only=True, replace_allowed_ips=True, allowed_ips=spec.allowed_ips)


def _endpoint_to_write(
    wanted: Endpoint | None, known: Endpoint | None, applied: Endpoint | None
) -> Endpoint | None:
    if known is None:
        return wanted
    return None if wanted in (known, applied) else wanted


def _if_changed(wanted: T | None, known: T | None) -> T | None:
    return None if wanted == known else wanted


def _if_changed_secret(
    wanted: PresharedKey | None, known: PresharedKey | None
) -> PresharedKey | None:
    """Compare pre-shared keys, of which 32 zero bytes are none (wg(8))."""
    if wanted is None or wanted == known or (known is None and not any(wanted)):
        return None
    return wanted
