"""Anti-entropy: two members find out what they hold differently, and exchange just that.

     initiator                                   responder
    1 │ DIGEST: 64 sums                              │
      │─────────────────────────────────────────────▶│ compares with its own
    2 │     SUMMARY: which buckets differ, and what  │
      │◀──── it holds in them (id, version, digest) ─│ in as many datagrams as it takes
    3 │ WANT: ids that are news to us, 32 at a time  │
      │─────────────────────────────────────────────▶│
    4 │◀─────────────────────────────── FACTS ───────│
      │ FACTS that the responder lacks               │
      │─────────────────────────────────────────────▶│

Rule 1: the responder remembers nothing.  The initiator asks again for what does not come, so any
        datagram may be lost; each SUMMARY says which range of ids it covers, so any of them is of
        use without the others.

Rule 2: what travels follows the difference.  Equal members exchange one DIGEST and one short
        SUMMARY.

Rule 3: facts are fetched before beliefs, because a belief about somebody without a record is
        dropped; and before them what decides on facts, revocations, because what a revoked member
        says is not to be believed even for a moment.  So nothing else is asked for before the
        summary has come to its end, or its time is over.

Rule 4: how soon the next exchange begins depends on how the last one ended:
        - facts differed: `digest_retry`, with whomever; doubled each time nothing came of it
        - only beliefs differed: `digest_settle`; broadcasts are probably still on their way
        - equal, but facts have changed lately: `digest_settle`, until QUIET_MIN members were equal
        - equal, and all is quiet: `digest_interval`

Rule 5: one exchange at a time.  A member just heard for the first time is next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from meshd.gossip.index import Turn, is_belief_id, turn_of_id
from meshd.gossip.wire import (
    ID_BYTES,
    SUMMARY_ENTRIES_MAX,
    Message,
    MessageType,
    Summary,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from random import Random

    from meshd.gossip.config import GossipConfig
    from meshd.gossip.index import Entry, Index
    from meshd.keys import NodeId

WANTED_MAX = 4096  # ids one exchange will fetch; the next one fetches the rest
WINDOW_MAX = 32  # ids asked for at once
PUSHED_MAX = 32  # entries sent unasked for each SUMMARY
SUMMARIES_MAX = 64  # datagrams that answer one DIGEST
WISHES_MAX = 4
TRIES_MAX = 4
QUIET_MIN = 2

_ID_FIRST = bytes(ID_BYTES)
_ID_LAST = b"\xff" * ID_BYTES


class Outgoing(NamedTuple):
    """A message and whom it is for."""

    target: NodeId
    message: Message


@dataclass(slots=True)
class _Exchange:
    """The initiator's side of one exchange."""

    partner: NodeId
    sequence: int
    facts_before: int
    answered: bool = False
    complete: bool = False  # the end of the summary was seen
    patient: bool = True  # waits for that
    facts_differed: bool = False
    wanted: dict[bytes, None] = field(default_factory=dict)  # ids not asked for yet
    asked: dict[bytes, None] = field(default_factory=dict)  # ids asked for
    tries: int = 0


class Sync:
    """Both sides of anti-entropy.  `at` is when `handle_timer` is due."""

    def __init__(self, index: Index, *, config: GossipConfig, rng: Random, now: float) -> None:
        self._index = index
        self._config = config
        self._rng = rng
        self._sequence = rng.getrandbits(32)
        self._exchange: _Exchange | None = None
        self._wishes: dict[NodeId, None] = {}
        self._quiet = 0
        self._fruitless = 0
        self._started_at = now - config.digest_retry
        self.at = now + config.digest_settle
        self.settled = False  # somebody was found to hold exactly what we hold
        self.exchanges = 0

    # Initiator

    def wish(self, node: NodeId, now: float) -> None:
        """Have an exchange with a member soon."""
        if len(self._wishes) < WISHES_MAX:
            self._wishes[node] = None
        if self._exchange is None:
            self.at = min(self.at, max(now, self._started_at + self._config.digest_retry))

    def facts_changed(self, now: float) -> None:
        """Check with others soon that a change has reached everybody."""
        self._quiet = 0
        if self._exchange is None:
            self.at = min(self.at, now + self._jitter(self._config.digest_settle))

    def handle_timer(self, live: Sequence[NodeId], now: float) -> list[Outgoing]:
        """Ask again for what has not come, or begin an exchange with a live member."""
        exchange = self._exchange
        if exchange is not None:
            exchange.patient = False
            if exchange.partner in live and exchange.tries < TRIES_MAX and not self._done(exchange):
                exchange.tries += 1
                self.at = now + self._config.answer_timeout * 2**exchange.tries
                return [self._ask(exchange)]
            self._finish(exchange, now)
            return []
        partner = self._choose(live)
        if partner is None:
            self.at = now + self._config.digest_interval
            return []
        self._sequence = (self._sequence + 1) % 2**32
        self._started_at = now
        self._exchange = _Exchange(partner, self._sequence, self._index.facts_changed)
        self.exchanges += 1
        self.at = now + self._config.answer_timeout
        return [self._ask(self._exchange)]

    def handle_summary(
        self, source: NodeId, message: Message, now: float
    ) -> tuple[list[Outgoing], list[Entry]]:
        """Compare.  Return what to ask for, and what to send unasked."""
        exchange, summary = self._exchange, message.summary
        if (
            exchange is None
            or summary is None
            or (source, message.sequence) != (exchange.partner, exchange.sequence)
        ):
            return [], []
        exchange.answered = True
        if summary.differing == 0:
            self._equal(now)
            return [], []
        exchange.complete |= summary.last == _ID_LAST
        ours = {
            entry.summary.id: entry
            for entry in self._index.select(summary.differing, summary.first, summary.last)
        }
        for theirs in summary.entries:
            entry = ours.get(theirs.id)
            if entry is not None and entry.summary == theirs:
                del ours[theirs.id]
                continue
            exchange.facts_differed |= not is_belief_id(theirs.id)
            news = entry is None or entry.summary.version <= theirs.version
            if news and theirs.id not in exchange.asked and len(exchange.wanted) < WANTED_MAX:
                exchange.wanted[theirs.id] = None
            if entry is not None and entry.summary.version < theirs.version:
                del ours[theirs.id]
        exchange.facts_differed |= any(not is_belief_id(id_) for id_ in ours)
        pushed = sorted(ours.values(), key=lambda entry: turn_of_id(entry.summary.id))
        return self._advance(exchange, now), pushed[:PUSHED_MAX]

    def handle_facts(self, source: NodeId, ids: Iterable[bytes], now: float) -> list[Outgoing]:
        """Note that items with these ids have come.  Return what to ask for next."""
        exchange = self._exchange
        if exchange is None or source != exchange.partner:
            return []
        before = len(exchange.asked)
        for id_ in ids:
            exchange.asked.pop(id_, None)
            exchange.wanted.pop(id_, None)
        if len(exchange.asked) == before:
            return []
        exchange.tries = 0
        return self._advance(exchange, now)

    # Responder

    def answer_digest(self, message: Message) -> list[Message]:
        """Return the summary of what differs."""
        differing = self._index.differing(message.buckets)
        entries = [entry.summary for entry in self._index.select(differing, _ID_FIRST, _ID_LAST)]
        summaries = []
        first = _ID_FIRST
        chunks = range(0, max(len(entries), 1), SUMMARY_ENTRIES_MAX)
        for at in list(chunks)[:SUMMARIES_MAX]:
            chunk = tuple(entries[at : at + SUMMARY_ENTRIES_MAX])
            final = at + SUMMARY_ENTRIES_MAX >= len(entries)
            last = _ID_LAST if final else chunk[-1].id
            summary = Summary(differing, first, last, chunk)
            summaries.append(Message(MessageType.SUMMARY, message.sequence, summary=summary))
            first = _after(last)
        return summaries

    def answer_want(self, message: Message) -> list[Entry]:
        """Return the entries that were asked for and are there."""
        found = (self._index.get(id_) for id_ in message.ids[:WINDOW_MAX])
        return [entry for entry in found if entry is not None]

    # Steps of an exchange

    def _ask(self, exchange: _Exchange) -> Outgoing:
        if not exchange.asked:
            digest = Message(MessageType.DIGEST, exchange.sequence, buckets=self._index.buckets())
            return Outgoing(exchange.partner, digest)
        want = Message(MessageType.WANT, exchange.sequence, ids=tuple(exchange.asked))
        return Outgoing(exchange.partner, want)

    def _advance(self, exchange: _Exchange, now: float) -> list[Outgoing]:
        self.at = now + self._config.answer_timeout
        if exchange.asked:
            return []
        if exchange.wanted:
            for id_ in self._next_window(exchange):
                del exchange.wanted[id_]
                exchange.asked[id_] = None
            return [self._ask(exchange)] if exchange.asked else []
        if self._done(exchange):
            self._finish(exchange, now)
        return []

    @staticmethod
    def _next_window(exchange: _Exchange) -> list[bytes]:
        """Choose what to ask for (rule 3); else it goes by the order of the summaries."""
        decisive = [id_ for id_ in exchange.wanted if turn_of_id(id_) == Turn.DECISIVE]
        if decisive or (exchange.patient and not exchange.complete):
            return decisive[:WINDOW_MAX]
        return sorted(exchange.wanted, key=turn_of_id)[:WINDOW_MAX]

    @staticmethod
    def _done(exchange: _Exchange) -> bool:
        return exchange.complete and not exchange.wanted and not exchange.asked

    def _equal(self, now: float) -> None:
        self._exchange = None
        self._wishes.clear()
        self._fruitless = 0
        self._quiet += 1
        self.settled = True
        quiet = self._quiet >= QUIET_MIN
        self.at = now + self._jitter(
            self._config.digest_interval if quiet else self._config.digest_settle
        )

    def _finish(self, exchange: _Exchange, now: float) -> None:
        self._exchange = None
        self._wishes.pop(exchange.partner, None)
        if self._index.facts_changed > exchange.facts_before:
            self._fruitless = 0
        pause = self._config.digest_retry
        if not exchange.facts_differed and exchange.answered:
            pause = self._config.digest_settle
        self.at = now + self._jitter(min(pause * 2**self._fruitless, self._config.digest_interval))
        self._fruitless = min(self._fruitless + 1, 8)

    def _choose(self, live: Sequence[NodeId]) -> NodeId | None:
        for node in list(self._wishes):
            del self._wishes[node]
            if node in live:
                return node
        return self._rng.choice(live) if live else None

    def _jitter(self, span: float) -> float:
        return span * (0.75 + 0.5 * self._rng.random())


def _after(id_: bytes) -> bytes:
    """Return the id that follows an id."""
    following = (int.from_bytes(id_, "big") + 1) % (1 << 8 * ID_BYTES)
    return following.to_bytes(ID_BYTES, "big")
