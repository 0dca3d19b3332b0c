"""A new node key: who hears of it when, what stays, and what becomes of the former id."""

from dataclasses import replace

import pytest

from engine.engine_world import World, all_ping, whole
from engine.test_engine_preshared import mesh_with_keys, share_keys
from meshd.codec import pack
from meshd.engine.handover import Handover, mark
from meshd.engine.rekeying import ANSWER_TIMEOUT, PATIENCE, SPREAD_TIME
from meshd.gossip.claim import MemberState
from meshd.keys import NodeKey
from meshd.trust.fact import FactKind
from meshd.trust.node_succession import KEPT_MAX, sign_node_succession


def founded(seed, *names, **grants):
    """Return a world with a founder, and members that it has let in by tokens."""
    world = World(seed=seed)
    founder, *others = (world.machine(name) for name in ("founder", *names))
    founder.start()
    for machine in others:
        machine.start(token=founder.invite(key=machine.name, **grants))
    world.run_until(lambda: whole(founder, *others), within=15.0)
    return world, founder, *others


def begin(machine, *, mesh_key=None, key=None):
    """Do what `meshctl keys rotate --node` does.  Return the key to come."""
    key = key or NodeKey(machine.world.secret(f"next node {machine.name} {machine.starts}"))
    assert machine.engine.rekeying.hindrance() is None
    machine.engine.rotate_node_key(key, mesh_key, machine.now, machine.wall)
    machine.drain()
    return key


def rekey(world, machine, **options):
    """Rotate a node key from beginning to end.  Return the former id."""
    former = machine.node
    key = begin(machine, **options)
    world.run_until(lambda: machine.node == key.id, within=SPREAD_TIME + 5.0)
    return former


def test_a_member_goes_on_under_another_id_with_name_address_and_tunnel():
    world, founder, x, y = founded(1, "x", "y")
    world.run_until(lambda: all_ping(founder, x, y), within=5.0)
    before = {m.name: m.wireguard.observe().peers[x.public_key] for m in (founder, y)}
    ipv4, ipv6, key = x.ipv4, x.ipv6, x.public_key
    rights = x.engine.own_credential

    former = rekey(world, x)

    world.run_until(lambda: whole(founder, x, y), within=2.0)
    assert (x.ipv4, x.public_key) == (ipv4, key)
    assert x.ipv6 != ipv6
    assert all_ping(founder, x, y)
    for machine in (founder, y):
        assert machine.engine.name_of(x.node) == "x"
        assert machine.engine.gossip.member(former) is None
        assert not machine.has_peer_at(ipv6)
        peer = machine.wireguard.observe().peers[key]
        assert peer.last_handshake_time == before[machine.name].last_handshake_time
        assert [n.member for n in machine.of("member-rekeyed")] == [x.node]
        for event in ("member-suspect", "member-dead", "member-left", "key-conflict"):
            assert not machine.of(event)
        assert len(machine.of("member-joined")) == 2  # at the beginning
    assert (
        replace(
            x.engine.own_credential,
            subject=rights.subject,
            issuer=rights.issuer,
            issued_at=rights.issued_at,
            succeeds=None,
            invite=rights.invite,
            lifetime=rights.lifetime,
        )
        == rights
    )


def test_nothing_changes_before_the_new_record_is_there():
    world, founder, x, y = founded(2, "x", "y")
    former, key = x.node, begin(x)

    world.run_for(SPREAD_TIME - 0.5)

    assert x.engine.rekeying.phase == "announced"
    for machine in (founder, y):
        assert machine.engine.ledger.get(FactKind.NODE_SUCCESSION, bytes(key.id)) is not None
        assert machine.engine.ledger.admitted(former)
        assert machine.state_of(x) is MemberState.ALIVE


def test_that_nobody_listens_for_a_moment_is_not_held_against_one_that_switches():
    """Its daemon takes a moment to begin anew, and its host says so to whoever asks."""
    world, founder, x, y = founded(24, "x", "y")
    begin(x)
    world.run_for(SPREAD_TIME - 0.1)

    x.kill()
    for machine in (founder, y):
        machine.engine.overlay_unreachable(
            machine.engine.ipv6_of(x.node), machine.now, machine.wall
        )
        machine.drain()

    assert whole_but(x, founder, y)
    assert not founder.of("member-suspect")
    world.run_until(lambda: y.state_of(x) is MemberState.DEAD, within=60.0)  # it is silent, though


def whole_but(one, *others):
    """Whether the others still show one alive."""
    return all(machine.state_of(one) is MemberState.ALIVE for machine in others)


def test_two_others_and_the_one_that_rotates_exchange_packets_all_the_while():
    world, founder, x, y = founded(3, "x", "y")
    world.run_until(lambda: all_ping(founder, x, y), within=5.0)
    begin(x)
    pairs = [(founder, y.ipv4), (founder, x.ipv4), (y, x.ipv4), (x, y.ipv4)]
    former = x.node

    for _ in range(200):
        for source, target in pairs:
            assert source.ping(target, within=0.2)
        world.run_for(0.02)

    assert x.node != former
    assert whole(founder, x, y)


def test_a_member_that_may_admit_signs_for_itself_and_whom_it_let_in_stays():
    world, founder, x = founded(4, "x", admit=True)
    friend = world.machine("friend")
    friend.start(token=x.invite())
    world.run_until(lambda: whole(founder, x, friend), within=5.0)

    former = rekey(world, x)

    world.run_until(lambda: whole(founder, x, friend), within=2.0)
    assert [link.subject for link in x.engine.own_chain] == [founder.node, former, x.node]
    assert friend.engine.own_chain[-1].issuer == former
    late = world.machine("late")
    late.start(token=x.invite(key="late"))
    world.run_until(lambda: whole(founder, x, friend, late), within=5.0)


def test_the_founder_goes_on_by_the_mesh_key_where_that_is():
    world, founder, x, y = founded(5, "x", "y")

    rekey(world, founder, mesh_key=world.mesh_key)

    world.run_until(lambda: whole(founder, x, y), within=2.0)
    assert len(founder.engine.own_chain) == 1
    assert founder.engine.ledger.may_admit(founder.node, founder.wall)


def test_it_may_be_done_again_and_again():
    world, founder, x, y = founded(6, "x", "y")
    ids = [
        rekey(world, machine, mesh_key=world.mesh_key if machine is founder else None)
        for _ in range(3)
        for machine in (x, founder)
    ]

    world.run_until(lambda: whole(founder, x, y), within=3.0)

    assert len({*ids, x.node, founder.node}) == 8
    assert {machine.engine.name_of(x.node) for machine in (founder, x, y)} == {"x"}
    assert y.engine.ledger.lineage.line(x.node)[1:] == tuple(reversed(ids[0::2]))


def test_a_member_that_was_away_follows_when_it_is_back():
    world, founder, x, y = founded(7, "x", "y")
    y.power_off()
    former = rekey(world, x)
    world.run_for(30.0)

    y.start()

    world.run_until(lambda: whole(founder, x, y), within=10.0)
    assert y.engine.gossip.member(former) is None
    assert y.engine.name_of(x.node) == "x"


def test_pre_shared_keys_go_with_the_member():
    world, (founder, x) = mesh_with_keys(2, seed=8)
    world.run_until(lambda: share_keys(founder, x), within=60.0)
    used = founder.wireguard.observe().peers[x.public_key].preshared_key
    former = rekey(world, x)
    world.run_until(lambda: whole(founder, x), within=3.0)

    assert founder.wireguard.observe().peers[x.public_key].preshared_key == used
    assert x.wireguard.observe().peers[founder.public_key].preshared_key == used
    assert former not in founder.disk.keyrings
    assert x.node in founder.disk.keyrings
    assert not founder.of("psk-lost")


def test_a_mesh_of_two_meets_again_though_one_was_away():
    """It hears of nobody but the new id, which nobody else can vouch for."""
    world, founder, x = founded(22, "x")
    founder.kill()
    key = NodeKey(b"k" * 32)
    founder.start()
    world.run_until(lambda: whole(founder, x), within=5.0)
    begin(x, key=key)
    world.run_for(0.5)
    founder.power_off()
    world.run_until(lambda: x.node == key.id, within=SPREAD_TIME + 1.0)
    world.run_for(60.0)
    founder.disk.facts = {
        place: fact
        for place, fact in founder.disk.facts.items()
        if place[0] is not FactKind.NODE_SUCCESSION
    }

    founder.start()

    world.run_until(lambda: whole(founder, x), within=20.0)
    assert all_ping(founder, x)


def test_a_newcomer_gets_in_by_one_that_has_a_new_key():
    world, founder, x = founded(23, "x", admit=True)
    rekey(world, x)
    world.run_until(lambda: whole(founder, x), within=3.0)
    late = world.machine("late")

    late.start(token=x.invite(key="late"))

    world.run_until(lambda: whole(founder, x, late), within=5.0)


# What may go wrong


def test_a_disk_that_refuses_leaves_it_who_it_was():
    world, founder, x = founded(9, "x")
    former = x.node
    key = begin(x)
    x.disk.refuses = True

    world.run_for(SPREAD_TIME + 1.0)

    assert x.node == former
    assert x.of("node-key-kept")
    assert whole(founder, x)
    x.disk.refuses = False
    begin(x, key=key)
    world.run_until(lambda: x.node == key.id and whole(founder, x), within=10.0)


@pytest.mark.parametrize("after", [0.0, 0.1, SPREAD_TIME - 0.1])
def test_a_crash_before_the_switch_leaves_the_former_node_which_may_go_on(after):
    world, founder, x = founded(10, "x")
    former, key = x.node, begin(x)
    world.run_for(after)
    x.power_off()

    x.start()

    world.run_until(lambda: whole(founder, x), within=10.0)
    assert x.node == former
    begin(x, key=key)
    world.run_until(lambda: x.node == key.id and whole(founder, x), within=10.0)


def test_a_crash_at_the_switch_leaves_the_new_node():
    """The disk is the new node's, and nobody has heard of it yet."""
    world, founder, x = founded(11, "x")
    key = begin(x)
    world.run_until(lambda: x.node == key.id, within=SPREAD_TIME + 1.0)
    x.power_off()
    world.run_for(30.0)

    x.start()

    world.run_until(lambda: whole(founder, x), within=10.0)
    assert founder.engine.name_of(x.node) == "x"


def test_without_anybody_who_may_grant_it_stays_who_it_is_and_says_why():
    world, founder, x, _ = founded(12, "x", "y")
    founder.power_off()
    world.run_until(lambda: x.state_of(founder) is MemberState.DEAD, within=60.0)
    former = x.node

    begin(x)
    world.run_for(PATIENCE + 5.0)

    assert x.node == former
    assert "no member that may grant" in x.engine.rekeying.trouble
    assert x.engine.rekeying.phase is None


def test_a_member_that_does_not_answer_is_followed_by_another_one():
    world, founder, x, y, z = founded(13, "x", "y", "z", admit=True)
    plain = world.machine("plain")
    plain.start(token=founder.invite(key="plain"))
    world.run_until(lambda: whole(founder, x, y, z, plain), within=5.0)
    for machine in (founder, x, y):
        machine.engine.rekeying.receive_handover = lambda *_: None

    key = begin(plain)

    world.run_until(lambda: plain.node == key.id, within=4 * ANSWER_TIMEOUT + SPREAD_TIME + 1.0)
    world.run_until(lambda: whole(founder, x, y, z, plain), within=3.0)


def test_an_admitter_that_has_signed_too_much_is_told_what_to_do():
    _, founder, _ = founded(14, "x", admit=True)
    founder.engine.ledger.signed_by = lambda _: frozenset(range(KEPT_MAX))

    assert "keys rotate --mesh" in founder.engine.rekeying.hindrance()


# A copy of the machine


def copy_of(world, machine):
    copy = world.machine(f"{machine.name}-copy")
    copy.disk = machine.disk.copy()
    return copy


def test_a_copy_with_the_former_key_is_told_and_falls_silent():
    world, founder, x, y = founded(15, "x", "y")
    copy = copy_of(world, x)
    rekey(world, x)
    world.run_until(lambda: whole(founder, x, y), within=3.0)

    copy.start(seeds=(founder,))

    world.run_until(lambda: copy.of("succeeded"), within=20.0)
    world.run_for(20.0)
    assert x.node.short in copy.engine.rekeyed.text
    assert not copy.wireguard.observe().peers
    assert whole(founder, x, y)
    assert all_ping(founder, x, y)


def test_a_copy_that_runs_when_its_original_goes_on_falls_silent():
    world, _, x, _ = founded(16, "x", "y")
    copy = copy_of(world, x)
    key = begin(x)
    world.run_until(lambda: x.node == key.id, within=SPREAD_TIME + 1.0)
    record = x.engine.ledger.get(FactKind.RECORD, bytes(x.node))
    followed = x.engine.ledger.get(FactKind.NODE_SUCCESSION, bytes(x.node))
    copy.start()
    copy.learn(FactKind.NODE_SUCCESSION, followed.blob)
    copy.learn(FactKind.RECORD, record.blob)

    assert copy.of("succeeded")
    assert copy.engine.clones.silent
    assert not x.of("succeeded")


def test_a_copy_with_a_token_does_not_come_back_as_the_former_id():
    world, founder, x, y = founded(17, "x", "y")
    copy = copy_of(world, x)
    former = rekey(world, x)
    world.run_until(lambda: whole(founder, x, y), within=3.0)
    copy.disk.identity = None

    copy.start(token=founder.invite(key="copy"))

    world.run_for(10.0)
    assert not founder.engine.ledger.admitted(former)
    assert whole(founder, x, y)


# What others may say


def test_a_request_for_another_member_gets_nothing():
    world, founder, x, y = founded(18, "x", "y")
    made = sign_node_succession(
        x.disk.node_key, NodeKey(b"n" * 32), world.mesh, dated=int(world.wall)
    )
    y.engine.send_overlay(request(made.blob), founder.node)
    y.drain()
    world.run_for(1.0)

    assert founder.engine.bad_packets["new node key for another member"] == 1


def request(blob):
    return mark(Handover.REKEY_REQUEST, pack({1: b"r" * 8, 2: blob}))


def test_who_asks_without_end_gets_one_signature_a_second():
    world, founder, x = founded(19, "x")
    made = sign_node_succession(
        x.disk.node_key, NodeKey(b"n" * 32), world.mesh, dated=int(world.wall)
    )
    for _ in range(50):
        x.engine.send_overlay(request(made.blob), founder.node)
    x.drain()
    world.run_for(0.5)

    assert founder.engine.bad_packets["new node keys asked for too often"] == 49


def test_a_verdict_that_nobody_asked_for_or_of_another_member_counts_for_nothing():
    world, founder, x, y = founded(20, "x", "y", admit=True)
    plain = world.machine("plain")
    plain.start(token=founder.invite(key="plain"))
    world.run_until(lambda: whole(founder, x, y, plain), within=5.0)
    verdict = mark(Handover.REKEY_VERDICT, pack({1: b"r" * 8, 2: plain.engine.identity.chain}))
    before = plain.engine.identity
    y.engine.send_overlay(verdict, plain.node)
    y.drain()
    world.run_for(1.0)

    assert plain.engine.identity == before
    assert plain.engine.bad_packets["credential for a new node key that was not asked for"] == 1


def test_whom_it_has_let_in_a_moment_ago_is_not_left_behind():
    """Its record is not here yet when the succession is signed."""
    world, founder, x = founded(21, "x", admit=True)
    late = world.machine("late")
    begin(founder, mesh_key=world.mesh_key)
    world.run_for(SPREAD_TIME - 0.01)

    late.start(token=founder.invite(key="late"))

    world.run_until(lambda: founder.engine.rekeying.phase is None, within=3 * SPREAD_TIME)
    world.run_until(lambda: whole(founder, x, late), within=5.0)
    assert late.engine.own_chain[-1].issuer != founder.node
