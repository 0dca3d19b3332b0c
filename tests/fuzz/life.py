"""The life of one fuzzed node: which step comes next, drawn from one seed.

Most inputs are mutations of valid messages, of what the node itself has just sent, and of messages
made for the very moment: the ack that it waits for, an accusation at the incarnation that is
current, a claim whose body is nonsense and whose signature is true.  Some are left as they are, so
that the node goes on living: it is heard, probes, suspects, is suspected, exchanges facts, and at
last, in half of the lives, leaves.
"""

from __future__ import annotations

import functools
import random

from fuzz.mutate import Mutator, seed_of
from fuzz.people import (
    ALIVE,
    ALL_BUCKETS,
    BAD,
    FIRST_ID,
    HONEST_INCARNATION_MAX,
    LAST_ID,
    LEFT,
    MEMBERS,
    NAME_OF,
    NAMES,
    NODES,
    OWN,
    SUSPECT,
    accused,
    datagrams,
    facts,
    fitting,
    items,
    said,
    signed_claim,
    signed_record,
)
from fuzz.table import Table
from gossip.harness import record
from meshd.gossip.claim import INCARNATION_MAX
from meshd.gossip.wire import (
    BUCKETS_BYTES,
    SEQUENCE_MAX,
    SUMMARY_ENTRIES_MAX,
    EntrySummary,
    Message,
    MessageType,
    Summary,
    decode_untrusted,
    encode,
)
from meshd.keys import SIGNATURE_BYTES

CHECK_EVERY = 2048  # inputs
_BURST_EVERY = 16384  # inputs
_BURST_INPUTS = 3000
_ABSENCE_EVERY = 512  # inputs
_BOASTING = 0.25  # of all lives
_GOSSIP_HEAD = 2  # version and type
_HARMLESS = Message(MessageType.GOSSIP, 0)
_INCARNATION_STEPS = (0, 0, 0, 0, 1, -1, 2**20)


@functools.cache
def _seeds(boasting):
    return [seed_of(made, head=_GOSSIP_HEAD) for made in datagrams(boasting=boasting)]


class Life:
    """A table, and somebody who thinks of things to do to its node."""

    def __init__(self, seed, length, *, leaves=True):
        rng = random.Random(seed)
        self._rng = rng
        self._random = rng.random
        self._length = length
        self.rng_seed = rng.getrandbits(32)
        self.table = Table(self.rng_seed)
        self._mutator = Mutator(rng, _seeds(rng.random() < _BOASTING))
        self._leave_at = length * 0.8 if leaves and rng.random() < 0.5 else length
        self.inputs = 0
        self._makers = [
            *(self._word, self._word, self._answer, self._answer, self._answer, self._accusation),
            *(self._nonsense, self._entries, self._question, self._flood),
        ]
        self._burst = None  # who makes all inputs for now
        self._burst_until = 0
        self._present = NAMES  # the others are silent for now, and so are suspected, and die
        self._present_until = 0

    def run(self, *, until=None, record_step=None):
        """Do steps until all inputs are used up, or `until` says so.  Return whether it did."""
        table = self.table
        while self.inputs < self._length:
            if self._leave_at <= self.inputs:
                self._leave_at = self._length
                step = ("leave",)
            else:
                step = self._next()
            if record_step is not None:
                record_step(step)
            table.do(step)
            if self.inputs % CHECK_EVERY == 0 or self.inputs == self._burst_until:
                table.check()
                if until is not None and until():
                    return True
        table.check()
        table.check_answers()
        return False

    def _next(self):
        if self.inputs < self._burst_until:
            return self._next_of_burst()
        if self.inputs >= self._present_until:
            self._present_until = self.inputs + self._below(2 * _ABSENCE_EVERY)
            absent = self._rng.sample(MEMBERS, self._below(len(MEMBERS) + 1))
            self._present = [name for name in NAMES if name not in absent]
        chance = self._random()
        if chance < 1 / _BURST_EVERY:
            self._burst = self._one_of((*self._makers, None))
            self._burst_until = self.inputs + self._below(_BURST_INPUTS)
        if chance < 0.9:
            self.inputs += 1
            name, datagram = self._input()
            if name not in self._present:
                name = self._one_of(self._present)
            return "stream" if chance < 0.03 else "datagram", name, datagram
        if chance < 0.965:
            return self._passing_time()
        name = self._one_of(NAMES)
        match self._below(16):
            case 0:
                return "ping", name
            case 1:
                return "forget", self._one_of(MEMBERS)
            case 2 | 3:
                item = self._one_of(facts())
                return "fact", item.kind, item.blob
            case 4:
                return "fact", 1, record(name, 1 + self._below(9))
            case 5 | 6 | 7:
                return "unreachable", name
            case 8 | 9 | 10 | 11:
                return "carried", name
            case 12:
                return ("tick",)
            case _:
                return "contact", name, self._one_of((0.0, 0.02, 3.0))

    def _next_of_burst(self):
        """One kind of input again and again, while no time passes: that fills tables."""
        self.inputs += 1
        if self._burst is None:
            return "ping", self._one_of(NAMES)
        name, message = self._burst()
        return "datagram", name, encode(message)

    def _passing_time(self):
        chance = self._random()
        if chance < 0.6:
            return "wait", self._random() * 0.2
        if chance < 0.8:
            due = self.table.node.get_timer().at - self.table.now
            return "wait", min(max(due, 0.0), 1000.0)
        if chance < 0.96:
            return "wait", self._random() * 2.0
        if chance < 0.99:
            return "stall", self._random() * 5.0
        return "stall", self._one_of((60.0, 3600.0, 86400.0))

    def _input(self):
        """Return bytes, and through whose tunnel they come."""
        chance = self._random()
        if chance < 0.6:
            name = self._one_of(NAMES)
            seed = self._mutator.seed()
            return name, self._mutator.mutate(seed) if chance < 0.55 else seed.data
        name, message = self._one_of(self._makers)()
        datagram = encode(message)
        if chance < 0.7:
            return name, self._mutator.mutate(seed_of(datagram, head=_GOSSIP_HEAD))
        if chance < 0.75 and self.table.sent:
            echo, target = self._one_of(self.table.sent)
            return NAME_OF[target], self._mutator.mutate(seed_of(echo, head=_GOSSIP_HEAD))
        return name, datagram

    # Messages for the moment

    def _word(self):
        """A member is heard, and claims something newer of itself than is believed."""
        name = self._one_of(MEMBERS)
        view = self.table.node.member(NODES[name])
        incarnation = max(view.incarnation, 0) if view is not None else 0
        if view is not None and view.accusers:
            incarnation += 1
        carried = ()
        if name in BAD:
            state = LEFT if self._random() < 0.03 else ALIVE
            carried = (said(name, min(incarnation, INCARNATION_MAX), state),)
        elif incarnation <= HONEST_INCARNATION_MAX:
            carried = (said(name, incarnation),)
        known = self._one_of((None, self.table.node.incarnation))
        return name, Message(MessageType.PING, self._below(100), incarnation, known, carried)

    def _answer(self):
        """Somebody answers the node, rightly but for the signatures."""
        if not self.table.sent:
            return self._word()
        datagram, target = self._one_of(self.table.sent[-12:])
        asked = decode_untrusted(datagram)
        name, sequence = NAME_OF[target], asked.sequence
        match asked.type:
            case MessageType.PING:
                return name, Message(MessageType.ACK, sequence, items=self._some_items(2))
            case MessageType.PING_REQ:
                type_ = self._one_of((MessageType.ACK, MessageType.NACK))
                return name, Message(type_, sequence, target=asked.target)
            case MessageType.DIGEST:
                return name, self._summary(sequence)
            case MessageType.WANT | MessageType.SUMMARY:
                return name, Message(MessageType.FACTS, sequence, items=self._some_items(8))
        return name, _HARMLESS

    def _accusation(self):
        """A member accuses another, or the node, at the incarnation that is current."""
        by, name = self._one_of(BAD), self._one_of((OWN, *MEMBERS))
        if by == name:
            return by, _HARMLESS
        carried = (accused(name, self._incarnation_of(name), by),)
        return by, Message(MessageType.GOSSIP, 0, items=carried)

    def _nonsense(self):
        """A member signs what no encoder makes."""
        by, name = self._one_of(BAD), self._one_of(NAMES)
        if self._random() < 0.2:
            return by, Message(MessageType.GOSSIP, 0, items=(self._odd_record(by),))
        incarnation = self._incarnation_of(name)
        tree = {1: bytes(NODES[name]), 2: incarnation, 3: self._below(4)}
        if name != by:
            tree |= {3: int(SUSPECT), 4: bytes(NODES[by]), 5: 300, 6: bytes(8)}
        if self._random() < 0.7:
            tree = self._mutator.change(tree)
        item = signed_claim(tree, by)
        return by, Message(MessageType.GOSSIP, 0, items=fitting([item]))

    def _odd_record(self, by):
        genuine = record(by, 1 + self._below(3))[SIGNATURE_BYTES:]
        body = self._mutator.mutate(seed_of(genuine))
        item = signed_record(body, by)
        return item if fitting([item]) else self._one_of(items())

    def _entries(self):
        """A member compares what it holds with what the node does."""
        digest = Message(MessageType.DIGEST, 7, buckets=self._rng.randbytes(BUCKETS_BYTES))
        ids = tuple(entry.id for entry in self._some_entries(32))
        want = Message(MessageType.WANT, self._below(9), ids=ids)
        summary = self._summary(self._below(SEQUENCE_MAX))
        return self._one_of(MEMBERS), self._one_of((digest, want, summary))

    def _flood(self):
        """The partner of an exchange holds more and more of what nobody has heard of."""
        if self.table.digest is None:
            return self._question()
        datagram, target = self.table.digest
        ids = sorted(self._rng.randbytes(8) for _ in range(SUMMARY_ENTRIES_MAX))
        entries = tuple(EntrySummary(id_, 1, bytes(8)) for id_ in ids)
        summary = Summary(ALL_BUCKETS, ids[0], ids[-1], entries)
        sequence = decode_untrusted(datagram).sequence
        return NAME_OF[target], Message(MessageType.SUMMARY, sequence, summary=summary)

    def _question(self):
        """A member asks for a ping of another, or says what came of one."""
        type_ = self._one_of((MessageType.PING_REQ, MessageType.PING_REQ, MessageType.NACK))
        target = NODES[self._one_of(NAMES)]
        return self._one_of(MEMBERS), Message(type_, self._below(1000), target=target)

    def _summary(self, sequence):
        entries = tuple(sorted(set(self._some_entries(20))))
        differing = self._one_of((0, ALL_BUCKETS, ALL_BUCKETS, self._rng.getrandbits(64)))
        last = self._one_of((LAST_ID, LAST_ID, entries[-1].id if entries else FIRST_ID))
        summary = Summary(differing, FIRST_ID, last, entries)
        return Message(MessageType.SUMMARY, sequence, summary=summary)

    def _some_entries(self, count_max):
        known = [entry.summary for entry in self.table.node._index]
        for _ in range(self._below(count_max + 1)):
            known_one = self._one_of(known)
            match self._below(3):
                case 0:
                    yield known_one
                case 1:
                    yield EntrySummary(known_one.id, self._rng.getrandbits(49), bytes(8))
                case _:
                    yield EntrySummary(self._rng.randbytes(8), self._below(9), bytes(8))

    def _incarnation_of(self, name):
        node = self.table.node
        if name == OWN:
            current = node.incarnation
        else:
            view = node.member(NODES[name])
            current = view.incarnation if view is not None else 0
        return min(max(current + self._one_of(_INCARNATION_STEPS), 0), INCARNATION_MAX)

    def _some_items(self, count_max):
        every = items()
        return fitting([self._one_of(every) for _ in range(self._below(count_max + 1))])

    def _below(self, count):
        return int(self._random() * count)

    def _one_of(self, things):
        return things[int(self._random() * len(things))]
