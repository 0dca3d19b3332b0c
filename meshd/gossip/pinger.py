"""Pings, their acks, and pings on behalf of others.

Rule 1: we ping for another only a member that we have heard: elsewhere a ping would but start a
        handshake into the void.  Whoever asks gets an answer in either case, ACK or NACK, so that
        it can tell a silent target from a silent member in between (Lifeguard, section IV-A).

Rule 2: a nack is sent while the requester is still waiting for it.

Rule 3: a round trip is measured by the acks to our own pings, each of which has a sequence of its
        own, so that an ack always tells which ping it answers.  What we measure while we are in
        trouble ourselves (see `health`), or while many meet at once, says nothing of others.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from meshd.gossip.events import PingAnswered
from meshd.gossip.pings import PingPurpose, PingTable, SentPing
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import Message, MessageType

if TYPE_CHECKING:
    from random import Random

    from meshd.gossip.config import GossipConfig
    from meshd.gossip.health import Health
    from meshd.gossip.member import Member
    from meshd.gossip.membership import Membership
    from meshd.gossip.outbox import Outbox
    from meshd.gossip.timers import Timers
    from meshd.keys import NodeId

CROWD_MIN = 8  # members met
CROWD_INTERVAL = 1.0  # in so many seconds
# Pings at ordinary times to whoever's turn it is: what is typical of the mesh is measured by them.
_TYPICAL = frozenset({PingPurpose.PROBE, PingPurpose.WATCH})
_RELAY_SHARE = 0.8  # of what the target is allowed (rule 2)


class Pinger:
    """Part of a `Node`."""

    def __init__(
        self,
        membership: Membership,
        outbox: Outbox,
        timers: Timers,
        health: Health,
        *,
        config: GossipConfig,
        rng: Random,
    ) -> None:
        self._membership = membership
        self._outbox = outbox
        self._timers = timers
        self._health = health
        self._config = config
        self._pings = PingTable(rng)
        self._measured_from = -math.inf
        self._contacts: deque[float] = deque(maxlen=CROWD_MIN)  # when they were pinged

    def __len__(self) -> int:
        return len(self._pings)

    def ping(self, target: NodeId, purpose: PingPurpose, now: float) -> int:
        """Send a ping, unless the target is no member.  Return its sequence."""
        crowded = purpose is PingPurpose.CONTACT and self._is_crowd(now)
        sequence = self._pings.add(SentPing(target, now, purpose, crowded=crowded))
        if self._membership.get(target) is not None:
            self._outbox.send_piggybacked(target, MessageType.PING, sequence)
        return sequence

    def ping_over_stream(self, target: NodeId, now: float) -> None:
        """Have a ping sent over TCP."""
        sequence = self._pings.add(SentPing(target, now, PingPurpose.STREAM))
        self._outbox.open_stream(target, sequence, self._config.stream_timeout)

    def handle_ack(self, member: Member, message: Message, now: float) -> SentPing | None:
        """Match an ack to the ping it answers.  Return that if it was our own."""
        ping = self._pings.answered(message.sequence, member.node)
        if ping is None:
            return None
        if ping.purpose is PingPurpose.RELAYED:
            self._timers.cancel(TimerKind.RELAY, message.sequence)
            self._answer_requester(ping, MessageType.ACK)
            return None
        rtt = now - ping.sent_at
        if self._is_measure(ping):
            self._membership.measured(member, rtt, typical=ping.purpose in _TYPICAL)
        if ping.purpose is PingPurpose.OPERATOR:
            self._membership.events.append(PingAnswered(member.node, message.sequence, rtt))
        return ping

    def handle_ping_req(self, source: NodeId, message: Message, now: float) -> None:
        """Ping a member because another asks (rule 1)."""
        target = message.target
        assert target is not None
        ping = SentPing(target, now, PingPurpose.RELAYED, source, message.sequence)
        member = self._membership.get(target)
        if member is None or not member.heard or target == source or self._pings.relay_full:
            self._answer_requester(ping, MessageType.NACK)
            return
        sequence = self._pings.add(ping)
        self._outbox.send_piggybacked(target, MessageType.PING, sequence)
        wait = _RELAY_SHARE * self._membership.allowance(target)
        self._timers.set(TimerKind.RELAY, now + wait, sequence)

    def give_up_relayed(self, sequence: int) -> None:
        """Tell whoever asked that its target has not answered us either."""
        ping = self._pings.pop(sequence)
        if ping is not None:
            self._answer_requester(ping, MessageType.NACK)

    def _is_crowd(self, now: float) -> bool:
        """Whether we have begun to meet more than a few members just now."""
        self._contacts.append(now)
        return now - self._contacts[0] < CROWD_INTERVAL and len(self._contacts) == CROWD_MIN

    def _is_measure(self, ping: SentPing) -> bool:
        if ping.purpose is PingPurpose.STREAM or self._health.score > 0:
            return False
        return ping.sent_at >= self._measured_from and not ping.crowded

    def stumbled(self, now: float) -> None:
        """Measure nothing by what was sent before: we did not run in the meantime."""
        self._measured_from = now

    def _answer_requester(self, ping: SentPing, type_: MessageType) -> None:
        if ping.requester is not None and self._membership.get(ping.requester) is not None:
            answer = Message(type_, ping.requester_sequence, target=ping.target)
            self._outbox.send(ping.requester, answer)
