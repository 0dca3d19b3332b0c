"""A machine: what survives a crash, what waits while it stands still, and what it has sent.

running   daemon and kernel                            answers
stalled   the kernel alone; the daemon is stopped      datagrams wait, timers are late
slow      every input takes a while                    the same, a little
exited    the kernel alone; the daemon has gone        ICMP says so, streams are refused
off       nothing                                      silence
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.gossip.node import Node
    from meshd.keys import NodeKey
    from meshd.trust.ledger import Ledger

SOCKET_BYTES_MAX = 4 * 2**20
SOCKET_DATAGRAMS_MAX = 2000


@dataclass(slots=True)
class Traffic:
    """What was sent, with IP headers."""

    packets: int = 0
    bytes: int = 0

    def add(self, size):
        self.packets += 1
        self.bytes += size

    def since(self, before):
        return Traffic(self.packets - before.packets, self.bytes - before.bytes)

    def copy(self):
        return Traffic(self.packets, self.bytes)


@dataclass(slots=True)
class Socket:
    """What has arrived and was not read.  What is too much is dropped."""

    waiting: deque[tuple[int, Callable[[], None]]] = field(default_factory=deque)
    bytes: int = 0
    dropped: int = 0

    def __len__(self):
        return len(self.waiting)

    def put(self, size, give):
        if len(self.waiting) >= SOCKET_DATAGRAMS_MAX or self.bytes + size > SOCKET_BYTES_MAX:
            self.dropped += 1
            return
        self.waiting.append((size, give))
        self.bytes += size

    def take(self):
        size, give = self.waiting.popleft()
        self.bytes -= size
        return give

    def clear(self):
        self.waiting.clear()
        self.bytes = 0


@dataclass(slots=True)
class Host:
    """See the module docstring."""

    name: str
    key: NodeKey
    record: bytes
    # On disk
    ledger: Ledger
    incarnation: int = 0
    # In memory
    node: Node | None = None
    run: int = 0  # which start this is
    introduced: dict[str, None] = field(
        default_factory=dict
    )  # who is in our kernel, and we in theirs
    left: bool = False
    wake_at: float = math.inf
    # The machine
    up: bool = True
    stalled: bool = False
    work: float = 0.0  # seconds that every input takes
    busy_until: float = 0.0
    wall_offset: float = 0.0
    socket: Socket = field(default_factory=Socket)
    sent: Traffic = field(default_factory=Traffic)
    tunnelled: Counter[str] = field(default_factory=Counter)  # packets that came, by peer

    @property
    def running(self):
        return self.node is not None

    @property
    def idle(self):
        """Whether it can take something in at once."""
        return not (self.stalled or self.busy_until or self.socket.waiting)

    @property
    def able(self):
        """Whether nothing keeps it from answering at once."""
        return not (self.stalled or self.work)
