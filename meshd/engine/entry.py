"""Getting in: when this node asks its seeds, and what it does with their answers.

A node asks when it has no member to talk to: on its first start, when nobody it remembers can be
reached, and again when it has been alone for a while, since the mesh may have moved on without it.
Bootstrap is only a way to meet one member; all else is learnt inside the tunnel.

    start ──┬─ knows members ── ALONE_TIMEOUT without hearing any ──▶ ask ──▶ Joined ──▶ rest
            └─ knows nobody ────────────────────────────────────────▶ ask      │  ▲       │
                                                                        alone again: ask ◀┘
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meshd.bootstrap import events as bootstrap_events
from meshd.bootstrap.joiner import Joiner
from meshd.bootstrap.messages import ByInvite, ByRecord
from meshd.engine import events
from meshd.errors import BadPacket
from meshd.trust.fact import FactKind
from meshd.trust.grammar import CLOCK_SKEW_MAX
from meshd.underlay import Timer

if TYPE_CHECKING:
    from random import Random

    from meshd.bootstrap.messages import Introduction
    from meshd.engine.engine import Engine
    from meshd.keys import NodeId
    from meshd.underlay import Outgoing
    from meshd.wg.types import Endpoint

ALONE_TIMEOUT = 5.0  # with members known from earlier, or after having been let in


class Entry:
    """Owns the joiner while there is one."""

    def __init__(self, engine: Engine, *, rng: Random, now: float) -> None:
        self._engine = engine
        self._rng = rng
        self._joiner: Joiner | None = None
        knows_somebody = bool(engine.others())
        self._alone_since: float | None = now
        self._ask_at: float | None = now + ALONE_TIMEOUT if knows_somebody else now
        self.silent = False  # the seeds have been asked for a while, and nobody answers
        self.refusal: str | None = None  # why a member did not let us in, for the time being
        self.seed: NodeId | None = None  # who let us in last
        self.joined_at: float | None = None
        self.clock_skew: float | None = None  # seconds by which the seed's clock is ahead of ours
        self.seeds = engine.config.seeds
        if engine.identity.token is not None:
            self.seeds = tuple(dict.fromkeys((*self.seeds, *engine.identity.token.seeds)))

    # Inputs

    def receive_answer(self, datagram: bytes, source: Endpoint, now: float) -> None:
        """Handle a bootstrap answer, which may be anything at all."""
        if self._joiner is None:
            self._engine.bad_packets["answer to no request of ours"] += 1
        else:
            self._joiner.receive_datagram(datagram, source, now)

    def seeds_resolved(self, found: dict[str, tuple[Endpoint, ...]], now: float) -> None:
        """Take the addresses of the seeds."""
        if self._joiner is not None:
            self._joiner.seeds_resolved(found.items(), now)

    def handle_timer(self, now: float, wall: float) -> None:
        """Ask, if it is time to."""
        if self._ask_at is not None and now >= self._ask_at:
            self._ask_at = None
            self._begin(now)
        if self._joiner is not None:
            self._joiner.handle_timer(now, wall)

    def settle(self, now: float, wall: float) -> bool:
        """Act on what the joiner says and on who is heard.  Return whether anything was done."""
        self._watch_company(now)
        busy = False
        while self._joiner is not None and (event := self._joiner.next_event()) is not None:
            busy = True
            self._on_event(event, now, wall)
        return busy

    # Outputs

    def datagrams_to_send(self) -> list[Outgoing]:
        """Take the queued datagrams."""
        return [] if self._joiner is None else self._joiner.datagrams_to_send()

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline."""
        timers = [] if self._ask_at is None else [Timer(self._ask_at, "alone")]
        if self._joiner is not None and (timer := self._joiner.get_timer()) is not None:
            timers.append(timer)
        return min(timers, default=None)

    # Inside

    def _watch_company(self, now: float) -> None:
        """Stop asking when a member is heard; begin again when none has been for a while."""
        if self._engine.gossip.accompanied:
            self._alone_since = self._ask_at = None
            self.silent = False
            self.refusal = None
            if self._engine.identity.chain:
                self._joiner = None
        elif self._alone_since is None:
            self._alone_since = now
            self._ask_at = now + ALONE_TIMEOUT

    def _begin(self, now: float) -> None:
        engine = self._engine
        introduction = self._introduction()
        if not self.seeds or introduction is None:
            return
        self._joiner = Joiner(
            engine.identity.node_key,
            engine.identity.mesh,
            engine.identity.bootstrap_key,
            seeds=self.seeds,
            introduction=introduction,
            cache=engine.ledger.cache,
            rng=self._rng,
            now=now,
        )

    def _introduction(self) -> Introduction | None:
        identity = self._engine.identity
        if self._engine.own_blob:
            return ByRecord(self._engine.own_blob)
        if identity.token is not None:
            return ByInvite(identity.name, identity.token.invite, identity.token.invite_key)
        return None

    def _on_event(self, event: bootstrap_events.JoinerEvent, now: float, wall: float) -> None:
        engine = self._engine
        match event:
            case bootstrap_events.ResolveSeeds(seeds):
                engine.emit(events.ResolveSeeds(seeds))
            case bootstrap_events.Joined():
                self._on_joined(event, now, wall)
            case bootstrap_events.RefusedByMesh(refusal, seed):
                self.refusal = f"{seed} refuses: {refusal.text}"
                engine.emit(events.RefusedByMesh(refusal.text, str(seed), refusal.final))
            case bootstrap_events.Silent(seeds, _):
                self.silent = True
                engine.emit(
                    events.Notice(
                        "no-answer",
                        f"no answer from {', '.join(seeds)}: it is down, or UDP is blocked on the "
                        "way, or the secret or token is another mesh's; trying on",
                    )
                )
            case bootstrap_events.BadPacketReceived(_, reason):
                engine.bad_packets[reason] += 1

    def _on_joined(self, event: bootstrap_events.Joined, now: float, wall: float) -> None:
        engine, answer = self._engine, event.answer
        self._joiner = None
        self.silent = False
        self.refusal = None
        self.seed = answer.seed.node
        self.clock_skew = answer.clock - wall
        if self.joined_at is None:
            self.joined_at = now
        engine.become(
            replace(
                engine.identity,
                chain=event.chain or engine.identity.chain,
                ipv4_prefix=answer.ipv4_prefix,
                token=None,
            ),
            now,
        )
        try:
            engine.learn(FactKind.RECORD, answer.seed_record, now, wall)
        except BadPacket as exc:
            engine.bad_packets[exc.reason] += 1
            return
        if not any(candidate.control_port for candidate in answer.seed.candidates):
            # Where it answered is as good as proven; its record need not list that address.
            engine.path.endpoint_observed(answer.seed.node, event.seed, now)
        self._alone_since = now
        self._ask_at = now + ALONE_TIMEOUT
        engine.emit(
            events.Notice(
                "mesh-joined",
                f"let in by {engine.name_of(answer.seed.node)} at {event.seed} "
                f"in {event.rtt * 1000:.0f} ms",
                answer.seed.node,
                engine.name_of(answer.seed.node),
            )
        )

    @property
    def clock_is_off(self) -> bool:
        """Whether our clock, or the seed's, is too far off for expiry to be judged."""
        return self.clock_skew is not None and abs(self.clock_skew) > CLOCK_SKEW_MAX / 4
