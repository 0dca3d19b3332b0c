"""An internet with NATs, entire and deterministic, and path agents on its hosts.

    realm "internet"      ── hosts with public addresses
         │      │
       NAT x   NAT y      mapping and filtering as RFC 4787 sections 4.1 and 5 name them
         │      │
    realm x   realm y     ── hosts with private addresses; no hairpin

Each `Node` is a path agent with the driver that an engine would be: it verifies records that come
in, puts accepted peers into its kernel a moment later, and signs a new record when its own
addresses change.  Members with a ready path gossip records once a second.
"""

import enum
import heapq
import itertools
from dataclasses import dataclass, field
from ipaddress import ip_address
from random import Random

from meshd.errors import BadPacket
from meshd.keys import WireGuardPrivateKey
from meshd.path.agent import Agent
from meshd.path.candidates import own_candidates
from meshd.path.events import EndpointSelected, PeerReady, RecordReceived, ReflexiveChanged
from meshd.trust.record import Record, open_record_untrusted, sign_record
from meshd.wg.types import Endpoint
from path.world import BOOTSTRAP_KEY, KEYS, MESH, OVERLAY, chain_of, new_cache

PORT = 51820
INTERNET = "internet"
KERNEL_DELAY = 0.01
GOSSIP_INTERVAL = 1.0


class Dependence(enum.Enum):
    """What a NAT's mapping, or its filtering, depends on."""

    NOTHING = enum.auto()  # endpoint-independent
    ADDRESS = enum.auto()
    ADDRESS_AND_PORT = enum.auto()

    def key(self, remote):
        if self is Dependence.NOTHING:
            return None
        return remote.address if self is Dependence.ADDRESS else remote


@dataclass
class Nat:
    address: object
    mapping: Dependence
    filtering: Dependence
    _ports: dict = field(default_factory=dict)  # (inside, key of remote) to outside port
    _inside: dict = field(default_factory=dict)  # outside port to inside
    _passed: set = field(default_factory=set)  # (outside port, key of remote)
    _next_port: int = 40_000

    def outbound(self, inside, remote):
        key = (inside, self.mapping.key(remote))
        if key not in self._ports:
            self._ports[key] = self._next_port
            self._inside[self._next_port] = inside
            self._next_port += 7
        port = self._ports[key]
        self._passed.add((port, self.filtering.key(remote)))
        return Endpoint(self.address, port)

    def inbound(self, outside, remote):
        if (outside.port, self.filtering.key(remote)) not in self._passed:
            return None
        return self._inside[outside.port]

    def rebind(self):
        """Forget every mapping, as a NAT does that was restarted."""
        self._ports.clear()
        self._inside.clear()
        self._passed.clear()


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
        self.log = []
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
        self.records[record.node] = (record.sequence, blob)
        self.agent.update_peer(
            record.node, record.candidates, sequence=record.sequence, now=self.internet.now
        )
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
                case _:
                    pass
        for datagram, target, source in self.agent.datagrams_to_send():
            self.internet.send(self, datagram, target, source)

    def ready(self, other):
        view = self.agent.view(other.key.id)
        return view is not None and view.ready

    def ready_events(self):
        return [event for _, event in self.log if isinstance(event, PeerReady)]


class Internet:
    def __init__(self, *, seed, loss=0.0, delay=(0.005, 0.04)):
        self.now = 0.0
        self.rng = Random(seed)
        self.loss = loss
        self.delay = delay
        self.nats = {}
        self.nodes = []
        self.sent = []
        self.cache = new_cache()
        self._queue = []
        self._order = itertools.count()
        self.at(GOSSIP_INTERVAL, self._gossip)

    def add_nat(self, realm, address, mapping, filtering):
        self.nats[realm] = Nat(ip_address(address), mapping, filtering)

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
        self.sent.append((self.now, node, target, len(datagram)))
        if node.cut or self.rng.random() < self.loss:
            return
        candidates = [a for a in node.addresses if a.version == target.address.version]
        if source is not None and source not in node.addresses:
            return
        address = source or next(iter(candidates), None)
        if address is None:
            return
        origin = Endpoint(address, PORT)
        delivered = self._host(node.realm, target)
        if delivered is None and node.realm in self.nats and target.address.version == 4:
            origin = self.nats[node.realm].outbound(origin, target)
            delivered = self._from_internet(origin, target)
        elif delivered is None and node.realm == INTERNET:
            delivered = self._from_internet(origin, target)
        if delivered is None:
            return
        receiver, local = delivered
        delay = self.rng.uniform(*self.delay)
        self.at(delay, lambda: self._arrive(receiver, datagram, origin, local))

    def _from_internet(self, origin, target):
        for realm, nat in self.nats.items():
            if nat.address == target.address and nat.address != origin.address:
                inside = nat.inbound(target, origin)
                return None if inside is None else self._host(realm, inside)
        return self._host(INTERNET, target)

    def _host(self, realm, target):
        for node in self.nodes:
            if node.realm == realm and target.port == PORT and target.address in node.addresses:
                return node, target.address
        return None

    def _arrive(self, node, datagram, origin, local):
        if node.cut or local not in node.addresses:
            return
        node.agent.receive_datagram(datagram, origin, local, self.now)
        node.drain()

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
