"""One real node on a table, its ledger filled with real records, and hands that sign anything."""

import heapq
import itertools
import math
import random

from meshd.gossip.claim import (
    MemberState,
    Testimony,
    peek_claim_untrusted,
    sign_accusation,
    sign_claim,
)
from meshd.gossip.config import GossipConfig
from meshd.gossip.node import Node
from meshd.gossip.wire import (
    CLAIM_ITEM,
    Item,
    Message,
    MessageType,
    decode_untrusted,
    encode,
)
from meshd.keys import MeshKey, NodeKey, WireGuardKey
from meshd.trust.credential import Credential, founding_credential, issue
from meshd.trust.fact import FactKind
from meshd.trust.ledger import Ledger
from meshd.trust.record import Record, sign_record
from meshd.trust.revocation import Revocation, sign_revocation

WALL = 1_700_000_000
MESH_KEY = MeshKey(b"m" * 32)
MESH = MESH_KEY.id
ALIVE, SUSPECT, DEAD, LEFT = MemberState
QUIET = GossipConfig(probe_interval=100_000.0)  # nobody is probed in turn


def key(name):
    return NodeKey(name.encode().ljust(32, b"\0"))


def record(name, sequence=1, version="0.1.0"):
    """The record of a member admitted by the mesh key."""
    own = key(name)
    credential: Credential = founding_credential(own.id, name, MESH, WALL)
    chain = (issue(credential, MESH_KEY, MESH),)
    wireguard_key = WireGuardKey(own.id)
    return sign_record(
        Record(own.id, sequence, wireguard_key, version=version, chain=chain), own, MESH
    )


def revocation(name):
    return sign_revocation(
        Revocation(key(name).id, MESH, cascade=False, revoked_at=WALL), MESH_KEY, MESH
    )


def alive(name, incarnation=1):
    return Item(CLAIM_ITEM, sign_claim(incarnation, ALIVE, key=key(name), mesh=MESH).blob)


def left(name, incarnation=1):
    return Item(CLAIM_ITEM, sign_claim(incarnation, LEFT, key=key(name), mesh=MESH).blob)


def accuse(name, incarnation=1, *, by, waited=0.3, asked=()):
    testimony = Testimony(waited, tuple(key(other).id for other in asked))
    claim = sign_accusation(key(name).id, incarnation, testimony, key=key(by), mesh=MESH)
    return Item(CLAIM_ITEM, claim.blob)


class Bench:
    """A node called `me`, whose other members' parts the test plays."""

    def __init__(self, *members, incarnation=1, config=None, now=1000.0):
        self.now = now
        self.ledger = Ledger(MESH)
        for name in ("me", *members):
            self.ledger.merge_untrusted(FactKind.RECORD, record(name), WALL)
        self.node = Node(
            key("me"),
            MESH,
            self.ledger,
            config=config or GossipConfig(),
            rng=random.Random(1),
            now=now,
            incarnation=incarnation,
        )
        self.events = []
        self.sent = []
        self.streams = []
        self._drain()

    def receive(
        self,
        source,
        type_=MessageType.GOSSIP,
        *,
        items=(),
        incarnation=1,
        known=None,
        sequence=0,
        **fields,
    ):
        """Have a message come through a member's tunnel.  Return the answers."""
        message = Message(type_, sequence, incarnation, known, tuple(items), **fields)
        return self.receive_bytes(source, encode(message))

    def ask_over_stream(self, source, type_=MessageType.PING, *, items=(), sequence=0, **fields):
        """Have a message come over a member's TCP connection.  Return the answer, or None."""
        message = Message(type_, sequence, 1, None, tuple(items), **fields)
        return self.ask_bytes_over_stream(source, encode(message))

    def ask_bytes_over_stream(self, source, frame):
        answer = self.node.answer_stream(frame, key(source).id, self.now, WALL)
        self._drain()
        return None if answer is None else decode_untrusted(answer)

    def receive_bytes(self, source, datagram):
        self.node.receive_datagram(datagram, key(source).id, self.now, WALL)
        return self._drain()

    def meet(self, *names, incarnation=1):
        """Have members be heard, with their claims."""
        for name in names:
            self.receive(
                name,
                MessageType.PING,
                items=[alive(name, incarnation)],
                incarnation=incarnation,
                known=self.node.incarnation,
            )

    def advance(self, seconds):
        """Let time pass, with every timer on time.  Return what was sent."""
        end = self.now + seconds
        before = len(self.sent)
        while self.node.get_timer().at <= end:
            self.now = max(self.now, self.node.get_timer().at)
            self.node.handle_timer(self.now)
            self._drain()
        self.now = end
        return self.sent[before:]

    def timeline(self, seconds):
        """Let time pass.  Return what was sent, each with the time since now."""
        begun, end, sent = self.now, self.now + seconds, []
        while self.node.get_timer().at <= end:
            step = self.advance(max(0.0, self.node.get_timer().at - self.now))
            sent += [(self.now - begun, message, target) for message, target in step]
        self.now = end
        return sent

    def advance_to(self, type_):
        """Let time pass until a message of a type is sent.  Return it and its receiver."""
        while True:
            sent = self.advance(max(0.0, self.node.get_timer().at - self.now))
            for message, target in sent:
                if message.type is type_:
                    return message, target

    def run_with(self, seconds, *alive_names):
        """Let time pass while some members answer pings, and the others are silent."""
        end = self.now + seconds
        while self.node.get_timer().at <= end:
            sent = self.advance(max(0.0, self.node.get_timer().at - self.now))
            for name in alive_names:
                for ping in to(sent, name, MessageType.PING):
                    self.receive(name, MessageType.ACK, sequence=ping.sequence)
        self.advance(end - self.now)

    def do(self, method, *args, **options):
        """Call an input of the node.  Return what was sent."""
        getattr(self.node, method)(*args, **options)
        return self._drain()

    def stop(self, seconds):
        """Be stopped: time passes, nothing is handled, nothing is read."""
        self.now += seconds

    def resume(self):
        """Run again after a stop, timers first.  Return what was sent."""
        return self.do("handle_timer", self.now)

    def deadline(self, kind, name=None):
        """In how many seconds a timer of a kind is due, or None."""
        at = self.node._timers.at(kind, None if name is None else key(name).id)
        return None if at is None else at - self.now

    def member(self, name):
        return self.node._membership.get(key(name).id)

    @property
    def health(self):
        return self.node.statistics().health_score

    def state(self, name):
        view = self.node.member(key(name).id)
        return None if view is None else view.state

    def view(self, name):
        return self.node.member(key(name).id)

    def seen(self, type_):
        return [event for event in self.events if isinstance(event, type_)]

    def _drain(self):
        sent = [
            (decode_untrusted(datagram), target)
            for datagram, target in self.node.datagrams_to_send()
        ]
        self.sent += sent
        self.streams += self.node.streams_to_open()
        while (event := self.node.next_event()) is not None:
            self.events.append(event)
        return sent


class Mesh:
    """Real nodes that have met, on a network that loses nothing."""

    def __init__(self, *names, config=None, delay=0.01):
        self.now = 1000.0
        self.events = []
        self.nodes = {}
        self._delay = delay
        self._order = itertools.count()
        self._flying = []
        records = [record(name) for name in names]
        for seed, name in enumerate(names):
            ledger = Ledger(MESH)
            for blob in records:
                ledger.merge_untrusted(FactKind.RECORD, blob, WALL)
            self.nodes[name] = Node(
                key(name),
                MESH,
                ledger,
                config=config or GossipConfig(),
                rng=random.Random(seed),
                now=self.now,
                incarnation=1,
            )
        self._names = {key(name).id: name for name in names}
        for name, node in self.nodes.items():
            for other in names:
                if other != name:
                    node.contact(key(other).id, self.now)
            self._drain(name)

    def give(self, source, target, *items):
        """Have a member say something to another, whatever its own node thinks of that."""
        datagram = encode(Message(MessageType.GOSSIP, 0, 1, None, items))
        self._fly(source, target, datagram)

    def run(self, seconds):
        end = self.now + seconds
        while True:
            name = min(self.nodes, key=lambda one: self.nodes[one].get_timer().at)
            timer = self.nodes[name].get_timer().at
            arrival = self._flying[0][0] if self._flying else math.inf
            if min(timer, arrival) > end:
                break
            if arrival <= timer:
                self.now, _, source, name, datagram = heapq.heappop(self._flying)
                self.nodes[name].receive_datagram(datagram, key(source).id, self.now, WALL)
            else:
                self.now = max(self.now, timer)
                self.nodes[name].handle_timer(self.now)
            self._drain(name)
        self.now = end

    def _fly(self, source, target, datagram):
        arrival = self.now + self._delay
        heapq.heappush(self._flying, (arrival, next(self._order), source, target, datagram))

    def _drain(self, name):
        node = self.nodes[name]
        for datagram, target in node.datagrams_to_send():
            self._fly(name, self._names[target], datagram)
        while (event := node.next_event()) is not None:
            self.events.append(event)


def to(sent, name, type_=None):
    """Of what was sent, the messages for one member."""
    return [
        message
        for message, target in sent
        if target == key(name).id and type_ in {None, message.type}
    ]


def name_of(node, names):
    """Which of some names is a node's."""
    return next(name for name in names if key(name).id == node)


def items_in(sent):
    return [item for message, _ in sent for item in message.items]


def claims(items):
    return [peek_claim_untrusted(item.blob) for item in items if item.kind == CLAIM_ITEM]


def accusations(items, name):
    """Of some items, what is held against a member."""
    subject = key(name).id
    return [claim for claim in claims(items) if claim.subject == subject and not claim.by_subject]
