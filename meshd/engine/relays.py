"""Relays, both ways: what this node does for other members, and what others do for it.

    path agent: wanted, silent ─▶ ┌────────┐ ─▶ path agent: ports of relays to try
    tunnels: grants, gone, …   ─▶ │ client │ ─▶ tunnels: requests, releases
    records, gossip, paths     ─▶ └────────┘
    tunnels: requests, …       ─▶ ┌─────────────┐ ─▶ tunnels: grants, refusals, gone
    ports: hellos              ─▶ │ allocations │ ─▶ ports: pongs
    standings: no member       ─▶ └─────────────┘ ─▶ events: ports, maps, what to keep

Rule 1: only who has the right of it in its credential relays, and says so in its record; and a
        node says so by itself only where it has a public address of its own: the ports of relays
        are on no router that leads here.

Rule 2: both members of a pair are members; whoever stops being one, or leaves, loses all at once.

Rule 3: a restart takes up what is on disk, which is what the kernel still forwards.  Members keep
        nothing of that, so a relay tells those that have been started again.

Rule 4: a grant to a member that has not been heard waits until it is: what is sent into a tunnel
        before the path is ready has WireGuard waste its first initiation (`first_handshake`).
"""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import TYPE_CHECKING, TypeAlias

from meshd.engine import events
from meshd.engine.handover import Handover, mark, split
from meshd.errors import BadPacket
from meshd.gossip.claim import MemberState
from meshd.path import events as path_events
from meshd.path.candidates import PRIVATE_NETWORKS
from meshd.relay.allocations import Allocations, Refusal
from meshd.relay.client import Client, Offered, RelayView, Withdrawn
from meshd.relay.hello import Greeter
from meshd.relay.maps import make_maps
from meshd.relay.wire import (
    Draining,
    Gone,
    Grant,
    Message,
    Reason,
    Refused,
    Release,
    Request,
    decode_draining_untrusted,
    decode_gone_untrusted,
    decode_grant_untrusted,
    decode_refused_untrusted,
    decode_release_untrusted,
    decode_request_untrusted,
    encode,
)
from meshd.trust.record import CandidateKind
from meshd.underlay import Timer
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from random import Random

    from meshd.codec import IPAddress
    from meshd.engine.engine import Engine
    from meshd.keys import BootstrapKey, NodeId
    from meshd.relay.allocations import Allocation, AllocationStatistics, StoredAllocation
    from meshd.relay.hello import HelloStatistics, RelayOutgoing
    from meshd.trust.credential import Credential
    from meshd.trust.record import Candidate, Record
    from meshd.trust.standing import Standing

_PathEvent: TypeAlias = (
    path_events.RelayWanted
    | path_events.RelayUnwanted
    | path_events.RelaySilent
    | path_events.EndpointSelected
)

_KINDS: Mapping[Handover, tuple[type[Message], Callable[[bytes], Message]]] = {
    Handover.RELAY_REQUEST: (Request, decode_request_untrusted),
    Handover.RELAY_GRANT: (Grant, decode_grant_untrusted),
    Handover.RELAY_REFUSED: (Refused, decode_refused_untrusted),
    Handover.RELAY_RELEASE: (Release, decode_release_untrusted),
    Handover.RELAY_DRAINING: (Draining, decode_draining_untrusted),
    Handover.RELAY_GONE: (Gone, decode_gone_untrusted),
}
HANDOVERS = tuple(_KINDS)
_MARKS = {type_: kind for kind, (type_, _) in _KINDS.items()}
_NOT_PUBLIC = (*PRIVATE_NETWORKS, IPv4Network("100.64.0.0/10"))  # RFC 6598: inside providers


class Relays:
    """Owns the table of a relay, its hellos, and the client of other relays."""

    def __init__(
        self,
        engine: Engine,
        *,
        memory: Iterable[StoredAllocation],
        rng: Random,
        now: float,
        wall: float,
    ) -> None:
        self._engine = engine
        identity = engine.identity
        self._allocations = Allocations(engine.config.relay_ports)
        self._greeter = Greeter(
            identity.node_key,
            identity.mesh,
            identity.bootstrap_key,
            identity.older_bootstrap_key,
            allocations=self._allocations,
            rng=rng,
        )
        self._client = Client()
        self._runs: dict[NodeId, int] = {}  # of each member's daemon, by its record
        self._untold: dict[NodeId, None] = {}  # members whose grants wait until they are heard
        self._stranger_datagrams = 0
        self._ports_revision = 0  # as last told
        self._flows_revision = -1
        self._plan_revision = -1  # at which was looked who relays
        for pair in self._allocations.restore(memory, self._is_other, now, wall):
            engine.emit(events.AllocationChanged(pair, None))

    # For others

    def offers(self, credential: Credential, candidates: Iterable[Candidate]) -> bool:
        """Whether our record is to say that we relay."""
        wanted = self._engine.config.relay
        if not credential.relay or wanted is False or self._allocations.draining:
            return False
        return wanted is True or _is_reached(
            [each.address for each in candidates if each.kind is CandidateKind.HOST]
        )

    def receive_handover(self, datagram: bytes, source: NodeId, now: float, wall: float) -> None:
        """Handle what a member says through its tunnel."""
        kind, data = split(datagram)
        try:
            message = _KINDS[kind][1](data)
            match message:
                case Request(other):
                    self._on_request(source, other, now, wall)
                case Release(other):
                    self._tell_gone(self._allocations.release(source, other, now))
                case _:
                    self._on_relay_says(message, source, now, wall)
        except BadPacket as exc:
            self._engine.bad_packets[exc.reason] += 1

    def receive_datagram(
        self, datagram: bytes, source: Endpoint, port: int, local: IPAddress, now: float
    ) -> bool:
        """Handle what came to a port that we relay by, and is to be forwarded to nobody."""
        excluded = self._engine.presence.networks
        try:
            return self._greeter.receive_untrusted(datagram, source, port, local, excluded, now)
        except BadPacket as exc:
            self._engine.bad_packets[exc.reason] += 1
            return False

    def datagrams_to_send(self) -> list[RelayOutgoing]:
        """Take what is to be sent from ports that we relay by."""
        return self._greeter.datagrams_to_send()

    def take_traffic(self, traffic: Mapping[int, tuple[int, int]], strangers: int) -> None:
        """Take what was forwarded: datagrams and bytes, by the port they came in by."""
        for port, (datagrams, bytes_) in traffic.items():
            self._allocations.count_traffic(port, datagrams, bytes_)
        self._stranger_datagrams += strangers

    def port_taken(self, port: int) -> None:
        """Take that a port is some other program's."""
        self._tell_gone(self._allocations.exclude_port(port))

    def drain(self, *, draining: bool) -> None:
        """Take no new pairs and ask those there are to move, or end that."""
        if self._allocations.draining == draining:
            return
        self._allocations.draining = draining
        self._engine.presence.due = True
        for member in dict.fromkeys(m for each in self._allocations for m in each.pair):
            self._send(Draining(draining), member)

    def rekey(self, bootstrap_key: BootstrapKey, older: BootstrapKey | None) -> None:
        """Take the present bootstrap key, and the one before."""
        self._greeter.rekey(bootstrap_key, older)

    def member_says(self, node: NodeId, record: Record, now: float) -> None:
        """Tell a member what it has here once more, if it has been started again: it forgot."""
        before = self._runs.get(node)
        self._runs[node] = record.run
        if before not in {None, record.run}:
            for allocation in self._allocations.of_member(node):
                self._grant(allocation, node, now)

    def member_heard(self, node: NodeId, now: float) -> None:
        """Tell a member what has been allotted to it before there was a tunnel."""
        if node in self._untold:
            del self._untold[node]
            for allocation in self._allocations.of_member(node):
                self._grant(allocation, node, now)

    def member_gone(self, node: NodeId) -> None:
        """End all that is a node's that is no member any more, or has left."""
        for allocation in self._allocations.remove_member(node):
            self._tell_gone(allocation)

    # By others

    def member_dropped(self, node: NodeId) -> None:
        """Forget a node that is no member any more."""
        self.member_gone(node)
        self._runs.pop(node, None)
        self._untold.pop(node, None)
        self._client.remove_peer(node)

    def on_path(self, event: _PathEvent, now: float, wall: float) -> None:
        """Take what the path agent wants of relays."""
        match event:
            case path_events.RelayWanted(node=node, count=count):
                self._look(wall, now, anew=True)
                self._client.want(node, count, now)
            case path_events.RelayUnwanted(node=node):
                self._client.unwant(node, now)
            case path_events.RelaySilent(node=node, relay=relay):
                self._client.silent(node, relay, now)
            case path_events.EndpointSelected(node=node, relay=relay):
                self._client.in_use(node, relay, now)

    def carriage_changed(self, relay: NodeId, now: float) -> None:
        """Take that the ports of a relay are to be found elsewhere: over TCP, or no longer so."""
        del now
        self._plan_revision = -1
        self._client.offer_again(relay)

    # Both

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        for allocation in self._allocations.handle_timer(now):
            self._tell_gone(allocation)
        self._client.handle_timer(now)

    def settle(self, now: float, wall: float) -> bool:
        """Pass on what has come of the last input.  Return whether there was anything."""
        if self._plan_revision != self._engine.plan_revision:
            self._plan_revision = self._engine.plan_revision
            self._look(wall, now)
            if len(self._allocations) and not self._may_relay(wall):
                for allocation in self._allocations.clear():
                    self._tell_gone(allocation)
        busy = self._tell_shell(now, wall)
        while (event := self._client.next_event()) is not None:
            busy = True
            self._tell_path(event, now)
        for message, relay in self._client.messages_to_send():
            self._send(message, relay)
        return busy

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline and its reason."""
        timers = [self._client.get_timer()]
        soonest = self._allocations.soonest()
        if soonest is not None:
            timers.append(Timer(soonest, "end of a relayed pair"))
        return min((timer for timer in timers if timer is not None), default=None)

    # Views

    @property
    def allocations(self) -> Allocations:
        """What this node relays; only to be read."""
        return self._allocations

    @property
    def strangers(self) -> int:
        """Datagrams at our ports that were from nobody who may use them."""
        return self._stranger_datagrams + self._greeter.statistics().strangers

    def held(self, node: NodeId) -> tuple[NodeId, ...]:
        """Return the relays that there are for a peer."""
        return self._client.held(node)

    def statistics(self) -> tuple[AllocationStatistics, HelloStatistics]:
        """Return counts for people."""
        return self._allocations.statistics(), self._greeter.statistics()

    # Inside: as a relay

    def _may_relay(self, wall: float) -> bool:
        credential = self._engine.own_credential
        return (
            self._engine.config.relay is not False
            and credential is not None
            and credential.relay
            and not credential.expired(wall)
        )

    def _on_request(self, source: NodeId, other: NodeId, now: float, wall: float) -> None:
        if other in {source, self._engine.identity.node}:
            raise BadPacket("relay request for no pair")
        if not self._is_other(other) or self._has_left(other) or self._has_left(source):
            self._send(Refused(other, Reason.UNKNOWN_MEMBER), source)
            return
        try:
            allocation = self._allocations.request(
                source, other, now, new=self._may_relay(wall) and self._engine.presence.relays
            )
        except Refusal as refusal:
            self._send(Refused(other, refusal.reason), source)
            return
        for side in allocation.sides:
            self._grant(allocation, side.member, now)

    def _grant(self, allocation: Allocation, member: NodeId, now: float) -> None:
        if not self._hears(member):
            self._untold[member] = None
            return
        side = allocation.side(member)
        opposite = allocation.opposite(side).member
        view = self._engine.gossip.member(opposite)
        grant = Grant(
            opposite,
            side.port,
            max(1, round(allocation.expires_at - now)),
            rtt=None if view is None else view.rtt,
            load=self._allocations.load,
        )
        self._send(grant, member)

    def _tell_gone(self, allocation: Allocation | None) -> None:
        if allocation is None:
            return
        for side in allocation.sides:
            if self._is_other(side.member):
                self._send(Gone(allocation.opposite(side).member), side.member)

    def _tell_shell(self, now: float, wall: float) -> bool:
        changed = self._allocations.take_changed(now, wall)
        for pair, stored in changed:
            self._engine.emit(events.AllocationChanged(pair, stored))
        if self._ports_revision != self._allocations.ports_revision:
            self._ports_revision = self._allocations.ports_revision
            self._engine.emit(events.RelayPortsChanged(self._allocations.ports))
        if self._flows_revision != self._allocations.flows_revision:
            self._flows_revision = self._allocations.flows_revision
            self._engine.emit(events.RelayMapsChanged(make_maps(self._allocations)))
        return bool(changed)

    # Inside: as a member

    def _on_relay_says(self, message: Message, source: NodeId, now: float, wall: float) -> None:
        standing = self._engine.ledger.standing(source)
        if standing is None or not _may_relay(standing, wall):
            raise BadPacket("relaying by one that may not")
        if not isinstance(message, Draining) and not self._is_other(message.other):
            raise BadPacket("relaying for a node that is no member")
        self._look(wall, now, anew=isinstance(message, Grant))
        self._client.receive(message, source, now)

    def _look(self, wall: float, now: float, *, anew: bool = False) -> None:
        """Look who may be asked to relay, and who still does."""
        if self._client.idle and not anew:
            return
        in_service = self._client.in_service
        self._client.relays_changed(
            {
                node: view
                for node, standing in self._engine.others()
                if _may_relay(standing, wall)
                and (standing.record.relay or node in in_service)
                and (view := self._view(node, standing, wall)) is not None
            },
            now,
        )

    def _view(self, node: NodeId, standing: Standing, wall: float) -> RelayView | None:
        member, peer = self._engine.gossip.member(node), self._engine.path.peers.get(node)
        if member is None or member.state is MemberState.LEFT:
            return None
        reached = None
        if peer is not None:
            direct = peer.relay is None
            # Its ports are there over TCP though it is itself reached by way of another relay: so
            # two without UDP meet that have come by different ones.
            reached = (
                self._engine.path.endpoint(node) if direct else self._engine.carriage.host(node)
            )
        return RelayView(
            None if reached is None else reached.address,
            member.rtt,
            offers=standing.relays(wall) and member.state is not MemberState.DEAD,
        )

    def _tell_path(self, event: Offered | Withdrawn, now: float) -> None:
        engine = self._engine
        match event:
            case Offered(node, relay, address, port, draining):
                found = engine.carriage.endpoint_of(relay, Endpoint(address, port))
                if found is None:
                    engine.path.relay_withdrawn(node, relay, now)
                else:
                    endpoint, path_class = found
                    engine.path.relay_offered(
                        node, relay, endpoint, path_class=path_class, draining=draining, now=now
                    )
            case Withdrawn(node, relay, port):
                engine.path.relay_withdrawn(node, relay, now)
                engine.carriage.port_released(relay, port)

    def _is_other(self, node: NodeId) -> bool:
        standing = self._engine.ledger.standing(node)
        return node != self._engine.identity.node and standing is not None and standing.admitted

    def _hears(self, node: NodeId) -> bool:
        view = self._engine.gossip.member(node)
        return view is not None and view.heard

    def _has_left(self, node: NodeId) -> bool:
        view = self._engine.gossip.member(node)
        return view is not None and view.state is MemberState.LEFT

    def _send(self, message: Message, node: NodeId) -> None:
        self._engine.send_overlay(mark(_MARKS[type(message)], encode(message)), node)


def _is_reached(addresses: Collection[IPAddress]) -> bool:
    """Whether all ports of a host with these addresses are reached, as far as they can tell.

    Where IPv4 is behind NAT, the same router has a firewall that lets in nobody by IPv6 either.
    """
    versions = {address.version for address in addresses if is_public(address)}
    return 4 in versions or (6 in versions and all(each.version == 6 for each in addresses))


def is_public(address: IPAddress) -> bool:
    """Whether an address is for the whole Internet, documentation's counted in."""
    return not any(
        address.version == network.version and address in network for network in _NOT_PUBLIC
    )


def _may_relay(standing: Standing, wall: float) -> bool:
    """Whether a member has the right to relay, be it in service or not."""
    credential = standing.credential
    return standing.admitted and credential.relay and not credential.expired(wall)
