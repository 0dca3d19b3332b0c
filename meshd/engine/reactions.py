"""What the gossip core and the path core tell, and what the node does about it.

    gossip ──"b is suspect"──▶ people (`wording`), the path to b is looked at again, a new plan
    path   ──"b is ready"────▶ b is pinged, as soon as the kernel has its endpoint too
    device ──counters────────▶ gossip: whose tunnel has carried something

Rule 1: a member that has left loses its tunnel.  It gets it back when it calls, or when others say
        that it is alive: only through the tunnel it can say so itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.engine import events
from meshd.engine.counters import CounterWatch
from meshd.engine.wording import Wording
from meshd.errors import BadPacket
from meshd.gossip import events as gossip_events
from meshd.gossip.claim import MemberState
from meshd.keys import NodeId
from meshd.path import events as path_events
from meshd.trust.fact import FactKind

if TYPE_CHECKING:
    from meshd.engine.engine import Engine
    from meshd.gossip.cause import Cause
    from meshd.wg.types import DeviceStatus

_STATE_EVENTS = {
    MemberState.ALIVE: "member-alive",
    MemberState.SUSPECT: "member-suspect",
    MemberState.DEAD: "member-dead",
    MemberState.LEFT: "member-left",
}
LEAVE_LINGER = 2.0  # how long datagrams of one that has left may still be under way


class Reactions:
    """See the module docstring."""

    def __init__(self, engine: Engine, *, now: float) -> None:
        self._engine = engine
        self.counters = CounterWatch(span=engine.config.gossip.probe_timeout_min * 2 / 3, now=now)
        self._wording = Wording(engine.name_of, engine.ledger.members)
        self._left: dict[NodeId, float] = {}  # who has left and not shown up since; when
        self._ready: dict[NodeId, float] = {}  # path proven, but not in the kernel yet; its RTT

    def has_left(self, node: NodeId) -> bool:
        """Whether a member has left, and not shown up since."""
        return node in self._left

    def member_dropped(self, node: NodeId) -> None:
        """Forget a node that is no member any more."""
        self._left.pop(node, None)
        self._ready.pop(node, None)

    def on_gossip(self, event: gossip_events.Event, now: float) -> None:
        """Act on what the gossip core tells."""
        match event:
            case gossip_events.MemberJoined(node):
                self._engine.notice("member-joined", node, "joined the mesh")
            case gossip_events.MemberRemoved(node):
                self._engine.drop_member(node, now)
            case gossip_events.MemberStateChanged(node, _, after, incarnation, cause):
                self._on_state(node, after, incarnation, cause, now)
            case gossip_events.PathFault(node, via):
                way = "over TCP" if via is None else f"by way of {self._engine.name_of(via)}"
                self._engine.notice(
                    "path-fault",
                    node,
                    f"does not answer directly, but does {way}",
                    via=None if via is None else self._engine.name_of(via),
                )
                self._engine.path.peer_suspect(node, now)
            case gossip_events.EvidenceWanted(node):
                self.counters.want(node, now)
            case gossip_events.FactLearned(fact, _):
                self._engine.fact_changed(fact, now)
            case gossip_events.EquivocationSeen(fact, _):
                self._engine.clones.equivocation(NodeId(fact.key), now)
            case gossip_events.IncarnationRaised(incarnation):
                self._engine.emit(events.IncarnationRaised(incarnation))
            case gossip_events.PingAnswered(node, sequence, rtt):
                self._engine.emit(events.PingAnswered(node, sequence, rtt))
            case gossip_events.LeaveAnnounced():
                self._engine.emit(events.Departed())
            case gossip_events.BadPacketReceived(_, reason):
                self._engine.bad_packets[reason] += 1
            case gossip_events.Heard():
                pass  # what follows from it, a change of state, is an event of its own

    def _on_state(
        self, node: NodeId, after: MemberState, incarnation: int, cause: Cause, now: float
    ) -> None:
        self._engine.notice(
            _STATE_EVENTS[after],
            node,
            self._wording.text(cause),
            incarnation=incarnation,
            **self._wording.details(cause),
        )
        self._left.pop(node, None)
        self._engine.preshared.state_changed(node, alive=after is MemberState.ALIVE)
        if after is MemberState.LEFT:
            self._left[node] = now
        elif after is not MemberState.ALIVE:
            self._engine.path.peer_suspect(node, now)
        self._engine.replan()

    def on_path(self, event: path_events.Event, now: float, wall: float) -> None:
        """Act on what the path core tells."""
        match event:
            case path_events.EndpointSelected(node, endpoint, _, before, reason):
                self._engine.notice(
                    "path-changed",
                    node,
                    f"is reached at {endpoint}: {reason}",
                    path="direct",
                    endpoint=str(endpoint),
                    before=None if before is None else str(before),
                )
                self._engine.replan()
            case path_events.PeerReady(node, rtt):
                self._ready[node] = rtt
                self.contact_ready(now)
            case path_events.RecordReceived(blob, source):
                self._on_record(blob, source, now, wall)
            case path_events.PeerCalling(node):
                # What it sent while it left may arrive after the news that it has.
                if now - self._left.get(node, now) >= LEAVE_LINGER:
                    self._returned(node)
            case path_events.PresharedHeard(node, told):
                self._engine.preshared.heard(node, told, now, wall)
            case path_events.ReflexiveChanged():
                self._engine.presence.due = True
                self._engine.replan()
            case path_events.ReflexiveAddress():
                pass  # one witness; `ReflexiveChanged` says when it is believed
            case path_events.BadPacketReceived(_, reason):
                self._engine.bad_packets[reason] += 1

    def take_counters(self, device: DeviceStatus, now: float) -> None:
        """Tell the gossip core through whose tunnel something has come since it asked."""

        def rx_bytes(node: NodeId) -> int | None:
            standing = self._engine.ledger.standing(node)
            if standing is None or node in self._engine.key_conflicts:
                return None
            peer = device.peers.get(standing.record.wireguard_key)
            return None if peer is None else peer.rx_bytes

        self.counters.looked(len(device.peers), now)
        for node in self.counters.observed(rx_bytes, now):
            self._engine.gossip.carried(node, now)

    def _returned(self, node: NodeId) -> None:
        """Give a member that had left its tunnel back: only through that it can say so."""
        if self._left.pop(node, None) is not None:
            self._engine.replan()

    def contact_ready(self, now: float) -> None:
        """Have those pinged whose proven endpoint the kernel has as well.

        Before it has one it drops what is sent to them; and what goes to an old one is lost.
        """
        for node, rtt in list(self._ready.items()):
            standing = self._engine.ledger.standing(node)
            assert standing is not None
            peer = self._engine.device.peers.get(standing.record.wireguard_key)
            if (
                peer is not None
                and peer.endpoint == self._engine.path.endpoint(node)
                and self._engine.preshared.applied(node, peer)
            ):
                del self._ready[node]
                self._engine.gossip.contact(node, now, rtt=rtt)

    def _on_record(self, blob: bytes, source: NodeId, now: float, wall: float) -> None:
        """Judge a record that came in a probe, and let its sender in if it is a member's."""
        if self._engine.ledger.revocation(source) is not None:
            self._engine.bad_packets["probe from a revoked node"] += (
                1  # nothing it says is passed on
            )
            return
        try:
            ended = self._engine.following.has_ended_untrusted(blob)
            if not ended:
                self._engine.learn(FactKind.RECORD, blob, now, wall)
        except BadPacket as exc:
            self._engine.bad_packets[exc.reason] += 1
            return
        if ended:
            self._engine.bad_packets["record under a root that has ended"] += 1
            return
        self._returned(source)
        self._engine.take_member(source, now)
