"""Where a token sends a newcomer."""

from ipaddress import ip_address

import pytest

from meshd.daemon.doors import choose
from meshd.keys import NodeId, WireGuardKey
from meshd.trust.invite import SEEDS_MAX
from meshd.trust.record import Candidate, CandidateKind, Record
from meshd.wg.types import Endpoint

PORT = 51820
HOST, MAPPED, CONFIGURED = CandidateKind.HOST, CandidateKind.MAPPED, CandidateKind.CONFIGURED


def endpoint(address):
    return Endpoint(ip_address(address), PORT)


def record(*candidates, control_port=0):
    listed = tuple(
        Candidate(kind, ip_address(address), PORT, control_port) for kind, address in candidates
    )
    return Record(
        node=NodeId(bytes(32)), sequence=1, wireguard_key=WireGuardKey(bytes(32)), candidates=listed
    )


PRIVATE = record((HOST, "192.168.3.2"), (CandidateKind.REFLEXIVE, "192.0.2.5"))
OTHERS = [record((HOST, f"203.0.113.{number}"), (HOST, "2001:db8::1")) for number in range(1, 9)]


@pytest.mark.parametrize("kind", [HOST, MAPPED, CONFIGURED])
def test_a_member_that_strangers_reach_names_itself_alone(kind):
    own = [endpoint("198.51.100.3"), endpoint("192.168.3.2")]

    assert choose(own, record((kind, "198.51.100.3")), OTHERS) == tuple(own)


@pytest.mark.parametrize(
    "addresses", [(), ("192.168.3.2",), tuple(f"192.168.3.{number}" for number in range(2, 9))]
)
@pytest.mark.parametrize("others", [0, 1, 8])
def test_one_behind_a_nat_names_others_as_well(addresses, others):
    own = [endpoint(address) for address in addresses]
    given = OTHERS[:others]

    chosen = choose(own, PRIVATE, given)

    assert len(chosen) == min(SEEDS_MAX, len(own) + len(given))
    assert chosen[: min(len(own), 2)] == tuple(own[:2])
    assert {endpoint(f"203.0.113.{number + 1}") for number in range(min(others, 2))} <= {*chosen}


def test_others_that_no_stranger_reaches_are_not_named():
    own = [endpoint("192.168.3.2")]

    assert choose(own, PRIVATE, [PRIVATE, record((HOST, "100.64.7.7"))]) == tuple(own)


def test_a_public_ipv6_address_beside_a_private_ipv4_one_may_have_a_firewall_before_it():
    mine = record((HOST, "192.168.3.2"), (HOST, "2001:db8::2"))

    assert endpoint("203.0.113.1") in choose([endpoint("192.168.3.2")], mine, OTHERS[:1])


def test_a_member_whose_bootstrap_has_a_port_of_its_own_is_named_with_that():
    other = record((HOST, "203.0.113.1"), control_port=4000)

    assert choose([], None, [other]) == (Endpoint(ip_address("203.0.113.1"), 4000),)
