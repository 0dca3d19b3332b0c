"""The member's side of approval: a window, and those who ask meanwhile.

    ──────┬──────── open ────────────────────────────────┬────── closed: no datagram is answered
          │ hello ▶ half-open ── HALF_OPEN_LIFETIME ──▶ gone
          │            │ first question, with the nonce that was committed to
          │            ▼
          │         pending ──── SILENCE_MAX without a question, or the window ends ──▶ gone
          │            │ approve, deny
          │            ▼
          │         decided ──── SILENCE_MAX without a question ──▶ gone, whatever the window does

Rule 1: without a window nothing is answered, nothing is opened, nothing is kept.

Rule 2: a hello from a forged source fills a half-open place at most: whoever is pending has
        received our welcome.  When the half-open are too many the oldest goes.

Rule 3: all that is kept is bounded, in all and for each source: an IPv4 address, an IPv6 /64.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.bootstrap.approval import (
    NONCE_BYTES,
    PROLOGUE,
    PUBLIC_KEY,
    Question,
    Reply,
    ReplyVerdict,
    Session,
    commitment,
    decode_hello_untrusted,
    decode_question_untrusted,
    encode_reply,
    encode_welcome,
    open_untrusted,
    seal,
    split_untrusted,
)
from meshd.bootstrap.noise import KEY_BYTES, Responder
from meshd.errors import BadPacket
from meshd.underlay import (
    DATAGRAM_BYTES_MAX,
    HEADER_BYTES,
    DatagramType,
    Outgoing,
    Timer,
    TokenBucket,
    datagram_type_untrusted,
    header,
)

if TYPE_CHECKING:
    from random import Random

    from meshd.codec import IPAddress
    from meshd.keys import NodeId
    from meshd.wg.types import Endpoint

PENDING_MAX = 16
HALF_OPEN_MAX = 64
SESSIONS_PER_SOURCE_MAX = 4
HALF_OPEN_LIFETIME = 10.0
SILENCE_MAX = 15.0  # a newcomer asks every second

# Each costs a key agreement, 0.1 ms; and is one try of somebody in the middle.
HELLOS_PER_SECOND_MAX = 10
HELLOS_BURST_MAX = 20
QUESTIONS_PER_SECOND_MAX = 4  # of one session
QUESTIONS_BURST_MAX = 8


@dataclass(frozen=True, slots=True)
class Pending:
    """Somebody who waits for a decision, or for the news of it.  Only the code is proven."""

    code: str
    name: str
    node: NodeId
    source: Endpoint
    asked_at: float  # monotonic
    verdict: ReplyVerdict


@dataclass(slots=True)
class _Session:
    keys: Session
    committed: bytes
    member_nonce: bytes
    source: Endpoint
    began_at: float
    limit: TokenBucket
    heard_at: float
    counter: int = -1
    question: Question | None = None  # None: half-open
    code: str = ""
    reply: Reply = field(default_factory=lambda: Reply(ReplyVerdict.WAIT))

    @property
    def half_open(self) -> bool:
        return self.question is None


class ApprovalWindow:
    """See the module docstring.  `rng` must be unpredictable outside tests: `SystemRandom`."""

    def __init__(self, *, rng: Random, now: float) -> None:
        self._rng = rng
        self._until: float | None = None
        self._sessions: dict[bytes, _Session] = {}  # by reference, oldest first
        self._hellos = TokenBucket(rate=HELLOS_PER_SECOND_MAX, burst=HELLOS_BURST_MAX, now=now)
        self._outbox: list[Outgoing] = []
        self._news: deque[Pending] = deque()
        self.bad_packets: Counter[str] = Counter()

    # The operator

    @property
    def until(self) -> float | None:
        """When the window closes, monotonic; None while it is closed."""
        return self._until

    def open(self, now: float, span: float) -> None:
        """Let newcomers ask for so many seconds from now on."""
        self._until = now + span

    def close(self) -> None:
        """Answer nobody any more but those about whom there is a decision."""
        self._until = None
        self._sessions = {
            reference: session
            for reference, session in self._sessions.items()
            if session.reply.verdict is not ReplyVerdict.WAIT
        }

    def pending(self) -> tuple[Pending, ...]:
        """Return those who have asked, the first one first."""
        return tuple(_pending(s) for s in self._sessions.values() if not s.half_open)

    def decide(self, code: str, reply: Reply) -> bool:
        """Have the newcomer with a code told.  Return whether one waits for it."""
        for session in self._sessions.values():
            if session.code == code and session.reply.verdict is ReplyVerdict.WAIT:
                session.reply = reply
                return True
        return False

    # Datagrams and time

    def receive_datagram(
        self, datagram: bytes, source: Endpoint, local: IPAddress | None, now: float
    ) -> bool:
        """Handle a hello or a question, which may be anything at all.  Return whether it is one."""
        self.handle_timer(now)
        try:
            self._receive_untrusted(datagram, source, local, now)
        except BadPacket as exc:
            self.bad_packets[exc.reason] += 1
            return False
        return True

    def handle_timer(self, now: float) -> None:
        """Let go of those whose time is over."""
        if self._until is not None and now >= self._until:
            self.close()
        over = [ref for ref, session in self._sessions.items() if now >= _ends_at(session)]
        for reference in over:
            del self._sessions[reference]

    def datagrams_to_send(self) -> list[Outgoing]:
        """Take the queued datagrams."""
        datagrams, self._outbox = self._outbox, []
        return datagrams

    def next_news(self) -> Pending | None:
        """Take the oldest newcomer that nobody has been told of."""
        return self._news.popleft() if self._news else None

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline."""
        timers = [Timer(_ends_at(s), "a newcomer is silent") for s in self._sessions.values()]
        if self._until is not None:
            timers.append(Timer(self._until, "the window for approval closes"))
        return min(timers, default=None)

    # Inside

    def _receive_untrusted(
        self, datagram: bytes, source: Endpoint, local: IPAddress | None, now: float
    ) -> None:
        if len(datagram) != DATAGRAM_BYTES_MAX:
            raise BadPacket("approval datagram of the wrong length")
        if datagram_type_untrusted(datagram) is DatagramType.APPROVAL_HELLO:
            self._hello_untrusted(datagram, source, local, now)
        else:
            self._question_untrusted(datagram, source, local, now)

    def _hello_untrusted(
        self, datagram: bytes, source: Endpoint, local: IPAddress | None, now: float
    ) -> None:
        if self._until is None:
            raise BadPacket("approval asked for, and no window is open")
        if not self._hellos.take(now):
            raise BadPacket("too many ask for approval at once")
        handshake = Responder(psk=PUBLIC_KEY, prologue=PROLOGUE)
        payload, _ = handshake.read_request_untrusted(datagram[HEADER_BYTES:])
        committed = decode_hello_untrusted(payload)
        self._make_room_untrusted(source)
        handshake.begin_answer_untrusted(self._rng.randbytes(KEY_BYTES))
        nonce = self._rng.randbytes(NONCE_BYTES)
        welcome = header(DatagramType.APPROVAL_WELCOME) + handshake.write_answer(
            encode_welcome(nonce)
        )
        keys = Session.after(handshake)
        limit = TokenBucket(rate=QUESTIONS_PER_SECOND_MAX, burst=QUESTIONS_BURST_MAX, now=now)
        self._sessions[keys.reference] = _Session(
            keys, committed, nonce, source, now, limit, heard_at=now
        )
        self._outbox.append(Outgoing(welcome, source, local))

    def _question_untrusted(
        self, datagram: bytes, source: Endpoint, local: IPAddress | None, now: float
    ) -> None:
        reference, counter = split_untrusted(datagram, DatagramType.APPROVAL_QUESTION)
        session = self._sessions.get(reference)
        if session is None:
            raise BadPacket("approval question of an unknown session")
        if counter <= session.counter:
            raise BadPacket("approval question repeated")
        question = decode_question_untrusted(
            open_untrusted(datagram, session.keys.newcomer_key, counter)
        )
        # Only what opens counts: the reference can be seen on the wire, and forged.
        if not session.limit.take(now):
            raise BadPacket("too many approval questions at once")
        session.counter = counter
        if session.half_open:
            self._take_untrusted(session, question)
        session.heard_at = now
        reply = seal(
            DatagramType.APPROVAL_REPLY,
            reference,
            session.keys.member_key,
            counter,
            encode_reply(session.reply),
        )
        assert len(reply) <= DATAGRAM_BYTES_MAX
        self._outbox.append(Outgoing(reply, source, local))

    def _take_untrusted(self, session: _Session, question: Question) -> None:
        """Make a half-open session a pending one."""
        if commitment(question.nonce) != session.committed:
            raise BadPacket("approval nonce is not the one committed to")
        if len(self.pending()) >= PENDING_MAX:
            raise BadPacket("too many wait for approval")
        code = session.keys.code(question.nonce, session.member_nonce)
        if any(other.code == code for other in self._sessions.values()):
            raise BadPacket("approval code is taken")
        session.question, session.code = question, code
        self._news.append(_pending(session))

    def _make_room_untrusted(self, source: Endpoint) -> None:
        """Keep one more half-open session possible, in all and for its source.

        The oldest half-open goes, so that forged hellos cannot keep out whoever they pretend to be.
        """
        network = _network(source)
        same = {ref: s for ref, s in self._sessions.items() if _network(s.source) == network}
        if len(same) >= SESSIONS_PER_SOURCE_MAX:
            self._drop_half_open_untrusted(same)
        elif sum(session.half_open for session in self._sessions.values()) >= HALF_OPEN_MAX:
            self._drop_half_open_untrusted(self._sessions)

    def _drop_half_open_untrusted(self, sessions: dict[bytes, _Session]) -> None:
        oldest = next((ref for ref, session in sessions.items() if session.half_open), None)
        if oldest is None:
            raise BadPacket("too many ask for approval from one source")
        del self._sessions[oldest]


def _pending(session: _Session) -> Pending:
    assert session.question is not None
    return Pending(
        code=session.code,
        name=session.question.name,
        node=session.question.node,
        source=session.source,
        asked_at=session.began_at,
        verdict=session.reply.verdict,
    )


def _ends_at(session: _Session) -> float:
    if session.half_open:
        return session.began_at + HALF_OPEN_LIFETIME
    return session.heard_at + SILENCE_MAX


def _network(source: Endpoint) -> bytes:
    return source.address.packed[: 4 if source.address.version == 4 else 8]
