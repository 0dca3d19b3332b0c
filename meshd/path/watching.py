"""The paths in use, watched while they carry traffic.

    traffic ─▶ check ──── pong ─▶ check 1/4 s later …
                 │ late: after its patience
                 ▼
               burst: a ping every 40 ms ──── any answer ─▶ back to checks
                 │ 0.2 s: the other pairs are asked as well, the relays greeted
                 │ 0.5 s and a dozen pings without any answer
                 ▼
               failed: the best other pair that has just answered, or the warm spare, in that step

Rule 1: what is judged is silence, not loss: any answer ends a burst.  At 20 % loss each way one
        ping in three is answered all the same, and a dozen in a row is not.

Rule 2: a path fails only after pings that were really sent: a process that was held up for a second
        has learnt nothing meanwhile.

Rule 3: it costs a bounded share: with many paths to watch, each is checked less often, and bursts
        are drawn out.

Rule 4: where most paths fall silent at once it is this node, its CPU or its line that is in
        trouble: none of them is judged, and all are asked less often, until some answer.  What
        bursts cost on a busy machine would keep it busy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.path.events import PathFailed
from meshd.path.schedule import Schedule
from meshd.underlay import Timer

if TYPE_CHECKING:
    from meshd.keys import NodeId
    from meshd.path.agent import Agent
    from meshd.path.pair import Pair
    from meshd.path.peer import Peer

BURST_PINGS_MIN = 12  # before a path may be taken for failed
ALTERNATIVES_AFTER = 5  # pings of a burst: then the other pairs are asked, and once more at 10
BURSTS_MAX = 5  # at full rate: as many pings as checks
CROWD_MIN = 3  # paths: one or two may well fail together
CROWD_SLOWDOWN = 4  # of checks, while most paths are silent
PATHS_MAX = 1024  # watched at a time; of the others gossip tells
WARM_AGE_MAX = 20.0  # seconds since a spare has last been proven: it is asked every 15


@dataclass(slots=True, eq=False)
class Watch:
    """One path that is watched."""

    until: float = -math.inf
    checked_at: float = -math.inf
    burst_began_at: float = math.inf
    pings: int = 0  # of the burst


class Watching:
    """See the module docstring."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._watches: dict[NodeId, Watch] = {}
        self._due: Schedule[NodeId] = Schedule()
        self._bursts = 0

    def __len__(self) -> int:
        return len(self._watches)

    def traffic(self, peer: Peer, now: float, *, lasts: float) -> None:
        """Take that a peer's tunnel carries something, and may do so for some seconds."""
        peer.traffic_at = now
        if peer.node not in self._watches and len(self._watches) < PATHS_MAX:
            self._watches[peer.node] = Watch()
            self._due.set(peer.node, now)
        if (watch := self._watches.get(peer.node)) is not None:
            watch.until = now + lasts

    def forget(self, node: NodeId) -> None:
        """Stop watching a path."""
        watch = self._watches.pop(node, None)
        if watch is not None:
            self._end_burst(watch)
            self._due.discard(node)

    def again(self, peer: Peer, now: float) -> None:
        """Begin anew: another path is in use, or time has passed that we know nothing of."""
        watch = self._watches.get(peer.node)
        if watch is not None:
            self._end_burst(watch)
            watch.checked_at = -math.inf
            self._due.set(peer.node, now)

    def handle_timer(self, now: float) -> None:
        """Check what is due."""
        while (node := self._due.pop_due(now)) is not None:
            peer, watch = self._agent.peers[node], self._watches[node]
            if now > watch.until:
                self.forget(node)
                continue
            next_at = self._look(peer, watch, now)
            if node in self._watches:
                self._due.set(node, max(next_at, now))

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline and its reason."""
        due = self._due.soonest()
        return None if due is None else Timer(due[0], f"watch the path to {due[1].short}")

    def _look(self, peer: Peer, watch: Watch, now: float) -> float:
        pair = peer.selected
        if pair is None or not peer.proven:
            self._end_burst(watch)
            return now + self._interval  # it is being searched for
        if watch.burst_began_at < math.inf:
            return self._burst(peer, pair, watch, now)
        if pair.heard_at < watch.checked_at:
            late_at = watch.checked_at + self._late_after(pair)
            if now < late_at:
                return late_at
            watch.burst_began_at, watch.pings = now, 0
            self._bursts += 1
            return self._burst(peer, pair, watch, now)
        check_at = watch.checked_at + self._interval
        if now < check_at:
            return check_at
        self._agent.prober.ping(peer, pair, now)
        watch.checked_at = now
        return now + min(self._interval, self._late_after(pair))

    def _burst(self, peer: Peer, pair: Pair, watch: Watch, now: float) -> float:
        if pair.heard_at >= watch.burst_began_at:
            self._end_burst(watch)
            watch.checked_at = now
            return now + self._interval
        if self._crowded:
            watch.burst_began_at, watch.pings = now, 0
            self._agent.prober.ping(peer, pair, now)
            return now + self._interval
        silent_for = now - watch.burst_began_at
        silence_max = max(self._agent.config.silence_max, 2 * pair.patience)
        if silent_for >= silence_max and watch.pings >= BURST_PINGS_MIN:
            self._end_burst(watch)
            self._fail(peer, pair, watch, now)
            return now + self._interval
        self._agent.prober.ping(peer, pair, now)
        watch.pings += 1
        if watch.pings in {ALTERNATIVES_AFTER, 2 * ALTERNATIVES_AFTER}:
            self._ask_alternatives(peer, pair, now)
        spread = max(1.0, self._bursts / BURSTS_MAX)
        return now + self._agent.config.burst_interval * spread

    def _ask_alternatives(self, peer: Peer, pair: Pair, now: float) -> None:
        self._agent.relaying.hello_again(now, peer)
        for other in peer.askable:
            if other is not pair:
                self._agent.prober.ping(peer, other, now)

    def _fail(self, peer: Peer, pair: Pair, watch: Watch, now: float) -> None:
        assert pair.endpoint is not None
        last_at = max(pair.heard_at, watch.checked_at)
        self._agent.emit(PathFailed(peer.node, pair.endpoint, now - last_at))
        pair.fail(now)
        for other in peer.pairs.values():
            # What was proven long ago and says nothing while it is asked has gone the same way.
            if now - other.proven_at > WARM_AGE_MAX:
                other.doubt()
        self._agent.leave(peer, "silent under traffic", now)

    def _end_burst(self, watch: Watch) -> None:
        if watch.burst_began_at < math.inf:
            self._bursts -= 1
        watch.burst_began_at, watch.pings = math.inf, 0

    def _late_after(self, pair: Pair) -> float:
        return max(self._agent.config.late_min, pair.patience)

    @property
    def _interval(self) -> float:
        config = self._agent.config
        interval = max(config.check_interval, len(self._watches) / config.checks_per_second_max)
        return interval * CROWD_SLOWDOWN if self._crowded else interval

    @property
    def _crowded(self) -> bool:
        """Whether most paths are silent (rule 4)."""
        return self._bursts >= CROWD_MIN and 2 * self._bursts > len(self._watches)
