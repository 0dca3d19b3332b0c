"""Members that no NAT lets to each other, relayed by a third, whatever becomes of that one.

a ── NAT x ──┐               ┌── NAT y ── b       x, y: mapping and filtering depend on address
             ├── internet ───┤                          and port, so that no hole can be punched
             r1   r2   r3                         each can be reached, and relays
"""

from __future__ import annotations

from ipaddress import ip_address
from random import Random

import pytest

from engine.engine_world import World, whole
from meshd.engine import events
from meshd.gossip.claim import MemberState
from meshd.relay.allocations import LIFETIME
from meshd.trust.fact import FactKind
from meshd.trust.revocation import Revocation, sign_revocation
from meshd.wg.types import Endpoint

FORMING = 10.0  # seconds in which the mesh has to be whole, over relays too


class Scene:
    """The mesh above, with so many relays."""

    def __init__(self, *, relays=2, seed=1, extra=(), delay=None):
        self.world = World(seed=seed)
        underlay = self.world.underlay
        underlay.capture = []
        if delay is not None:
            underlay.delay_min, underlay.delay_max = 0.8 * delay, 1.2 * delay
        self.world.underlay.add_nat("x", "203.0.113.1", dependent=True)
        self.world.underlay.add_nat("y", "203.0.113.2", dependent=True)
        self.relays = [
            self.world.machine(f"r{number}", relay=True) for number in range(1, relays + 1)
        ]
        self.a = self.world.machine("a", "10.0.0.2", realm="x")
        self.b = self.world.machine("b", "10.0.1.2", realm="y")
        self.others = [self.world.machine(name, *where) for name, *where in extra]
        self.relays[0].start()
        self.world.run_for(1.0)
        self.began_at = self.world.now
        for machine in self.machines[1:]:
            machine.start(seeds=[self.relays[0]])

    @property
    def machines(self):
        return [*self.relays, self.a, self.b, *self.others]

    def form(self):
        """Let the mesh come to where all are alive, and a and b reach each other."""
        self.world.run_until(lambda: whole(*self.machines), within=FORMING)
        self.world.run_until(lambda: self.relay() is not None, within=FORMING)
        assert self.a.ping(self.b.ipv4)
        return self

    def relay(self):
        """Return the machine that a and b say relays them; None where they do not agree."""
        said = {
            one.engine.path.view(other.node).relay
            for one, other in ((self.a, self.b), (self.b, self.a))
            if one.engine.path.view(other.node) is not None
        }
        found = [machine for machine in self.relays if said == {machine.node}]
        return found[0] if found else None

    def spare(self):
        used = self.relay()
        return next(machine for machine in self.relays if machine is not used)

    def talk(self, seconds, *, every=0.1):
        """Have a ping b for a while, and return how many pings got no answer within a second."""
        lost = 0
        until = self.world.now + seconds
        while self.world.now < until:
            began_at = self.world.now
            lost += not self.a.ping(self.b.ipv4)
            self.world.run_for(max(0.0, every - (self.world.now - began_at)))
        return lost

    def held(self, machine):
        """Return the pairs that a machine relays, by names."""
        names = {m.node: m.name for m in self.machines}
        allocations = machine.engine.relays.allocations
        return sorted("".join(sorted(names[n] for n in each.pair)) for each in allocations)


@pytest.fixture
def scene():
    return Scene().form()


def revoke(scene, subject):
    """Have the mesh key revoke a member, by way of r1."""
    key, at = scene.world.mesh_key, int(scene.world.wall)
    revocation = Revocation(subject.node, key.id, cascade=False, revoked_at=at)
    signed = sign_revocation(revocation, key, scene.world.mesh)
    scene.relays[0].learn(FactKind.REVOCATION, signed)


def test_two_whose_nats_depend_on_the_destination_are_relayed_by_a_third(scene):
    assert scene.relay().forwarder.forwarded.total() > 0
    assert scene.a.state_of(scene.b) is MemberState.ALIVE
    assert scene.b.ping(scene.a.ipv6)
    (change, *_) = [n for n in scene.a.of("path-changed") if n.member == scene.b.node]
    assert change.details["path"] == "relayed"
    assert change.details["relay"] in {"r1", "r2"}


def test_nobody_is_relayed_that_is_reached_directly(scene):
    scene.world.run_for(30.0)

    for relay in scene.relays:
        assert set(scene.held(relay)) <= {"ab"}


def test_what_a_relay_forwards_is_ciphertext_and_probes_that_it_cannot_open(scene):
    relay = scene.relay()
    for payload in relay.forwarder.payloads:
        if isinstance(payload, bytes):
            before = dict(relay.engine.bad_packets)
            relay.engine.underlay_datagram(
                payload, Endpoint(ip_address("192.0.2.77"), 1), None, scene.world.now, 0.0
            )
            assert relay.engine.bad_packets != before
        else:
            assert relay.public_key not in {payload.sender, payload.target}


def test_a_spare_stands_ready_while_there_is_traffic(scene):
    scene.talk(5.0)

    pairs = [machine for machine in scene.relays if "ab" in scene.held(machine)]
    assert len(pairs) == 2
    assert all(each.is_bound for m in pairs for each in m.engine.relays.allocations)


def test_a_relay_that_dies_under_way_is_left_for_the_spare():
    scene = Scene(relays=3).form()
    scene.talk(5.0)
    dead = scene.relay()

    dead.power_off()
    scene.relays.remove(dead)

    # Pings are a tenth of a second apart, and each waits a second for its answer.
    assert scene.talk(10.0) <= 2
    assert scene.relay() is not None


def test_a_draining_relay_is_left_without_a_loss():
    scene = Scene(relays=3).form()
    scene.talk(5.0)
    leaving = scene.relay()

    leaving.engine.drain(scene.world.now, scene.world.wall, draining=True)
    leaving.drain()

    assert scene.talk(20.0) == 0
    assert scene.relay() is not leaving
    assert scene.held(leaving) == []
    assert not leaving.engine.presence.relays


def test_a_relay_that_drains_no_longer_takes_pairs_again():
    scene = Scene(relays=1).form()
    (relay,) = scene.relays
    for draining in (True, False):
        relay.engine.drain(scene.world.now, scene.world.wall, draining=draining)
        relay.drain()
    scene.world.run_for(2.0)

    assert relay.engine.presence.relays
    assert scene.talk(2.0) == 0


def test_the_pairs_of_a_revoked_member_go_at_once(scene):
    relay = scene.relays[0]
    scene.talk(3.0)
    assert scene.held(relay) == ["ab"]

    revoke(scene, scene.b)

    assert scene.held(relay) == []
    assert relay.forwarder.ports == frozenset()
    assert relay.disk.allocations == {}
    scene.world.run_until(lambda: not scene.held(scene.relays[1]), within=3.0)


def test_the_pairs_of_a_member_that_leaves_go_at_once(scene):
    scene.talk(3.0)
    scene.b.leave()

    scene.world.run_until(lambda: not any(scene.held(relay) for relay in scene.relays), within=3.0)


def test_a_daemon_that_is_killed_is_relayed_by_its_kernel_and_takes_it_up_again():
    scene = Scene(relays=1).form()
    (relay,) = scene.relays
    scene.talk(2.0)
    ports = relay.forwarder.ports
    relay.kill()

    assert scene.talk(5.0) == 0

    relay.start()
    assert relay.forwarder.ports == ports
    assert scene.held(relay) == ["ab"]
    assert scene.talk(30.0) == 0


def test_a_member_that_was_started_again_is_told_what_it_has_at_once(scene):
    relay = scene.relay()
    port = relay.engine.relays.allocations.get(scene.a.node, scene.b.node).side(scene.a.node).port
    scene.a.kill()
    scene.a.start()

    scene.world.run_until(lambda: relay.node in scene.a.engine.relays.held(scene.b.node), within=2)
    scene.world.run_for(1.0)
    assert scene.relay() in scene.relays
    allocation = relay.engine.relays.allocations.get(scene.a.node, scene.b.node)
    assert allocation.side(scene.a.node).port == port
    assert scene.talk(5.0) == 0


def test_the_first_handshake_by_a_relay_succeeds_at_once():
    for delay in (0.0005, 0.005, 0.03):
        scene = Scene(relays=1, delay=delay)
        scene.form()
        alive = [
            at - scene.began_at
            for one, other in ((scene.a, scene.b), (scene.b, scene.a))
            for at, event in one.events
            if getattr(event, "event", "") == "member-alive" and event.member == other.node
        ]
        initiations = [
            sent
            for sent in scene.world.underlay.capture
            if getattr(sent.payload, "kind", "") == "initiation"
            and sent.sender in {"a", "b"}
            and {sent.payload.sender, sent.payload.target}
            == {scene.a.public_key, scene.b.public_key}
        ]
        assert len(initiations) == 1
        assert max(alive) < 0.5 + 30 * delay


def test_a_relay_that_was_switched_off_for_long_is_asked_anew():
    scene = Scene(relays=1).form()
    (relay,) = scene.relays
    relay.power_off()
    relay.disk.allocations.clear()  # it comes back from a backup
    scene.world.run_for(60.0)

    relay.start()

    scene.world.run_until(
        lambda: scene.relay() is relay and scene.a.ping(scene.b.ipv4), within=60.0
    )


def test_a_pair_lasts_as_long_as_it_is_wanted(scene):
    scene.world.run_for(3 * LIFETIME)

    assert scene.relay() is not None
    assert scene.a.ping(scene.b.ipv4)


def test_what_is_not_wanted_any_more_is_let_go_of(scene):
    scene.b.power_off()

    scene.world.run_until(
        lambda: not any(scene.held(relay) for relay in scene.relays), within=LIFETIME + 60.0
    )
    assert all(relay.disk.allocations == {} for relay in scene.relays)


def test_a_strangers_datagrams_are_dropped_and_counted(scene):
    relay = scene.relay()
    stranger = scene.world.machine("stranger")
    before = relay.forwarder.forwarded.total()
    for port in sorted(relay.forwarder.ports):
        target = Endpoint(relay.addresses[0], port)
        for payload in (
            b"\x04\0\0\0" + bytes(28),
            b"mesh\x03" + bytes(100),
            b"mesh\x0a" + bytes(99),
        ):
            scene.world.carry(stranger, payload, Endpoint(stranger.addresses[0], 51820), target)
    scene.world.run_for(0.05)

    assert relay.forwarder.forwarded.total() - before < 5  # but for what a and b say meanwhile
    scene.world.run_for(6.0)
    assert relay.engine.relays.strangers == 4
    assert relay.engine.bad_packets["probe does not open"] == 2


def test_a_member_whose_nat_forgets_it_is_followed(scene):
    relay = scene.relay()
    scene.world.underlay.add_nat("x", "203.0.113.77", dependent=True)

    scene.world.run_until(lambda: scene.a.ping(scene.b.ipv4), within=30.0)
    sources = {
        side.binding.endpoint.address
        for each in relay.engine.relays.allocations
        for side in each.sides
    }
    assert ip_address("203.0.113.77") in sources or scene.relay() is not relay


def test_one_without_the_right_to_relays_for_nobody():
    world = World(seed=3)
    founder = world.machine("founder")
    founder.start()
    guest = world.machine("guest", relay=True)
    guest.start(token=founder.invite())

    world.run_until(lambda: whole(founder, guest), within=FORMING)
    assert not guest.engine.presence.relays
    assert not founder.engine.ledger.standing(guest.node).record.relay


@pytest.mark.parametrize(
    ("addresses", "realm", "relays"),
    [
        (["192.0.2.9"], "internet", True),
        (["2001:db8::9"], "internet", True),
        (["192.0.2.9", "2001:db8::9"], "internet", True),
        (["10.0.0.9", "2001:db8::9"], "internet", False),  # at home, where a firewall is likely
        (["10.0.0.9"], "x", False),
    ],
)
def test_by_itself_a_member_relays_where_it_has_a_public_address(addresses, realm, relays):
    world = World(seed=4)
    world.underlay.add_nat("x", "203.0.113.1")
    machine = world.machine("m", *addresses, realm=realm, relay=None)
    other = world.machine("other", "192.0.2.1", "2001:db8::1")
    machine.start()
    world.run_for(1.0)
    other.start(seeds=[machine] if realm == "internet" else [])
    if realm != "internet":
        machine.kill()
        machine.start(seeds=[other])
    world.run_until(lambda: whole(machine, other), within=FORMING)
    world.run_for(1.0)

    assert machine.engine.presence.relays is relays
    world.run_for(700.0)
    assert machine.engine.presence.relays is relays


def test_a_port_that_another_program_has_is_given_up_and_its_pair_finds_another(scene):
    relay = scene.relay()
    taken = min(relay.forwarder.ports)

    relay.engine.relay_port_taken(taken, scene.world.now, scene.world.wall)
    relay.drain()

    assert taken not in relay.forwarder.ports
    scene.world.run_until(
        lambda: scene.relay() is not None and scene.a.ping(scene.b.ipv4), within=30.0
    )


def test_the_shell_is_told_once_at_the_start_even_of_nothing():
    world = World(seed=5)
    machine = world.machine("m", relay=True)
    machine.start()

    (maps,) = machine.of(events.RelayMapsChanged)
    assert maps.maps.flows == frozenset()


@pytest.mark.parametrize("seed", range(3))
def test_with_a_fifth_of_all_datagrams_lost_they_find_each_other(seed):
    scene = Scene(relays=2, seed=Random(seed).randrange(1000))
    scene.world.underlay.loss = 0.2

    scene.world.run_until(
        lambda: (
            scene.a.engine is not None
            and scene.relay() is not None
            and scene.a.state_of(scene.b) is MemberState.ALIVE
        ),
        within=60.0,
    )
