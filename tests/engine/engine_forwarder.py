"""A simulated forwarder: what a relay's kernel and its sockets do, as `meshd.daemon.relay` has it.

Like the kernel it goes on while the daemon is away; hellos then find nobody.
"""

from __future__ import annotations

from collections import Counter

from meshd.wg.types import Endpoint

HELLO = b"mesh\x0a"


class Forwarder:
    """Of one machine; the world carries what it sends."""

    def __init__(self, machine):
        self._machine = machine
        self.ports = frozenset()
        self.forwarded = Counter()  # port to datagrams that came in by it
        self.payloads = []  # everything that was forwarded
        self.strangers = 0
        self._told = Counter()
        self._told_strangers = 0
        self._flows = {}

    def set_maps(self, maps):
        self._flows = {(flow.source, flow.arrives_at): flow for flow in maps.flows}
        assert len(self._flows) == len(maps.flows), "a datagram has one way"

    def close(self):
        """Be switched off."""
        self.ports = frozenset()
        self._flows = {}

    def receive(self, payload, source, port, local):
        machine = self._machine
        if port not in self.ports:
            return
        if isinstance(payload, bytes) and payload.startswith(HELLO):
            if machine.engine is not None:
                machine.engine.receive_relay_datagram(
                    payload, source, port, local, machine.now, machine.wall
                )
                machine.drain()
            return
        flow = self._flows.get((source, Endpoint(local, port)))
        if flow is None:
            self.strangers += 1
            return
        self.forwarded[port] += 1
        self.payloads.append(payload)
        machine.world.carry(machine, payload, flow.leaves_from, flow.target)

    def tell(self, engine, now):
        """Tell the engine what was forwarded since the last time, as the daemon does."""
        news = self.forwarded - self._told
        strangers = self.strangers - self._told_strangers
        if news or strangers:
            engine.relay_traffic({port: (n, 100 * n) for port, n in news.items()}, strangers, now)
        self._told = Counter(self.forwarded)
        self._told_strangers = self.strangers

    def send(self, outgoing):
        if outgoing.port in self.ports:
            source = Endpoint(outgoing.source, outgoing.port)
            self._machine.world.carry(self._machine, outgoing.datagram, source, outgoing.target)
