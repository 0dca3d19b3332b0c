"""Agrees on a pre-shared key with every member, one after the other.

    lower id                                       higher id
       │ OFFER (public key)                            │  derives K, holds K and what is in use
       │──────────────────────────────────────────────▶│
       │               ANSWER (ciphertext, tag of K …) │
       │◀──────────────────────────────────────────────│
    derives K, uses K: both hold it                    │
       │ CONFIRM (tag of K …)                          │
       │──────────────────────────────────────────────▶│  uses K: both hold it
       │                             CONFIRM (K …)     │
       │◀──────────────────────────────────────────────│

WireGuard's session goes on throughout: a pre-shared key matters at the next handshake only.  A
handshake between two ends with different keys fails and is tried again after 5 s, while the session
that it was to renew lasts another minute (REKEY_AFTER_TIME 120 s, REJECT_AFTER_TIME 180 s).

Rule 1: each end uses the newest key that, by what it last heard, both hold (`keys`, rule 2).

Rule 2: what an end believes of the other is corrected: whoever changes its belief says so,
        whoever is believed to hold something else says so, and whoever asks is answered.

Rule 3: an end believes only what is fresh and from the other: what came through the tunnel, and
        pongs to questions of its own, which find an end that has lost its keys when the tunnel
        is dead.  An outsider can take away or repeat neither into a weaker key.

Rule 4: an agreement starts from a key that both use, and leaves it in place until both have the
        new one.

Rule 5: one agreement at a time is begun, a pause after the last; those that fail are tried again
        ever more rarely; and what a member may have us do is limited.

The core does no IO and reads no clock; one input, then its outputs are drained.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from meshd.errors import BadPacket
from meshd.path.schedule import Schedule
from meshd.preshared.keys import (
    NO_KEY,
    Keyring,
    SharedKey,
    Transcript,
    derive,
    join_tags,
    split_tags_untrusted,
)
from meshd.preshared.pair import Pair
from meshd.preshared.wire import REFERENCE_BYTES, Answer, Confirm, Message, Offer
from meshd.underlay import Timer, TokenBucket

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from meshd.keys import MeshId, NodeId, NodeKey, PresharedKey
    from meshd.preshared.kem import Kem, KemKey

MESSAGES_PER_SECOND_MAX = 2  # of one member
MESSAGES_BURST_MAX = 20
ANSWERS_PER_SECOND_MAX = 50  # encapsulations, for all members together
ANSWERS_BURST_MAX = 50


@dataclass(frozen=True, slots=True)
class PresharedConfig:
    """Seconds, unless said otherwise."""

    enabled: bool = True
    rotation: float = 86_400.0  # how long a key is used
    first_delay: float = 5.0  # from alive to the first agreement, up to twice that
    pause: float = 0.2  # between two agreements, half of it to one and a half times
    retries: tuple[float, ...] = (1.0, 2.0, 4.0)  # how long each message may go unanswered
    failure_pause_min: float = 30.0  # doubles with each failure
    failure_pause_max: float = 3600.0


@dataclass(frozen=True, slots=True)
class RingChanged:
    """Persist a pair's keys, and plan anew.  An empty ring: delete them."""

    node: NodeId
    ring: Keyring


@dataclass(frozen=True, slots=True)
class KeyAgreed:
    """Both ends use a new key."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class KeyLost:
    """The other end does not hold the key that was in use.  `left`: an older one is."""

    node: NodeId
    left: bool


@dataclass(frozen=True, slots=True)
class KemWanted:
    """Call `take_kem`.  Comes once."""


Event: TypeAlias = RingChanged | KeyAgreed | KeyLost | KemWanted


@dataclass(slots=True, eq=False)
class _Attempt:
    node: NodeId
    retry_at: float
    tries: int = 0
    key: KemKey | None = None  # None before there is an offer
    reference: bytes = b""
    previous: SharedKey | None = None  # the key in use when the offer was made
    agreed: SharedKey | None = None


class Agreements:
    """See the module docstring.  `rng` must be unpredictable outside tests."""

    def __init__(
        self,
        key: NodeKey,
        mesh: MeshId,
        *,
        config: PresharedConfig,
        memory: Mapping[NodeId, Keyring],
        rng: Random,
        now: float,
    ) -> None:
        self._key = key
        self._mesh = mesh
        self._config = config
        self._rng = rng
        self._kem: Kem | None = None
        self._kem_wanted = False
        self.enabled = config.enabled
        self._memory = dict(memory)  # of those not added yet
        self._pairs: dict[NodeId, Pair] = {}
        self._schedule: Schedule[NodeId] = Schedule()
        self._attempt: _Attempt | None = None
        self._free_at = now
        self._answers = TokenBucket(rate=ANSWERS_PER_SECOND_MAX, burst=ANSWERS_BURST_MAX, now=now)
        self._outbox: list[tuple[Message, NodeId]] = []
        self._events: deque[Event] = deque()

    # Inputs

    def add(self, node: NodeId, now: float) -> None:
        """Take a member.  One that is known already changes nothing."""
        if node in self._pairs:
            return
        ring = self._memory.pop(node, Keyring())
        allowance = TokenBucket(rate=MESSAGES_PER_SECOND_MAX, burst=MESSAGES_BURST_MAX, now=now)
        self._pairs[node] = Pair(ring, lower=self._key.id < node, allowance=allowance)

    def remove(self, node: NodeId) -> None:
        """Forget a member, and its keys for good: it has been revoked, or forgotten."""
        pair = self._pairs.pop(node, None)
        ring = self._memory.pop(node, Keyring()) if pair is None else pair.ring
        if ring.held:
            self._events.append(RingChanged(node, Keyring()))
        self._schedule.discard(node)
        if self._attempt is not None and self._attempt.node == node:
            self._attempt = None

    def carry(self, former: NodeId, node: NodeId) -> None:
        """Keep the keys of a pair for another id of its member, which is yet to be added."""
        ring = self.ring(former)
        if ring.held and node not in self._pairs:
            self._memory[node] = ring
            self._events.append(RingChanged(node, ring))

    def alive(self, node: NodeId, now: float, wall: float) -> None:
        """Take that a member is heard through its tunnel."""
        pair = self._pairs.get(node)
        if pair is not None and not pair.alive:
            pair.alive = True
            self._plan(node, pair, now, wall)

    def away(self, node: NodeId) -> None:
        """Take that a member is not alive: nothing is sent to it, and nothing begun."""
        pair = self._pairs.get(node)
        if pair is not None:
            pair.alive = False
            self._schedule.discard(node)

    def heard(self, node: NodeId, told: bytes | None, now: float, wall: float) -> None:
        """Take what a pong says its sender holds: tags, or None if it takes no part.

        Raise BadPacket if that is no such list.
        """
        pair = self._pairs.get(node)
        if pair is None or not self.enabled:
            return
        if pair.hear(None if told is None else split_tags_untrusted(told)):
            self._settle(node, pair, now, wall)
            self._confirm(node, pair)

    def receive_untrusted(self, message: Message, node: NodeId, now: float, wall: float) -> None:
        """Handle what a member says through its tunnel.  Raise BadPacket."""
        pair = self._pairs.get(node)
        if pair is None or not self.enabled:
            return
        if not pair.allowance.take(now):
            raise BadPacket("too much talk of pre-shared keys")
        match message:
            case Offer():
                self._on_offer_untrusted(message, node, pair, now, wall)
            case Answer():
                self._on_answer_untrusted(message, node, pair, now, wall)
            case Confirm():
                self._on_confirm(message, node, pair, now, wall)

    def take_kem(self, kem: Kem | None, wall: float) -> None:
        """Take the mechanism, after `KemWanted`; None: this machine has none."""
        self._kem = kem
        if kem is not None:
            return
        self.enabled = False
        self._attempt = None
        for node, pair in self._pairs.items():
            self._schedule.discard(node)
            if pair.use(None, wall):
                self._events.append(RingChanged(node, pair.ring))
            self._confirm(node, pair)

    def handle_timer(self, now: float, wall: float) -> None:
        """Do what is due."""
        attempt = self._attempt
        if attempt is not None:
            if now >= attempt.retry_at:
                self._retry(attempt, now, wall)
            return
        if not self.enabled or now < self._free_at:
            return
        if self._kem is None:
            self._want_kem(now)
            return
        node = self._schedule.pop_due(now)
        if node is not None:
            self._attempt = _Attempt(node, retry_at=now)
            self._retry(self._attempt, now, wall)

    # Outputs

    def datagrams_to_send(self) -> list[tuple[Message, NodeId]]:
        """Take what is to be sent through tunnels."""
        messages, self._outbox = self._outbox, []
        return messages

    def next_event(self) -> Event | None:
        """Take the oldest event."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline; None while nothing is due ever."""
        if self._attempt is not None:
            return Timer(self._attempt.retry_at, "key agreement")
        soonest = self._schedule.soonest()
        if soonest is None or not self.enabled or (self._kem is None and self._kem_wanted):
            return None
        return Timer(max(soonest[0], self._free_at), "next key agreement")

    def told(self, node: NodeId) -> bytes | None:
        """Return what our probes to a member say that we hold: see `heard`."""
        pair = self._pairs.get(node)
        return join_tags(pair.tags) if pair is not None and self.enabled else None

    def believed(self, node: NodeId) -> bytes | None:
        """Return what we believe a member holds, in the form of `told`."""
        pair = self._pairs.get(node)
        return None if pair is None or pair.theirs is None else join_tags(pair.theirs)

    def preshared_key(self, node: NodeId) -> PresharedKey:
        """Return the key to use with a member; 32 zero bytes for none."""
        ring = self.ring(node)
        return NO_KEY if ring.used is None else ring.used.key

    def ring(self, node: NodeId) -> Keyring:
        """Return what is held of a pair."""
        pair = self._pairs.get(node)
        return Keyring() if pair is None or not self.enabled else pair.ring

    def takes_no_part(self, node: NodeId) -> bool:
        """Whether a member has said that it agrees on no keys."""
        pair = self._pairs.get(node)
        return pair is not None and pair.heard and pair.theirs is None

    # When

    def _plan(self, node: NodeId, pair: Pair, now: float, wall: float) -> None:
        """Have the next agreement when it is due: soon if there is no key, else when it is old."""
        if not (self.enabled and pair.lower and pair.alive):
            return
        if pair.heard and pair.theirs is None:
            self._schedule.discard(node)
            return
        config = self._config
        wait = config.first_delay * (1.0 + self._rng.random())
        if pair.failures:
            pause = config.failure_pause_min * 2.0 ** min(pair.failures - 1, 10)
            wait = min(pause, config.failure_pause_max) * (0.75 + self._rng.random() / 2)
        elif pair.ring.used is not None and pair.ring.used == pair.ring.held[0]:
            # A clock that was wrong makes a key due at once, or after a full period: no worse.
            age = min(max(0.0, wall - pair.ring.used.agreed_at), config.rotation)
            wait += (config.rotation - age) * (1.0 - self._rng.random() / 10)
        self._schedule.set(node, now + wait)

    def _retry(self, attempt: _Attempt, now: float, wall: float) -> None:
        retries = self._config.retries
        if attempt.tries == len(retries) or not self._pairs[attempt.node].alive:
            self._end(attempt, now, wall)
            return
        attempt.retry_at = now + retries[attempt.tries]
        attempt.tries += 1
        self._advance(attempt)

    def _advance(self, attempt: _Attempt) -> None:
        """Say what leads on: in step first, then the offer, then that both have it."""
        pair = self._pairs[attempt.node]
        if attempt.agreed is not None or not pair.in_step:
            self._confirm(attempt.node, pair, asks=True)
            return
        if attempt.key is None or attempt.previous != pair.ring.used:
            assert self._kem is not None
            attempt.key = self._kem.generate()
            attempt.reference = self._rng.randbytes(REFERENCE_BYTES)
            attempt.previous = pair.ring.used
        previous = attempt.previous
        offer = Offer(
            attempt.reference, attempt.key.public, None if previous is None else previous.tag
        )
        self._outbox.append((offer, attempt.node))

    def _go_on(self, node: NodeId, pair: Pair, now: float, wall: float) -> None:
        """Lead an agreement on, after the other has said something."""
        attempt = self._attempt
        if attempt is None or attempt.node != node or not pair.in_step:
            return
        if attempt.agreed is not None:
            self._end(attempt, now, wall)
        elif attempt.key is None or attempt.previous != pair.ring.used:
            self._advance(attempt)

    def _end(self, attempt: _Attempt, now: float, wall: float) -> None:
        self._attempt = None
        self._free_at = now + self._config.pause * (0.5 + self._rng.random())
        pair = self._pairs[attempt.node]
        if attempt.agreed is not None and attempt.agreed == pair.ring.used:
            pair.failures = 0
            self._events.append(KeyAgreed(attempt.node))
        else:
            pair.failures += 1
        self._plan(attempt.node, pair, now, wall)

    def _want_kem(self, now: float) -> None:
        soonest = self._schedule.soonest()
        if not self._kem_wanted and soonest is not None and soonest[0] <= now:
            self._kem_wanted = True
            self._events.append(KemWanted())

    # Messages

    def _on_offer_untrusted(
        self, offer: Offer, node: NodeId, pair: Pair, now: float, wall: float
    ) -> None:
        if pair.lower:
            raise BadPacket("key offer from the wrong side")
        if self._kem is None:
            if not self._kem_wanted:
                self._kem_wanted = True
                self._events.append(KemWanted())
            return  # it asks again
        used = pair.ring.used
        if pair.answered is None or pair.answered[0] != offer.reference:
            if offer.previous != (None if used is None else used.tag):
                self._confirm(node, pair)  # rule 4: in step first
                return
            if not self._answers.take(now):
                return
            secret, ciphertext = self._kem.encapsulate_untrusted(offer.public)
            pair.add(self._derive(node, offer, ciphertext, secret, used, wall))
            pair.answered = (offer.reference, ciphertext)
            self._settle(node, pair, now, wall, grown=True)
        answer = Answer(
            offer.reference, pair.answered[1], pair.tags, pair.theirs if pair.heard else None
        )
        self._outbox.append((answer, node))

    def _on_answer_untrusted(
        self, answer: Answer, node: NodeId, pair: Pair, now: float, wall: float
    ) -> None:
        attempt = self._attempt
        if (
            attempt is None
            or attempt.node != node
            or attempt.key is None
            or answer.reference != attempt.reference
            or attempt.agreed is not None
        ):
            raise BadPacket("key answer to no offer")
        used = pair.ring.used
        if attempt.previous != used:
            return  # what both use has changed meanwhile: the next offer says so
        offer = Offer(attempt.reference, attempt.key.public, None)
        secret = attempt.key.decapsulate_untrusted(answer.ciphertext)
        key = self._derive(node, offer, answer.ciphertext, secret, used, wall)
        if answer.held[:1] != (key.tag,):
            raise BadPacket("key answer does not confirm the key")
        attempt.agreed = key
        pair.add(key)
        pair.hear(answer.held)
        pair.believed = answer.believed
        self._settle(node, pair, now, wall, grown=True)
        attempt.tries = 0
        self._retry(attempt, now, wall)

    def _on_confirm(
        self, message: Confirm, node: NodeId, pair: Pair, now: float, wall: float
    ) -> None:
        news = pair.hear(message.held)
        pair.believed = message.believed
        if news:
            self._settle(node, pair, now, wall)
        if news or message.asks or (message.held is not None and message.believed != pair.tags):
            self._confirm(node, pair)
        self._go_on(node, pair, now, wall)

    def _confirm(self, node: NodeId, pair: Pair, *, asks: bool = False) -> None:
        """Say what we hold and believe, to one who can hear it."""
        if pair.alive:
            held = pair.tags if self.enabled else None
            believed = pair.theirs if pair.heard else None
            self._outbox.append((Confirm(held, believed, asks), node))

    # Keys

    def _derive(
        self,
        node: NodeId,
        offer: Offer,
        ciphertext: bytes,
        secret: bytes,
        previous: SharedKey | None,
        wall: float,
    ) -> SharedKey:
        me = self._key.id
        transcript = Transcript(
            mesh=self._mesh,
            lower=min(me, node),
            higher=max(me, node),
            reference=offer.reference,
            public=offer.public,
            ciphertext=ciphertext,
        )
        static = self._key.agree(node)
        return SharedKey(
            derive(transcript, secret=secret, static=static, previous=previous), int(wall)
        )

    def _settle(
        self, node: NodeId, pair: Pair, now: float, wall: float, *, grown: bool = False
    ) -> None:
        """Use the key that is due.  `grown`: another one is held, by an agreement under way."""
        before = pair.ring.used
        changed = pair.settle(wall)
        used = pair.ring.used
        if changed or grown:
            self._events.append(RingChanged(node, pair.ring))
        if changed and before is not None and used != pair.ring.held[0]:
            self._events.append(KeyLost(node, left=used is not None))
        if used is not None and used == pair.ring.held[0]:
            pair.answered = None
        attempting = self._attempt is not None and self._attempt.node == node
        if not grown and not attempting:
            self._plan(node, pair, now, wall)
