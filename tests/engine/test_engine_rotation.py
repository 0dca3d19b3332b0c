"""A WireGuard key is replaced under traffic, and whatever happens meanwhile breaks nothing."""

import itertools
from dataclasses import replace
from random import Random

import pytest

from engine.engine_wireguard import Packet
from engine.engine_world import World, all_ping, whole
from meshd.engine import events
from meshd.engine.handover import Handover
from meshd.engine.rotation import (
    AGE_JITTER,
    RETRY_INTERVAL,
    SPREAD_TIME,
    TURN_PATIENCE,
    WireGuardKeys,
)
from meshd.keys import NodeId, WireGuardPrivateKey
from meshd.trust.fact import FactKind
from meshd.trust.record import open_record_untrusted
from meshd.underlay import DatagramType, datagram_type_untrusted

DAY = 86400.0
LIMIT = 600.0  # a short life, so that the simulation is over soon
ROTATION = SPREAD_TIME + 2.0  # from the wish to the end, and some


class Flow:
    """Pings between all pairs, and which of them were answered."""

    def __init__(self, machines, *, rate=40.0):
        self.machines = machines
        self.interval = 1 / rate
        self.sent = []  # (machine, payload)
        self.stopped = False
        self._numbers = itertools.count()
        self._tick()

    def _tick(self):
        if self.stopped:
            return
        for machine, other in itertools.permutations(self.machines, 2):
            payload = next(self._numbers).to_bytes(8, "big")
            self.sent.append((machine, payload))
            machine.wireguard.send(Packet(machine.ipv6, other.ipv6, "echo", payload))
        self.machines[0].world.at(self.interval, self._tick)

    def lost(self, *, linger=1.0):
        self.stopped = True
        self.machines[0].world.run_for(linger)
        answered = {machine.name: set(machine.echoes) for machine in self.machines}
        return [payload for machine, payload in self.sent if payload not in answered[machine.name]]


class Watch:
    """Holds a machine to the rules of `meshd.engine.rotation`, whatever it does."""

    def __init__(self, machine):
        self.machine = machine
        self.bodies = {}  # sequence to record
        self.named = {machine.disk.identity.wireguard_key.public}
        self._apply = machine.wireguard.apply
        machine.wireguard.apply = self.apply
        machine.events = Observed(machine.events, self.event)

    def event(self, event):
        if not isinstance(event, events.FactChanged) or event.fact.kind is not FactKind.RECORD:
            return
        if event.fact.key != bytes(self.machine.node):
            return
        assert self.bodies.setdefault(event.fact.version, event.fact.blob) == event.fact.blob
        ledger = self.machine.engine.ledger
        record, _ = open_record_untrusted(event.fact.blob, ledger.mesh, ledger.cache)
        self.named |= {record.wireguard_key, record.next_wireguard_key} - {None}

    def apply(self, change):
        if change.private_key is not None:
            assert change.private_key == self.machine.disk.identity.wireguard_key
            assert change.private_key.public in self.named
        self._apply(change)


class Observed(list):
    def __init__(self, items, told):
        super().__init__(items)
        self._told = told

    def append(self, item):
        super().append(item)
        self._told(item[1])


def rotate(*machines):
    for machine in machines:
        machine.engine.rotate_key(machine.now, machine.wall)
        machine.drain()


def agreed(*machines):
    """Whether all devices hold exactly the others' present keys, and each its own."""
    keys = {machine.name: machine.disk.identity.wireguard_key.public for machine in machines}
    return all(
        (device := machine.wireguard.observe()).private_key.public == keys[machine.name]
        and device.peers.keys() == {k for name, k in keys.items() if name != machine.name}
        for machine in machines
    )


@pytest.mark.parametrize("delay", [0.0002, 0.005, 0.08])
def test_no_packet_is_lost_while_each_of_five_replaces_its_key(delay):
    world = World(seed=1)
    world.underlay.delay_min, world.underlay.delay_max = delay, delay + 0.004
    machines = world.mesh_of(5)
    world.run_for(5.0)
    watches = [Watch(machine) for machine in machines]
    before = [machine.public_key for machine in machines]
    flow = Flow(machines)
    for machine in machines:
        rotate(machine)
        world.run_for(ROTATION)

    assert flow.lost() == []
    assert agreed(*machines)
    assert not set(before) & {machine.public_key for machine in machines}
    assert all(len(watch.named) == 2 for watch in watches)


@pytest.mark.parametrize("idle_gap", [0.0005, 0.004, 0.011, 0.03])
def test_handshakes_do_not_cross_when_there_is_little_traffic(idle_gap):
    """The first packet to be sent after the switch comes at the worst of moments."""
    world = World(seed=2)
    world.underlay.delay_min = world.underlay.delay_max = 0.01
    a, b = machines = world.mesh_of(2)
    world.run_for(10.0)
    rotate(a)
    world.run_until(lambda: a.of("key-rotated"), within=ROTATION)
    world.run_for(idle_gap)

    assert a.ping(b.ipv4, within=0.2)
    assert b.ping(a.ipv4, within=0.2)
    assert agreed(*machines)


def test_two_who_rotate_at_the_same_instant_take_turns():
    world = World(seed=3)
    machines = world.mesh_of(4)
    world.run_for(5.0)
    flow = Flow(machines)

    rotate(*machines)
    world.run_until(lambda: all(m.of("key-rotated") for m in machines), within=TURN_PATIENCE)
    world.run_for(2.0)

    assert flow.lost() == []
    assert agreed(*machines)
    switched_at = sorted(
        at
        for machine in machines
        for at, event in machine.events
        if isinstance(event, events.Notice) and event.event == "key-rotated"
    )
    assert min(b - a for a, b in itertools.pairwise(switched_at)) > 0.5


def test_one_that_announces_and_never_switches_holds_up_nobody_for_long():
    world = World(seed=4)
    machines = world.mesh_of(3)
    world.run_for(5.0)
    first, *others = sorted(machines, key=lambda machine: machine.node)
    rotate(first)
    world.run_for(0.5)
    first.disk.refuses = True
    rotate(*others)

    world.run_for(TURN_PATIENCE + ROTATION + 5.0)

    assert all(machine.of("key-rotated") for machine in others)
    assert not first.of("key-rotated")
    assert [notice.event for notice in first.of("key-kept")] == ["key-kept"]
    assert all_ping(*machines)
    first.disk.refuses = False
    world.run_until(lambda: first.of("key-rotated"), within=RETRY_INTERVAL + ROTATION)


@pytest.mark.parametrize("away", ["unplugged", "powered off", "killed"])
def test_a_member_that_was_away_follows_when_it_returns(away):
    world = World(seed=5)
    machines = world.mesh_of(4)
    world.run_for(5.0)
    *present, absent = machines
    match away:
        case "unplugged":
            absent.unplug()
        case "powered off":
            absent.power_off()
        case "killed":
            absent.kill()
    world.run_for(30.0)
    rotate(present[0])
    world.run_for(ROTATION)
    assert present[0].of("key-rotated")

    if away == "unplugged":
        absent.plug()
    else:
        absent.start()

    world.run_until(lambda: whole(*machines), within=15.0)
    world.run_for(1.0)
    assert agreed(*machines)
    assert all_ping(*machines)


@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
def test_members_that_probes_do_not_reach_are_told_through_their_tunnel(both):
    world = World(seed=6)
    machines = world.mesh_of(2)
    a = machines[0]
    world.run_for(5.0)
    forward = world.underlay.forward

    def without_probes(sender, payload, source, target, now):
        is_probe = (
            isinstance(payload, bytes)
            and datagram_type_untrusted(payload) is DatagramType.PATH_PROBE
        )
        if is_probe and (both or sender is a):
            return None
        return forward(sender, payload, source, target, now)

    world.underlay.forward = without_probes
    flow = Flow(machines)

    rotate(a)
    world.run_until(lambda: a.of("key-rotated"), within=2 * ROTATION)
    world.run_for(2.0)

    # What was sent before the device had the key, and arrives after the record, is lost.
    assert len(flow.lost()) <= 2
    assert agreed(*machines)


@pytest.mark.parametrize("seed", range(5))
def test_loss_delays_a_rotation_and_breaks_nothing(seed):
    world = World(seed=seed)
    machines = world.mesh_of(5)
    world.run_for(5.0)
    world.underlay.loss = 0.3
    for machine in machines:
        rotate(machine)
        world.run_for(ROTATION)
    world.run_for(TURN_PATIENCE)
    world.underlay.loss = 0.0

    world.run_until(lambda: whole(*machines) and agreed(*machines), within=15.0)
    world.run_for(6.0)
    assert all_ping(*machines)


@pytest.mark.parametrize("seed", range(20))
def test_a_daemon_that_is_killed_at_any_moment_goes_on_where_it_was(seed):
    world = World(seed=seed)
    machines = world.mesh_of(3)
    world.run_for(5.0)
    random = Random(seed)
    victim = machines[1]
    watch = Watch(victim)
    rotate(victim)
    # Around the switch everything happens within milliseconds.
    world.run_for(random.choice([0.0, random.random() * SPREAD_TIME, SPREAD_TIME + 0.25]))
    world.run_for(random.random() * random.choice([0.001, 0.01, 0.3]))

    victim.kill()
    world.run_for(random.choice([0.05, 1.0]))
    victim.start()

    world.run_until(lambda: victim.disk.keys.next is None, within=ROTATION)
    world.run_until(lambda: whole(*machines) and agreed(*machines), within=15.0)
    assert victim.disk.keys.former in watch.named
    world.run_for(6.0)
    assert all_ping(*machines)


@pytest.mark.parametrize("moment", ["next kept", "switch kept"])
def test_a_machine_that_dies_right_after_the_disk_has_written_goes_on(moment):
    """Nothing but the disk knows of the last step."""
    world = World(seed=8)
    machines = world.mesh_of(3)
    world.run_for(5.0)
    victim = machines[1]
    former = victim.public_key
    saved = []

    def save_and_die(keys):
        saved.append(keys)
        victim.disk.keys = keys
        if (moment == "next kept") == (keys.next is not None):
            victim.disk.identity = _with_key(victim.disk.identity, keys.current)
            victim.kill()
        else:
            victim.engine.keys_saved(keys, world.now, victim.wall, done=True)

    save_keys = victim._save_keys
    victim._save_keys = save_and_die
    rotate(victim)
    world.run_until(lambda: victim.engine is None, within=ROTATION)
    assert victim.wireguard.observe().private_key.public == former
    victim._save_keys = save_keys
    world.run_for(0.2)

    victim.start()

    world.run_until(lambda: victim.disk.keys.next is None, within=2 * ROTATION)
    world.run_until(lambda: whole(*machines) and agreed(*machines), within=15.0)
    assert victim.public_key == (saved[0].next or saved[-1].current).public
    assert all_ping(*machines)


def _with_key(identity, key):

    return replace(identity, wireguard_key=key)


def test_keys_are_replaced_by_age_and_not_all_on_one_day():
    world = World(seed=9)
    machines = world.mesh_of(3, rotate_keys_after=LIMIT)
    world.run_for(LIMIT * (1 - AGE_JITTER) - 30)
    assert not any(machine.of("key-announced") for machine in machines)

    world.run_for(LIMIT * AGE_JITTER + 60)

    for machine in machines:
        assert len(machine.of("key-rotated")) == 1
    assert whole(*machines)
    assert agreed(*machines)


def test_a_key_without_an_age_limit_is_never_due():
    keys = WireGuardKeys(WireGuardPrivateKey(b"k" * 32), made_at=0)

    assert keys.due_at(NodeId(b"n" * 32), 0.0) == float("inf")


def test_nodes_of_one_age_are_due_within_a_tenth_of_it():
    keys = [WireGuardKeys(WireGuardPrivateKey(bytes([n]) * 32), made_at=1000) for n in range(50)]
    dues = {each.due_at(NodeId(b"n" * 32), 90 * DAY) for each in keys}

    assert len(dues) == 50
    assert min(dues) >= 1000 + 90 * DAY * (1 - AGE_JITTER)
    assert max(dues) <= 1000 + 90 * DAY


def test_a_member_that_changes_its_key_all_the_time_does_not_keep_others_busy():
    world = World(seed=10)
    a, b = world.mesh_of(2)
    world.run_for(5.0)
    before = len(b.of(events.HurryDevice))
    standing = b.engine.ledger.standing(a.node)

    for number in range(100):
        record = replace(
            standing.record, wireguard_key=WireGuardPrivateKey(bytes([number]) * 32).public
        )
        b.engine.rotation.member_says(a.node, record, world.now)
    b.drain()

    assert len(b.of(events.HurryDevice)) - before <= 16


@pytest.mark.parametrize("seed", range(8))
def test_rotations_among_crashes_and_loss_end_well_and_keep_the_rules(seed):
    world = World(seed=seed)
    random = Random(seed)
    machines = world.mesh_of(4)
    world.run_for(5.0)
    watches = [Watch(machine) for machine in machines]
    for _ in range(25):
        machine = random.choice(machines)
        world.underlay.loss = random.choice([0.0, 0.0, 0.2])
        machine.disk.refuses = random.random() < 0.1
        match random.choice(["rotate", "rotate", "rotate", "kill", "reboot"]):
            case "rotate" if machine.engine is not None:
                rotate(machine)
            case "kill" if machine.engine is not None:
                machine.kill()
            case "reboot" if machine.engine is not None:
                machine.power_off()
                watches.append(Watch(machine))
        world.run_for(random.random() * SPREAD_TIME)
        if machine.engine is None:
            machine.start()
    for machine in machines:
        machine.disk.refuses = False
    world.underlay.loss = 0.0

    world.run_until(lambda: not any(m.engine.rotation.busy for m in machines), within=200.0)
    world.run_until(lambda: whole(*machines) and agreed(*machines), within=30.0)
    world.run_for(6.0)
    assert all_ping(*machines)
    assert sum(len(watch.named) for watch in watches) > len(watches)


@pytest.mark.parametrize("data", [b"", b"x", b"\x00" * 1200])
def test_what_is_no_record_is_counted_and_changes_nothing(data):
    world = World(seed=11)
    a, b = world.mesh_of(2)
    before = list(b.engine.ledger.facts())

    b.engine.overlay_datagram(bytes([Handover.OWN_RECORD]) + data, a.ipv6, b.now, b.wall)

    assert list(b.engine.ledger.facts()) == before
    assert b.engine.bad_packets
