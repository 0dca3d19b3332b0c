"""What a member has, and has asked for, to reach one peer by way of relays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.keys import NodeId
    from meshd.relay.wire import Grant

ANSWER_TIMEOUT = 1.0  # seconds


@dataclass(slots=True, eq=False)
class Asked:
    """A request on its way."""

    at: float
    times: int = 1


@dataclass(slots=True, eq=False)
class Held:
    """A grant."""

    grant: Grant
    until: float
    joined: bool = False
    refresh_at: float = math.inf
    settled: bool = False  # it was among the best once
    silences: int = 0


@dataclass(slots=True, eq=False)
class Wish:
    """What there is for one peer."""

    count: int = 0  # how many relays are wanted; 0: only what the peer has asked for
    in_use: NodeId | None = None
    asked: dict[NodeId, Asked] = field(default_factory=dict)
    held: dict[NodeId, Held] = field(default_factory=dict)
    paused: dict[NodeId, float] = field(default_factory=dict)  # not to be asked; until when
    worse: dict[NodeId, float] = field(default_factory=dict)  # not among the best; until when

    def deadlines(self) -> Iterator[float]:
        """Yield all instants at which something is due."""
        for asked in self.asked.values():
            yield asked.at + ANSWER_TIMEOUT
        for held in self.held.values():
            yield held.until
            yield held.refresh_at
        yield from self.paused.values()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to remember."""
        return not (self.count or self.held)
