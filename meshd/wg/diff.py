"""The fewest changes that bring a WireGuard device from what it is to what it should be.

Rule 1: never start over.  No `replace_peers`, no key or port written that is there already: a peer
        that is not to change keeps its session, and is not mentioned.

Rule 2: an allowed-ip that has an owner before and after has one in between.  The kernel moves an
        allowed-ip silently to whoever is given it, so that givers come last:

            drops (hold nothing others want) → gains and settings → shrinkings → drops (the others)

        A peer that only hands allowed-ips over needs no change of its own.  Allowed-ips are
        replaced only where one is left to nobody: the kernel empties the set and fills it again,
        and for those microseconds the peer has none.

Rule 3: WireGuard roams by itself, and what it has seen is newer than what we once decided.  An
        endpoint is written when it is a new decision, or when the peer has none; where it is
        insisted on, whenever the peer has another one.

Rule 4: a peer that has had no session may be made anew, and is where a handshake may have gone
        nowhere (`with_fresh_starts`, `renewal`); one that has had a session never is.

This module is pure: `meshd.wg.kernel` and `meshd.wg.userspace` observe and apply.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from meshd.wg.types import DeviceChange, PeerChange

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.codec import IPNetwork
    from meshd.keys import PresharedKey, WireGuardKey
    from meshd.wg.types import DeviceSpec, DeviceStatus, Endpoint, PeerSpec, PeerStatus

T = TypeVar("T")

_NOTHING: frozenset[IPNetwork] = frozenset()
_UNSET = (None, None, None)


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


def renewal(desired: DeviceSpec, observed: DeviceStatus, key: WireGuardKey) -> DeviceChange | None:
    """Return the change that makes a peer anew that has had no session; None if it has had one.

    WireGuard repeats a handshake that was lost after 5 s only; a new peer begins one at once.  What
    waits to be sent to the peer is lost.
    """
    spec, known = desired.peers.get(key), observed.peers.get(key)
    if spec is None or known is None or known.last_handshake_time:
        return None
    return DeviceChange(peers=_made_anew(key, spec, known))


def with_fresh_starts(
    change: DeviceChange, desired: DeviceSpec, observed: DeviceStatus
) -> DeviceChange:
    """Return the change with those peers made anew that get an endpoint for the first time.

    wireguard-go begins a handshake with a peer that has no endpoint, which goes nowhere, and for
    5 s no other.  The kernel's WireGuard drops what is for such a peer, and loses nothing by this.
    """
    peers: list[PeerChange] = []
    for peer in change.peers:
        known = observed.peers.get(peer.public_key)
        first = peer.endpoint is not None and known is not None and known.endpoint is None
        # Allowed-ips that move at the same time keep their order: rule 2.
        if not first or known is None or known.last_handshake_time or _moves_allowed_ips(peer):
            peers.append(peer)
            continue
        peers += _made_anew(peer.public_key, desired.peers[peer.public_key], known)
    return replace(change, peers=tuple(peers))


def _moves_allowed_ips(peer: PeerChange) -> bool:
    return peer.replace_allowed_ips or bool(peer.allowed_ips)


def _diff_peers(
    desired: Mapping[WireGuardKey, PeerSpec],
    observed: Mapping[WireGuardKey, PeerStatus],
    applied_endpoints: Mapping[WireGuardKey, Endpoint],
) -> tuple[PeerChange, ...]:
    gained = _allowed_ips_beyond(desired, observed)
    lost = _allowed_ips_beyond(observed, desired)
    moving = _union(gained) & _union(lost)
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
        # What moves goes by itself.  What is left to nobody goes by replacing all the peer has,
        # and that has to wait until the others have taken theirs.
        losses = lost.get(key, _NOTHING)
        shrinks = not losses <= moving
        waits = shrinks and not losses.isdisjoint(moving)
        change = _changed(
            key,
            spec,
            known,
            applied_endpoints.get(key),
            replace_allowed_ips=shrinks and not waits,
            allowed_ips=spec.allowed_ips if shrinks and not waits else gained.get(key, _NOTHING),
        )
        if change is not None:
            settings.append(change)
        if waits:
            shrinkings.append(_shrunk(key, spec))
    return (*early, *settings, *shrinkings, *late)


def _allowed_ips_beyond(
    these: Mapping[WireGuardKey, PeerSpec] | Mapping[WireGuardKey, PeerStatus],
    those: Mapping[WireGuardKey, PeerSpec] | Mapping[WireGuardKey, PeerStatus],
) -> dict[WireGuardKey, frozenset[IPNetwork]]:
    """Return what peers have in `these` and have not in `those`; who has no such is left out."""
    beyond = {}
    for key, peer in these.items():
        other = those[key].allowed_ips if key in those else _NOTHING
        # Hashing and comparing networks is what a diff of equals would spend its time on.
        if peer.allowed_ips != other and (difference := peer.allowed_ips - other):
            beyond[key] = difference
    return beyond


def _union(sets: Mapping[WireGuardKey, frozenset[IPNetwork]]) -> frozenset[IPNetwork]:
    return _NOTHING.union(*sets.values())


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


def _made_anew(key: WireGuardKey, spec: PeerSpec, known: PeerStatus) -> tuple[PeerChange, ...]:
    added = _added(key, spec)
    if spec.preshared_key is None:
        added = replace(added, preshared_key=_if_changed_secret(known.preshared_key, None))
    return PeerChange(key, remove=True), added


def _changed(
    key: WireGuardKey,
    spec: PeerSpec,
    known: PeerStatus,
    applied_endpoint: Endpoint | None,
    *,
    replace_allowed_ips: bool,
    allowed_ips: frozenset[IPNetwork],
) -> PeerChange | None:
    applied = None if spec.insists else applied_endpoint
    endpoint = _endpoint_to_write(spec.endpoint, known.endpoint, applied)
    keepalive = _if_changed(spec.persistent_keepalive, known.persistent_keepalive)
    preshared_key = _if_changed_secret(spec.preshared_key, known.preshared_key)
    if not (replace_allowed_ips or allowed_ips) and (endpoint, keepalive, preshared_key) == _UNSET:
        return None
    return PeerChange(
        key,
        # Without it a peer that somebody else has just removed would come back half-made.
        update_only=True,
        replace_allowed_ips=replace_allowed_ips,
        allowed_ips=allowed_ips,
        endpoint=endpoint,
        persistent_keepalive=keepalive,
        preshared_key=preshared_key,
    )


def _shrunk(key: WireGuardKey, spec: PeerSpec) -> PeerChange:
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
