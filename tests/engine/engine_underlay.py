"""A simulated underlay: machines with addresses, NATs, pulled cables, lost datagrams.

realm "internet"  ── machines with public addresses
     │      │
   NAT x   NAT y     one mapping for an inside endpoint, whatever the destination, unless it is to
     │      │        be `dependent` on that; only those who were written to get back in; forgotten
     │      │        when idle (RFC 4787)
realm x   realm y    ── machines with private addresses; no hairpin
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from random import Random

from meshd.path.candidates import PRIVATE_NETWORKS
from meshd.wg.types import Endpoint

INTERNET = "internet"
PORT = 51820
BINDING_LIFETIME = 30.0  # what many home routers allow; RFC 4787 REQ-5 asks for 120 s
IP_UDP_BYTES = 28


@dataclass
class Nat:
    """Address-and-port-dependent filtering; mapping endpoint-independent, or `dependent` too."""

    address: object
    port_min: int = 40_000
    dependent: bool = False
    _outside: dict = field(default_factory=dict)  # inside endpoint, and remote, to outside port
    _inside: dict = field(default_factory=dict)  # outside port to inside endpoint
    _passed: dict = field(default_factory=dict)  # (outside port, remote) to when it was last used

    def outbound(self, inside, remote, now):
        key = (inside, remote) if self.dependent else inside
        port = self._outside.get(key)
        if port is None:
            port = self._outside[key] = self.port_min + len(self._inside)
            self._inside[port] = inside
        self._passed[port, remote] = now
        return Endpoint(self.address, port)

    def inbound(self, outside, remote, now):
        used_at = self._passed.get((outside.port, remote))
        if used_at is None or now - used_at > BINDING_LIFETIME:
            return None
        self._passed[outside.port, remote] = now
        return self._inside[outside.port]


@dataclass(frozen=True)
class Sent:
    """What a capture on the underlay shows of one datagram."""

    at: float
    sender: str
    source: Endpoint  # as the sender's own interface shows it
    target: Endpoint
    payload: object  # bytes of meshd, or a message of `engine_wireguard`


class Underlay:
    """Who reaches whom, and how long it takes."""

    def __init__(self, *, seed):
        self.delay_min = 0.002
        self.delay_max = 0.006
        self.loss = 0.0
        self.machines = []
        self.island = frozenset()  # names of machines that reach each other and nobody else
        self.capture = None  # a list, to have every datagram kept
        self.datagrams = self.bytes = 0  # meshd's own, outside the tunnels
        self.sealed_datagrams = self.sealed_bytes = 0  # WireGuard's
        self._nats = {}
        self._rng = Random(f"underlay {seed}")

    def add_nat(self, realm, address, *, dependent=False):
        self._nats[realm] = Nat(ip_address(address), dependent=dependent)

    def forward(self, sender, payload, source, target, now):
        """Return what becomes of a datagram, None if it is lost.

        That is (machine, source as it sees it, its address, its port, delay).
        """
        self._count(Sent(now, sender.name, source, target, payload))
        if not sender.plugged or self._rng.random() < self.loss:
            return None
        inside = self._machine(sender.realm, target)
        if inside is not None:
            receiver, origin, port = inside, source, target.port
        else:
            origin = source
            if sender.realm != INTERNET:
                if any(target.address in network for network in PRIVATE_NETWORKS):
                    return None
                origin = self._nats[sender.realm].outbound(source, target, now)
            receiver, port = self._from_internet(origin, target, now)
        if receiver is None or not receiver.plugged:
            return None
        if (sender.name in self.island) != (receiver.name in self.island):
            return None
        local = target.address if target.address in receiver.addresses else receiver.addresses[0]
        delay = self._rng.uniform(self.delay_min, self.delay_max)
        return receiver, origin, local, port, delay

    def _from_internet(self, origin, target, now):
        for realm, nat in self._nats.items():
            if nat.address == target.address:
                inside = nat.inbound(target, origin, now)
                return (None, 0) if inside is None else (self._machine(realm, inside), inside.port)
        return self._machine(INTERNET, target), target.port

    def _machine(self, realm, target):
        for machine in self.machines:
            here = machine.realm == realm and target.address in machine.addresses
            if here and target.port in {PORT, *machine.forwarder.ports}:
                return machine
        return None

    def _count(self, sent):
        if isinstance(sent.payload, bytes):
            self.datagrams += 1
            self.bytes += len(sent.payload) + IP_UDP_BYTES
        else:
            self.sealed_datagrams += 1
            self.sealed_bytes += sent.payload.size + IP_UDP_BYTES
        if self.capture is not None:
            self.capture.append(sent)
