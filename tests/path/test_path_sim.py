"""Agents on a small internet: chaos first, then heal, then everybody who can be reached must be."""

import itertools

import pytest

from meshd.path.events import EndpointSelected
from path.internet import INTERNET, Internet
from path.nats import Dependence, meets
from path.world import host

NONE, ADDRESS, BOTH = Dependence
SEEDS = range(5)

# Candidates that are in nobody's interest: inside the overlay, loopback, multicast, ...
POISON = (host("100.64.0.7"), host("127.0.0.1"), host("224.0.0.1"), host("0.0.0.0"))


def homes_and_servers(seed, *, loss=0.0):
    """Two servers; two homes with two nodes each, behind NATs that can be traversed; one alone."""
    internet = Internet(seed=seed, loss=loss)
    internet.add_nat("x", "198.51.100.1", NONE, BOTH)
    internet.add_nat("y", "198.51.100.2", NONE, ADDRESS)
    internet.add_nat("z", "198.51.100.3", ADDRESS, BOTH)
    internet.add(0, INTERNET, "203.0.113.1", "2001:db8::1")
    internet.add(1, INTERNET, "203.0.113.2", extra=POISON)
    internet.add(2, "x", "192.168.1.2")
    internet.add(3, "x", "192.168.1.3")
    internet.add(4, "y", "192.168.1.2")  # the same private address as in the other home
    internet.add(5, "y", "192.168.1.3", extra=POISON)
    internet.add(6, "z", "10.0.0.2")
    return internet


def reachable(internet, a, b):
    """What RFC 4787 lets two nodes do with host and reflexive candidates, and calls."""
    if a.realm == b.realm:
        return True
    return meets(internet.nats.get(a.realm), internet.nats.get(b.realm))


def all_reached(internet):
    return all(
        a.ready(b)
        for a, b in itertools.permutations(internet.nodes, 2)
        if reachable(internet, a, b)
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_everybody_who_can_be_reached_is_proven_and_ready(seed):
    internet = homes_and_servers(seed)
    internet.introduce_all()

    internet.run_until(lambda: all_reached(internet), within=12)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lossy_network_delays_but_does_not_prevent(seed):
    internet = homes_and_servers(seed, loss=0.3)
    internet.introduce_all()
    internet.run_for(20)

    internet.loss = 0.0
    internet.run_until(lambda: all_reached(internet), within=15)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_endpoint_is_selected_only_where_datagrams_pass_both_ways(seed):
    internet = homes_and_servers(seed, loss=0.1)
    internet.introduce_all()
    internet.run_for(60)

    for node in internet.nodes:
        for other in internet.nodes:
            if node is not other and node.agent.endpoint(other.key.id) is not None:
                assert reachable(internet, node, other)


def test_nodes_in_one_lan_use_it():
    internet = homes_and_servers(seed=1)
    internet.introduce_all()
    internet.run_for(20)

    at_home = internet.nodes[2], internet.nodes[3]
    for node, other in itertools.permutations(at_home, 2):
        assert node.agent.endpoint(other.key.id).address in other.addresses


def test_only_those_behind_a_nat_know_it():
    internet = homes_and_servers(seed=1)
    internet.introduce_all()
    internet.run_for(20)

    for node in internet.nodes:
        assert node.agent.behind_nat == (node.realm != INTERNET)


def test_a_mapping_that_serves_others_is_published_and_one_that_does_not_is_not():
    internet = homes_and_servers(seed=1)
    internet.introduce_all()
    internet.run_for(20)

    for node in internet.nodes:
        useful = node.realm in {"x", "y"}
        assert bool(node.agent.reflexive) == useful


def test_where_all_is_well_nothing_is_sent():
    internet = Internet(seed=3)
    for index in range(6):
        internet.add(index, INTERNET, f"203.0.113.{index + 1}")
    internet.introduce_all()
    internet.run_for(10)
    internet.sent.clear()

    internet.run_for(600)

    assert internet.sent == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_renumbered_node_is_reached_again_within_two_seconds(seed):
    internet = homes_and_servers(seed)
    internet.introduce_all()
    internet.run_for(20)
    moved = internet.nodes[1]

    moved.move("203.0.113.77")

    def found():
        return all(
            node.agent.endpoint(moved.key.id) == (moved.addresses[0], 51820)
            and node.ready(moved)
            and moved.ready(node)
            for node in internet.nodes
            if node is not moved
        )

    internet.run_until(found, within=2)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cable_put_back_after_a_minute_is_noticed_within_ten_seconds(seed):
    internet = homes_and_servers(seed)
    internet.introduce_all()
    internet.run_for(20)
    unplugged = internet.nodes[1]
    unplugged.cut = True
    internet.run_for(4)
    # The gossip notices; the one that is cut off suspects everybody.
    unplugged.suspect_all()
    for node in internet.nodes:
        if node is not unplugged:
            node.agent.peer_suspect(unplugged.key.id, internet.now)
    internet.run_for(56)
    assert not any(node.ready(unplugged) for node in internet.nodes if node is not unplugged)

    unplugged.cut = False

    internet.run_until(lambda: all_reached(internet), within=10.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_whose_nat_forgets_its_mappings_is_found_again(seed):
    internet = homes_and_servers(seed)
    internet.introduce_all()
    internet.run_for(20)

    internet.nats["z"].rebind()
    alone = internet.nodes[6]
    alone.suspect_all()  # its gossip gets no answers

    internet.run_for(3)
    for server in internet.nodes[:2]:
        assert server.ready(alone)
        assert server.agent.endpoint(alone.key.id) in [
            (internet.nats["z"].address, port) for port in internet.nats["z"]._inside
        ]


@pytest.mark.parametrize("seed", SEEDS)
def test_twenty_that_start_together_from_their_state_need_no_seed(seed):
    internet = Internet(seed=seed, loss=0.05)
    for index in range(20):
        internet.add(index, INTERNET, f"203.0.113.{index + 1}")
    internet.introduce_all()

    internet.run_until(lambda: not internet.unready(), within=5)


def test_a_newcomer_is_installed_by_its_own_ping():
    internet = Internet(seed=5)
    for index in range(4):
        internet.add(index, INTERNET, f"203.0.113.{index + 1}")
    internet.introduce_all()
    internet.run_for(5)
    records = [node.blob for node in internet.nodes]

    newcomer = internet.add(4, INTERNET, "203.0.113.5", peers=records)
    newcomer.drain()

    internet.run_until(lambda: not internet.unready(), within=0.5)


def test_nobody_is_ready_before_both_kernels_have_the_other():
    internet = homes_and_servers(seed=2, loss=0.2)
    internet.introduce_all()
    for _ in range(200):
        internet.run_for(0.05)
        for node, other in itertools.permutations(internet.nodes, 2):
            if node.ready(other):
                assert other.key.id in node.kernel
                assert node.key.id in other.kernel


def test_one_seed_is_one_history():
    def history():
        internet = homes_and_servers(seed=11, loss=0.2)
        internet.introduce_all()
        internet.run_for(30)
        return [
            (node.key.seed[0], at, repr(event)) for node in internet.nodes for at, event in node.log
        ]

    assert history() == history()


def test_a_healthy_path_does_not_flap():
    internet = homes_and_servers(seed=4, loss=0.2)
    internet.introduce_all()
    internet.run_for(60)
    for node in internet.nodes:
        node.log.clear()

    internet.run_for(300)

    flaps = [
        event
        for node in internet.nodes
        for _, event in node.log
        if isinstance(event, EndpointSelected)
    ]
    assert flaps == []
