"""Hosts that move, sleep and lose a way out; and what is never taken for more than it is."""

import pytest

from meshd.keys import NodeKey
from meshd.path.events import PathFailed
from meshd.path.relaying import CHALLENGED_MAX, PORTS_PER_PEER_MAX
from meshd.path.watching import PATHS_MAX
from meshd.path.wire import Probe, ProbeType
from path.internet import INTERNET, Internet
from path.nats import Dependence
from path.scripted import (
    AT_PUBLIC,
    HERE,
    agent_and_peer,
    answer,
    made_ready,
    pings,
    run_timers,
)
from path.test_path_relays import EASY, both_ways, direct, pair_behind, relayed
from path.world import KEYS, A, B, C, Scripted, endpoint, events_of

SEEDS = range(3)
AT_RELAY = endpoint("203.0.113.9", 51900)


def test_another_way_out_has_all_but_the_lan_proven_anew():
    internet = Internet(seed=2)
    server = internet.add(0, INTERNET, "203.0.113.1")
    internet.add_nat("x", "198.51.100.1", **EASY)
    a = internet.add(2, "x", "192.168.1.2")
    b = internet.add(3, "x", "192.168.1.3")
    internet.introduce_all()
    internet.run_for(20)

    a.agent.routes_changed(internet.now)

    assert not a.agent.view(server.key.id).proven
    assert a.agent.view(b.key.id).proven
    assert a.agent.endpoint(server.key.id) is not None, "what works is kept meanwhile"
    internet.run_until(lambda: a.ready(server), within=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_after_a_sleep_in_which_the_nat_has_forgotten_us_all_is_proven_anew(seed):
    internet, a, b = pair_behind(EASY, EASY, seed=seed)
    internet.run_until(lambda: direct(a, b), within=5)
    internet.nats[a.realm].rebind()
    a.agent.resumed(internet.now)
    a.drain()

    internet.run_until(lambda: direct(a, b) and a.ready(b) and b.ready(a), within=5)


def test_ipv6_takes_over_at_once_when_ipv4_is_lost():
    internet = Internet(seed=4)
    a = internet.add(0, INTERNET, "203.0.113.1", "2001:db8::1")
    b = internet.add(1, INTERNET, "203.0.113.2", "2001:db8::2")
    internet.introduce_all()
    internet.run_for(5)
    a.agent.endpoint(b.key.id)
    streams = both_ways(internet, a, b)
    internet.run_for(3)
    began = internet.now

    a.move("2001:db8::1")
    internet.run_for(10)

    for node, other in ((a, b), (b, a)):
        assert node.agent.endpoint(other.key.id).address.version == 6
    assert all(stream.silence(began, internet.now) <= 1.0 for stream in streams)


def test_members_behind_ipv6_firewalls_meet():
    internet = Internet(seed=5)
    internet.add(0, INTERNET, "2001:db8::1")
    internet.add(1, INTERNET, "2001:db8::2")
    for realm in "xy":
        internet.add_firewall(realm)
    a = internet.add(2, "x", "2001:db8:1::2")
    b = internet.add(3, "y", "2001:db8:2::2")
    internet.introduce_all()

    internet.run_until(lambda: a.ready(b) and b.ready(a), within=5)


def test_a_carriers_nat_that_hairpins_lets_two_of_its_customers_meet_and_another_does_not():
    for hairpins in (True, False):
        internet = Internet(seed=6)
        internet.add_relay(0, "203.0.113.1")
        internet.add(1, INTERNET, "203.0.113.2")
        internet.add_nat(
            "carrier", "198.51.100.1", Dependence.NOTHING, Dependence.NOTHING, hairpins=hairpins
        )
        for realm, address in (("x", "10.64.0.2"), ("y", "10.64.0.3")):
            internet.add_nat(realm, address, parent="carrier", **EASY)
        a = internet.add(2, "x", "192.168.1.2")
        b = internet.add(3, "y", "192.168.1.2")
        internet.introduce_all()
        internet.run_for(40)

        assert (direct if hairpins else relayed)(a, b)


# By hand


def offered(agent, peer, relay, now=0.0):
    """Offer a relay's port, and let the relay bind us there."""
    agent.update_peer(relay.key.id, [], sequence=1, now=now)
    agent.relay_offered(peer.key.id, relay.key.id, AT_RELAY, now=now)
    ((hello,),) = [[out for out in agent.datagrams_to_send() if out.target == AT_RELAY]]
    return hello


def hello_pong(relay, hello, *, bound, challenge=b"8 bytes!", seed=1):
    opened = relay.open(hello.datagram)
    return relay.seal(
        Probe(
            ProbeType.HELLO_PONG,
            opened.transaction,
            observed=endpoint("203.0.113.1"),
            challenge=challenge,
            bound=bound,
        ),
        A,
    )


def test_a_peer_is_pinged_through_a_relay_only_once_that_has_bound_us():
    agent, peer = agent_and_peer()
    relay = Scripted(C)
    hello = offered(agent, peer, relay)
    agent.handle_timer(0.0)
    assert AT_RELAY not in {to for to, _ in pings(agent, peer)}

    agent.receive_datagram(hello_pong(relay, hello, bound=False), AT_RELAY, HERE, 0.01)
    (again,) = [out for out in agent.datagrams_to_send() if out.target == AT_RELAY]
    assert relay.open(again.datagram).challenge == b"8 bytes!"
    agent.receive_datagram(hello_pong(relay, again, bound=True), AT_RELAY, HERE, 0.02)

    assert [to for to, _ in pings(agent, peer)] == [AT_RELAY]
    assert agent.endpoint(B.id) is None, "not used before the peer has answered"


def test_a_hellos_pong_counts_only_from_the_port_that_was_asked_and_once():
    agent, peer = agent_and_peer()
    relay = Scripted(C)
    hello = offered(agent, peer, relay)
    pong = hello_pong(relay, hello, bound=True)

    agent.receive_datagram(pong, endpoint("203.0.113.9", 51901), HERE, 0.01)
    assert not agent.view(B.id).pairs[-1].bound
    other = Scripted(B, seed=5)
    agent.receive_datagram(hello_pong_by(other, relay, hello), AT_RELAY, HERE, 0.01)
    assert not agent.view(B.id).pairs[-1].bound
    assert agent.statistics().pongs_unasked == 2


def hello_pong_by(other, relay, hello):
    """The pong of another member than the relay."""
    opened = relay.open(hello.datagram)
    probe = Probe(
        ProbeType.HELLO_PONG,
        opened.transaction,
        observed=endpoint("203.0.113.1"),
        challenge=b"8 bytes!",
        bound=True,
    )
    return other.seal(probe, A)


def test_challenges_without_end_draw_a_few_hellos_only():
    agent, peer = agent_and_peer()
    relay = Scripted(C)
    hello = offered(agent, peer, relay)
    said = 0
    while hello is not None:
        said += 1
        agent.receive_datagram(
            hello_pong(relay, hello, bound=False), AT_RELAY, HERE, 0.01 + said / 1e4
        )
        hellos = [out for out in agent.datagrams_to_send() if out.target == AT_RELAY]
        hello = hellos[0] if hellos else None

    assert said == CHALLENGED_MAX + 1


def test_a_relays_port_inside_the_mesh_is_not_used():
    agent, _ = agent_and_peer()
    agent.update_peer(C.id, [], sequence=1, now=0.0)

    for address in ("100.64.0.9", "127.0.0.1", "224.0.0.1"):
        agent.relay_offered(B.id, C.id, endpoint(address, 51900), now=0.0)

    assert agent.datagrams_to_send() == []
    assert len(agent.view(B.id).pairs) == 1


def test_ports_of_relays_are_bounded():
    agent, _ = agent_and_peer()
    for number in range(PORTS_PER_PEER_MAX + 3):
        relay = KEYS[5 + number].id
        agent.update_peer(relay, [], sequence=1, now=0.0)
        agent.relay_offered(B.id, relay, endpoint("203.0.113.9", 51900 + number), now=0.0)

    assert len(agent.view(B.id).pairs) == 1 + PORTS_PER_PEER_MAX


def test_a_path_under_traffic_is_checked_four_times_a_second_and_left_alone_without():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)
    agent.traffic(B.id, 10.0, lasts=2.5)
    checks = []
    while (timer := agent.get_timer()) is not None and timer.at < 20.0:
        agent.handle_timer(timer.at)
        for target, ping in pings(agent, peer):
            checks.append(timer.at)
            answer(agent, peer, ping, target, timer.at + 0.01)

    assert 9 <= len(checks) <= 11
    assert checks[-1] <= 12.6


def test_a_silent_path_under_traffic_draws_a_burst_and_then_fails():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)
    agent.traffic(B.id, 10.0, lasts=2.5)

    log = [at for at, target in run_timers(agent, peer, 11.0) if target == AT_PUBLIC]

    assert 12 <= len(log) <= 22
    (failed,) = [event for event in events_of(agent) if isinstance(event, PathFailed)]
    assert 0.5 <= failed.silent_for <= 1.0
    assert agent.endpoint(B.id) == AT_PUBLIC, "there is no other"


def test_a_process_that_was_held_up_takes_no_path_for_failed():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)
    agent.traffic(B.id, 10.0, lasts=60.0)
    agent.handle_timer(10.0)
    pings(agent, peer)

    for at in (12.0, 14.0, 16.0):  # each wake-up comes two seconds late
        agent.handle_timer(at)
    assert [event for event in events_of(agent) if isinstance(event, PathFailed)] == []


def test_the_paths_that_are_watched_and_the_checks_of_them_are_bounded():
    agent, _ = agent_and_peer()
    for number in range(PATHS_MAX + 10):
        key = NodeKey((number + 1000).to_bytes(32, "big"))
        agent.update_peer(key.id, [], sequence=1, now=0.0)
        agent.traffic(key.id, 1.0, lasts=100.0)

    assert agent.statistics().watched == PATHS_MAX
    wakes = 0
    while (timer := agent.get_timer()) is not None and timer.at < 11.0:
        agent.handle_timer(timer.at)
        wakes += 1
    assert wakes <= 10 * 140


def test_a_call_has_all_of_a_callers_addresses_pinged_at_once_and_not_again_at_once():
    agent, peer = agent_and_peer()
    run_timers(agent, peer, 100.0)

    agent.called(B.id, b"record", 100.3, seen_at=endpoint("198.51.100.7", 4000))
    assert {to for to, _ in pings(agent, peer)} == {AT_PUBLIC, endpoint("198.51.100.7", 4000)}
    agent.called(B.id, b"record", 100.4)
    assert pings(agent, peer) == []
    agent.called(B.id, b"record", 101.0, seen_at=endpoint("100.64.0.7", 4000))
    assert {to for to, _ in pings(agent, peer)} == {AT_PUBLIC}, "never into the mesh"


@pytest.mark.parametrize("key", KEYS[1:5])
def test_who_has_the_greater_id_follows_and_only_to_what_has_answered(key):
    agent, peer = agent_and_peer(key=key)
    made_ready(agent, peer)
    elsewhere = endpoint("198.51.100.66", 4444)
    ping = Probe(ProbeType.PING, b"12345678", installed=True, held=1, sequence=1, uses=True)

    agent.receive_datagram(peer.seal(ping, A), elsewhere, HERE, 20.0)
    assert agent.endpoint(key.id) == AT_PUBLIC
    asked_back = next(probe for to, probe in pings(agent, peer) if to == elsewhere)
    answer(agent, peer, asked_back, elsewhere, 20.01)

    assert (agent.endpoint(key.id) == elsewhere) == (key.id < A.id)
