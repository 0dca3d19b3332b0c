"""IPv4 addresses: claimed once, kept for good, and contested with one outcome."""

from ipaddress import IPv4Address, IPv4Network

import pytest

from engine.engine_world import RECONCILE_DELAY, World, all_ping, whole
from meshd.engine.presence import RETIRE_TIME

CONTESTED = IPv4Address("100.64.3.3")


def settled(*machines):
    """Whether all agree on everybody's address, and no two have the same."""
    views = [
        {
            m.node: m.ipv4 if m is machine else machine.engine.presence.addresses.get(m.node)
            for m in machines
        }
        for machine in machines
    ]
    return len(set(views[0].values())) == len(machines) and all(v == views[0] for v in views)


def contest(seed, *, winner_first):
    """Return a settled mesh in which two members have asked for one address."""
    world = World(seed=seed)
    bystander = world.machine("bystander")
    old = world.machine("old", wanted_ipv4=CONTESTED)
    new = world.machine("new", wanted_ipv4=CONTESTED)
    bystander.start()
    first, second = (old, new) if winner_first else (new, old)
    for machine, clock in ((old, 0.0), (new, 3600.0)):
        machine.clock_offset = clock  # the older one has been admitted an hour before
    first.start(seeds=[bystander])
    world.run_until(lambda: whole(bystander, first), within=2.0)
    address = bystander.ipv4
    assert first.ipv4 == CONTESTED
    second.start(seeds=[bystander])
    world.run_until(lambda: whole(bystander, old, new), within=2.0)
    world.run_until(lambda: settled(bystander, old, new), within=5.0)
    assert bystander.ipv4 == address
    return world, bystander, old, new


@pytest.mark.parametrize("winner_first", [True, False])
def test_of_two_that_claim_one_address_the_later_admitted_moves(winner_first):
    _, bystander, old, new = contest(1, winner_first=winner_first)

    assert old.ipv4 == CONTESTED
    assert new.ipv4 != CONTESTED
    assert all_ping(bystander, old, new)
    assert [notice.message.split(";")[0] for notice in new.of("address-changed")] == [
        f"our IPv4 address {CONTESTED} belongs to old"
    ]
    assert not old.of("address-changed")


def test_a_loser_has_told_everybody_of_its_move_before_its_old_address_goes():
    world = World(seed=7)
    bystander, old = world.machine("bystander"), world.machine("old", wanted_ipv4=CONTESTED)
    new = world.machine("new", wanted_ipv4=CONTESTED)
    new.clock_offset = 3600.0
    bystander.start()
    new.start(seeds=[bystander])
    world.run_until(lambda: whole(bystander, new), within=2.0)
    assert new.ipv4 == CONTESTED
    old.start(seeds=[bystander])

    world.run_until(lambda: new.ipv4 != CONTESTED, within=2.0)
    world.run_for(2 * RECONCILE_DELAY)
    assert new.ipv4 in new.link, "make"
    assert CONTESTED not in new.link
    assert CONTESTED in new.retired, "before break"
    # At once, without a word from the loser: it belongs to the winner.
    assert bystander.wireguard.owner(CONTESTED) == old.public_key

    world.run_until(lambda: CONTESTED not in new.retired, within=RETIRE_TIME + 0.1)
    for machine in (bystander, old):
        assert machine.engine.presence.addresses[new.node] == new.ipv4
        assert machine.wireguard.owner(new.ipv4) == new.public_key
    assert all_ping(bystander, old, new)
    assert new.of("address-changed")[0].details == {
        "before": str(CONTESTED),
        "after": str(new.ipv4),
    }


def test_the_outcome_of_a_contest_survives_restarts():
    world, *machines = contest(2, winner_first=False)
    before = [machine.ipv4 for machine in machines]
    for machine in machines:
        machine.power_off()

    for machine in reversed(machines):
        machine.start()
    world.run_until(lambda: whole(*machines), within=15.0)

    # `new` still asks for the contested address first, and finds again who has it.
    world.run_until(lambda: settled(*machines), within=5.0)
    assert [machine.ipv4 for machine in machines] == before


def test_a_pinned_address_is_taken_from_whoever_claimed_it():
    world = World(seed=3)
    founder = world.machine("founder")
    squatter = world.machine("squatter", wanted_ipv4=CONTESTED)
    founder.start()
    squatter.start(seeds=[founder])
    world.run_until(lambda: whole(founder, squatter), within=2.0)
    assert squatter.ipv4 == CONTESTED
    pinned = world.machine("pinned")

    pinned.start(token=founder.invite(ipv4=CONTESTED))

    machines = (founder, squatter, pinned)
    world.run_until(lambda: whole(*machines) and settled(*machines), within=5.0)
    assert pinned.ipv4 == CONTESTED
    assert all_ping(*machines)


def test_an_address_is_kept_through_restarts_and_the_comings_of_others():
    world = World(seed=4)
    machines = world.mesh_of(3)
    addresses = [machine.ipv4 for machine in machines]
    for number in range(3):
        newcomer = world.machine(f"late{number}")
        newcomer.start(seeds=machines[:1])
        machines[number].kill()
        machines[number].start()
        world.run_for(3.0)

    assert [machine.ipv4 for machine in machines] == addresses


def test_a_forgotten_members_address_can_be_claimed():
    world = World(seed=5)
    a, b = world.machine("a"), world.machine("b", wanted_ipv4=CONTESTED)
    a.start()
    b.start(seeds=[a])
    world.run_until(lambda: whole(a, b), within=2.0)
    b.power_off()
    a.forget(b)
    assert CONTESTED not in a.engine.presence.addresses.values()
    c = world.machine("c", wanted_ipv4=CONTESTED)

    c.start(seeds=[a])

    world.run_until(lambda: whole(a, c), within=2.0)
    assert c.ipv4 == CONTESTED
    assert a.ping(CONTESTED)


def test_a_full_prefix_leaves_a_member_with_ipv6_alone():
    world = World(seed=6)
    machines = [world.machine(f"n{number}") for number in range(4)]
    machines[0].start(prefix=IPv4Network("10.0.0.0/30"))  # room for two
    for machine in machines[1:]:
        machine.start(token=machines[0].invite(uses=0))
    world.run_until(lambda: whole(*machines), within=5.0)
    world.run_for(3.0)

    assert sorted(machine.ipv4 is None for machine in machines) == [False, False, True, True]
    assert machines[0].ipv4 is not None
    assert all(machines[0].ping(machine.ipv6) for machine in machines[1:])
