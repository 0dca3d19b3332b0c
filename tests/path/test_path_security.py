"""What nothing can make the agent do."""

from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.codec import host_network
from meshd.errors import BadPacket
from meshd.keys import BootstrapKey, NodeKey
from meshd.path.agent import ANSWERS_BURST_MAX, ANSWERS_PER_SECOND_MAX
from meshd.path.events import (
    BadPacketReceived,
    EndpointSelected,
    RecordReceived,
)
from meshd.path.peer import OBSERVED_MAX, OBSERVED_UNANSWERED_MAX
from meshd.path.strangers import PARKED_LIFETIME, PARKED_MAX, STRANGERS_BURST_MAX
from meshd.path.wire import ProbeType
from meshd.trust.record import Candidate, CandidateKind
from meshd.wg.types import Endpoint
from path.scripted import (
    AT_LAN,
    AT_PUBLIC,
    B_LAN,
    B_PUBLIC,
    ELSEWHERE,
    HERE,
    agent_and_peer,
    asked,
    made_ready,
    run_timers,
)
from path.world import (
    OVERLAY,
    A,
    B,
    C,
    D,
    Scripted,
    endpoint,
    events_of,
    host,
    new_agent,
    record_of,
)

# Addresses that must not be used


@pytest.mark.parametrize(
    "candidate",
    [
        host("100.64.3.4"),
        host(str(OVERLAY[0].network_address + 9)),
        host("127.0.0.1"),
        host("::1"),
        host("224.0.0.5"),
        host("ff02::1"),
        host("0.0.0.0"),
        host("::"),
        host("fe80::1"),
        host("255.255.255.255"),
        host("192.0.2.5", port=0),
        host("203.0.113.1"),  # ourselves
    ],
    ids=lambda candidate: f"{candidate.address}:{candidate.port}",
)
def test_a_bad_candidate_is_never_probed_nor_selected(candidate):
    agent, peer = agent_and_peer(candidate)
    bad = Endpoint(candidate.address, candidate.port)

    assert run_timers(agent, peer, 60.0) == []
    agent.endpoint_observed(B.id, bad, 61.0)
    agent.receive_datagram(peer.ping(A), bad, HERE, 62.0)
    run_timers(agent, peer, 120.0)

    assert agent.endpoint(B.id) is None
    assert agent.datagrams_to_send() == []


def test_an_address_that_becomes_the_overlays_own_is_given_up():
    agent, peer = agent_and_peer(B_LAN, B_PUBLIC)
    made_ready(agent, peer, source=AT_LAN)

    agent.exclude([*OVERLAY, host_network(AT_LAN.address)], 5.0)

    assert agent.endpoint(B.id) is None
    assert {target for target, _ in asked(agent, peer, 5.0)} == {AT_PUBLIC}


# Strangers and replays


def test_a_stranger_is_answered_only_once_its_record_is_verified():
    agent = new_agent(A, local=["203.0.113.1"])
    stranger = Scripted(C)
    blob = record_of(C, host("203.0.113.3"))
    source = endpoint("203.0.113.3")

    agent.receive_datagram(stranger.ping(A, record=blob), source, HERE, 1.0)
    assert events_of(agent) == [RecordReceived(blob, C.id)]
    assert agent.datagrams_to_send() == []
    assert agent.view(C.id) is None
    assert agent.get_timer() is None

    agent.update_peer(C.id, [host("203.0.113.3")], sequence=1, now=1.01)

    (pong, ping) = agent.datagrams_to_send()
    assert (pong.target, pong.source) == (source, HERE)
    assert stranger.open(pong.datagram).type is ProbeType.PONG
    assert stranger.open(ping.datagram).type is ProbeType.PING


def test_a_stranger_whose_record_is_refused_is_forgotten():
    agent = new_agent(A, local=["203.0.113.1"])
    stranger = Scripted(C)
    agent.receive_datagram(stranger.ping(A, record=b"junk"), ELSEWHERE, HERE, 1.0)

    agent.update_peer(C.id, [host("203.0.113.3")], sequence=1, now=1.0 + PARKED_LIFETIME)

    assert agent.datagrams_to_send() == []


def test_a_record_of_a_known_peer_is_passed_up_and_changes_nothing_by_itself():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)
    before = agent.view(B.id)
    blob = record_of(B, host("198.51.100.7"), sequence=2)

    agent.receive_datagram(peer.ping(A, sequence=2, record=blob), AT_PUBLIC, HERE, 5.0)

    assert events_of(agent) == [RecordReceived(blob, B.id)]
    assert agent.view(B.id) == before


def test_a_replayed_ping_changes_nothing_and_is_counted():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)
    datagram = peer.ping(A)
    agent.receive_datagram(datagram, AT_PUBLIC, HERE, 5.0)
    agent.datagrams_to_send()
    before = agent.view(B.id)

    for at in range(100):
        agent.receive_datagram(datagram, ELSEWHERE, HERE, 6.0 + at)

    assert agent.datagrams_to_send() == []
    assert events_of(agent) == []
    assert agent.view(B.id) == before
    assert agent.statistics().replayed == 100


def test_a_replay_older_than_the_guard_remembers_moves_no_endpoint():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)

    # To an agent that has forgotten it, an old ping looks like this.
    agent.receive_datagram(peer.ping(A, record=record_of(B)), ELSEWHERE, HERE, 5.0)
    run_timers(agent, peer, 60.0)

    assert agent.endpoint(B.id) == AT_PUBLIC
    assert not [event for event in events_of(agent) if isinstance(event, EndpointSelected)]


def test_an_unproven_source_draws_few_datagrams_none_longer_than_its_own():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)
    datagram = peer.ping(A)

    agent.receive_datagram(datagram, ELSEWHERE, HERE, 5.0)
    drawn = [o for o in agent.datagrams_to_send() if o.target == ELSEWHERE]
    while (timer := agent.get_timer()) is not None and timer.at < 3600.0:
        agent.handle_timer(timer.at)
        drawn += [o for o in agent.datagrams_to_send() if o.target == ELSEWHERE]

    assert len(drawn) <= 1 + OBSERVED_UNANSWERED_MAX
    assert all(len(o.datagram) <= len(datagram) for o in drawn)


def test_nobody_without_the_bootstrap_key_gets_an_answer():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)
    foreign = Scripted(B, bootstrap_key=BootstrapKey(b"\x07" * 32)).ping(A)
    genuine = peer.ping(A)
    attempts = [b"", b"mesh", b"mesh\x03", foreign, Random(1).randbytes(1200)]
    attempts += [b"mesh" + bytes([kind]) + bytes(200) for kind in range(256)]
    attempts += [genuine[:length] for length in range(len(genuine))]
    for position in range(len(genuine)):
        attempts.append(bytearray(genuine))
        attempts[-1][position] ^= 0x10
    before = agent.view(B.id)

    for attempt in attempts:
        agent.receive_datagram(bytes(attempt), AT_PUBLIC, HERE, 5.0)

    assert agent.datagrams_to_send() == []
    assert agent.view(B.id) == before
    assert {type(event) for event in events_of(agent)} == {BadPacketReceived}
    assert agent.statistics().bad_packets == len(attempts)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_arbitrary_bytes_draw_no_answer(datagrams):
    agent, _ = agent_and_peer()
    for datagram in datagrams:
        agent.receive_datagram(datagram, AT_PUBLIC, HERE, 1.0)
        agent.receive_datagram(b"mesh\x03" + datagram, AT_PUBLIC, HERE, 1.0)

    assert agent.datagrams_to_send() == []


# Bounds


def test_a_flood_of_one_member_is_answered_within_bounds():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)

    for n in range(1000):
        agent.receive_datagram(peer.ping(A), AT_PUBLIC, HERE, 5.0 + n / 1000)

    answers = len(agent.datagrams_to_send())
    assert answers <= ANSWERS_BURST_MAX + ANSWERS_PER_SECOND_MAX
    assert agent.statistics().limited == 1000 - answers


def test_a_flood_of_one_member_does_not_keep_another_from_its_answer():
    agent, peer = agent_and_peer()
    agent.update_peer(C.id, [host("203.0.113.3")], sequence=1, now=0.0)
    for _ in range(1000):
        agent.receive_datagram(peer.ping(A), AT_PUBLIC, HERE, 5.0)
    agent.datagrams_to_send()

    agent.receive_datagram(Scripted(C, seed=5).ping(A), endpoint("203.0.113.3"), HERE, 5.0)

    assert endpoint("203.0.113.3") in {o.target for o in agent.datagrams_to_send()}


def test_a_flood_of_strangers_is_bounded():
    agent = new_agent(A, local=["203.0.113.1"])
    for n in range(STRANGERS_BURST_MAX + 50):
        stranger = Scripted(NodeKey(n.to_bytes(32, "big")), seed=n)
        agent.receive_datagram(stranger.ping(A, record=b"x"), ELSEWHERE, HERE, 1.0)

    assert len(events_of(agent)) == STRANGERS_BURST_MAX
    assert len(agent._hearing._strangers) <= PARKED_MAX
    assert agent.statistics().strangers_dropped == 50
    assert agent.datagrams_to_send() == []


def test_a_member_that_pings_from_everywhere_fills_no_table():
    agent, peer = agent_and_peer()
    for n in range(200):
        source = Endpoint(ip_address("198.51.100.1"), 1000 + n)
        agent.receive_datagram(peer.ping(A), source, HERE, float(n))

    assert len(agent.view(B.id).pairs) <= 1 + OBSERVED_MAX + 1


# Any order of events

PEERS = (B, C, D)
ADDRESSES = [
    Endpoint(ip_address(text), port)
    for text in ("203.0.113.2", "192.168.1.2", "100.64.0.9", "127.0.0.1", "2001:db8::2")
    for port in (51820, 40000)
]
CANDIDATES = [
    Candidate(kind, address.address, address.port)
    for kind in (CandidateKind.HOST, CandidateKind.REFLEXIVE)
    for address in ADDRESSES
]
peers = st.sampled_from(PEERS)
places = st.sampled_from(ADDRESSES)
actions = st.one_of(
    st.tuples(st.just("update"), peers, st.lists(st.sampled_from(CANDIDATES), max_size=8)),
    st.tuples(st.just("ping"), peers, places),
    st.tuples(st.just("pong"), peers, st.integers(0, 5)),
    st.tuples(st.just("forged pong"), peers, places),
    st.tuples(st.just("observed"), peers, places),
    st.tuples(st.just("installed"), peers, st.booleans()),
    st.tuples(st.just("suspect"), peers, st.none()),
    st.tuples(st.just("remove"), peers, st.none()),
    st.tuples(st.just("local"), st.none(), st.lists(places, max_size=2)),
)


@given(st.lists(st.tuples(actions, st.sampled_from([0.0, 0.05, 0.3, 3.0])), max_size=40))
@settings(max_examples=150, deadline=None)
def test_in_any_order_of_events_an_endpoint_is_proven_or_wireguards_own(history):
    agent = new_agent(A, local=["203.0.113.1"])
    scripted = {key.id: Scripted(key, seed=n) for n, key in enumerate(PEERS)}
    outstanding = {key.id: [] for key in PEERS}
    allowed = {key.id: set() for key in PEERS}
    now, sequence = 0.0, 1
    for (action, key, argument), pause in history:
        now += pause
        match action:
            case "update":
                sequence += 1
                agent.update_peer(key.id, argument, sequence=sequence, now=now)
            case "ping":
                datagram = scripted[key.id].ping(A, sequence=sequence)
                agent.receive_datagram(datagram, argument, HERE, now)
            case "pong" if argument < len(outstanding[key.id]):
                target, probe = outstanding[key.id][-1 - argument]
                allowed[key.id].add(target)
                pong = scripted[key.id].pong(probe, A, observed=Endpoint(HERE, 51820))
                agent.receive_datagram(pong, target, HERE, now)
            case "forged pong" if outstanding[key.id]:
                target, probe = outstanding[key.id][-1]
                if argument != target:
                    pong = scripted[key.id].pong(probe, A, observed=Endpoint(HERE, 51820))
                    agent.receive_datagram(pong, argument, HERE, now)
            case "observed":
                allowed[key.id].add(argument)
                agent.endpoint_observed(key.id, argument, now)
            case "installed":
                agent.peer_installed(key.id, now, installed=argument)
            case "suspect":
                agent.peer_suspect(key.id, now)
            case "remove":
                agent.remove_peer(key.id, now)
            case "local":
                addresses = [place.address for place in argument]
                agent.local_changed(addresses, port=51820, control_port=0, now=now)
            case _:
                pass
        agent.handle_timer(now)
        for out in agent.datagrams_to_send():
            assert not any(out.target.address in network for network in OVERLAY)
            assert not out.target.address.is_loopback
            for node, other in scripted.items():
                try:
                    probe = other.open(out.datagram)
                except BadPacket:  # for another peer
                    continue
                if probe.type is ProbeType.PING:
                    outstanding[node].append((out.target, probe))
        for event in events_of(agent):
            if isinstance(event, EndpointSelected):
                assert event.endpoint in allowed[event.node]
                assert not any(event.endpoint.address in network for network in OVERLAY)
                assert not event.endpoint.address.is_loopback
        for node in scripted:
            view = agent.view(node)
            assert view is None or len(view.pairs) <= 8 + OBSERVED_MAX + 1
