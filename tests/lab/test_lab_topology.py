import itertools

import pytest

from lablib import UsageError, draw, nat, topology
from lablib.fabric import cables, fabric_port, router_commands, router_rules
from lablib.nats import KINDS, kinds_named
from lablib.sites import TOPOLOGIES, nats
from lablib.topology import MEMBERS_MAX, member_name

INTERFACE_LENGTH_MAX = 15  # IFNAMSIZ less its final zero

each_topology = pytest.mark.parametrize(
    "plan",
    [topology(name, count) for name in TOPOLOGIES for count in (1, 2, 5, MEMBERS_MAX)]
    + [topology("nats"), topology("nats:home,cgn")],
    ids=lambda plan: f"{plan.name}-{len(plan.members)}",
)


@each_topology
def test_no_two_ports_share_an_address(plan):
    ipv4 = [port.ipv4.ip for _, port in cables(plan)]
    ipv6 = [port.ipv6.ip for _, port in cables(plan) if port.ipv6]

    assert len(set(ipv4)) == len(ipv4)
    assert len(set(ipv6)) == len(ipv6)


@each_topology
def test_no_two_segments_overlap(plan):
    for one, other in itertools.combinations(plan.segments, 2):
        assert not one.ipv4.overlaps(other.ipv4)
        assert not (one.ipv6 and other.ipv6 and one.ipv6.overlaps(other.ipv6))


@each_topology
def test_every_port_is_on_the_subnet_of_its_segment(plan):
    segments = {segment.name: segment for segment in plan.segments}

    for _, port in cables(plan):
        assert port.ipv4.network == segments[port.segment].ipv4
        assert port.ipv6 is None or port.ipv6.network == segments[port.segment].ipv6


@each_topology
def test_every_name_fits_an_interface(plan):
    names = [fabric_port(machine, port.interface) for machine, port in cables(plan)]

    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= INTERFACE_LENGTH_MAX


@each_topology
def test_the_picture_shows_every_machine_and_its_address(plan):
    lines = draw(plan).splitlines()

    for machine in [*plan.routers, *plan.members]:
        port = machine.port if machine in plan.members else machine.uplink
        assert any(f"{machine.name}  {port.ipv4.ip}" in line for line in lines)


def test_the_picture_of_a_nat_is_this():
    assert draw(nat(3)) == (
        "nat: members on subnets of their own; b is behind a router that masquerades\n"
        "\n"
        "transit  192.0.2.0/24  2001:db8::/64\n"
        "|\n"
        "+-- router-a  192.0.2.1  2001:db8::1\n"
        "|   |\n"
        "|   site-a  203.0.113.0/29  2001:db8:1::/64\n"
        "|   |\n"
        "|   +-- a  203.0.113.2  2001:db8:1::2\n"
        "|\n"
        "+-- router-b  192.0.2.2  (maps ei, filters apd, keeps ports)\n"
        "|   |\n"
        "|   site-b  192.168.2.0/24\n"
        "|   |\n"
        "|   +-- b  192.168.2.2\n"
        "|\n"
        "+-- router-c  192.0.2.3  2001:db8::3\n"
        "    |\n"
        "    site-c  203.0.113.8/29  2001:db8:3::/64\n"
        "    |\n"
        "    +-- c  203.0.113.10  2001:db8:3::2"
    )


def test_nobody_has_a_route_to_what_is_behind_nat():
    plan = nat(4)
    hidden = next(segment for segment in plan.segments if segment.name == "site-b")

    for router in plan.routers:
        assert str(hidden.ipv4) not in router_commands(router)


def test_members_are_named_like_columns_of_a_spreadsheet():
    assert [member_name(index) for index in (0, 1, 25, 26, 27, 51, 52)] == [
        *("a", "b", "z", "aa", "ab", "az", "ba")
    ]


@pytest.mark.parametrize("count", [0, -1, MEMBERS_MAX + 1])
def test_a_topology_has_neither_too_few_nor_too_many_members(count):
    with pytest.raises(UsageError, match=f"1 to {MEMBERS_MAX} members, not {count}"):
        nat(count)


def test_an_unknown_topology_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match="lan, internet, nat, nats"):
        topology("torus", 3)


def test_nats_has_two_members_of_each_kind_and_always_public_ones():
    plan = topology("nats:home,cgn")

    assert [member.name for member in plan.members] == [
        *("public1", "public2", "home1", "home2", "cgn1", "cgn2")
    ]
    assert plan.member("home1").port.segment == plan.member("home2").port.segment
    assert topology(plan.name, len(plan.members)) == plan
    assert topology("nats") == nats(tuple(KINDS.values()))


@pytest.mark.parametrize(
    ("name", "members", "reason"),
    [("nats:home,cone", None, "'cone'; there are public, ei-ei"), ("nats:home", 5, "4 members")],
)
def test_a_kind_or_a_number_that_nats_do_not_have_is_refused(name, members, reason):
    with pytest.raises(UsageError, match=reason):
        topology(name, members)


def test_the_carriers_network_is_nowhere_but_between_it_and_its_customers():
    plan = topology("nats:cgn")
    behind = [router.name for router in plan.routers if "100.64." in router_commands(router)]

    assert behind == ["c-cgn", "r-cgn1", "r-cgn2"]


def test_a_router_has_rules_only_where_it_does_more_than_route():
    plan = nats(kinds_named(["forward"]))
    rules = {router.name: router_rules(plan, router) for router in plan.routers}

    assert rules["r-public1"] == ""
    assert f"dnat to {plan.member('forward2').port.ipv4.ip}" in rules["r-forward2"]
