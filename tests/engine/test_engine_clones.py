"""One identity on two machines: known to all, kept by one, and left alone by the other."""

from dataclasses import replace

import pytest

from engine.engine_world import World, all_ping, whole
from meshd.daemon.snapshot import engine_findings
from meshd.engine.clones import EVIDENCE_AGE, NOTICES_BURST, REMAKE_AFTER
from meshd.keys import NodeKey
from meshd.trust.fact import FactKind
from meshd.trust.record import sign_record

# A tunnel that another machine has taken over is begun anew after 15 s (WireGuard's timeouts).
PATIENCE = 60.0


def reports(machine):
    return [
        finding for finding in engine_findings(machine.engine) if finding.code == "identity-cloned"
    ]


def copied(seed, *, restarts=0, both_stopped=False):
    """Return two members, a third, and the machine that its disk was copied to, all started."""
    world = World(seed=seed)
    a, b, original = world.mesh_of(3)
    clone = world.machine("clone", node_key=NodeKey(original.disk.node_key.seed))
    if both_stopped:
        original.power_off()
    clone.disk = original.disk.copy()
    clone.disk.starts += restarts
    if both_stopped:
        original.start(seeds=[a])
        world.run_for(1.5)
    clone.start(seeds=[a])
    return world, a, b, original, clone


def settled(original, clone):
    return clone.engine.clones.silent and original.engine.clones.proven


def served(original, *members):
    """Whether the members' tunnels lead to the original, and work."""
    return whole(original, *members) and all(
        m.endpoint_of(original).address == original.addresses[0] for m in members
    )


cases = pytest.mark.parametrize(
    ("restarts", "both_stopped"),
    [(0, False), (5, False), (0, True), (5, True)],
    ids=["running, same start", "running, other start", "rebooted, same", "rebooted, other"],
)


@cases
@pytest.mark.parametrize("seed", [51, 52, 53])
def test_the_one_that_was_started_first_goes_on_and_the_other_falls_silent(
    seed, restarts, both_stopped
):
    world, a, b, original, clone = copied(seed, restarts=restarts, both_stopped=both_stopped)

    took = world.run_until(lambda: settled(original, clone), within=5.0)
    world.run_for(REMAKE_AFTER + 0.5)
    took += world.run_until(lambda: all_ping(original, a, b), within=20.0)
    print(f"{took:.1f} s and {REMAKE_AFTER + 0.5} s")  # shown by pytest -rP

    assert not original.engine.clones.silent
    assert not clone.wireguard.observe().peers, "nothing of it roams the members' tunnels away"
    sequence = original.engine.ledger.standing(original.node).record.sequence
    for _ in range(60):
        world.run_for(1.0)
        assert a.ping(original.ipv4)
        assert b.ping(original.ipv6)
        assert original.ping(a.ipv4)
    assert original.engine.ledger.standing(original.node).record.sequence == sequence, "no fight"


@cases
def test_all_report_it_and_each_clone_says_what_it_does(restarts, both_stopped):
    world, a, b, original, clone = copied(54, restarts=restarts, both_stopped=both_stopped)
    world.run_until(lambda: settled(original, clone), within=PATIENCE)
    world.run_until(lambda: reports(a) and reports(b), within=PATIENCE)

    for machine in (a, b, original, clone):
        assert len(reports(machine)) == 1
        assert machine.of("identity-cloned")
    assert "n2" in reports(a)[0].message
    assert "steps back" in reports(clone)[0].message
    assert "join there with a new token" in reports(clone)[0].message
    assert "goes on" in reports(original)[0].message


def test_who_was_away_learns_of_it_on_return():
    world = World(seed=55)
    a, b, original = world.mesh_of(3)
    b.kill()
    clone = world.machine("clone", node_key=NodeKey(original.disk.node_key.seed))
    clone.disk = original.disk.copy()
    clone.start(seeds=[a])
    world.run_until(lambda: settled(original, clone), within=PATIENCE)
    world.run_for(5.0)

    b.start()
    world.run_until(lambda: whole(a, b, original), within=PATIENCE)
    world.run_until(lambda: reports(b), within=5.0)


def test_a_clone_that_is_started_again_steps_back_again():
    world, a, b, original, clone = copied(56)
    world.run_until(lambda: settled(original, clone), within=PATIENCE)
    clone.power_off()

    clone.start(seeds=[a])

    world.run_until(lambda: settled(original, clone), within=PATIENCE)
    world.run_until(lambda: whole(a, b, original), within=PATIENCE)


def test_of_three_machines_one_goes_on():
    world, a, b, original, clone = copied(57)
    third = world.machine("third", node_key=NodeKey(original.disk.node_key.seed))
    third.disk = original.disk.copy()
    world.run_for(1.2)
    third.start(seeds=[a])

    world.run_until(lambda: clone.engine.clones.silent and third.engine.clones.silent, within=120)
    world.run_until(lambda: whole(a, b, original), within=PATIENCE)

    assert not original.engine.clones.silent


def test_when_the_copy_is_gone_and_the_node_is_started_anew_nobody_reports_it_any_more():
    world, a, b, original, clone = copied(58)
    world.run_until(lambda: settled(original, clone) and reports(a) and reports(b), within=PATIENCE)
    clone.power_off()
    original.power_off()

    original.start()
    world.run_until(lambda: whole(a, b, original), within=PATIENCE)
    world.run_for(5.0)

    for machine in (a, b, original):
        assert not reports(machine)


def test_without_new_evidence_a_report_ends():
    world, a, b, original, clone = copied(59)
    world.run_until(lambda: settled(original, clone) and reports(a), within=PATIENCE)
    clone.power_off()
    b.power_off()
    now = world.now + EVIDENCE_AGE + 10

    original.engine.handle_timer(now, world.wall + EVIDENCE_AGE)
    a.engine.clones.handle_timer(now)

    assert not reports(original)
    assert not reports(a)
    assert not original.engine.ledger.standing(original.node).record.cloned


def test_neither_restarts_nor_backups_nor_stale_members_look_like_a_clone():
    """Each member remembers another life of the one that comes back from an old disk."""
    world = World(seed=60)
    a, b, c = world.mesh_of(3)
    backup = c.disk.copy()
    lives = []
    for knower, other in ((a, b), (b, a), (a, b)):
        other.kill()
        c.kill()
        c.start(seeds=[knower])
        world.run_until(lambda knower=knower: whole(knower, c), within=30.0)
        lives.append(c.engine.clones.run)
        world.run_for(1.0)
        other.start()
    c.power_off()
    c.disk = backup

    c.start()
    world.run_until(lambda: whole(a, b, c), within=PATIENCE)
    world.run_for(30.0)

    assert len(set(lives)) == len(lives)
    for machine in (a, b, c):
        assert not reports(machine)
        assert not machine.of("identity-cloned")
        assert not machine.engine.ledger.standing(c.node).record.cloned


def test_two_records_with_one_number_are_reported_for_a_day():
    world = World(seed=61)
    a, mallory = world.mesh_of(2)
    record = replace(a.engine.ledger.standing(mallory.node).record, candidates=())
    mallory.kill()

    a.learn(FactKind.RECORD, sign_record(record, mallory.disk.node_key, world.mesh))

    assert reports(a)
    a.engine.clones.handle_timer(world.now + EVIDENCE_AGE)
    assert not reports(a)


def test_a_member_that_contradicts_itself_all_the_time_does_not_fill_the_log():
    world = World(seed=63)
    a, mallory = world.mesh_of(2)
    record = a.engine.ledger.standing(mallory.node).record
    mallory.kill()

    for number in range(1, 200):
        said = replace(
            record, sequence=record.sequence + number, run=number, cloned=number % 2 == 1
        )
        a.learn(FactKind.RECORD, sign_record(said, mallory.disk.node_key, world.mesh))

    assert len(a.of("identity-cloned")) == NOTICES_BURST
    assert len(reports(a)) == 1


def test_a_silent_clone_can_still_be_asked_and_leaves_without_a_word():
    world, a, b, original, clone = copied(62)
    world.run_until(lambda: settled(original, clone), within=PATIENCE)
    world.run_until(lambda: served(original, a, b), within=PATIENCE)

    clone.leave()
    world.run_for(REMAKE_AFTER)

    assert served(original, a, b)
    assert not a.of("member-left")
