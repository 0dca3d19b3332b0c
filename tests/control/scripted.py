"""A controller that says what it was told to say, and remembers what it was asked."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from meshd.audit import Head
from meshd.control.api import make_routes, not_allowed
from meshd.control.approval import ApprovalSnapshot, PendingSnapshot, unknown_code
from meshd.control.events import EventHub
from meshd.control.invites import (
    InviteRequest,
    InviteSnapshot,
    NewInvite,
    OtherInviteSnapshot,
)
from meshd.control.netcheck import NatSnapshot, NearRelay, NetcheckSnapshot
from meshd.control.relaying import RelayedPair, RelayMember, RelaysSnapshot
from meshd.control.revoking import RevokeAnswer, RevokeRequest
from meshd.control.server import serve
from meshd.control.snapshot import (
    EventRecord,
    HealthFinding,
    MemberSnapshot,
    MeshSnapshot,
    PeerSnapshot,
    PingAnswer,
    SelfSnapshot,
)
from meshd.control.socket import ControlSocket
from meshd.control.why import PairSnapshot, WhySnapshot
from meshd.keys import InviteId, MeshId, NodeId, WireGuardKey
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NOW = 1_700_000_000.0


def node_id(number: int) -> NodeId:
    return NodeId(number.to_bytes(2, "big") * 16)


def member(name: str, number: int, **changes: object) -> MemberSnapshot:
    made = MemberSnapshot(
        id=node_id(number),
        name=name,
        state="alive",
        incarnation=1,
        ipv4=ip_address(f"100.64.0.{number}"),
        ipv6=ip_address(f"fd00::{number}"),
        public_key=WireGuardKey(bytes([number]) * 32),
        endpoint=Endpoint(ip_address("203.0.113.7"), 51820),
        path="direct",
        rtt=0.0013,
        handshake_age=14.23,
        rx_bytes=1_300_000,
        tx_bytes=512,
        version="0.1.0",
        post_quantum=True,
        psk_age=90.0,
    )
    return replace(made, **changes)


ME = SelfSnapshot(
    id=node_id(1),
    name="a",
    ipv4=ip_address("100.64.0.1"),
    ipv6=ip_address("fd00::1"),
    public_key=WireGuardKey(bytes([1]) * 32),
    interface="mesh0",
    listen_port=51820,
    backend="kernel",
    relay=True,
    ready=True,
    uptime=12.5,
    version="0.1.0",
    startup={"import": 0.21, "bootstrap": 0.05},
    bad_packets={"handshake does not open": 3},
    audit_head=Head(3, bytes([7]) * 32),
)

MESH = MeshSnapshot(
    id=MeshId(bytes([9]) * 32),
    name="home",
    me=ME,
    members=(
        member("c", 3, state="dead", path=None, endpoint=None, rtt=None, handshake_age=None),
        member("b", 2),
    ),
    health=(HealthFinding("warning", "udp-blocked", "no answer on UDP port 51820"),),
)

INVITE = InviteSnapshot(id=InviteId(bytes([5]) * 32), issued_at=NOW, expires_at=NOW + 3600)
OTHER_INVITE = OtherInviteSnapshot(
    id=InviteId(bytes([6]) * 32),
    uses=3,
    uses_left=1,
    state="unknown",
    withdrawn_at=None,
    used_by=("b", "c"),
)
PENDING = PendingSnapshot(
    code="K7QF-2MXA",
    name="web",
    id=node_id(9),
    source=Endpoint(ip_address("10.0.0.9"), 40000),
    age=3.0,
    state="waiting",
)
WAITING = ApprovalSnapshot(open_for=580.0, pending=(PENDING,))

REVOCATION = RevokeAnswer(
    done=False,
    id=node_id(2),
    name="b",
    ipv4="100.64.0.2",
    ipv6="fd00::2",
    state="alive",
    cascade=False,
    signer="the mesh key",
    revoked_at=NOW,
    falls=(),
    stays=((node_id(3), "c"),),
)


NAT = NatSnapshot(
    family=4,
    addresses=("192.168.2.2",),
    mapping="address-and-port-dependent",
    filtering="unknown",
    port_preserving=False,
    told_by=3,
    reflexive=(),
)
RELAY_PORT = Endpoint(ip_address("203.0.113.9"), 51900)
PAIRS = (
    PairSnapshot(
        pair_class="lan",
        address=Endpoint(ip_address("192.168.3.2"), 51820),
        relay=None,
        result="no answer",
        asked_age=3.21,
        proven_age=None,
        rtt=None,
        unanswered=14,
        losses=0,
    ),
    PairSnapshot(
        pair_class="relayed",
        address=RELAY_PORT,
        relay="r",
        result="in use",
        asked_age=0.5,
        proven_age=0.5,
        rtt=0.0041,
        unanswered=0,
        losses=0,
    ),
)
NETCHECK = NetcheckSnapshot(
    listen_port=51820,
    control_port=0,
    mtu=1420,
    nats=(NAT,),
    port_mapping=None,
    candidates=(("host", Endpoint(ip_address("192.168.2.2"), 51820)),),
    relays=(NearRelay("r", Endpoint(ip_address("203.0.113.9"), 51820), 0.002),),
)
RELAYS = RelaysSnapshot(
    relaying=True,
    why_not=None,
    draining=False,
    ports=(51900, 53947),
    pairs_max=1024,
    strangers=2,
    pairs=(RelayedPair(("b", "c"), (51900, 51901), True, 480.0, 1200, 1_300_000),),
    relays=(RelayMember("r", "alive", RELAY_PORT, 0.002, ("b",), ("c",)),),
)


@dataclass
class ScriptedController:
    mesh: MeshSnapshot = MESH
    database: Path = Path("mesh.db")
    rtts: list[float | None] = field(default_factory=lambda: [0.0012])
    paths: list[tuple[str, str | None]] = field(default_factory=lambda: [("direct", None)])
    pairs: tuple[PairSnapshot, ...] = PAIRS
    network: NetcheckSnapshot = NETCHECK
    relayed: RelaysSnapshot = RELAYS
    may_invite: bool = True
    token: str = "meshd1.token"
    pending: ApprovalSnapshot = WAITING
    revocation: RevokeAnswer | Exception = REVOCATION
    events: EventHub = field(default_factory=EventHub)
    asked: list[object] = field(default_factory=list)
    stopped: trio.Event = field(default_factory=trio.Event)
    looked: trio.Event = field(default_factory=trio.Event)

    def status(self) -> MeshSnapshot:
        self.looked.set()
        return self.mesh

    def peers(self) -> tuple[PeerSnapshot, ...]:
        return (
            PeerSnapshot(
                public_key=WireGuardKey(bytes([2]) * 32),
                member="b",
                endpoint=Endpoint(ip_address("2001:db8::7"), 51820),
                allowed_ips=(ip_network("100.64.0.2/32"), ip_network("fd00::2/128")),
                persistent_keepalive=25,
                handshake_age=14.23,
                rx_bytes=1_300_000,
                tx_bytes=512,
            ),
        )

    async def ping(self, node: NodeId, timeout: float) -> PingAnswer:  # noqa: ASYNC109
        self.asked.append(("ping", node))
        rtt = self.rtts.pop(0) if len(self.rtts) > 1 else self.rtts[0]
        await trio.lowlevel.checkpoint()
        path, relay = self.paths.pop(0) if len(self.paths) > 1 else self.paths[0]
        return PingAnswer(rtt, path, Endpoint(ip_address("203.0.113.7"), 51820), relay)

    def why(self, member: MemberSnapshot) -> WhySnapshot:
        return WhySnapshot(
            member=member,
            installed=True,
            installs_us=True,
            pairs=self.pairs,
            nat=NAT,
            has_address=True,
            port=51820,
            relays=1,
            key_conflict=False,
        )

    def netcheck(self) -> NetcheckSnapshot:
        return self.network

    def relays(self) -> RelaysSnapshot:
        return self.relayed

    async def drain(self, *, draining: bool) -> None:
        self.asked.append(("drain", draining))
        why_not = "it is being drained: see `meshctl undrain`" if draining else None
        self.relayed = replace(
            self.relayed, relaying=not draining, draining=draining, why_not=why_not
        )

    async def invite(self, request: InviteRequest) -> NewInvite:
        self.asked.append(request)
        if not self.may_invite:
            raise not_allowed("this node may not invite: its credential has no `admit`")
        made = replace(
            INVITE,
            uses=request.uses,
            uses_left=request.uses or None,
            tags=request.tags,
            name=request.name,
        )
        return NewInvite(made, self.token)

    def invites(self) -> tuple[InviteSnapshot, ...]:
        return (replace(INVITE, tags=("web",), used_by=("b",), uses_left=0, state="used"),)

    def other_invites(self) -> tuple[OtherInviteSnapshot, ...]:
        return (OTHER_INVITE,)

    async def withdraw_invite(self, text: str) -> OtherInviteSnapshot:
        self.asked.append(("withdraw", text))
        return replace(OTHER_INVITE, state="withdrawn", withdrawn_at=NOW)

    def approval(self) -> ApprovalSnapshot:
        return self.pending

    async def open_approval(self, span: float) -> None:
        self.asked.append(("open", span))
        self.pending = replace(self.pending, open_for=span)

    async def close_approval(self) -> None:
        self.asked.append(("close",))
        self.pending = ApprovalSnapshot()

    async def approve(self, code: str, grants: InviteRequest) -> PendingSnapshot:
        return replace(self._find("approve", code, grants), state="approved")

    async def deny(self, code: str) -> PendingSnapshot:
        return replace(self._find("deny", code), state="denied")

    def _find(self, *asked: object) -> PendingSnapshot:
        self.asked.append(asked)
        for pending in self.pending.pending:
            if pending.code == asked[1]:
                return pending
        raise unknown_code(str(asked[1]))

    async def forget(self, node: NodeId) -> None:
        self.asked.append(("forget", node))

    async def revoke(self, request: RevokeRequest) -> RevokeAnswer:
        self.asked.append(request)
        if isinstance(self.revocation, Exception):
            raise self.revocation
        return replace(self.revocation, done=request.sure, cascade=request.cascade)

    async def leave(self) -> None:
        self.asked.append("leave")

    def stop(self) -> None:
        self.stopped.set()

    # What the test makes happen

    def happen(self, event: str, mesh: MeshSnapshot | None = None, **details: object) -> None:
        self.mesh = self.mesh if mesh is None else mesh
        self.events.publish(EventRecord(NOW, event, "b", f"b: {event}", details))


@asynccontextmanager
async def serving(controller: ScriptedController, directory: Path) -> AsyncIterator[Path]:
    """Run the real server on a socket in a directory."""
    bound = ControlSocket.listen(directory / "mesh0.sock")
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, bound, make_routes(controller))
            yield bound.path
            nursery.cancel_scope.cancel()
    finally:
        bound.close()
