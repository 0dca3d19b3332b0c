"""When to ask the router for our port, by which protocol, and what its answer is worth.

    no NAT ◀── gateway_changed ──▶ asking: PCP ─silent─▶ UPnP ─silent─▶ none: again after a pause
                                     │  └─ speaks the older version ─▶ NAT-PMP
                                     ▼
        another NAT behind it ◀── mapped ── half of its life ──▶ asked again, by the same protocol
                                     └── release: told that it is not needed any more

Rule 1: only the default router is asked, and only what comes from its address, and answers the
        question that is open, is looked at.  (The shell sees to the address.)

Rule 2: one mapping, of WireGuard's port.  It ends by `release`, or when nobody renews it.

Rule 3: an outside address that others cannot reach is no candidate: a router behind another NAT, or
        one that lies.  Such a mapping is given back.

Rule 4: a router that has lost its mappings (see `epoch`) is asked again at once, but at most
        every `ANNOUNCED_INTERVAL`.

Rule 5: a mapping that is not renewed counts until its life is over; meanwhile it is asked for again
        at half of what is left.

What a router says may be a lie, of anybody in the LAN: it leads to a candidate that nobody proves.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.errors import BadPacket
from meshd.portmap import natpmp, pcp, ssdp, upnp
from meshd.portmap.actions import Ask, Call, Search
from meshd.portmap.epoch import Epoch
from meshd.portmap.gateway import behind_nat, reachable
from meshd.underlay import Timer
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address
    from random import Random

    from meshd.codec import IPNetwork
    from meshd.portmap.actions import Action
    from meshd.portmap.gateway import Gateway

LIFETIME = 7200  # seconds; RFC 6886 section 3.3
LIFETIME_MAX = 86400  # of what a router may say: RFC 6887 section 15
REPEAT_AFTER = 0.25  # RFC 6886 section 3.1; then twice as long, each time
TRIES_MAX = 4
UPNP_TIMEOUT = 20.0  # for several HTTP requests, to a router's slow little computer
PORTS_TRIED_MAX = 4  # while UPnP says that a port is another machine's
RENEW_WAIT_MIN = 15.0
PAUSE_MIN, PAUSE_MAX = 60.0, 3600.0  # after nobody answered, or the answer was no
DOUBLE_NAT_PAUSE = 1800.0
ANNOUNCED_INTERVAL = 10.0


class Method(enum.StrEnum):
    """The protocols, the best first."""

    PCP = "PCP"
    NAT_PMP = "NAT-PMP"
    UPNP = "UPnP"


class State(enum.StrEnum):
    """How far it has come."""

    UNNEEDED = "unneeded"  # no router, or an address of ours that is not behind NAT
    ASKING = "asking"
    MAPPED = "mapped"
    DOUBLE_NAT = "double-nat"
    REFUSED = "refused"
    SILENT = "silent"
    RELEASED = "released"


class _Question(enum.Enum):
    """What we wait for."""

    MAP = enum.auto()
    ADDRESS = enum.auto()  # NAT-PMP says it apart
    SEARCH = enum.auto()
    CALL = enum.auto()


@dataclass(frozen=True, slots=True)
class Mapping:
    """A port of the router's that leads to ours."""

    endpoint: Endpoint
    method: Method
    expires_at: float | None  # None: not before it is ended


@dataclass(frozen=True, slots=True)
class MapperView:
    """What is known at present."""

    state: State
    method: Method | None  # by which it is mapped
    endpoint: Endpoint | None
    outside: IPv4Address | None  # what the router calls its outside
    gateway: Gateway | None
    expires_at: float | None
    reason: str  # for REFUSED: which protocol said no, and why


class Mapper:
    """See the module docstring."""

    def __init__(
        self, port: int, nonce: bytes, *, excluded: Iterable[IPNetwork], rng: Random
    ) -> None:
        """`nonce` is PCP's proof that a mapping is ours: the same in each run, and a secret.

        `excluded` are the mesh's own networks.
        """
        self._port = port
        self._nonce = nonce
        self._excluded = tuple(excluded)
        self._rng = rng
        self._gateway: Gateway | None = None
        self._state = State.UNNEEDED
        self._reason = ""
        self._outside: IPv4Address | None = None
        self._mapping: Mapping | None = None
        self._method = Method.PCP
        self._question: _Question | None = None
        self._tries = 0
        self._wanted = LIFETIME  # of the open question; 0 ends the mapping
        self._wished_port = port
        self._ports_tried = 0
        self._location: str | None = None
        self._at: float | None = None  # when something is due: a repetition, a renewal, another try
        self._pause = PAUSE_MIN
        self._epoch = Epoch()
        self._renewed_early_at = float("-inf")
        self._actions: deque[Action] = deque()
        self.bad_packets: Counter[str] = Counter()

    # Inputs

    def gateway_changed(self, gateway: Gateway | None, now: float) -> None:
        """Take the router that IPv4 datagrams leave by; None where there is none."""
        if gateway == self._gateway or self._state is State.RELEASED:
            return
        self._gateway = gateway
        self._mapping = self._question = None
        self._location = self._outside = None
        self._epoch.forget()
        self._pause = PAUSE_MIN
        if gateway is None or not behind_nat(gateway.source):
            self._state, self._at = State.UNNEEDED, None
            return
        self._begin(now)

    def receive_datagram(self, data: bytes, now: float) -> None:
        """Handle what came from the router's port for PCP and NAT-PMP."""
        try:
            told = _decode_untrusted(data)
        except BadPacket as exc:
            self.bad_packets[exc.reason] += 1
            return
        if isinstance(told, pcp.Mapped | pcp.Refused | pcp.Announced):
            self._on_pcp(told, now)
        else:
            self._on_natpmp(told, now)

    def receive_announcement(self, data: bytes, now: float) -> None:
        """Handle what the router tells everybody of itself."""
        try:
            told = _decode_untrusted(data)
        except BadPacket as exc:
            self.bad_packets[exc.reason] += 1
            return
        if not isinstance(told, natpmp.ExternalAddress | pcp.Announced):
            return
        if self._epoch.hear(told.epoch, now) and now - self._renewed_early_at >= ANNOUNCED_INTERVAL:
            self._renewed_early_at = now
            self._ask_again(now)

    def receive_search_answer(self, data: bytes, now: float) -> None:
        """Handle what came from the router's address to our search."""
        if self._question is not _Question.SEARCH or self._gateway is None:
            return  # it answers each repetition
        try:
            self._location = ssdp.location_untrusted(data, self._gateway.address)
        except BadPacket as exc:
            self.bad_packets[exc.reason] += 1
            return
        self._ports_tried = 0
        self._call(now)

    def upnp_answered(self, line: bytes, now: float) -> None:
        """Take what the UPnP process said: nothing, if it came to nothing."""
        if self._question is not _Question.CALL:
            return
        try:
            answer = upnp.answer_untrusted(line)
        except BadPacket as exc:
            self.bad_packets[exc.reason] += 1
            self._unanswered(now)
            return
        if isinstance(answer, upnp.Mapped):
            self._granted(answer.address, answer.external_port, answer.lifetime or None, now)
        elif answer.error == upnp.MISSING:
            self._unanswered(now)
        elif answer.error == upnp.CONFLICT and self._ports_tried < PORTS_TRIED_MAX:
            self._wished_port = self._rng.randint(1024, 0xFFFF)
            self._call(now)
        else:
            self._refused(Method.UPNP, answer.error, now)

    def unreachable(self, now: float) -> None:
        """Take that the router has no such port: it speaks neither PCP nor NAT-PMP."""
        if self._question in {_Question.MAP, _Question.ADDRESS}:
            self._next_method(now)

    def resumed(self, now: float) -> None:
        """Take that we have been away for a while: the mapping may have ended meanwhile."""
        self._pause = PAUSE_MIN
        self._ask_again(now)

    def release(self, now: float) -> None:
        """End the mapping; `done` says when there is nothing more to say."""
        mapping, self._mapping = self._mapping, None
        self._state = State.RELEASED
        if mapping is not None:
            self._end(mapping, now)
        elif self._question not in {_Question.MAP, _Question.CALL}:
            self._question = self._at = None
        # What is on its way to be granted is ended when it is.

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        if self._at is None or now < self._at:
            return
        if self._question is not None:
            self._repeat(now)
        elif self._mapping is not None:
            self._renew(now)
        else:
            self._begin(now)

    # Outputs

    def actions(self) -> list[Action]:
        """Take what is to be done."""
        actions = list(self._actions)
        self._actions.clear()
        return actions

    def get_timer(self) -> Timer:
        """Return the next deadline and its reason."""
        if self._at is None:
            return Timer(float("inf"), "no router to be asked")
        waits = "an answer" if self._question is not None else "the next question"
        return Timer(self._at, f"port mapping: {waits}")

    @property
    def endpoint(self) -> Endpoint | None:
        """Where others reach our port by the router's."""
        return None if self._mapping is None else self._mapping.endpoint

    @property
    def done(self) -> bool:
        """Whether no answer is waited for."""
        return self._question is None

    def view(self) -> MapperView:
        """Return what is known at present."""
        mapping = self._mapping
        return MapperView(
            state=self._state,
            method=None if mapping is None else mapping.method,
            endpoint=self.endpoint,
            outside=self._outside,
            gateway=self._gateway,
            expires_at=None if mapping is None else mapping.expires_at,
            reason=self._reason if self._state is State.REFUSED else "",
        )

    # Questions

    def _begin(self, now: float) -> None:
        self._state = State.ASKING
        self._reason = ""
        self._wanted = LIFETIME
        self._wished_port = self._port
        self._ask(Method.PCP, _Question.MAP, now)

    def _ask_again(self, now: float) -> None:
        """Renew the mapping now, or have another try at getting one."""
        if self._gateway is None or self._state in {State.UNNEEDED, State.RELEASED}:
            return
        if self._mapping is not None:
            self._renew(now)
        elif self._question is None:
            self._begin(now)

    def _renew(self, now: float) -> None:
        mapping = self._mapping
        assert mapping is not None
        if mapping.expires_at is not None and now >= mapping.expires_at:
            self._mapping = None
            self._begin(now)
            return
        self._wanted = LIFETIME
        self._wished_port = mapping.endpoint.port
        # A router that speaks UPnP may have moved its control URL.
        question = _Question.SEARCH if mapping.method is Method.UPNP else _Question.MAP
        self._ask(mapping.method, question, now)

    def _ask(self, method: Method, question: _Question, now: float) -> None:
        self._method, self._question, self._tries = method, question, 0
        self._repeat(now)

    def _repeat(self, now: float) -> None:
        """Send the open question once more, unless that was often enough."""
        assert self._gateway is not None
        if self._tries >= TRIES_MAX or self._question is _Question.CALL:
            self._unanswered(now)
            return
        match self._question:
            case _Question.SEARCH:
                for target in (str(self._gateway.address), ssdp.MULTICAST):
                    self._actions.append(Search(ssdp.search_request(target), target))
            case _Question.ADDRESS:
                self._actions.append(Ask(natpmp.address_request()))
            case _:
                self._actions.append(Ask(self._map_request(self._method, self._wanted)))
        self._at = now + REPEAT_AFTER * 2.0**self._tries
        self._tries += 1

    def _map_request(self, method: Method, lifetime: int) -> bytes:
        assert self._gateway is not None
        if method is Method.PCP:
            source = self._gateway.source
            return pcp.map_request(source, self._nonce, self._port, self._wished_port, lifetime)
        return natpmp.map_request(self._port, self._wished_port, lifetime)

    def _call(self, now: float) -> None:
        assert self._gateway is not None
        assert self._location is not None
        self._question = _Question.CALL
        self._ports_tried += 1
        self._at = now + UPNP_TIMEOUT
        line = upnp.question(
            self._location,
            self._gateway,
            self._port,
            external_port=self._wished_port,
            lifetime=self._wanted,
        )
        self._actions.append(Call(line))

    def _end(self, mapping: Mapping, now: float) -> None:
        """Give a mapping back.  Nothing depends on the answer."""
        self._wanted = 0
        self._wished_port = mapping.endpoint.port
        if mapping.method is Method.UPNP:
            self._ports_tried = 0
            self._method = Method.UPNP
            self._call(now)
        else:
            self._ask(mapping.method, _Question.MAP, now)

    # Answers

    def _on_pcp(self, answer: pcp.Answer, now: float) -> None:
        asked = self._question is _Question.MAP and self._method is Method.PCP
        match answer:
            case pcp.Mapped() if asked and answer.nonce == self._nonce:
                self._epoch.hear(answer.epoch, now)
                if self._answers(answer.internal_port, answer.lifetime):
                    address = answer.external_address
                    self._granted(address, answer.external_port, answer.lifetime, now)
            case pcp.Refused(pcp.Result.UNSUPPORTED_VERSION) if asked:
                self._next_method(now)
            case pcp.Refused() if asked:
                self._refused(Method.PCP, answer.result.name, now, lasts=float(answer.lifetime))
            case _:
                self.bad_packets["PCP answer to no question of ours"] += 1

    def _on_natpmp(self, answer: natpmp.Answer, now: float) -> None:
        older = self._question is _Question.MAP and self._method is Method.PCP
        asked = self._method is Method.NAT_PMP
        match answer:
            case natpmp.Refused(natpmp.Result.UNSUPPORTED_VERSION) if older and self._wanted:
                self._ask(Method.NAT_PMP, _Question.ADDRESS, now)
            case natpmp.ExternalAddress() if asked and self._question is _Question.ADDRESS:
                self._epoch.hear(answer.epoch, now)
                self._outside = answer.address
                self._ask(Method.NAT_PMP, _Question.MAP, now)
            case natpmp.Mapped() if asked and self._question is _Question.MAP:
                assert self._outside is not None
                self._epoch.hear(answer.epoch, now)
                if self._answers(answer.internal_port, answer.lifetime):
                    self._granted(self._outside, answer.external_port, answer.lifetime, now)
            case natpmp.Refused() if asked and self._question is not None:
                self._refused(Method.NAT_PMP, answer.result.name, now)
            case _:
                self.bad_packets["NAT-PMP answer to no question of ours"] += 1

    def _answers(self, internal_port: int, lifetime: int) -> bool:
        """Whether an answer is to the question as it was: to begin or to end, and of our port."""
        return internal_port == self._port and bool(lifetime) == bool(self._wanted)

    def _granted(self, address: IPv4Address, port: int, lifetime: int | None, now: float) -> None:
        """Take a mapping, or the end of one.  `lifetime` None: until it is ended."""
        self._question = self._at = None
        if not self._wanted:
            if self._state is State.DOUBLE_NAT:
                self._at = now + DOUBLE_NAT_PAUSE
            return
        self._outside = address
        self._pause = PAUSE_MIN
        life = float(LIFETIME if lifetime is None else min(lifetime, LIFETIME_MAX))
        expires_at = None if lifetime is None else now + life
        mapping = Mapping(Endpoint(address, port), self._method, expires_at)
        if self._state is State.RELEASED:
            self._end(mapping, now)
        elif not reachable(address, port, self._excluded):
            self._mapping = None
            self._state = State.DOUBLE_NAT
            self._end(mapping, now)
        else:
            self._mapping = mapping
            self._state = State.MAPPED
            # Between a half and five eighths: RFC 6887 section 11.2.1.
            half = life * (0.5 + 0.125 * self._rng.random())
            self._at = now + min(max(half, RENEW_WAIT_MIN), life)

    def _refused(self, method: Method, reason: str, now: float, *, lasts: float = 0.0) -> None:
        """Take a no.  The next protocol has its own reasons."""
        self._reason = f"{method}: {reason.lower().replace('_', ' ')}"
        if method is Method.UPNP or not self._searching:
            self._unanswered(now)
        else:
            self._pause = max(self._pause, min(lasts, PAUSE_MAX))
            self._next_method(now)

    def _next_method(self, now: float) -> None:
        """Go on where PCP and NAT-PMP have led to nothing."""
        if self._searching:
            self._ask(Method.UPNP, _Question.SEARCH, now)
        else:
            self._unanswered(now)

    @property
    def _searching(self) -> bool:
        """Whether there is no mapping yet, and one is wanted."""
        return self._state is State.ASKING and self._mapping is None

    def _unanswered(self, now: float) -> None:
        """Take that there was no answer, or none of use."""
        question, self._question, self._at = self._question, None, None
        if self._state is State.RELEASED:
            return
        if self._state is State.DOUBLE_NAT:
            self._at = now + DOUBLE_NAT_PAUSE
        elif self._mapping is not None:
            expires_at = self._mapping.expires_at
            left = PAUSE_MAX if expires_at is None else max(expires_at - now, 0.0)
            # No later than its end, so that nobody is told of one that has ended.
            self._at = now + min(max(left / 2, RENEW_WAIT_MIN), left)
        elif question in {_Question.MAP, _Question.ADDRESS} and self._method is not Method.UPNP:
            self._next_method(now)
        else:
            self._state = State.REFUSED if self._reason else State.SILENT
            self._at = now + self._pause * (0.75 + 0.5 * self._rng.random())
            self._pause = min(2 * self._pause, PAUSE_MAX)


def _decode_untrusted(data: bytes) -> pcp.Answer | natpmp.Answer:
    """Read what came from the router, in whichever version it speaks."""
    if data[:1] == bytes([natpmp.VERSION]):
        return natpmp.decode_untrusted(data)
    return pcp.decode_untrusted(data)
