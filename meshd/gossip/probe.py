"""Who is pinged next, and how its silence is judged.

    0 s                     probe_timeout                         probe_interval
    │ PING ────────────────▶│ no ack: PING_REQ to k others        │ judged
    │                       │   each PINGs the member for us      │
    │◀─── ACK               │◀─── ACK (target) or NACK            │
    │   alive               │                                     │
    ├───────────────────────┴─────────────────────────────────────┤
      ack from the member at any time before the end   → alive
      ack through another only                         → the path is at fault, not the member
      neither                                          → suspect

Rule 1: members are probed in turn, in an order shuffled anew each round, which bounds the time to
        notice any one failure (SWIM, section 4.3).

Rule 2: one probe at a time, and one each interval.

Rule 3: we ping for another only a member that we have heard: elsewhere a ping would but start a
        handshake into the void.  Whoever asks gets an answer in either case, ACK or NACK, so that
        it can tell a silent target from a silent member in between (Lifeguard, section IV-A).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.gossip.events import PathFault, PingAnswered
from meshd.gossip.pings import PingPurpose, PingTable, SentPing
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import Message, MessageType

if TYPE_CHECKING:
    from collections.abc import Collection
    from random import Random

    from meshd.gossip.config import GossipConfig
    from meshd.gossip.member import Member
    from meshd.gossip.membership import Membership
    from meshd.gossip.outbox import Outbox
    from meshd.gossip.timers import Timers
    from meshd.keys import NodeId

_RELAY_SHARE = 0.8  # of probe_timeout: a NACK reaches the requester before it judges


@dataclass(slots=True)
class Probe:
    """The one probe in flight."""

    target: NodeId
    sequence: int
    asked: tuple[NodeId, ...] = ()
    nacks: set[NodeId] = field(default_factory=set)
    acked: bool = False
    acked_via: NodeId | None = None

    def failure(self, probe_timeout: float) -> str:
        """Say what was tried in vain."""
        reason = f"no ack in {probe_timeout * 1000:.0f} ms"
        if self.asked:
            reason += ", no indirect ack from " + ", ".join(node.short for node in self.asked)
            if self.nacks:
                reason += f" ({len(self.nacks)} of them tried in vain)"
        return reason


class ProbeOrder:
    """A round robin in random order."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._round: list[NodeId] = []

    def next(self, live: Collection[NodeId]) -> NodeId | None:
        """Return whom to probe, or None if there is nobody."""
        present = dict.fromkeys(live)
        while self._round:
            node = self._round.pop()
            if node in present:
                return node
        self._round = list(present)
        self._rng.shuffle(self._round)
        return self._round.pop() if self._round else None


class Prober:
    """Our own probes, and pings for others.  Part of a `Node`."""

    def __init__(
        self,
        membership: Membership,
        outbox: Outbox,
        timers: Timers,
        *,
        config: GossipConfig,
        rng: Random,
    ) -> None:
        self._membership = membership
        self._outbox = outbox
        self._timers = timers
        self._config = config
        self._rng = rng
        self._order = ProbeOrder(rng)
        self._probe: Probe | None = None
        self._pings = PingTable(rng)
        self.acked = 0
        self.acked_indirectly = 0
        self.failed = 0

    def ping(self, target: NodeId, purpose: PingPurpose, now: float) -> int:
        """Send a ping, unless the target is no member.  Return its sequence."""
        sequence = self._pings.add(SentPing(target, now, purpose))
        if self._membership.get(target) is not None:
            self._outbox.send_piggybacked(target, MessageType.PING, sequence)
        return sequence

    def handle_ack(self, member: Member, message: Message, now: float) -> None:
        """Judge an ack, from the member that was pinged or from one that was asked to ping it."""
        if message.target is not None:
            self._told_indirectly(member.node, message)
            return
        ping = self._pings.answered(message.sequence, member.node)
        if ping is None:
            return
        if ping.purpose is PingPurpose.RELAYED:
            self._timers.cancel(TimerKind.RELAY, message.sequence)
            self._answer_requester(ping, MessageType.ACK)
            return
        rtt = now - ping.sent_at
        member.measured(rtt)
        if self._probe is not None and self._probe.sequence == message.sequence:
            self._probe.acked = True
            self._timers.cancel(TimerKind.PROBE_TIMEOUT)
        if ping.purpose is PingPurpose.OPERATOR:
            self._membership.events.append(PingAnswered(member.node, message.sequence, rtt))

    def handle_nack(self, source: NodeId, message: Message) -> None:
        """Note that a member that was asked to ping has tried in vain."""
        self._told_indirectly(source, message)

    def handle_ping_req(self, source: NodeId, message: Message, now: float) -> None:
        """Ping a member because another asks (rule 3)."""
        target = message.target
        assert target is not None
        ping = SentPing(target, now, PingPurpose.RELAYED, source, message.sequence)
        member = self._membership.get(target)
        if member is None or not member.heard or target == source or self._pings.relay_full:
            self._answer_requester(ping, MessageType.NACK)
            return
        sequence = self._pings.add(ping)
        self._outbox.send_piggybacked(target, MessageType.PING, sequence)
        due = now + _RELAY_SHARE * self._config.probe_timeout
        self._timers.set(TimerKind.RELAY, due, sequence)

    def start(self, now: float) -> None:
        """Begin the next probe, once the last one was judged."""
        target = self._order.next(self._membership.live)
        if target is not None:
            sequence = self.ping(target, PingPurpose.PROBE, now)
            self._probe = Probe(target, sequence)
            self._timers.set(TimerKind.PROBE_TIMEOUT, now + self._config.probe_timeout)
            self._timers.set(TimerKind.PROBE_END, now + self._config.probe_interval)
        # Set last, it falls due last: the judgement comes before the next probe.
        self._timers.set(TimerKind.PROBE, now + self._config.probe_interval)

    def ask_indirectly(self) -> None:
        """Have others ping the member that has not answered us."""
        probe = self._probe
        if probe is None or probe.acked:
            return
        others = [node for node in self._membership.live if node != probe.target]
        count = min(self._config.indirect_probes, len(others))
        probe.asked = tuple(self._rng.sample(others, count))
        request = Message(MessageType.PING_REQ, probe.sequence, target=probe.target)
        for member in probe.asked:
            self._outbox.send(member, request)

    def judge(self, now: float) -> None:
        """End the probe in flight."""
        probe, self._probe = self._probe, None
        if probe is None:
            return
        if probe.acked:
            self.acked += 1
        elif probe.acked_via is not None:
            self.acked_indirectly += 1
            self._membership.events.append(PathFault(probe.target, probe.acked_via))
        else:
            self.failed += 1
            reason = probe.failure(self._config.probe_timeout)
            self._membership.accuse(probe.target, reason, now)

    def abandon(self) -> None:
        """Forget the probe in flight without judging it."""
        self._probe = None

    def give_up_relayed(self, sequence: int) -> None:
        """Tell whoever asked that its target has not answered us either."""
        ping = self._pings.pop(sequence)
        if ping is not None:
            self._answer_requester(ping, MessageType.NACK)

    def _answer_requester(self, ping: SentPing, type_: MessageType) -> None:
        if ping.requester is not None and self._membership.get(ping.requester) is not None:
            answer = Message(type_, ping.requester_sequence, target=ping.target)
            self._outbox.send(ping.requester, answer)

    def _told_indirectly(self, source: NodeId, message: Message) -> None:
        probe = self._probe
        if probe is None or (probe.sequence, probe.target) != (message.sequence, message.target):
            return
        if source not in probe.asked:
            return
        if message.type is MessageType.ACK:
            probe.acked_via = probe.acked_via or source
        else:
            probe.nacks.add(source)
