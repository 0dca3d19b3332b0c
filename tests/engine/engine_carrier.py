"""A world with TCP: machines whose UDP is blocked, and what carries their datagrams instead.

    member ── 127.0.0.1:a ──▶ Tube ──▶ from 127.109.0.n:b to the host's own port

It is in the place of `meshd.daemon.carrier` and the sockets below: it has what an engine wants, and
tells both engines what there is.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Address

from engine.engine_underlay import PORT
from engine.engine_world import World
from meshd.carrier.frames import OWN_PORT
from meshd.carrier.resort import CarrierState
from meshd.engine import events
from meshd.wg.types import Endpoint

CONNECT_DELAY = 0.01
RETRY_INTERVAL = 1.0
LOOPBACK = IPv4Address("127.0.0.1")
CLIENTS = IPv4Address("127.109.0.0")


@dataclass(eq=False)
class Tube:
    """One wanted carrier, connected or not."""

    member: object
    doors: tuple
    endpoints: dict = field(default_factory=dict)  # the host's port to the member's endpoint
    host: object = None  # while it is connected
    client: Endpoint | None = None  # where the member seems to be, to the host


class TcpWorld(World):
    """See the module docstring.  `udp_blocked` has names of machines."""

    def __init__(self, *, seed=1):
        super().__init__(seed=seed)
        self.udp_blocked = set()
        self.tubes = {}  # (member's name, number) to tube
        self.carried = 0
        self._made = 0

    def note(self, name, event):
        super().note(name, event)
        if isinstance(event, events.CarriersChanged):
            machine = next(m for m in self.machines if m.name == name)
            self.at(0.0, lambda: self._reconcile(machine))

    def resolve(self, seed):
        return super().resolve(seed.rpartition("://")[2])

    def carry(self, sender, payload, source, target):
        if target.address.is_loopback:
            self._carry_over_tcp(sender, payload, source, target)
        elif sender.name not in self.udp_blocked:
            super().carry(sender, payload, source, target)

    def tubes_of(self, member):
        return [tube for tube in self.tubes.values() if tube.member is member and tube.host]

    def disconnect(self, tube):
        """End a connection; it is tried again."""
        host, tube.host, tube.client = tube.host, None, None
        self._tell(host)
        self._tell(tube.member)
        self.at(RETRY_INTERVAL, lambda: self._connect(tube))

    # Inside

    def _reconcile(self, machine):
        if machine.engine is None:
            return
        wanted = {each.number: each for each in machine.engine.carriage.wanted}
        for name, number in [key for key in self.tubes if key[0] == machine.name]:
            if number not in wanted:
                tube = self.tubes.pop((name, number))
                if tube.host is not None:
                    host, tube.host = tube.host, None
                    self._tell(host)
        for number, each in wanted.items():
            tube = self.tubes.get((machine.name, number))
            if tube is None:
                tube = self.tubes[machine.name, number] = Tube(machine, each.doors)
                self.at(CONNECT_DELAY, lambda tube=tube: self._connect(tube))
            tube.doors = each.doors
            for port in each.ports:
                tube.endpoints.setdefault(port, self._endpoint(LOOPBACK))
        self._tell(machine)

    def _connect(self, tube):
        if tube.host is not None or tube not in self.tubes.values():
            return
        for door in tube.doors:
            for machine in self.machines:
                here = door.endpoint.address in machine.addresses and machine.engine is not None
                if here and machine.plugged and machine.options.get("tcp") == door.endpoint.port:
                    tube.host, tube.client = machine, self._endpoint(CLIENTS + 1)
                    machine.engine.carriage.client_came(tube.client)
                    self._tell(tube.member)
                    return
        self.at(RETRY_INTERVAL, lambda: self._connect(tube))

    def _tell(self, machine):
        if machine.engine is None:
            return
        states = {
            number: CarrierState(up=tube.host is not None, endpoints=dict(tube.endpoints))
            for (name, number), tube in self.tubes.items()
            if name == machine.name
        }
        clients = frozenset(t.client for t in self.tubes.values() if t.host is machine)
        machine.engine.carriers_observed(states, clients, machine.now, machine.wall)
        machine.drain()

    def _endpoint(self, address):
        self._made += 1
        return Endpoint(address, 20_000 + self._made)

    def _carry_over_tcp(self, sender, payload, source, target):
        for tube in self.tubes.values():
            if tube.host is None:
                continue
            if sender is tube.member and target in tube.endpoints.values():
                port = next(port for port, e in tube.endpoints.items() if e == target)
                self._arrive(tube.host, payload, tube.client, port or PORT)
            elif sender is tube.host and target == tube.client:
                port = OWN_PORT if source.port == PORT else source.port
                if port in tube.endpoints:
                    self._arrive(tube.member, payload, tube.endpoints[port], PORT)

    def _arrive(self, machine, payload, source, port):
        self.carried += 1
        delay = self.underlay.delay_max  # in order

        def arrive():
            if machine.plugged:
                machine.receive(payload, source, LOOPBACK, port)

        self.at(delay, arrive)
