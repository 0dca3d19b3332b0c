"""One real node, the steps that are done to it, and what must hold after each of them.

A step is a tuple whose first part says which; as a line of a file it looks like this:

    datagram a 010081…      bytes through the tunnel of "a"
    stream a 010081…        bytes over a TCP connection of "a"
    wait 0.25               time passes, every timer on time
    stall 3600.0            time passes, and nothing runs; timers come when we next wait
    tick                    `handle_timer`, whether or not anything is due
    unreachable a           the kernel has seen an ICMP error from "a"
    carried a               its receive counter has moved
    contact a 0.02          the path to it is ready, whose round trip that is
    fact 1 8c23…            the ledger has learnt a fact of kind 1 elsewhere
    ping a / forget a       the operator asks for it
    leave                   the node leaves
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from fuzz import people
from fuzz.bounds import check_reachable, check_tables, outputs_max
from fuzz.oracle import Oracle, Violation
from fuzz.people import HONEST_INCARNATION_MAX, NODES, OWN
from gossip.harness import MESH, WALL, key, record
from meshd.errors import BadPacket
from meshd.gossip.claim import MemberState
from meshd.gossip.config import GossipConfig
from meshd.gossip.events import (
    BadPacketReceived,
    EquivocationSeen,
    FactLearned,
    IncarnationRaised,
    MemberStateChanged,
)
from meshd.gossip.node import Node
from meshd.gossip.wire import (
    DATAGRAM_BYTES_MAX,
    Message,
    MessageType,
    decode_untrusted,
    encode,
)
from meshd.trust.fact import FactKind
from meshd.trust.ledger import Ledger
from sim.safety import check_index

_SETTLING_MAX = 64  # calls of `handle_timer` at one instant, until nothing is due
_TICKS_MAX = 100_000  # in one wait
_REASON_CHARS_MAX = 80  # reasons are metric labels
_SENT_KEPT = 64
_LAST_SEQUENCE = 2**32 - 2
_OTHERS_MAX = len(people.NAMES) - 1
# The seed chooses a setting too: each idea is switched off in one of SETTINGS lives.
_SETTINGS = 16
_OFF = [
    *({"observers": 0}, {"staples": 0}, {"evidence_max": 0}, {"stream_timeout": 0.0}),
    *({"confirmations_expected": 0}, {"health_score_max": 0}, {"neighbour_every": 0}),
]

_REVOCATIONS = frozenset(item.blob for item in people.facts() if item.kind == FactKind.REVOCATION)


class Table:
    """See the module docstring.  `met` counts what was seen, so that nobody fuzzes a void."""

    def __init__(self, rng_seed, *, now=1000.0):
        self.now = now
        self.name = "the fuzzed node"
        self.ledger = Ledger(MESH)
        for name in (OWN, *people.MEMBERS):
            self.ledger.merge_untrusted(FactKind.RECORD, record(name), WALL)
        self.node = Node(
            key(OWN),
            MESH,
            self.ledger,
            config=replace(GossipConfig(), **dict(enumerate(_OFF)).get(rng_seed % _SETTINGS, {})),
            rng=random.Random(rng_seed),
            now=now,
            incarnation=1,
        )
        self.sent = []  # the newest of what the node has sent, as (datagram, target)
        self.digest = None  # the newest that it has sent, likewise
        self.met = Counter()
        self.reasons = set()
        self._bad_packets = 0
        self._incarnation = 1
        self._left = False
        self._beliefs = {}
        self._oracle = Oracle(NODES[OWN], _REVOCATIONS)
        self._drain(None)

    # Steps

    def do(self, step):
        """Do a step, and check all that must hold at any moment."""
        getattr(self, "_" + step[0])(*step[1:])

    def _datagram(self, name, datagram):
        source = NODES[name]
        self._oracle.hear(datagram)
        self.met["input after leaving"] += self._left
        self.node.receive_datagram(datagram, source, self.now, WALL)
        self._drain(source)

    def _stream(self, name, frame):
        source = NODES[name]
        self._oracle.hear(frame)
        answer = self.node.answer_stream(frame, source, self.now, WALL)
        if answer is not None:
            self.met["answer on a stream"] += 1
            self._check_sent(answer)
        self._drain(source)

    def _wait(self, seconds):
        end = self.now + seconds
        for _ in range(_TICKS_MAX):
            due = self.node.get_timer().at
            if due > end:
                break
            self.now = max(self.now, due)
            self._settle()
        else:
            raise Violation(f"{_TICKS_MAX} timers in {seconds} s")
        self.now = end

    def _settle(self):
        for _ in range(_SETTLING_MAX):
            self._tick()
            if self.node.get_timer().at > self.now:
                return
        raise Violation(f"always something due: {self.node.get_timer()} at {self.now}")

    def _stall(self, seconds):
        self.now += seconds

    def _tick(self):
        self.met[f"timer: {self.node.get_timer().reason}"] += 1
        self.node.handle_timer(self.now)
        self._drain(None)

    def _unreachable(self, name):
        self.node.unreachable(NODES[name], self.now)
        self._drain(None)

    def _carried(self, name):
        self.node.carried(NODES[name], self.now)
        self._drain(None)

    def _contact(self, name, rtt):
        self.node.contact(NODES[name], self.now, rtt=rtt)
        self._drain(None)

    def _fact(self, kind, blob):
        try:
            merge = self.ledger.merge_untrusted(kind, blob, WALL)
        except BadPacket:
            return
        if merge.changed:
            self.node.fact_added(merge.fact, self.now)
        self._drain(None)

    def _ping(self, name):
        self.node.ping(NODES[name], self.now)
        self._drain(None)

    def _forget(self, name):
        self.ledger.forget(NODES[name])
        self.node.forget(NODES[name], self.now)
        self._drain(None)

    def _leave(self):
        self.node.leave(self.now)
        self._left = True
        self._drain(None)

    # Checks

    def check(self):
        """Check what is too dear to be checked after each step."""
        check_tables(self.node, _OTHERS_MAX)
        if self.node.statistics().bad_packets != self._bad_packets:
            raise Violation("bad packets that were not told, or not counted")
        for datagram, _ in self.sent:
            decode_untrusted(datagram)
        check_index(self)
        self._peak("objects", check_reachable(self.node))
        statistics = self.node.statistics()
        self._peak("pings", statistics.pings_waiting)
        self._peak("timers", statistics.timers_set)
        self._peak("broadcasts", statistics.broadcasts_queued)
        exchange = self.node._sync._exchange
        self._peak("wanted", 0 if exchange is None else len(exchange.wanted))

    def check_answers(self):
        """Check that the node has lost nothing by all this: it answers, and believes who signs."""
        for name in people.MEMBERS:
            view = self.node.member(NODES[name])
            incarnation = 0 if view is None else view.incarnation + 1
            if view is None or incarnation > HONEST_INCARNATION_MAX:
                continue
            word = (people.said(name, incarnation),)
            ping = Message(MessageType.PING, _LAST_SEQUENCE, incarnation, items=word)
            self._datagram(name, encode(ping))
            answers = [decode_untrusted(sent) for sent, to in self.sent if to == NODES[name]]
            if (MessageType.ACK, _LAST_SEQUENCE) not in [(a.type, a.sequence) for a in answers]:
                raise Violation(f"{name} pings and is not answered")
            state = self.node.member(NODES[name]).state
            if not self._left and state is not MemberState.ALIVE:
                raise Violation(f"{name} says that it is alive and is shown {state.name}")

    def _peak(self, what, size):
        self.met[f"most {what}"] = max(self.met[f"most {what}"], size)

    def _drain(self, source):
        node = self.node
        sent = node.datagrams_to_send()
        if sent:
            if len(sent) > outputs_max(_OTHERS_MAX):
                raise Violation(f"{len(sent)} datagrams in answer to one input")
            for datagram, target in sent:
                self._check_sent(datagram)
                if datagram[1] == MessageType.DIGEST:
                    self.digest = datagram, target
            self.sent = [*self.sent, *sent][-_SENT_KEPT:]
        for stream in node.streams_to_open():
            self.met["stream to open"] += 1
            self._check_sent(stream.datagram)
        while (event := node.next_event()) is not None:
            self._take(event, source)
        for member in node._membership:
            belief = member.belief
            if belief is not self._beliefs.get(member.node):
                self._beliefs[member.node] = belief
                if belief is not None:
                    self._oracle.check_belief(member.node, belief)

    @staticmethod
    def _check_sent(datagram):
        if len(datagram) > DATAGRAM_BYTES_MAX:
            raise Violation(f"a datagram of {len(datagram)} bytes")

    def _take(self, event, source):
        met = type(event).__name__
        match event:
            case BadPacketReceived():
                self._bad_packets += 1
                self.reasons.add(event.reason)
                if event.source != source or len(event.reason) > _REASON_CHARS_MAX:
                    raise Violation(f"no label, or nobody's: {event}")
            case MemberStateChanged():
                met = f"{event.before.name} to {event.after.name}: {event.cause.kind}"
                # What led to it may stand in a belief that has not been looked at.
                member = self.node._membership.get(event.node)
                if member is not None and member.belief is not None:
                    self._oracle.check_belief(event.node, member.belief)
                self._oracle.check_change(event, source)
            case IncarnationRaised():
                self._oracle.check_raised(self._incarnation, event.incarnation)
                self._incarnation = event.incarnation
            case FactLearned() | EquivocationSeen():
                self._oracle.check_fact(event.fact)
        self.met[met] += 1
