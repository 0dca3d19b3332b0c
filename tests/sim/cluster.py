"""A mesh of real nodes on a simulated network: all that happens is a function of one seed.

    host ── Node (the real one)     datagrams ──▶ Network: loss, delay, copies, cut links
         ── Ledger (the real one)   path layer ─▶ introductions: both sides learn the other's record
         ── disk                    bootstrap ──▶ join: newcomer and seed learn each other's record

Time is virtual and advances from one thing that happens to the next.  Whatever is random comes from
generators made from the seed.  `trace` holds every event of every node, and `trace_hash` names the
whole history in a few bytes.

WireGuard is simulated as far as gossip can tell: a datagram reaches only a node that is running and
has its sender among its members, and its source cannot be forged.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from dataclasses import dataclass, field
from functools import partial
from random import Random

from meshd.gossip.claim import MemberState
from meshd.gossip.config import GossipConfig
from meshd.gossip.events import (
    BadPacketReceived,
    IncarnationRaised,
    LeaveAnnounced,
    MemberJoined,
    MemberStateChanged,
)
from meshd.gossip.node import Node
from meshd.keys import MeshKey, NodeKey, WireGuardKey
from meshd.trust.credential import founding_credential, issue
from meshd.trust.fact import FactKind
from meshd.trust.ledger import Ledger
from meshd.trust.record import Record, sign_record

WALL_START = 1_700_000_000
IP_UDP_BYTES = 48


@dataclass
class Network:
    """What may happen to a datagram between two hosts."""

    rng: Random
    delay_min: float = 0.001
    delay_max: float = 0.001
    loss: float = 0.0
    duplication: float = 0.0
    cut: set[tuple[str, str]] = field(default_factory=set)  # (source, target): one way only
    island: frozenset[str] = frozenset()  # hosts that reach each other and nobody else

    def passes(self, source, target):
        """Whether anything gets from source to target at all."""
        if (source, target) in self.cut:
            return False
        return (source in self.island) == (target in self.island)

    def deliveries(self, source, target):
        """After how many seconds each copy of a datagram arrives."""
        if not self.passes(source, target) or self.rng.random() < self.loss:
            return []
        copies = 2 if self.duplication and self.rng.random() < self.duplication else 1
        return [self.delay() for _ in range(copies)]

    def delay(self):
        return self.delay_min + self.rng.random() * (self.delay_max - self.delay_min)

    def heal(self):
        self.loss = self.duplication = 0.0
        self.delay_min = self.delay_max = 0.001
        self.cut.clear()
        self.island = frozenset()


@dataclass
class Host:
    """A machine: what survives a crash, and what does not."""

    name: str
    key: NodeKey
    record: bytes
    # On disk
    ledger: Ledger
    incarnation: int = 0
    # In memory
    node: Node | None = None
    run: int = 0  # which start this is
    introduced: set[str] = field(default_factory=set)
    left: bool = False
    wake_at: float = float("inf")

    @property
    def running(self):
        return self.node is not None


class Cluster:
    """See the module docstring."""

    def __init__(self, size, *, seed, config=None, start=True, mesh_started=False, probed=True):
        self.seed = seed
        self.probed = probed  # whether there is a path layer that brings members together
        self.now = 0.0
        self.config = config or GossipConfig()
        self.rng = Random(f"cluster {seed}")
        self.network = Network(Random(f"network {seed}"))
        self.trace = []
        self.datagrams = self.bytes = 0
        self.incarnations = {}  # the highest that each node has ever had
        self._hash = hashlib.blake2b(digest_size=16)
        self._queue = []
        self._counter = itertools.count()
        self._mesh = MeshKey(hashlib.sha256(f"mesh {seed}".encode()).digest())
        self.hosts = {}
        for number in range(size):
            self.add_host(f"n{number}")
        self.names = {host.key.id: name for name, host in self.hosts.items()}
        if mesh_started:
            # Every ledger has every record from the start, as after a power cut.
            for host, other in itertools.product(self.hosts.values(), repeat=2):
                host.ledger.merge_untrusted(FactKind.RECORD, other.record, WALL_START)
        if start or mesh_started:
            for name in self.hosts:
                self.start(name)
                if name != "n0" and not mesh_started:
                    self.join(name, "n0")

    def add_host(self, name):
        key = NodeKey(hashlib.sha256(f"node {name} {self.seed}".encode()).digest())
        credential = founding_credential(key.id, name, self._mesh.id, WALL_START)
        chain = (issue(credential, self._mesh, self._mesh.id),)
        wireguard_key = WireGuardKey(hashlib.sha256(key.id).digest())
        record = Record(key.id, 1, wireguard_key, version="0.1.0", chain=chain)
        blob = sign_record(record, key, self._mesh.id)
        self.hosts[name] = Host(name, key, blob, Ledger(self._mesh.id))
        self.names = {host.key.id: name for name, host in self.hosts.items()}

    # What operators and accidents do

    def start(self, name, *, disk=True, incarnation=None):
        """Start a host's daemon, with or without what it had on disk."""
        host = self.hosts[name]
        assert not host.running
        if not disk:
            host.ledger = Ledger(self._mesh.id)
            host.incarnation = 0
        host.ledger.merge_untrusted(FactKind.RECORD, host.record, WALL_START)
        host.incarnation = host.incarnation + 1 if incarnation is None else incarnation
        host.run += 1
        host.left = False
        host.introduced = set()
        host.node = Node(
            host.key,
            self._mesh.id,
            host.ledger,
            config=self.config,
            rng=Random(f"node {name} {host.run} {self.seed}"),
            now=self.now,
            incarnation=host.incarnation,
        )
        self._note_incarnation(host)
        self._drain(host)

    def crash(self, name):
        """Cut the power."""
        host = self.hosts[name]
        host.node = None
        host.wake_at = float("inf")
        for other in self.hosts.values():
            if name in other.introduced:
                # The path layer notices sooner or later, and probes from then on.
                other.introduced.discard(name)
                retry = partial(self._introduce, other.name, other.run, name, 10.0)
                self._at(self.now + 10.0, retry)

    def join(self, name, seed, *, delay=0.0):
        """Have a host ask a seed to be let in, again and again until it is."""
        self._at(self.now + delay, partial(self._join, name, self.hosts[name].run, seed, 0.25))

    def leave(self, name):
        """Have a host leave gracefully; its daemon ends when that is announced."""
        host = self.hosts[name]
        host.left = True
        host.node.leave(self.now)
        self._drain(host)

    def ping(self, name, target):
        host = self.hosts[name]
        sequence = host.node.ping(self.hosts[target].key.id, self.now)
        self._drain(host)
        return sequence

    def publish(self, name, sequence):
        """Have a host change its record."""
        host = self.hosts[name]
        known = host.ledger.standing(host.key.id).record
        record = Record(
            known.node, sequence, known.wireguard_key, version="0.2.0", chain=known.chain
        )
        host.record = sign_record(record, host.key, self._mesh.id)
        merge = host.ledger.merge_untrusted(FactKind.RECORD, host.record, WALL_START)
        host.node.fact_added(merge.fact, self.now)
        self._drain(host)

    def at(self, delay, action, *args):
        """Do something later."""
        self._at(self.now + delay, partial(action, *args))

    # Running

    def run_for(self, seconds):
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = end

    def run_until(self, condition, *, within, step=0.05):
        """Run until a condition holds.  Return the seconds that took, or fail."""
        begin = self.now
        while not condition():
            assert self.now - begin < within, self.explain(f"not within {within} s")
            self.run_for(step)
        return self.now - begin

    # Looking

    @property
    def trace_hash(self):
        return self._hash.hexdigest()

    def running(self):
        return [host for host in self.hosts.values() if host.running and not host.left]

    def view(self, name):
        """What a host shows of the others, by name."""
        node = self.hosts[name].node
        return {self.names[view.node]: view.state for view in node.members()}

    def state(self, name, of):
        return self.view(name).get(of)

    def all_see(self, name, state):
        """Whether every other running host shows one in a state."""
        return all(
            self.state(host.name, name) is state for host in self.running() if host.name != name
        )

    def converged(self):
        """Whether all running hosts show the truth, and hold the same."""
        running = self.running()
        alive = {host.name for host in running}
        for host in running:
            view = self.view(host.name)
            if {name for name, state in view.items() if state is MemberState.ALIVE} != (
                alive - {host.name}
            ):
                return False
            if any(state is MemberState.SUSPECT for state in view.values()):
                return False
        return len({host.node._index.buckets() for host in running}) <= 1

    def changes(self, state=None, *, of=None, by=None):
        """The state changes so far: (time, who, event)."""
        return [
            (at, name, event)
            for at, name, event in self.trace
            if isinstance(event, MemberStateChanged)
            and (state is None or event.after is state)
            and (of is None or self.names[event.node] == of)
            and (by is None or name == by)
        ]

    def events(self, type_, *, by=None):
        return [e for _, name, e in self.trace if isinstance(e, type_) and by in {None, name}]

    def explain(self, what):
        views = "\n".join(
            f"  {host.name}: "
            + " ".join(f"{n}={s.name.lower()}" for n, s in self.view(host.name).items())
            for host in self.running()
        )
        return f"{what} (seed {self.seed}, at {self.now:.2f} s)\n{views}"

    # Inside

    def _at(self, at, action):
        heapq.heappush(self._queue, (at, next(self._counter), action))

    def _wall(self):
        return WALL_START + self.now

    def _wake(self, name, run):
        host = self.hosts[name]
        if host.running and host.run == run and self.now >= host.wake_at:
            host.wake_at = float("inf")
            host.node.handle_timer(self.now)
            self._drain(host)

    def _arrive(self, source, target, datagram):
        host = self.hosts[target]
        if host.running:
            host.node.receive_datagram(datagram, self.hosts[source].key.id, self.now, self._wall())
            self._drain(host)

    def _drain(self, host):
        for datagram, target in host.node.datagrams_to_send():
            name = self.names[target]
            self.datagrams += 1
            self.bytes += len(datagram) + IP_UDP_BYTES
            for delay in self.network.deliveries(host.name, name):
                self._at(self.now + delay, partial(self._arrive, host.name, name, datagram))
        while (event := host.node.next_event()) is not None:
            self._note(host, event)
            if not host.running:
                return
        timer = host.node.get_timer()
        if timer.at < host.wake_at:
            host.wake_at = max(timer.at, self.now)
            self._at(host.wake_at, partial(self._wake, host.name, host.run))

    def _note(self, host, event):
        self.trace.append((self.now, host.name, event))
        self._hash.update(f"{self.now:.9f} {host.name} {event!r}\n".encode())
        match event:
            case MemberJoined(node) if self.probed:
                name = self.names[node]
                self._at(self.now, partial(self._introduce, host.name, host.run, name, 0.1))
            case IncarnationRaised(incarnation):
                host.incarnation = incarnation
                self._note_incarnation(host)
            case LeaveAnnounced():
                self.crash(host.name)
            case BadPacketReceived(_, reason):
                assert reason == "not a member", self.explain(f"{host.name}: {reason}")

    def _note_incarnation(self, host):
        highest = max(self.incarnations.get(host.name, 0), host.incarnation)
        self.incarnations[host.name] = highest

    def _join(self, name, run, seed, pause):
        """Bootstrap: one round trip, in which each learns the other's record."""
        host, other = self.hosts[name], self.hosts[seed]
        if not host.running or host.run != run:
            return
        answered = self.network.deliveries(name, seed) and self.network.deliveries(seed, name)
        if not (answered and other.running):
            self._at(self.now + pause, partial(self._join, name, run, seed, min(pause * 2, 8.0)))
            return
        self._at(self.now + self.network.delay(), partial(self._learn, seed, name))
        self._at(self.now + 2 * self.network.delay(), partial(self._learn, name, seed))

    def _introduce(self, name, run, other_name, pause):
        """Path layer: a probe with our record, and a pong once we are in the other's kernel."""
        host, other = self.hosts[name], self.hosts[other_name]
        if not host.running or host.run != run or other_name in host.introduced:
            return
        if host.ledger.admitted(other.key.id):
            answered = self.network.deliveries(name, other_name) and self.network.deliveries(
                other_name, name
            )
            if answered and other.running:
                host.introduced.add(other_name)
                there = self.now + self.network.delay()
                self._at(there, partial(self._learn, other_name, name))
                back = there + self.network.delay()
                self._at(back, partial(self._ready, name, other_name))
                self._at(back, partial(self._ready, other_name, name))
                return
        again = partial(self._introduce, name, run, other_name, min(pause * 2, 10.0))
        self._at(self.now + pause, again)

    def _learn(self, name, other_name):
        """Take in another host's record, outside gossip."""
        host = self.hosts[name]
        if not host.running:
            return
        blob = self.hosts[other_name].record
        merge = host.ledger.merge_untrusted(FactKind.RECORD, blob, self._wall())
        if merge.changed:
            host.node.fact_added(merge.fact, self.now)
            self._drain(host)

    def _ready(self, name, other_name):
        host = self.hosts[name]
        if host.running:
            host.node.contact(self.hosts[other_name].key.id, self.now)
            self._drain(host)
