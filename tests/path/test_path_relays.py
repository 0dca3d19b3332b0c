"""Relayed paths, watched paths and planned moves, with packets in the tunnels."""

import itertools

import pytest

from meshd.path.candidates import PathClass
from meshd.path.events import EndpointSelected, PathFailed, RelayUnwanted, RelayWanted
from path.internet import INTERNET, Internet
from path.nats import BEHAVIOURS, Dependence, meets

NONE, ADDRESS, BOTH = Dependence
SEEDS = range(3)

EASY = {"mapping": NONE, "filtering": BOTH}  # direct to its like
HARD = {"mapping": BOTH, "filtering": BOTH}  # never direct to its like

KINDS = [{"mapping": mapping, "filtering": filtering} for mapping, filtering in BEHAVIOURS]


def pair_behind(one, other, *, seed=0, relays=2, loss=0.0, delay=(0.005, 0.02)):
    """Two public members that relay, and two members behind NATs."""
    internet = Internet(seed=seed, loss=loss, delay=delay)
    for number in range(relays):
        internet.add_relay(number, f"203.0.113.{number + 1}")
    for number in range(relays, 2):
        internet.add(number, INTERNET, f"203.0.113.{number + 1}")
    internet.add_nat("x", "198.51.100.1", **one)
    internet.add_nat("y", "198.51.100.2", **other)
    a = internet.add(2, "x", "192.168.1.2")
    b = internet.add(3, "y", "192.168.1.2")
    if b.key.id < a.key.id:
        a, b = b, a
    internet.introduce_all()
    return internet, a, b


def relayed(a, b):
    return PathClass.RELAYED in {a.path_class(b)} & {b.path_class(a)}


def direct(a, b):
    classes = {a.path_class(b), b.path_class(a)}
    return None not in classes and all(each < PathClass.RELAYED for each in classes)


def same_path(a, b):
    """Whether both use one and the same path, and their WireGuards as well."""
    ends = [(a, b), (b, a)]
    return all(x.tunnel(y).endpoint == x.agent.endpoint(y.key.id) for x, y in ends) and (
        (relayed(a, b) and a.agent.view(b.key.id).relay == b.agent.view(a.key.id).relay)
        or direct(a, b)
    )


def cut_direct(internet, a, b, *, cut=True):
    """Let nothing through between the NATs of two members, or let it through again."""
    for node, other in ((a, b), (b, a)):
        for address in (internet.nats[other.realm].address,):
            change = internet.cuts.add if cut else internet.cuts.discard
            change((node, address))


def both_ways(internet, a, b, rate=50.0):
    return internet.stream(a, b, rate=rate), internet.stream(b, a, rate=rate)


# Relayed at all


@pytest.mark.parametrize("seed", SEEDS)
def test_two_that_cannot_meet_are_relayed_within_a_second_and_a_half(seed):
    internet, a, b = pair_behind(HARD, HARD, seed=seed)

    internet.run_until(lambda: relayed(a, b) and a.ready(b) and b.ready(a), within=1.5)

    streams = both_ways(internet, a, b)
    internet.run_for(5)
    began = internet.now - 4
    assert all(stream.lost(since=began, until=internet.now - 0.5) == [] for stream in streams)
    assert same_path(a, b)


@pytest.mark.parametrize("delay", [0.1, 0.2, 0.4])
def test_a_hello_that_is_answered_after_the_next_was_said_counts(delay):
    internet, a, b = pair_behind(HARD, HARD, delay=(delay, 1.02 * delay))

    # What it takes are some ten round trips, and as long again for answers that might have come.
    internet.run_until(lambda: relayed(a, b) and a.ready(b) and b.ready(a), within=40 * delay)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations_with_replacement(KINDS, 2)))
def test_whenever_the_nats_let_them_two_end_direct_and_else_relayed(one, other):
    internet, a, b = pair_behind(one, other)
    possible = meets(*(internet.nats[realm] for realm in "xy"))

    internet.run_until(lambda: (direct if possible else relayed)(a, b), within=60)
    internet.run_for(20)

    assert (direct if possible else relayed)(a, b)
    if not possible:
        assert same_path(a, b)


def test_what_can_be_direct_soon_is():
    internet, a, b = pair_behind(EASY, EASY)

    internet.run_until(lambda: direct(a, b), within=5)


def test_relays_are_let_go_of_when_the_direct_path_is_idle():
    internet, a, b = pair_behind(EASY, EASY)
    internet.run_until(lambda: direct(a, b), within=5)

    internet.run_for(120)

    assert not a.wishes.get(b.key.id)
    assert all(not node.relay.pairs for node in internet.relays)
    internet.sent.clear()
    internet.run_for(600)
    assert internet.sent == []


def test_nobody_asks_for_relays_for_one_that_is_not_wanted():
    internet, a, b = pair_behind(HARD, HARD)
    internet.run_for(0.1)
    for node, other in ((a, b), (b, a)):
        node.agent.peer_wanted(other.key.id, internet.now, wanted=False)
        node.drain()

    internet.run_for(10)

    wanted = [
        event
        for node, other in ((a, b), (b, a))
        for _, event in node.log
        if isinstance(event, RelayWanted) and event.node == other.key.id
    ]
    assert wanted == []


# Planned moves


@pytest.mark.parametrize("rate", [5.0, 100.0, 500.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_better_path_is_moved_to_and_loses_nothing_however_much_is_on_its_way(seed, rate):
    internet, a, b = pair_behind(EASY, EASY, seed=seed)
    cut_direct(internet, a, b)
    internet.run_until(lambda: relayed(a, b), within=5)
    streams = both_ways(internet, a, b, rate)
    internet.run_for(5)
    began = internet.now

    cut_direct(internet, a, b, cut=False)
    took = internet.run_until(lambda: direct(a, b), within=40)
    internet.run_for(10)

    assert took > 1.0
    assert direct(a, b)
    assert same_path(a, b)
    assert len(a.selections(b, since=began)) == 1
    for stream in streams:
        assert stream.lost(since=began, until=internet.now - 0.5) == []


def test_a_draining_relay_is_left_and_loses_nothing():
    internet, a, b = pair_behind(HARD, HARD)
    internet.run_until(lambda: relayed(a, b), within=5)
    streams = both_ways(internet, a, b)
    internet.run_for(5)
    began = internet.now
    used = internet.node(a.agent.view(b.key.id).relay)

    internet.drain_relay(used)
    internet.run_until(
        lambda: used.key.id not in {a.agent.view(b.key.id).relay, b.agent.view(a.key.id).relay},
        within=10,
    )
    internet.run_for(5)

    assert relayed(a, b)
    assert same_path(a, b)
    for stream in streams:
        assert stream.lost(since=began, until=internet.now - 0.5) == []


def test_the_nearer_of_two_relays_is_used_in_the_end():
    internet, a, b = pair_behind(HARD, HARD)
    far, near = internet.relays
    internet.far = {far: 0.1}
    streams = both_ways(internet, a, b)

    internet.run_for(60)

    assert a.agent.view(b.key.id).relay == b.agent.view(a.key.id).relay == near.key.id
    assert all(stream.lost(since=30, until=internet.now - 1) == [] for stream in streams)


# Paths that fail


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cut_path_under_traffic_is_left_for_the_spare_within_a_second(seed):
    internet, a, b = pair_behind(EASY, EASY, seed=seed)
    internet.run_until(lambda: direct(a, b), within=5)
    streams = both_ways(internet, a, b)
    internet.run_for(10)  # the spare is there by then
    began = internet.now

    cut_direct(internet, a, b)
    internet.run_for(10)

    assert relayed(a, b)
    assert same_path(a, b)
    for stream in streams:
        assert stream.silence(began, internet.now) <= 1.0
        assert stream.lost(since=began + 1.0, until=internet.now - 0.5) == []
    assert any(isinstance(event, PathFailed) for _, event in a.log + b.log)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_relay_that_dies_under_traffic_is_left_within_a_second(seed):
    internet, a, b = pair_behind(HARD, HARD, seed=seed)
    internet.run_until(lambda: relayed(a, b), within=5)
    streams = both_ways(internet, a, b)
    internet.run_for(10)
    began = internet.now

    internet.node(a.agent.view(b.key.id).relay).cut = True
    internet.run_for(20)

    assert relayed(a, b)
    assert same_path(a, b)
    for stream in streams:
        assert stream.silence(began, internet.now) <= 1.0


def test_a_path_that_is_cut_again_and_again_is_tried_more_and_more_rarely():
    internet, a, b = pair_behind(EASY, EASY)
    internet.run_until(lambda: direct(a, b), within=5)
    both_ways(internet, a, b)
    internet.run_for(5)
    waits = []
    for _ in range(5):
        cut_direct(internet, a, b)
        internet.run_until(lambda: relayed(a, b), within=2)
        internet.run_for(1)
        cut_direct(internet, a, b, cut=False)
        a.agent.called(b.key.id, b.blob, internet.now)
        a.drain()
        waits.append(internet.run_until(lambda: direct(a, b), within=120))
        internet.run_for(1)

    assert waits[-1] >= 8.0
    assert waits[-1] > waits[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_ten_minutes_of_a_fifth_lost_on_the_direct_path_flap_nothing(seed):
    internet, a, b = pair_behind(EASY, EASY, seed=seed)
    internet.run_until(lambda: direct(a, b), within=5)
    both_ways(internet, a, b, rate=5.0)
    internet.run_for(5)
    for node, other in ((a, b), (b, a)):
        internet.losses[node, internet.nats[other.realm].address] = 0.2
    began = internet.now

    internet.run_for(600)

    moves = a.selections(b, since=began) + b.selections(a, since=began)
    assert moves == []


def test_a_nat_that_starts_anew_under_traffic_is_followed():
    internet, a, b = pair_behind(EASY, EASY)
    internet.run_until(lambda: direct(a, b), within=5)
    streams = both_ways(internet, a, b)
    internet.run_for(10)
    began = internet.now

    internet.nats[a.realm].rebind()
    internet.run_for(60)

    assert direct(a, b)
    for stream in streams:
        assert stream.silence(began, internet.now) <= 1.0


# What is never done


@pytest.mark.parametrize("seed", SEEDS)
def test_a_path_that_works_is_never_given_up_for_one_that_does_not(seed):
    internet, a, b = pair_behind(EASY, EASY, seed=seed, loss=0.1)
    both_ways(internet, a, b)
    internet.run_for(120)

    for node, other in ((a, b), (b, a)):
        for at, event in node.selections(other):
            heard = [
                when for when in internet.heard(node, event.endpoint) if at - 20 < when < at + 1e-3
            ]
            assert heard or event.reason == "peer roamed", f"{event} at {at}"


def test_where_there_is_no_relay_all_goes_on_as_without():
    internet, a, b = pair_behind(HARD, HARD, relays=0)

    internet.run_for(60)

    assert not a.ready(b)
    assert all(node.ready(a) for node in internet.nodes[:2])


def test_a_wish_ends_when_it_is_fulfilled_otherwise():
    internet, a, b = pair_behind(EASY, EASY)
    cut_direct(internet, a, b)
    internet.run_until(lambda: relayed(a, b), within=5)
    cut_direct(internet, a, b, cut=False)

    internet.run_until(lambda: direct(a, b), within=60)
    internet.run_for(30)

    for node, other in ((a, b), (b, a)):
        last = [
            event
            for _, event in node.log
            if isinstance(event, RelayWanted | RelayUnwanted) and event.node == other.key.id
        ][-1]
        assert isinstance(last, RelayUnwanted)
    assert isinstance(a.selections(b)[-1][1], EndpointSelected)
