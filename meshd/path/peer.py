"""What the agent knows of one peer: its addresses, which are proven, which is in use.

    searching ──pong──▶ proven ──both installed──▶ ready
        ▲                 │                          │
        └─────────────────┴──── demand_proof ────────┘

Rule 1: the pair in use stays in use while it is proven, unless a better one has stood its trial
        (`upgrading`); and while nothing else is proven, whatever happens.

Rule 2: what has only begun may still be decided otherwise: until the first answers of all
        addresses are in, the best class of them is used.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meshd.path.candidates import PathClass, control_endpoint, data_endpoint, path_class
from meshd.path.pair import Pair
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.codec import IPAddress
    from meshd.keys import NodeId
    from meshd.path.hosts import Hosts
    from meshd.path.wire import Probe
    from meshd.trust.record import Candidate
    from meshd.underlay import TokenBucket

OBSERVED_MAX = 4  # addresses a peer was heard from that its record does not list
OBSERVED_UNANSWERED_MAX = 8  # pings, then such an address is forgotten


class Peer:
    """One admitted member other than ourselves."""

    def __init__(
        self,
        node: NodeId,
        *,
        hosts: Hosts,
        answers: TokenBucket,
        now: float,
        preshared: bytes | None = None,
    ) -> None:
        self.node = node
        self._hosts = hosts
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
        self.selected_at = -math.inf
        self.found_at = -math.inf  # when it was reached for the first time, or again from nothing
        self.insist_until = -math.inf  # on the endpoint of the pair in use
        self.insisted = 0  # times, since the last move
        self.left: Pair | None = None  # the pair in use before
        self.nominated: Pair | None = None  # what the peer uses, and we are to, once it is proven
        self.wanted_since = math.inf  # when somebody began to want a path to it
        self.traffic_at = -math.inf  # when its tunnel was last known to carry something
        self.heard_at = -math.inf  # when a probe of its was last opened
        self.called_at = -math.inf  # when we last had it called
        self.calls_us_at = -math.inf  # when it last had us called
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

    @property
    def path_class(self) -> PathClass | None:
        """The class of the pair in use."""
        return None if self.selected is None else self.selected.path_class

    @property
    def relay(self) -> NodeId | None:
        """Who relays, as far as we can tell; None where it is reached directly."""
        pair = self.selected
        if pair is None or not pair.relayed:
            return None
        return pair.relay or self._hosts.relay(pair.control, self.node)

    @property
    def direct(self) -> bool:
        """Whether it is reached without a relay."""
        return self.selected is not None and self.proven and not self.selected.relayed

    @property
    def askable(self) -> list[Pair]:
        """The pairs by which a ping may arrive."""
        return [pair for pair in self.pairs.values() if pair.bound]

    @property
    def proven_pairs(self) -> list[Pair]:
        """The pairs proven since that was last demanded, by which WireGuard can go."""
        return [
            pair
            for pair in self.pairs.values()
            if pair.endpoint is not None and pair.bound and pair.proven_at >= self.demanded_at
        ]

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
            if pair.relay is not None:
                listed[control] = pair
                continue
            if pair.listed and pair is self.selected:
                delisted = True
            if not pair.listed or pair is self.selected:
                pair.listed = False
                pair.path_class = self._class_of(control)
                listed[control] = pair
        self.pairs = listed
        return delisted

    def observe(self, source: Endpoint, local: IPAddress | None) -> Pair:
        """Return the pair of an address the peer was heard from, made when it is new."""
        pair = self.pairs.get(source)
        if pair is None:
            pair = self._observed(source, self._data_endpoint(source))
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
        pair = self._observed(control, endpoint)
        self.pairs[control] = pair
        self._bound_observed(keep=pair)
        return pair

    def offer(self, relay: NodeId, endpoint: Endpoint, path_class: PathClass) -> Pair:
        """Return the pair of our port of a relay, made when it is new."""
        pair = self.pairs.get(endpoint)
        if pair is None:
            pair = Pair(endpoint, endpoint, path_class, listed=False, bound=False)
            self.pairs[endpoint] = pair
        # It may have been taken for an address of the peer's: the other side was quicker.
        pair.relay, pair.path_class, pair.listed = relay, path_class, False
        return pair

    def drop_silent(self) -> None:
        """Forget addresses that the peer was heard from but never answered at."""
        for pair in list(self.pairs.values()):
            silent = pair.unanswered >= OBSERVED_UNANSWERED_MAX
            known = pair.listed or pair.relay is not None
            if silent and not known and pair is not self.selected:
                del self.pairs[pair.control]

    def targets(self, *, attempts_max: int, nominates: bool) -> list[Pair]:
        """Return what the next round should ping; nothing when all is well.

        `attempts_max` is how often a better pair is looked for, where there is a direct one, and,
        if we are who `nominates`, how often the peer is told what we use.
        """
        if self.selected is None or not self.proven:
            return self.askable
        asks = (self.installed and not self.installs_us) or self.preshared_doubted
        follows = self.selected.peer_uses or not nominates or self.attempt >= attempts_max
        targets = [self.selected] if asks or not follows else []
        if self.selected.relayed or self.attempt < attempts_max:
            targets += [
                pair
                for pair in self.pairs.values()
                if pair.path_class < self.selected.path_class
                and not pair.relayed
                and pair.proven_at < self.demanded_at
                and pair.endpoint is not None
            ]
        return targets

    def choose(self, now: float, *, grace: float) -> tuple[Pair, str] | None:
        """Return the pair to use in place of the one in use, and why; None to leave it."""
        proven = self.proven_pairs
        if not proven:
            return None
        best = min(proven, key=rank)
        current = self.selected
        if current is None:
            return best, "first answer"
        if current in proven:
            settled = now >= self.found_at + grace
            better = best.path_class < current.path_class
            return (best, "better path") if better and not settled else None
        # An address that was only heard from has no claim to be waited for, nor one that failed.
        waits = (current.listed or current.relayed) and current.proven_at > -math.inf
        if waits and now < self.demanded_at + grace:
            return None
        return best, "silent path"

    def _observed(self, control: Endpoint, endpoint: Endpoint | None) -> Pair:
        path_class = self._class_of(control)
        # A relay's port that is not ours, as far as we know, is left for any that is.
        draining = path_class is PathClass.RELAYED
        return Pair(control, endpoint, path_class, listed=False, draining=draining)

    def _class_of(self, observed: Endpoint) -> PathClass:
        return self._hosts.observed_class(observed, self.node)

    def _data_endpoint(self, control: Endpoint) -> Endpoint | None:
        if not self._control_ports or control.address.is_loopback:
            return control
        # Behind a NAT, the mapping of its control port says nothing of its WireGuard port's.
        port = self._control_ports.get(control.port)
        return None if port is None else Endpoint(control.address, port)

    def _bound_observed(self, *, keep: Pair) -> None:
        observed = [p for p in self.pairs.values() if not p.listed and p.relay is None]
        for pair in observed[: max(0, len(observed) - OBSERVED_MAX)]:
            if pair is not self.selected and pair is not keep:
                del self.pairs[pair.control]


def rank(pair: Pair) -> tuple[PathClass, bool, float]:
    """Return what the best of several proven pairs is the least by."""
    return pair.path_class, pair.draining, pair.rtt_smoothed
