"""Getting in: when this node asks its seeds, and what it does with their answers.

A node asks when it has no member to talk to: on its first start, when nobody it remembers can be
reached, and again when it has been alone for a while, since the mesh may have moved on without it.
Bootstrap is only a way to meet one member; all else is learnt inside the tunnel.

    start ──┬─ knows members ── ALONE_TIMEOUT without hearing any ──▶ ask ──▶ Joined ──▶ rest
            └─ knows nobody ────────────────────────────────────────▶ ask      │  ▲       │
                                                                        alone again: ask ◀┘

A node that has company but misses members searches for them: every SEARCH_INTERVAL it asks those
of its seeds, for a moment and without a word, at whose address none of its company is.  Two halves
of a mesh that have both moved while they were apart know no other way to each other.

A node that is alone asks where members were, too, when it last heard of them.  One that is
refused for good, or knows that it is revoked, asks again after REFUSED_INTERVAL only.

A node that has been a member may be given a token all the same: where its credential has expired,
members do not take it for one of theirs any more, or the token names a root that it has missed.
Then it rejoins: it shows the token, company or not, until that is honoured or refused for good.  It
stays who it is; what changes is its chain.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meshd.bootstrap import events as bootstrap_events
from meshd.bootstrap.joiner import SEED_ENDPOINTS_MAX, Joiner
from meshd.bootstrap.messages import ByInvite, ByRecord
from meshd.engine import events
from meshd.errors import BadPacket
from meshd.gossip.claim import MemberState
from meshd.path.candidates import control_endpoint
from meshd.trust.credential import CredentialCache
from meshd.trust.fact import FactKind
from meshd.trust.grammar import CLOCK_SKEW_MAX
from meshd.trust.refusal import RefusalCode
from meshd.underlay import Timer

if TYPE_CHECKING:
    from random import Random

    from meshd.bootstrap.messages import Introduction
    from meshd.engine.engine import Engine
    from meshd.keys import NodeId
    from meshd.underlay import Outgoing
    from meshd.wg.types import Endpoint

ALONE_TIMEOUT = 5.0  # with members known from earlier, or after having been let in
SEARCH_INTERVAL = 30.0
REFUSED_INTERVAL = 600.0
_LIVE = {MemberState.ALIVE, MemberState.SUSPECT}


class Entry:
    """Owns the joiner while there is one."""

    def __init__(self, engine: Engine, *, rng: Random, now: float, wall: float) -> None:
        self._engine = engine
        self._rng = rng
        self._joiner: Joiner | None = None
        self._token = engine.identity.token
        self._rejoining = self._token is not None and (
            self._lacks_rights(wall) or engine.ledger.roots.misses(self._token.roots)
        )
        knows_somebody = bool(engine.others())
        self._accompanied = False
        waits = knows_somebody and not self._rejoining
        self._ask_at: float | None = now + ALONE_TIMEOUT if waits else now
        self.silent = False  # the seeds have been asked for a while, and nobody answers
        self.refusal: str | None = None  # why a member did not let us in, for the time being
        self.seed: NodeId | None = None  # who let us in last
        self.joined_at: float | None = None
        self.clock_skew: float | None = None  # seconds by which the seed's clock is ahead of ours
        self.seeds = engine.config.seeds
        if self._token is not None:
            self.seeds = tuple(dict.fromkeys((*self.seeds, *self._token.seeds)))

    # Inputs

    def receive_answer(self, datagram: bytes, source: Endpoint, now: float) -> bool:
        """Handle a bootstrap answer, which may be anything at all.  Return whether it was one."""
        if self._joiner is None:
            self._engine.bad_packets["answer to no request of ours"] += 1
            return False
        return self._joiner.receive_datagram(datagram, source, now)

    def seeds_resolved(self, found: dict[str, tuple[Endpoint, ...]], now: float) -> None:
        """Take the addresses of the seeds."""
        if self._joiner is None:
            return
        needless = self._needless_endpoints()
        self._joiner.seeds_resolved(
            (
                (seed, [endpoint for endpoint in endpoints if endpoint not in needless])
                for seed, endpoints in found.items()
            ),
            now,
        )

    def handle_timer(self, now: float, wall: float) -> None:
        """Ask, if it is time to."""
        if self._ask_at is not None and now >= self._ask_at:
            self._ask_at = self._next_search_at(now) if self._accompanied else None
            if not self._accompanied or self._rejoining or self._misses_somebody():
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
        if self._engine.gossip.accompanied == self._accompanied:
            return
        self._accompanied = not self._accompanied
        if self._accompanied:
            self._ask_at = self._next_search_at(now)
            self.silent = False
            if self._rejoining:
                return  # company is not what it asks for
            self.refusal = None
            self._joiner = None
        else:
            self._ask_at = now + ALONE_TIMEOUT

    def _next_search_at(self, now: float) -> float:
        return now + SEARCH_INTERVAL * (0.75 + 0.5 * self._rng.random())

    def _misses_somebody(self) -> bool:
        return any(view.state is MemberState.DEAD for view in self._engine.gossip.members())

    def _company(self) -> list[NodeId]:
        views = self._engine.gossip.members()
        return [view.node for view in views if view.state in _LIVE]

    def _needless_endpoints(self) -> set[Endpoint]:
        """Return where we ourselves are, and whom we hear anyway: asking there brings nothing.

        Unless there is a token to be shown to them.
        """
        engine, company = self._engine, [] if self._rejoining else self._company()
        used = {engine.path.endpoint(node) for node in company}
        standings = (engine.ledger.standing(node) for node in (engine.identity.node, *company))
        listed = {
            control_endpoint(candidate)
            for standing in standings
            if standing is not None
            for candidate in standing.record.candidates
        }
        return listed | {endpoint for endpoint in used if endpoint is not None}

    def _lacks_rights(self, wall: float) -> bool:
        """Whether we have a credential that has expired, or is no member's any more."""
        engine = self._engine
        credential = engine.own_credential
        if credential is None:
            return False
        standing = engine.ledger.standing(engine.identity.node)
        expired = credential.expires_at != 0 and wall > credential.expires_at
        return expired or (standing is not None and not standing.admitted)

    def _begin(self, now: float) -> None:
        engine = self._engine
        bootstrap_key = engine.identity.bootstrap_key
        roots, cache = engine.ledger.roots, engine.ledger.cache
        if self._rejoining and self._token is not None:
            # The mesh may have changed its key since we were there; the token has the present one.
            bootstrap_key = self._token.bootstrap_key
            if roots.misses(self._token.roots):
                roots = self._token.roots
                cache = CredentialCache()
                cache.roots = roots.keys
        introduction = self._introduction()
        seeds = self.seeds
        if not self._accompanied:
            seeds = tuple(dict.fromkeys((*seeds, *self._where_members_were())))
        if not seeds or introduction is None:
            return
        self._joiner = Joiner(
            engine.identity.node_key,
            engine.identity.mesh,
            bootstrap_key,
            seeds=seeds,
            introduction=introduction,
            cache=cache,
            roots=roots,
            rng=self._rng,
            now=now,
        )

    def _where_members_were(self) -> tuple[str, ...]:
        """Return some of the addresses that members have listed, as seeds."""
        listed = dict.fromkeys(
            str(control_endpoint(candidate))
            for _, standing in self._engine.others()
            for candidate in standing.record.candidates
        )
        return tuple(self._rng.sample(list(listed), min(SEED_ENDPOINTS_MAX, len(listed))))

    def _introduction(self) -> Introduction | None:
        token, blob = self._token, self._engine.presence.blob
        if blob and not self._rejoining:
            return ByRecord(blob)
        if token is not None:
            return ByInvite(self._engine.identity.name, token.invite, token.invite_key)
        return None

    def _on_event(self, event: bootstrap_events.JoinerEvent, now: float, wall: float) -> None:
        engine = self._engine
        match event:
            case bootstrap_events.ResolveSeeds(seeds):
                engine.emit(events.ResolveSeeds(seeds))
            case bootstrap_events.Joined():
                self._on_joined(event, now, wall)
            case bootstrap_events.RefusedByMesh(refusal, seed, revocation):
                if revocation and refusal.code is RefusalCode.SUCCEEDED:
                    engine.rekeyed.take_untrusted(revocation)
                elif revocation:
                    engine.revoking.take_untrusted(revocation, now, wall)
                if not self._accompanied or self._rejoining:
                    self.refusal = f"{seed} refuses: {refusal.text}"
                if refusal.final:
                    self._after_refusal(now)
                engine.emit(events.RefusedByMesh(refusal.text, str(seed), refusal.final))
            case bootstrap_events.Silent() if self._accompanied:
                self._joiner = None  # until the next search
            case bootstrap_events.Silent() if engine.revoking.revocation is not None:
                self._joiner = None
                self._ask_at = now + REFUSED_INTERVAL
            case bootstrap_events.Silent() if not self.seeds:
                self._joiner = None
                self._ask_at = self._next_search_at(now)
            case bootstrap_events.Silent():
                if self._token is not None and engine.identity.chain:
                    # Nobody hears the key we know; or it is the token's that is an old one.
                    self._rejoining = not self._rejoining
                    self._ask_at = now
                if self.silent:
                    return
                self.silent = True
                engine.emit(
                    events.Notice(
                        "no-answer",
                        f"no answer from {', '.join(self.seeds)}: it is down, or UDP is blocked "
                        "on the way, or the secret or token is another mesh's; trying on",
                    )
                )
            case bootstrap_events.BadPacketReceived(_, reason):
                engine.bad_packets[reason] += 1

    def _after_refusal(self, now: float) -> None:
        """Show the token to those who do not know us any more; a refused one is not shown again."""
        self._ask_at = now + REFUSED_INTERVAL
        if self._rejoining:
            self._rejoining = False
            self._token = None
            self._ask_at = now + ALONE_TIMEOUT  # for what we are without it
        elif self._token is not None and self._engine.identity.chain:
            self._rejoining = True
            self._ask_at = now

    def _on_joined(self, event: bootstrap_events.Joined, now: float, wall: float) -> None:
        engine, answer = self._engine, event.answer
        self._joiner = None
        if answer.seed.node in self._company() and not event.chain:
            return  # a search that has found whom we hear anyway, by another address
        self.silent = False
        self.refusal = None
        if self._rejoining and self._token is not None:
            try:
                engine.following.take_token_untrusted(
                    self._token, event.chain, answer.successions, now
                )
            except BadPacket as exc:
                engine.bad_packets[exc.reason] += 1
                self._ask_at = now + ALONE_TIMEOUT
                return
        self._rejoining = False
        self._token = None
        self.seed = answer.seed.node
        self.clock_skew = answer.clock - wall
        if self.joined_at is None:
            self.joined_at = now
        try:
            for blob in answer.successions:
                engine.learn(FactKind.SUCCESSION, blob, now, wall)
            if event.chain:
                engine.following.verify_untrusted(event.chain)
        except BadPacket as exc:
            engine.bad_packets[exc.reason] += 1
            return
        engine.become(
            replace(
                engine.identity,
                chain=event.chain or engine.identity.chain,
                origin=() if event.chain else engine.identity.origin,
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
        engine.carriage.joined(answer.seed.node, event.seed, now)
        if not self._accompanied:
            self._ask_at = now + ALONE_TIMEOUT
        engine.emit(
            events.Notice(
                "mesh-joined",
                f"let in by {engine.name_of(answer.seed.node)} at "
                f"{engine.carriage.shown(event.seed)} "
                f"in {event.rtt * 1000:.0f} ms",
                answer.seed.node,
                engine.name_of(answer.seed.node),
            )
        )

    @property
    def asks_alone(self) -> bool:
        """Whether seeds are being asked because there is nobody to talk to, or with a token."""
        return self._joiner is not None and (not self._accompanied or self._rejoining)

    @property
    def clock_is_off(self) -> bool:
        """Whether our clock, or the seed's, is too far off for expiry to be judged."""
        return self.clock_skew is not None and abs(self.clock_skew) > CLOCK_SKEW_MAX / 4
