"""A mesh of real nodes on a simulated network: all that happens is a function of one seed.

    Host ── Node (the real one)     datagrams ──▶ Network: loss, delay, copies, cut links
         ── Ledger (the real one)   streams ────▶ Stream: connection, frame there, frame back
         ── Socket                  PathLayer ──▶ introductions, bootstrap

Time is virtual and advances from one thing that happens to the next.  Whatever is random comes from
generators made from the seed.  `trace` holds every event of every node, and `trace_hash` names the
whole history, with every byte that was sent, in a few bytes.

WireGuard is simulated as far as gossip can tell: a datagram reaches only a node that is running and
has its sender among its members, its source cannot be forged, and the kernel counts what came from
each peer.

A host is driven as the daemon drives its engine: one input, then all outputs; a late timer goes
before what has arrived meanwhile.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
from functools import partial
from random import Random

from meshd.gossip.claim import MemberState
from meshd.gossip.config import GossipConfig
from meshd.gossip.events import (
    BadPacketReceived,
    EvidenceWanted,
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
from sim.host import Host
from sim.network import IP_UDP_BYTES, Network
from sim.paths import PathLayer
from sim.streams import Stream

WALL_START = 1_700_000_000
EVIDENCE_DELAY = 0.1  # between two looks at WireGuard's receive counter
_ICMP_BYTES = 40 + 8 + 100  # with the head of the datagram that it is about


class Cluster:
    """See the module docstring."""

    def __init__(self, size, *, seed, config=None, start=True, mesh_started=False, probed=True):
        self.seed = seed
        self.now = 0.0
        self.config = config or GossipConfig()
        self.network = Network(Random(f"network {seed}"))
        self.paths = PathLayer(self, probed=probed)
        self.trace = []
        self.watchers = []  # called with (host, event) for every event
        self.on_change = []  # called when hosts begin or cease to run
        self.datagrams = self.bytes = 0
        self.outputs_max = 0  # datagrams in answer to one input
        self.incarnations = {}  # the highest that each node has ever had
        self.ever_left = {}  # names of those who have ever said that they leave
        self.malicious = {}  # names of those who may send anything
        self.hosts = {}
        self.names = {}
        self._hash = hashlib.blake2b(digest_size=16)
        self._queue = []
        self._counter = itertools.count()
        self._mesh = MeshKey(hashlib.sha256(f"mesh {seed}".encode()).digest())
        for number in range(size):
            self.add_host(f"n{number}")
        if mesh_started:
            # Every ledger has every record from the start, as after a power cut.
            for host, other in itertools.product(self.hosts.values(), repeat=2):
                host.ledger.merge_untrusted(FactKind.RECORD, other.record, WALL_START)
        if start or mesh_started:
            for name in self.hosts:
                self.start(name)
                if name != "n0" and not mesh_started:
                    self.join(name, "n0")

    @property
    def mesh(self):
        return self._mesh.id

    @property
    def mesh_key(self):
        return self._mesh

    def add_host(self, name):
        key = NodeKey(hashlib.sha256(f"node {name} {self.seed}".encode()).digest())
        credential = founding_credential(key.id, name, self._mesh.id, WALL_START)
        chain = (issue(credential, self._mesh, self._mesh.id),)
        wireguard_key = WireGuardKey(hashlib.sha256(key.id).digest())
        record = Record(key.id, 1, wireguard_key, version="0.1.0", chain=chain)
        blob = sign_record(record, key, self._mesh.id)
        self.hosts[name] = Host(name, key, blob, Ledger(self._mesh.id))
        self.names[key.id] = name

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
        host.up = True
        host.left = host.stalled = False
        host.busy_until = 0.0
        host.introduced = {}
        host.node = self.make_node(host)
        self._note_incarnation(host)
        self._changed()
        self._drain(host)

    def make_node(self, host):
        return Node(
            host.key,
            self._mesh.id,
            host.ledger,
            config=self.config,
            rng=Random(f"node {host.name} {host.run} {self.seed}"),
            now=self.now,
            incarnation=host.incarnation,
        )

    def crash(self, name, *, host_up=False):
        """Cut the power; or kill the daemon alone, so that its host says that it is gone."""
        host = self.hosts[name]
        host.node = None
        host.up = host_up
        host.stalled = False
        host.socket.clear()
        host.wake_at = math.inf
        self.paths.crashed(name)
        self._changed()

    def stall(self, name, seconds):
        """Stop a host's daemon, as SIGSTOP does, and let it continue later."""
        host = self.hosts[name]
        host.stalled = True
        self._changed()
        self.at(seconds, self._continue, host, host.run)

    def slow(self, name, work):
        """Have every input take a host so many seconds."""
        self.hosts[name].work = work

    def jump_clock(self, name, seconds):
        """Set a host's wall clock forward or back.  The monotonic one goes on as it was."""
        self.hosts[name].wall_offset += seconds

    def join(self, name, seed, *, delay=0.0):
        self.paths.join(name, seed, delay=delay)

    def leave(self, name):
        """Have a host leave gracefully; its daemon ends when that is announced."""
        host = self.hosts[name]
        host.left = True
        self.ever_left[name] = None
        self._changed()
        self.tell(host, lambda node, now: node.leave(now))

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
        self.learn(host, host.record)

    def traffic(self, source, target):
        """Send a packet that is none of gossip's business through the tunnel."""
        for delay in self.network.deliveries(source, target, udp=False):
            self.at(delay, self._count, self.hosts[source], self.hosts[target])

    def inject(self, source, target, datagram):
        """Have a host send bytes that its node has not made."""
        self._send(self.hosts[source], self.hosts[target], datagram)

    # Running

    def at(self, delay, action, *args):
        """Do something later."""
        heapq.heappush(self._queue, (self.now + delay, next(self._counter), action, args))

    def run_for(self, seconds):
        end = self.now + seconds
        queue = self._queue
        while queue and queue[0][0] <= end:
            self.now, _, action, args = heapq.heappop(queue)
            action(*args)
        self.now = end

    def run_until(self, condition, *, within, step=0.05):
        """Run until a condition holds.  Return the seconds that took, or fail."""
        begin = self.now
        while not condition():
            assert self.now - begin < within, self.explain(f"not within {within} s")
            self.run_for(step)
        return self.now - begin

    def wall(self, host):
        """What a host's wall clock shows."""
        return WALL_START + self.now + host.wall_offset

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
        view = self.hosts[name].node.member(self.hosts[of].key.id)
        return None if view is None else view.state

    def all_see(self, name, state):
        """Whether every other running host shows one in a state."""
        return all(
            self.state(host.name, name) is state for host in self.running() if host.name != name
        )

    def converged(self):
        """Whether all running hosts show the truth, and hold the same: of those who do not lie."""
        running = [host for host in self.running() if host.name not in self.malicious]
        # Cheap, and most often the answer.
        if len({host.node._index.buckets() for host in running}) > 1:
            return False
        alive = {host.name for host in running}
        for host in running:
            view = {n: s for n, s in self.view(host.name).items() if n not in self.malicious}
            if {name for name, state in view.items() if state is MemberState.ALIVE} != (
                alive - {host.name}
            ):
                return False
            if any(state is MemberState.SUSPECT for state in view.values()):
                return False
        return True

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
            for host in self.running()[:20]
        )
        return f"{what} (seed {self.seed}, at {self.now:.2f} s)\n{views}"

    # A host takes something in

    def take(self, host, size, give):
        """Have a host take in so many bytes, as soon as it can."""
        if host.idle and not host.work:
            give()
            self._drain(host)
        else:
            host.socket.put(size, give)
            self._serve(host, host.run)

    def tell(self, host, give):
        """Have a host's own other parts tell its node something: called with (node, now)."""
        if host.running:
            self.take(host, 0, lambda: give(host.node, self.now))

    def learn(self, host, record):
        """Have a host take in a record that comes from outside gossip."""

        def give(node, now):
            merge = host.ledger.merge_untrusted(FactKind.RECORD, record, self.wall(host))
            if merge.changed:
                node.fact_added(merge.fact, now)

        self.tell(host, give)

    def receive(self, host, source, datagram):
        """Give a host's node a datagram."""
        host.node.receive_datagram(datagram, source.key.id, self.now, self.wall(host))

    def _serve(self, host, run):
        """Do what a host has to do, as far as it can."""
        while host.running and host.run == run and not host.stalled:
            if host.busy_until > self.now:
                return  # it comes back when it is free
            host.busy_until = 0.0
            # As the driver does: a deadline that has passed goes before what is in the socket.
            if host.node.get_timer().at <= self.now:
                host.node.handle_timer(self.now)
            elif host.socket:
                host.socket.take()()
            else:
                return
            if host.work:
                host.busy_until = self.now + host.work
                self.at(host.work, self._free, host, run)
            self._drain(host)

    def _free(self, host, run):
        self._serve(host, run)
        self._arm(host)

    def _wake(self, host, run):
        if host.running and host.run == run and self.now >= host.wake_at:
            host.wake_at = math.inf
            self._free(host, run)

    def _continue(self, host, run):
        if host.running and host.run == run and host.stalled:
            host.stalled = False
            self._changed()
            self._free(host, run)

    # What a host gives out

    def _drain(self, host):
        if not host.running:
            return
        outputs = host.node.datagrams_to_send()
        self.outputs_max = max(self.outputs_max, len(outputs))
        for datagram, target in outputs:
            self._send(host, self.hosts[self.names[target]], datagram)
        for probe in host.node.streams_to_open():
            Stream(self, host, probe)
        while (event := host.node.next_event()) is not None:
            self._note(host, event)
            if not host.running:
                return
        self._arm(host)

    def _arm(self, host):
        """See that a host is woken for its next timer.  One that cannot act now comes by itself."""
        if not host.running or host.stalled or host.busy_until > self.now:
            return
        at = host.node.get_timer().at
        if at < host.wake_at:
            host.wake_at = max(at, self.now)
            heapq.heappush(
                self._queue, (host.wake_at, next(self._counter), self._wake, (host, host.run))
            )

    def _send(self, host, target, datagram):
        size = len(datagram) + IP_UDP_BYTES
        self.datagrams += 1
        self.bytes += size
        host.sent.add(size)
        self._hash.update(datagram)
        for delay in self.network.deliveries(host.name, target.name):
            self.at(delay, self._arrive, host, target, datagram)

    def _arrive(self, source, target, datagram):
        if target.up:
            target.tunnelled[source.name] += 1
        if target.running:
            if target.idle and not target.work:
                self.receive(target, source, datagram)
                self._drain(target)
            else:
                give = partial(self.receive, target, source, datagram)
                self.take(target, len(datagram), give)
        elif target.up:
            target.sent.add(_ICMP_BYTES)
            for delay in self.network.deliveries(target.name, source.name, udp=False):
                self.at(delay, self._refused, source, target)

    def _refused(self, host, target):
        """ICMP: the port is unreachable."""
        self._count(target, host)
        self.tell(host, lambda node, now: node.unreachable(target.key.id, now))

    def _count(self, source, target):
        if target.up:
            target.tunnelled[source.name] += 1

    def _look_again(self, host, run, peer, packets):
        """Compare WireGuard's receive counter with what it was."""
        if host.run == run and host.tunnelled[peer.name] > packets:
            self.tell(host, lambda node, now: node.carried(peer.key.id, now))

    def _note(self, host, event):
        self.trace.append((self.now, host.name, event))
        self._hash.update(f"{self.now:.9f} {host.name} {event!r}\n".encode())
        match event:
            case MemberJoined(node):
                self.paths.member_joined(host, self.names[node])
            case IncarnationRaised(incarnation):
                host.incarnation = incarnation
                self._note_incarnation(host)
            case EvidenceWanted(node):
                peer = self.hosts[self.names[node]]
                packets = host.tunnelled[peer.name]
                self.at(EVIDENCE_DELAY, self._look_again, host, host.run, peer, packets)
            case LeaveAnnounced():
                self.crash(host.name)
            case BadPacketReceived(source, reason):
                assert reason == "not a member" or self.names[source] in self.malicious, (
                    self.explain(f"{host.name}: {reason}")
                )
        for watch in self.watchers:
            watch(host, event)

    def _note_incarnation(self, host):
        highest = max(self.incarnations.get(host.name, 0), host.incarnation)
        self.incarnations[host.name] = highest

    def _changed(self):
        for tell in self.on_change:
            tell()
