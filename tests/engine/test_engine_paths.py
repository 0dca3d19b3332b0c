"""Calls, the watch of traffic, and keepalives: what the engine adds to the path agent."""

import pytest

from engine.engine_world import World, whole
from meshd.engine.calling import FORWARDS_BURST_MAX, Call, encode_call
from meshd.engine.handover import Handover, mark

NOT_PASSED_ON = "call that was passed on before"
TOO_MANY = "too many calls of one member"


@pytest.fixture
def three():
    """Yield the world, and three members of one mesh that reach each other."""
    world = World(seed=5)
    machines = world.mesh_of(3)
    world.run_for(3.0)
    return world, *machines


def handed(machine, datagram, source, wall):
    """Hand a datagram from another member's tunnel to a machine.  Return what it sends in turn."""
    machine.engine.overlay_datagrams()
    machine.engine.overlay_datagram(datagram, source.ipv6, machine.now, wall)
    return [
        (payload, address)
        for payload, address in machine.engine.overlay_datagrams()
        if payload[0] == Handover.CALL
    ]


def call_of(caller, called):
    return mark(
        Handover.CALL, encode_call(Call(caller.node, called.node, caller.engine.presence.blob))
    )


def pings_to(machine, other):
    """Take what a machine sends on the underlay to the addresses of another."""
    return [
        out for out in machine.engine.underlay_datagrams() if out.target.address in other.addresses
    ]


# Calls


def test_a_call_is_passed_on_to_whom_it_calls_as_it_is(three):
    world, a, b, c = three

    assert handed(c, call_of(a, b), a, world.wall) == [(call_of(a, b), b.ipv6)]


def test_who_is_called_pings_the_caller_at_once(three):
    world, a, b, c = three
    b.engine.underlay_datagrams()

    assert handed(b, call_of(a, b), c, world.wall) == []

    assert pings_to(b, a)
    handed(b, call_of(a, b), c, world.wall)
    assert not pings_to(b, a), "not twice at once"


def test_a_call_is_passed_on_once_only(three):
    world, a, b, c = three

    assert handed(c, call_of(a, b), b, world.wall) == []
    assert handed(a, call_of(b, c), c, world.wall) == []

    assert c.engine.bad_packets[NOT_PASSED_ON] == 1
    assert a.engine.bad_packets[NOT_PASSED_ON] == 1


def test_a_call_of_or_for_one_that_is_no_member_is_dropped(three):
    world, a, b, c = three
    stranger = World(seed=6).machine("stranger")
    of_stranger = Call(stranger.node, b.node, a.engine.presence.blob)

    assert handed(b, mark(Handover.CALL, encode_call(of_stranger)), c, world.wall) == []
    assert handed(c, call_of(a, stranger), a, world.wall) == []

    assert b.engine.bad_packets["call of one that is no member"] == 1
    assert c.engine.bad_packets["call for one that is no member"] == 1


def test_a_member_has_only_so_many_calls_passed_on(three):
    world, a, b, c = three

    passed = [handed(c, call_of(a, b), a, world.wall) for _ in range(FORWARDS_BURST_MAX + 10)]

    assert len([one for one in passed if one]) == FORWARDS_BURST_MAX
    assert c.engine.bad_packets[TOO_MANY] == 10


def test_another_members_record_in_a_call_is_not_taken_for_the_callers(three):
    world, a, b, c = three
    before = b.engine.ledger.standing(a.node)
    lie = Call(a.node, b.node, c.engine.presence.blob)

    handed(b, mark(Handover.CALL, encode_call(lie)), c, world.wall)
    world.run_for(1.0)

    assert b.engine.ledger.standing(a.node) == before
    assert b.engine.ledger.standing(c.node).record.node == c.node


def test_two_behind_nats_that_let_them_meet_directly():
    world = World(seed=9)
    for realm, address in (("x", "203.0.113.1"), ("y", "203.0.113.2")):
        world.underlay.add_nat(realm, address)
    server = world.machine("server")
    server.start()
    a = world.machine("a", "10.0.0.2", realm="x")
    b = world.machine("b", "10.0.1.2", realm="y")
    a.start(seeds=[server])
    b.start(seeds=[server])

    world.run_until(lambda: whole(server, a, b), within=5.0)

    assert a.ping(b.ipv4)
    assert {a.engine.path.view(b.node).relay, b.engine.path.view(a.node).relay} == {None}


# Traffic


def two_with_two_addresses(seed=11):
    world = World(seed=seed)
    a = world.machine("a", "192.0.2.1", "198.51.100.1")
    b = world.machine("b", "192.0.2.2", "198.51.100.2")
    a.start()
    b.start(seeds=[a])
    world.run_until(lambda: whole(a, b), within=3.0)
    return world, a, b


def test_gossip_handshakes_and_keepalives_are_no_traffic():
    world, a, b = two_with_two_addresses()
    world.run_for(10.0)
    sent = a.engine.path.statistics().pings_sent

    watched = 0
    for _ in range(300):
        world.run_for(1.0)
        watched += a.engine.path.statistics().watched + b.engine.path.statistics().watched

    assert watched <= 12  # a connection of push and pull may be taken for it
    assert a.engine.path.statistics().pings_sent - sent <= 60


def test_what_goes_through_a_tunnel_has_its_path_watched_while_it_does():
    world, a, b = two_with_two_addresses()
    world.run_for(5.0)
    for _ in range(50):
        a.ping(b.ipv4)
        world.run_for(0.1)

    assert a.engine.path.statistics().watched == 1
    assert b.engine.path.statistics().watched == 1

    world.run_for(10.0)
    assert a.engine.path.statistics().watched == 0


def test_a_device_is_looked_at_once_a_second_and_not_where_there_is_one_way_only():
    world, a, _ = two_with_two_addresses()
    world.run_for(10.0)
    before = a.looks
    world.run_for(60.0)
    assert a.looks - before <= 70

    world = World(seed=12)
    c, *_ = world.mesh_of(3)
    world.run_for(10.0)
    before = c.looks
    world.run_for(60.0)
    assert c.looks == before


# Keepalives


def test_only_what_goes_through_a_nat_of_ours_is_kept_alive():
    world = World(seed=13)
    world.underlay.add_nat("home", "203.0.113.9")
    server = world.machine("server")
    server.start()
    at_home = [
        world.machine(name, f"192.168.1.{number}", realm="home")
        for number, name in enumerate(("a", "b"), 2)
    ]
    for machine in at_home:
        machine.start(seeds=[server])
    world.run_until(lambda: whole(server, *at_home), within=8.0)
    world.run_for(10.0)

    a, b = at_home
    keepalives = {
        key: peer.persistent_keepalive for key, peer in a.wireguard.observe().peers.items()
    }
    assert keepalives == {server.public_key: 25, b.public_key: 0}
    assert {p.persistent_keepalive for p in server.wireguard.observe().peers.values()} == {0}
