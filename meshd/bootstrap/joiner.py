"""The newcomer's side of the bootstrap: asks every seed, again and again, until one answers.

    round     0      1       2          3              …          every 8 s
    pause       .25     .5        1            2            …  8
              each round asks every address of every seed, with a fresh key for each

Rule 1: only an answer counts that opens under one of the handshakes under way with the address it
        came from, is signed by a member, and holds a chain for this very node or a refusal.
        Whatever else arrives changes nothing.

Rule 2: a final refusal ends it; others are reported, and the seeds asked again, for another member
        or a later moment may say yes.

Rule 3: names are looked up again while nobody answers, since a seed may have moved or its name may
        only appear later.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from meshd.bootstrap.events import (
    BadPacketReceived,
    Joined,
    RefusedByMesh,
    ResolveSeeds,
    Silent,
)
from meshd.bootstrap.messages import (
    PROLOGUE,
    ByInvite,
    encode_request,
    open_answer_untrusted,
)
from meshd.bootstrap.noise import KEY_BYTES, Initiator
from meshd.errors import BadPacket
from meshd.trust.credential import CredentialCache, verify_chain_untrusted
from meshd.trust.refusal import Refusal
from meshd.underlay import (
    HEADER_BYTES,
    DatagramType,
    Outgoing,
    Timer,
    datagram_type_untrusted,
    header,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from meshd.bootstrap.events import JoinerEvent
    from meshd.bootstrap.messages import Answer, Introduction
    from meshd.keys import BootstrapKey, MeshId, NodeKey
    from meshd.wg.types import Endpoint

SEED_ENDPOINTS_MAX = 16
ATTEMPTS_PER_ENDPOINT_MAX = 4  # handshakes under way; also what a forged answer can cost


@dataclass(frozen=True, slots=True)
class JoinerConfig:
    """Seconds."""

    pause_min: float = 0.25
    pause_max: float = 8.0
    pause_jitter: float = 0.25  # fraction by which a pause may be shorter
    silent_after: float = 5.0
    resolve_interval: float = 30.0
    resolve_interval_empty: float = 2.0  # while no name has an address


@dataclass(frozen=True, slots=True)
class JoinerStatistics:
    """Counts since the start."""

    requests: int
    answers: int
    bad_packets: int


class _Attempt(NamedTuple):
    handshake: Initiator
    began_at: float


class Joiner:
    """See the module docstring.  `rng` must be unpredictable outside tests: `SystemRandom`."""

    def __init__(
        self,
        key: NodeKey,
        mesh: MeshId,
        bootstrap_key: BootstrapKey,
        *,
        seeds: Iterable[str],
        introduction: Introduction,
        cache: CredentialCache,
        rng: Random,
        now: float,
        config: JoinerConfig | None = None,
    ) -> None:
        self._key = key
        self._mesh = mesh
        self._bootstrap_key = bootstrap_key
        self._seeds = tuple(seeds)
        self._introduction = introduction
        self._cache = cache
        self._rng = rng
        self._config = config or JoinerConfig()
        self._endpoints: tuple[Endpoint, ...] = ()
        self._attempts: dict[Endpoint, deque[_Attempt]] = {}  # newest first
        self._round = 0
        self._round_at = now
        self._resolved_at = now
        self._silent_at: float | None = now + self._config.silent_after
        self._refused: dict[Endpoint, Refusal] = {}
        self._finished = False
        self._outbox: list[Outgoing] = []
        self._events: deque[JoinerEvent] = deque()
        self._requests = self._answers = self._bad_packets = 0
        self._events.append(ResolveSeeds(self._seeds))

    # Inputs

    def seeds_resolved(
        self, resolved: Iterable[tuple[str, Iterable[Endpoint]]], now: float
    ) -> None:
        """Take the addresses of the seeds; a name that could not be looked up has none.

        When nothing at all could be, what was known before is kept.
        """
        found = dict.fromkeys(
            endpoint for _, endpoints in resolved for endpoint in endpoints if endpoint.port
        )
        endpoints = tuple(found)[:SEED_ENDPOINTS_MAX]
        if not endpoints:
            return
        if not set(self._endpoints).issuperset(endpoints):
            self._round = 0
            self._round_at = now
        self._endpoints = endpoints
        self._attempts = {e: self._attempts.get(e, deque()) for e in endpoints}

    def receive_datagram(self, datagram: bytes, source: Endpoint, now: float) -> None:
        """Handle an answer, which may be anything at all."""
        if self._finished:
            return
        try:
            answer, rtt, chain = self._open_untrusted(datagram, source, now)
        except BadPacket as exc:
            self._bad_packets += 1
            self._events.append(BadPacketReceived(source, exc.reason))
            return
        self._answers += 1
        self._silent_at = None
        if not isinstance(answer.verdict, Refusal):
            self._finished = True
            self._events.append(Joined(answer, chain, source, rtt))
            return
        self._finished = answer.verdict.final
        if self._refused.get(source) != answer.verdict:
            self._refused[source] = answer.verdict
            self._events.append(RefusedByMesh(answer.verdict, source))

    def handle_timer(self, now: float, wall: float) -> None:
        """Do everything that is due."""
        if self._finished:
            return
        if self._silent_at is not None and now >= self._silent_at:
            self._silent_at = None
            self._events.append(Silent(self._seeds, self._endpoints))
        if now >= self._round_at:
            self._ask_all(now, wall)

    # Outputs

    def datagrams_to_send(self) -> list[Outgoing]:
        """Take the queued datagrams."""
        datagrams, self._outbox = self._outbox, []
        return datagrams

    def next_event(self) -> JoinerEvent | None:
        """Take the oldest queued event."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline; None once it is over."""
        if self._finished:
            return None
        timers = [Timer(self._round_at, "ask the seeds")]
        if self._silent_at is not None:
            timers.append(Timer(self._silent_at, "nobody answers"))
        return min(timers)

    @property
    def finished(self) -> bool:
        """Whether we are in, or refused for good."""
        return self._finished

    def statistics(self) -> JoinerStatistics:
        """Return counts since the start."""
        return JoinerStatistics(self._requests, self._answers, self._bad_packets)

    # Asking

    def _ask_all(self, now: float, wall: float) -> None:
        config = self._config
        age = config.resolve_interval if self._endpoints else config.resolve_interval_empty
        if now - self._resolved_at >= age:
            self._resolved_at = now
            self._events.append(ResolveSeeds(self._seeds))
        for endpoint in self._endpoints:
            self._ask(endpoint, now, wall)
        pause = min(config.pause_max, config.pause_min * 2**self._round)
        self._round_at = now + pause * (1.0 - config.pause_jitter * self._rng.random())
        if pause < config.pause_max:
            self._round += 1

    def _ask(self, endpoint: Endpoint, now: float, wall: float) -> None:
        handshake = Initiator(
            psk=self._bootstrap_key,
            prologue=PROLOGUE,
            ephemeral=self._rng.randbytes(KEY_BYTES),
        )
        payload = encode_request(
            self._introduction,
            key=self._key,
            mesh=self._mesh,
            binding=handshake.binding,
            wall=wall,
        )
        attempts = self._attempts[endpoint]
        attempts.appendleft(_Attempt(handshake, now))
        if len(attempts) > ATTEMPTS_PER_ENDPOINT_MAX:
            attempts.pop()
        datagram = header(DatagramType.BOOTSTRAP_REQUEST) + handshake.write_request(payload)
        self._requests += 1
        self._outbox.append(Outgoing(datagram, endpoint, None))

    # Answers

    def _open_untrusted(
        self, datagram: bytes, source: Endpoint, now: float
    ) -> tuple[Answer, float, tuple[bytes, ...]]:
        if datagram_type_untrusted(datagram) is not DatagramType.BOOTSTRAP_ANSWER:
            raise BadPacket("not a bootstrap answer")
        message = datagram[HEADER_BYTES:]
        for attempt in self._attempts.get(source, ()):
            try:
                payload, binding = attempt.handshake.read_answer_untrusted(message)
            except BadPacket:
                continue  # to another of our requests, perhaps
            answer = open_answer_untrusted(payload, binding, self._mesh, self._cache)
            return answer, now - attempt.began_at, self._chain_untrusted(answer)
        raise BadPacket("answer to no request of ours")

    def _chain_untrusted(self, answer: Answer) -> tuple[bytes, ...]:
        """Return the chain that is ours to keep, verified."""
        if isinstance(answer.verdict, Refusal) or not isinstance(self._introduction, ByInvite):
            return ()
        verify_chain_untrusted(answer.verdict, self._mesh, self._key.id, self._cache)
        return answer.verdict
