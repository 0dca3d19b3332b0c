"""An internet with NATs, entire and deterministic, and path agents on its hosts.

    realm "internet"      ── hosts with public addresses; some of them relay (`relay_host`)
         │      │
       NAT x   NAT y      `nats`; behind one of them there may be more
         │      │
    realm x   realm y     ── hosts with private addresses, and perhaps IPv6 behind a firewall

Each `Node` is a path agent with the driver that an engine would be: it verifies records that come
in, puts accepted peers into its kernel a moment later, and signs a new record when its own
addresses change.  Members with a ready path gossip records once a second, have relays granted, and
pass calls on.  `data_plane` sends packets by the endpoints that the agents choose.
"""

import heapq
import itertools
import math
from ipaddress import ip_address
from random import Random

from meshd.errors import BadPacket
from meshd.keys import WireGuardPrivateKey
from meshd.path.agent import Agent
from meshd.path.candidates import own_candidates
from meshd.path.events import (
    CallWanted,
    EndpointSelected,
    Insist,
    PeerReady,
    RecordReceived,
    ReflexiveChanged,
    RelaySilent,
    RelayUnwanted,
    RelayWanted,
)
from meshd.trust.record import Record, open_record_untrusted, sign_record
from meshd.wg.types import Endpoint
from path.data_plane import LOOK_INTERVAL, Packet, Stream, Tunnel
from path.nats import Firewall, Nat
from path.relay_host import RelayHost
from path.world import BOOTSTRAP_KEY, KEYS, MESH, OVERLAY, chain_of, new_cache

PORT = 51820
INTERNET = "internet"
KERNEL_DELAY = 0.01
GOSSIP_INTERVAL = 1.0
SOCKET_BUFFER = 300  # probes
MESSAGE_DELAY = 0.05  # of what goes through tunnels: grants and calls


class Node:
    """A path agent and its driver."""

    def __init__(self, internet, key, realm, addresses, *, extra=(), sequence=1, peers=()):
        self.internet = internet
        self.key = key
        self.realm = realm
        self.addresses = tuple(map(ip_address, addresses))
        self.extra = tuple(extra)  # candidates that are no good
        self.sequence = sequence
        self.records = {}  # node id to (sequence, blob), verified
        self.kernel = set()
        self.cut = False
        self.busy_until = 0.0
        self.log = []
        self.tunnels = {}  # by node id of the other
        self.relay = None  # RelayHost
        self.wishes = {}  # node id to how many relays are wanted
        self.agent = Agent(
            key,
            MESH,
            BOOTSTRAP_KEY,
            excluded=OVERLAY,
            rng=Random(internet.rng.random()),
            now=internet.now,
        )
        self.agent.local_changed(self.addresses, port=PORT, control_port=0, now=internet.now)
        self.sign()
        for blob in peers:
            self.learn(blob)

    @property
    def blob(self):
        return self.records[self.key.id][1]

    def sign(self):
        candidates = own_candidates(
            hosts=self.addresses,
            port=PORT,
            control_port=0,
            configured=(),
            reflexive=self.agent.reflexive,
            excluded=OVERLAY,
        )
        self.sequence += 1
        record = Record(
            node=self.key.id,
            sequence=self.sequence,
            wireguard_key=WireGuardPrivateKey(self.key.seed).public,
            candidates=(self.extra + candidates)[:8],
            chain=chain_of(self.key),
        )
        blob = sign_record(record, self.key, MESH)
        self.records[self.key.id] = (self.sequence, blob)
        self.agent.record_changed(blob, self.sequence)

    def learn(self, blob, source=None):
        try:
            record, _ = open_record_untrusted(blob, MESH, self.internet.cache)
        except BadPacket:
            return
        if source not in {None, record.node} or record.node == self.key.id:
            return
        if self.records.get(record.node, (0,))[0] >= record.sequence:
            return
        met = record.node in self.records
        self.records[record.node] = (record.sequence, blob)
        self.agent.update_peer(
            record.node, record.candidates, sequence=record.sequence, now=self.internet.now
        )
        if not met:
            self.agent.peer_wanted(record.node, self.internet.now, wanted=True)
        self.internet.at(KERNEL_DELAY, lambda: self.install(record.node))

    def install(self, node):
        self.kernel.add(node)
        self.agent.peer_installed(node, self.internet.now)
        self.drain()

    def move(self, *addresses, realm=None):
        self.realm = realm or self.realm
        self.addresses = tuple(map(ip_address, addresses))
        self.agent.local_changed(self.addresses, port=PORT, control_port=0, now=self.internet.now)
        self.sign()
        self.drain()

    def suspect_all(self):
        for node in list(self.records):
            self.agent.peer_suspect(node, self.internet.now)
        self.drain()

    def drain(self):
        while (event := self.agent.next_event()) is not None:
            self.log.append((round(self.internet.now, 6), event))
            match event:
                case RecordReceived():
                    self.learn(event.blob, event.source)
                case ReflexiveChanged():
                    self.sign()
                case EndpointSelected():
                    self.internet.check(event.endpoint)
                    self.tunnel(self.internet.node(event.node)).choose(event)
                case Insist():
                    self.tunnel(self.internet.node(event.node)).insist()
                case CallWanted():
                    self.call(self.internet.node(event.node))
                case RelayWanted():
                    self.wishes[event.node] = event.count
                    self.internet.grant(self, self.internet.node(event.node))
                case RelayUnwanted():
                    self.wishes.pop(event.node, None)
                    self.internet.release(self, self.internet.node(event.node))
                case RelaySilent():
                    relay = self.internet.node(event.relay)
                    self.internet.withdraw(relay, self, self.internet.node(event.node))
                case _:
                    pass
        for datagram, target, source in self.agent.datagrams_to_send():
            self.internet.send(self, datagram, target, source)

    def tunnel(self, other):
        if other.key.id not in self.tunnels:
            self.tunnels[other.key.id] = Tunnel(self, other)
        return self.tunnels[other.key.id]

    def path_class(self, other):
        view = self.agent.view(other.key.id)
        return view.path_class if view is not None and view.proven else None

    def selections(self, other=None, *, since=0.0):
        """Return the choices of endpoints: (instant, event)."""
        return [
            (at, event)
            for at, event in self.log
            if isinstance(event, EndpointSelected)
            and at >= since
            and (other is None or event.node == other.key.id)
        ]

    def call(self, other):
        """Have another node ping us at once: through the tunnel, or by way of a third one."""
        internet = self.internet
        ways = [other, *(node for node in internet.nodes if node not in {self, other})]
        for way in ways:
            there = way is other or (way.ready(other) and other.ready(way))
            if not (self.ready(way) and way.ready(self) and there) or self.cut or other.cut:
                continue

            def heard():
                blob, seen_at = self.blob, self.agent.seen_at
                other.agent.called(self.key.id, blob, internet.now, seen_at=seen_at)
                other.drain()

            internet.at(MESSAGE_DELAY, heard)
            return

    def ready(self, other):
        view = self.agent.view(other.key.id)
        return view is not None and view.ready

    def ready_events(self):
        return [event for _, event in self.log if isinstance(event, PeerReady)]


class Internet:
    def __init__(self, *, seed, loss=0.0, delay=(0.005, 0.04), capacity=math.inf):
        self.now = 0.0
        self.rng = Random(seed)
        self.loss = loss
        self.delay = delay
        self.capacity = capacity  # probes a second that a node can take in
        self.nats = {}
        self.firewalls = {}  # of IPv6, by realm
        self.nodes = []
        self.losses = {}  # (node, target address) to the share that is lost
        self.cuts = set()  # (node, target address)
        self.far = {}  # node to seconds that all takes longer there, each way
        self._heard = {}  # (node, source) to instants at which a probe has come
        self.sent = []
        self.streams = []
        self.cache = new_cache()
        self._queue = []
        self._order = itertools.count()
        self.at(GOSSIP_INTERVAL, self._gossip)
        self.at(LOOK_INTERVAL, self._look)

    def add_nat(self, realm, address, mapping, filtering, **options):
        self.nats[realm] = Nat(ip_address(address), mapping, filtering, **options)

    def add_firewall(self, realm):
        self.firewalls[realm] = Firewall()

    def add_relay(self, index, *addresses):
        node = self.add(index, INTERNET, *addresses)
        node.relay = RelayHost(self, node)
        return node

    def node(self, node_id):
        return next(node for node in self.nodes if node.key.id == node_id)

    # Relays, granted through tunnels

    def grant(self, one, other):
        """Have as many relays as one of a pair wants forward between both."""

        def granted():
            held = [node for node in self.relays if frozenset((one, other)) in node.relay.pairs]
            for node in self.relays:
                reached = one.ready(node) and other.ready(node) and not node.cut
                if len(held) >= one.wishes.get(other.key.id, 0) or node in held or not reached:
                    continue
                held.append(node)
                for owner, port in node.relay.allot(one, other).items():
                    peer = other if owner is one else one
                    at = Endpoint(node.addresses[0], port)
                    owner.agent.relay_offered(peer.key.id, node.key.id, at, now=self.now)
                    owner.drain()

        self.at(MESSAGE_DELAY, granted)
        self.at(1.0, lambda: self._want_more(one, other))

    def _want_more(self, one, other):
        """Ask again while there are too few."""
        held = [node for node in self.relays if frozenset((one, other)) in node.relay.pairs]
        if len(held) < min(one.wishes.get(other.key.id, 0), len(self.relays)):
            self.grant(one, other)

    def release(self, one, other):
        if other.key.id in one.wishes or one.key.id in other.wishes:
            return
        for node in self.relays:
            self.withdraw(node, one, other)

    def withdraw(self, node, one, other):
        node.relay.release(one, other)
        for owner, peer in ((one, other), (other, one)):
            owner.agent.relay_withdrawn(peer.key.id, node.key.id, self.now)
            owner.drain()
        for owner, peer in ((one, other), (other, one)):
            self.at(1.0, lambda owner=owner, peer=peer: self._want_more(owner, peer))

    def drain_relay(self, node):
        """Have a relay ask everybody to leave it."""
        for pair, ports in node.relay.pairs.items():
            for owner, port in ports.items():
                (peer,) = pair - {owner}
                at = Endpoint(node.addresses[0], port)
                owner.agent.relay_offered(peer.key.id, node.key.id, at, draining=True, now=self.now)
                owner.drain()

    @property
    def relays(self):
        return [node for node in self.nodes if node.relay is not None]

    def add(self, index, realm, *addresses, **options):
        node = Node(self, KEYS[index], realm, addresses, **options)
        self.nodes.append(node)
        return node

    def introduce_all(self):
        """Give every node every record, as a state directory would."""
        for node, other in itertools.permutations(self.nodes, 2):
            node.learn(other.blob)
        for node in self.nodes:
            node.drain()

    def run_for(self, seconds):
        end = self.now + seconds
        while True:
            timers = [(n.agent.get_timer(), i) for i, n in enumerate(self.nodes)]
            due = min(((t.at, i) for t, i in timers if t is not None), default=(end + 1, 0))
            next_at = min(due[0], self._queue[0][0] if self._queue else end + 1)
            if next_at > end:
                break
            self.now = max(self.now, next_at)
            if self._queue and self._queue[0][0] <= due[0]:
                heapq.heappop(self._queue)[2]()
            else:
                self.nodes[due[1]].agent.handle_timer(self.now)
                self.nodes[due[1]].drain()
        self.now = end

    def run_until(self, condition, *, within):
        """Run until a condition holds.  Return how long it took."""
        began = self.now
        while self.now - began < within:
            if condition():
                return self.now - began
            self.run_for(0.05)
        assert condition(), f"not within {within} s: {self.unready()}"
        return within

    def at(self, delay, action):
        heapq.heappush(self._queue, (self.now + delay, next(self._order), action))

    def check(self, endpoint):
        assert not any(endpoint.address in network for network in OVERLAY)
        assert not endpoint.address.is_loopback
        assert endpoint.port

    def send(self, node, datagram, target, source):
        self.check(target)
        if isinstance(datagram, bytes):
            self.sent.append((self.now, node, target, len(datagram)))
        if source is not None and source not in node.addresses:
            return
        candidates = [a for a in node.addresses if a.version == target.address.version]
        address = source or next(iter(candidates), None)
        if address is not None:
            self.transmit(node, datagram, target, Endpoint(address, PORT))

    def transmit(self, node, datagram, target, origin):
        """Carry a datagram from a node's own address and port, through what is in between."""
        loss = max(self.loss, self.losses.get((node, target.address), 0.0))
        if node.cut or (node, target.address) in self.cuts or self.rng.random() < loss:
            return
        delivered = self._route(node.realm, origin, target)
        if delivered is None:
            return
        receiver, local, origin = delivered
        delay = (
            self.rng.uniform(*self.delay) + self.far.get(node, 0.0) + self.far.get(receiver, 0.0)
        )
        self.at(delay, lambda: self._arrive(receiver, datagram, origin, local))

    def _route(self, realm, origin, target):
        """Return (receiver, where it arrives, where from as it sees it), or None."""
        inside = self._into(realm, origin, target)
        if inside is not None:
            return inside
        if target.address.version == 6:
            return self._route_ipv6(realm, origin, target)
        nat = self.nats.get(realm)
        if nat is None:
            return None
        if target.address == nat.address and not nat.hairpins:
            return None
        outside = nat.outbound(origin, target, self.now)
        return self._route(nat.parent, outside, target)

    def _into(self, realm, origin, target):
        """Deliver to what has the address in a realm: a host, or a NAT with more behind it."""
        for node in self.nodes:
            if node.realm == realm and target.address in node.addresses:
                return node, target, origin
        for behind, nat in self.nats.items():
            if (nat.parent, nat.address) == (realm, target.address):
                inside = nat.inbound(target, origin, self.now)
                return None if inside is None else self._into(behind, origin, inside)
        return None

    def _route_ipv6(self, realm, origin, target):
        if realm in self.firewalls:
            self.firewalls[realm].outbound(origin, target)
        for node in self.nodes:
            if target.address in node.addresses:
                firewall = self.firewalls.get(node.realm)
                open_ = (
                    node.realm == INTERNET if firewall is None else firewall.lets_in(target, origin)
                )
                return (node, target, origin) if open_ else None
        return None

    def _arrive(self, node, datagram, origin, local):
        if node.cut or local.address not in node.addresses:
            return
        if local.port != PORT:
            if node.relay is not None:
                node.relay.receive(datagram, origin, local)
        elif isinstance(datagram, Packet):
            node.tunnel(datagram.sender).receive(datagram, origin)
            for stream in self.streams:
                stream.take(datagram, self.now)
        else:
            waits = max(0.0, node.busy_until - self.now)
            if waits <= SOCKET_BUFFER / self.capacity:
                node.busy_until = self.now + waits + 1 / self.capacity
                self.at(waits, lambda: self._take_in(node, datagram, origin, local))

    def _take_in(self, node, datagram, origin, local):
        self._heard.setdefault((node, origin), []).append(self.now)
        node.agent.receive_datagram(datagram, origin, local.address, self.now)
        node.drain()

    def heard(self, node, source):
        """Return when probes have come to a node from there."""
        return self._heard.get((node, source), [])

    def stream(self, source, target, **options):
        stream = Stream(source, target, **options)
        self.streams.append(stream)
        return stream.start()

    def _look(self):
        for node in self.nodes:
            for tunnel in list(node.tunnels.values()):
                tunnel.look()
            node.drain()
        self.at(LOOK_INTERVAL, self._look)

    def _gossip(self):
        for node, other in itertools.permutations(self.nodes, 2):
            if node.ready(other) and other.ready(node) and not (node.cut or other.cut):
                for about, (sequence, blob) in list(node.records.items()):
                    if other.records.get(about, (0,))[0] < sequence:
                        other.learn(blob)
        for node in self.nodes:
            node.drain()
        self.at(GOSSIP_INTERVAL, self._gossip)

    def unready(self):
        return [
            (a.key.seed[0], b.key.seed[0])
            for a, b in itertools.permutations(self.nodes, 2)
            if not a.ready(b)
        ]
