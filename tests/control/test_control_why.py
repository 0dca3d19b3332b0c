"""What is said of a path follows from what was tried."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from control.scripted import NAT, PAIRS, member
from meshd.control.why import WhySnapshot, advice, reason, why_document
from meshd.wg.types import Endpoint

SILENT, RELAYED = PAIRS
ENDPOINT_INDEPENDENT = replace(NAT, mapping="endpoint-independent")
NO_NAT = replace(NAT, mapping="no NAT")


def pair(pair_class, **changes):
    address = Endpoint(ip_address("198.51.100.7"), 51820)
    return replace(SILENT, pair_class=pair_class, address=address, **changes)


def snapshot(
    *pairs, nat=ENDPOINT_INDEPENDENT, relays=1, key_conflict=False, has_address=True, **changes
):
    return WhySnapshot(
        member=member("b", 2, **changes),
        installed=True,
        installs_us=True,
        pairs=pairs,
        nat=nat,
        has_address=has_address,
        port=51820,
        relays=relays,
        key_conflict=key_conflict,
    )


@pytest.mark.parametrize(
    ("pair_class", "word"),
    [("lan", "private address"), ("host", "own"), ("mapped", "router"), ("reflexive", "NAT")],
)
def test_a_direct_path_needs_no_advice(pair_class, word):
    found = snapshot(SILENT, pair(pair_class, result="in use"))

    assert word in reason(found)
    assert advice(found) == []


def test_a_nat_of_ours_that_depends_on_the_destination_is_named():
    found = snapshot(pair("reflexive"), RELAYED, nat=NAT)

    assert "this node's NAT" in reason(found)
    assert any("51820" in step for step in advice(found))


def test_an_endpoint_independent_nat_is_not_taken_for_one_that_depends():
    found = snapshot(pair("reflexive"), RELAYED, nat=ENDPOINT_INDEPENDENT)

    assert reason(found) == "no answer from 198.51.100.7:51820"


def test_a_member_that_only_has_private_addresses_has_such_a_nat_it_seems():
    assert "its NAT" in reason(snapshot(SILENT, RELAYED))


def test_without_a_nat_of_ours_the_advice_is_for_the_other_end():
    steps = advice(snapshot(SILENT, RELAYED, nat=NO_NAT))

    assert steps
    assert not any("this node's router" in step for step in steps)


def test_a_path_that_was_lost_under_traffic_is_said_to_be():
    found = snapshot(pair("host", result="lost", losses=1), RELAYED)

    assert "lost under traffic" in reason(found)


def test_where_nothing_works_and_nobody_relays_a_relay_is_advised():
    silent = snapshot(pair("host"), relays=0, path=None)
    relayed = snapshot(pair("host"), RELAYED, relays=0)

    assert any("relay" in step for step in advice(silent))
    assert not any("let a member" in step for step in advice(relayed))


def test_who_is_gone_is_not_explained_by_nats():
    assert "down" in reason(snapshot(pair("host"), state="dead"))
    assert "left" in reason(snapshot(pair("host"), state="left"))
    assert "key" in reason(snapshot(pair("host"), key_conflict=True))
    assert "no address" in reason(snapshot())


def test_a_node_without_an_address_blames_nobody_else():
    cut_off = snapshot(pair("host"), state="dead", path=None, has_address=False)

    assert "this node has no address" in reason(cut_off)
    assert advice(cut_off) == ["see to this node's own network: cable, address, default route"]


def test_who_was_reached_directly_before_it_died_needs_no_other_nat():
    gone = snapshot(pair("host", proven_age=9.0), state="dead", path=None)
    never = snapshot(pair("host"), state="dead", path=None)

    assert len(advice(gone)) == 1
    assert any("IPv6" in step for step in advice(never))


def test_the_document_has_every_pair_that_was_tried():
    document = why_document(snapshot(SILENT, RELAYED, path="relayed", relay="r"))

    assert document["schema"] == "meshd.why/1"
    assert [(each["class"], each["result"]) for each in document["pairs"]] == [
        ("lan", "no answer"),
        ("relayed", "in use"),
    ]
    assert document["pairs"][0]["asked_s"] == 3.2
    assert document["pairs"][1]["rtt_ms"] == 4.1
