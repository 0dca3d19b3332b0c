"""What may happen to a packet between two hosts.

    source ──▶ cut? island? ──▶ lost? ──▶ delayed, perhaps twice ──▶ target
                    │
                    └ UDP blocked: the same, but only for datagrams; streams pass

Every direction of every pair is a link of its own, so that a path may lose or delay in one
direction alone.  A link that nobody has spoken of is like all others: `loss`, `duplication` and the
delays of the network itself.  Reordering follows from delays that are drawn anew for each packet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

IP_UDP_BYTES = 40 + 8
IP_TCP_BYTES = 40 + 20 + 12  # with timestamps
LAN_DELAY = 0.001


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two hosts: a share of packets lost, and seconds of delay."""

    loss: float = 0.0
    delay_min: float = LAN_DELAY
    delay_max: float = LAN_DELAY


def wide(delay, *, jitter=0.2, loss=0.0):
    """Return a long link: so many seconds one way, and up to a share of that more."""
    return Link(loss, delay, delay * (1.0 + jitter))


# One way, as between Frankfurt, Virginia and Singapore.
REGIONS = ("europe", "america", "asia")
WAN = {
    ("europe", "america"): wide(0.045),
    ("europe", "asia"): wide(0.08),
    ("america", "asia"): wide(0.12),
}


@dataclass
class Network:
    """See the module docstring.  `cut`, `udp_blocked`: (source, target), one direction each."""

    rng: Random
    delay_min: float = LAN_DELAY
    delay_max: float = LAN_DELAY
    loss: float = 0.0
    duplication: float = 0.0
    links: dict[tuple[str, str], Link] = field(default_factory=dict)
    cut: set[tuple[str, str]] = field(default_factory=set)
    udp_blocked: set[tuple[str, str]] = field(default_factory=set)
    island: frozenset[str] = frozenset()  # hosts that reach each other and nobody else

    def passes(self, source, target, *, udp=True):
        """Whether anything gets from source to target at all."""
        if (source, target) in self.cut or (udp and (source, target) in self.udp_blocked):
            return False
        return (source in self.island) == (target in self.island)

    def link(self, source, target):
        """What the packets from source to target meet with."""
        link = self.links.get((source, target))
        if link is None:
            return Link(self.loss, self.delay_min, self.delay_max)
        return Link(max(link.loss, self.loss), link.delay_min, link.delay_max)

    def deliveries(self, source, target, *, udp=True):
        """After how many seconds each copy of a packet arrives."""
        if not self.passes(source, target, udp=udp):
            return ()
        random = self.rng.random
        link = self.links.get((source, target))
        if link is None:
            loss, least, most = self.loss, self.delay_min, self.delay_max
        else:
            loss, least, most = max(link.loss, self.loss), link.delay_min, link.delay_max
        if loss and random() < loss:
            return ()
        delay = least + random() * (most - least)
        if self.duplication and random() < self.duplication:
            return (delay, least + random() * (most - least))
        return (delay,)

    def round_trip(self, source, target):
        """After how many seconds an answer is back, or None: of one try, by what passes."""
        there, back = self.deliveries(source, target), self.deliveries(target, source)
        return there[0] + back[0] if there and back else None

    def connect(self, one, other, link):
        """Have both directions between two hosts be like a link."""
        self.links[one, other] = self.links[other, one] = link

    def spread(self, names):
        """Put hosts into the three regions of `WAN`, in turn."""
        names = list(names)
        region = {name: REGIONS[at % len(REGIONS)] for at, name in enumerate(names)}
        for one in names:
            for other in names:
                link = WAN.get((region[one], region[other]))
                if link is not None:
                    self.connect(one, other, link)

    def separate(self, one, other):
        """Let nothing pass between two hosts."""
        self.cut |= {(one, other), (other, one)}

    def block_udp(self, one, other):
        """Let datagrams between two hosts be lost, but not streams."""
        self.udp_blocked |= {(one, other), (other, one)}

    def heal(self):
        """Be a LAN on which nothing is lost."""
        self.loss = self.duplication = 0.0
        self.delay_min = self.delay_max = LAN_DELAY
        self.links.clear()
        self.mend()

    def mend(self):
        """Let everything pass, in whatever weather there is."""
        self.cut.clear()
        self.udp_blocked.clear()
        self.island = frozenset()
