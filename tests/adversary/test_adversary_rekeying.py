"""A member, or a thief of a former key, that plays with what it takes to go on under another id."""

from dataclasses import replace

import pytest

from adversary.mallory import TIME_TO_ACT, Village
from engine.engine_world import all_ping, whole
from meshd.codec import pack
from meshd.engine.handover import Handover
from meshd.engine.rekeying import SPREAD_TIME
from meshd.keys import NodeKey
from meshd.trust.credential import Credential, issue
from meshd.trust.fact import FactKind
from meshd.trust.node_succession import sign_former_word, sign_node_succession
from meshd.trust.record import sign_record
from meshd.trust.revocation import Revocation, sign_revocation


@pytest.fixture
def village():
    return Village(seed=40)


@pytest.fixture(scope="module")
def shared():
    """Attempts that fail leave nothing, so they may share one mesh."""
    return Village(seed=40)


class Posing:
    """A key that claims to be another's."""

    def __init__(self, id_, key):
        self.id, self.sign = id_, key.sign


def rekey(village, machine):
    """Have a member go on under another id.  Return its former key."""
    former = machine.disk.node_key
    key = NodeKey(village.world.secret(f"next {machine.name}"))
    machine.engine.rotate_node_key(key, None, machine.now, machine.wall)
    machine.drain()
    village.world.run_until(lambda: machine.node == key.id, within=SPREAD_TIME + 5.0)
    village.world.run_until(lambda: whole(*village.all), within=5.0)
    return former


def succeeding(village, machine, key, *, chain=None, former=None, dated=0):
    """Return a record of `key` in a member's place, with the chain that it has or another one."""
    mesh = village.world.mesh
    record = village.bad.engine.ledger.standing(machine.node).record
    word = b"" if former is None else sign_former_word(former, key.id, mesh, dated)
    chain = record.chain if chain is None else chain
    return sign_record(replace(record, node=key.id, chain=chain, former_word=word), key, mesh)


# A member without any key but its own


def test_a_succession_of_another_member_that_it_has_not_signed_is_nobodys(shared):
    mallory, victim = shared.mallory, shared.victim
    mine = mallory.key_of_its_own("heir")
    forged = sign_node_succession(
        Posing(victim.node, mallory.key), mine, mallory.mesh, dated=mallory.wall
    )
    with shared.suffer(counted="bad signature"):
        mallory.tell(victim, forged.blob, kind=FactKind.NODE_SUCCESSION)
        mallory.tell(shared.founder, forged.blob, kind=FactKind.NODE_SUCCESSION)


def test_a_member_does_not_become_the_successor_of_another_one_without_its_key(shared):
    """Signed by the former key alone: whoever it names has not agreed."""
    mallory, victim = shared.mallory, shared.victim
    forged = sign_node_succession(
        mallory.key, Posing(victim.node, mallory.key), mallory.mesh, dated=mallory.wall
    )
    with shared.suffer(counted="bad signature"):
        mallory.tell(victim, forged.blob, kind=FactKind.NODE_SUCCESSION)


def test_nobody_gets_a_credential_for_anothers_next_key(shared):
    mallory = shared.mallory
    mine = mallory.key_of_its_own("heir")
    forged = sign_node_succession(
        Posing(shared.victim.node, mallory.key), mine, mallory.mesh, dated=mallory.wall
    )
    with shared.suffer(counted="bad signature", at=(shared.founder,)):
        mallory.hand_over(
            shared.founder, Handover.REKEY_REQUEST, pack({1: bytes(8), 2: forged.blob})
        )


def test_a_member_cannot_widen_what_it_has_by_a_new_key(village):
    """It asks as anybody would, and gets what it had: no more is in the request."""
    former = rekey(village, village.bad)

    credential = village.bad.engine.own_credential
    assert (credential.admit, credential.routes, credential.relay) == (False, (), False)
    assert credential.succeeds == former.id


# A thief of the former key, after its owner has gone on


def test_a_former_key_admits_nobody_whatever_date_it_writes(village):
    chain = village.admitter.engine.identity.chain
    thief = rekey(village, village.admitter)
    mallory = village.mallory
    friend = mallory.key_of_its_own("friend")
    dated = village.admitter.engine.own_credential.admitted_at + 1
    credential = Credential(
        thief.id, friend.id, "friend", admitted_at=dated, issued_at=dated, admit=True
    )
    let_in = (*chain, issue(credential, thief, mallory.mesh))
    for machine in village.honest:
        mallory.tell(machine, succeeding(village, village.bad, friend, chain=let_in))

    village.world.run_for(TIME_TO_ACT)

    for machine in village.honest:
        assert machine.engine.ledger.standing(friend.id).unfounded
        assert not machine.engine.ledger.admitted(friend.id)
    assert all_ping(*village.honest)


def test_a_former_key_revokes_nobody(village):
    chain = village.admitter.engine.identity.chain
    thief = rekey(village, village.admitter)
    mallory = village.mallory
    blob = sign_revocation(
        Revocation(village.victim.node, thief.id, True, mallory.wall - 100, chain),
        thief,
        mallory.mesh,
    )
    for machine in village.honest:
        mallory.tell(machine, blob, kind=FactKind.REVOCATION)

    village.world.run_for(TIME_TO_ACT)

    assert whole(*village.honest)
    for machine in village.honest:
        assert machine.engine.ledger.admitted(village.victim.node)


def test_a_rival_that_a_former_key_names_takes_nothing_without_a_credential(village):
    thief = rekey(village, village.victim)
    mallory = village.mallory
    mine = mallory.key_of_its_own("heir")
    rival = sign_node_succession(thief, mine, mallory.mesh, dated=0)
    with_its_own_chain = succeeding(village, village.bad, mine, former=thief)
    for machine in village.honest:
        mallory.tell(machine, rival.blob, kind=FactKind.NODE_SUCCESSION)
        mallory.tell(machine, with_its_own_chain)

    village.world.run_for(TIME_TO_ACT)

    assert whole(*village.honest)
    for machine in village.honest:
        assert machine.engine.ledger.name_owner("victim") == village.victim.node
        assert machine.engine.bad_packets["credential of another subject"] > 0


def test_a_bad_admitter_takes_no_member_away_without_its_key():
    """Its credential says that it succeeds the victim, and it has no word of the victim's."""
    village = Village(seed=41, admit=True)
    mallory, victim = village.mallory, village.victim
    mine = mallory.key_of_its_own("heir")
    credential = Credential(
        mallory.node,
        mine.id,
        "victim",
        admitted_at=mallory.wall,
        issued_at=mallory.wall,
        succeeds=victim.node,
    )
    chain = (*mallory.chain, issue(credential, mallory.key, mallory.mesh))
    with village.suffer(counted=("bad signature", "word of a former node key of the wrong length")):
        for former in (None, mallory.key):
            mallory.tell(victim, succeeding(village, victim, mine, chain=chain, former=former))


def test_a_plain_member_is_no_rival_though_a_former_key_names_it(village):
    thief = rekey(village, village.victim)
    mallory = village.mallory
    rival = sign_node_succession(thief, mallory.key, mallory.mesh, dated=0)
    for machine in village.honest:
        mallory.tell(machine, rival.blob, kind=FactKind.NODE_SUCCESSION)

    village.world.run_for(TIME_TO_ACT)

    assert whole(*village.all)
    for machine in village.honest:
        assert machine.engine.ledger.names()[village.bad.node] == "mallory"
        assert machine.engine.ledger.names()[village.victim.node] == "victim"


def test_what_a_former_key_still_says_is_not_heard(village):
    record = village.bad.engine.ledger.standing(village.victim.node).record
    thief = rekey(village, village.victim)
    newer = sign_record(replace(record, sequence=record.sequence + 9), thief, village.world.mesh)
    for machine in village.honest:
        village.mallory.tell(machine, newer)

    village.world.run_for(TIME_TO_ACT)

    assert whole(*village.all)
    for machine in village.honest:
        assert machine.engine.gossip.member(thief.id) is None
        assert not machine.has_peer_at(machine.engine.ipv6_of(thief.id))


# Two rivals that both have a credential: two copies went on, or one with `admit` is bad


@pytest.mark.parametrize("first", [0, 1])
def test_two_rival_successions_end_alike_everywhere(village, first):
    world, victim = village.world, village.victim
    keys = [village.mallory.key_of_its_own(f"heir {number}") for number in range(2)]
    credential = victim.engine.own_credential
    facts = []
    for number, key in enumerate(keys):
        claim = replace(
            credential,
            issuer=village.founder.node,
            subject=key.id,
            succeeds=victim.node,
            invite=None,
        )
        chain = (
            *village.founder.engine.identity.chain,
            issue(claim, village.founder.disk.node_key, world.mesh),
        )
        former, dated = victim.disk.node_key, int(world.wall) + number
        made = sign_node_succession(former, key, world.mesh, dated=dated)
        record = succeeding(village, victim, key, chain=chain, former=former, dated=dated)
        facts.append(((FactKind.NODE_SUCCESSION, made.blob), (FactKind.RECORD, record)))
    victim.kill()
    for machine, which in ((village.founder, first), (village.admitter, 1 - first)):
        for kind, blob in facts[which]:
            machine.learn(kind, blob)

    world.run_for(TIME_TO_ACT)

    for machine in (village.founder, village.admitter, village.bad):
        ledger = machine.engine.ledger
        assert ledger.admitted(keys[0].id)
        assert not ledger.admitted(keys[1].id)
        assert not ledger.admitted(victim.node)
        assert ledger.name_owner("victim") == keys[0].id


# Revocation has the last word


def revoke(machine, node):
    draft = machine.engine.revoking.draft(node, cascade=False, mesh_key=None, wall=machine.wall)
    machine.engine.revoke(draft, machine.now, machine.wall)
    machine.drain()


def test_a_succession_of_a_revoked_id_brings_nobody_back(village):
    """Its owner had all it takes before it was thrown out, and shows it afterwards."""
    bad, former = village.bad, village.bad.node
    key = village.mallory.key_of_its_own("heir")
    bad.engine.rotate_node_key(key, None, bad.now, bad.wall)
    bad.drain()
    village.world.run_for(SPREAD_TIME - 0.1)
    revoke(village.founder, former)

    village.world.run_for(TIME_TO_ACT + SPREAD_TIME)

    for machine in village.honest:
        assert not machine.engine.ledger.admitted(key.id)
        assert not machine.has_peer(bad)
    assert whole(*village.honest)


@pytest.mark.parametrize("which", ["former", "present"])
def test_a_revocation_of_either_id_ends_the_member(village, which):
    former = rekey(village, village.bad).id
    revoke(village.founder, former if which == "former" else village.bad.node)

    village.world.run_for(TIME_TO_ACT)

    for machine in village.honest:
        assert not machine.engine.ledger.admitted(village.bad.node)
        assert not machine.has_peer(village.bad)
    assert "revoked by founder" in village.bad.engine.revoking.text


def test_nobody_makes_a_member_silent_by_a_succession_that_it_has_not_signed(shared):
    mallory, victim = shared.mallory, shared.victim
    own = sign_node_succession(
        mallory.key, mallory.key_of_its_own("heir"), mallory.mesh, dated=mallory.wall
    )
    before = victim.engine.bad_packets["told of a succession that is not ours"]

    victim.engine.rekeyed.take_untrusted(own.blob)
    victim.engine.rekeyed.take_untrusted(own.blob[:-1])

    assert victim.engine.bad_packets["told of a succession that is not ours"] == before + 1
    assert victim.engine.rekeyed.successor is None
    assert whole(*shared.all)
