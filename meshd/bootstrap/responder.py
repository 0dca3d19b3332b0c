"""The member's side of the bootstrap: opens requests, seals answers, decides nothing.

    newcomer                responder                    driver (has the ledger)
       │ request (1,200 bytes)  │                             │
       │───────────────────────▶│ RequestOpened               │
       │                        │────────────────────────────▶│ judges; or asks another member
       │                        │            answer(verdict)  │ through the tunnel
       │ answer (≤ 1,200 bytes) │◀────────────────────────────│
       │◀───────────────────────│

Rule 1: whoever does not have the bootstrap key gets no answer and costs one hash chain and one
        decryption, two where there is an older key: no table, no signature, no key agreement.

Rule 2: there are two doors, each with a limit of its own.  The first is for requests from a source
        that is yet unproven; when it is crowded they are not judged, but get a cookie, and it is
        nearly shut while more comes in than can be read: a cookie costs a tenth of a judgement.
        The second is for those who come back with it (see `cookie`), each source within limits of
        its own (see `limits`).  So neither forged sources nor one that asks too often keep others
        out.

Rule 3: between request and answer a handshake waits, for `PENDING_LIFETIME` at most.  When too
        many wait, newcomers are not heard: they ask again.

Rule 4: an exact repeat is dropped while it is remembered.  After that it is answered once more,
        and only the one who made the request can read that.

Rule 5: no answer is longer than the question.

Rule 6: after a change of the bootstrap key the one before still opens requests that bring a record,
        for members that were away.  A request with an invite under it gets silence: changing the
        key is what makes tokens void.
"""

from __future__ import annotations

import hmac
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.bootstrap.cookie import CODE_BYTES, CookieMaker, code_of
from meshd.bootstrap.events import BadPacketReceived, RequestOpened
from meshd.bootstrap.limits import Buckets, source_of
from meshd.bootstrap.messages import (
    PROLOGUE,
    REFERENCE_BYTES,
    AdmissionRequest,
    encode_answer,
    open_request_untrusted,
)
from meshd.bootstrap.noise import KEY_BYTES
from meshd.bootstrap.noise import Responder as NoiseResponder
from meshd.errors import BadPacket
from meshd.underlay import (
    DATAGRAM_BYTES_MAX,
    HEADER_BYTES,
    DatagramType,
    Outgoing,
    ReplayGuard,
    Timer,
    TokenBucket,
    datagram_type_untrusted,
    header,
    unpad_untrusted,
)

if TYPE_CHECKING:
    from ipaddress import IPv4Network
    from random import Random

    from meshd.bootstrap.events import ResponderEvent
    from meshd.bootstrap.messages import Verdict
    from meshd.codec import IPAddress
    from meshd.keys import BootstrapKey, MeshId, NodeKey
    from meshd.wg.types import Endpoint

PENDING_MAX = 256
PENDING_UNPROVEN_MAX = 128  # of those, from behind the first door
PENDING_PER_SOURCE_MAX = 8
PENDING_LIFETIME = 10.0  # longer than a newcomer waits before it asks again
REPLAYS_REMEMBERED_MAX = 16_384

# Of requests that open, at each door: each costs two signatures and a key agreement, 0.3 ms.
REQUESTS_PER_SECOND_MAX = 100
REQUESTS_BURST_MAX = 200
# At the first door, while more comes in than can be read.
SWAMPED_REQUESTS_PER_SECOND_MAX = 10
SWAMPED_REQUESTS_BURST_MAX = 20
# Of those, from one source behind the second door.  A newcomer asks four times in its first second;
# the burst lets a rack that starts at once, behind one NAT, in within seconds.
SOURCE_REQUESTS_PER_SECOND_MAX = 5
SOURCE_REQUESTS_BURST_MAX = 20
SOURCES_MAX = 4096


@dataclass(frozen=True, slots=True)
class ResponderStatistics:
    """Counts since the start."""

    opened: int = 0
    answered: int = 0
    replayed: int = 0
    limited: int = 0  # too many at once
    cookies: int = 0  # of those, that got one
    expired: int = 0  # never judged
    bad_packets: int = 0
    pending: int = 0


@dataclass(frozen=True, slots=True)
class _Pending:
    handshake: NoiseResponder
    source: Endpoint
    local: IPAddress | None
    opened_at: float
    proven: bytes | None  # its source behind the second door; None behind the first


class Responder:
    """See the module docstring.  `rng` must be unpredictable outside tests: `SystemRandom`."""

    def __init__(
        self,
        key: NodeKey,
        mesh: MeshId,
        bootstrap_key: BootstrapKey,
        *,
        rng: Random,
        now: float,
        older_bootstrap_key: BootstrapKey | None = None,
    ) -> None:
        self._key = key
        self._mesh = mesh
        self.rekey(bootstrap_key, older_bootstrap_key)
        self._rng = rng
        self._replays = ReplayGuard(REPLAYS_REMEMBERED_MAX)
        self._unproven = TokenBucket(
            rate=REQUESTS_PER_SECOND_MAX, burst=REQUESTS_BURST_MAX, now=now
        )
        self._swamped = TokenBucket(
            rate=SWAMPED_REQUESTS_PER_SECOND_MAX, burst=SWAMPED_REQUESTS_BURST_MAX, now=now
        )
        self._proven = TokenBucket(rate=REQUESTS_PER_SECOND_MAX, burst=REQUESTS_BURST_MAX, now=now)
        self._sources: Buckets[bytes] = Buckets(
            rate=SOURCE_REQUESTS_PER_SECOND_MAX,
            burst=SOURCE_REQUESTS_BURST_MAX,
            keys_max=SOURCES_MAX,
        )
        self._cookies = CookieMaker(rng=rng)
        self.swamped = False  # whether more comes in than can be read; its user knows
        self._pending: dict[bytes, _Pending] = {}  # by reference, oldest first
        self._outbox: list[Outgoing] = []
        self._events: deque[ResponderEvent] = deque()
        self._counts: Counter[str] = Counter()

    # Inputs

    def rekey(self, bootstrap_key: BootstrapKey, older: BootstrapKey | None) -> None:
        """Take the present bootstrap key, and the one before."""
        self._bootstrap_keys = (bootstrap_key,) if older is None else (bootstrap_key, older)
        self._fresh = [_fresh(key) for key in self._bootstrap_keys]

    def receive_datagram(
        self, datagram: bytes, source: Endpoint, local: IPAddress | None, now: float
    ) -> bool:
        """Handle a request, which may be anything at all.  `local` is where it was sent to.

        Return whether it is to be judged.
        """
        self.handle_timer(now)
        try:
            return self._receive_untrusted(datagram, source, local, now)
        except BadPacket as exc:
            self._counts["bad_packets"] += 1
            self._events.append(BadPacketReceived(source, exc.reason))
            return False

    def handle_timer(self, now: float) -> None:
        """Let go of handshakes that have waited too long."""
        while self._pending:
            reference, oldest = next(iter(self._pending.items()))
            if now - oldest.opened_at < PENDING_LIFETIME:
                return
            del self._pending[reference]
            self._counts["expired"] += 1

    def answer(
        self,
        reference: bytes,
        verdict: Verdict,
        *,
        record: bytes,
        chain: tuple[bytes, ...],
        ipv4_prefix: IPv4Network,
        wall: float,
        revocation: bytes = b"",
        successions: tuple[bytes, ...] = (),
    ) -> bool:
        """Seal the answer to a request.  `record` and `chain` are this member's own.

        `revocation` is what puts the newcomer out, if that is why it is refused; `successions` are
        those by which our root follows the one it knows.

        Return whether the request was still waiting.
        """
        pending = self._pending.pop(reference, None)
        if pending is None:
            return False
        try:
            binding = pending.handshake.begin_answer_untrusted(self._rng.randbytes(KEY_BYTES))
        except BadPacket as exc:
            self._counts["bad_packets"] += 1
            self._events.append(BadPacketReceived(pending.source, exc.reason))
            return False
        payload = encode_answer(
            verdict,
            key=self._key,
            mesh=self._mesh,
            binding=binding,
            record=record,
            chain=chain,
            observed=pending.source,
            ipv4_prefix=ipv4_prefix,
            wall=wall,
            revocation=revocation,
            successions=successions,
        )
        datagram = header(DatagramType.BOOTSTRAP_ANSWER) + pending.handshake.write_answer(payload)
        assert len(datagram) <= DATAGRAM_BYTES_MAX
        self._counts["answered"] += 1
        self._outbox.append(Outgoing(datagram, pending.source, pending.local))
        return True

    # Outputs

    def datagrams_to_send(self) -> list[Outgoing]:
        """Take the queued datagrams."""
        datagrams, self._outbox = self._outbox, []
        return datagrams

    def next_event(self) -> ResponderEvent | None:
        """Take the oldest queued event."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> Timer | None:
        """Return when the oldest waiting handshake is to be let go."""
        for pending in self._pending.values():
            return Timer(pending.opened_at + PENDING_LIFETIME, "unanswered request")
        return None

    def statistics(self) -> ResponderStatistics:
        """Return counts since the start."""
        return ResponderStatistics(pending=len(self._pending), **self._counts)

    # Requests

    def _receive_untrusted(
        self, datagram: bytes, source: Endpoint, local: IPAddress | None, now: float
    ) -> bool:
        kind = datagram_type_untrusted(datagram)
        if kind not in _REQUESTS:
            raise BadPacket("not a bootstrap request")
        if len(datagram) != DATAGRAM_BYTES_MAX:
            raise BadPacket("request of the wrong length")
        head, code, message = _split(kind, datagram)
        mark = message[:KEY_BYTES]  # the ephemeral key: everything else depends on it
        if mark in self._replays:
            self._counts["replayed"] += 1
            return False
        age, handshake, padded, binding = self._open_untrusted(message)
        self._replays.add(mark)
        proven = None
        if code and hmac.compare_digest(
            code, code_of(self._cookies.cookie(source, now), head, message)
        ):
            proven = source_of(source.address)
        if not self._may_enter(proven, now):
            self._counts["limited"] += 1
            if proven is None:
                self._send_cookie(mark, source, local, self._bootstrap_keys[age], now)
            return False
        payload = unpad_untrusted(padded)
        request = open_request_untrusted(payload, binding, self._mesh)
        if request.node == self._key.id:
            raise BadPacket("request from ourselves")
        reference = binding[:REFERENCE_BYTES]
        handover = None
        if request.application is not None:
            if age:
                raise BadPacket("invite under an older bootstrap key")
            handover = AdmissionRequest(reference, binding, payload)
        self._pending[reference] = _Pending(handshake, source, local, now, proven)
        self._counts["opened"] += 1
        self._events.append(RequestOpened(reference, request, source, handover))
        return True

    def _open_untrusted(self, message: bytes) -> tuple[int, NoiseResponder, bytes, bytes]:
        """Open a request.  Return by which of our keys, the handshake, its payload and binding."""
        for age, handshake in enumerate(self._fresh):
            try:
                padded, binding = handshake.read_request_untrusted(message)
            except BadPacket:
                continue  # which leaves the handshake as it is
            self._fresh[age] = _fresh(self._bootstrap_keys[age])
            return age, handshake, padded, binding
        raise BadPacket("handshake does not open")

    def _may_enter(self, proven: bytes | None, now: float) -> bool:
        """Ask for room and for tokens at the door that is a request's: rule 2."""
        waiting = sum(pending.proven == proven for pending in self._pending.values())
        if proven is None:
            return (
                waiting < PENDING_UNPROVEN_MAX
                and (not self.swamped or self._swamped.take(now))
                and self._unproven.take(now)
            )
        return (
            len(self._pending) < PENDING_MAX
            and waiting < PENDING_PER_SOURCE_MAX
            and self._sources.take(proven, now)
            and self._proven.take(now)
        )

    def _send_cookie(
        self, mark: bytes, source: Endpoint, local: IPAddress | None, key: BootstrapKey, now: float
    ) -> None:
        self._counts["cookies"] += 1
        sealed = self._cookies.sealed(source, mark, key, now)
        datagram = header(DatagramType.BOOTSTRAP_COOKIE) + sealed
        self._outbox.append(Outgoing(datagram, source, local))


_REQUESTS = {DatagramType.BOOTSTRAP_REQUEST, DatagramType.REQUEST_WITH_COOKIE}


def _fresh(key: BootstrapKey) -> NoiseResponder:
    return NoiseResponder(psk=key, prologue=PROLOGUE)


def _split(kind: DatagramType, datagram: bytes) -> tuple[bytes, bytes, bytes]:
    """Return a request's header, its code if it has one, and its Noise message."""
    code_end = HEADER_BYTES + (CODE_BYTES if kind is DatagramType.REQUEST_WITH_COOKIE else 0)
    return datagram[:HEADER_BYTES], datagram[HEADER_BYTES:code_end], datagram[code_end:]
