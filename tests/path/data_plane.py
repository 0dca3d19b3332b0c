"""What goes through the tunnels of the simulated internet: WireGuard, as far as paths can feel it.

Tunnel     one node's side of a tunnel: its endpoint moves when the plan says so, and to where
           the last packet came from
Stream     packets from one to the other, numbered, and which of them have arrived when
"""

from dataclasses import dataclass, field
from itertools import pairwise

APPLY_DELAY = 0.01  # seconds from the agent's choice to the kernel
HURRIED_DELAY = 0.001
LOOK_INTERVAL = 1.0


@dataclass(frozen=True)
class Packet:
    sender: object  # Node
    target: object
    number: int | None = None  # of the stream; None: what is sent to move the other side


class Tunnel:
    """See the module docstring."""

    def __init__(self, node, other):
        self.node = node
        self.other = other
        self.endpoint = None
        self.carried = 0  # packets, but for those that meshd itself makes
        self._seen = 0

    def choose(self, event):
        internet = self.node.internet
        delay = HURRIED_DELAY if event.hurry else APPLY_DELAY

        def apply():
            chosen = self.node.agent.endpoint(self.other.key.id)
            if chosen == event.endpoint:  # it may have been overtaken
                self.endpoint = chosen
                if event.hurry:
                    self.send(Packet(self.node, self.other))

        internet.at(delay, apply)

    def insist(self):
        def apply():
            self.endpoint = self.node.agent.endpoint(self.other.key.id)

        if self.node.agent.insists(self.other.key.id):
            self.node.internet.at(HURRIED_DELAY, apply)

    def send(self, packet):
        self.carried += packet.number is not None
        if self.endpoint is not None:
            self.node.internet.send(self.node, packet, self.endpoint, None)

    def receive(self, packet, source):
        self.carried += packet.number is not None
        self.endpoint = source

    def look(self):
        """Tell the agent what the device shows."""
        agent, now, other = self.node.agent, self.node.internet.now, self.other.key.id
        if self.carried > self._seen:
            self._seen = self.carried
            agent.traffic(other, now, lasts=2.5 * LOOK_INTERVAL)
        if self.endpoint is not None:
            agent.endpoint_observed(other, self.endpoint, now)


@dataclass
class Stream:
    """Packets from one node to another, `rate` of them a second."""

    source: object
    target: object
    rate: float = 50.0
    sent: list = field(default_factory=list)  # instants, by number
    arrived: dict = field(default_factory=dict)  # number to instant
    ended: bool = False

    def start(self):
        self._step()
        return self

    def take(self, packet, now):
        if (packet.sender, packet.target) == (
            self.source,
            self.target,
        ) and packet.number is not None:
            self.arrived[packet.number] = now

    def lost(self, since=0.0, until=float("inf")):
        """Return the instants of what was sent in between and has not arrived."""
        return [
            at
            for number, at in enumerate(self.sent)
            if since <= at < until and number not in self.arrived
        ]

    def silence(self, since, until):
        """Return the longest time in which nothing has arrived."""
        instants = sorted(at for at in self.arrived.values() if since <= at <= until)
        marks = [since, *instants, until]
        return max(after - before for before, after in pairwise(marks))

    def _step(self):
        if self.ended:
            return
        internet = self.source.internet
        number = len(self.sent)
        self.sent.append(internet.now)
        self.source.tunnel(self.target).send(Packet(self.source, self.target, number))
        internet.at(1 / self.rate, self._step)
