"""Throwing members out: who may, what it comes to, who hears of it, what the revoked one does."""

from random import Random

import pytest

from engine.engine_world import World, all_ping, whole
from meshd.bootstrap.responder import PENDING_LIFETIME
from meshd.engine.entry import REFUSED_INTERVAL
from meshd.engine.handover import Handover, mark
from meshd.keys import MeshKey
from meshd.trust.fact import FactKind
from meshd.trust.revocation import Revocation, sign_revocation
from meshd.underlay import DatagramType


def founded(seed, *names, **grants):
    """Return a world with a founder, and members that it has let in by tokens."""
    world = World(seed=seed)
    founder, *others = (world.machine(name) for name in ("founder", *names))
    founder.start()
    for machine in others:
        machine.start(token=founder.invite(key=machine.name, **grants))
    world.run_until(lambda: whole(founder, *others), within=5.0)
    return world, founder, *others


def draft(machine, subject, *, cascade=False, mesh_key=None):
    return machine.engine.revoking.draft(
        subject.node, cascade=cascade, mesh_key=mesh_key, wall=machine.wall
    )


def revoke(machine, subject, **options):
    """Do what `meshctl revoke` does."""
    fact = machine.engine.revoke(draft(machine, subject, **options), machine.now, machine.wall)
    machine.drain()
    return fact


def gone(revoked, *members):
    """Whether no member has anything left of the revoked one."""
    address = members[0].engine.ipv6_of(revoked.node)
    return all(m.state_of(revoked) is None and not m.has_peer_at(address) for m in members)


# Who may, and what it comes to


def test_a_member_with_admit_revokes_by_its_own_key():
    world, founder, x, y, mallory = founded(1, "x", "y", "mallory", admit=True)

    made = draft(x, mallory)
    revoke(x, mallory)

    assert made.revocation.signer == x.node
    world.run_until(lambda: gone(mallory, founder, x, y), within=1.0)
    assert whole(founder, x, y)


def test_a_member_without_admit_can_sign_none():
    _, founder, x, mallory = founded(2, "x", "mallory")

    assert draft(x, mallory) is None
    assert draft(founder, mallory) is not None


def test_the_mesh_key_signs_where_it_is_held_because_its_word_is_the_last():
    world, founder, mallory = founded(3, "mallory")

    assert draft(founder, mallory, mesh_key=world.mesh_key).revocation.signer == world.mesh
    other = MeshKey(bytes(32))
    assert draft(founder, mallory, mesh_key=other).revocation.signer == founder.node


def test_a_draft_says_who_would_fall_and_who_would_stay_and_changes_nothing():
    world, founder, x, y = founded(4, "x", "y", admit=True)
    friend = world.machine("friend")
    friend.start(token=x.invite())
    world.run_until(lambda: whole(founder, x, y, friend), within=5.0)
    before = [fact.digest for fact in y.engine.ledger.facts()]

    alone, cascading = draft(y, x), draft(y, x, cascade=True)

    assert (alone.falls, alone.stays) == ((x.node,), (friend.node,))
    assert set(cascading.falls) == {x.node, friend.node}
    assert cascading.stays == ()
    assert [fact.digest for fact in y.engine.ledger.facts()] == before


def test_a_cascade_that_would_put_out_its_signer_is_foreseen():
    world, founder, x = founded(5, "x", admit=True)
    y = world.machine("y")
    y.start(token=x.invite(admit=True))
    world.run_until(lambda: whole(founder, x, y), within=5.0)

    assert y.node in draft(y, x, cascade=True).falls
    assert y.node not in draft(y, x).falls


def test_revoking_twice_changes_nothing_but_a_cascade_may_follow():
    world, founder, x, mallory = founded(6, "x", "mallory", admit=True)
    revoke(founder, mallory)
    world.run_for(1.0)

    assert not draft(founder, mallory).changes
    assert not draft(x, mallory).changes
    assert draft(founder, mallory, cascade=True).changes


# How soon, and for how long


def test_twenty_members_have_dropped_the_revoked_one_within_a_tenth_of_a_second():
    world = World(seed=7)
    first, *others = world.mesh_of(20)
    *others, mallory = others

    revoke(first, mallory)

    world.run_until(lambda: gone(mallory, first, *others), within=0.1)
    assert not mallory.ping(first.ipv4)
    assert whole(first, *others)


def test_half_of_the_datagrams_lost_is_no_way_to_stay():
    world = World(seed=8)
    first, *others = world.mesh_of(8)
    *others, mallory = others
    world.underlay.loss = 0.5

    revoke(first, mallory)

    world.run_until(lambda: gone(mallory, first, *others), within=3.0)


def test_a_member_that_was_switched_off_knows_it_from_its_own_disk():
    world, founder, x, mallory = founded(9, "x", "mallory")
    revoke(founder, mallory)
    world.run_until(lambda: gone(mallory, founder, x), within=1.0)
    for machine in (founder, x):
        machine.power_off()

    x.start()
    world.run_for(30.0)

    assert x.engine.ledger.revocation(mallory.node) is not None
    assert not x.has_peer_at(mallory.ipv6)
    assert not mallory.ping(x.ipv4)


def test_a_member_cut_off_with_the_revoked_one_drops_it_when_it_meets_the_others():
    world, founder, x, y, mallory = founded(10, "x", "y", "mallory")
    world.underlay.island = frozenset({"y", "mallory"})
    world.run_for(20.0)
    revoke(founder, mallory)
    world.run_for(20.0)
    assert y.has_peer(mallory), "nobody could tell it"

    world.underlay.island = frozenset()

    world.run_until(lambda: gone(mallory, founder, x, y), within=20.0)
    world.run_until(lambda: whole(founder, x, y), within=20.0)
    assert mallory.engine.revoking.revocation is not None


def test_what_a_member_that_was_away_hears_first_is_who_is_out():
    world, founder, _, y, mallory = founded(11, "x", "y", "mallory")
    y.power_off()
    revoke(founder, mallory)
    for number in range(3):
        newcomer = world.machine(f"new{number}")
        newcomer.start(token=founder.invite(key=newcomer.name))
    # Until nobody tells of the newcomers by himself any more, only when asked.
    here = [machine for machine in world.machines if machine.engine is not None]
    world.run_until(
        lambda: not any(m.engine.gossip.statistics().broadcasts_queued for m in here), within=60.0
    )

    y.start()
    begun_at = world.now
    world.run_until(lambda: y.engine.ledger.revocation(mallory.node) is not None, within=20.0)

    learnt = [e.fact.kind for at, e in y.events if at >= begun_at and hasattr(e, "fact")]
    of_others = [kind for kind in learnt if kind is not FactKind.RECORD]
    assert of_others[:1] == [FactKind.REVOCATION]
    assert y.engine.gossip.member(mallory.node) is None


# What the revoked one gets


def test_the_revoked_one_is_told_through_the_tunnel_before_it_goes():
    world, founder, x, mallory = founded(12, "x", "mallory", admit=True)

    revoke(x, mallory)
    world.run_for(1.0)

    assert mallory.engine.revoking.revocation.signer == x.node
    (notice,) = mallory.of("revoked")
    assert "this node is out of the mesh, revoked by x at 2023-11-14" in notice.message
    assert "another token" in notice.message
    assert (
        notice.details
        == {
            "signer": "x",
            "revoked_at": "2023-11-14 22:13:20Z",
            "cascade": False,
        }
        or notice.details["signer"] == "x"
    )
    (seen,) = founder.of("member-revoked")
    assert seen.name == "mallory"
    assert seen.message.startswith("revoked by x at ")


def test_who_falls_by_a_cascade_is_told_by_whom_and_why():
    world, founder, x = founded(13, "x", admit=True)
    friend = world.machine("friend")
    friend.start(token=x.invite())
    world.run_until(lambda: whole(founder, x, friend), within=5.0)

    revoke(founder, x, cascade=True)
    world.run_for(1.0)

    (notice,) = friend.of("revoked")
    assert "let in through x, revoked with all it let in by founder" in notice.message


def test_who_fell_by_a_cascade_comes_back_as_itself_by_another_members_token():
    world, founder, x = founded(24, "x", admit=True)
    friend = world.machine("friend")
    friend.start(token=x.invite())
    world.run_until(lambda: whole(founder, x, friend), within=5.0)
    revoke(founder, x, cascade=True)
    world.run_for(1.0)
    assert "start it with a token from another member" in friend.of("revoked")[0].message
    node = friend.node
    friend.kill()

    friend.start(token=founder.invite(key="again"))

    world.run_until(lambda: whole(founder, friend), within=20.0)
    assert friend.node == node
    assert friend.engine.revoking.revocation is None


@pytest.mark.parametrize("seeds", [True, False], ids=["by its seed", "by those it knew"])
def test_a_revoked_one_that_was_away_learns_it_with_the_proof(seeds):
    world = World(seed=14)
    a, b, mallory = world.mesh_of(3)
    mallory.power_off()
    revoke(b, mallory)
    world.run_for(5.0)

    mallory.start(seeds=[a] if seeds else [])
    world.run_until(lambda: mallory.engine.revoking.revocation is not None, within=15.0)

    assert mallory.engine.revoking.revocation.signer == b.node
    assert len(mallory.of("revoked")) == 1


def test_its_next_start_says_so_at_once():
    world, founder, _, mallory = founded(15, "x", "mallory")
    revoke(founder, mallory)
    world.run_for(2.0)
    mallory.power_off()
    told = len(mallory.of("revoked"))

    mallory.start()

    assert mallory.engine.revoking.revocation is not None
    assert len(mallory.of("revoked")) == told + 1


def test_it_stops_asking_in_vain():
    world, founder, _, mallory = founded(16, "x", "mallory")
    revoke(founder, mallory)
    world.run_for(60.0)
    world.underlay.capture = []

    world.run_for(REFUSED_INTERVAL * 3)

    requests = [
        sent
        for sent in world.underlay.capture
        if sent.sender == "mallory"
        and isinstance(sent.payload, bytes)
        and sent.payload[4] == DatagramType.BOOTSTRAP_REQUEST
    ]
    assert 1 <= len(requests) <= 8


def test_no_probe_of_a_revoked_one_is_answered():
    world, founder, _, mallory = founded(17, "x", "mallory")
    revoke(founder, mallory)
    world.run_for(2.0)
    world.underlay.capture = []

    mallory.renumber("198.51.100.66")  # which makes it probe everybody
    world.run_for(4.0)

    probed = [sent for sent in world.underlay.capture if sent.sender == "mallory"]
    assert probed
    assert not [
        sent for sent in world.underlay.capture if str(sent.target.address) == "198.51.100.66"
    ]
    assert founder.engine.bad_packets["probe from a revoked node"] > 0


def test_nothing_that_a_revoked_one_says_is_passed_on():
    world, founder, x, mallory = founded(18, "x", "mallory")
    revoke(founder, mallory)
    world.run_for(2.0)
    held = founder.engine.ledger.standing(mallory.node).record.sequence

    mallory.renumber("198.51.100.66")
    mallory.kill()
    mallory.start(seeds=[founder])
    world.run_for(PENDING_LIFETIME)

    for machine in (founder, x):
        assert machine.engine.ledger.standing(mallory.node).record.sequence == held


@pytest.mark.parametrize("first", [b"\x01", bytes([Handover.ADMISSION_REQUEST])])
def test_what_still_comes_through_its_tunnel_is_dropped_unread(first):
    world, founder, mallory = founded(19, "mallory")
    revoke(founder, mallory)
    before = founder.engine.bad_packets["overlay source is no member"]

    founder.engine.overlay_datagram(first + bytes(50), mallory.ipv6, world.now, world.wall)

    assert founder.engine.bad_packets["overlay source is no member"] == before + 1


def test_a_node_that_is_out_lets_nobody_in():
    world, founder, mallory = founded(23, "mallory", admit=True)
    token = mallory.invite()
    revoke(founder, mallory)
    world.run_for(2.0)
    newcomer = world.machine("newcomer")

    newcomer.start(token=token)
    world.run_for(20.0)

    assert newcomer.disk.identity is None
    assert newcomer.of("no-answer")
    assert mallory.engine.bad_packets["request to one who is not in"] > 0


# What nobody can do with it


def test_a_revocation_of_somebody_else_puts_nobody_else_out():
    world, founder, x, mallory, y = founded(20, "x", "mallory", "y")
    blob = draft(founder, y).blob

    x.engine.overlay_datagram(mark(Handover.REVOKED, blob), mallory.ipv6, world.now, world.wall)
    x.drain()

    assert x.engine.revoking.revocation is None
    assert x.engine.bad_packets["told of a revocation that is not ours"] == 1


def test_a_member_that_may_not_revoke_puts_nobody_out():
    world, founder, x, mallory = founded(21, "x", "mallory")
    chain = mallory.engine.identity.chain
    statement = Revocation(x.node, mallory.node, False, int(world.wall), chain)
    blob = sign_revocation(statement, mallory.disk.node_key, world.mesh)
    rng = Random(1)
    altered = bytearray(draft(founder, x).blob)
    altered[rng.randrange(64)] ^= 1

    for datagram in (blob, bytes(altered), b"", rng.randbytes(300)):
        x.engine.overlay_datagram(
            mark(Handover.REVOKED, datagram), mallory.ipv6, world.now, world.wall
        )
        x.drain()

    assert x.engine.revoking.revocation is None
    assert x.engine.ledger.revocation(x.node) is None
    assert x.engine.bad_packets["signer may not admit"] == 1
    assert x.engine.bad_packets.total() >= 4
    world.run_for(5.0)
    assert whole(founder, x, mallory)


def test_the_mesh_key_brings_back_whom_a_rogue_has_thrown_out():
    world, founder, rogue, victim = founded(22, "rogue", "victim", admit=True)
    revoke(rogue, victim)
    world.run_until(lambda: gone(victim, founder, rogue), within=1.0)
    world.run_for(60.0)
    assert victim.of("revoked")

    revoke(founder, rogue, cascade=True, mesh_key=world.mesh_key)

    world.run_until(lambda: whole(founder, victim), within=60.0)
    assert victim.engine.revoking.revocation is None
    assert victim.of("reinstated")
    assert gone(rogue, founder, victim)
    assert all_ping(founder, victim)
