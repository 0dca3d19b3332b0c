"""First handshakes whose initiations were wasted, in virtual time."""

from __future__ import annotations

import pytest

from engine.engine_wireguard import REKEY_TIMEOUT, Packet
from engine.engine_world import World, whole
from meshd.engine import events
from meshd.engine.first_handshake import RENEWALS_MAX
from meshd.engine.handover import Handover

SENDING_INTERVAL = 0.02


def lose_initiations(machine, count, *, of=None):
    """Have a machine lose the first initiations that come, perhaps of one other, and note them."""
    receive = machine.wireguard.receive
    lost = []

    def take(message, source):
        counts = of is None or message.sender == of.public_key
        if message.kind == "initiation" and counts and len(lost) < count:
            lost.append(message)
        else:
            receive(message, source)

    machine.wireguard.receive = take
    return lost


def two(*, seed):
    world = World(seed=seed)
    return world, world.machine("a"), world.machine("b")


def keep_sending(world, source, target):
    """Send from one machine to another all the time, as people do who wait for an answer."""

    def send():
        if source.engine is not None and target.engine is not None and source.link:
            packet = Packet(source.engine.identity.ipv6, target.ipv6, "echo", b"?")
            source.wireguard.send(packet)
        world.at(SENDING_INTERVAL, send)

    send()


@pytest.mark.parametrize("seed", range(6))
def test_where_both_sides_have_wasted_an_initiation_nobody_waits_for_the_next(seed):
    world, a, b = two(seed=seed)
    lost = [lose_initiations(machine, 1) for machine in (a, b)]
    a.start()
    b.start(seeds=[a])
    keep_sending(world, a, b)
    keep_sending(world, b, a)

    world.run_until(lambda: whole(a, b), within=REKEY_TIMEOUT - 1.0)

    assert [len(each) for each in lost] == [1, 1]
    assert a.ping(b.ipv4)


@pytest.mark.parametrize("delay", [0.001, 0.03, 0.1, 0.25])
def test_what_both_begin_anew_does_not_cross(delay):
    world, a, b = two(seed=3)
    world.underlay.delay_min, world.underlay.delay_max = 0.8 * delay, 1.2 * delay
    for machine in (a, b):
        lose_initiations(machine, 2)
    a.start()
    b.start(seeds=[a])
    keep_sending(world, a, b)
    keep_sending(world, b, a)

    world.run_until(lambda: whole(a, b), within=REKEY_TIMEOUT)


def test_where_nothing_was_wasted_nothing_is_made_anew():
    world = World(seed=1)
    machines = world.mesh_of(5)
    world.run_for(10.0)

    assert not [event for machine in machines for event in machine.of(events.RenewPeer)]


def test_a_peer_with_a_session_is_left_alone_however_long_it_is_silent():
    world, a, b = two(seed=1)
    a.start()
    b.start(seeds=[a])
    world.run_until(lambda: whole(a, b), within=5.0)
    lose_initiations(a, 1)
    handshakes = a.wireguard.observe().peers[b.public_key].last_handshake_time
    b.power_off()
    b.start()
    world.run_for(1.0)

    assert not a.of(events.RenewPeer)
    assert handshakes
    world.run_until(lambda: whole(a, b), within=60.0)


def test_one_that_never_answers_is_left_to_wireguard():
    world, a, b = two(seed=1)
    a.start()
    b.start(seeds=[a])
    for machine in (a, b):
        lose_initiations(machine, 1000)
    world.run_for(60.0)

    assert 0 < len(a.of(events.RenewPeer)) <= RENEWALS_MAX
    assert 0 < len(b.of(events.RenewPeer)) <= RENEWALS_MAX


def test_a_relay_tells_a_member_nothing_before_it_has_heard_it():
    world = World(seed=2)
    for name, address in (("x", "203.0.113.1"), ("y", "203.0.113.2")):
        world.underlay.add_nat(name, address, dependent=True)
    seed, r = world.machine("seed", relay=False), world.machine("r", relay=True)
    a, b = world.machine("a", "10.0.0.2", realm="x"), world.machine("b", "10.0.1.2", realm="y")
    told = []
    send = r.wireguard.send

    def note(packet):
        if packet.payload[:1] == bytes([Handover.RELAY_GRANT]):
            node = r.engine.member_at(packet.target)
            told.append((node, r.engine.gossip.member(node).heard))
        send(packet)

    r.wireguard.send = note
    seed.start()
    world.run_for(1.0)
    for machine in (r, a):
        machine.start(seeds=[seed])
    world.run_until(lambda: whole(seed, r, a), within=5.0)
    b.start(seeds=[seed])
    for machine, other in ((r, b), (b, r)):
        lose_initiations(machine, 4, of=other)
    world.run_until(lambda: whole(seed, r, a, b), within=20.0)

    assert b.node in {node for node, _ in told}
    assert all(heard for _, heard in told)
