"""Over TCP, in virtual time: who has no UDP is reached all the same, and goes back to UDP."""

import pytest

from engine import engine_carrier
from engine.engine_carrier import TcpWorld
from engine.engine_world import all_ping, whole
from meshd.path.candidates import PathClass
from meshd.wg.types import Endpoint

RELAY = {"relay": True, "tcp": 51820}


def start(world, *names, blocked=()):
    """A mesh whose first is relay and seed; those named `blocked` have no UDP."""
    world.udp_blocked.update(blocked)
    machines = [world.machine(n, **(RELAY if n == names[0] else {})) for n in names]
    machines[0].start()
    for machine in machines[1:]:
        machine.start(seeds=machines[:1])
    return machines


def path_class(machine, other):
    return machine.engine.path.view(other.node).path_class


def over_tcp(machine, other):
    return machine.engine.carriage.is_over_tcp(machine.endpoint_of(other))


def test_a_member_without_udp_joins_and_reaches_all():
    world = TcpWorld()
    a, b, c = machines = start(world, "a", "b", "c", blocked=["b"])

    world.run_until(lambda: whole(*machines), within=15.0)
    world.run_until(lambda: all_ping(*machines), within=5.0)

    assert over_tcp(b, a)
    assert over_tcp(a, b)
    assert over_tcp(b, c)
    assert not over_tcp(c, b)
    assert path_class(b, c) is PathClass.RELAYED_TCP
    assert path_class(c, b) is PathClass.RELAYED
    assert b.engine.carriage.over_tcp == (a.node,)


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_a_seed_over_tcp_is_asked_at_once(scheme):
    world = TcpWorld()
    a, b = world.machine("a", **RELAY), world.machine("b")
    world.udp_blocked.add("b")
    a.start()
    b.start(seeds=(f"{scheme}://{a.addresses[0]}:51820",))

    world.run_until(lambda: whole(a, b), within=2.0)


def test_nobody_goes_over_tcp_whose_udp_works():
    world = TcpWorld()
    machines = start(world, "a", "b", "c")
    world.run_until(lambda: whole(*machines), within=10.0)
    world.run_for(120.0)

    assert world.tubes == {}
    assert world.carried == 0


def test_what_others_say_of_where_we_are_is_no_address_of_ours():
    world = TcpWorld()
    machines = start(world, "a", "b", "c", blocked=["b"])
    world.run_until(lambda: whole(*machines), within=15.0)
    world.run_for(30.0)

    for machine in machines:
        assert machine.engine.path.reflexive == ()
        for other in machines:
            for candidate in other.engine.ledger.standing(machine.node).record.candidates:
                assert not candidate.address.is_loopback


def test_a_member_that_loses_udp_is_back_over_tcp_and_then_by_udp_without_loss():
    world = TcpWorld()
    a, b, c = machines = start(world, "a", "b", "c")
    world.run_until(lambda: whole(*machines), within=10.0)
    world.run_for(20.0)

    world.udp_blocked.add("b")
    world.run_until(lambda: over_tcp(b, c) and b.ping(c.ipv6), within=30.0)

    world.udp_blocked.clear()
    lost = 0
    for _ in range(900):
        lost += not b.ping(c.ipv6, within=0.5)
        world.run_for(0.1)
    assert lost == 0
    assert not over_tcp(b, a)
    assert not over_tcp(b, c)
    world.run_until(lambda: not world.tubes, within=30.0)
    assert world.happens(lambda: whole(*machines), within=1.0)


def test_a_connection_that_breaks_is_survived():
    world = TcpWorld()
    a, b, c = machines = start(world, "a", "b", "c", blocked=["b"])
    world.run_until(lambda: whole(*machines), within=15.0)
    world.run_until(lambda: all_ping(*machines), within=5.0)
    before = b.endpoint_of(a)

    (tube,) = world.tubes_of(b)
    world.disconnect(tube)

    world.run_until(lambda: world.tubes_of(b), within=5.0)
    world.run_until(lambda: b.ping(a.ipv6) and b.ping(c.ipv6), within=5.0)
    assert b.endpoint_of(a) == before
    world.run_until(lambda: a.endpoint_of(b) == tube.client, within=5.0)


def test_a_relay_that_restarts_is_survived():
    world = TcpWorld()
    a, b, _ = machines = start(world, "a", "b", "c", blocked=["b"])
    world.run_until(lambda: whole(*machines), within=15.0)
    world.run_until(lambda: all_ping(*machines), within=5.0)

    a.kill()
    for tube in world.tubes_of(b):
        world.disconnect(tube)
    world.run_for(3.0)
    a.start()

    world.run_until(lambda: whole(*machines) and all_ping(*machines), within=60.0)


def test_two_without_udp_reach_each_other():
    world = TcpWorld()
    machines = start(world, "a", "b", "c", blocked=["b", "c"])

    world.run_until(lambda: whole(*machines), within=20.0)
    world.run_until(lambda: all_ping(*machines), within=5.0)

    assert over_tcp(machines[1], machines[2])
    assert over_tcp(machines[2], machines[1])


def test_of_two_relays_the_other_one_takes_over():
    world = TcpWorld()
    a, b, c, d = machines = [
        world.machine("a", **RELAY),
        world.machine("b"),
        world.machine("c"),
        world.machine("d", **RELAY),
    ]
    world.udp_blocked.add("b")
    a.start()
    for machine in machines[1:]:
        machine.start(seeds=[a])
    world.run_until(lambda: whole(*machines), within=20.0)
    world.run_until(lambda: len(world.tubes_of(b)) == 2, within=30.0)

    a.power_off()
    for tube in [tube for tube in world.tubes_of(b) if tube.host is a]:
        world.disconnect(tube)

    world.run_until(lambda: b.ping(c.ipv6) and b.ping(d.ipv6), within=60.0)


def test_two_without_udp_meet_though_each_has_come_by_another_relay(monkeypatch):
    # By the time that a second relay is connected it is reached by way of the first.
    monkeypatch.setattr(engine_carrier, "CONNECT_DELAY", 3.0)
    world = TcpWorld()
    one, other = (world.machine(name, **RELAY) for name in ("one", "other"))
    b, c = (world.machine(name) for name in ("b", "c"))
    world.udp_blocked.update(("b", "c"))
    one.start()
    other.start(seeds=[one])
    world.run_until(lambda: whole(one, other), within=10.0)

    b.start(seeds=[one])
    c.start(seeds=[other])

    world.run_until(lambda: other.node in b.engine.path.peers, within=30.0)
    world.run_until(lambda: b.engine.path.peers[other.node].relay == one.node, within=30.0)
    world.run_until(lambda: whole(one, other, b, c), within=30.0)
    world.run_until(lambda: all_ping(one, other, b, c), within=5.0)


def test_loopback_is_nobody_that_the_own_carrier_has_not_made():
    world = TcpWorld()
    a, b = machines = start(world, "a", "b", blocked=["b"])
    world.run_until(lambda: whole(*machines), within=15.0)
    (tube,) = world.tubes_of(b)
    fence = a.engine.path.fence

    assert fence.allows(tube.client)
    assert not fence.allows(Endpoint(tube.client.address, tube.client.port + 1))
    assert not fence.believes(tube.client)

    client = tube.client
    world.disconnect(tube)
    assert not fence.allows(client)
