"""A member's side of relays: whom to ask, what is held, what to let go of.

    wanted ──▶ ask the nearest two ──grants──▶ keep the best, let go of the others
                   ▲                              │  each is asked for again at half of its life
                   └── refused, silent, dead, ────┘
                       draining: ask another

| a relay, for one peer | means                                                                    |
| --------------------- | ------------------------------------------------------------------------ |
| asked                 | a request is on its way; after `ANSWER_TIMEOUT` another is asked as well |
| held                  | a grant of it is good; the path agent has been offered its port          |
| joined                | held, and asked for by us: it lasts as long as we say                    |
| paused                | it refused, or was silent: not asked again for a while                   |

Rule 1: a grant comes to both members of a pair, whoever has asked.  One that we have not asked for
        is offered to the path agent all the same, since the other needs us to say hello; it is
        joined when it is among the best.

Rule 2: of those held the ones with the lowest sum of round trips are kept, weighted by the relay's
        load; one that is kept already counts as `SETTLED_DISCOUNT` of that, so that two of
        about the same do not take turns.  The one in use is kept whatever it costs.

Rule 3: a relay that drains is replaced first, and let go of once it is not in use.  So is one that
        is dead: its kernel may go on forwarding, and if not, the path agent finds out sooner.

Rule 4: nothing is taken from a relay for a peer beyond `HELD_MAX`, and from nobody that may not
        relay.

What can be asked of whom is told by `relays_changed`; what is wanted, by the path agent.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from meshd.path.schedule import Schedule
from meshd.relay.wire import Draining, Gone, Grant, Reason, Refused, Release, Request
from meshd.relay.wish import ANSWER_TIMEOUT, Asked, Held, Wish
from meshd.underlay import Timer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.codec import IPAddress
    from meshd.keys import NodeId
    from meshd.relay.wire import Message

ASKED_AT_ONCE = 2  # of the nearest, at first; the peer asks as many
HELD_MAX = 4  # of one peer
ASKED_TIMES_MAX = 3
REFRESH_RETRY = 10.0
RTT_UNKNOWN = 1.0  # seconds, for the sake of order
NEAR_STEP = 0.005  # relays nearer to each other than this are told apart by their load
SETTLED_DISCOUNT = 0.8
EXPLORE_PAUSE = 600.0  # until a relay that was not among the best is tried again
SILENT_PAUSE = 30.0
PAUSES: Mapping[Reason, float] = {
    Reason.OTHER: 30.0,
    Reason.NOT_RELAYING: 60.0,
    Reason.DRAINING: 60.0,
    Reason.FULL: 60.0,
    Reason.TOO_MANY: 60.0,
    Reason.UNKNOWN_MEMBER: 3.0,  # it may not have heard yet
    Reason.TOO_OFTEN: 5.0,
}


@dataclass(frozen=True, slots=True)
class RelayView:
    """A member that may relay."""

    address: IPAddress | None  # where it is reached; None if it is only by way of another
    rtt: float | None  # seconds
    offers: bool = True  # to take new pairs, and is there to do so

    def differs(self, other: RelayView) -> bool:
        """Whether more is different than how long packets take at the moment."""
        return (self.address, self.offers) != (other.address, other.offers)


@dataclass(frozen=True, slots=True)
class Offered:
    """A port of a relay by which a peer may be reached; also when something of it changes."""

    node: NodeId
    relay: NodeId
    address: IPAddress
    port: int
    draining: bool


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The port is none any more, or not for the moment."""

    node: NodeId
    relay: NodeId
    port: int


Event: TypeAlias = Offered | Withdrawn


class Client:
    """See the module docstring."""

    def __init__(self) -> None:
        self._relays: Mapping[NodeId, RelayView] = {}
        self._draining: dict[NodeId, None] = {}  # of those in `_relays`
        self._loads: dict[NodeId, int] = {}  # of those in `_relays`, as they last said
        self._wishes: dict[NodeId, Wish] = {}
        self._due: Schedule[NodeId] = Schedule()
        self._outbox: list[tuple[Message, NodeId]] = []
        self._events: deque[Event] = deque()

    # Inputs

    def relays_changed(self, relays: Mapping[NodeId, RelayView], now: float) -> None:
        """Take who may relay, or did lately; nobody else does any longer."""
        before, self._relays = self._relays, dict(relays)
        changed = [
            relay
            for relay in dict.fromkeys((*before, *relays))
            if relay not in before or relay not in relays or before[relay].differs(relays[relay])
        ]
        if not changed:
            return
        for relay in changed:
            if relay not in relays:
                self._draining.pop(relay, None)
                self._loads.pop(relay, None)
        for node, wish in list(self._wishes.items()):
            for relay in changed:
                if relay not in relays:
                    wish.asked.pop(relay, None)
                    self._drop(node, wish, relay)
                elif relay in wish.held:
                    self._offer(node, wish, relay)
            self._review(node, wish, now)

    def offer_again(self, relay: NodeId) -> None:
        """Say anew which ports of a relay there are: they may be found elsewhere."""
        for node, wish in self._wishes.items():
            if relay in wish.held:
                self._offer(node, wish, relay)

    def want(self, node: NodeId, count: int, now: float) -> None:
        """Have so many relays ready for a peer."""
        assert count > 0
        wish = self._wishes.setdefault(node, Wish())
        fresh, wish.count = not wish.count, count
        self._review(node, wish, now, fresh=fresh)

    def unwant(self, node: NodeId, now: float) -> None:
        """Let go of what we have asked for a peer."""
        wish = self._wishes.get(node)
        if wish is None:
            return
        wish.count = 0
        for relay in [relay for relay in wish.asked if relay not in wish.held]:
            del wish.asked[relay]
            self._send(Release(node), relay)
        self._review(node, wish, now)

    def remove_peer(self, node: NodeId) -> None:
        """Forget a peer: it is no member any more, and its relays know."""
        wish = self._wishes.pop(node, None)
        self._due.discard(node)
        if wish is not None:
            for relay in list(wish.held):
                self._drop(node, wish, relay)

    def in_use(self, node: NodeId, relay: NodeId | None, now: float) -> None:
        """Take by which relay a peer is reached at present, if by any."""
        wish = self._wishes.get(node)
        if wish is not None and wish.in_use != relay:
            wish.in_use = relay
            self._review(node, wish, now)

    def silent(self, node: NodeId, relay: NodeId, now: float) -> None:
        """Take that nothing comes of a port: it may be another by now; or it is of no use."""
        wish = self._wishes.get(node)
        if wish is None or relay not in wish.held:
            return
        held = wish.held[relay]
        held.silences += 1
        if held.joined and held.silences == 1:
            self._ask(node, wish, relay, now)
        else:
            self._let_go(node, wish, relay)
            self._drop(node, wish, relay)
            wish.paused[relay] = now + SILENT_PAUSE
        self._review(node, wish, now)

    def receive(self, message: Message, relay: NodeId, now: float) -> None:
        """Handle what a member says as a relay."""
        match message:
            case Grant():
                self._on_grant(message, relay, now)
            case Refused(node, reason):
                self._on_refused(node, relay, reason, now)
            case Gone(node):
                self._on_gone(node, relay, now)
            case Draining(draining):
                self._on_draining(relay, now, draining=draining)
            case Request() | Release():
                raise AssertionError("for the other side")

    def handle_timer(self, now: float) -> None:
        """Do everything that is due."""
        while (node := self._due.pop_due(now)) is not None:
            self._advance(node, self._wishes[node], now)

    # Outputs

    def messages_to_send(self) -> list[tuple[Message, NodeId]]:
        """Take what is to be said, and to whom."""
        messages, self._outbox = self._outbox, []
        return messages

    def next_event(self) -> Event | None:
        """Take the oldest event."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline."""
        soonest = self._due.soonest()
        return None if soonest is None else Timer(soonest[0], f"relays to {soonest[1].short}")

    @property
    def idle(self) -> bool:
        """Whether no relay is of any interest at present."""
        return not self._wishes

    @property
    def in_service(self) -> frozenset[NodeId]:
        """The relays of which anything is held."""
        return frozenset(relay for wish in self._wishes.values() for relay in wish.held)

    def held(self, node: NodeId) -> tuple[NodeId, ...]:
        """Return the relays that there are for a peer."""
        wish = self._wishes.get(node)
        return () if wish is None else tuple(wish.held)

    # What relays say

    def _on_grant(self, grant: Grant, relay: NodeId, now: float) -> None:
        if relay not in self._relays or grant.other == relay:
            return
        node = grant.other
        wish = self._wishes.setdefault(node, Wish())
        asked = wish.asked.pop(relay, None)
        held = wish.held.get(relay)
        if held is None and len(wish.held) >= HELD_MAX:
            if asked is not None:
                self._send(Release(node), relay)
            return
        self._loads[relay] = grant.load
        moved = held is None or held.grant.port != grant.port
        if held is None:
            held = wish.held[relay] = Held(grant, now + grant.lifetime)
        elif moved:
            held.silences = 0
        held.grant, held.until = grant, now + grant.lifetime
        if asked is not None:
            held.joined = True
            held.refresh_at = now + grant.lifetime / 2
        wish.paused.pop(relay, None)
        if moved:
            self._offer(node, wish, relay)
        self._review(node, wish, now)

    def _on_refused(self, node: NodeId, relay: NodeId, reason: Reason, now: float) -> None:
        wish = self._wishes.get(node)
        if wish is None or wish.asked.pop(relay, None) is None:
            return
        wish.paused[relay] = now + PAUSES[reason]
        self._review(node, wish, now)

    def _on_gone(self, node: NodeId, relay: NodeId, now: float) -> None:
        wish = self._wishes.get(node)
        if wish is not None:
            self._drop(node, wish, relay)
            self._review(node, wish, now)

    def _on_draining(self, relay: NodeId, now: float, *, draining: bool) -> None:
        if relay not in self._relays or (relay in self._draining) == draining:
            return
        if draining:
            self._draining[relay] = None
        else:
            del self._draining[relay]
        for node, wish in list(self._wishes.items()):
            if relay in wish.held:
                self._offer(node, wish, relay)
            self._review(node, wish, now)

    # Deciding

    def _advance(self, node: NodeId, wish: Wish, now: float) -> None:
        """Act on the deadlines of a peer that have passed."""
        for relay, held in list(wish.held.items()):
            if held.until <= now:
                self._drop(node, wish, relay)
            elif held.refresh_at <= now:
                held.refresh_at, held.silences = now + REFRESH_RETRY, 0
                self._ask(node, wish, relay, now)
                self._explore(node, wish, now)
        for relay, asked in list(wish.asked.items()):
            if asked.at + ANSWER_TIMEOUT > now:
                continue
            if asked.times < ASKED_TIMES_MAX:
                asked.at, asked.times = now, asked.times + 1
                self._send(Request(node), relay)
            else:
                del wish.asked[relay]
                if relay not in wish.held:
                    wish.paused[relay] = now + SILENT_PAUSE
        for until in (wish.paused, wish.worse):
            for relay in [relay for relay, at in until.items() if at <= now]:
                del until[relay]
        self._review(node, wish, now)

    def _review(self, node: NodeId, wish: Wish, now: float, *, fresh: bool = False) -> None:
        """Ask for what is missing, let go of what is too much, and set the next deadline.

        `fresh`: nobody has been asked yet, though the peer may have asked those near to it.
        """
        kept = [
            relay
            for relay in wish.held
            if not self._drains(relay) and self._relays[relay].address is not None
        ]
        waiting = sum(
            asked.times == 1 and relay not in wish.held for relay, asked in wish.asked.items()
        )
        missing = max(wish.count - len(kept) - waiting, 0)
        if fresh:
            missing = max(missing, min(ASKED_AT_ONCE, HELD_MAX - len(wish.held)))
        missing_from = self._nearest(node, wish)[:missing]
        for relay in missing_from:
            self._ask(node, wish, relay, now)
        if not (waiting or missing_from):
            self._settle(node, wish, kept, now)
        soonest = min(wish.deadlines(), default=math.inf)
        if not (wish.count or wish.held):
            del self._wishes[node]
        if soonest < math.inf and node in self._wishes:
            self._due.set(node, soonest)
        else:
            self._due.discard(node)

    def _nearest(self, node: NodeId, wish: Wish) -> list[NodeId]:
        """Return who can be asked, the most promising first."""

        def order(relay: NodeId) -> tuple[bool, int, int, float, NodeId]:
            rtt = _or_unknown(self._relays[relay].rtt)
            load = self._loads.get(relay, 0)
            return relay in wish.worse, int(rtt / NEAR_STEP), load, rtt, relay

        return sorted(
            (
                relay
                for relay in self._relays
                if relay != node
                and not self._drains(relay)
                and self._relays[relay].address is not None
                and relay not in wish.held
                and relay not in wish.asked
                and relay not in wish.paused
            ),
            key=order,
        )

    def _explore(self, node: NodeId, wish: Wish, now: float) -> None:
        """Ask the nearest of those not held, lest a better one is never found."""
        nearest = self._nearest(node, wish)
        if nearest and nearest[0] not in wish.worse and len(wish.held) < HELD_MAX:
            self._ask(node, wish, nearest[0], now)

    def _settle(self, node: NodeId, wish: Wish, kept: list[NodeId], now: float) -> None:
        """Keep the best, which are joined, and let go of all others that are."""
        ranked = sorted(kept, key=lambda relay: (self._cost(wish, relay), relay))
        best = ranked[: wish.count]
        for relay, held in wish.held.items():
            held.settled = relay in best
            if held.settled:
                if not held.joined:
                    self._ask(node, wish, relay, now)
            elif held.joined and self._dispensable(wish, relay, kept):
                if wish.count and relay in kept:
                    wish.worse[relay] = now + EXPLORE_PAUSE
                self._let_go(node, wish, relay)

    def _dispensable(self, wish: Wish, relay: NodeId, kept: list[NodeId]) -> bool:
        """Whether one that is not among the best can go: one that drains may be all there is."""
        if not wish.count:
            return True
        return relay != wish.in_use and bool(kept)

    def _cost(self, wish: Wish, relay: NodeId) -> float:
        """Return what rule 2 ranks relays by."""
        held = wish.held[relay]
        if relay == wish.in_use:
            return -math.inf
        rtt = _or_unknown(self._relays[relay].rtt) + _or_unknown(held.grant.rtt)
        return rtt * (1 + held.grant.load / 100) * (SETTLED_DISCOUNT if held.settled else 1.0)

    def _drains(self, relay: NodeId) -> bool:
        return relay in self._draining or not self._relays[relay].offers

    # Acting

    def _ask(self, node: NodeId, wish: Wish, relay: NodeId, now: float) -> None:
        if relay not in wish.asked:
            wish.asked[relay] = Asked(now)
            self._send(Request(node), relay)

    def _let_go(self, node: NodeId, wish: Wish, relay: NodeId) -> None:
        """Want a relay's port no more.  It is there until the relay says that it is not."""
        held = wish.held[relay]
        if held.joined:
            held.joined, held.settled, held.refresh_at = False, False, math.inf
            wish.asked.pop(relay, None)
            self._send(Release(node), relay)

    def _drop(self, node: NodeId, wish: Wish, relay: NodeId) -> None:
        held = wish.held.pop(relay, None)
        if held is not None:
            self._events.append(Withdrawn(node, relay, held.grant.port))

    def _offer(self, node: NodeId, wish: Wish, relay: NodeId) -> None:
        address, port = self._relays[relay].address, wish.held[relay].grant.port
        if address is None:
            self._events.append(Withdrawn(node, relay, port))
        else:
            self._events.append(Offered(node, relay, address, port, self._drains(relay)))

    def _send(self, message: Message, relay: NodeId) -> None:
        self._outbox.append((message, relay))


def _or_unknown(rtt: float | None) -> float:
    return RTT_UNKNOWN if rtt is None else rtt
