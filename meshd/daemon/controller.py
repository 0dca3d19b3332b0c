"""The daemon as the control socket sees it."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import trio

from meshd.control.invites import NewInvite
from meshd.daemon import approval, health, invites, paths, rekeying, revoking, sealing
from meshd.daemon.roots import held_mesh_key
from meshd.daemon.rotation import keys_snapshot
from meshd.daemon.snapshot import mesh_snapshot, peer_snapshots
from meshd.trust.invite import format_token

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from meshd.control.approval import ApprovalSnapshot, PendingSnapshot
    from meshd.control.events import EventHub
    from meshd.control.invites import InviteRequest, InviteSnapshot, OtherInviteSnapshot
    from meshd.control.keys import KeysSnapshot
    from meshd.control.netcheck import NetcheckSnapshot
    from meshd.control.rekeying import NodeKeyAnswer
    from meshd.control.relaying import RelaysSnapshot
    from meshd.control.revoking import RevokeAnswer, RevokeRequest
    from meshd.control.sealing import NewBootstrapAnswer, NewRootAnswer
    from meshd.control.snapshot import MemberSnapshot, MeshSnapshot, PeerSnapshot, PingAnswer
    from meshd.control.why import WhySnapshot
    from meshd.daemon.daemon import Daemon
    from meshd.keys import MeshId, NodeId

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
            ready=daemon.ready
            and bool(daemon.engine.identity.chain)
            and not daemon.engine.clones.silent,
            uptime=daemon.uptime,
            startup=daemon.milestones.phases,
            bad_packets=health.bad_packets(daemon),
            findings=tuple(health.host_findings(daemon)),
            audit_head=daemon.audit.head,
            holds_mesh_key=held_mesh_key(daemon.store, daemon.engine.identity) is not None,
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
            return paths.ping_answer(daemon.engine, node, rtt)
        daemon.answers.pop(sequence, None)
        return paths.ping_answer(daemon.engine, node, None)

    def why(self, member: MemberSnapshot) -> WhySnapshot:
        """Return what is known of the way to a member."""
        return paths.why(self._daemon.engine, member, now=trio.current_time(), wall=time.time())

    def netcheck(self) -> NetcheckSnapshot:
        """Return what is known of this node's network."""
        mapping = self._daemon.port_mapping
        return paths.netcheck(
            self._daemon.engine,
            mapper=None if mapping is None else mapping.view(),
            now=trio.current_time(),
            wall=time.time(),
        )

    def relays(self) -> RelaysSnapshot:
        """Return who relays for whom."""
        return paths.relays(self._daemon.engine, now=trio.current_time(), wall=time.time())

    async def drain(self, *, draining: bool) -> None:
        """Have those that are relayed here move elsewhere, or take new ones again."""
        engine = self._daemon.engine
        await self._daemon.driver.submit(
            lambda now, wall: engine.drain(now, wall, draining=draining)
        )

    async def invite(self, request: InviteRequest) -> NewInvite:
        """Issue an invite.  It is on disk before its token is returned."""
        invite, token = invites.issue(self._daemon, request)
        return NewInvite(invite, format_token(token))

    def invites(self) -> Sequence[InviteSnapshot]:
        """Return the invites this node has issued."""
        return invites.own(self._daemon)

    def other_invites(self) -> Sequence[OtherInviteSnapshot]:
        """Return what is known of other members' invites."""
        return invites.others(self._daemon)

    async def withdraw_invite(self, text: str) -> OtherInviteSnapshot:
        """Take back an invite."""
        return await invites.withdraw(self._daemon, text)

    def approval(self) -> ApprovalSnapshot:
        """Return who waits here."""
        return approval.snapshot(self._daemon)

    async def open_approval(self, span: float) -> None:
        """Let newcomers ask for so many seconds."""
        await approval.open_window(self._daemon, span)

    async def close_approval(self) -> None:
        """Answer no newcomer any more."""
        await approval.close_window(self._daemon)

    async def approve(self, code: str, grants: InviteRequest) -> PendingSnapshot:
        """Let in the newcomer with a code."""
        return await approval.approve(self._daemon, code, grants)

    async def deny(self, code: str) -> PendingSnapshot:
        """Send away the newcomer with a code."""
        return await approval.deny(self._daemon, code)

    def keys(self) -> KeysSnapshot:
        """Return what may be shown of this node's keys."""
        return keys_snapshot(self._daemon)

    async def rotate_key(self) -> None:
        """Begin to replace the WireGuard key."""
        await self._daemon.driver.submit(self._daemon.engine.rotate_key)

    def node_key(self) -> NodeKeyAnswer:
        """Return who this node is, and how far it is on its way to be another one."""
        return rekeying.answer(self._daemon)

    async def rotate_node_key(self, *, sure: bool) -> NodeKeyAnswer:
        """Begin to go on under a new node key, if that is sure."""
        return await rekeying.rotate_node_key(self._daemon, sure=sure)

    async def revoke(self, request: RevokeRequest) -> RevokeAnswer:
        """Throw a member out, or say what that would come to.  It is on disk when this returns."""
        return await revoking.revoke(self._daemon, request)

    async def seal(self, secret: str | None, *, sure: bool) -> NewRootAnswer:
        """Move an open mesh to a fresh mesh key and bootstrap key."""
        return await sealing.seal(self._daemon, secret, sure=sure)

    async def rotate_mesh_key(
        self, overlap: int, mesh_key: str | None, *, sure: bool
    ) -> NewRootAnswer:
        """Replace the mesh key: that on this node's disk, or the one given."""
        return await sealing.rotate_mesh_key(self._daemon, overlap, mesh_key, sure=sure)

    def mesh_key(self) -> tuple[MeshId, str]:
        """Return the mesh key that this node holds, and whose it is."""
        return sealing.export_mesh_key(self._daemon)

    def forget_mesh_key(self, root: str) -> None:
        """Delete the mesh key from this node's disk."""
        sealing.forget_mesh_key(self._daemon, root)

    async def rotate_bootstrap_key(self, *, sure: bool) -> NewBootstrapAnswer:
        """Replace the bootstrap key."""
        return await sealing.rotate_bootstrap_key(self._daemon, sure=sure)

    async def forget(self, node: NodeId) -> None:
        """Drop what is known of a member that is not alive."""
        await self._daemon.driver.submit(partial(self._daemon.engine.forget, node))

    async def leave(self) -> None:
        """Announce departure and take the interface down."""
        daemon = self._daemon
        await daemon.driver.submit(daemon.engine.leave)
        with trio.move_on_after(LEAVE_TIMEOUT):
            await daemon.departed.wait()
        if daemon.port_mapping is not None:
            await daemon.port_mapping.release()
        daemon.leave_host()

    def stop(self) -> None:
        """End the daemon with exit status 0."""
        self._daemon.stop()
