"""What the agent knows of one peer: its addresses, which are proven, which is in use.

A pair is an address of the peer's and the address of ours that goes with it (RFC 8445 section 2);
ours is left to the kernel's routing unless the peer has been heard from there.

    searching ──pong──▶ proven ──both installed──▶ ready
        ▲                 │                          │
        └─────────────────┴──── demand_proof ────────┘

Rule 1: a pair is proven by a pong alone, or by WireGuard itself; `proven_at` is when the question
        was sent, so a proof is never newer than what it proves.

Rule 2: the pair in use stays in use while it is proven, unless a better class is; and while
        nothing else is proven, whatever happens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.path.candidates import PathClass, control_endpoint, data_endpoint, path_class
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.codec import IPAddress
    from meshd.keys import NodeId
    from meshd.path.wire import Probe
    from meshd.trust.record import Candidate
    from meshd.underlay import TokenBucket

OBSERVED_MAX = 4  # addresses a peer was heard from that its record does not list
OBSERVED_UNANSWERED_MAX = 8  # pings, then such an address is forgotten
OUTSTANDING_MAX = 16  # open transactions of a pair: an overloaded peer answers after seconds


@dataclass(slots=True, eq=False)
class Pair:
    """One address of a peer."""

    control: Endpoint  # where probes go
    endpoint: Endpoint | None  # where WireGuard's datagrams go; None when that cannot be told
    path_class: PathClass
    listed: bool  # in the peer's verified record
    local: IPAddress | None = None  # our address it was heard on
    asked_at: float = -math.inf
    shown_at: float = -math.inf  # when a ping last brought our record
    returned_at: float = -math.inf  # when a ping last brought the peer's own
    proven_at: float = -math.inf
    rtt: float = math.inf
    unanswered: int = 0
    outstanding: dict[bytes, float] = field(default_factory=dict)  # transaction to when it began

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
        self.rtt = now - began_at
        return True


class Peer:
    """One admitted member other than ourselves."""

    def __init__(
        self, node: NodeId, *, answers: TokenBucket, now: float, preshared: bytes | None = None
    ) -> None:
        self.node = node
        self.answers = answers  # how many of its pings we answer
        self.sequence = 0  # of its record, as we hold it
        self.record = b""  # that record itself
        self.holds = 0  # sequence of our record, as it holds it
        self.installed = False  # it is a peer in our kernel
        self.installs_us = False  # we are a peer in its kernel, by its last pong
        self.rekeyed = False  # it was heard under the present bootstrap key
        self.preshared_ours = preshared  # what our probes say of pre-shared keys
        self.preshared_theirs: bytes | None = None  # what it said last, in a pong or elsewhere
        self.preshared_heard = False  # in a pong
        self.preshared_doubted = False  # a ping tells otherwise, and no pong has come since
        self.pairs: dict[Endpoint, Pair] = {}
        self.selected: Pair | None = None
        self.in_kernel: Endpoint | None = None  # the endpoint last observed there
        self.attempt = 0  # rounds of pings since the last demand
        self.demanded_at = now
        self.searching_since = now
        self.announced = False  # `PeerReady` has been said for this demand
        self._control_ports: dict[int, int] = {}  # control port to WireGuard port

    @property
    def proven(self) -> bool:
        """Whether the pair in use has been proven since that was last demanded."""
        return self.selected is not None and self.selected.proven_at >= self.demanded_at

    def hear_preshared(self, told: bytes | None) -> bool:
        """Take what a pong says of pre-shared keys.  Return whether that is news."""
        news = not self.preshared_heard or told != self.preshared_theirs
        self.preshared_heard, self.preshared_theirs = True, told
        self.preshared_doubted = False
        return news

    def differs(self, ping: Probe) -> bool:
        """Whether a ping tells of other pre-shared keys than we know of, so that one is to ask."""
        return self.preshared_ours is not None and ping.preshared != self.preshared_theirs

    def awaits(self, ping: Probe) -> bool:
        """Whether we are ready for a handshake with the sender of a ping.

        Where we hold keys, and it tells of others than we know of, it might fail, and would be
        tried again after 5 s only.
        """
        return self.installed and not (self.preshared_ours and self.differs(ping))

    @property
    def ready(self) -> bool:
        """Whether traffic may start."""
        return self.proven and self.installed and self.installs_us

    def demand_proof(self, now: float, *, announce: bool) -> None:
        """Let no earlier proof count.  `announce` asks for `PeerReady` at the end of it."""
        if self.proven:
            self.searching_since = now
        self.demanded_at = now
        self.attempt = 0
        if announce:
            self.announced = False
            self.holds = 0  # it may have lost our record

    def set_candidates(self, candidates: Iterable[Candidate]) -> bool:
        """Take the candidates of the peer's record.

        Return whether the pair in use is no longer among them.
        """
        candidates = tuple(candidates)
        self._control_ports = {c.control_port: c.port for c in candidates if c.control_port}
        listed: dict[Endpoint, Pair] = {}
        delisted = False
        for candidate in candidates:
            control, endpoint = control_endpoint(candidate), data_endpoint(candidate)
            known = self.pairs.get(control)
            if control in listed:
                continue
            if known is None or known.endpoint != endpoint:
                delisted = delisted or (known is not None and known is self.selected)
                listed[control] = Pair(control, endpoint, path_class(candidate), listed=True)
            else:
                known.path_class = path_class(candidate)
                known.listed = True
                listed[control] = known
        for control, pair in self.pairs.items():
            if control in listed:
                continue
            if pair.listed and pair is self.selected:
                delisted = True
            if not pair.listed or pair is self.selected:
                pair.listed = False
                pair.path_class = PathClass.REFLEXIVE
                listed[control] = pair
        self.pairs = listed
        return delisted

    def observe(self, source: Endpoint, local: IPAddress | None) -> Pair:
        """Return the pair of an address the peer was heard from, made when it is new."""
        pair = self.pairs.get(source)
        if pair is None:
            pair = Pair(source, self._data_endpoint(source), PathClass.REFLEXIVE, listed=False)
            self.pairs[source] = pair
            self._bound_observed(keep=pair)
        pair.local = local
        return pair

    def pair_of_endpoint(self, endpoint: Endpoint) -> Pair:
        """Return the pair whose WireGuard endpoint this is, made when it is new."""
        for pair in self.pairs.values():
            if pair.endpoint == endpoint:
                return pair
        control = endpoint
        for control_port, port in self._control_ports.items():
            if port == endpoint.port:
                control = Endpoint(endpoint.address, control_port)
        pair = Pair(control, endpoint, PathClass.REFLEXIVE, listed=False)
        self.pairs[control] = pair
        self._bound_observed(keep=pair)
        return pair

    def drop_silent(self) -> None:
        """Forget addresses that the peer was heard from but never answered at."""
        for pair in list(self.pairs.values()):
            silent = pair.unanswered >= OBSERVED_UNANSWERED_MAX
            if silent and not pair.listed and pair is not self.selected:
                del self.pairs[pair.control]

    def targets(self, upgrade_attempts_max: int) -> list[Pair]:
        """Return what the next round should ping; nothing when all is well."""
        if self.selected is None or not self.proven:
            return list(self.pairs.values())
        asks = (self.installed and not self.installs_us) or self.preshared_doubted
        targets = [self.selected] if asks else []
        if self.attempt < upgrade_attempts_max:
            targets += [
                pair
                for pair in self.pairs.values()
                if pair.path_class < self.selected.path_class
                and pair.proven_at < self.demanded_at
                and pair.endpoint is not None
            ]
        return targets

    def choose(self, now: float, *, grace: float) -> tuple[Pair, str] | None:
        """Return the pair to use in place of the one in use, and why; None to leave it."""
        proven = [
            pair
            for pair in self.pairs.values()
            if pair.endpoint is not None and pair.proven_at >= self.demanded_at
        ]
        if not proven:
            return None
        best = min(proven, key=lambda pair: (pair.path_class, pair.rtt))
        current = self.selected
        if current is None:
            return best, "first answer"
        if best.path_class < current.path_class:
            return best, "better path"
        if current in proven:
            return None
        if current.listed and now < self.demanded_at + grace:
            return None
        return best, "silent path"

    def _data_endpoint(self, control: Endpoint) -> Endpoint | None:
        if not self._control_ports:
            return control
        # Behind a NAT, the mapping of its control port says nothing of its WireGuard port's.
        port = self._control_ports.get(control.port)
        return None if port is None else Endpoint(control.address, port)

    def _bound_observed(self, *, keep: Pair) -> None:
        observed = [pair for pair in self.pairs.values() if not pair.listed]
        for pair in observed[: max(0, len(observed) - OBSERVED_MAX)]:
            if pair is not self.selected and pair is not keep:
                del self.pairs[pair.control]
