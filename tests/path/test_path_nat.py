"""What a node tells of its NAT, how long that keeps bindings, and who is kept alive through it."""

from ipaddress import ip_address

import pytest

from meshd.path.binding import KEEPALIVE_MAX, KEEPALIVE_MIN, ONE_EVENT, Bindings
from meshd.path.candidates import PathClass
from meshd.path.nat import DESTINATIONS_MAX, Contacted, Filtering, Mapping, NatWatch
from path.internet import INTERNET, Internet
from path.nats import Dependence
from path.test_path_relays import pair_behind, relayed
from path.world import endpoint

NONE, ADDRESS, BOTH = Dependence
LOCAL = frozenset([ip_address("192.168.1.2")])
PORT = 51820
HERE = endpoint("192.168.1.2", PORT)
OUTSIDE = endpoint("198.51.100.1", 40000)
ELSEWHERE = endpoint("198.51.100.1", 40007)
X, Y = endpoint("203.0.113.1"), endpoint("203.0.113.2")
X_TOO = endpoint("203.0.113.1", 51900)


def seen(*reports):
    watch = NatWatch()
    for destination, observed in reports:
        watch.observed(destination, observed)
    return watch.behaviour(LOCAL, PORT)


@pytest.mark.parametrize(
    ("reports", "mapping"),
    [
        ([], Mapping.UNKNOWN),
        ([(X, HERE)], Mapping.NONE),
        ([(X, OUTSIDE)], Mapping.UNKNOWN),
        ([(X, OUTSIDE), (X_TOO, OUTSIDE)], Mapping.UNKNOWN),
        ([(X, OUTSIDE), (Y, OUTSIDE)], Mapping.ENDPOINT_INDEPENDENT),
        ([(X, OUTSIDE), (Y, ELSEWHERE)], Mapping.DEPENDENT),
        ([(X, OUTSIDE), (X_TOO, OUTSIDE), (Y, ELSEWHERE)], Mapping.ADDRESS_DEPENDENT),
        ([(X, OUTSIDE), (X_TOO, ELSEWHERE)], Mapping.ADDRESS_AND_PORT_DEPENDENT),
    ],
)
def test_the_mapping_is_told_from_where_destinations_see_us(reports, mapping):
    assert seen(*reports).mapping is mapping


def test_a_port_is_preserved_if_everybody_sees_it():
    kept = endpoint("198.51.100.1", PORT)
    assert seen((X, kept), (Y, kept)).port_preserving
    assert not seen((X, kept), (Y, OUTSIDE)).port_preserving
    assert seen((X, HERE)).port_preserving is None


def test_filtering_is_told_from_what_comes_in_unasked():
    watch, contacted = NatWatch(), Contacted()
    contacted.note(X, 0.0)

    watch.heard(X, contacted, 1.0)
    assert watch.behaviour(LOCAL, PORT).filtering is Filtering.UNKNOWN
    watch.heard(X_TOO, contacted, 1.0)
    assert watch.behaviour(LOCAL, PORT).filtering is Filtering.ADDRESS_DEPENDENT
    watch.heard(Y, contacted, 1.0)
    assert watch.behaviour(LOCAL, PORT).filtering is Filtering.ENDPOINT_INDEPENDENT


def test_destinations_are_bounded():
    watch, contacted = NatWatch(), Contacted()
    for number in range(DESTINATIONS_MAX + 100):
        there = endpoint(f"203.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        watch.observed(there, OUTSIDE)
        contacted.note(there, 0.0)

    assert watch.behaviour(LOCAL, PORT).destinations == DESTINATIONS_MAX
    assert not contacted.endpoint(endpoint("203.0.0.0"), 1.0)


@pytest.mark.parametrize(
    ("mapping", "filtering", "preserves", "told"),
    [
        (NONE, BOTH, False, Mapping.ENDPOINT_INDEPENDENT),
        (NONE, BOTH, True, Mapping.ENDPOINT_INDEPENDENT),
        (ADDRESS, BOTH, False, Mapping.ADDRESS_DEPENDENT),
        (BOTH, BOTH, False, Mapping.ADDRESS_AND_PORT_DEPENDENT),
    ],
)
def test_a_node_knows_its_nat_once_it_has_been_relayed(mapping, filtering, preserves, told):
    behind = {"mapping": mapping, "filtering": filtering, "preserves": preserves}
    internet, a, b = pair_behind(behind, {"mapping": BOTH, "filtering": BOTH})
    internet.run_until(lambda: relayed(a, b), within=3)
    internet.run_for(5)

    (node,) = [node for node in (a, b) if node.realm == "x"]
    assert node.agent.nat(4).mapping is told
    assert bool(node.agent.nat(4).port_preserving) == preserves
    assert internet.relays[0].agent.nat(4).mapping is Mapping.NONE


# Bindings


def test_a_binding_that_died_sooner_halves_the_interval_once_for_each_event():
    bindings = Bindings()

    assert bindings.moved(24.0, 100.0)
    assert not bindings.moved(24.0, 100.0 + ONE_EVENT / 2), "many peers, one event"
    assert bindings.keepalive == KEEPALIVE_MAX // 2
    assert bindings.moved(24.0, 100.0 + ONE_EVENT)
    assert bindings.keepalive == KEEPALIVE_MAX // 4
    for number in range(2, 10):
        bindings.moved(24.0, 100.0 + number * ONE_EVENT)
    assert bindings.keepalive == KEEPALIVE_MIN
    bindings.clear()
    assert bindings.keepalive == KEEPALIVE_MAX


def test_a_binding_that_moved_while_in_use_says_nothing_of_its_lifetime():
    bindings = Bindings()

    assert not bindings.moved(1.0, 100.0)
    assert bindings.keepalive == KEEPALIVE_MAX


def test_only_what_goes_through_a_binding_is_to_be_kept_alive():
    internet = Internet(seed=1)
    server = internet.add(0, INTERNET, "203.0.113.1")
    internet.add_nat("x", "198.51.100.1", NONE, BOTH)
    a = internet.add(2, "x", "192.168.1.2")
    b = internet.add(3, "x", "192.168.1.3")
    internet.introduce_all()
    internet.run_for(10)

    assert a.path_class(b) is PathClass.LAN
    assert a.agent.keepalive(b.key.id) == 0
    assert a.agent.keepalive(server.key.id) == KEEPALIVE_MAX
    assert server.agent.keepalive(a.key.id) == 0
