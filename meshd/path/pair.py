"""One of a peer's addresses: what was asked there, what was answered, and how well it does.

A pair is an address of the peer's and the address of ours that goes with it (RFC 8445 section 2);
ours is left to the kernel's routing unless the peer has been heard from there.

    ping ─▶ open_transaction ─┬─ pong ─▶ close_transaction: proven at the time of the ping
                              └─ none ─▶ unanswered grows;  in use and watched ─▶ fail

Rule 1: a pair is proven by a pong alone, or by WireGuard itself; `proven_at` is when the question
        was sent, so a proof is never newer than what it proves.

Rule 2: a pair that has failed under traffic is proven only by what was asked afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.path.candidates import RELAYED_CLASSES, PathClass

if TYPE_CHECKING:
    from meshd.codec import IPAddress
    from meshd.keys import NodeId
    from meshd.wg.types import Endpoint

OUTSTANDING_MAX = 32  # open transactions of a pair: an overloaded peer answers after seconds

# RFC 6298 section 2, the smoothing of round trips.
RTT_ALPHA, RTT_BETA, RTT_DEVIATIONS = 1 / 8, 1 / 4, 4


@dataclass(slots=True, eq=False)
class Pair:
    """One address of a peer."""

    control: Endpoint  # where probes go
    endpoint: Endpoint | None  # where WireGuard's datagrams go; None when that cannot be told
    path_class: PathClass
    listed: bool  # in the peer's verified record
    relay: NodeId | None = None  # whose port the address is
    draining: bool = False  # that relay wants to be rid of us, or has granted us nothing
    bound: bool = True  # that relay knows where we are: what we send there is forwarded
    local: IPAddress | None = None  # our address it was heard on
    asked_at: float = -math.inf
    shown_at: float = -math.inf  # when a ping last brought our record
    returned_at: float = -math.inf  # when a ping last brought the peer's own
    proven_at: float = -math.inf
    heard_at: float = -math.inf  # when the last pong came
    rtt: float = math.inf  # the last one
    rtt_smoothed: float = math.inf
    rtt_deviation: float = 0.0
    unanswered: int = 0
    seen_from: Endpoint | None = None  # where the peer sees us come from, by this pair
    peer_uses: bool = False  # the peer said so, when it was last heard by this pair
    losses: int = 0  # times it has failed under traffic, of late
    lost_at: float = -math.inf
    trial_pings: int = 0  # all answered: see `upgrading`
    trial_at: float = math.inf  # when the next ping of a trial is due
    outstanding: dict[bytes, float] = field(default_factory=dict)  # transaction to when it began

    @property
    def relayed(self) -> bool:
        """Whether what is sent there goes through a relay."""
        return self.path_class in RELAYED_CLASSES

    @property
    def patience(self) -> float:
        """How long an answer may take and be no surprise: RFC 6298's timeout, without its floor."""
        if self.rtt_smoothed == math.inf:
            return 0.0
        return self.rtt_smoothed + RTT_DEVIATIONS * self.rtt_deviation

    def open_transaction(self, transaction: bytes, now: float) -> None:
        """Note a ping on its way."""
        self.asked_at = now
        self.unanswered += 1
        self.outstanding[transaction] = now
        if len(self.outstanding) > OUTSTANDING_MAX:
            del self.outstanding[next(iter(self.outstanding))]

    def close_transaction(self, transaction: bytes, *, since: float, now: float) -> bool:
        """Note a pong.  Return whether it proves the pair: to a ping of `since` or later."""
        began_at = self.outstanding.pop(transaction, -math.inf)
        if began_at < since:
            return False
        self.unanswered = 0
        self.proven_at = max(self.proven_at, began_at)
        self.heard_at = now
        self._take_rtt(now - began_at)
        return True

    def fail(self, now: float) -> None:
        """Let nothing count that was asked before: the path was silent under traffic (rule 2)."""
        self.doubt()
        self.outstanding.clear()
        self.losses += 1
        self.lost_at = now

    def doubt(self) -> None:
        """Let no earlier proof count: it has stopped answering."""
        self.proven_at = -math.inf
        self.end_trial()

    def end_trial(self) -> None:
        """Begin at the beginning when it is tried again."""
        self.trial_pings, self.trial_at = 0, math.inf

    def _take_rtt(self, rtt: float) -> None:
        if self.rtt_smoothed == math.inf:
            self.rtt_smoothed, self.rtt_deviation = rtt, rtt / 2
        else:
            off = abs(self.rtt_smoothed - rtt)
            self.rtt_deviation += RTT_BETA * (off - self.rtt_deviation)
            self.rtt_smoothed += RTT_ALPHA * (rtt - self.rtt_smoothed)
        self.rtt = rtt
