"""A member that sends too much, or makes up too many: all is bounded, counted, and goes on."""

from dataclasses import replace
from random import Random

import pytest

from adversary.mallory import Village
from engine.engine_world import whole
from meshd.bootstrap.messages import REFERENCE_BYTES
from meshd.codec import pack
from meshd.engine.handover import HANDOVERS_BURST_MAX, Handover
from meshd.engine.sealing import draft_bootstrap
from meshd.gossip.budget import TOO_MUCH, UNITS_BURST_MAX, cost_of
from meshd.gossip.wire import (
    BUCKETS_BYTES,
    CLAIM_ITEM,
    ITEMS_MAX,
    Item,
    Message,
    MessageType,
    encode,
)
from meshd.keys import BootstrapKey, InviteId, NodeId
from meshd.trust.credential import issue
from meshd.trust.epoch import NUMBER_BY_MEMBERS_MAX, BootstrapEpoch, sign_epoch
from meshd.trust.fact import FactKind
from meshd.trust.ledger import NO_ROOM
from meshd.trust.line import line_id

EARLY, MANY = 8, 40


@pytest.fixture(scope="module")
def plain():
    """Attempts that fail leave nothing, so they may share one mesh."""
    return Village(seed=40)


@pytest.fixture
def admitting():
    """Mallory may admit: some of what it makes is kept."""
    return Village(seed=41, admit=True)


def cramped(village, *, places=None, **bounds):
    """Give all tables of the honest members few places, as if they were nearly full."""
    for machine in village.honest:
        if places is not None:
            machine.engine.ledger._places.places_max = places
        for name, value in bounds.items():
            assert hasattr(machine.engine.ledger._held, name)
            setattr(machine.engine.ledger._held, name, value)


def sizes(machine):
    """Return all that an engine could be made to keep by what it is told."""
    gossip = machine.engine.gossip.statistics()
    return {
        "facts": sum(1 for _ in machine.engine.ledger.facts()),
        "waiting pings": gossip.pings_waiting,
        "entries": gossip.entries,
        "news": gossip.broadcasts_queued,
        "handed over": len(machine.engine.admission._handed_over),
        "peers": len(machine.wireguard.observe().peers),
    }


# Through the tunnel


def test_a_flood_of_forged_facts_is_counted_and_nothing_grows(plain):
    held = bytearray(plain.mallory.record_of(plain.admitter))
    rng = Random(1)
    before = sizes(plain.victim)
    with plain.suffer(counted="bad signature"):
        for _ in range(500):
            held[rng.randrange(64)] ^= 1 << rng.randrange(8)
            plain.mallory.tell(plain.victim, bytes(held))
    assert sizes(plain.victim) == before


def test_a_flood_of_claims_is_counted_and_nothing_grows(plain):
    """As many to a datagram as there may be, about nodes that are and are not."""
    mallory = plain.mallory
    strangers = tuple(mallory.key_of_its_own(number).id for number in range(5))
    subjects = (*(machine.node for machine in plain.honest), *strangers)
    blobs = [mallory.claim(node, 7, 0) for node in subjects]
    before = sizes(plain.victim)
    assert len(blobs) <= ITEMS_MAX
    message = Message(MessageType.GOSSIP, 1, items=tuple(Item(CLAIM_ITEM, b) for b in blobs[:6]))
    with plain.suffer(counted="bad signature"):
        for _ in range(500):
            mallory.send(plain.victim, encode(message))
    assert sizes(plain.victim) == before


@pytest.mark.parametrize("kind", list(Handover), ids=lambda kind: kind.name.lower())
def test_a_flood_of_handovers_of_any_kind_is_cut_short(plain, kind):
    """Renewals, offers of pre-shared keys, questions for the bootstrap key, notices, records."""
    rng = Random(2)
    before = sizes(plain.victim)
    with plain.suffer(counted="too many handovers from one member", within=10.0):
        for _ in range(HANDOVERS_BURST_MAX + 50):
            plain.mallory.hand_over(plain.victim, kind, rng.randbytes(64))
    assert sizes(plain.victim) == before


def test_a_flood_of_well_formed_questions_gets_few_answers(plain):
    """Renewals cost a signature each: a member that may not admit spends none."""
    with plain.suffer(
        counted=("renewals asked too often", "too many handovers from one member"), within=10.0
    ):
        for number in range(HANDOVERS_BURST_MAX + 50):
            asked = pack({1: number.to_bytes(REFERENCE_BYTES, "big")})
            plain.mallory.hand_over(plain.victim, Handover.RENEWAL_REQUEST, asked)


def test_pings_on_behalf_of_others_do_not_pile_up(plain):
    target = plain.admitter.node
    gossip = plain.victim.engine.gossip
    before = [plain.state_of(machine) for machine in plain.honest]
    for number in range(1000):
        message = Message(MessageType.PING_REQ, number, target=target)
        plain.mallory.send(plain.victim, encode(message))
    plain.world.run_for(0.05)
    assert gossip.statistics().pings_waiting < 200
    plain.world.run_for(5.0)
    assert [plain.state_of(machine) for machine in plain.honest] == before


def test_a_flood_of_gossip_is_cut_short(plain):
    """Questions that take a long answer each; and Mallory is heard again when it is over."""
    question = encode(Message(MessageType.DIGEST, 1, buckets=bytes(BUCKETS_BYTES)))
    most = UNITS_BURST_MAX // cost_of(question)
    answered = plain.victim.engine.gossip.statistics().datagrams_sent
    with plain.suffer(counted=TOO_MUCH, within=5.0):
        for _ in range(2 * most):
            plain.mallory.send(plain.victim, question)
    answers = plain.victim.engine.gossip.statistics().datagrams_sent - answered
    assert answers < 1.5 * most
    plain.world.run_for(60.0)
    assert whole(*plain.all)


# Tables


def test_made_up_members_fill_no_more_than_half_of_the_table(admitting):
    """Whoever is a member stays one, and is updated; whoever finds no room is counted."""
    village, mallory = admitting, admitting.mallory
    cramped(village, places=2 * EARLY)
    before = {m.name: m.engine.ledger.standing(m.node).record.sequence for m in village.honest}

    for number in range(MANY):
        mallory.tell(village.victim, mallory.sybil(number))
    village.world.run_for(5.0)

    for machine in village.honest:
        assert len(machine.engine.ledger.members()) == len(village.all) + EARLY
        assert machine.engine.bad_packets[NO_ROOM] > 0 or machine is not village.victim
        assert all(machine.engine.ledger.admitted(other.node) for other in village.honest)
    assert len(village.victim.of("member-joined")) >= EARLY, "each shows"
    newcomer = village.world.machine("newcomer")
    newcomer.start(token=village.founder.invite(key="newcomer"))
    village.world.run_until(lambda: whole(*village.honest, newcomer), within=10.0)
    newcomer.leave()
    village.world.run_for(5.0)
    village.admitter.renumber("198.51.100.9")
    village.world.run_for(10.0)
    record = village.victim.engine.ledger.standing(village.admitter.node).record
    assert record.sequence > before["admitter"]
    assert village.victim.ping(village.admitter.ipv4)


def test_made_up_members_go_with_who_made_them_up(admitting):
    """The remedy is one command: `meshctl revoke --cascade`."""
    village, mallory = admitting, admitting.mallory
    for number in range(EARLY):
        mallory.tell(village.victim, mallory.sybil(number))
    village.world.run_until(lambda: len(village.founder.engine.others()) == 3 + EARLY, within=5.0)

    blob = mallory.revocation(mallory.node, key=village.world.mesh_key, cascade=True)
    village.founder.learn(FactKind.REVOCATION, blob)
    village.world.run_for(5.0)

    for machine in village.honest:
        assert len(machine.engine.others()) == 2
        assert len(machine.wireguard.observe().peers) == 2


def test_made_up_admitters_bring_in_no_more_than_who_made_them_up(admitting):
    """Ten of them, ten members each: all are in on Mallory's word."""
    village, mallory = admitting, admitting.mallory
    cramped(village, places=2 * EARLY)
    for number in range(10):
        key = mallory.key_of_its_own(f"admitter {number}")
        chain = (*mallory.chain, mallory.credential(key.id, name=f"a{number}", admit=True))
        for each in range(10):
            mallory.tell(village.victim, mallory.sybil(f"{number}-{each}", chain=chain, by=key))
    village.world.run_for(5.0)

    for machine in village.honest:
        assert len(machine.engine.ledger.members()) == len(village.all) + EARLY
    assert village.victim.engine.bad_packets[NO_ROOM] > 0


def test_made_up_members_give_up_their_places_once_they_are_out(admitting):
    """To whoever is one, at every member; and the same ones told again do not get them back."""
    village, mallory = admitting, admitting.mallory
    cramped(village, places=2 * EARLY)
    made_up = [mallory.sybil(number) for number in range(EARLY)]
    mallory.tell(village.victim, *made_up)
    village.world.run_until(lambda: len(village.founder.engine.others()) == 3 + EARLY, within=5.0)
    blob = mallory.revocation(mallory.node, key=village.world.mesh_key, cascade=True)
    village.founder.learn(FactKind.REVOCATION, blob)
    village.world.run_for(2.0)

    keys = [mallory.key_of_its_own(f"honest {number}") for number in range(2 * EARLY - 3)]
    chain, by = village.founder.engine.identity.chain, village.founder.disk.node_key
    for key in keys:
        link = mallory.credential(key.id, name=f"h{key.id.short}", by=by)
        village.founder.learn(FactKind.RECORD, mallory.record(key=key, chain=(*chain, link)))
    village.world.run_for(5.0)

    for machine in village.honest:
        members = machine.engine.ledger.members()
        assert len(members) == 2 * EARLY
        assert all(standing.admitted for standing in members.values())
        assert len(machine.of("record-evicted")) >= EARLY
        for fact in made_up:
            machine.learn(FactKind.RECORD, fact)
        assert len(members) == 2 * EARLY
        assert machine.engine.bad_packets[NO_ROOM] >= EARLY


@pytest.mark.parametrize("lies", [False, True], ids=["as it was let in", "by a shortened line"])
def test_made_up_members_that_others_renewed_go_with_who_made_them_up(admitting, lies):
    """An honest admitter renews it; it is in on Mallory's word all the same."""
    village, mallory, world = admitting, admitting.mallory, admitting.world
    crony = world.machine("crony")
    crony.start(token=village.bad.invite(key="crony", lifetime=60))
    world.run_until(lambda: whole(*village.all, crony), within=10.0)
    if lies:
        # The founder has let it in, says Mallory, long ago, and Mallory has only renewed it.
        own = crony.engine.own_credential
        link = issue(
            replace(
                own,
                issuer=mallory.node,
                admitted_at=own.admitted_at - 9,
                line=(line_id(NodeId(bytes(32))),),
            ),
            mallory.key,
            mallory.mesh,
        )
        lying = replace(crony.engine.identity, chain=(*mallory.chain, link), origin=())
        crony.engine.become(lying, crony.now)
    crony.engine.renewal._choose = lambda *_: village.admitter.node
    for _ in range(2):
        issued = crony.engine.own_credential.issued_at
        world.run_until(
            lambda issued=issued: crony.engine.own_credential.issued_at > issued, within=120.0
        )
    assert all(link.subject != mallory.node for link in crony.engine.own_chain)
    world.run_for(2.0)

    blob = mallory.revocation(mallory.node, key=world.mesh_key, cascade=True)
    village.founder.learn(FactKind.REVOCATION, blob)
    world.run_for(3.0)

    for machine in village.honest:
        assert not machine.engine.ledger.admitted(crony.node)
        assert not machine.has_peer_at(crony.disk.identity.ipv6)
    assert crony.of("revoked")


def test_members_let_in_by_its_tokens_elsewhere_go_with_who_made_the_tokens(admitting):
    village, mallory, world = admitting, admitting.mallory, admitting.world
    crony = world.machine("crony")
    crony.start(token=village.bad.invite(key="crony", seeds=[village.admitter]))
    world.run_until(lambda: whole(*village.all, crony), within=10.0)
    assert crony.engine.own_credential.issuer == village.admitter.node

    blob = mallory.revocation(mallory.node, key=world.mesh_key, cascade=True)
    village.founder.learn(FactKind.REVOCATION, blob)
    world.run_for(3.0)

    for machine in village.honest:
        assert not machine.engine.ledger.admitted(crony.node)


def test_an_admitters_revocations_leave_room_for_the_mesh_keys(admitting):
    """It fills three quarters with nodes that do not exist; the mesh key still puts it out."""
    village, mallory = admitting, admitting.mallory
    cramped(village, revocations_max=EARLY, revocations_by_members_max=EARLY * 3 // 4)
    blobs = [mallory.revocation(NodeId(number.to_bytes(32, "big"))) for number in range(1, MANY)]

    with village.suffer_some("facts", counted=NO_ROOM):
        mallory.tell(village.victim, *blobs, kind=FactKind.REVOCATION)
    for machine in village.honest:
        assert machine.engine.ledger.statistics().revocations == EARLY * 3 // 4
    own = mallory.revocation(mallory.node, key=village.world.mesh_key)
    village.founder.learn(FactKind.REVOCATION, own)
    village.world.run_for(5.0)
    for machine in village.honest:
        assert not machine.engine.ledger.admitted(mallory.node)
        assert not machine.has_peer_at(village.bad.disk.identity.ipv6)


def test_uses_of_invites_that_nobody_made_fill_no_more_than_the_table(admitting):
    village, mallory = admitting, admitting.mallory
    cramped(village, invite_uses_max=EARLY)
    blobs = [
        mallory.use(InviteId(number.to_bytes(32, "big")), mallory.node) for number in range(MANY)
    ]

    with village.suffer_some("facts", counted=NO_ROOM):
        mallory.tell(village.victim, *blobs, kind=FactKind.INVITE_USE)
    for machine in village.honest:
        assert machine.engine.ledger.statistics().invite_uses == EARLY


def test_an_epoch_with_no_key_to_it_ends_when_its_maker_is_out(admitting):
    """The greatest number, and no key: all go on with theirs, and the mesh key begins another."""
    village, mallory, world = admitting, admitting.mallory, admitting.world
    epoch = BootstrapEpoch(
        NUMBER_BY_MEMBERS_MAX, b"x" * 32, mallory.node, mallory.wall, mallory.chain
    )
    blob = sign_epoch(epoch, mallory.key, mallory.mesh)
    beyond = sign_epoch(replace(epoch, number=2**32 - 1), mallory.key, mallory.mesh)
    with village.suffer_some("facts", "epoch", counted="epoch with a number for roots"):
        mallory.tell(village.victim, beyond, blob, kind=FactKind.BOOTSTRAP_EPOCH)
    assert all(m.engine.identity.bootstrap_key == world.bootstrap_key for m in village.honest)

    own = mallory.revocation(mallory.node, key=world.mesh_key, cascade=True)
    village.founder.learn(FactKind.REVOCATION, own)
    world.run_for(3.0)
    engine, key = village.founder.engine, BootstrapKey(b"n" * 32)
    draft = draft_bootstrap(engine, key, village.founder.wall, mesh_key=world.mesh_key)
    engine.publish(draft, village.founder.now, village.founder.wall)
    village.founder.drain()

    world.run_until(
        lambda: all(m.engine.identity.bootstrap_key == key for m in village.honest), within=60.0
    )
    assert village.bad.engine.identity.bootstrap_key != key


# Saying two things at once


def test_two_records_of_one_sequence_end_as_one_everywhere_and_show(plain):
    """Each half of the mesh is told another one."""
    mallory = plain.mallory
    one = mallory.record(version="one")
    other = mallory.record(version="other")
    with plain.suffer(seen="identity-cloned", at=plain.honest):
        mallory.tell(plain.founder, one)
        mallory.tell(plain.victim, other)
        mallory.tell(plain.admitter, one, other)
        mallory.tell(plain.founder, other)
        mallory.tell(plain.victim, one)
    held = {m.engine.ledger.standing(mallory.node).blob for m in plain.honest}
    assert len(held) == 1


# Several encodings of one thing


def test_no_encoding_of_its_words_gets_a_member_past_its_revocation():
    """What is revoked is the node, whatever bytes its record and its credential are written in."""
    village = Village(seed=42)
    mallory = village.mallory
    own = village.mallory.revocation(mallory.node, key=village.world.mesh_key)
    record = mallory.record()
    body = record[64:]
    size = body[0] & 0x0F
    assert body[0] == 0x80 | size
    longer = bytes([0xDE, 0, size]) + body[1:]  # the same map, its length in two bytes
    again = mallory.key.sign(b"meshd.record.1\0" + mallory.mesh + longer) + longer
    village.founder.learn(FactKind.REVOCATION, own)
    village.world.run_until(
        lambda: not any(m.engine.ledger.admitted(mallory.node) for m in village.honest), within=5.0
    )

    for machine in village.honest:
        for blob in (record, again):
            machine.learn(FactKind.RECORD, blob)
    village.world.run_for(3.0)

    for machine in village.honest:
        assert not machine.engine.ledger.admitted(mallory.node)
        assert not machine.has_peer_at(village.bad.disk.identity.ipv6)


def test_one_revocation_in_many_encodings_takes_one_place(admitting):
    village, mallory = admitting, admitting.mallory
    nobody = NodeId(b"\x07" * 32)
    blobs = [mallory.revocation(nobody, revoked_at=mallory.wall - number) for number in range(MANY)]
    with village.suffer_some("facts", counted=()):
        mallory.tell(village.victim, *blobs, kind=FactKind.REVOCATION)
    for machine in village.honest:
        assert machine.engine.ledger.statistics().revocations == 1
