"""A relay, as small as one can be: two ports for each pair, hellos, and what is between them."""

from dataclasses import dataclass
from hashlib import blake2s

from meshd.errors import BadPacket
from meshd.path.wire import Probe, ProbeSealer, ProbeType
from meshd.underlay import MAGIC, DatagramType
from meshd.wg.types import Endpoint
from path.world import BOOTSTRAP_KEY, MESH

FIRST_RELAY_PORT = 51900
HELLO = MAGIC + bytes([DatagramType.RELAY_HELLO])


@dataclass
class Side:
    owner: object  # Node
    other_port: int
    bound: Endpoint | None = None


class RelayHost:
    """The part of a node that relays."""

    def __init__(self, internet, node):
        self.internet = internet
        self.node = node
        self.sides = {}  # port to side
        self.pairs = {}  # frozenset of two nodes to their ports, by node
        self.forwarded = 0
        self._sealer = ProbeSealer(node.key, MESH, BOOTSTRAP_KEY)
        self._next = FIRST_RELAY_PORT

    def allot(self, one, other):
        """Return the ports of a pair of nodes, by node."""
        ports = self.pairs.get(frozenset((one, other)))
        if ports is None:
            first, second = self._next, self._next + 1
            self._next += 2
            ports = self.pairs[frozenset((one, other))] = {one: first, other: second}
            self.sides[first], self.sides[second] = Side(one, second), Side(other, first)
        return ports

    def release(self, one, other):
        for port in self.pairs.pop(frozenset((one, other)), {}).values():
            del self.sides[port]

    def receive(self, datagram, source, at):
        """Take what comes to one of our ports."""
        side = self.sides.get(at.port)
        if side is None:
            return
        if isinstance(datagram, bytes) and datagram.startswith(HELLO):
            self._on_hello(side, datagram, source, at)
            return
        if source != side.bound:
            return
        target = self.sides[side.other_port].bound
        if target is not None:
            self.forwarded += 1
            self.internet.transmit(
                self.node, datagram, target, Endpoint(at.address, side.other_port)
            )

    def _on_hello(self, side, datagram, source, at):
        sealed = self._sealer.open_sender_untrusted(datagram)
        if sealed.sender != side.owner.key.id:
            return
        try:
            hello = self._sealer.open_probe_untrusted(sealed)
        except BadPacket:
            return
        challenge = blake2s(repr((source, at)).encode(), digest_size=8).digest()
        if hello.challenge == challenge:
            side.bound = source
        pong = Probe(
            ProbeType.HELLO_PONG,
            hello.transaction,
            observed=source,
            challenge=challenge,
            bound=side.bound == source,
        )
        nonce = self.internet.rng.randbytes(24)
        answer = self._sealer.seal(pong, side.owner.key.id, nonce)
        self.internet.transmit(self.node, answer, source, at)
