"""One real node on a table, its ledger filled with real records, and hands that sign anything."""

import random

from meshd.gossip.claim import MemberState, sign_claim
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
    return Item(
        CLAIM_ITEM, sign_claim(key(name).id, incarnation, ALIVE, key=key(name), mesh=MESH).blob
    )


def left(name, incarnation=1):
    return Item(
        CLAIM_ITEM, sign_claim(key(name).id, incarnation, LEFT, key=key(name), mesh=MESH).blob
    )


def accuse(name, incarnation=1, *, by, state=SUSPECT):
    return Item(
        CLAIM_ITEM, sign_claim(key(name).id, incarnation, state, key=key(by), mesh=MESH).blob
    )


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

    def do(self, method, *args):
        """Call an input of the node.  Return what was sent."""
        getattr(self.node, method)(*args)
        return self._drain()

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
        while (event := self.node.next_event()) is not None:
            self.events.append(event)
        return sent


def to(sent, name, type_=None):
    """Of what was sent, the messages for one member."""
    return [
        message
        for message, target in sent
        if target == key(name).id and type_ in {None, message.type}
    ]


def items_in(sent):
    return [item for message, _ in sent for item in message.items]
