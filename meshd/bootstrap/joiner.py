"""The newcomer's side of the bootstrap: asks every seed, again and again, until one answers.

    round     0      1       2          3              …          every 8 s
    pause       .25     .5        1            2            …  8
              round 0 asks the first address, the others every address of every seed, with a fresh
              key for each; and thrice, once nobody has answered for a while: a seed under a flood
              loses most requests

Rule 1: only an answer counts that opens under one of the handshakes under way with the address it
        came from, is signed by a member, and holds a chain for this very node or a refusal.
        Whatever else arrives changes nothing.

Rule 2: a final refusal ends it; others are reported, and the seeds asked again, for another member
        or a later moment may say yes.

Rule 3: a member that is too busy for strangers answers with a cookie.  It is asked once more with
        that at once, and with it from then on; see `cookie`.

Rule 4: who is named first lets in, if it can: in a token that is who made it, and who lets in
        answers for the newcomer.

Rule 5: names are looked up again while nobody answers, since a seed may have moved or its name may
        only appear later.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from meshd.bootstrap.cookie import CODE_BYTES, SECRET_LIFETIME, code_of, open_cookie_untrusted
from meshd.bootstrap.events import (
    BadPacketReceived,
    Joined,
    RefusedByMesh,
    ResolveSeeds,
    Silent,
)
from meshd.bootstrap.messages import (
    PAYLOAD_BYTES,
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
    from meshd.trust.roots import Roots
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
    silent_requests: int = 3  # of `ATTEMPTS_PER_ENDPOINT_MAX`
    resolve_interval: float = 30.0
    resolve_interval_empty: float = 2.0  # while no name has an address


@dataclass(frozen=True, slots=True)
class JoinerStatistics:
    """Counts since the start."""

    requests: int
    answers: int
    cookies: int
    bad_packets: int


class _Attempt(NamedTuple):
    handshake: Initiator
    began_at: float


class _Cookie(NamedTuple):
    value: bytes
    taken_at: float


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
        roots: Roots | None = None,
    ) -> None:
        """`roots` are those known here; none stands for the mesh id alone."""
        self._key = key
        self._mesh = mesh
        self._bootstrap_key = bootstrap_key
        self._seeds = tuple(seeds)
        self._introduction = introduction
        self._cache = cache
        self._roots = roots
        self._rng = rng
        self._config = config or JoinerConfig()
        self._endpoints: tuple[Endpoint, ...] = ()
        self._attempts: dict[Endpoint, deque[_Attempt]] = {}  # newest first
        self._cookies: dict[Endpoint, _Cookie] = {}
        self._repeats: dict[Endpoint, bool] = {}  # in this round: whether still to be sent
        self._round = 0
        self._round_at = now
        self._resolved_at = now
        self._silent_at: float | None = now + self._config.silent_after
        self._said_silent = False
        self._refused: dict[Endpoint, Refusal] = {}
        self._finished = False
        self._outbox: list[Outgoing] = []
        self._events: deque[JoinerEvent] = deque()
        self._requests = self._answers = self._bad_packets = self._cookies_taken = 0
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
        self._cookies = {e: cookie for e, cookie in self._cookies.items() if e in endpoints}
        self._repeats = {e: due for e, due in self._repeats.items() if e in endpoints}

    def receive_datagram(self, datagram: bytes, source: Endpoint, now: float) -> bool:
        """Handle an answer, which may be anything at all.  Return whether it was one."""
        if self._finished:
            return False
        try:
            if datagram_type_untrusted(datagram) is DatagramType.BOOTSTRAP_COOKIE:
                self._take_cookie_untrusted(datagram[HEADER_BYTES:], source, now)
                return True
            answer, rtt, chain = self._open_untrusted(datagram, source, now)
        except BadPacket as exc:
            self._bad_packets += 1
            self._events.append(BadPacketReceived(source, exc.reason))
            return False
        self._answers += 1
        self._silent_at = None
        self._said_silent = False
        if not isinstance(answer.verdict, Refusal):
            self._finished = True
            self._events.append(Joined(answer, chain, source, rtt))
            return True
        self._finished = answer.verdict.final
        if self._refused.get(source) != answer.verdict:
            self._refused[source] = answer.verdict
            self._events.append(RefusedByMesh(answer.verdict, source, answer.revocation))
        return True

    def handle_timer(self, now: float, wall: float) -> None:
        """Do everything that is due."""
        if self._finished:
            return
        if self._silent_at is not None and now >= self._silent_at:
            self._silent_at = None
            self._said_silent = True
            self._events.append(Silent(self._seeds, self._endpoints))
        for endpoint in [e for e, due in self._repeats.items() if due]:
            self._repeats[endpoint] = False
            self._ask(endpoint, now, wall)
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
        timers += [
            Timer(self._cookies[e].taken_at, "cookie") for e, due in self._repeats.items() if due
        ]
        if self._silent_at is not None:
            timers.append(Timer(self._silent_at, "nobody answers"))
        return min(timers)

    @property
    def finished(self) -> bool:
        """Whether we are in, or refused for good."""
        return self._finished

    def statistics(self) -> JoinerStatistics:
        """Return counts since the start."""
        return JoinerStatistics(
            self._requests, self._answers, self._cookies_taken, self._bad_packets
        )

    # Asking

    def _ask_all(self, now: float, wall: float) -> None:
        config = self._config
        age = config.resolve_interval if self._endpoints else config.resolve_interval_empty
        if now - self._resolved_at >= age:
            self._resolved_at = now
            self._events.append(ResolveSeeds(self._seeds))
        self._repeats.clear()
        times = config.silent_requests if self._said_silent else 1
        first = not any(self._attempts.values())
        for endpoint in self._endpoints[:1] if first else self._endpoints * times:
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
        cookie = self._cookie_for(endpoint, now)
        payload = encode_request(
            self._introduction,
            key=self._key,
            mesh=self._mesh,
            binding=handshake.binding,
            wall=wall,
            size=PAYLOAD_BYTES - (CODE_BYTES if cookie else 0),
        )
        attempts = self._attempts[endpoint]
        attempts.appendleft(_Attempt(handshake, now))
        if len(attempts) > ATTEMPTS_PER_ENDPOINT_MAX:
            attempts.pop()
        message = handshake.write_request(payload)
        if cookie:
            head = header(DatagramType.REQUEST_WITH_COOKIE)
            datagram = head + code_of(cookie, head, message) + message
        else:
            datagram = header(DatagramType.BOOTSTRAP_REQUEST) + message
        self._requests += 1
        self._outbox.append(Outgoing(datagram, endpoint, None))

    def _cookie_for(self, endpoint: Endpoint, now: float) -> bytes:
        """Return the cookie that a member at this address has given us, unless it is stale."""
        cookie = self._cookies.get(endpoint)
        if cookie is None or now - cookie.taken_at >= SECRET_LIFETIME:
            return b""
        return cookie.value

    # Answers

    def _take_cookie_untrusted(self, sealed: bytes, source: Endpoint, now: float) -> None:
        """Keep a cookie, and have its request repeated with it, once in a round."""
        for attempt in self._attempts.get(source, ()):
            try:
                value = open_cookie_untrusted(sealed, attempt.handshake.public, self._bootstrap_key)
            except BadPacket:
                continue  # to another of our requests, perhaps
            self._cookies_taken += 1
            self._cookies[source] = _Cookie(value, now)
            self._repeats.setdefault(source, True)
            return
        raise BadPacket("cookie for no request of ours")

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
            answer = open_answer_untrusted(payload, binding, self._mesh, self._cache, self._roots)
            return answer, now - attempt.began_at, self._chain_untrusted(answer)
        raise BadPacket("answer to no request of ours")

    def _chain_untrusted(self, answer: Answer) -> tuple[bytes, ...]:
        """Return the chain that is ours to keep, verified."""
        if isinstance(answer.verdict, Refusal) or not isinstance(self._introduction, ByInvite):
            return ()
        verify_chain_untrusted(answer.verdict, self._mesh, self._key.id, self._cache)
        return answer.verdict
