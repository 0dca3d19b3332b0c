"""The simulator does to hosts and packets what it says: each kind of trouble, alone."""

from random import Random

import pytest

from meshd.gossip.cause import Cause, CauseKind
from meshd.gossip.claim import MemberState
from meshd.gossip.config import GossipConfig
from meshd.gossip.events import MemberStateChanged, PathFault
from sim.cluster import Cluster
from sim.host import SOCKET_BYTES_MAX, SOCKET_DATAGRAMS_MAX, Socket
from sim.network import LAN_DELAY, Link, Network
from sim.safety import Safety

ALIVE, SUSPECT, DEAD, LEFT = MemberState


def mesh(size, seed=1, **kwargs):
    cluster = Cluster(size, seed=seed, mesh_started=True, **kwargs)
    cluster.run_until(cluster.converged, within=15)
    cluster.run_for(5)
    return cluster


def test_each_direction_loses_and_delays_for_itself():
    network = Network(Random(1))
    network.links["a", "b"] = Link(0.5, 0.1, 0.2)
    there = [network.deliveries("a", "b") for _ in range(1000)]
    delays = [delay for copies in there for delay in copies]
    assert 400 < len(delays) < 600
    assert all(0.1 <= delay <= 0.2 for delay in delays)
    assert network.deliveries("b", "a") == (LAN_DELAY,)


def test_blocked_udp_lets_streams_pass():
    network = Network(Random(1))
    network.block_udp("a", "b")
    assert network.deliveries("a", "b") == ()
    assert network.deliveries("a", "b", udp=False) == (LAN_DELAY,)
    network.separate("a", "b")
    assert network.deliveries("a", "b", udp=False) == ()


def test_regions_are_far_from_each_other_and_near_to_themselves():
    network = Network(Random(1))
    network.spread(["a", "b", "c", "d"])
    assert network.deliveries("a", "d") == (LAN_DELAY,)
    assert network.round_trip("a", "b") > 0.09
    assert network.round_trip("b", "c") > network.round_trip("a", "b")


def test_what_a_socket_cannot_hold_is_dropped():
    socket = Socket()
    for _ in range(SOCKET_DATAGRAMS_MAX + 7):
        socket.put(100, None)
    assert (len(socket), socket.dropped) == (SOCKET_DATAGRAMS_MAX, 7)
    socket.clear()
    socket.put(SOCKET_BYTES_MAX, None)
    socket.put(1, None)
    assert (len(socket), socket.dropped) == (1, 8)


def test_a_host_that_stands_still_answers_later_and_from_its_socket():
    cluster = mesh(3)
    host = cluster.hosts["n1"]
    cluster.stall("n1", 2.0)
    sent = host.node.statistics().datagrams_sent
    cluster.run_for(1.9)
    assert host.node.statistics().datagrams_sent == sent
    assert len(host.socket) > 0
    cluster.run_for(0.2)
    assert host.node.statistics().datagrams_sent > sent
    assert len(host.socket) == 0
    cluster.run_until(cluster.converged, within=20)


def test_a_slow_host_does_one_thing_after_another():
    cluster = mesh(3)
    cluster.slow("n1", 0.01)
    cluster.ping("n0", "n1")
    cluster.ping("n0", "n1")
    sent = cluster.hosts["n1"].sent.packets
    cluster.run_for(LAN_DELAY + 0.005)
    assert cluster.hosts["n1"].sent.packets == sent + 1
    cluster.run_for(0.01)
    assert cluster.hosts["n1"].sent.packets == sent + 2


def test_a_set_clock_changes_nothing():
    cluster = mesh(4)
    since = cluster.now
    cluster.jump_clock("n1", -86400.0)
    cluster.jump_clock("n2", 7200.0)
    cluster.publish("n3", 2)
    cluster.run_for(20)
    assert [change for change in cluster.changes() if change[0] >= since] == []
    assert cluster.converged()


def test_a_daemon_that_is_killed_is_told_of_by_its_host_and_one_that_lost_power_is_not():
    first = {}
    for host_up in (True, False):
        cluster = mesh(5)
        crashed_at = cluster.now
        cluster.crash("n1", host_up=host_up)
        cluster.run_until(lambda c=cluster: c.all_see("n1", DEAD), within=20)
        first[host_up] = next(at for at, *_ in cluster.changes(of="n1") if at > crashed_at)
    assert first[True] < first[False]


@pytest.mark.parametrize("seed", range(3))
def test_a_member_whose_datagrams_are_blocked_everywhere_lives_by_its_streams(seed):
    cluster = mesh(3, seed)
    since = cluster.now
    cluster.network.block_udp("n0", "n1")
    cluster.network.block_udp("n0", "n2")
    cluster.run_for(60)
    assert [change for change in cluster.changes(DEAD) if change[0] >= since] == []
    faults = [event for event in cluster.events(PathFault) if event.via is None]
    assert faults, "it answers over TCP, and that is said"


@pytest.mark.parametrize("seed", range(3))
def test_streams_get_through_loss_by_retransmission(seed):
    cluster = mesh(2, seed)
    cluster.network.block_udp("n0", "n1")
    cluster.network.loss = 0.2
    cluster.run_for(30)
    assert cluster.hosts["n0"].node.statistics().probes_acked_streams > 0
    assert cluster.hosts["n1"].node.statistics().probes_acked_streams > 0


def test_other_packets_in_the_tunnel_are_counted_for_a_member_that_says_nothing():
    cluster = mesh(4, config=GossipConfig(stream_timeout=0.0))
    for name in ("n0", "n2", "n3"):
        cluster.network.block_udp("n1", name)
    for step in range(30):
        for name in ("n0", "n2", "n3"):
            cluster.at(step * 0.05, cluster.traffic, "n1", name)
    cluster.run_for(1.5)
    assert any(host.node.statistics().probes_excused for host in cluster.running())


def conclude(cluster, by, of):
    """Have a host say that another is dead, whatever its node thinks."""
    node = cluster.hosts[of].key.id
    cause = Cause(CauseKind.UNREFUTED)
    cluster._note(cluster.hosts[by], MemberStateChanged(node, SUSPECT, DEAD, 1, cause))


def test_the_death_of_one_who_was_well_is_noticed_and_of_one_who_was_not_is_allowed():
    cluster = mesh(5)
    safety = Safety(cluster)
    safety.update()
    cluster.run_for(14.0)
    conclude(cluster, "n0", "n1")  # not well for long enough
    cluster.run_for(2.0)
    cluster.stall("n2", 0.5)
    conclude(cluster, "n0", "n2")
    conclude(cluster, "n2", "n1")
    cluster.network.cut = {("n4", name) for name in ("n0", "n1", "n3")}
    safety.update()
    conclude(cluster, "n0", "n4")
    with pytest.raises(AssertionError, match="n0 concludes that n1 is dead"):
        conclude(cluster, "n0", "n1")
