"""Moving from a path that works to a better one, which is done by one side and in its own time.

    better pair answers ─▶ trial: five pings, all answered, over a second ─▶ nominated ─▶ in use
                             │ one is not: from the beginning                    │
                             └ five are not: searched for again        ping "uses" ─▶ peer follows,
                                                                       once it is proven there too

Rule 1: of a pair of members the one with the lower id makes such moves; the other one follows what
        it is told in a ping that bears `uses`.  Either leaves a path that has failed by itself, and
        what they come to is then made one by the same rule.

Rule 2: a pair that was lost has to do well for twice as long, each time that it is lost, up to five
        minutes.  What it has to show then are more answers, for a NAT must not forget it meanwhile.

Rule 3: of relays another one is better if the round trip through it is much shorter, or if the one
        in use is draining.

Rule 4: WireGuard sends to where the last packet came from, so each one that was on its way by the
        former path moves it back.  Under traffic both sides insist on the new path for a second,
        twenty times: each time more packets go by the new path and fewer by the former, until none
        does; for another second, up to five, while some still do.  Nothing is lost either way, for
        both work.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meshd.path.events import Insist
from meshd.path.schedule import Schedule
from meshd.underlay import Timer

if TYPE_CHECKING:
    from meshd.keys import NodeId
    from meshd.path.agent import Agent
    from meshd.path.pair import Pair
    from meshd.path.peer import Peer

ANSWERS_MIN = 5  # in a row
MISSES_MAX = 5  # in a row: then it is not proven any longer
SPACING_MAX = 15.0  # a NAT may forget a binding after 30 s
LOSSES_MAX = 16
INSISTS_MAX = 5  # times a new path is insisted on, after one move
# Of two relays: less is noise, and moving for it is not worth it.
RTT_RATIO_MIN = 1.25
RTT_GAIN_MIN = 0.01
FOLLOW_PATIENCE = 3.0  # with a draining relay, before the side that follows moves by itself


class Upgrading:
    """See the module docstring."""

    def __init__(self, agent: Agent, own: NodeId) -> None:
        self._agent = agent
        self._own = own
        self._due: Schedule[NodeId] = Schedule()
        self._insisting: Schedule[NodeId] = Schedule()

    def nominates(self, peer: Peer) -> bool:
        """Whether planned moves are ours to make."""
        return self._own < peer.node

    def review(self, peer: Peer, now: float) -> None:
        """Begin the trials that are to be, and end those of pairs no longer better."""
        current = peer.selected
        better = []
        if current is not None and peer.proven:
            better = [p for p in peer.proven_pairs if self._moves(peer, p, current)]
        for pair in peer.pairs.values():
            if pair not in better:
                pair.end_trial()
            elif pair.trial_at == math.inf:
                pair.trial_at = now + (0.0 if self.nominates(peer) else FOLLOW_PATIENCE)
        self._plan(peer)

    def heard_use(self, peer: Peer, pair: Pair, now: float, *, uses: bool) -> None:
        """Take which path a peer's packets to us take, as it says where it was heard."""
        if uses:
            for other in peer.pairs.values():
                other.peer_uses = False
        pair.peer_uses = uses
        if not uses or self.nominates(peer):
            return
        peer.nominated = None
        if pair is peer.selected:
            return
        if pair in peer.proven_pairs:
            self._agent.select(peer, pair, "the other side has moved", now)
            return
        peer.nominated = pair
        if now - pair.asked_at >= self._agent.config.probe_spacing:
            self._agent.prober.ping(peer, pair, now)

    def proven(self, peer: Peer, pair: Pair, now: float) -> None:
        """Take that a pair has just been proven."""
        if pair is peer.nominated:
            peer.nominated = None
            if pair is not peer.selected and pair in peer.proven_pairs:
                self._agent.select(peer, pair, "the other side has moved", now)
        forgotten_after = self._agent.config.losses_forgotten_after
        if pair is peer.selected and now - max(pair.lost_at, peer.selected_at) >= forgotten_after:
            pair.losses = 0
        self.review(peer, now)

    def moved(self, peer: Peer, now: float) -> None:
        """Take that another path is in use: rule 4."""
        peer.insisted = 0
        if now - peer.traffic_at < self._agent.config.spare_linger:
            self.insist_again(peer, now)

    def insist_again(self, peer: Peer, now: float) -> bool:
        """Insist on the path in use for a while.  Return whether it may be, once more."""
        config = self._agent.config
        if peer.insisted >= INSISTS_MAX:
            return False
        peer.insisted += 1
        peer.insist_until = now + config.insist_time
        self._insisting.set(peer.node, now + config.insist_interval)
        return True

    def forget(self, node: NodeId) -> None:
        """End all trials with a peer."""
        self._due.discard(node)
        self._insisting.discard(node)

    def handle_timer(self, now: float) -> None:
        """Ask what is due; move to what has done well."""
        while (node := self._due.pop_due(now)) is not None:
            peer = self._agent.peers[node]
            for pair in list(peer.pairs.values()):
                if pair.trial_at <= now and self._try(peer, pair, now):
                    self._agent.select(peer, pair, "better path", now)
                    break
            self.review(peer, now)
        while (node := self._insisting.pop_due(now)) is not None:
            peer = self._agent.peers[node]
            if now < peer.insist_until:
                self._insisting.set(node, now + self._agent.config.insist_interval)
            else:
                peer.insist_until = -math.inf
            self._agent.emit(Insist(node))

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline and its reason."""
        timers = []
        if (due := self._due.soonest()) is not None:
            timers.append(Timer(due[0], f"a better path to {due[1].short}"))
        if (due := self._insisting.soonest()) is not None:
            timers.append(Timer(due[0], f"insist on the path to {due[1].short}"))
        return min(timers, default=None)

    def _try(self, peer: Peer, pair: Pair, now: float) -> bool:
        """Count the last answer, and ask again.  Return whether the pair has done well enough."""
        wanted, spacing = self._terms(pair)
        if pair.trial_pings and pair.unanswered:
            pair.trial_pings = 0
            if pair.unanswered >= MISSES_MAX:
                pair.doubt()
                self._agent.search(peer, now)
                return False
        elif pair.trial_pings >= wanted:
            return True
        pair.trial_pings += 1
        self._agent.prober.ping(peer, pair, now)
        pair.trial_at = now + spacing
        return False

    def _terms(self, pair: Pair) -> tuple[int, float]:
        """Return how many answers a trial takes, and the seconds between two pings of it."""
        config = self._agent.config
        lasts = min(config.trial * 2.0 ** min(pair.losses, LOSSES_MAX), config.trial_max)
        spacing = min(lasts / (ANSWERS_MIN - 1), SPACING_MAX)
        return math.ceil(lasts / spacing) + 1, max(spacing, 1.5 * pair.patience)

    def _moves(self, peer: Peer, pair: Pair, current: Pair) -> bool:
        """Whether a proven pair is better than the one in use, and the move ours to make."""
        if pair is current or pair.draining:
            return False
        if current.draining:
            return True
        if not self.nominates(peer):
            return False
        if pair.path_class != current.path_class or not pair.relayed:
            return pair.path_class < current.path_class
        gain = current.rtt_smoothed - pair.rtt_smoothed
        return gain >= RTT_GAIN_MIN and current.rtt_smoothed >= RTT_RATIO_MIN * pair.rtt_smoothed

    def _plan(self, peer: Peer) -> None:
        at = min((pair.trial_at for pair in peer.pairs.values()), default=math.inf)
        if at < math.inf:
            self._due.set(peer.node, at)
        else:
            self._due.discard(peer.node)
