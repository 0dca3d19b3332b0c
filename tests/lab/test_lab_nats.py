"""Each kind of NAT is what it claims to be: measured from both sides with plain UDP sockets.

The terms are those of RFC 4787 (mapping 4.1, ports 4.2, filtering 5, hairpinning 6), the way of
measuring that of RFC 5780: the same socket inside sends to two addresses and two ports outside.
"""

import contextlib
import errno
import os
import select
import socket

import pytest

from lab.sockets import PATIENCE, SILENCE, Machine, inside, receive, silent
from lablib import Lab, topology
from lablib.nats import FORWARDED_PORT, KINDS, Dependence, Firewall, Nat
from lablib.sites import member_of

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces takes root"),
]

PORTS_OUTSIDE = (9_001, 9_002)

NATS = [kind for kind in KINDS.values() if isinstance(kind.router, Nat)]
TRANSLATING = [kind for kind in NATS if kind.router.passes_udp]
each_nat = pytest.mark.parametrize("kind", TRANSLATING, ids=lambda kind: kind.name)


@pytest.fixture(scope="module")
def lab():
    with Lab(topology("nats")) as running:
        yield running


@pytest.fixture
def machine(lab):
    """Open sockets on machines of the lab: `machine("home1").udp(port)`."""
    with contextlib.ExitStack() as stack:
        yield lambda name: Machine(lab, name, stack)


def seen(opened, target):
    """Return where a socket outside sees a datagram of ours come from."""
    opened.sendto(b"who am I", target.getsockname())
    data, source = receive(target)
    assert data == b"who am I"
    return source


class Outside:
    """Sockets on two public machines: two ports on one, one on the other."""

    def __init__(self, machine):
        one, other = machine("public1"), machine("public2")
        self.here = one.udp(PORTS_OUTSIDE[0])
        self.other_port = one.udp(PORTS_OUTSIDE[1])
        self.other_address = other.udp(PORTS_OUTSIDE[0])


@pytest.fixture
def outside(machine):
    return Outside(machine)


def claimed(kind):
    """The mapping and the filtering of all the routers of a kind together."""
    routers = [router for router in (kind.router, kind.carrier) if router is not None]
    return max(r.mapping for r in routers), max(r.filtering for r in routers)


@each_nat
def test_its_mapping_is_what_it_claims(kind, machine, outside):
    opened = machine(member_of(kind, 1)).udp(50_000)

    first = seen(opened, outside.here)
    same_address = seen(opened, outside.other_port)
    elsewhere = seen(opened, outside.other_address)

    if same_address == elsewhere == first:
        measured = Dependence.NOTHING
    elif same_address == first:
        measured = Dependence.ADDRESS
    else:
        measured = Dependence.ADDRESS_AND_PORT
        assert len({first, same_address, elsewhere}) == 3
    assert measured == claimed(kind)[0]
    # And it stays: the next datagram to each looks the same.
    assert [seen(opened, each) for each in vars(outside).values()] == [
        *(first, same_address, elsewhere)
    ]


@each_nat
def test_it_keeps_ports_where_it_claims_to(kind, machine, outside):
    kept = [
        seen(machine(member_of(kind, number)).udp(port), outside.here)[1] == port
        for number in (1, 2)
        for port in (50_001, 50_002, 50_003)
    ]

    routers = [router for router in (kind.router, kind.carrier) if router is not None]
    assert all(kept) == all(router.preserves_ports for router in routers)
    assert any(kept) == all(kept)  # by chance in one of ten thousand runs


@each_nat
def test_its_filtering_is_what_it_claims(kind, machine, outside):
    opened = machine(member_of(kind, 1)).udp()
    mapped = seen(opened, outside.here)

    outside.other_address.sendto(b"other address", mapped)
    outside.other_port.sendto(b"other port", mapped)
    outside.here.sendto(b"as expected", mapped)
    heard = [receive(opened)[0]]
    while not silent(opened):
        heard.append(receive(opened)[0])

    passed = {
        Dependence.NOTHING: [b"other address", b"other port", b"as expected"],
        Dependence.ADDRESS: [b"other port", b"as expected"],
        Dependence.ADDRESS_AND_PORT: [b"as expected"],
    }
    assert sorted(heard) == sorted(passed[claimed(kind)[1]])


@each_nat
def test_what_was_let_in_is_answered_from_where_it_was_sent_to(kind, machine, outside):
    opened = machine(member_of(kind, 1)).udp()
    mapped = seen(opened, outside.here)
    allowed = [outside.here, outside.other_port, outside.other_address]
    for target in allowed[: 3 - claimed(kind)[1]]:
        target.sendto(b"hello", mapped)
        _, source = receive(opened)
        assert source == target.getsockname()
        assert seen(opened, target) == mapped


@each_nat
def test_nobody_gets_in_where_nothing_was_sent_from(kind, machine, outside):
    address, _ = seen(machine(member_of(kind, 1)).udp(), outside.here)
    opened = machine(member_of(kind, 1)).udp(50_100)

    outside.here.sendto(b"hello", (address, 50_100))

    assert silent(opened)


@each_nat
def test_a_forwarded_port_is_open_to_all_and_no_other_kind_has_one(kind, machine, outside):
    opened = machine(member_of(kind, 2)).udp(FORWARDED_PORT)
    address, _ = seen(machine(member_of(kind, 2)).udp(50_200), outside.here)

    outside.other_address.sendto(b"unasked", (address, FORWARDED_PORT))

    if kind.router.forwards_port:
        assert receive(opened) == (b"unasked", outside.other_address.getsockname())
        assert seen(opened, outside.here) == (address, FORWARDED_PORT)
    else:
        assert silent(opened)


@each_nat
def test_a_stranger_poisons_the_mapping_only_where_strangers_are_answered(kind, machine, outside):
    opened = machine(member_of(kind, 1)).udp(50_300)
    mapped = seen(opened, outside.here)
    stranger = machine("public2").udp(PORTS_OUTSIDE[1])

    stranger.sendto(b"first", mapped)
    if claimed(kind)[1] is Dependence.NOTHING:
        assert receive(opened)[0] == b"first"
    else:
        assert silent(opened)

    poisoned = seen(opened, stranger) != mapped
    dependent = claimed(kind)[0] is not Dependence.NOTHING
    assert poisoned == (dependent or kind.router.answers_strangers)


@each_nat
def test_a_router_answers_strangers_only_where_it_claims_to(kind, machine, outside):
    address, _ = seen(machine(member_of(kind, 1)).udp(), outside.here)
    stranger = machine("public2").udp()
    stranger.connect((address, 60_000))

    stranger.send(b"anybody there?")

    readable = bool(select.select([stranger], [], [], SILENCE)[0])
    assert readable == kind.router.answers_strangers
    if readable:
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the number says it
            stranger.recv(1)
        assert refused.value.errno == errno.ECONNREFUSED


SIDE_BY_SIDE = [kind for kind in TRANSLATING if kind.shared or kind.carrier is not None]


@pytest.mark.parametrize("kind", SIDE_BY_SIDE, ids=lambda kind: kind.name)
def test_two_behind_one_nat_meet_outside_only_where_it_hairpins(kind, machine, outside):
    one, other = (machine(member_of(kind, number)).udp(50_400) for number in (1, 2))
    first, second = seen(one, outside.here), seen(other, outside.here)
    assert first[0] == second[0]
    assert first != second

    # Both at once and twice, as their own NATs have to have seen each side speak first.
    for _ in range(2):
        one.sendto(b"from one", second)
        other.sendto(b"from other", first)

    if (kind.carrier or kind.router).hairpins:
        # Seen from where the others see it: RFC 4787 REQ-9, external address and port.
        assert receive(one) == (b"from other", first if first == second else second)
        assert receive(other) == (b"from one", first)
    else:
        assert silent(one)
        assert silent(other)


def test_two_at_home_share_a_wire(machine):
    one, other = (machine(f"home{number}").udp() for number in (1, 2))

    assert seen(one, other) == one.getsockname()


def test_where_udp_does_not_pass_tcp_does(machine, outside):
    opened = machine("no-udp1").udp()
    opened.sendto(b"hello", outside.here.getsockname())
    assert silent(outside.here)

    with contextlib.ExitStack() as stack:
        public, blocked = machine("public1"), machine("no-udp1")
        with inside(public.namespace):
            listener = stack.enter_context(socket.create_server((str(public.node.ipv4.ip), 443)))
        with inside(blocked.namespace):
            stream = stack.enter_context(socket.socket())
        stream.settimeout(PATIENCE)
        stream.connect(listener.getsockname())


def test_a_public_member_is_reached_unasked_where_it_is(machine, outside):
    opened = machine("public2").udp()

    outside.here.sendto(b"unasked", opened.getsockname())

    assert receive(opened) == (b"unasked", outside.here.getsockname())
    assert seen(opened, outside.here) == opened.getsockname()


def test_ipv6_passes_a_firewall_as_it_is_and_only_answers_come_in(machine):
    assert isinstance(KINDS["v6-only"].router, Firewall)
    opened = machine("v6-only1").udp(version=6)
    asked, stranger = machine("public1").udp(version=6), machine("public1").udp(version=6)
    neighbour = machine("v6-only2").udp(version=6)

    assert seen(opened, asked) == opened.getsockname()[:2]
    stranger.sendto(b"unasked", opened.getsockname()[:2])
    neighbour.sendto(b"unasked", opened.getsockname()[:2])
    asked.sendto(b"asked", opened.getsockname()[:2])

    assert receive(opened) == (b"asked", asked.getsockname()[:2])
    assert silent(opened)
    # The neighbour has spoken first, so its own firewall lets the answer in.
    assert seen(opened, neighbour) == opened.getsockname()[:2]


def test_nothing_of_ipv4_gets_out_where_there_is_ipv6_only(lab):
    assert lab["v6-only1"].ping(str(lab["public1"].ipv4.ip), timeout=SILENCE) == {}
    assert lab["v6-only1"].ping(str(lab["public1"].ipv6.ip), timeout=PATIENCE)
