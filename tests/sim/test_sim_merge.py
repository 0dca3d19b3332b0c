"""Whatever the order in which it is told, and how often, a node comes to hold the same."""

from random import Random

import pytest

from gossip.harness import MESH, WALL, alive, key, left, record, revocation
from meshd.codec import pack
from meshd.gossip.claim import INCARNATION_MAX, MemberState
from meshd.gossip.config import GossipConfig
from meshd.gossip.node import Node
from meshd.gossip.wire import CLAIM_ITEM, Item, Message, MessageType, encode
from meshd.trust.fact import FactKind
from meshd.trust.ledger import Ledger
from meshd.trust.signed import Statement, sign

MEMBERS = ["teller", "ann", "bob", "cid", "dan"]
ROUNDS = 3  # what had to wait for something else comes again, as by anti-entropy


def accusation(subject, incarnation, *, by):
    fields = {1: bytes(key(subject).id), 2: incarnation, 3: int(MemberState.SUSPECT)}
    fields |= {4: bytes(key(by).id), 5: 100}
    return Item(CLAIM_ITEM, sign(Statement.CLAIM, MESH, key(by), pack(fields)))


def everything():
    """Records in several versions, a revocation, and claims of all kinds, true and superseded."""
    items = [alive("teller")]
    for name in MEMBERS[1:]:
        items += [Item(FactKind.RECORD, record(name, sequence)) for sequence in (1, 2, 3)]
        items += [alive(name, incarnation) for incarnation in (1, 2, 5)]
        items += [accusation(name, 2, by=other) for other in MEMBERS if other != name]
        items.append(accusation(name, INCARNATION_MAX, by="teller"))
    return [*items, left("bob", 3), left("cid", 5), Item(FactKind.REVOCATION, revocation("dan"))]


def told(items):
    """Return a node that was told these, one by one."""
    ledger = Ledger(MESH)
    for name in ("me", "teller"):
        ledger.merge_untrusted(FactKind.RECORD, record(name), WALL)
    rng = Random(1)
    node = Node(key("me"), MESH, ledger, config=GossipConfig(), rng=rng, now=0.0, incarnation=1)
    for item in items:
        datagram = encode(Message(MessageType.GOSSIP, 0, items=(item,)))
        node.receive_datagram(datagram, key("teller").id, 0.0, WALL)
        node.datagrams_to_send()
    return node, ledger


def held(node, ledger):
    """What must not depend on the order: who is a member, what each said last, all facts."""
    views = [(v.node, v.incarnation, v.state is MemberState.LEFT) for v in node.members()]
    return views, list(ledger.facts()), node._index.buckets()


@pytest.mark.parametrize("seed", range(20))
def test_incarnations_records_and_revocations_come_out_the_same_in_any_order(seed):
    rng = Random(seed)
    items = everything()
    expected = held(*told(items * ROUNDS))
    shuffled = [item for _ in range(ROUNDS) for item in rng.sample(items, len(items))]

    found = held(*told(shuffled + rng.choices(items, k=20)))

    assert found[:2] == expected[:2]
    assert key("dan").id not in {node for node, *_ in found[0]}
    incarnations = {node: incarnation for node, incarnation, _ in found[0]}
    assert incarnations[key("ann").id] == 5
    assert found[2] == expected[2]
