"""What the agent does: proof, choice, pauses, its own addresses."""

from ipaddress import ip_address
from itertools import pairwise

import pytest

from meshd.keys import NodeKey
from meshd.path.candidates import PathClass
from meshd.path.events import (
    EndpointSelected,
    PeerReady,
    RecordReceived,
    ReflexiveAddress,
)
from path.scripted import (
    AT_LAN,
    AT_PUBLIC,
    B_LAN,
    B_PUBLIC,
    CONFIG,
    ELSEWHERE,
    HERE,
    agent_and_peer,
    answer,
    asked,
    made_ready,
    pings,
    run_timers,
)
from path.world import (
    A,
    B,
    C,
    Scripted,
    endpoint,
    events_of,
    host,
    new_agent,
    record_of,
)

# Proof


def test_an_endpoint_is_selected_by_a_pong_and_by_nothing_before():
    agent, peer = agent_and_peer()
    ((target, ping),) = asked(agent, peer, 0.0)
    assert target == AT_PUBLIC
    assert agent.endpoint(B.id) is None
    assert events_of(agent) == []

    answer(agent, peer, ping, AT_PUBLIC, 0.02)

    assert agent.endpoint(B.id) == AT_PUBLIC
    assert events_of(agent)[0] == EndpointSelected(
        B.id, AT_PUBLIC, PathClass.HOST, None, "first answer"
    )


def test_a_pong_from_another_address_proves_nothing():
    agent, peer = agent_and_peer()
    ((_, ping),) = asked(agent, peer, 0.0)

    answer(agent, peer, ping, ELSEWHERE, 0.02)

    assert agent.endpoint(B.id) is None
    assert events_of(agent) == []
    assert agent.statistics().pongs_unasked == 1


def test_a_pong_for_another_transaction_proves_nothing():
    agent, peer = agent_and_peer(B_PUBLIC, B_LAN)
    by_target = dict(asked(agent, peer, 0.0))

    answer(agent, peer, by_target[AT_LAN], AT_PUBLIC, 0.02)

    assert agent.endpoint(B.id) is None
    assert agent.statistics().pongs_unasked == 1


def test_a_pong_counts_once():
    agent, peer = agent_and_peer()
    ((_, ping),) = asked(agent, peer, 0.0)
    answer(agent, peer, ping, AT_PUBLIC, 0.02)
    agent.peer_suspect(B.id, 2.0)

    answer(agent, peer, ping, AT_PUBLIC, 2.1)

    assert not agent.view(B.id).proven
    assert agent.statistics().pongs_unasked == 1


def test_a_pong_that_took_too_long_proves_nothing():
    agent, peer = agent_and_peer()
    ((_, ping),) = asked(agent, peer, 0.0)

    answer(agent, peer, ping, AT_PUBLIC, CONFIG.transaction_lifetime + 0.1)

    assert agent.endpoint(B.id) is None


def test_a_pong_of_another_member_proves_nothing():
    agent, peer = agent_and_peer()
    agent.update_peer(C.id, [host("203.0.113.3")], sequence=1, now=0.0)
    agent.handle_timer(0.0)
    to_b = next(o for o in agent.datagrams_to_send() if o.target == AT_PUBLIC)

    answer(agent, Scripted(C), peer.open(to_b.datagram), AT_PUBLIC, 0.02)

    assert agent.endpoint(B.id) is None
    assert agent.endpoint(C.id) is None


def test_a_question_asked_before_the_demand_is_no_proof_after_it():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)
    agent.peer_suspect(B.id, 2.0)
    ((_, before),) = asked(agent, peer, 2.0)
    agent.local_changed([ip_address("203.0.113.9")], port=51820, control_port=0, now=2.05)

    answer(agent, peer, before, AT_PUBLIC, 2.06)

    assert not agent.view(B.id).proven


# Ready


def test_a_peer_is_ready_when_each_has_the_other_in_its_kernel():
    agent, peer = agent_and_peer()
    ((_, ping),) = asked(agent, peer, 0.0)
    answer(agent, peer, ping, AT_PUBLIC, 0.02, installed=True)
    assert not agent.view(B.id).ready

    events_of(agent)
    agent.peer_installed(B.id, 0.03)

    assert events_of(agent) == [PeerReady(B.id, pytest.approx(0.02))]
    assert [probe.installed for _, probe in pings(agent, peer)] == [True]


def test_a_ping_that_says_installed_is_asked_back_not_believed():
    agent, peer = agent_and_peer()
    agent.peer_installed(B.id, 0.0)
    ((_, ping),) = pings(agent, peer)
    answer(agent, peer, ping, AT_PUBLIC, 0.02, installed=False)
    agent.datagrams_to_send()
    events_of(agent)

    agent.receive_datagram(peer.ping(A, installed=True), AT_PUBLIC, HERE, 0.2)

    assert not agent.view(B.id).ready
    ((_, back),) = pings(agent, peer)
    answer(agent, peer, back, AT_PUBLIC, 0.22, installed=True)
    assert events_of(agent) == [PeerReady(B.id, pytest.approx(0.02))]


def test_a_peer_that_has_lost_us_is_no_longer_ready_and_comes_back():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)

    agent.receive_datagram(peer.ping(A, installed=False), AT_PUBLIC, HERE, 5.0)
    ((_, back),) = pings(agent, peer)
    answer(agent, peer, back, AT_PUBLIC, 5.01, installed=False)
    assert not agent.view(B.id).ready

    agent.receive_datagram(peer.ping(A, installed=True), AT_PUBLIC, HERE, 5.2)
    ((_, back),) = pings(agent, peer)
    answer(agent, peer, back, AT_PUBLIC, 5.21, installed=True)
    assert PeerReady(B.id, pytest.approx(0.01)) in events_of(agent)


def test_where_all_is_well_there_is_no_timer():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)

    assert agent.get_timer() is None


# Choice


def test_the_lan_is_used_even_when_it_answers_last():
    agent, peer = agent_and_peer(B_PUBLIC, B_LAN)
    by_target = dict(asked(agent, peer, 0.0))

    answer(agent, peer, by_target[AT_PUBLIC], AT_PUBLIC, 0.01)
    answer(agent, peer, by_target[AT_LAN], AT_LAN, 0.02)

    assert agent.endpoint(B.id) == AT_LAN
    assert [e.reason for e in events_of(agent) if isinstance(e, EndpointSelected)] == [
        "first answer",
        "better path",
    ]


def test_the_lan_is_asked_a_few_times_more_when_its_first_answer_is_lost():
    agent, peer = agent_and_peer(B_PUBLIC, B_LAN)
    made_ready(agent, peer)

    log = run_timers(agent, peer, 60.0)

    assert {target for _, target in log} == {AT_LAN}
    assert 1 <= len(log) <= CONFIG.upgrade_attempts_max


def test_the_address_in_use_is_kept_while_it_answers():
    agent, peer = agent_and_peer(B_PUBLIC, host("203.0.113.20"))
    made_ready(agent, peer)
    agent.peer_suspect(B.id, 5.0)
    by_target = dict(asked(agent, peer, 5.0))

    answer(agent, peer, by_target[endpoint("203.0.113.20")], endpoint("203.0.113.20"), 5.01)
    assert agent.endpoint(B.id) == AT_PUBLIC
    answer(agent, peer, by_target[AT_PUBLIC], AT_PUBLIC, 5.05)

    run_timers(agent, peer, 20.0)
    assert agent.endpoint(B.id) == AT_PUBLIC


def test_the_address_in_use_is_left_when_it_is_silent_and_another_answers():
    agent, peer = agent_and_peer(B_PUBLIC, host("203.0.113.20"))
    made_ready(agent, peer)
    agent.peer_suspect(B.id, 5.0)
    by_target = dict(asked(agent, peer, 5.0))
    answer(agent, peer, by_target[endpoint("203.0.113.20")], endpoint("203.0.113.20"), 5.01)

    run_timers(agent, peer, 5.0 + CONFIG.selection_grace)

    assert agent.endpoint(B.id) == endpoint("203.0.113.20")


def test_a_silent_path_is_kept_while_there_is_no_other():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)
    agent.peer_suspect(B.id, 5.0)

    run_timers(agent, peer, 120.0)

    assert agent.endpoint(B.id) == AT_PUBLIC
    assert events_of(agent) == []


def test_a_record_that_drops_the_address_in_use_has_the_others_asked_at_once():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)

    agent.update_peer(B.id, [host("203.0.113.20")], sequence=2, now=5.0)
    by_target = dict(asked(agent, peer, 5.0))
    assert set(by_target) == {AT_PUBLIC, endpoint("203.0.113.20")}
    answer(agent, peer, by_target[endpoint("203.0.113.20")], endpoint("203.0.113.20"), 5.01)

    assert agent.endpoint(B.id) == endpoint("203.0.113.20")


def test_an_observed_source_is_reached_back():
    agent, peer = agent_and_peer(host("10.0.0.9"))

    agent.receive_datagram(peer.ping(A), ELSEWHERE, HERE, 1.0)
    outgoing = agent.datagrams_to_send()
    assert [(o.target, o.source) for o in outgoing] == [(ELSEWHERE, HERE)] * 2
    ping = peer.open(outgoing[1].datagram)
    answer(agent, peer, ping, ELSEWHERE, 1.02)

    assert agent.endpoint(B.id) == ELSEWHERE


def test_a_peer_heard_from_elsewhere_has_its_path_questioned():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)

    agent.receive_datagram(peer.ping(A), ELSEWHERE, HERE, 5.0)
    ((target, ping),) = pings(agent, peer)
    assert target == ELSEWHERE
    answer(agent, peer, ping, ELSEWHERE, 5.02)
    assert agent.endpoint(B.id) == AT_PUBLIC
    log = run_timers(agent, peer, 5.0 + CONFIG.selection_grace)

    assert AT_PUBLIC in {target for _, target in log}
    assert agent.endpoint(B.id) == ELSEWHERE


# Pauses


def test_pauses_grow_to_ten_seconds_and_after_ten_minutes_to_sixty():
    agent, peer = agent_and_peer()

    instants = [at for at, _ in run_timers(agent, peer, 900.0)]

    gaps = [round(b - a, 6) for a, b in pairwise(instants)]
    assert gaps[:11] == [0.1, 0.2, 0.5, 1.0, 1.0, 2.0, 2.0, 2.0, 5.0, 10.0, 10.0]
    assert gaps[11:] == sorted(gaps[11:])
    assert gaps[-3:] == [60.0] * 3
    assert sum(gap == 60.0 for gap in gaps) == 4


def test_jitter_only_shortens_pauses():
    agent = new_agent(A, local=["203.0.113.1"], seed=3)
    peer = Scripted(B)
    agent.update_peer(B.id, [B_PUBLIC], sequence=1, now=0.0)

    instants = [at for at, _ in run_timers(agent, peer, 500.0)]

    gaps = [b - a for a, b in pairwise(instants)]
    assert max(gaps) <= 10.0
    assert min(gaps[10:]) >= 7.5


def test_a_lost_peer_that_is_heard_again_is_asked_at_once():
    agent, peer = agent_and_peer(B_LAN, B_PUBLIC)
    run_timers(agent, peer, 700.0)

    agent.receive_datagram(peer.ping(A), AT_PUBLIC, HERE, 701.0)

    ((_, ping),) = pings(agent, peer)
    answer(agent, peer, ping, AT_PUBLIC, 701.01)
    assert agent.endpoint(B.id) == AT_PUBLIC
    assert agent.get_timer().at <= 702.0


def test_new_addresses_of_ours_have_everything_proven_anew_at_once():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)

    agent.local_changed([ip_address("203.0.113.9")], port=51820, control_port=0, now=9.0)

    assert agent.get_timer().at == 9.0
    ((_, ping),) = asked(agent, peer, 9.0)
    assert ping.record is not None  # the peer may have lost it
    answer(agent, peer, ping, AT_PUBLIC, 9.01, observed=endpoint("203.0.113.9"))
    assert PeerReady(B.id, pytest.approx(0.01)) in events_of(agent)
    assert not agent.behind_nat


def test_the_same_addresses_again_change_nothing():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)

    agent.local_changed([HERE], port=51820, control_port=0, now=9.0)

    assert agent.get_timer() is None


def test_repeated_suspicions_do_not_hammer():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)
    asked_for = 0
    for tick in range(600):
        agent.peer_suspect(B.id, 10.0 + tick * 0.1)
        asked_for += len(asked(agent, peer, 10.0 + tick * 0.1))

    assert asked_for < 100


def test_two_sides_that_are_slow_to_answer_do_not_keep_each_other_busy():
    agents = {A: new_agent(A, local=["203.0.113.1"]), B: new_agent(B, local=["203.0.113.2"])}
    for key, other, address in ((A, B, "203.0.113.2"), (B, A, "203.0.113.1")):
        agents[key].record_changed(b"record", 1)
        agents[key].update_peer(other.id, [host(address)], sequence=1, now=0.0)
        agents[key].peer_installed(other.id, 0.0)
    where = {A: endpoint("203.0.113.1"), B: endpoint("203.0.113.2")}
    on_the_way, sent, now = [], 0, 0.0
    while now < 20.0:
        for key, other in ((A, B), (B, A)):
            agents[key].handle_timer(now)
            for outgoing in agents[key].datagrams_to_send():
                sent += 1
                on_the_way.append((now + 1.5, other, outgoing.datagram, where[key]))
        due = [each for each in on_the_way if each[0] <= now]
        on_the_way = [each for each in on_the_way if each[0] > now]
        for _, target, datagram, source in due:
            agents[target].receive_datagram(datagram, source, None, now)
        now += 0.01

    assert agents[A].view(B.id).ready
    assert agents[B].view(A.id).ready
    assert sent < 60


def test_many_peers_are_asked_in_batches():
    agent = new_agent(A, local=["203.0.113.1"])
    for n in range(300):
        key = NodeKey((n + 500).to_bytes(32, "big"))
        agent.update_peer(key.id, [host("203.0.113.2", port=1000 + n)], sequence=1, now=0.0)
    now, batches = 0.0, []
    while sum(batches) < 300:
        agent.handle_timer(now)
        batches.append(len(agent.datagrams_to_send()))
        now = agent.get_timer().at

    assert max(batches) == 64
    assert now < 0.1


# Records and control ports


def test_our_record_is_shown_until_the_peer_holds_it():
    agent, peer = agent_and_peer()
    ((_, first),) = asked(agent, peer, 0.0)
    assert first.record is not None
    answer(agent, peer, first, AT_PUBLIC, 0.01, held=0)
    agent.peer_installed(B.id, 0.2)
    ((_, second),) = pings(agent, peer)
    assert second.record is not None
    answer(agent, peer, second, AT_PUBLIC, 0.21, held=1)
    agent.receive_datagram(peer.ping(A, installed=False), AT_PUBLIC, HERE, 0.5)

    ((_, third),) = pings(agent, peer)

    assert third.record is None


def test_a_peer_that_lacks_our_record_is_shown_it_when_it_pings():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)
    agent.record_changed(record_of(A, sequence=2), 2)

    agent.receive_datagram(peer.ping(A, held=1), AT_PUBLIC, HERE, 5.0)

    ((_, ping),) = pings(agent, peer)
    assert (ping.sequence, ping.record) == (2, record_of(A, sequence=2))


def test_probes_go_to_the_control_port_and_wireguard_to_its_own():
    agent, peer = agent_and_peer(host("203.0.113.2", control_port=51821))
    ((target, ping),) = asked(agent, peer, 0.0)
    assert target == endpoint("203.0.113.2", 51821)

    answer(agent, peer, ping, target, 0.01)

    assert agent.endpoint(B.id) == AT_PUBLIC


def test_a_moved_peer_with_a_control_port_is_found_at_the_port_that_goes_with_it():
    agent, peer = agent_and_peer(host("203.0.113.2", control_port=51821))
    moved = endpoint("203.0.113.30", 51821)

    agent.receive_datagram(peer.ping(A), moved, HERE, 1.0)
    ((_, ping),) = pings(agent, peer)
    answer(agent, peer, ping, moved, 1.01)

    assert agent.endpoint(B.id) == endpoint("203.0.113.30")


def test_a_mapped_control_port_says_nothing_of_where_wireguard_is():
    agent, peer = agent_and_peer(host("10.0.0.2", control_port=51821))

    agent.receive_datagram(peer.ping(A), ELSEWHERE, HERE, 1.0)
    ((_, ping),) = pings(agent, peer)
    answer(agent, peer, ping, ELSEWHERE, 1.01)

    assert agent.endpoint(B.id) is None


# WireGuard's own roaming


def test_an_endpoint_that_wireguard_has_moved_is_accepted():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)
    agent.endpoint_observed(B.id, AT_PUBLIC, 1.0)

    agent.endpoint_observed(B.id, ELSEWHERE, 2.0)

    assert agent.endpoint(B.id) == ELSEWHERE
    assert [event.reason for event in events_of(agent)] == ["peer roamed"]


def test_an_observation_from_before_our_choice_was_applied_does_not_undo_it():
    agent, peer = agent_and_peer(B_PUBLIC, B_LAN)
    by_target = dict(asked(agent, peer, 0.0))
    answer(agent, peer, by_target[AT_PUBLIC], AT_PUBLIC, 0.01)
    agent.endpoint_observed(B.id, AT_PUBLIC, 0.2)
    answer(agent, peer, by_target[AT_LAN], AT_LAN, 0.3)

    agent.endpoint_observed(B.id, AT_PUBLIC, 0.4)

    assert agent.endpoint(B.id) == AT_LAN


def test_an_adopted_interface_says_where_its_peers_are():
    agent, _ = agent_and_peer()

    agent.endpoint_observed(B.id, ELSEWHERE, 0.0)

    assert agent.endpoint(B.id) == ELSEWHERE


def test_what_the_kernel_had_before_us_does_not_outweigh_a_proof():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)

    agent.endpoint_observed(B.id, ELSEWHERE, 1.0)

    assert agent.endpoint(B.id) == AT_PUBLIC


# Our own addresses


def test_what_a_peer_sees_of_us_is_told():
    agent, peer = agent_and_peer()
    ((_, ping),) = asked(agent, peer, 0.0)

    answer(agent, peer, ping, AT_PUBLIC, 0.01, observed=ELSEWHERE)

    assert ReflexiveAddress(B.id, ELSEWHERE) in events_of(agent)
    assert agent.behind_nat
    assert agent.reflexive == (ELSEWHERE,)  # there is nobody else to ask


def test_one_of_several_is_not_believed_before_the_others_had_their_chance():
    agent, peer = agent_and_peer()
    agent.update_peer(C.id, [host("203.0.113.3")], sequence=1, now=0.0)
    agent.handle_timer(0.0)
    to_b = next(o for o in agent.datagrams_to_send() if o.target == AT_PUBLIC)
    answer(agent, peer, peer.open(to_b.datagram), AT_PUBLIC, 0.01, observed=ELSEWHERE)
    assert agent.reflexive == ()

    while (timer := agent.get_timer()).at <= CONFIG.sole_witness_wait:
        agent.handle_timer(timer.at)

    assert agent.reflexive == (ELSEWHERE,)


@pytest.mark.parametrize("text", ["100.64.9.9", "127.0.0.1", "0.0.0.0", "224.0.0.1"])
def test_an_impossible_reflexive_address_is_not_believed(text):
    agent, peer = agent_and_peer()
    ((_, ping),) = asked(agent, peer, 0.0)

    answer(agent, peer, ping, AT_PUBLIC, 0.01, observed=endpoint(text))

    assert agent.reflexive == ()
    assert not agent.behind_nat


def test_a_member_without_a_usable_key_is_left_alone():
    agent, _ = agent_and_peer()
    no_point = type(B.id)(b"\x01" + bytes(31))

    agent.update_peer(no_point, [host("203.0.113.3")], sequence=1, now=0.0)
    agent.handle_timer(0.0)

    assert agent.view(no_point) is None
    assert agent.statistics().unsealable == 1


def test_a_removed_peer_is_a_stranger():
    agent, peer = agent_and_peer()
    made_ready(agent, peer)
    agent.remove_peer(B.id, 5.0)

    agent.receive_datagram(peer.ping(A), AT_PUBLIC, HERE, 6.0)

    assert agent.datagrams_to_send() == []
    assert agent.view(B.id) is None
    assert agent.get_timer() is None


def test_who_does_not_know_its_own_newest_record_is_shown_it_where_it_answers():
    agent, peer = agent_and_peer()
    agent.update_peer(B.id, [B_PUBLIC], sequence=7, record=b"newest of B's", now=0.0)
    ((target, ping),) = asked(agent, peer, 0.0)
    assert ping.yours is None, "nobody has answered from there yet"

    answer(agent, peer, ping, target, 0.01, sequence=6)

    ((to, returned),) = pings(agent, peer)
    assert (to, returned.yours, returned.record) == (target, b"newest of B's", None)
    answer(agent, peer, returned, target, 0.02, sequence=6)
    assert not pings(agent, peer), "not in turn with every answer"


def test_who_knows_its_own_newest_record_is_not_shown_it():
    agent, peer = agent_and_peer()
    agent.update_peer(B.id, [B_PUBLIC], sequence=7, record=b"newest of B's", now=0.0)
    ((target, ping),) = asked(agent, peer, 0.0)

    answer(agent, peer, ping, target, 0.01, sequence=7)

    assert not [ping for _, ping in pings(agent, peer) if ping.yours is not None]


def test_a_record_of_ours_that_we_are_shown_is_passed_on_for_judgement():
    agent, peer = agent_and_peer()

    agent.receive_datagram(peer.ping(A, yours=b"newest of ours"), AT_PUBLIC, HERE, 1.0)

    assert RecordReceived(b"newest of ours", B.id) in events_of(agent)
