"""What the kernel and a second socket tell of members that do not answer."""

import pytest

from engine.engine_wireguard import Packet
from engine.engine_world import World, whole
from meshd.engine.counters import (
    LOOK_INTERVAL_MIN,
    LOOK_INTERVAL_PER_PEER,
    PEERS_MAX,
    CounterWatch,
)
from meshd.gossip.claim import MemberState
from meshd.gossip.config import GossipConfig

SPAN = GossipConfig().probe_timeout_min * 2 / 3


def causes(machine, kind):
    return [notice.details["cause"] for notice in machine.of(kind)]


def settled(size, *, seed):
    """Return a mesh that has measured its round trips."""
    world = World(seed=seed)
    machines = world.mesh_of(size, within=5.0)
    world.run_for(10.0)
    return world, machines


# ICMP


def test_a_killed_daemon_is_suspected_by_what_its_kernel_says():
    world, (a, b, victim) = settled(3, seed=1)
    victim.kill()

    world.run_until(lambda: a.of("member-suspect") or b.of("member-suspect"), within=1.5)

    first = (a.of("member-suspect") or b.of("member-suspect"))[0]
    assert first.name == victim.name
    assert "its host answers that nobody listens there" in first.message


def test_an_icmp_error_from_an_address_of_nobody_changes_nothing():
    world, (a, b) = settled(2, seed=2)

    a.engine.overlay_unreachable(a.ipv6, world.now, world.wall)
    a.drain()

    assert a.state_of(b) is MemberState.ALIVE
    assert not a.of("member-suspect")


# Streams


def test_one_that_hears_no_datagrams_but_answers_over_tcp_is_a_path_fault_and_lives():
    world, machines = settled(4, seed=3)
    deaf = machines[-1]
    deaf.deaf = True

    world.run_until(lambda: any(m.of("path-fault") for m in machines[:-1]), within=10.0)

    fault = next(notice for m in machines[:-1] for notice in m.of("path-fault"))
    assert fault.name == deaf.name
    assert fault.message == "does not answer directly, but does over TCP"
    world.run_for(20.0)
    assert not any(m.of("member-dead") for m in machines)
    assert all(m.state_of(deaf) is MemberState.ALIVE for m in machines[:-1])


def test_a_stream_from_nobody_is_not_answered_and_counted():
    world, (a, _) = settled(2, seed=4)

    assert a.engine.overlay_stream(b"x", a.ipv6, world.now, world.wall) is None

    assert a.engine.bad_packets["overlay source is no member"] == 1


@pytest.mark.parametrize("frame", [b"", b"\x01", b"\x01\x00\xc1", bytes(1232)])
def test_rubbish_on_a_stream_is_not_answered_and_counted(frame):
    world, (a, b) = settled(2, seed=5)
    before = a.engine.bad_packets.total()

    assert a.engine.overlay_stream(frame, b.ipv6, world.now, world.wall) is None
    a.drain()

    assert a.engine.bad_packets.total() == before + 1


def test_a_ping_on_a_stream_is_answered_with_an_ack():
    world, (a, b) = settled(2, seed=6)
    b.engine.gossip._pinger.ping_over_stream(a.node, world.now)
    (stream,) = b.engine.streams_to_open()
    assert stream.target == a.ipv6
    assert b.engine.streams_to_open() == []

    answer = a.engine.overlay_stream(stream.frame, b.ipv6, world.now, world.wall)
    b.engine.overlay_datagram(answer, a.ipv6, world.now, world.wall)

    assert not a.engine.bad_packets
    assert not b.engine.bad_packets


# WireGuard's counters


def test_nobody_looks_at_counters_while_all_answer():
    world, machines = settled(4, seed=7)
    for machine in machines:
        machine.looks = 0

    world.run_for(60.0)

    assert [machine.looks for machine in machines] == [0, 0, 0, 0]


@pytest.mark.parametrize("carries", [True, False])
def test_a_silent_daemon_is_excused_while_its_tunnel_carries(carries):
    world, (a, b) = settled(2, seed=8)
    packet = Packet(b.ipv6, a.ipv6, "echo-reply", b"")
    b.deaf = True  # so that its kernel does not tell
    b.kill()

    def carry():
        b.wireguard.send(packet)
        world.at(0.02, carry)

    if carries:
        carry()
    world.run_until(lambda: a.of("member-suspect"), within=10.0)

    assert a.looks >= 2
    assert (a.engine.gossip.statistics().probes_excused > 0) is carries


class Device:
    """Counters by member's name, and how often they were read."""

    def __init__(self, **counters):
        self.counters = counters
        self.looks = 0

    def look(self, watch, now):
        self.looks += 1
        watch.looked(len(self.counters), now)
        return watch.observed(self.counters.get, now)


def test_a_counter_that_moves_between_the_looks_is_told_once():
    watch, device = CounterWatch(span=SPAN, now=0.0), Device(a=100, b=100)
    watch.want("a", 1.0)
    watch.want("b", 1.0)
    assert watch.at == 1.0
    assert device.look(watch, 1.0) == []
    assert watch.at == 1.0 + SPAN

    device.counters["a"] += 148

    assert device.look(watch, watch.at) == ["a"]
    assert watch.at == float("inf")
    device.counters["b"] += 148
    assert device.look(watch, 5.0) == []


def test_what_a_counter_did_before_it_was_asked_for_tells_nothing():
    watch, device = CounterWatch(span=SPAN, now=0.0), Device(a=100)
    watch.want("a", 1.0)
    device.look(watch, 1.0)
    device.counters["a"] += 148
    watch.want("a", 1.01)

    assert device.look(watch, watch.at) == []
    assert device.look(watch, watch.at) == []


def test_a_counter_that_was_reset_tells_nothing():
    watch, device = CounterWatch(span=SPAN, now=0.0), Device(a=100)
    watch.want("a", 1.0)
    device.look(watch, 1.0)
    device.counters["a"] = 92

    assert device.look(watch, watch.at) == []


def test_a_member_without_a_peer_is_watched_no_longer():
    watch, device = CounterWatch(span=SPAN, now=0.0), Device()
    watch.want("a", 1.0)

    assert device.look(watch, 1.0) == []
    assert watch.at == float("inf")


def test_a_look_that_fails_ends_the_waiting():
    watch = CounterWatch(span=SPAN, now=0.0)
    watch.want("a", 1.0)

    watch.give_up()

    assert watch.at == float("inf")


def test_nobody_looks_at_a_device_that_takes_too_long_to_read():
    watch = CounterWatch(span=SPAN, now=0.0)
    watch.looked(PEERS_MAX + 1, 1.0)
    watch.want("a", 1.0)
    assert watch.at == float("inf")

    watch.looked(PEERS_MAX, 2.0)
    watch.want("a", 2.0)
    assert watch.at < 3.0


@pytest.mark.parametrize("peers", [10, 1_000, PEERS_MAX])
def test_many_late_probes_at_once_are_few_looks(peers):
    members = {f"m{number}": number for number in range(peers)}
    watch, device = CounterWatch(span=SPAN, now=0.0), Device(**members)
    now, end = 0.0, 10.0
    late = iter(members)
    while now < end:
        now += 0.001
        watch.want(next(late, "m0"), now)
        if now >= watch.at:
            device.look(watch, now)

    interval = max(LOOK_INTERVAL_MIN, LOOK_INTERVAL_PER_PEER * peers)
    assert device.looks <= end / interval + 1


def test_a_mesh_is_whole_again_after_it_was_deaf():
    world, machines = settled(3, seed=9)
    machines[0].deaf = True
    world.run_for(5.0)

    machines[0].deaf = False

    world.run_until(lambda: whole(*machines), within=5.0)
