"""What the host's network does to an engine: a mapped port, another way out, a sleep."""

from ipaddress import ip_address

import pytest

from engine.engine_world import World, whole
from meshd.trust.record import CandidateKind
from meshd.wg.types import Endpoint

MAPPED = Endpoint(ip_address("203.0.113.99"), 4000)


@pytest.fixture
def mesh():
    world = World(seed=7)
    machines = world.mesh_of(3)
    world.run_for(5.0)
    assert whole(*machines)
    return world, machines


def proven_at(machine, *others):
    """When the paths in use last had an answer."""
    return [
        max(pair.proven_at for pair in machine.engine.path.view(other.node).pairs)
        for other in others
    ]


def candidates(seen_by, machine):
    standing = seen_by.engine.ledger.standing(machine.node)
    return [
        (Endpoint(c.address, c.port), c.control_port)
        for c in standing.record.candidates
        if c.kind is CandidateKind.MAPPED
    ]


def test_a_mapped_port_is_in_the_record_that_others_hold_until_it_is_not(mesh):
    world, (one, other, _) = mesh
    one.engine.port_mapped(MAPPED, one.now, one.wall)
    one.drain()
    world.run_for(5.0)
    assert candidates(other, one) == [(MAPPED, 0)]

    one.engine.port_mapped(None, one.now, one.wall)
    one.drain()
    world.run_for(5.0)
    assert candidates(other, one) == []


def test_a_mapped_port_inside_the_mesh_is_told_to_nobody(mesh):
    world, (one, other, _) = mesh
    inside = Endpoint(other.ipv4, 51820)

    one.engine.port_mapped(inside, one.now, one.wall)
    one.drain()
    world.run_for(5.0)

    assert candidates(other, one) == []


def test_another_way_out_has_paths_proven_anew(mesh):
    world, (one, *others) = mesh
    before = proven_at(one, *others)

    one.engine.routes_changed(one.now, one.wall)
    one.drain()
    world.run_for(1.0)

    assert all(new > old for new, old in zip(proven_at(one, *others), before, strict=True))


def test_after_a_sleep_paths_are_proven_and_members_told(mesh):
    world, (one, *others) = mesh
    before = proven_at(one, *others)

    one.engine.resumed(one.now, one.wall)
    one.drain()
    world.run_for(1.0)

    assert all(new > old for new, old in zip(proven_at(one, *others), before, strict=True))
    world.run_for(30.0)
    assert whole(one, *others)
