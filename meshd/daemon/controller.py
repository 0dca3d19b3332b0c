"""The daemon as the control socket sees it."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

import trio

from meshd.control.api import not_allowed
from meshd.control.snapshot import InviteSnapshot, NewInvite, PingAnswer
from meshd.daemon import health
from meshd.daemon.audit import invite_details
from meshd.daemon.rotation import keys_snapshot
from meshd.daemon.snapshot import mesh_snapshot, peer_snapshots
from meshd.keys import KEY_BYTES, InviteKey
from meshd.store import StoredInvite
from meshd.trust.credential import excess
from meshd.trust.invite import (
    INVITE_BYTES_MAX,
    SEEDS_MAX,
    Invite,
    Token,
    format_token,
    open_invite_untrusted,
    sign_invite,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from meshd.control.events import EventHub
    from meshd.control.keys import KeysSnapshot
    from meshd.control.snapshot import InviteRequest, MeshSnapshot, PeerSnapshot
    from meshd.daemon.daemon import Daemon
    from meshd.keys import NodeId

CREDENTIAL_LIFETIME = 365 * 86400  # of what an invite turns into
LEAVE_TIMEOUT = 2.0  # goodbye is said within this time, or not at all


class DaemonController:
    """Implements `meshd.control.api.Controller`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @property
    def events(self) -> EventHub:
        """Where events are published."""
        return self._daemon.hub

    @property
    def database(self) -> Path:
        """Where the audit log is."""
        return self._daemon.store.path

    def status(self) -> MeshSnapshot:
        """Return the mesh as it is seen at this moment."""
        daemon = self._daemon
        return mesh_snapshot(
            daemon.engine,
            interface=daemon.config.interface,
            backend=daemon.reconciler.device.backend,
            ready=daemon.ready and bool(daemon.engine.identity.chain),
            uptime=daemon.uptime,
            startup=daemon.milestones.phases,
            bad_packets=health.bad_packets(daemon),
            findings=tuple(health.host_findings(daemon)),
            audit_head=daemon.audit.head,
            wall=time.time(),
        )

    def peers(self) -> Sequence[PeerSnapshot]:
        """Return the WireGuard device's peers."""
        return peer_snapshots(self._daemon.engine, time.time())

    async def ping(self, node: NodeId, timeout: float) -> PingAnswer:  # noqa: ASYNC109 - see Controller
        """Ping a member through its tunnel once."""
        daemon = self._daemon
        send, receive = trio.open_memory_channel[float](1)
        sequence = await daemon.driver.submit(
            lambda now, _wall: daemon.expect(daemon.engine.ping(node, now), send)
        )
        with trio.move_on_after(timeout):
            rtt = await receive.receive()
            standing = daemon.engine.ledger.standing(node)
            peer = (
                None
                if standing is None
                else daemon.engine.device.peers.get(standing.record.wireguard_key)
            )
            return PingAnswer(
                rtt=rtt, path="direct", endpoint=None if peer is None else peer.endpoint
            )
        daemon.answers.pop(sequence, None)
        return PingAnswer(rtt=None)

    async def invite(self, request: InviteRequest) -> NewInvite:
        """Issue an invite.  It is on disk before its token is returned."""
        daemon, engine = self._daemon, self._daemon.engine
        identity, credential = engine.identity, engine.own_credential
        wall = time.time()
        if credential is None or not engine.ledger.may_admit(identity.node, wall):
            raise not_allowed(
                f"this node may not invite; ask one of: {', '.join(self._admitters()) or 'nobody'}"
            )
        key = InviteKey(os.urandom(KEY_BYTES))
        invite = Invite(
            id=key.id,
            issuer=identity.node,
            expires_at=int(wall + request.lifetime),
            uses=0 if request.reusable else 1,
            name=request.name or "",
            tags=request.tags,
            routes=request.routes,
            admit=request.admit,
            relay=credential.relay,
            lifetime=CREDENTIAL_LIFETIME,
        )
        too_much = excess(credential, invite)
        if too_much is not None:
            raise not_allowed(f"this node may not grant that: {too_much}")
        blob = sign_invite(invite, identity.node_key, identity.mesh)
        if len(blob) > INVITE_BYTES_MAX:
            raise not_allowed("too many tags and networks for one invite; grant fewer")
        daemon.store.save_invite(StoredInvite(invite.id, int(wall), blob))
        daemon.audit.note(
            "invite-issued",
            subject=invite.id,
            signer=identity.node,
            details=invite_details(invite),
        )
        token = Token(
            mesh=identity.mesh,
            bootstrap_key=identity.bootstrap_key,
            seeds=tuple(str(endpoint) for endpoint in daemon.seed_endpoints()[:SEEDS_MAX]),
            invite_key=key,
            invite=blob,
            ipv4_prefix=identity.ipv4_prefix,
            open_mesh=identity.open_mesh,
        )
        return NewInvite(self._snapshot(invite, wall), format_token(token))

    def invites(self) -> Sequence[InviteSnapshot]:
        """Return the invites this node has issued and that have not expired."""
        wall = time.time()
        stored = (
            (open_invite_untrusted(each.blob, self._daemon.engine.identity.mesh), each.issued_at)
            for each in self._daemon.store.load_invites()
        )
        return [
            self._snapshot(invite, issued_at)
            for invite, issued_at in stored
            if invite.expires_at > wall
        ]

    def keys(self) -> KeysSnapshot:
        """Return what may be shown of this node's keys."""
        return keys_snapshot(self._daemon)

    async def rotate_key(self) -> None:
        """Begin to replace the WireGuard key."""
        await self._daemon.driver.submit(self._daemon.engine.rotate_key)

    async def forget(self, node: NodeId) -> None:
        """Drop what is known of a member that is not alive."""
        await self._daemon.driver.submit(partial(self._daemon.engine.forget, node))

    async def leave(self) -> None:
        """Announce departure and take the interface down."""
        daemon = self._daemon
        await daemon.driver.submit(daemon.engine.leave)
        with trio.move_on_after(LEAVE_TIMEOUT):
            await daemon.departed.wait()
        daemon.leave_host()

    def stop(self) -> None:
        """End the daemon with exit status 0."""
        self._daemon.stop()

    def _admitters(self) -> Iterator[str]:
        engine, wall = self._daemon.engine, time.time()
        for node, standing in engine.others():
            if standing.may_admit(wall):
                yield engine.name_of(node)

    def _snapshot(self, invite: Invite, issued_at: float) -> InviteSnapshot:
        engine = self._daemon.engine
        return InviteSnapshot(
            id=invite.id,
            issued_at=issued_at,
            expires_at=invite.expires_at,
            reusable=invite.uses != 1,
            admit=invite.admit,
            name=invite.name or None,
            tags=invite.tags,
            routes=invite.routes,
            used_by=tuple(engine.name_of(node) for node in engine.ledger.invite(invite.id).winners),
        )
