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
from meshd.engine.first_handshake import RTT_MAX
from meshd.engine.traffic import TrafficWatch
from meshd.engine.wording import Wording
from meshd.errors import BadPacket
from meshd.gossip import events as gossip_events
from meshd.gossip.claim import MemberState
from meshd.keys import NodeId
from meshd.path import events as path_events
from meshd.trust.fact import FactKind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv6Address

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
        self.traffic = TrafficWatch(engine)
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
        self._engine.first_handshake.member_dropped(node)
        self.traffic.forget(node)

    def on_gossip(self, event: gossip_events.Event, now: float) -> None:
        """Act on what the gossip core tells."""
        match event:
            case gossip_events.MemberJoined(node):
                if not self._engine.rekeyed.follows(node):
                    self._engine.notice("member-joined", node, "joined the mesh")
                    self._engine.takings.joined(node)
            case gossip_events.MemberRemoved(node):
                self._engine.membership.drop(node, now)
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
                self._engine.membership.fact_changed(fact, now)
            case gossip_events.RecordEvicted(node):
                self._engine.membership.record_evicted(node, now)
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
            case gossip_events.Believed(node, live):
                self._engine.path.peer_wanted(node, now, wanted=live)
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
            self._engine.relays.member_gone(node)
        elif after is MemberState.ALIVE:
            self._engine.relays.member_heard(node, now)
        else:
            self._engine.path.peer_suspect(node, now)
        self._engine.replan()

    def on_path(self, event: path_events.Event, now: float, wall: float) -> None:
        """Act on what the path core tells."""
        match event:
            case path_events.EndpointSelected():
                self._on_endpoint(event, now, wall)
            case path_events.RelayWanted() | path_events.RelayUnwanted():
                self._engine.relays.on_path(event, now, wall)
            case path_events.RelaySilent():
                self._engine.relays.on_path(event, now, wall)
            case path_events.CallWanted(node):
                self._engine.calling.call(node)
            case path_events.PathFailed(node, endpoint, silent_for):
                self._engine.notice(
                    "path-failed",
                    node,
                    f"does not answer at {endpoint}: silent for {silent_for:.1f} s under traffic",
                    endpoint=str(endpoint),
                )
            case path_events.KeepaliveChanged():
                self._engine.replan()
            case path_events.Insist():
                self._engine.replan()
                self._engine.emit(events.HurryDevice())
            case path_events.PeerReady(node, rtt):
                self.traffic.wake(now)
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

    def _on_endpoint(self, event: path_events.EndpointSelected, now: float, wall: float) -> None:
        relay = None if event.relay is None else self._engine.name_of(event.relay)
        by_way = "" if relay is None else f" by way of {relay}"
        self._engine.notice(
            "path-changed",
            event.node,
            f"is reached at {event.endpoint}{by_way}: {event.reason}",
            path="direct" if relay is None else "relayed",
            relay=relay,
            endpoint=str(event.endpoint),
            before=None if event.before is None else str(event.before),
        )
        self._engine.relays.on_path(event, now, wall)
        self._engine.replan()
        self.traffic.wake(now)
        if event.hurry:
            # Something has to be sent by the new path at once, for the other side's WireGuard.
            view = self._engine.path.view(event.node)
            assert view is not None
            self._ready[event.node] = view.rtt
            self._engine.emit(events.HurryDevice())

    @property
    def look_at(self) -> float:
        """When somebody should look at the device's counters: infinity if never."""
        return min(self.counters.at, self.traffic.at)

    def note_own(self, datagrams: Iterable[tuple[bytes, IPv6Address]]) -> None:
        """Take what meshd sends through the tunnels."""
        for datagram, address in datagrams:
            node = self._engine.member_at(address)
            if node is not None:
                self.traffic.note_sent(node, datagram)

    def give_up_counters(self, now: float) -> None:
        """Take that the device cannot be read for the moment."""
        self.counters.give_up()
        self.traffic.give_up(now)

    def take_counters(self, device: DeviceStatus, now: float) -> None:
        """Tell the cores through whose tunnel something has come."""

        def rx_bytes(node: NodeId) -> int | None:
            standing = self._engine.ledger.standing(node)
            if standing is None or node in self._engine.key_conflicts:
                return None
            peer = device.peers.get(standing.record.wireguard_key)
            return None if peer is None else peer.rx_bytes

        self.counters.looked(len(device.peers), now)
        for node in self.counters.observed(rx_bytes, now):
            self._engine.gossip.carried(node, now)
        if now >= self.traffic.at:
            self._take_traffic(device, now)

    def _take_traffic(self, device: DeviceStatus, now: float) -> None:
        peers = [
            (node, peer)
            for node, standing in self._engine.others()
            if (peer := device.peers.get(standing.record.wireguard_key)) is not None
            and node not in self._engine.key_conflicts
        ]
        self.traffic.observed(peers, now)
        for node, peer in peers:
            if peer.endpoint is not None:
                self._engine.path.endpoint_observed(node, peer.endpoint, now)

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
                rtt = min(rtt, RTT_MAX)
                self._engine.gossip.contact(node, now, rtt=rtt)
                self._engine.first_handshake.contacted(node, now, rtt=rtt)

    def _on_record(self, blob: bytes, source: NodeId, now: float, wall: float) -> None:
        """Judge a record that came in a probe, and let its sender in if it is a member's."""
        if self._engine.ledger.revocation(source) is not None:
            self._engine.bad_packets["probe from a revoked node"] += (
                1  # nothing it says is passed on
            )
            return
        if self._engine.ledger.lineage.in_place_of(source) is not None:
            self._engine.bad_packets["probe from a succeeded node"] += 1
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
        self._engine.membership.take(source, now)
