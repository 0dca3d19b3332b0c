"""One member of the mesh, as a state machine.

The node does no IO, reads no clock and owns no source of randomness.  It is driven by its inputs,
each of which is told the time:

- `receive_datagram`: a datagram came through the tunnel of a member
- `handle_timer`: the deadline from `get_timer` has passed
- `contact`: the path to a member is ready, or is worth trying again
- `resumed`: the machine has slept
- `unreachable`, `carried`: what the kernel has seen of a member
- `answer_stream`: a member has pinged us over TCP
- `fact_added`: the ledger has learnt something elsewhere
- `ping`, `leave`, `forget`: the operator asked for it

and after each of them, before the next one, the driver drains what came out: `datagrams_to_send`,
`streams_to_open`, `next_event` until None, and `get_timer`.

Time in which we did not run (stopped, starved, suspended) counts against nobody but ourselves: the
answers may lie unread in the socket.  A timer that is late moves every deadline by which others are
judged.  After a sleep, in which our clock stood still, others are judged by nothing for a while.

`now` is monotonic and counts from anywhere; `wall` is Unix time, and only handed on to the ledger.

What is put together here, one idea to a file:

    claim       what is said, and which saying holds     membership  members, and what follows
    suspicion   how long a suspect has                   cause       why a member is shown otherwise
    probe       who is probed, how it is judged          pinger      pings, also for others
    order       whose turn it is                         pings       which ack answers what
    rtt         how long an ack may take                 member_table  who follows whom
    health      how much we trust our own judgement      evidence    what else speaks for a member
    observers   who looks at a suspect at once           contact     when the silent are pinged
    broadcast   what is told, and how often              pace        how soon
    sync        anti-entropy                             index       digest of all that replicates
    intake      what comes in, and what follows          wire        bytes
    outbox      datagrams, with what goes along          counters    for metrics
    timers      deadlines, with reasons
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from meshd.errors import BadPacket
from meshd.gossip.broadcast import BroadcastQueue
from meshd.gossip.budget import TOO_MUCH, Budget
from meshd.gossip.claim import MemberState
from meshd.gossip.contact import contact_delay, retry_delay
from meshd.gossip.counters import NodeStatistics
from meshd.gossip.events import (
    BadPacketReceived,
    LeaveAnnounced,
)
from meshd.gossip.health import Health
from meshd.gossip.index import Index, entry_id
from meshd.gossip.intake import Intake
from meshd.gossip.member_table import MemberTable
from meshd.gossip.membership import Membership
from meshd.gossip.outbox import Outbox
from meshd.gossip.pace import URGENT_MAX, gossip_pause
from meshd.gossip.pinger import Pinger
from meshd.gossip.pings import PingPurpose
from meshd.gossip.probe import Prober
from meshd.gossip.sync import Sync
from meshd.gossip.timers import Timer, TimerKind, Timers
from meshd.gossip.wire import (
    Item,
    Message,
    MessageType,
    decode_untrusted,
)
from meshd.keys import NodeId

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from meshd.gossip.config import GossipConfig
    from meshd.gossip.events import Event
    from meshd.gossip.member import Member, MemberView
    from meshd.gossip.outbox import StreamProbe
    from meshd.gossip.store import FactStore
    from meshd.gossip.sync import Outgoing
    from meshd.keys import MeshId, NodeKey
    from meshd.trust.fact import Fact


# The deadlines by which others are judged.
_JUDGING = frozenset({TimerKind.PROBE_TIMEOUT, TimerKind.PROBE_END, TimerKind.SUSPICION})


class Node:
    """See the module docstring."""

    def __init__(
        self,
        key: NodeKey,
        mesh: MeshId,
        ledger: FactStore,
        *,
        config: GossipConfig,
        rng: Random,
        now: float,
        incarnation: int,
        table: MemberTable | None = None,
        index: Index | None = None,
    ) -> None:
        """`table` and `index` are for simulations, which give many nodes one that is shared."""
        self._config = config
        self._rng = rng
        self._timers = Timers()
        self._index = Index() if index is None else index
        self._broadcasts = BroadcastQueue(retransmit_mult=config.retransmit_mult)
        self._health = Health(score_max=config.health_score_max)
        self._membership = Membership(
            key,
            mesh,
            config=config,
            rng=rng,
            table=MemberTable(key.id) if table is None else table,
            index=self._index,
            broadcasts=self._broadcasts,
            timers=self._timers,
            health=self._health,
            incarnation=incarnation,
        )
        self._sync = Sync(self._index, config=config, rng=rng, now=now)
        self._outbox = Outbox(self._membership, self._broadcasts, ledger)
        self._intake = Intake(
            ledger, self._membership, self._index, self._broadcasts, self._outbox, self._sync
        )
        self._pinger = Pinger(
            self._membership, self._outbox, self._timers, self._health, config=config, rng=rng
        )
        self._prober = Prober(
            self._membership,
            self._outbox,
            self._pinger,
            self._timers,
            self._health,
            config=config,
            rng=rng,
        )
        self._budget = Budget()
        self._gossiped_at = now - config.gossip_interval
        self._leave_rounds = 0
        self._datagrams_received = 0
        self._bytes_received = 0
        self._bad_packets = 0
        for fact in ledger.facts():
            self._index.put(fact.kind, fact.key, fact.version, fact.digest)
        self._intake.refresh_members(now)
        self._timers.set(TimerKind.PROBE, now + config.probe_interval * rng.random())
        self._settle(now)

    # Inputs

    def receive_datagram(self, datagram: bytes, source: NodeId, now: float, wall: float) -> None:
        """Handle a datagram, which may be anything at all, from a member's tunnel."""
        message = self._open_untrusted(datagram, source, now)
        if message is None:
            return
        if self._membership.left:
            if message.type is MessageType.PING:
                self._outbox.send_piggybacked(source, MessageType.ACK, message.sequence)
            return
        seen = self._intake.merge_items_untrusted(message, source, now, wall)
        member = self._hear(source, message, now)
        if member is not None:
            self._dispatch(member, message, seen, now)
        self._settle(now)

    def answer_stream(self, frame: bytes, source: NodeId, now: float, wall: float) -> bytes | None:
        """Handle a ping from a member's TCP connection, which may be anything at all.

        Returns the ack, or None where the connection is not worth an answer.
        """
        message = self._open_untrusted(frame, source, now)
        if message is None:
            return None
        if message.type is not MessageType.PING:
            self._bad_packet(source, "no ping on a stream")
            return None
        if not self._membership.left:
            self._intake.merge_items_untrusted(message, source, now, wall)
            self._hear(source, message, now)
            self._settle(now)
        if self._membership.get(source) is None:
            return None
        return self._outbox.stream_ack(source, message.sequence)

    def unreachable(self, node: NodeId, now: float) -> None:
        """Take an ICMP error that came from a member's own address, through its tunnel."""
        if not self._membership.left:
            self._prober.unreachable(node, now)
            self._settle(now)

    def carried(self, node: NodeId, now: float) -> None:
        """Take that a member's tunnel has carried something since `EvidenceWanted`."""
        member = self._membership.get(node)
        if member is not None:
            member.carried_at = now

    def handle_timer(self, now: float) -> None:
        """Do everything that is due."""
        late = now - self._timers.next().at
        if late > self._config.probe_timeout_min / 2:
            self._stumble(late, now)
        while (due := self._timers.pop_due(now)) is not None:
            kind, about = due
            match about:
                case NodeId():
                    self._member_timer(kind, about, now)
                case int():
                    self._pinger.give_up_relayed(about)
                case _:
                    self._own_timer(kind, now)
        self._settle(now)

    def contact(self, node: NodeId, now: float, *, rtt: float = 0.0) -> None:
        """Ping a member soon: the path to it is ready, or has changed.  `rtt` is the path's."""
        member = self._membership.get(node)
        if member is None or self._membership.left:
            return
        if now - member.contact_at < self._config.contact_stagger:
            return  # the path has just brought us its first message, or will
        member.tries = 0
        member.retry_min = self._config.contact_retry_min
        delay = 0.0
        if not member.heard:
            delay = contact_delay(self._membership.id, node, self._config, rtt=rtt)
        if delay:
            self._timers.set(TimerKind.CONTACT, now + delay, node)
        else:
            self._ping_contact(member, now)
        self._settle(now)

    def resumed(self, now: float) -> None:
        """Take that the machine has slept: judge nobody for a while, and be heard by some.

        Others hold us for dead by now, as they should; what they say of that comes with an ack.
        """
        if self._membership.left:
            return
        grace = self._config.resume_grace
        self._stumble(grace, now)
        self._timers.set(TimerKind.PROBE, now + grace)
        live = self._membership.live
        for node in self._rng.sample(live, min(len(live), self._config.leave_fanout)):
            self.contact(node, now)
        self._settle(now)

    def fact_added(self, fact: Fact, now: float, *, at_once: bool = False) -> None:
        """Spread a fact that the ledger has learnt other than through us; see `pace` rule 4."""
        self._intake.take_facts([fact], now, broadcast=True)
        if at_once:
            self._tell_at_once(fact)
        self._settle(now)

    def members_changed(self, now: float) -> None:
        """Take from the ledger who is a member: that has changed without a fact."""
        self._intake.refresh_members(now)
        self._settle(now)

    def ping(self, node: NodeId, now: float) -> int:
        """Ping a member for the operator.  Return the sequence that `PingAnswered` will carry.

        Nothing is sent to a node that is no member, and so nothing comes back.
        """
        return self._pinger.ping(node, PingPurpose.OPERATOR, now)

    def forget(self, node: NodeId, now: float) -> None:
        """Drop a member that the ledger has forgotten.  It comes back if anyone still holds it."""
        self._intake.forget_record(node, now)
        self._settle(now)

    def leave(self, now: float) -> None:
        """Tell several members that we leave, and stop everything else.

        `LeaveAnnounced` says when it is told; the process may end then.
        """
        if self._membership.left:
            return
        self._membership.leave()
        self._timers.clear()
        self._prober.abandon()
        self._leave_rounds = self._config.leave_rounds
        self._announce_leaving(now)

    # Outputs

    def datagrams_to_send(self) -> list[tuple[bytes, NodeId]]:
        """Take the queued datagrams, each with the member it is for."""
        return self._outbox.take()

    def streams_to_open(self) -> list[StreamProbe]:
        """Take the pings that are to go over TCP.  Their answers go to `receive_datagram`."""
        return self._outbox.take_streams()

    def next_event(self) -> Event | None:
        """Take the oldest queued event."""
        events = self._membership.events
        return events.popleft() if events else None

    def get_timer(self) -> Timer:
        """Return the soonest deadline."""
        return self._timers.next()

    @property
    def id(self) -> NodeId:
        """Who we are."""
        return self._membership.id

    @property
    def incarnation(self) -> int:
        """Our own incarnation."""
        return self._membership.own.incarnation

    def members(self) -> list[MemberView]:
        """Return what is shown of the other members, in the order of their ids."""
        return sorted((member.view for member in self._membership), key=lambda view: view.node)

    @property
    def health_score(self) -> int:
        """How much in trouble we seem to be ourselves: 0 is healthy."""
        return self._health.score

    @property
    def accompanied(self) -> bool:
        """Whether anybody is there to talk to: alive, or at most suspected."""
        return not self._membership.lonely

    def member(self, node: NodeId) -> MemberView | None:
        """Return what is shown of one other member."""
        member = self._membership.get(node)
        return None if member is None else member.view

    def statistics(self) -> NodeStatistics:
        """Return counters and sizes."""
        membership = self._membership
        shown = Counter(member.shown for member in membership)
        return NodeStatistics(
            members={state: shown[state] for state in MemberState},
            incarnation=self.incarnation,
            datagrams_sent=self._outbox.datagrams_sent,
            bytes_sent=self._outbox.bytes_sent,
            datagrams_received=self._datagrams_received,
            bytes_received=self._bytes_received,
            bad_packets=self._bad_packets + self._intake.bad_packets,
            probes_acked=self._prober.acked,
            probes_acked_indirectly=self._prober.acked_indirectly,
            probes_acked_streams=self._prober.acked_streams,
            probes_excused=self._prober.excused,
            probes_failed=self._prober.failed,
            streams_opened=self._outbox.streams_opened,
            health_score=self._health.score,
            suspicions=membership.suspicions,
            deaths=membership.deaths,
            refutations=membership.refutations,
            claims_verified=membership.claims_verified,
            claims_dropped=membership.claims_dropped,
            facts_learned=self._intake.facts_learned,
            exchanges=self._sync.exchanges,
            broadcasts_queued=len(self._broadcasts),
            pings_waiting=len(self._pinger),
            timers_set=len(self._timers),
            entries=len(self._index),
        )

    # Timers

    def _own_timer(self, kind: TimerKind, now: float) -> None:
        match kind:
            case TimerKind.PROBE:
                self._prober.take_turn(now)
            case TimerKind.GOSSIP:
                self._gossip(now)
            case TimerKind.DIGEST:
                self._send_all(self._sync.handle_timer(self._membership.live, now))
            case TimerKind.LEAVE:
                self._announce_leaving(now)
            case _:
                raise AssertionError(kind)

    def _member_timer(self, kind: TimerKind, node: NodeId, now: float) -> None:
        match kind:
            case TimerKind.PROBE_TIMEOUT:
                self._prober.handle_late(node, now)
            case TimerKind.PROBE_END:
                self._prober.judge(node, now)
            case TimerKind.WATCH:
                self._prober.watch(node, now)
            case TimerKind.SUSPICION:
                self._membership.conclude_dead(node, now)
            case TimerKind.CONTACT:
                self._contact_due(node, now)
            case _:
                raise AssertionError(kind)

    def _stumble(self, late: float, now: float) -> None:
        """Give others the time in which we did not run."""
        earliest = now + self._config.probe_timeout_min
        self._timers.postpone(_JUDGING, late, earliest=earliest)
        for node in self._timers.about(TimerKind.SUSPICION):
            assert isinstance(node, NodeId)
            self._membership.postpone(node, late)
        self._pinger.stumbled(now)
        if late > self._config.probe_timeout_min:
            self._health.stumbled()

    # Messages

    def _open_untrusted(self, datagram: bytes, source: NodeId, now: float) -> Message | None:
        self._datagrams_received += 1
        self._bytes_received += len(datagram)
        if self._membership.get(source) is None:
            self._bad_packet(source, "not a member")
            return None
        if not self._budget.take(source, datagram, now):
            self._bad_packet(source, TOO_MUCH)
            return None
        try:
            return decode_untrusted(datagram)
        except BadPacket as exc:
            self._bad_packet(source, exc.reason)
            return None

    def _hear(self, source: NodeId, message: Message, now: float) -> Member | None:
        member = self._membership.get(source)
        if member is None:
            return None  # one of the items has just revoked it
        if self._membership.hear(member, message, now):
            self._sync.wish(source, now)
        return member

    def _dispatch(
        self, member: Member, message: Message, seen: list[tuple[int, bytes]], now: float
    ) -> None:
        source = member.node
        match message.type:
            case MessageType.PING:
                self._outbox.send_piggybacked(source, MessageType.ACK, message.sequence)
            case MessageType.ACK if message.target is None:
                ping = self._pinger.handle_ack(member, message, now)
                if ping is not None:
                    self._prober.handle_ack(member, ping.purpose, ping.sent_at)
            case MessageType.ACK | MessageType.NACK:
                self._prober.handle_told(source, message)
            case MessageType.PING_REQ:
                self._pinger.handle_ping_req(source, message, now)
            case MessageType.GOSSIP:
                pass  # its items are all there is to it
            case MessageType.DIGEST:
                for summary in self._sync.answer_digest(message):
                    self._outbox.send(source, summary)
            case MessageType.SUMMARY:
                asks, pushed = self._sync.handle_summary(source, message, now)
                self._send_all(asks)
                self._outbox.send_entries(source, pushed, sequence=0)
            case MessageType.WANT:
                entries = self._sync.answer_want(message)
                self._outbox.send_entries(source, entries, sequence=message.sequence)
            case MessageType.FACTS:
                ids = [entry_id(kind, key) for kind, key in seen]
                self._send_all(self._sync.handle_facts(source, ids, now))

    # Contact

    def _contact_due(self, node: NodeId, now: float) -> None:
        member = self._membership.get(node)
        if member is not None and member.shown is MemberState.DEAD:
            self._ping_contact(member, now)

    def _ping_contact(self, member: Member, now: float) -> None:
        self._pinger.ping(member.node, PingPurpose.CONTACT, now)
        member.contact_at = now
        if member.shown is not MemberState.DEAD:
            return
        delay = retry_delay(
            member.tries,
            first=member.retry_min or self._config.dead_retry_min,
            silent_for=now - member.silent_since,
            silent_members=self._membership.silent_count(),
            config=self._config,
            rng=self._rng,
        )
        member.tries += 1
        self._timers.set(TimerKind.CONTACT, now + delay, member.node)

    # Dissemination

    def _gossip(self, now: float) -> None:
        self._gossiped_at = now
        live = self._membership.live
        for node in self._rng.sample(live, min(self._config.gossip_fanout, len(live))):
            if not self._broadcasts:
                return
            self._outbox.send_piggybacked(node, MessageType.GOSSIP, 0)

    def _tell_at_once(self, fact: Fact) -> None:
        live = self._membership.live
        message = Message(MessageType.GOSSIP, 0, items=(Item(fact.kind, fact.blob),))
        for node in self._rng.sample(live, min(URGENT_MAX, len(live))):
            self._outbox.send(node, message)

    def _announce_leaving(self, now: float) -> None:
        live = self._membership.live
        for node in self._rng.sample(live, min(self._config.leave_fanout, len(live))):
            self._outbox.send_piggybacked(node, MessageType.GOSSIP, 0)
        self._leave_rounds -= 1
        if self._leave_rounds > 0 and live:
            self._timers.set(TimerKind.LEAVE, now + self._config.gossip_interval / 2)
        else:
            self._membership.events.append(LeaveAnnounced())

    def _settle(self, now: float) -> None:
        """Bring the timers in line with what the input has left to do."""
        if self._membership.left:
            return
        for node in self._membership.take_removed():
            self._prober.forget(node)
            self._budget.forget(node)
        for node in self._membership.take_suspected():
            self._prober.observe(node, now)
        soonest = self._gossiped_at + self._config.gossip_interval_min
        waiting = self._timers.at(TimerKind.GOSSIP) or math.inf
        if self._broadcasts and waiting > soonest and not self._membership.lonely:
            pause = gossip_pause(self._broadcasts, len(self._membership) + 1, self._config)
            due = max(now, self._gossiped_at + pause)
            if due < waiting:
                self._timers.set(TimerKind.GOSSIP, due)
        if self._timers.at(TimerKind.DIGEST) != self._sync.at:
            self._timers.set(TimerKind.DIGEST, self._sync.at)

    def _send_all(self, outgoing: Iterable[Outgoing]) -> None:
        for target, message in outgoing:
            self._outbox.send(target, message)

    def _bad_packet(self, source: NodeId, reason: str) -> None:
        self._bad_packets += 1
        self._membership.events.append(BadPacketReceived(source, reason))
