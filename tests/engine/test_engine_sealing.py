"""A mesh gets another root: all follow, those that were away too; who knows the secret does not."""

from dataclasses import replace

import pytest

from engine.engine_world import PREFIX, World, all_ping, whole
from meshd.codec import pack
from meshd.engine import events
from meshd.engine.following import SETTLE_TIMEOUT
from meshd.engine.handover import Handover, mark
from meshd.engine.identity import Identity
from meshd.engine.sealing import draft_bootstrap, draft_rotation, draft_seal
from meshd.keys import BootstrapKey, MeshKey, WireGuardPrivateKey
from meshd.trust.credential import founding_credential, issue
from meshd.trust.epoch import bootstrap_fingerprint
from meshd.trust.fact import FactKind
from meshd.trust.grammar import CLOCK_SKEW_MAX
from meshd.trust.record import Record, sign_record
from meshd.trust.revocation import Revocation, sign_revocation
from meshd.trust.succession import Succession, sign_succession

FOLLOWED = 5.0
RETURNED = 30.0


def root_key(world, number=1):
    return MeshKey(world.secret(f"root {number}"))


def publish(machine, draft):
    """What the daemon does: on disk first, then to everybody."""
    machine.disk.identity = draft.identity
    machine.disk.facts |= {(fact.kind, fact.key): fact for fact in draft.facts}
    machine.engine.publish(draft, machine.now, machine.wall)
    machine.drain()
    return draft


def seal(machine, *, root=1):
    world = machine.world
    key = BootstrapKey(world.secret("sealed bootstrap" if root == 1 else "other bootstrap"))
    draft = draft_seal(machine.engine, world.mesh_key, root_key(world, root), key, machine.wall)
    return publish(machine, draft)


def rotate(machine, number=2, **options):
    world = machine.world
    before = root_key(world, number - 1) if number > 1 else world.mesh_key
    after = root_key(world, number)
    return publish(machine, draft_rotation(machine.engine, before, after, machine.wall, **options))


def rotate_bootstrap(machine, purpose="rotated bootstrap"):
    key = BootstrapKey(machine.world.secret(purpose))
    return publish(machine, draft_bootstrap(machine.engine, key, machine.wall, mesh_key=None))


def follows(machine, root):
    """Whether a machine has done all there is to do."""
    engine = machine.engine
    return (
        engine.ledger.roots.newest == root.id
        and engine.ledger.roots.settled
        and engine.own_chain[0].issuer == root.id
        and engine.epochs.lacking is None
        and machine.disk.identity == engine.identity
    )


def all_follow(machines, root):
    return all(follows(machine, root) for machine in machines)


def handshakes(machines):
    return [machine.wireguard.handshakes for machine in machines]


def outsider_with_the_secret(world, name="outsider"):
    return world.machine(name)


# Following


def test_all_follow_a_seal_and_nothing_of_any_session_changes():
    world = World(seed=1)
    machines = world.mesh_of(8)
    world.run_for(5.0)
    addresses = [(m.ipv4, m.ipv6, m.public_key) for m in machines]
    devices = [m.wireguard.observe() for m in machines]
    before = handshakes(machines)

    seal(machines[0])

    took = world.run_until(lambda: all_follow(machines, root_key(world)), within=FOLLOWED)
    assert took < 3.0
    assert [(m.ipv4, m.ipv6, m.public_key) for m in machines] == addresses
    assert handshakes(machines) == before
    for machine, device in zip(machines, devices, strict=True):
        peers = machine.wireguard.observe().peers
        assert {k: (p.endpoint, p.allowed_ips) for k, p in peers.items()} == {
            k: (p.endpoint, p.allowed_ips) for k, p in device.peers.items()
        }
    assert whole(*machines)
    assert not [m for m in machines if m.of("member-dead") or m.of("member-suspect")]
    assert all(len(m.of("mesh-sealed")) == 1 for m in machines)
    keys = {m.engine.identity.bootstrap_key for m in machines}
    assert keys == {BootstrapKey(world.secret("sealed bootstrap"))}


def test_no_peer_is_lost_for_a_moment_while_all_follow():
    world = World(seed=2)
    machines = world.mesh_of(6)
    world.run_for(5.0)
    seal(machines[0])

    for _ in range(600):
        world.run_for(0.01)
        for machine in machines:
            assert len(machine.engine.others()) == 5
            assert len(machine.wireguard.observe().peers) == 5

    assert all_follow(machines, root_key(world))


def test_three_of_eight_that_were_away_follow_when_they_are_back():
    world = World(seed=3)
    machines = world.mesh_of(8)
    world.run_for(5.0)
    here, away = machines[:5], machines[5:]
    addresses = [machine.ipv4 for machine in away]
    for machine in away:
        machine.power_off()
    world.run_for(10.0)

    seal(here[0])
    world.run_until(lambda: all_follow(here, root_key(world)), within=FOLLOWED)
    world.run_for(600.0)
    assert all(m.disk.identity.ipv6 in _reachable(here[0]) for m in away), "members all the same"
    for machine in away:
        machine.start()
        world.run_for(3.0)

    world.run_until(lambda: all_follow(machines, root_key(world)), within=RETURNED)
    world.run_until(lambda: whole(*machines), within=RETURNED)
    assert [machine.ipv4 for machine in away] == addresses
    assert all_ping(*machines[3:6])


def test_one_that_was_away_is_led_by_a_seed_where_all_others_have_moved():
    world = World(seed=4)
    machines = world.mesh_of(4)
    world.run_for(5.0)
    *here, away = machines
    away.power_off()
    seal(here[0])
    world.run_until(lambda: all_follow(here, root_key(world)), within=FOLLOWED)
    for number, machine in enumerate(here):
        machine.renumber(f"198.51.100.{number + 1}")
    world.run_for(20.0)

    away.start(seeds=[here[0]])

    world.run_until(lambda: follows(away, root_key(world)), within=RETURNED)
    world.run_until(lambda: whole(*machines), within=RETURNED)


def test_one_that_was_away_is_found_by_those_that_have_all_moved_meanwhile():
    """It knows no seed, and where they were there is nobody: they ask it, under both keys."""
    world = World(seed=10)
    machines = world.mesh_of(4)
    world.run_for(5.0)
    *here, away = machines
    away.power_off()
    seal(here[0])
    world.run_until(lambda: all_follow(here, root_key(world)), within=FOLLOWED)
    for number, machine in enumerate(here):
        # With their interfaces goes what their kernels remember of where it was.
        machine.power_off()
        machine.renumber(f"198.51.100.{number + 1}")
        machine.start()
        world.run_for(30.0)
    assert whole(*here)

    away.start()

    world.run_until(lambda: follows(away, root_key(world)), within=90.0)
    world.run_until(lambda: whole(*machines), within=RETURNED)


def test_two_halves_of_which_one_was_sealed_become_one():
    world = World(seed=5)
    machines = world.mesh_of(6)
    world.run_for(5.0)
    world.underlay.island = frozenset({"n0", "n1", "n2"})
    world.run_for(60.0)
    seal(machines[0])
    world.run_for(60.0)
    assert not machines[5].engine.ledger.roots.number

    world.underlay.island = frozenset()

    world.run_until(lambda: all_follow(machines, root_key(world)), within=RETURNED)
    world.run_until(lambda: whole(*machines), within=RETURNED)


def test_a_member_whose_daemon_dies_in_the_middle_goes_on_where_it_was():
    world = World(seed=6)
    machines = world.mesh_of(4)
    world.run_for(5.0)
    seal(machines[0])
    for _ in range(8):
        world.run_for(0.02)
        machines[2].kill()
        machines[2].start()

    world.run_until(lambda: all_follow(machines, root_key(world)), within=RETURNED)
    world.run_until(lambda: whole(*machines), within=RETURNED)


def test_the_sealing_node_that_dies_at_once_comes_back_and_tells_everybody():
    world = World(seed=7)
    machines = world.mesh_of(4)
    world.run_for(5.0)
    first = machines[0]
    key = BootstrapKey(world.secret("sealed bootstrap"))
    draft = draft_seal(first.engine, world.mesh_key, root_key(world), key, first.wall)
    first.disk.identity = draft.identity
    first.disk.facts |= {(fact.kind, fact.key): fact for fact in draft.facts}
    first.kill()
    world.run_for(2.0)

    first.start()

    world.run_until(lambda: all_follow(machines, root_key(world)), within=RETURNED)
    world.run_until(lambda: whole(*machines), within=RETURNED)


def test_without_all_grants_the_predecessor_ends_after_a_while_and_not_before():
    world = World(seed=8)
    a, b, c = world.mesh_of(3)
    world.run_for(5.0)
    key = BootstrapKey(world.secret("sealed bootstrap"))
    draft = draft_seal(a.engine, world.mesh_key, root_key(world), key, a.wall)
    facts = tuple(f for f in draft.facts if (f.kind, f.key) != (FactKind.GRANT, bytes(c.node)))
    publish(a, replace(draft, facts=facts))
    world.run_for(SETTLE_TIMEOUT - 5.0)
    assert whole(a, b, c)

    world.run_for(10.0)

    assert a.state_of(c) is None
    assert b.state_of(c) is None
    assert c.engine.following.left_behind
    assert whole(a, b)


def test_the_members_of_a_sealed_mesh_remember_it_without_each_other():
    world = World(seed=9)
    machines = world.mesh_of(3)
    world.run_for(5.0)
    seal(machines[0])
    world.run_until(lambda: all_follow(machines, root_key(world)), within=FOLLOWED)
    for machine in machines:
        machine.power_off()
    world.run_for(3600.0)

    for machine in machines:
        machine.start()

    assert all_follow(machines, root_key(world))
    world.run_until(lambda: whole(*machines), within=RETURNED)


def _reachable(machine):
    peers = machine.wireguard.observe().peers.values()
    return {network.network_address for peer in peers for network in peer.allowed_ips}


# Who knows the secret


def sealed_mesh(world, size=3):
    machines = world.mesh_of(size)
    world.run_for(5.0)
    seal(machines[0])
    world.run_until(lambda: all_follow(machines, root_key(world)), within=FOLLOWED)
    world.run_for(2.0)
    return machines


def test_a_newcomer_with_the_secret_is_refused_in_words():
    world = World(seed=20)
    machines = sealed_mesh(world)
    facts = len(list(machines[1].engine.ledger.facts()))
    outsider = world.machine("outsider")

    outsider.start(seeds=machines[:2])
    world.run_for(20.0)

    refusal = outsider.of(events.RefusedByMesh)[0]
    assert refusal.final
    assert "was sealed" in refusal.text
    assert "meshctl invite" in refusal.text
    assert all(m.state_of(outsider) is None for m in machines)
    assert len(list(machines[1].engine.ledger.facts())) == facts


def test_a_newcomer_with_a_token_from_before_hears_nothing():
    world = World(seed=21)
    machines = world.mesh_of(3)
    token = machines[0].invite(expires_in=86400)
    world.run_for(5.0)
    seal(machines[0])
    world.run_until(lambda: all_follow(machines, root_key(world)), within=FOLLOWED)
    late = world.machine("late")

    late.start(token=token)
    world.run_for(30.0)

    assert not late.engine.identity.chain
    assert not late.of(events.RefusedByMesh)
    assert machines[0].engine.bad_packets["invite under an older bootstrap key"]


@pytest.mark.parametrize("inviter", [0, 2])
def test_a_newcomer_with_a_new_token_joins_a_sealed_mesh(inviter):
    world = World(seed=22)
    machines = sealed_mesh(world)
    new = world.machine("new")

    new.start(token=machines[inviter].invite())

    world.run_until(lambda: whole(*machines, new), within=RETURNED)
    assert new.engine.ledger.roots.newest == root_key(world).id
    world.run_until(lambda: new.engine.ledger.roots.keys[-1] == world.mesh, within=RETURNED)
    assert all_ping(*machines[:1], new)


def forger(world, machine):
    """Return an identity that the secret alone gives, of a node that is nobody's."""
    chain = (
        issue(
            founding_credential(machine.node, machine.name, world.mesh, int(world.wall)),
            world.mesh_key,
            world.mesh,
        ),
    )
    return Identity(
        mesh=world.mesh,
        node_key=machine.disk.node_key,
        wireguard_key=WireGuardPrivateKey(world.secret("forger's wireguard")),
        bootstrap_key=world.bootstrap_key,
        name=machine.name,
        ipv4_prefix=PREFIX,
        chain=chain,
    )


def test_who_knows_the_secret_cannot_seal_a_sealed_mesh_again():
    world = World(seed=23)
    a, b, c = sealed_mesh(world)
    rival = Succession(1, world.mesh, root_key(world, 9).id, 1, 0, 0)
    blob = sign_succession(rival, world.mesh_key, root_key(world, 9), world.mesh)

    for _ in range(3):
        b.learn(FactKind.SUCCESSION, blob)  # a member hands it on, or is the one who has signed it
    world.run_for(20.0)

    assert all_follow((a, b, c), root_key(world))
    assert whole(a, b, c)
    (notice,) = b.of("rival-succession")
    assert "refused to follow" in notice.message
    assert b.engine.ledger.rivals == 3


def test_who_knows_the_secret_revokes_nobody_in_a_sealed_mesh():
    world = World(seed=24)
    a, b, c = sealed_mesh(world)
    mallory = forger(world, world.machine("mallory"))
    by_root = Revocation(c.node, world.mesh, cascade=True, revoked_at=1)
    by_node = Revocation(c.node, mallory.node, cascade=True, revoked_at=1, chain=mallory.chain)

    b.learn(FactKind.REVOCATION, sign_revocation(by_root, world.mesh_key, world.mesh))
    b.learn(FactKind.REVOCATION, sign_revocation(by_node, mallory.node_key, world.mesh))
    world.run_for(20.0)

    assert whole(a, b, c)
    assert not a.of("member-revoked")


def test_the_record_of_who_knows_the_secret_is_nobodys_member_wherever_it_comes_from():
    world = World(seed=25)
    a, b, c = sealed_mesh(world)
    mallory = forger(world, world.machine("mallory"))
    record = Record(mallory.node, 1, mallory.wireguard_key.public, chain=mallory.chain, version="x")

    b.learn(FactKind.RECORD, sign_record(record, mallory.node_key, world.mesh))
    world.run_for(10.0)

    for machine in (a, b, c):
        assert machine.engine.gossip.member(mallory.node) is None
        assert mallory.wireguard_key.public not in machine.wireguard.observe().peers


def test_who_knows_the_secret_is_not_told_the_new_bootstrap_key():
    """It has been let in at the last moment, by a member that has not settled yet."""
    world = World(seed=26)
    a, b = world.mesh_of(2)
    mallory = world.machine("mallory")
    world.run_for(5.0)
    draft = seal(a)
    world.run_until(lambda: all_follow((a, b), root_key(world)), within=FOLLOWED)
    b.engine.ledger.follow(replace(b.engine.ledger.roots, settled=False))
    identity = forger(world, mallory)
    record = Record(mallory.node, 1, identity.wireguard_key.public, chain=identity.chain)
    b.learn(FactKind.RECORD, sign_record(record, identity.node_key, world.mesh))
    assert b.engine.ledger.admitted(mallory.node)
    wanted = bootstrap_fingerprint(draft.identity.bootstrap_key, world.mesh)
    sent = []
    b.engine.send_overlay = lambda datagram, node: sent.append((datagram, node))

    b.engine.overlay_datagram(
        mark(Handover.BOOTSTRAP_WANTED, pack({1: wanted})),
        b.engine.ipv6_of(mallory.node),
        world.now,
        world.wall,
    )

    assert not [node for _, node in sent if node == mallory.node]
    reason = "bootstrap key asked for by a member under an older root"
    assert b.engine.bad_packets[reason] == 1


def test_a_key_that_does_not_fit_the_epoch_is_refused():
    world = World(seed=27)
    a, b = world.mesh_of(2)
    world.run_for(5.0)
    fact = draft_bootstrap(a.engine, BootstrapKey(bytes(32)), a.wall, mesh_key=None).facts[0]
    b.learn(fact.kind, fact.blob)
    before = b.engine.identity

    b.engine.overlay_datagram(
        mark(Handover.BOOTSTRAP_KEY, pack({1: b"\1" * 32})), a.ipv6, world.now, world.wall
    )

    assert b.engine.identity == before
    assert b.engine.bad_packets["bootstrap key of another epoch"] == 1


def test_a_member_the_sealing_node_had_not_heard_of_is_out_and_told_so():
    world = World(seed=28)
    machines = world.mesh_of(4)
    world.run_for(5.0)
    world.underlay.island = frozenset({"n2", "n3", "late"})
    world.run_for(30.0)
    late = world.machine("late")
    late.start(seeds=[machines[3]])
    world.run_until(lambda: whole(*machines[2:], late), within=RETURNED)
    seal(machines[0])
    world.run_for(10.0)

    world.underlay.island = frozenset()

    world.run_until(lambda: all_follow(machines, root_key(world)), within=RETURNED)
    world.run_until(lambda: whole(*machines), within=RETURNED)
    assert all(m.state_of(late) is None for m in machines)
    world.run_until(
        lambda: (
            any("was sealed" in r.text for r in late.of(events.RefusedByMesh))
            or late.engine.following.left_behind
        ),
        within=120.0,
    )


# Revocation works from then on


def test_a_revocation_works_in_a_sealed_mesh_and_stands_for_who_was_away():
    world = World(seed=30)
    a, b, c, mallory = sealed_mesh(world, 4)
    c.power_off()
    statement = Revocation(
        mallory.node, root_key(world).id, cascade=False, revoked_at=int(world.wall)
    )
    b.learn(FactKind.REVOCATION, sign_revocation(statement, root_key(world), world.mesh))
    world.run_until(lambda: a.state_of(mallory) is None, within=3.0)

    c.start()

    world.run_until(lambda: whole(a, b, c), within=RETURNED)
    assert c.state_of(mallory) is None
    assert not mallory.ping(a.ipv4)


def test_who_was_revoked_before_stays_out_of_the_sealed_mesh():
    world = World(seed=31)
    a, b, mallory = world.mesh_of(3)
    world.run_for(5.0)
    statement = Revocation(mallory.node, world.mesh, cascade=False, revoked_at=int(world.wall))
    a.learn(FactKind.REVOCATION, sign_revocation(statement, world.mesh_key, world.mesh))
    world.run_until(lambda: b.state_of(mallory) is None, within=3.0)

    draft = seal(a)
    world.run_until(lambda: all_follow((a, b), root_key(world)), within=FOLLOWED)

    assert mallory.node not in draft.granted
    assert b.engine.ledger.revocation(mallory.node).signer == root_key(world).id


# Rotation of the mesh key


def test_all_follow_a_rotation_of_the_mesh_key_and_the_old_one_ends_with_the_overlap():
    world = World(seed=40)
    machines = sealed_mesh(world)
    before = handshakes(machines)

    rotate(machines[0], overlap=3600)

    def followed():
        return all(m.engine.own_chain[0].issuer == root_key(world, 2).id for m in machines)

    world.run_until(followed, within=FOLLOWED)
    assert handshakes(machines) == before
    assert all(m.engine.ledger.roots.trusts(root_key(world).id) for m in machines)
    world.run_for(3700.0)
    assert all_follow(machines, root_key(world, 2))
    assert not any(m.engine.ledger.roots.trusts(root_key(world).id) for m in machines)
    assert whole(*machines)


def test_who_was_away_for_a_seal_and_a_rotation_follows_both():
    world = World(seed=41)
    *here, away = machines = world.mesh_of(4)
    world.run_for(5.0)
    away.power_off()
    seal(here[0])
    world.run_until(lambda: all_follow(here, root_key(world)), within=FOLLOWED)
    rotate(here[0], overlap=60)
    world.run_for(120.0)
    assert all_follow(here, root_key(world, 2))

    away.start()

    world.run_until(lambda: all_follow(machines, root_key(world, 2)), within=RETURNED)
    world.run_until(lambda: whole(*machines), within=RETURNED)


def test_after_a_rotation_revocations_and_expiry_stand_as_they_were():
    world = World(seed=42)
    a, b, c = sealed_mesh(world)
    guest = world.machine("guest")
    guest.start(token=a.invite(lifetime=7200))
    world.run_until(lambda: whole(a, b, c, guest), within=RETURNED)
    expires_at = guest.engine.own_credential.expires_at
    statement = Revocation(c.node, root_key(world).id, cascade=False, revoked_at=int(world.wall))
    a.learn(FactKind.REVOCATION, sign_revocation(statement, root_key(world), world.mesh))
    world.run_until(lambda: b.state_of(c) is None, within=3.0)

    rotate(a, overlap=60)
    world.run_for(120.0)

    assert whole(a, b, guest)
    assert b.state_of(c) is None
    assert guest.engine.own_credential.expires_at == expires_at
    assert not b.engine.ledger.may_admit(guest.node, world.wall)
    assert b.engine.ledger.standing(guest.node).credential.expired(expires_at + CLOCK_SKEW_MAX + 1)


# Rotation of the bootstrap key


def test_a_new_bootstrap_key_reaches_all_and_makes_tokens_void():
    world = World(seed=50)
    machines = world.mesh_of(5)
    token = machines[1].invite(expires_in=86400)
    world.run_for(5.0)
    before = handshakes(machines)

    draft = rotate_bootstrap(machines[3])

    def have_it():
        keys = {m.engine.identity.bootstrap_key for m in machines}
        return keys == {draft.identity.bootstrap_key}

    world.run_until(have_it, within=FOLLOWED)
    assert handshakes(machines) == before
    thief, late = world.machine("thief"), world.machine("late")
    thief.start(token=token)
    late.start(token=machines[2].invite())
    world.run_until(lambda: whole(*machines, late), within=RETURNED)
    world.run_for(10.0)
    assert not thief.engine.identity.chain
    assert not thief.of(events.RefusedByMesh)


def test_who_was_away_for_a_new_bootstrap_key_gets_it_when_it_is_back():
    world = World(seed=51)
    *here, away = machines = world.mesh_of(4)
    world.run_for(5.0)
    away.power_off()
    draft = rotate_bootstrap(here[0])
    world.run_for(300.0)

    away.start()

    world.run_until(
        lambda: away.engine.identity.bootstrap_key == draft.identity.bootstrap_key,
        within=RETURNED,
    )
    world.run_until(lambda: whole(*machines), within=RETURNED)
    world.underlay.capture = []
    here[1].renumber("198.51.100.9")
    world.run_for(20.0)
    assert whole(*machines), "all speak the new key to each other"


def test_two_new_bootstrap_keys_at_once_come_to_one():
    world = World(seed=52)
    machines = world.mesh_of(5)
    world.run_for(5.0)
    rotate_bootstrap(machines[1], "one")
    rotate_bootstrap(machines[4], "other")

    world.run_until(
        lambda: len({m.engine.identity.bootstrap_key for m in machines}) == 1, within=RETURNED
    )
    assert all(m.engine.epochs.lacking is None for m in machines)
    assert whole(*machines)


# Back by a token


@pytest.mark.parametrize("changes", [1, 3], ids=["one root", "two roots and two keys"])
def test_who_was_left_behind_rejoins_by_a_token_as_the_same_node(changes):
    """The sealing node had not heard of it; or the bootstrap key has changed twice since."""
    world = World(seed=60 + changes)
    machines = world.mesh_of(3)
    world.run_for(5.0)
    world.underlay.island = frozenset({"late", "n2"})
    world.run_for(30.0)
    late = world.machine("late")
    late.start(seeds=[machines[2]])
    world.run_until(lambda: whole(machines[2], late), within=RETURNED)
    late.power_off()
    seal(machines[0])
    world.run_for(5.0)
    world.underlay.island = frozenset()
    world.run_until(lambda: all_follow(machines, root_key(world)), within=RETURNED)
    newest = root_key(world)
    if changes > 1:
        rotate_bootstrap(machines[1])
        rotate(machines[0], overlap=60)
        newest = root_key(world, 2)
        world.run_for(120.0)
    assert all_follow(machines, newest)
    token = machines[1].invite()

    late.start(token=token)

    world.run_until(lambda: whole(*machines, late), within=60.0)
    assert late.engine.ledger.roots.newest == newest.id
    assert late.engine.identity.bootstrap_key == machines[0].engine.identity.bootstrap_key
    assert late.engine.ledger.admitted(late.node)


def test_two_seals_make_two_meshes_that_say_so_and_tokens_bring_one_side_over():
    world = World(seed=70)
    machines = world.mesh_of(4)
    ours, theirs = machines[:2], machines[2:]
    world.run_for(5.0)
    world.underlay.island = frozenset({"n2", "n3"})
    world.run_for(60.0)
    seal(ours[0])
    seal(theirs[0], root=7)
    world.run_until(lambda: all_follow(ours, root_key(world)), within=FOLLOWED)
    world.run_until(lambda: all_follow(theirs, root_key(world, 7)), within=FOLLOWED)

    world.underlay.island = frozenset()
    world.run_for(60.0)

    assert all_follow(ours, root_key(world)), "nobody goes back"
    assert all_follow(theirs, root_key(world, 7))
    assert any(m.of("rival-succession") for m in machines)
    for number, machine in enumerate(theirs):
        machine.power_off()
        machine.start(token=ours[0].invite(key=f"over {number}"))
    world.run_until(lambda: whole(*machines), within=60.0)
    world.run_until(lambda: all_follow(ours, root_key(world)), within=FOLLOWED)
    for machine in theirs:
        assert machine.engine.ledger.roots.newest == root_key(world).id
        assert machine.engine.own_chain[0].issuer == root_key(world).id
        assert machine.engine.epochs.lacking is None
    for machine in theirs:  # what is on disk leads to the same place
        machine.power_off()
        machine.start()
    world.run_until(lambda: whole(*machines), within=60.0)
