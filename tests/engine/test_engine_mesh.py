"""Meshes that form by themselves, and form again after whatever happens to them."""

import itertools

import pytest

from engine.engine_world import World, all_ping, whole
from meshd.engine import events
from meshd.gossip.claim import MemberState, sign_claim
from meshd.gossip.wire import CLAIM_ITEM, Item, Message, MessageType, encode
from meshd.trust.fact import FactKind
from meshd.underlay import DatagramType

# As long as the mesh may take to be whole again, nobody touching anything.
HEALING = 15.0


def states(observer, *others):
    return [observer.state_of(other) for other in others]


# Forming


def test_secret_holders_form_a_mesh_from_one_seed():
    world = World(seed=1)
    a, b, c = (world.machine(name) for name in "abc")
    a.start()
    world.run_for(3.0)
    b.start(seeds=[a])
    world.run_until(lambda: whole(a, b), within=1.0)
    c.start(seeds=[a])

    world.run_until(lambda: whole(a, b, c), within=1.0)

    assert all_ping(a, b, c)


def test_a_lone_node_is_a_mesh_of_one():
    world = World(seed=1)
    alone = world.machine("alone")
    alone.start()

    world.run_for(60.0)

    assert alone.ping(alone.ipv4) is False  # there is no peer to reach, and nothing breaks
    assert {alone.ipv4, alone.ipv6} == alone.link
    assert alone.engine.get_timer().at > world.now


def test_a_node_may_be_named_as_its_own_seed():
    world = World(seed=9)
    a, b = world.machine("a"), world.machine("b")
    for machine in (a, b):
        machine.start(seeds=[a, b])

    world.run_until(lambda: whole(a, b), within=1.0)


def test_ten_nodes_started_at_once_form_a_mesh():
    world = World(seed=2)

    machines = world.mesh_of(10, within=5.0)

    assert all_ping(*machines[:4])
    assert len({machine.ipv4 for machine in machines}) == 10


def test_the_mesh_forms_in_spite_of_loss():
    world = World(seed=3)
    world.underlay.loss = 0.2

    machines = world.mesh_of(5, within=30.0)

    world.underlay.loss = 0.0
    world.run_until(lambda: whole(*machines), within=HEALING)


@pytest.mark.parametrize("delay", [0.0002, 0.005, 0.03, 0.08])
def test_each_pair_makes_one_handshake_and_it_succeeds(delay):
    world = World(seed=4)
    world.underlay.delay_min, world.underlay.delay_max = 0.8 * delay, 1.2 * delay
    world.underlay.capture = []
    machines = world.mesh_of(6, within=0.2 + 20 * delay)
    world.run_for(2.0)

    initiations = [
        frozenset({sent.payload.sender, sent.payload.target})
        for sent in world.underlay.capture
        if not isinstance(sent.payload, bytes) and sent.payload.kind == "initiation"
    ]

    # One that is lost, or comes before the other side knows us, would be repeated after 5 s.
    pairs = list(itertools.combinations(machines, 2))
    assert len(initiations) == len(set(initiations)) == len(pairs)
    assert all(machine.wireguard.homeless == 0 for machine in machines)


@pytest.mark.parametrize("delay", [0.0002, 0.03, 0.08])
def test_a_newcomer_is_heard_by_all_within_a_few_round_trips(delay):
    world = World(seed=14)
    world.underlay.delay_min, world.underlay.delay_max = 0.8 * delay, 1.2 * delay
    machines = world.mesh_of(4)
    world.run_for(10.0)
    newcomer = world.machine("newcomer")

    newcomer.start(seeds=machines[:1])

    world.run_until(lambda: whole(*machines, newcomer), within=0.1 + 12 * delay)


def test_a_seed_may_be_started_after_the_joiner():
    world = World(seed=5)
    seed, joiner = world.machine("seed"), world.machine("joiner")
    joiner.start(seeds=[seed])
    world.run_for(20.0)
    assert [notice.event for notice in joiner.of("no-answer")] == ["no-answer"]

    seed.start()

    world.run_until(lambda: whole(seed, joiner), within=10.0)


def test_of_several_seeds_one_that_lives_is_enough():
    world = World(seed=6)
    a, b = world.machine("a"), world.machine("b")
    a.start()

    b.start(seeds=["198.51.100.1:51820", a, "no-such-name:51820", "198.51.100.2:51820"])

    world.run_until(lambda: whole(a, b), within=1.0)


def test_a_name_of_a_seed_may_get_its_address_later():
    world = World(seed=7)
    a, b = world.machine("a"), world.machine("b")
    a.start()
    b.start(seeds=["seed.example.org:51820"])
    world.run_for(10.0)

    world.names["seed.example.org"] = ("192.0.2.1",)

    world.run_until(lambda: whole(a, b), within=10.0)


def test_two_meshes_of_one_secret_merge_through_one_that_was_alone():
    world = World(seed=8)
    a, b, c = (world.machine(name) for name in "abc")
    a.start()
    b.start(seeds=[a])
    c.start(seeds=["198.51.100.1:51820"])
    world.run_until(lambda: whole(a, b), within=2.0)
    c.kill()

    c.start(seeds=[a])

    world.run_until(lambda: whole(a, b, c), within=HEALING)


# Restarts


def test_a_restart_needs_neither_seed_nor_handshake():
    world = World(seed=10)
    a, b, c = world.mesh_of(3)
    world.run_for(5.0)
    handshakes = a.wireguard.handshakes + b.wireguard.handshakes + c.wireguard.handshakes
    address = b.ipv4
    b.kill()
    world.run_for(0.5)

    b.start()
    took = world.run_until(lambda: whole(a, b, c), within=3.0)

    assert took < 2.0
    assert b.ipv4 == address
    assert handshakes == (a.wireguard.handshakes + b.wireguard.handshakes + c.wireguard.handshakes)
    assert not b.of("identity-cloned")
    assert not b.of(events.SequenceOutrun)


def test_traffic_flows_on_while_the_daemon_is_dead():
    world = World(seed=11)
    a, b = world.mesh_of(2)
    address = b.ipv4
    b.kill()

    assert all(a.ping(address) for _ in range(30))


def test_a_mesh_comes_back_from_its_state_alone():
    world = World(seed=12)
    machines = world.mesh_of(5)
    world.run_for(2.0)
    addresses = [machine.ipv4 for machine in machines]
    for machine in machines:
        machine.power_off()
    world.run_for(3600.0)

    for machine in machines:
        machine.start()
    world.run_until(lambda: whole(*machines), within=HEALING)

    assert [machine.ipv4 for machine in machines] == addresses
    assert all_ping(*machines[:3])


def test_a_mesh_comes_back_however_late_each_node_is():
    world = World(seed=13)
    machines = world.mesh_of(4)
    for machine in machines:
        machine.power_off()

    for machine in machines:
        machine.start()
        world.run_for(40.0)

    world.run_until(lambda: whole(*machines), within=HEALING)


# Broken networks


@pytest.mark.parametrize("noticed", [True, False], ids=["carrier lost", "behind a switch"])
def test_a_cable_pulled_for_a_minute_is_made_good(noticed):
    world = World(seed=20)
    a, b, c, d = world.mesh_of(4)
    d.unplug(noticed=noticed)
    world.run_for(60.0)
    assert states(a, b, c, d) == [MemberState.ALIVE, MemberState.ALIVE, MemberState.DEAD]
    assert states(d, a, b, c) == [MemberState.DEAD] * 3

    if noticed:
        d.plug()
    else:
        d.plugged = True

    world.run_until(lambda: whole(a, b, c, d), within=HEALING)
    assert all_ping(a, d)


def test_a_renumbered_member_is_reached_again():
    world = World(seed=21)
    a, b, c = world.mesh_of(3)
    world.run_for(10.0)

    c.renumber("198.51.100.77")

    world.run_until(lambda: a.endpoint_of(c).address == c.addresses[0], within=HEALING)
    world.run_until(lambda: b.endpoint_of(c).address == c.addresses[0], within=HEALING)
    assert all_ping(a, b, c)
    assert whole(a, b, c), "nobody has even been suspected for long"


def test_all_members_may_be_renumbered_one_after_the_other():
    world = World(seed=22)
    machines = world.mesh_of(4)
    for number, machine in enumerate(machines):
        machine.renumber(f"198.51.100.{number + 1}")
        world.run_for(HEALING)

    assert whole(*machines)
    assert all_ping(*machines)


def test_a_partition_heals_by_itself():
    world = World(seed=23)
    machines = world.mesh_of(6)
    world.underlay.island = frozenset({"n0", "n1", "n2"})
    world.run_for(120.0)
    assert whole(*machines[:3])
    assert whole(*machines[3:])
    assert machines[5].state_of(machines[0]) is MemberState.DEAD

    world.underlay.island = frozenset()

    world.run_until(lambda: whole(*machines), within=HEALING)


def test_members_behind_a_nat_join_and_are_reached():
    world = World(seed=24)
    world.underlay.add_nat("home", "203.0.113.9")
    a, b = world.machine("a"), world.machine("b")
    inside = world.machine("inside", "192.168.1.2", realm="home")
    a.start()
    b.start(seeds=[a])
    world.run_until(lambda: whole(a, b), within=2.0)

    inside.start(seeds=[a])

    world.run_until(lambda: whole(a, b, inside), within=5.0)
    assert all_ping(a, b, inside)
    assert inside.engine.path.behind_nat
    world.run_until(
        lambda: all(
            peer.persistent_keepalive == 25 for peer in inside.wireguard.observe().peers.values()
        ),
        within=6.0,
    )
    address = inside.ipv4
    inside.kill()
    world.run_for(100.0)
    assert a.ping(address), "keepalives alone hold the mapping open"


def test_members_behind_two_nats_reach_each_other():
    world = World(seed=25)
    world.underlay.add_nat("x", "203.0.113.1")
    world.underlay.add_nat("y", "203.0.113.2")
    a, b = world.machine("a"), world.machine("b")
    x = world.machine("x", "192.168.1.2", realm="x")
    y = world.machine("y", "192.168.1.2", realm="y")
    a.start()
    for machine in (b, x, y):
        machine.start(seeds=[a])

    world.run_until(lambda: whole(a, b, x, y), within=HEALING)

    assert all_ping(x, y)


def test_members_behind_one_nat_use_their_lan():
    world = World(seed=26)
    world.underlay.add_nat("home", "203.0.113.9")
    a = world.machine("a")
    x = world.machine("x", "192.168.1.2", realm="home")
    y = world.machine("y", "192.168.1.3", realm="home")
    a.start()
    x.start(seeds=[a])
    y.start(seeds=[a])

    world.run_until(lambda: whole(a, x, y), within=HEALING)

    assert x.endpoint_of(y).address == y.addresses[0]


def test_two_halves_that_have_both_moved_find_each_other_by_a_seed():
    world = World(seed=27)
    machines = [world.machine(f"n{number}") for number in range(4)]
    world.names["seed.example.org"] = ("192.0.2.1",)
    for machine in machines:
        machine.start(seeds=["seed.example.org:51820"])
    world.run_until(lambda: whole(*machines), within=2.0)
    world.underlay.island = frozenset({"n0", "n1"})
    world.run_for(30.0)
    for number, machine in enumerate(machines):
        machine.renumber(f"198.51.100.{number + 1}")
        world.run_for(HEALING)  # one after the other, so that each half stays together
    world.names["seed.example.org"] = ("198.51.100.1",)
    assert whole(*machines[:2])
    assert whole(*machines[2:])

    world.underlay.island = frozenset()

    world.run_until(lambda: whole(*machines), within=60.0)


def test_who_misses_nobody_or_knows_where_its_seeds_are_asks_nobody():
    world = World(seed=28)
    a, b, c = world.mesh_of(3)
    world.run_for(100.0)
    c.power_off()
    world.underlay.capture = []

    world.run_for(200.0)

    assert not [
        sent.payload
        for sent in world.underlay.capture
        if isinstance(sent.payload, bytes) and sent.payload[4] == DatagramType.BOOTSTRAP_REQUEST
    ]
    assert not a.of("no-answer")
    assert not b.of("no-answer")


# Going


def test_one_that_leaves_loses_its_peer_entries_and_gets_them_back_when_it_returns():
    world = World(seed=30)
    a, b, c = world.mesh_of(3)
    c.leave()
    world.run_until(lambda: c.engine is None, within=2.0)
    world.run_for(1.0)
    c_ipv6 = c.disk.identity.ipv6
    assert states(a, b, c) == [MemberState.ALIVE, MemberState.LEFT]
    assert all(c_ipv6 not in _reachable(machine) for machine in (a, b))
    world.run_for(300.0)
    assert all(c_ipv6 not in _reachable(machine) for machine in (a, b))

    c.start()

    world.run_until(lambda: whole(a, b, c), within=5.0)
    assert all_ping(a, b, c)


def test_one_that_is_back_before_the_news_that_it_left_gets_its_peer_entries_too():
    world = World(seed=34)
    a, b, c = world.mesh_of(3)
    world.underlay.island = frozenset({"n2"})
    c.leave()
    world.run_until(lambda: c.engine is None, within=2.0)
    c.start()
    # A member that others can reach has brought them its new record, and then, late, the old news.
    left = sign_claim(1, MemberState.LEFT, key=c.disk.node_key, mesh=world.mesh)
    news = encode(Message(MessageType.GOSSIP, 0, 1, 1, items=(Item(CLAIM_ITEM, left.blob),)))
    for machine, source in ((a, b), (b, a)):
        machine.learn(FactKind.RECORD, c.engine.presence.blob)
        machine.engine.overlay_datagram(news, source.ipv6, world.now, world.wall)
        machine.drain()
        assert machine.state_of(c) is MemberState.LEFT
    world.run_for(5.0)
    assert c.ipv6 not in _reachable(a)

    world.underlay.island = frozenset()

    world.run_until(lambda: whole(a, b, c), within=HEALING)


def test_a_dead_member_keeps_its_peer_entry():
    world = World(seed=31)
    a, c = world.mesh_of(2)
    c_ipv6 = c.ipv6
    c.power_off()

    world.run_until(lambda: a.state_of(c) is MemberState.DEAD, within=30.0)
    world.run_for(10.0)

    assert c_ipv6 in _reachable(a)


def test_a_forgotten_member_is_gone_until_it_comes_back():
    world = World(seed=32)
    a, b, c = world.mesh_of(3)
    c_ipv6 = c.ipv6
    c.power_off()
    world.run_until(lambda: a.state_of(c) is MemberState.DEAD, within=30.0)
    for machine in (a, b):
        machine.forget(c)
    world.run_for(30.0)
    for machine in (a, b):
        assert machine.state_of(c) is None
        assert c_ipv6 not in _reachable(machine)
        assert c.node not in [fact.key for fact in machine.disk.facts.values()]

    c.start()

    world.run_until(lambda: whole(a, b, c), within=HEALING)


def test_a_node_that_is_alone_asks_its_seeds_again():
    world = World(seed=33)
    a, b = world.machine("a"), world.machine("b")
    a.start()
    b.start(seeds=[a])
    world.run_until(lambda: whole(a, b), within=2.0)
    b.power_off()
    world.run_until(lambda: a.state_of(b) is MemberState.DEAD, within=30.0)
    a.forget(b)
    a.renumber("198.51.100.5")  # b remembers an address where nobody is
    world.run_for(1.0)

    world.names["a.example.org"] = ("198.51.100.5",)
    b.start(seeds=["a.example.org:51820"])

    world.run_until(lambda: whole(a, b), within=HEALING)


def _reachable(machine):
    peers = machine.wireguard.observe().peers.values()
    return {network.network_address for peer in peers for network in peer.allowed_ips}


def test_the_reasons_of_a_death_name_members_as_people_know_them():
    world = World(seed=9)
    *others, victim = machines = world.mesh_of(4, within=5.0)

    victim.kill()
    world.run_until(lambda: others[0].of("member-dead"), within=60.0)

    messages = [
        notice.message
        for kind in ("member-suspect", "member-dead")
        for notice in others[0].of(kind)
    ]
    assert any("suspected by" in message for message in messages)
    for machine in machines:
        assert not any(machine.node.short in message for message in messages)
