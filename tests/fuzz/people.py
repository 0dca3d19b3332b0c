"""Who is about when a node is fuzzed, and everything that they can validly say.

- me: the node itself
- a b c h … o: members that have gone bad: the fuzzer signs whatever it likes with their keys
- d e f g: honest members: of theirs there is only what they would have signed
- x y: admitted, but not known to the node until it is given their records
- s: a stranger, with a key and no record
"""

from __future__ import annotations

import functools

from gossip.harness import MESH, key, record, revocation
from meshd.codec import pack
from meshd.gossip.claim import (
    INCARNATION_MAX,
    MemberState,
    Testimony,
    sign_accusation,
    sign_claim,
)
from meshd.gossip.index import entry_id
from meshd.gossip.wire import (
    BUCKETS_BYTES,
    CLAIM_ITEM,
    ID_BYTES,
    ITEM_BYTES_MAX,
    ITEMS_MAX,
    SEQUENCE_MAX,
    UINT_MAX,
    EntrySummary,
    Item,
    Message,
    MessageType,
    Summary,
    encode,
)
from meshd.keys import MeshKey
from meshd.trust.fact import FactKind
from meshd.trust.signed import Statement, sign

OWN = "me"
BAD = ("a", "b", "c", *"hijklmno")  # more than accusations are kept of
HONEST = ("d", "e", "f", "g")
NEWCOMERS = ("x", "y")
STRANGERS = ("s",)
MEMBERS = (*BAD, *HONEST)
NAMES = (OWN, *MEMBERS, *NEWCOMERS, *STRANGERS)
NODES = {name: key(name).id for name in NAMES}
NAME_OF = {node: name for name, node in NODES.items()}

HONEST_INCARNATION_MAX = 1000  # the last one that an honest member has ever claimed
ALL_BUCKETS = 2**64 - 1
FIRST_ID, LAST_ID = bytes(ID_BYTES), b"\xff" * ID_BYTES
_OTHER_MESH = MeshKey(b"another mesh".ljust(32, b"\0")).id
_SIGNED_MAX = 1 << 10  # full before memory is first looked at
_LAST_INCARNATIONS = (INCARNATION_MAX - 1, INCARNATION_MAX)

ALIVE, SUSPECT, DEAD, LEFT = MemberState


@functools.lru_cache(_SIGNED_MAX)
def said(name, incarnation, state=ALIVE, mesh=MESH):
    """Return a member's word on itself."""
    return Item(CLAIM_ITEM, sign_claim(incarnation, state, key=key(name), mesh=mesh).blob)


@functools.lru_cache(_SIGNED_MAX)
def accused(name, incarnation, by, waited=0.3):
    """Return an accusation."""
    testimony = Testimony(waited, (NODES["b"], NODES["d"]) if waited else ())
    claim = sign_accusation(NODES[name], incarnation, testimony, key=key(by), mesh=MESH)
    return Item(CLAIM_ITEM, claim.blob)


def signed_claim(tree, by):
    """Return a claim with any body at all, truly signed by somebody."""
    return Item(CLAIM_ITEM, sign(Statement.CLAIM, MESH, key(by), pack(tree)))


def signed_record(body, by):
    """Return a record with any body at all, truly signed by somebody."""
    return Item(FactKind.RECORD, sign(Statement.RECORD, MESH, key(by), body))


@functools.cache
def items():
    """Return everything that is worth an item: true, old, forged, and misplaced."""
    claims = [said(name, incarnation) for name in MEMBERS for incarnation in range(4)]
    claims += [said(name, 1, LEFT) for name in ("c", "g")]
    claims += [said(OWN, incarnation) for incarnation in (0, 1, 2)]
    claims += [said("a", 1, mesh=_OTHER_MESH), said("x", 1), said("s", 1)]
    accusations = [
        accused(name, incarnation, by)
        for name in (OWN, "c", "d", "e")
        for incarnation in (0, 1, 2)
        for by in ("a", "b", "f", "x", "s")
    ]
    accusations += [accused("d", 1, "a", waited=0), accused("d", INCARNATION_MAX, "b")]
    return claims + accusations + _forged() + facts()


@functools.cache
def boasts():
    """Return claims after which their subjects have nothing left to say.  Not for every life."""
    claims = [said(name, HONEST_INCARNATION_MAX) for name in HONEST]
    claims += [said(name, incarnation) for name in BAD for incarnation in _LAST_INCARNATIONS]
    return [*claims, said(OWN, INCARNATION_MAX - 1)]


def _forged():
    """Signed by "a", in the name of others."""
    body = {1: bytes(NODES["d"]), 2: HONEST_INCARNATION_MAX + 1, 3: int(ALIVE)}
    theirs = [body, body | {3: int(LEFT)}, body | {2: 1, 3: int(DEAD), 4: bytes(NODES["a"])}]
    theirs += [body | {2: 1, 3: int(SUSPECT), 4: bytes(NODES["e"]), 5: 300}]
    theirs += [body | {1: bytes(NODES[OWN]), 2: 99}]
    return [signed_claim(tree, "a") for tree in theirs]


@functools.cache
def facts():
    """Return records and revocations, equivocations among them."""
    names = (*MEMBERS, *NEWCOMERS)
    records = [record(name, sequence) for name in names for sequence in (1, 2)]
    records += [record("a", 2, version="0.2.0")]
    revocations = [revocation("g"), revocation("y")]
    return [Item(FactKind.RECORD, blob) for blob in records] + [
        Item(FactKind.REVOCATION, blob) for blob in revocations
    ]


def fitting(chosen):
    """Return as many items as fit a datagram."""
    budget = ITEM_BYTES_MAX
    taken = []
    for item in chosen[:ITEMS_MAX]:
        if item.cost <= budget:
            budget -= item.cost
            taken.append(item)
    return tuple(taken)


@functools.cache
def datagrams(*, boasting=True):
    """Return valid datagrams of every type."""
    every = items() + boasts() if boasting else items()
    groups = [fitting(every[at : at + 4]) for at in range(0, len(every), 4)]
    carriers = [MessageType.PING, MessageType.ACK, MessageType.GOSSIP, MessageType.FACTS]
    made = [
        Message(carriers[number % 4], number, number % 3, (None, 0, 1)[number % 3], group)
        for number, group in enumerate(groups)
    ]
    made += [Message(type_, SEQUENCE_MAX, UINT_MAX, UINT_MAX) for type_ in carriers]
    made += [Message(type_, 7) for type_ in carriers]
    for type_ in (MessageType.PING_REQ, MessageType.NACK, MessageType.ACK):
        made += [Message(type_, 7, target=node) for node in NODES.values()]
    made += [Message(MessageType.DIGEST, 7, buckets=bytes(BUCKETS_BYTES))]
    made += [Message(MessageType.WANT, 7, ids=tuple(_ids()[:32]))]
    made += [Message(MessageType.SUMMARY, 7, summary=summary) for summary in _summaries()]
    return [encode(message) for message in made]


@functools.cache
def _ids():
    nodes = NODES.values()
    return [entry_id(kind, node) for kind in (CLAIM_ITEM, FactKind.RECORD) for node in nodes]


def _summaries():
    entries = tuple(EntrySummary(id_, 5, bytes(8)) for id_ in sorted(_ids()))
    return [
        Summary(0, FIRST_ID, LAST_ID),
        Summary(ALL_BUCKETS, FIRST_ID, LAST_ID, entries),
        Summary(ALL_BUCKETS, FIRST_ID, entries[3].id, entries[:4]),
        Summary(ALL_BUCKETS, LAST_ID, FIRST_ID, entries[:1]),
    ]
