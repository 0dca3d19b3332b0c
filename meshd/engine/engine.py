"""One node of the mesh, entire, as a state machine without IO.

The engine joins four cores that know nothing of each other:

    bootstrap ──"let in"──▶ ledger ──"a member is new"──▶ path ──"both kernels know"──▶ gossip
                              ▲                            │                              │
                              └──── facts, verified ◀──────┴──────────────────────────────┘

and makes the plan from what they know.  It is driven like each of them: one input, then its
outputs are drained (`underlay_datagrams`, `overlay_datagrams`, `streams_to_open`, `next_event`,
and `wants_look`), then it is left alone until `get_timer` or the next input.  `plan_revision`
grows whenever `desired_state` gives something new.

Rule 1: the ledger is the only judge of who is a member and what it may say; whatever comes in
        goes there first.

Rule 2: a datagram from the tunnel is from the member whose address it bears, because WireGuard
        lets no other source through; one from the underlay is from whoever its seal proves.

Rule 3: the engine decides nothing that one of the cores could decide.

Times: `now` is monotonic, `wall` is the wall clock; both in seconds, both always given.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING

from meshd.addresses import overlay_address
from meshd.bootstrap.limits import Buckets
from meshd.engine import events
from meshd.engine.admission import Admission
from meshd.engine.approval import Approval
from meshd.engine.calling import Calling
from meshd.engine.carriage import Carriage
from meshd.engine.clones import Clones
from meshd.engine.entry import Entry
from meshd.engine.epochs import Epochs
from meshd.engine.events import OverlayStream
from meshd.engine.first_handshake import FirstHandshake
from meshd.engine.following import Following
from meshd.engine.handover import (
    HANDOVERS_BURST_MAX,
    HANDOVERS_PER_SECOND_MAX,
    Handover,
    is_handover,
    split,
)
from meshd.engine.invites import Invites
from meshd.engine.membership import Membership
from meshd.engine.planning import Planning
from meshd.engine.presence import Presence
from meshd.engine.preshared import Preshared
from meshd.engine.reactions import Reactions
from meshd.engine.rekeyed import Rekeyed
from meshd.engine.rekeying import Rekeying
from meshd.engine.relays import HANDOVERS as RELAY_HANDOVERS
from meshd.engine.relays import Relays
from meshd.engine.renewal import Renewal
from meshd.engine.revoking import Revoking
from meshd.engine.rotation import Rotation
from meshd.engine.takings import Takings
from meshd.errors import BadPacket
from meshd.gossip.node import Node
from meshd.path.agent import Agent
from meshd.trust.credential import verify_chain_untrusted
from meshd.trust.fact import DECISIVE, FactKind
from meshd.trust.ledger import MEMBERS_MAX, Ledger
from meshd.underlay import DatagramType, Timer, datagram_type_untrusted
from meshd.wg.types import DeviceStatus

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv6Address
    from random import Random

    from meshd.carrier.resort import CarrierState
    from meshd.codec import IPAddress
    from meshd.engine.config import EngineConfig, Memory
    from meshd.engine.events import Detail, Event
    from meshd.engine.handover import Receiver
    from meshd.engine.identity import Identity
    from meshd.engine.revoking import Draft
    from meshd.engine.rotation import WireGuardKeys
    from meshd.engine.sealing import Draft as SealingDraft
    from meshd.keys import MeshKey, NodeId, NodeKey
    from meshd.plan.plan import DesiredState
    from meshd.preshared.kem import Kem
    from meshd.relay.hello import RelayOutgoing
    from meshd.trust.credential import Credential
    from meshd.trust.fact import Fact
    from meshd.trust.standing import Standing
    from meshd.underlay import Outgoing
    from meshd.wg.types import Endpoint


class Engine:
    """See the module docstring."""

    def __init__(
        self,
        identity: Identity,
        *,
        config: EngineConfig,
        memory: Memory,
        rng: Random,
        now: float,
        wall: float,
    ) -> None:
        """`rng` must be unpredictable outside tests: nonces and keys are made from it."""
        self.identity = identity
        self.config = config
        self.ledger = Ledger(identity.mesh, own=identity.node, roots=identity.roots)
        self.plan_revision = 0
        self.bad_packets: Counter[str] = Counter()
        self.swamped = False  # by datagrams on the underlay: set by the driver
        self.device = DeviceStatus(private_key=None, listen_port=0, fwmark=0)
        self._events: deque[Event] = deque()
        self._overlay: list[tuple[bytes, IPv6Address]] = []
        self.membership = Membership(self)
        self.planning = Planning(self)
        self.clones = Clones(self, rng=rng, now=now, wall=wall)
        self.presence = Presence(self, sequence=memory.sequence)
        self.carriage = Carriage(self, now=now)
        self.rekeying = Rekeying(self, rng=rng)
        self.rekeyed = Rekeyed(self)
        self.path = Agent(
            identity.node_key,
            identity.mesh,
            identity.bootstrap_key,
            older_bootstrap_key=identity.older_bootstrap_key,
            config=config.path,
            excluded=self.presence.networks,
            rng=rng,
            now=now,
        )
        for fact in memory.facts:
            self.membership.remember(fact, wall)
        self.gossip = Node(
            identity.node_key,
            identity.mesh,
            self.ledger,
            config=config.gossip,
            rng=rng,
            now=now,
            incarnation=memory.incarnation,
        )
        self.first_handshake = FirstHandshake(self)
        self.reactions = Reactions(self, now=now)
        while self.gossip.next_event() is not None:
            pass  # those we remember have not just joined
        self.entry = Entry(self, rng=rng, now=now, wall=wall)
        self.admission = Admission(self, rng=rng, now=now)
        self.approval = Approval(self, rng=rng, now=now)
        self.invites = Invites(self)
        self.revoking = Revoking(self)
        self.takings = Takings(self)
        self.following = Following(self, now=now)
        self.epochs = Epochs(self, rng=rng, now=now)
        self.renewal = Renewal(self, rng=rng, now=now)
        self.rotation = Rotation(self, keys=memory.keys, rng=rng, now=now, wall=wall)
        self.preshared = Preshared(self, memory=memory.keyrings, rng=rng, now=now)
        self.calling = Calling(self, rng=rng)
        self.relays = Relays(self, memory=memory.allocations, rng=rng, now=now, wall=wall)
        self._handovers: Buckets[NodeId] = Buckets(
            rate=HANDOVERS_PER_SECOND_MAX, burst=HANDOVERS_BURST_MAX, keys_max=MEMBERS_MAX
        )
        self._receivers: dict[Handover, Receiver] = {
            Handover.KEY_OFFER: self.preshared,
            Handover.KEY_ANSWER: self.preshared,
            Handover.KEY_CONFIRM: self.preshared,
            Handover.ADMISSION_REQUEST: self.admission,
            Handover.ADMISSION_VERDICT: self.admission,
            Handover.BOOTSTRAP_WANTED: self.epochs,
            Handover.BOOTSTRAP_KEY: self.epochs,
            Handover.REVOKED: self.revoking,
            Handover.RENEWAL_REQUEST: self.renewal,
            Handover.RENEWAL_VERDICT: self.renewal,
            Handover.OWN_RECORD: self.rotation,
            Handover.CALL: self.calling,
            **dict.fromkeys(RELAY_HANDOVERS, self.relays),
            Handover.REKEY_REQUEST: self.rekeying,
            Handover.REKEY_VERDICT: self.rekeying,
        }
        self.revoking.judge()
        self.membership.take_all(now)
        self._settle(now, wall)

    # Inputs

    def underlay_datagram(
        self, datagram: bytes, source: Endpoint, local: IPAddress | None, now: float, wall: float
    ) -> bool:
        """Handle a datagram with meshd's magic, from anybody.  `local` is where it was sent to.

        Return whether it was let in.  If not, a short answer is all that may have come of it.
        """
        if self.clones.silent:
            return False
        try:
            kind = datagram_type_untrusted(datagram)
        except BadPacket as exc:
            self.bad_packets[exc.reason] += 1
            return False
        let_in = False
        match kind:
            case DatagramType.PATH_PROBE | DatagramType.RELAY_HELLO:
                let_in = self.path.receive_datagram(datagram, source, local, now)
            case DatagramType.BOOTSTRAP_REQUEST | DatagramType.REQUEST_WITH_COOKIE:
                let_in = self.admission.receive_request(datagram, source, local, now)
            case DatagramType.BOOTSTRAP_ANSWER | DatagramType.BOOTSTRAP_COOKIE:
                let_in = self.entry.receive_answer(datagram, source, now)
            case DatagramType.APPROVAL_HELLO | DatagramType.APPROVAL_QUESTION:
                let_in = self.approval.receive(datagram, source, local, now)
            case DatagramType.APPROVAL_WELCOME | DatagramType.APPROVAL_REPLY:
                self.bad_packets["approval answer to no question of ours"] += 1
        self._settle(now, wall)
        return let_in

    def receive_relay_datagram(
        self,
        datagram: bytes,
        source: Endpoint,
        port: int,
        local: IPAddress,
        now: float,
        wall: float,
    ) -> bool:
        """Handle a hello, from anybody, at a port that we relay by.  Return as above."""
        if self.clones.silent:
            return False
        let_in = self.relays.receive_datagram(datagram, source, port, local, now)
        self._settle(now, wall)
        return let_in

    def relay_traffic(
        self, traffic: Mapping[int, tuple[int, int]], strangers: int, now: float
    ) -> None:
        """Take the datagrams and bytes forwarded, by port, and those of strangers, since last."""
        del now
        self.relays.take_traffic(traffic, strangers)

    def drain(self, now: float, wall: float, *, draining: bool) -> None:
        """Have those that are relayed here move elsewhere, or take new ones again."""
        self.relays.drain(draining=draining)
        self._settle(now, wall)

    def relay_port_taken(self, port: int, now: float, wall: float) -> None:
        """Take that a port we would relay by is some other program's."""
        self.relays.port_taken(port)
        self._settle(now, wall)

    def overlay_datagram(
        self, datagram: bytes, source: IPv6Address, now: float, wall: float
    ) -> None:
        """Handle a datagram from the tunnel of the member whose address `source` is."""
        node = self.membership.at(source)
        if node is None:
            self.bad_packets["overlay source is no member"] += 1
            return
        self.reactions.traffic.note_received(node, datagram)
        if is_handover(datagram):
            if self._handovers.take(node, now):
                kind, _ = split(datagram)
                self._receivers[kind].receive_handover(datagram, node, now, wall)
            else:
                self.bad_packets["too many handovers from one member"] += 1
        else:
            self.gossip.receive_datagram(datagram, node, now, wall)
        self._settle(now, wall)

    def overlay_unreachable(self, address: IPv6Address, now: float, wall: float) -> None:
        """Take the word of a member's kernel, through its tunnel, that nobody gossips there."""
        node = self.membership.at(address)
        if node is not None and not self.rekeyed.switches(node, now):
            self.gossip.unreachable(node, now)
            self._settle(now, wall)

    def overlay_stream(
        self, frame: bytes, source: IPv6Address, now: float, wall: float
    ) -> bytes | None:
        """Handle a frame from a connection of a member's, and return the frame to answer with.

        None: the connection is not worth an answer.
        """
        node = self.membership.at(source)
        if node is None:
            self.bad_packets["overlay source is no member"] += 1
            return None
        self.reactions.traffic.note_stream(node)
        answer = self.gossip.answer_stream(frame, node, now, wall)
        self._settle(now, wall)
        return answer

    def handle_timer(self, now: float, wall: float) -> None:
        """Do everything that is due."""
        self.clones.handle_timer(now)
        if self.clones.silent:
            return
        self.path.handle_timer(now)
        self.gossip.handle_timer(now)
        self.first_handshake.handle_timer(now)
        self.entry.handle_timer(now, wall)
        self.carriage.handle_timer(now)
        self.presence.handle_timer(now)
        self.admission.handle_timer(now)
        self.preshared.handle_timer(now, wall)
        self.approval.handle_timer(now)
        self.renewal.handle_timer(now, wall)
        self.following.handle_timer(now, wall)
        self.epochs.handle_timer(now)
        self.rotation.handle_timer(now, wall)
        self.relays.handle_timer(now)
        self.rekeying.handle_timer(now, wall)
        self._settle(now, wall)

    def seeds_resolved(
        self, found: dict[str, tuple[Endpoint, ...]], now: float, wall: float
    ) -> None:
        """Take the addresses that the seeds' names have at present."""
        self.entry.seeds_resolved(self.carriage.seeds_resolved(found, now), now)
        self._settle(now, wall)

    def carriers_observed(
        self,
        states: dict[int, CarrierState],
        clients: frozenset[Endpoint],
        now: float,
        wall: float,
    ) -> None:
        """Take what has become of `carriage.wanted`, and who is connected to us."""
        self.carriage.observed(states, clients, now)
        self._settle(now, wall)

    def local_changed(self, addresses: tuple[IPAddress, ...], now: float, wall: float) -> None:
        """Take the host's underlay addresses, best first."""
        self.presence.take_local(addresses)
        # The record goes first: the probes towards everybody are to carry the new one.
        self.presence.refresh(now, wall)
        self.path.local_changed(
            addresses,
            port=self.config.listen_port,
            control_port=self.config.control_port,
            now=now,
        )
        self._settle(now, wall)

    def port_mapped(self, endpoint: Endpoint | None, now: float, wall: float) -> None:
        """Take where our port is reached by our router's; None: nowhere."""
        self.presence.take_mapped(endpoint)
        self._settle(now, wall)

    def routes_changed(self, now: float, wall: float) -> None:
        """Take that datagrams leave this host by another way than before."""
        self.path.routes_changed(now)
        self._settle(now, wall)

    def resumed(self, now: float, wall: float) -> None:
        """Take that this machine has slept: `now` has stood still, for others it went on."""
        self.gossip.resumed(now)
        self.path.resumed(now)
        self._settle(now, wall)

    def device_observed(self, device: DeviceStatus, now: float, wall: float) -> None:
        """Take what the WireGuard device holds, after a poll or a change."""
        self.device = device
        for node, standing in self.others():
            peer = device.peers.get(standing.record.wireguard_key)
            if node in self.key_conflicts:
                peer = None  # the peer of that key is another member
            self.path.peer_installed(node, now, installed=peer is not None)
            if peer is not None:
                self.preshared.peer_observed(node, peer, wall)
            if peer is not None and peer.endpoint is not None:
                self.path.endpoint_observed(node, peer.endpoint, now)
        self.reactions.contact_ready(now)
        self.rotation.device_observed(device, now)
        self.clones.device_observed(device)
        self.reactions.take_counters(device, now)
        self._settle(now, wall)

    def counters_observed(self, device: DeviceStatus | None, now: float, wall: float) -> None:
        """Take what the device's counters are, after `wants_look`; None if it cannot be read."""
        if device is None:
            self.reactions.give_up_counters(now)
            return
        self.reactions.take_counters(device, now)
        self._settle(now, wall)

    def ping(self, node: NodeId, now: float) -> int:
        """Ping a member for the operator; `PingAnswered` carries the sequence returned."""
        return self.gossip.ping(node, now)

    def leave(self, now: float, wall: float) -> None:
        """Announce our departure; `Departed` says when that is done."""
        self.gossip.leave(now)
        self._settle(now, wall)

    def revoke(self, draft: Draft, now: float, wall: float) -> Fact | None:
        """Keep and spread a revocation that was drafted; None if there is no room for it."""
        fact = self.learn(FactKind.REVOCATION, draft.blob, now, wall, at_once=True)
        self._settle(now, wall)
        return fact

    def rotate_key(self, now: float, wall: float) -> None:
        """Begin to replace our WireGuard key; notices tell how it goes on."""
        self.rotation.ask(now, wall)
        self._settle(now, wall)

    def rotate_node_key(
        self, key: NodeKey, mesh_key: MeshKey | None, now: float, wall: float
    ) -> None:
        """Prepare to go on under another node id; its key is on disk.  `SwitchNode` ends it."""
        self.rekeying.begin(key, mesh_key, now, wall)
        self._settle(now, wall)

    def keys_saved(self, keys: WireGuardKeys, now: float, wall: float, *, done: bool) -> None:
        """Take what became of a `SaveKeys`: on disk, or refused by it."""
        if done:
            self.rotation.saved(keys, now)
        else:
            self.rotation.not_saved(now)
        self._settle(now, wall)

    def take_kem(self, kem: Kem | None, now: float, wall: float) -> None:
        """Take the mechanism that pre-shared keys are agreed by; None: there is none here."""
        self.preshared.take_kem(kem, wall)
        self._settle(now, wall)

    def publish(self, draft: SealingDraft, now: float, wall: float) -> None:
        """Tell everybody of a new root or bootstrap key that is on disk."""
        for fact in draft.facts:
            self.learn(fact.kind, fact.blob, now, wall, at_once=fact.kind in DECISIVE)
        self.become(
            replace(
                self.identity,
                bootstrap_key=draft.identity.bootstrap_key,
                older_bootstrap_key=draft.identity.older_bootstrap_key,
            ),
            now,
        )
        self._settle(now, wall)

    def forget(self, node: NodeId, now: float, wall: float) -> None:
        """Drop what is known of a member.  It comes back if it is alive after all."""
        self.membership.forget(node, now)
        self._settle(now, wall)

    # Outputs

    def underlay_datagrams(self) -> list[Outgoing]:
        """Take what is to be sent on the underlay."""
        datagrams = [
            *self.path.datagrams_to_send(),
            *self.entry.datagrams_to_send(),
            *self.admission.datagrams_to_send(),
            *self.approval.datagrams_to_send(),
        ]
        return [] if self.clones.silent else datagrams

    def relay_datagrams(self) -> list[RelayOutgoing]:
        """Take what is to be sent from ports that we relay by."""
        datagrams = self.relays.datagrams_to_send()
        return [] if self.clones.silent else datagrams

    def overlay_datagrams(self) -> list[tuple[bytes, IPv6Address]]:
        """Take what is to be sent through the tunnels, each with its member's address."""
        datagrams, self._overlay = self._overlay, []
        for datagram, node in self.gossip.datagrams_to_send():
            datagrams.append((datagram, self.ipv6_of(node)))
        self.reactions.note_own(datagrams)
        return [] if self.clones.silent else datagrams

    def streams_to_open(self) -> list[OverlayStream]:
        """Take what is to be asked over TCP; the answers go to `overlay_datagram`."""
        probes = self.gossip.streams_to_open()
        for probe in probes:
            self.reactions.traffic.note_stream(probe.target)
        return [
            OverlayStream(probe.datagram, self.ipv6_of(probe.target), probe.timeout)
            for probe in probes
        ]

    def wants_look(self, now: float) -> bool:
        """Return whether the device is to be observed now, for `counters_observed`."""
        return now >= self.reactions.look_at

    def next_event(self) -> Event | None:
        """Take the oldest event."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> Timer:
        """Return the soonest deadline and its reason."""
        if self.clones.silent:
            return Timer(math.inf, "another machine is this node")
        timers = (
            self.clones.get_timer(),
            self.gossip.get_timer(),
            self.first_handshake.get_timer(),
            self.path.get_timer(),
            self.entry.get_timer(),
            self.carriage.get_timer(),
            self.presence.get_timer(),
            self.admission.get_timer(),
            self.preshared.get_timer(),
            self.approval.get_timer(),
            self.renewal.get_timer(),
            self.following.get_timer(),
            self.epochs.get_timer(),
            self.rotation.get_timer(),
            self.relays.get_timer(),
            self.rekeying.get_timer(),
            Timer(self.reactions.look_at, "look at the device"),
        )
        at, reason = min(filter(None, timers), key=itemgetter(0))  # asked for after every input
        return Timer(at, str(reason))

    def desired_state(self) -> DesiredState:
        """Return what the kernel should hold, by all that is known at present."""
        return self.planning.desired_state()

    # Views

    @property
    def key_conflicts(self) -> tuple[NodeId, ...]:
        """Members without a tunnel, by the last plan: another one has the same key."""
        return self.planning.key_conflicts

    def is_member_address(self, address: IPv6Address) -> bool:
        """Return whether an overlay address is another member's."""
        return self.membership.at(address) is not None

    def member_at(self, address: IPv6Address) -> NodeId | None:
        """Return the member whose overlay address that is, if it is another one's."""
        return self.membership.at(address)

    def others(self) -> list[tuple[NodeId, Standing]]:
        """Return all admitted members but ourselves, in the order of their ids."""
        me = self.identity.node
        return [
            (node, standing)
            for node, standing in self.ledger.members().items()
            if node != me and standing.admitted
        ]

    def name_of(self, node: NodeId) -> str:
        """Return the name a member is shown under, be it by an id that it had before.

        Its short id where it has none.
        """
        return self.ledger.names().get(self.ledger.lineage.present(node), node.short)

    def called(self, node: NodeId) -> str:
        """Return the name a node was admitted under, be it a member still or not."""
        standing = self.ledger.standing(node)
        if standing is None or standing.admitted:
            return self.name_of(node)
        return standing.credential.name

    def ipv6_of(self, node: NodeId) -> IPv6Address:
        """Return a member's overlay address."""
        return overlay_address(self.identity.mesh, node)

    @property
    def own_credential(self) -> Credential | None:
        """The credential that admits us; None before we have one."""
        return self.own_chain[-1] if self.own_chain else None

    @property
    def own_chain(self) -> tuple[Credential, ...]:
        """The chain that admits us, the mesh key's first; empty before we have one."""
        if not self.identity.chain:
            return ()
        return verify_chain_untrusted(
            self.identity.chain, self.identity.mesh, self.identity.node, self.ledger.cache
        )

    # For the parts of the engine

    def emit(self, event: Event) -> None:
        """Queue an event."""
        self._emit(event)

    def replan(self) -> None:
        """Note that the plan may come out differently."""
        self.plan_revision += 1

    def send_overlay(self, datagram: bytes, node: NodeId) -> None:
        """Queue a datagram through a member's tunnel."""
        self._overlay.append((datagram, self.ipv6_of(node)))

    def learn(
        self, kind: FactKind, blob: bytes, now: float, wall: float, *, at_once: bool = False
    ) -> Fact | None:
        """Take in a fact that came by other ways than gossip.  Raise BadPacket.

        `at_once`: it begins here, and all are to hear of it before all else.
        Returns what the ledger holds under its key from here on, None if it has no room.
        """
        return self.membership.learn(kind, blob, now, wall, at_once=at_once)

    def become(self, identity: Identity, now: float) -> None:
        """Take on what the mesh has granted or taught us."""
        if identity == self.identity:
            return
        if identity.bootstrap_key != self.identity.bootstrap_key:
            self.path.rekey(identity.bootstrap_key, identity.older_bootstrap_key)
            self.admission.rekey(identity.bootstrap_key, identity.older_bootstrap_key)
            self.relays.rekey(identity.bootstrap_key, identity.older_bootstrap_key)
        self.identity = identity
        self.path.exclude(self.presence.networks, now)
        self.presence.due = True
        self.revoking.judge()
        self.renewal.begin(now)
        self._emit(events.Admitted(identity))

    # Settling: the events of each core are inputs of the others

    def _settle(self, now: float, wall: float) -> None:
        busy = True
        while busy:
            busy = False
            while (gossip_event := self.gossip.next_event()) is not None:
                self.reactions.on_gossip(gossip_event, now)
                busy = True
            while (path_event := self.path.next_event()) is not None:
                self.reactions.on_path(path_event, now, wall)
                busy = True
            busy = self.entry.settle(now, wall) or busy
            busy = self.admission.settle(now, wall) or busy
            busy = self.following.settle(now, wall) or busy
            busy = self.preshared.settle(now, wall) or busy
            busy = self.approval.settle() or busy
            busy = self.relays.settle(now, wall) or busy
            busy = self.presence.refresh(now, wall) or busy

    # Events

    def notice(self, event: str, node: NodeId | None, message: str, **details: Detail) -> None:
        """Tell people something about a node, or about none."""
        name = None if node is None else self.name_of(node)
        self._emit(events.Notice(event, message, node, name, details))

    def _emit(self, event: Event) -> None:
        self._events.append(event)
