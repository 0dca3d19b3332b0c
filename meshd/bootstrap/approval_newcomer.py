"""The newcomer's side of approval: asks all seeds, stays with the first that answers.

    seeking ── a welcome ──▶ asking ── the first reply ──▶ listed (a code to show)
       ▲                        │                             │
       └──── SILENCE_MAX without a reply ◀────────────────────┤
                                                              └── approved, denied: over

Rule 1: one welcome is taken, and its sender alone talked to until it falls silent.  A new session
        has a new code, and takes SILENCE_MAX at least, so that nobody in the middle tries many.

Rule 2: what is sealed by whoever gave the welcome is believed.  Whether that one is a member of
        the right mesh is for people to see: it shows our code, or it does not.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from meshd.bootstrap.approval import (
    NONCE_BYTES,
    PROLOGUE,
    PUBLIC_KEY,
    Question,
    Reply,
    ReplyVerdict,
    Session,
    commitment,
    decode_reply_untrusted,
    decode_welcome_untrusted,
    encode_hello,
    encode_question,
    open_untrusted,
    seal,
    split_untrusted,
)
from meshd.bootstrap.joiner import SEED_ENDPOINTS_MAX
from meshd.bootstrap.noise import KEY_BYTES, Initiator
from meshd.errors import BadPacket
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

    from meshd.keys import NodeId
    from meshd.wg.types import Endpoint

HELLO_INTERVAL = 2.0
QUESTION_INTERVAL = 1.0
SILENCE_MAX = 10.0
SILENT_AFTER = 5.0  # of seeking


@dataclass(frozen=True, slots=True)
class Listed:
    """A member shows our code, or somebody between us and a member shows another one."""

    code: str
    member: Endpoint


@dataclass(frozen=True, slots=True)
class Lost:
    """That member has fallen silent: it has ended, or its window has closed.  We seek again."""

    member: Endpoint


@dataclass(frozen=True, slots=True)
class Silent:
    """No seed answers; said once in each search."""


@dataclass(frozen=True, slots=True)
class Denied:
    """Somebody has said no.  The last event."""

    member: Endpoint


@dataclass(frozen=True, slots=True)
class Approved:
    """We are let in.  The last event; `token` is the body of one, to be opened by the caller."""

    token: bytes = field(repr=False)
    member: Endpoint


NewcomerEvent: TypeAlias = Listed | Lost | Silent | Denied | Approved


class _Hello(NamedTuple):
    handshake: Initiator
    nonce: bytes


@dataclass(slots=True)
class _Asking:
    keys: Session
    nonce: bytes
    code: str
    member: Endpoint
    heard_at: float
    counter: int = 0  # of the next question
    answered: int = -1  # the newest question that was
    listed: bool = False


class Newcomer:
    """See the module docstring.  `rng` must be unpredictable outside tests: `SystemRandom`."""

    def __init__(self, node: NodeId, name: str, *, rng: Random, now: float) -> None:
        self._node = node
        self._name = name
        self._rng = rng
        self._endpoints: tuple[Endpoint, ...] = ()
        self._hellos: dict[Endpoint, _Hello] = {}  # the newest to each
        self._asking: _Asking | None = None
        self._due_at = now
        self._silent_at: float | None = now + SILENT_AFTER
        self._finished = False
        self._outbox: list[Outgoing] = []
        self._events: deque[NewcomerEvent] = deque()
        self.bad_packets: Counter[str] = Counter()

    # Inputs

    def seeds_resolved(self, endpoints: Iterable[Endpoint], now: float) -> None:
        """Take the addresses of the seeds; none at all leaves those known before."""
        found = tuple(dict.fromkeys(endpoints))[:SEED_ENDPOINTS_MAX]
        if found and found != self._endpoints:
            self._endpoints = found
            if self._asking is None:
                self._due_at = now

    def receive_datagram(self, datagram: bytes, source: Endpoint, now: float) -> None:
        """Handle a welcome or a reply, which may be anything at all."""
        if self._finished:
            return
        try:
            if datagram_type_untrusted(datagram) is DatagramType.APPROVAL_WELCOME:
                self._welcome_untrusted(datagram, source, now)
            else:
                self._reply_untrusted(datagram, now)
        except BadPacket as exc:
            self.bad_packets[exc.reason] += 1

    def handle_timer(self, now: float) -> None:
        """Do everything that is due."""
        if self._finished:
            return
        if self._silent_at is not None and now >= self._silent_at:
            self._silent_at = None
            self._events.append(Silent())
        if self._asking is not None and now >= self._asking.heard_at + SILENCE_MAX:
            self._seek_again(self._asking, now)
        if now < self._due_at:
            return
        if self._asking is not None:
            self._ask(self._asking, now)
        else:
            self._greet(now)

    # Outputs

    def datagrams_to_send(self) -> list[Outgoing]:
        """Take the queued datagrams."""
        datagrams, self._outbox = self._outbox, []
        return datagrams

    def next_event(self) -> NewcomerEvent | None:
        """Take the oldest event."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline; None once it is over."""
        if self._finished:
            return None
        timers = [Timer(self._due_at, "ask for approval")]
        if self._silent_at is not None:
            timers.append(Timer(self._silent_at, "nobody answers"))
        if self._asking is not None:
            timers.append(Timer(self._asking.heard_at + SILENCE_MAX, "the member is silent"))
        return min(timers)

    @property
    def listed(self) -> Listed | None:
        """The code to show, while there is one."""
        asking = self._asking
        return Listed(asking.code, asking.member) if asking is not None and asking.listed else None

    # Inside

    def _greet(self, now: float) -> None:
        for endpoint in self._endpoints:
            handshake = Initiator(
                psk=PUBLIC_KEY, prologue=PROLOGUE, ephemeral=self._rng.randbytes(KEY_BYTES)
            )
            nonce = self._rng.randbytes(NONCE_BYTES)
            hello = handshake.write_request(encode_hello(commitment(nonce)))
            self._hellos[endpoint] = _Hello(handshake, nonce)
            datagram = header(DatagramType.APPROVAL_HELLO) + hello
            self._outbox.append(Outgoing(datagram, endpoint, None))
        self._due_at = now + HELLO_INTERVAL

    def _welcome_untrusted(self, datagram: bytes, source: Endpoint, now: float) -> None:
        hello = self._hellos.get(source)
        if hello is None or self._asking is not None:
            raise BadPacket("welcome to no hello of ours")
        payload, _ = hello.handshake.read_answer_untrusted(datagram[HEADER_BYTES:])
        member_nonce = decode_welcome_untrusted(payload)
        self._hellos.clear()
        keys = Session.after(hello.handshake)
        code = keys.code(hello.nonce, member_nonce)
        self._asking = _Asking(keys, hello.nonce, code, source, heard_at=now)
        self._silent_at = None
        self._ask(self._asking, now)

    def _ask(self, asking: _Asking, now: float) -> None:
        question = Question(asking.nonce, self._name, self._node)
        datagram = seal(
            DatagramType.APPROVAL_QUESTION,
            asking.keys.reference,
            asking.keys.newcomer_key,
            asking.counter,
            encode_question(question),
        )
        asking.counter += 1
        self._outbox.append(Outgoing(datagram, asking.member, None))
        self._due_at = now + QUESTION_INTERVAL

    def _reply_untrusted(self, datagram: bytes, now: float) -> None:
        asking = self._asking
        reference, counter = split_untrusted(datagram, DatagramType.APPROVAL_REPLY)
        if asking is None or reference != asking.keys.reference:
            raise BadPacket("approval reply to no question of ours")
        reply = decode_reply_untrusted(open_untrusted(datagram, asking.keys.member_key, counter))
        if counter <= asking.answered:
            raise BadPacket("approval reply repeated")
        asking.answered = counter
        asking.heard_at = now
        self._obey(asking, reply)

    def _obey(self, asking: _Asking, reply: Reply) -> None:
        match reply.verdict:
            case ReplyVerdict.WAIT:
                if not asking.listed:
                    asking.listed = True
                    self._events.append(Listed(asking.code, asking.member))
            case ReplyVerdict.DENIED:
                self._finished = True
                self._events.append(Denied(asking.member))
            case ReplyVerdict.APPROVED:
                self._finished = True
                self._events.append(Approved(reply.token, asking.member))

    def _seek_again(self, asking: _Asking, now: float) -> None:
        if asking.listed:
            self._events.append(Lost(asking.member))
        self._asking = None
        self._due_at = now
        self._silent_at = now + SILENT_AFTER
