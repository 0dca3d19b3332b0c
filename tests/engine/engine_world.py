"""A whole mesh in virtual time: real engines, a simulated WireGuard, a simulated underlay.

    Machine ── Engine         the real one, driven as `meshd.daemon` drives it
            ── WireGuard      `engine_wireguard`; brought to the plan by the real `diff_device`
            ── Disk           what the daemon would have written by then
            ── Forwarder      `engine_forwarder`: what it relays for others
    Underlay                  `engine_underlay`

Inside the tunnels there are gossip datagrams, connections of four packets without retransmission
(syn, accepted, frame, answer), and what a kernel answers where no daemon listens.

All that happens is a function of one seed; `trace_hash` names the whole history in a few bytes.
Time advances from one thing that happens to the next, and nothing else is slow.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, ip_address
from random import Random

from engine.engine_forwarder import Forwarder
from engine.engine_underlay import INTERNET, PORT, Underlay
from engine.engine_wireguard import Packet, WireGuard
from meshd.engine import events
from meshd.engine.config import EngineConfig, Memory
from meshd.engine.engine import Engine
from meshd.engine.identity import Identity
from meshd.gossip.claim import MemberState
from meshd.keys import BootstrapKey, InviteKey, MeshKey, NodeKey, WireGuardPrivateKey
from meshd.trust.credential import founding_credential, issue
from meshd.trust.fact import FactKind
from meshd.trust.invite import Invite, Token, sign_invite
from meshd.wg.diff import diff_device, renewal
from meshd.wg.types import DeviceChange, Endpoint

WALL = 1_700_000_000
PREFIX = IPv4Network("100.64.0.0/10")
GOSSIP_PORT = 7946
SEQUENCE_SHIFT = 20

# As long as the daemon waits for a burst to end, and the kernel takes.
RECONCILE_DELAY = 0.003
RESYNC_INTERVAL = 5.0
RESOLVE_DELAY = 0.002

# An engine that wants to be woken again and again without time passing would never sleep.
WAKES_PER_INSTANT_MAX = 20


@dataclass
class Disk:
    """What survives the daemon and the power."""

    node_key: NodeKey
    identity: Identity | None = None
    facts: dict = field(default_factory=dict)  # (kind, key) to fact
    starts: int = 0
    incarnation: int = 0
    keys: object = None  # WireGuardKeys, once some were saved
    refuses: bool = False  # keys
    keyrings: dict = field(default_factory=dict)  # node to pre-shared keys
    allocations: dict = field(default_factory=dict)  # what it relays, by pair

    def copy(self):
        return replace(
            self,
            facts=dict(self.facts),
            keyrings=dict(self.keyrings),
            allocations=dict(self.allocations),
        )


class Machine:
    """One host, its kernel and, while it runs, its daemon."""

    def __init__(self, world, name, addresses, *, realm=INTERNET, node_key=None, **options):
        self.world = world
        self.name = name
        self.realm = realm
        self.addresses = tuple(map(ip_address, addresses))
        self.options = options  # of EngineConfig
        self.plugged = True
        self.clock_offset = 0.0
        self.number = len(world.machines)  # names may be taken twice
        self.kem = None  # given: it takes part in pre-shared keys
        self.disk = Disk(node_key or NodeKey(world.secret(f"node {self.number}")))
        self.engine = None
        self.events = []  # (instant, event)
        self.echoes = []  # payloads that came back
        self.deaf = False  # its own firewall drops gossip that comes in, without a word
        self.streams = {}  # connections it has made: number to (frame, target)
        self._connections = itertools.count(1)
        self.starts = 0
        self.looks = 0  # at the device, for its counters
        self._rng = Random(f"machine {self.number} {world.seed}")
        self._wake_at = None
        self._wakes = 0
        self._woken_at = -1.0
        self._revision = -1
        self._reconciling = False
        self.link = frozenset()  # addresses of the interface
        self.retired = frozenset()  # those that are the source of nothing new
        self.wireguard = self._new_wireguard()
        self.forwarder = Forwarder(self)
        self.applied = {}  # endpoints, by key

    # What operators and accidents do

    def start(self, *, seeds=(), token=None, prefix=PREFIX):
        """Start the daemon: from disk, perhaps with a token, or else with the secret."""
        assert self.engine is None
        identity = self.disk.identity or self._first_identity(token, prefix)
        identity = replace(identity, token=token)
        self.disk.starts += 1
        self.disk.incarnation += 1
        self.starts += 1
        self.engine = Engine(
            identity,
            config=EngineConfig(
                **{"listen_port": PORT, "seeds": tuple(map(_seed_text, seeds)), **self.options}
            ),
            memory=Memory(
                facts=tuple(self.disk.facts.values()),
                # At a random place in the block, as the daemon does.
                sequence=(self.disk.starts << SEQUENCE_SHIFT) + self._rng.randrange(1 << 19),
                incarnation=self.disk.incarnation,
                keys=self.disk.keys,
                keyrings=dict(self.disk.keyrings),
                allocations=tuple(self.disk.allocations.values()),
            ),
            rng=Random(f"engine {self.number} {self.starts} {self.world.seed}"),
            now=self.now,
            wall=self.wall,
        )
        self.applied = {}
        self.engine.local_changed(self._local(), self.now, self.wall)
        self._reconcile()
        if identity.chain:
            self._remember(identity)
        self.drain()
        self.world.at(RESYNC_INTERVAL, lambda run=self.starts: self._resync(run))

    def kill(self):
        """End the daemon as `kill -9` does: interface and sessions stay."""
        assert self.engine is not None
        self.engine = None
        self._wake_at = None
        self.streams = {}

    def lose_interface(self):
        """Delete the interface, and all sessions with it."""
        self.wireguard.close()
        self.wireguard = self._new_wireguard()
        self.link = self.retired = frozenset()
        self.applied = {}

    def power_off(self):
        """End everything that is not on disk."""
        if self.engine is not None:
            self.kill()
        self.lose_interface()
        self.forwarder.close()

    def leave(self):
        """`meshctl leave`: announce it; daemon and interface go when that is done."""
        self.engine.leave(self.now, self.wall)
        self.drain()

    def forget(self, other):
        self.engine.forget(other.node, self.now, self.wall)
        self.drain()

    def unplug(self, *, noticed=True):
        """Pull the cable.  `noticed`: the interface itself loses its carrier."""
        self.plugged = False
        if noticed:
            self.local_changed()

    def plug(self):
        self.plugged = True
        self.local_changed()

    def renumber(self, *addresses, realm=None):
        self.addresses = tuple(map(ip_address, addresses))
        self.realm = realm or self.realm
        self.local_changed()

    def local_changed(self):
        if self.engine is not None:
            self.engine.local_changed(self._local(), self.now, self.wall)
            self.drain()

    def learn(self, kind, blob):
        """Have the daemon take a fact that an operator has made."""
        self.engine.learn(kind, blob, self.now, self.wall)
        self.engine.handle_timer(self.now, self.wall)
        self.drain()

    def invite(self, *, seeds=None, expires_in=3600, key="invite", **grants):
        """Return a token that this member has made."""
        identity = self.engine.identity
        invite_key = InviteKey(self.world.secret(f"{key} {self.name}"))
        invite = Invite(
            invite_key.id, identity.node, expires_at=int(self.wall + expires_in), **grants
        )
        return Token(
            mesh=identity.mesh,
            bootstrap_key=identity.bootstrap_key,
            seeds=tuple(map(_seed_text, (self,) if seeds is None else seeds)),
            invite_key=invite_key,
            invite=sign_invite(invite, identity.node_key, identity.mesh),
            ipv4_prefix=identity.ipv4_prefix,
            root=identity.roots.newest if identity.roots.number else None,
            root_number=identity.roots.number,
        )

    def ping(self, target, *, within=1.0):
        """Ping an overlay address through the tunnels.  Return whether an answer came."""
        payload = self._rng.randbytes(8)
        source = next((a for a in sorted(self.link, key=str) if a.version == target.version), None)
        if source is None:
            return False
        self.wireguard.send(Packet(source, target, "echo", payload))
        return self.world.happens(lambda: payload in self.echoes, within=within)

    # Reading

    @property
    def now(self):
        return self.world.now

    @property
    def wall(self):
        return self.world.wall + self.clock_offset

    @property
    def node(self):
        return self.disk.node_key.id

    @property
    def ipv4(self):
        return self.engine.presence.ipv4

    @property
    def ipv6(self):
        return self.engine.identity.ipv6

    @property
    def public_key(self):
        return self.engine.identity.wireguard_key.public

    def state_of(self, other):
        """Return how a member is shown here; None for one not known."""
        view = self.engine.gossip.member(other.node)
        return None if view is None else view.state

    def has_peer(self, other):
        """Whether the kernel has a tunnel for the other's overlay address."""
        return self.has_peer_at(other.ipv6)

    def has_peer_at(self, address):
        return self.wireguard.owner(address) is not None

    def endpoint_of(self, other):
        peer = self.wireguard.observe().peers.get(other.public_key)
        return None if peer is None else peer.endpoint

    def of(self, kind):
        """Return the events of a type, or the notices of a name."""
        if isinstance(kind, str):
            found = (e for _, e in self.events if isinstance(e, events.Notice))
            return [notice for notice in found if notice.event == kind]
        return [event for _, event in self.events if isinstance(event, kind)]

    # The daemon

    def receive(self, payload, source, local, port=PORT):
        """Take a datagram from the underlay."""
        if port != PORT:
            self.forwarder.receive(payload, source, port, local)
        elif not isinstance(payload, bytes):
            self.wireguard.receive(payload, source)
        elif self.engine is not None:
            self.engine.underlay_datagram(payload, source, local, self.now, self.wall)
            self.drain()

    def drain(self):
        """Do what the daemon's driver does after each input."""
        engine = self.engine
        while engine is self.engine and (event := engine.next_event()) is not None:
            self.events.append((self.now, event))
            self.world.note(self.name, event)
            self._on_event(event)
        if engine is not self.engine:
            return
        if engine.wants_look(self.now):
            self.looks += 1
            engine.counters_observed(self.wireguard.observe(), self.now, self.wall)
            self.drain()
            return
        for stream in engine.streams_to_open():
            self._connect(stream)
        for datagram, target, source in engine.underlay_datagrams():
            self._send_underlay(datagram, target, source)
        for outgoing in engine.relay_datagrams():
            self.forwarder.send(outgoing)
        for payload, address in engine.overlay_datagrams():
            self.wireguard.send(Packet(engine.identity.ipv6, address, GOSSIP_PORT, payload))
        if engine.plan_revision != self._revision:
            self._revision = engine.plan_revision
            if not self._reconciling:
                self._reconciling = True
                self.world.at(RECONCILE_DELAY, self._reconcile_and_drain)
        self._set_wake(engine.get_timer().at)

    def _on_event(self, event):
        match event:
            case events.FactChanged(fact):
                if self.disk.identity is not None:
                    self.disk.facts[fact.kind, fact.key] = fact
            case events.RecordForgotten(node):
                self.disk.facts.pop((FactKind.RECORD, bytes(node)), None)
            case events.Admitted(identity):
                self._remember(identity)
            case events.IncarnationRaised(incarnation):
                self.disk.incarnation = max(self.disk.incarnation, incarnation + 1)
            case events.SequenceOutrun(sequence):
                self.disk.starts = max(self.disk.starts, (sequence >> SEQUENCE_SHIFT) + 1)
            case events.SaveKeys(keys):
                self._save_keys(keys)
            case events.SwitchNode(identity, record):
                self._switch_node(identity, record)
            case events.KeyringChanged(node, ring):
                self.disk.keyrings[node] = ring
                if not ring.held:
                    del self.disk.keyrings[node]
            case events.AllocationChanged(pair, allocation):
                self.disk.allocations[pair] = allocation
                if allocation is None:
                    del self.disk.allocations[pair]
            case events.RelayPortsChanged(ports):
                self.forwarder.ports = ports
            case events.RelayMapsChanged(maps):
                self.forwarder.set_maps(maps)
            case events.KemWanted() if self.kem is not None:
                self.engine.take_kem(self.kem, self.now, self.wall)
            case events.HurryDevice():
                self._reconcile()
            case events.RenewPeer(key):
                self._renew(key)
            case events.ResolveSeeds(seeds):
                found = {seed: tuple(self.world.resolve(seed)) for seed in seeds}
                self.world.at(RESOLVE_DELAY, lambda run=self.starts: self._resolved(found, run))
            case events.RefusedByMesh(_, _, True) if self.disk.identity is None:
                self.kill()
            case events.Departed():
                self.power_off()

    def _remember(self, identity):
        self.disk.identity = identity
        self.disk.facts |= {(f.kind, f.key): f for f in self.engine.ledger.facts()}

    def _save_keys(self, keys):
        if not self.disk.refuses:
            self.disk.keys = keys
            self.disk.identity = replace(self.disk.identity, wireguard_key=keys.current)
        self.engine.keys_saved(keys, self.now, self.wall, done=not self.disk.refuses)

    def _switch_node(self, identity, record):
        if self.disk.refuses:
            self.engine.rekeying.failed("the disk is full")
            return
        self.disk.node_key, self.disk.identity = identity.node_key, identity
        self.disk.facts[record.kind, record.key] = record
        seeds = self.engine.config.seeds
        self.kill()
        self.start(seeds=seeds)

    def _renew(self, key):
        change = renewal(self.engine.desired_state().device, self.wireguard.observe(), key)
        if change is not None:
            for peer in change.peers:  # one by one: the first of them ends all that was
                self.wireguard.apply(DeviceChange(peers=(peer,)))
        self.engine.device_observed(self.wireguard.observe(), self.now, self.wall)

    def _resolved(self, found, run):
        if self.engine is not None and run == self.starts:
            self.engine.seeds_resolved(found, self.now, self.wall)
            self.drain()

    def _set_wake(self, at):
        at = max(at, self.now)
        if at != self._wake_at:
            self._wake_at = at
            self.world.at(at - self.now, lambda: self._wake(at))

    def _wake(self, at):
        if self.engine is None or at != self._wake_at:
            return
        self._wakes = self._wakes + 1 if self._woken_at == self.now else 0
        self._woken_at = self.now
        assert self._wakes < WAKES_PER_INSTANT_MAX, self.engine.get_timer()
        self._wake_at = None
        self.engine.handle_timer(self.now, self.wall)
        self.drain()

    # The reconciler

    def _resync(self, run):
        if self.engine is not None and run == self.starts:
            self.forwarder.tell(self.engine, self.now)
            self._reconcile_and_drain()
            self.world.at(RESYNC_INTERVAL, lambda: self._resync(run))

    def _reconcile_and_drain(self):
        self._reconciling = False
        if self.engine is not None:
            self._reconcile()
            self.drain()

    def _reconcile(self):
        desired = self.engine.desired_state()
        change = diff_device(
            desired.device, self.wireguard.observe(), applied_endpoints=self.applied
        )
        if change is not None:
            self.wireguard.apply(change)
        self.applied = {
            key: peer.endpoint
            for key, peer in desired.device.peers.items()
            if peer.endpoint is not None
        }
        self.link = frozenset(network.network_address for network in desired.link.addresses)
        self.retired = frozenset(network.network_address for network in desired.link.retired)
        self.engine.device_observed(self.wireguard.observe(), self.now, self.wall)

    # The kernel

    def _new_wireguard(self):
        return WireGuard(self.world, send=self._send_underlay, deliver=self._deliver, rng=self._rng)

    def _send_underlay(self, payload, target, source=None):
        if source is not None and source not in self.addresses and not source.is_loopback:
            return
        address = source or next(
            (a for a in self.addresses if a.version == target.address.version), None
        )
        if address is not None:
            self.world.carry(self, payload, Endpoint(address, PORT), target)

    def _deliver(self, packet):
        if packet.target not in self.link | self.retired:
            return
        match packet.port:
            case "echo":
                answer = replace(
                    packet, source=packet.target, target=packet.source, port="echo-reply"
                )
                self.wireguard.send(answer)
            case "echo-reply":
                self.echoes.append(packet.payload)
            case "syn" | "accepted" | "frame" | "answer":
                self._on_segment(packet)
            case "unreachable":
                if self.engine is not None:
                    self.engine.overlay_unreachable(packet.source, self.now, self.wall)
                    self.drain()
            case _ if self.deaf:
                pass
            case _ if self.engine is None:
                self._reply(packet, "unreachable", b"")
            case _:
                self.engine.overlay_datagram(packet.payload, packet.source, self.now, self.wall)
                self.drain()

    def _reply(self, packet, port, payload):
        answer = Packet(packet.target, packet.source, port, payload)
        self.wireguard.send(answer)

    # Connections: the payload of each packet begins with the connection's number

    def _connect(self, stream):
        number = next(self._connections).to_bytes(8, "big")
        self.streams[number] = (stream.frame, stream.target)
        self.world.at(stream.timeout, lambda: self.streams.pop(number, None))
        self.wireguard.send(Packet(self.ipv6, stream.target, "syn", number))

    def _on_segment(self, packet):
        if self.engine is None:
            return  # reset: no answer to whoever waits for one
        number, payload = packet.payload[:8], packet.payload[8:]
        match packet.port:
            case "syn" if self.engine.is_member_address(packet.source):
                self._reply(packet, "accepted", number)
            case "frame":
                answer = self.engine.overlay_stream(payload, packet.source, self.now, self.wall)
                if answer is not None:
                    self._reply(packet, "answer", number + answer)
                self.drain()
            case "accepted" | "answer" if number in self.streams:
                frame, target = self.streams[number]
                if packet.port == "accepted":
                    self._reply(packet, "frame", number + frame)
                else:
                    del self.streams[number]
                    self.engine.overlay_datagram(payload, target, self.now, self.wall)
                    self.drain()

    # Inside

    def _local(self):
        return self.addresses if self.plugged else ()

    def _first_identity(self, token, prefix):
        world = self.world
        wireguard_key = WireGuardPrivateKey(world.secret(f"wireguard {self.number}"))
        if token is not None:
            return Identity(
                mesh=token.mesh,
                node_key=self.disk.node_key,
                wireguard_key=wireguard_key,
                bootstrap_key=token.bootstrap_key,
                name=self.name,
                ipv4_prefix=token.ipv4_prefix,
                token=token,
                pinned=token.roots,
            )
        credential = founding_credential(self.node, self.name, world.mesh, int(self.wall))
        return Identity(
            mesh=world.mesh,
            node_key=self.disk.node_key,
            wireguard_key=wireguard_key,
            bootstrap_key=world.bootstrap_key,
            name=self.name,
            ipv4_prefix=prefix,
            chain=(issue(credential, world.mesh_key, world.mesh),),
        )


class World:
    """See the module docstring."""

    def __init__(self, *, seed=1):
        self.seed = seed
        self.now = 0.0
        self.underlay = Underlay(seed=seed)
        self.machines = self.underlay.machines
        self.names = {}  # what DNS says: name to addresses
        self.mesh_key = MeshKey(self.secret("mesh"))
        self.mesh = self.mesh_key.id
        self.bootstrap_key = BootstrapKey(self.secret("bootstrap"))
        self._queue = []
        self._order = itertools.count()
        self._hash = hashlib.blake2b(digest_size=16)

    def machine(self, name, *addresses, **options):
        """Put up a machine, with an address of its own unless some are given."""
        if not addresses:
            addresses = (f"192.0.2.{len(self.machines) + 1}",)
        machine = Machine(self, name, addresses, **options)
        self.machines.append(machine)
        return machine

    def mesh_of(self, size, *, within=10.0, **options):
        """Return running secret-holders that all know the first as their seed, and are one mesh."""
        machines = [self.machine(f"n{number}", **options) for number in range(size)]
        for machine in machines:
            machine.start(seeds=() if machine is machines[0] else machines[:1])
        self.run_until(lambda: whole(*machines), within=within)
        return machines

    def run_for(self, seconds):
        """Let time pass."""
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = end

    def happens(self, condition, *, within):
        """Run until a condition holds, and say whether it does."""
        end = self.now + within
        while not condition():
            if self.now >= end:
                return False
            self.run_for(min(0.01, end - self.now))
        return True

    def run_until(self, condition, *, within):
        """Run until a condition holds.  Return the seconds that took."""
        began_at = self.now
        assert self.happens(condition, within=within), f"not within {within} s\n{self.picture()}"
        return self.now - began_at

    def at(self, delay, action):
        heapq.heappush(self._queue, (self.now + delay, next(self._order), action))

    @property
    def wall(self):
        return WALL + self.now

    def secret(self, purpose):
        return hashlib.blake2b(f"{purpose} {self.seed}".encode(), digest_size=32).digest()

    def resolve(self, seed):
        host, port = seed.rsplit(":", 1)
        addresses = self.names.get(host)
        if addresses is None:
            try:
                addresses = (str(ip_address(host.strip("[]"))),)
            except ValueError:
                addresses = ()
        return [Endpoint(ip_address(address), int(port)) for address in addresses]

    def carry(self, sender, payload, source, target):
        """Carry a datagram over the underlay."""
        arrival = self.underlay.forward(sender, payload, source, target, self.now)
        if arrival is None:
            return
        receiver, origin, local, port, delay = arrival

        def arrive():
            if receiver.plugged and local in receiver.addresses:
                receiver.receive(payload, origin, local, port)

        self.at(delay, arrive)

    def note(self, name, event):
        self._hash.update(f"{self.now:.9f} {name} {event!r}\n".encode())

    @property
    def trace_hash(self):
        return self._hash.hexdigest()

    def picture(self):
        """Return who sees whom how, to look at when something is not as it should be."""
        lines = []
        for machine in self.machines:
            if machine.engine is None:
                lines.append(f"{machine.name}: not running")
                continue
            seen = ", ".join(
                f"{other.name} {machine.state_of(other)!s} {machine.endpoint_of(other)!s}"
                for other in self.machines
                if other is not machine and other.engine is not None
            )
            lines.append(f"{machine.name}: {seen}; bad {dict(machine.engine.bad_packets)}")
        return "\n".join(lines)


def sees_alive(machine, *others):
    """Whether a machine shows all the others alive."""
    return all(machine.state_of(other) is MemberState.ALIVE for other in others)


def whole(*machines):
    """Whether all of them run, and each shows all others alive."""
    return all(
        machine.engine is not None
        and sees_alive(machine, *(m for m in machines if m is not machine))
        for machine in machines
    )


def all_ping(*machines):
    """Whether every pair reaches each other over IPv4 and IPv6."""
    return all(
        machine.ping(address)
        for machine, other in itertools.permutations(machines, 2)
        for address in (other.ipv4, other.ipv6)
    )


def _seed_text(seed):
    return seed if isinstance(seed, str) else f"{seed.addresses[0]}:{PORT}"
