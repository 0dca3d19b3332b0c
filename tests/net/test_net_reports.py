"""The gossip socket's error queue: who says that a member's daemon is gone, and who may not."""

import contextlib
import socket
import struct
from ipaddress import IPv6Address

import pytest
import trio
import trio.testing

from meshd.net.overlay import GOSSIP_PORT, Overlay
from meshd.wg.types import Endpoint
from net.namespaces import join, namespaces
from net.tunnels import PORT, tunnel

pytestmark = pytest.mark.netns

HERE, THERE, THIRD = (IPv6Address(f"fd12:3456:789a::{n}") for n in (1, 9, 7))
LAN_HERE, LAN_THERE = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::9")
UDP, ICMPV6 = 17, 58
UNREACHABLE, TOO_BIG, EXCEEDED, PARAMETER_PROBLEM = 1, 2, 3, 4
NO_PORT = 4


@pytest.fixture
def pair():
    """Two hosts on two wires; mesh0 is in the place of the tunnel, eth0 is the LAN."""
    with namespaces(2) as (here, there):
        join(here, "mesh0", there, "mesh0")
        join(here, "eth0", there, "eth0")
        for namespace, own, lan in ((here, HERE, LAN_HERE), (there, THERE, LAN_THERE)):
            namespace.run(
                f"ip addr add {own}/128 dev mesh0 nodad; ip addr add {lan}/64 dev eth0 nodad;"
                "ip route add fd12:3456:789a::/48 dev mesh0"
            )
        yield here, there


@pytest.fixture
def tunnels():
    """Two hosts with a WireGuard tunnel between them, and no daemon on the second."""
    with namespaces(2) as (here, there), contextlib.ExitStack() as stack:
        join(here, "eth0", there, "eth0")
        sides = [(here, HERE, "192.0.2.1"), (there, THERE, "192.0.2.9")]
        made = [stack.enter_context(tunnel(side[0], n)) for n, side in enumerate(sides, 1)]
        for (namespace, own, lan), mine, (_, other, far), theirs in zip(
            sides, made, reversed(sides), reversed(made), strict=True
        ):
            namespace.run(
                f"ip addr add {lan}/24 dev eth0; ip addr add {own}/128 dev {mine.interface} nodad;"
                f"ip route add fd12:3456:789a::/48 dev {mine.interface};"
                f"wg set {mine.interface} peer {theirs.public_key}"
                f" endpoint {far}:{PORT} allowed-ips {other}/128"
            )
        yield here, made[0].interface


def at(address):
    return Endpoint(address, GOSSIP_PORT)


async def unreachable(gossip, *, within=5.0):
    """Return the next that are told."""
    with trio.fail_after(within):
        while True:
            await gossip.receive_batch()
            if told := gossip.take_unreachable():
                return told


async def heard(gossip):
    """Return the next payloads that are received."""
    with trio.fail_after(5):
        while not (batch := await gossip.receive_batch()):
            pass
    return [datagram.payload for datagram in batch]


def report(namespace, interface, type_, code, source, target, about, *, to=HERE):
    """Send an ICMPv6 error from a namespace: `about` a datagram from `to`'s gossip to there."""
    udp = struct.pack("!HHHH", GOSSIP_PORT, GOSSIP_PORT, 8, 0)
    quoted = struct.pack("!IHBB", 6 << 28, len(udp), UDP, 64) + to.packed + about.packed + udp
    body = struct.pack("!BBHI", type_, code, 0, 1280) + quoted

    def inside():
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, ICMPV6) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            raw.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
            raw.bind((str(source), 0))
            raw.sendto(body, (str(target), 0))

    namespace.call(inside)


async def test_a_member_without_a_daemon_is_told_at_once(pair):
    here, _ = pair
    with here.call(Overlay, HERE, "mesh0") as gossip:
        assert gossip.send(b"ping", at(THERE))

        assert await unreachable(gossip, within=1.0) == [THERE]

        assert gossip.take_unreachable() == []
        assert gossip.statistics().unreachable == 1
        assert not gossip.statistics().other_reports


async def test_it_is_told_on_loopback_too():
    with namespaces(1) as (here,):
        here.run(f"ip addr add {HERE}/128 dev lo nodad; ip addr add {THERE}/128 dev lo nodad")
        with here.call(Overlay, HERE, "lo") as gossip:
            gossip.send(b"ping", at(THERE))

            assert await unreachable(gossip) == [THERE]


async def test_it_is_told_through_wireguard(tunnels):
    here, interface = tunnels
    with here.call(Overlay, HERE, interface) as gossip:
        gossip.send(b"ping", at(THERE))

        assert await unreachable(gossip) == [THERE]


async def test_one_that_has_a_daemon_is_never_told(pair):
    here, there = pair
    with (
        here.call(Overlay, HERE, "mesh0") as gossip,
        there.call(Overlay, THERE, "mesh0") as other,
    ):
        gossip.send(b"ping", at(THERE))
        assert await heard(other) == [b"ping"]
        other.send(b"ack", at(HERE))
        assert await heard(gossip) == [b"ack"]

        assert gossip.take_unreachable() == []


async def test_no_datagram_is_lost_for_the_error_of_another(pair):
    here, there = pair
    with (
        here.call(Overlay, HERE, "mesh0") as gossip,
        there.call(Overlay, THERE, "mesh0") as other,
    ):
        for number in range(20):
            report(there, "mesh0", UNREACHABLE, NO_PORT, THIRD, HERE, about=THIRD)
            await wait_for_error(gossip)

            assert gossip.send(bytes([number]), at(THERE))
            assert await heard(other) == [bytes([number])]

        assert not gossip.statistics().send_errors


async def wait_for_error(gossip):
    """Wait until an error is in the socket, without taking it."""
    with trio.fail_after(5):
        await trio.lowlevel.wait_readable(gossip._socket)


async def test_nobody_speaks_for_another(pair):
    here, there = pair
    with here.call(Overlay, HERE, "mesh0") as gossip:
        report(there, "mesh0", UNREACHABLE, NO_PORT, THERE, HERE, about=THIRD)
        report(there, "mesh0", UNREACHABLE, NO_PORT, THIRD, HERE, about=THIRD)

        assert await unreachable(gossip) == [THIRD]

        assert gossip.statistics().unreachable == 1
        assert gossip.statistics().other_reports == {"ECONNREFUSED": 1}


async def test_what_did_not_come_through_the_tunnel_tells_nothing(pair):
    here, there = pair
    with here.call(Overlay, HERE, "mesh0") as gossip:
        report(there, "eth0", UNREACHABLE, NO_PORT, THERE, LAN_HERE, about=THERE)
        report(there, "mesh0", UNREACHABLE, NO_PORT, THIRD, HERE, about=THIRD)

        assert await unreachable(gossip) == [THIRD]

        assert not gossip.statistics().other_reports


@pytest.mark.parametrize(
    ("type_", "code", "name"),
    [
        (UNREACHABLE, 0, "ENETUNREACH"),
        (UNREACHABLE, 1, "EACCES"),
        (UNREACHABLE, 3, "EHOSTUNREACH"),
        (UNREACHABLE, 5, "EACCES"),
        (UNREACHABLE, 200, "EPROTO"),
        (TOO_BIG, 0, "EMSGSIZE"),
        (EXCEEDED, 0, "EHOSTUNREACH"),
        (PARAMETER_PROBLEM, 1, "EPROTO"),
        (PARAMETER_PROBLEM, 77, "EPROTO"),
    ],
)
async def test_any_other_error_is_only_counted(pair, type_, code, name):
    here, there = pair
    with (
        here.call(Overlay, HERE, "mesh0") as gossip,
        there.call(Overlay, THERE, "mesh0") as other,
    ):
        report(there, "mesh0", type_, code, THERE, HERE, about=THERE)
        await wait_for_error(gossip)
        assert gossip.send(b"ping", at(THERE))
        assert await heard(other) == [b"ping"]
        await gossip.receive_batch()

        assert gossip.take_unreachable() == []
        assert set(gossip.statistics().other_reports) == {name}


async def test_an_error_wakes_once_and_is_gone(pair):
    here, there = pair
    with here.call(Overlay, HERE, "mesh0") as gossip:
        for number in range(200):  # more than are taken in one go
            report(there, "mesh0", UNREACHABLE, number % 6, THERE, HERE, about=THERE)
        wakes = 0
        with trio.move_on_after(0.3):
            while True:
                await gossip.receive_batch()
                wakes += 1

    assert 1 <= wakes <= 200


async def test_a_datagram_behind_an_error_is_received(pair):
    here, there = pair
    with (
        here.call(Overlay, HERE, "mesh0") as gossip,
        there.call(Overlay, THIRD, "mesh0") as other,
    ):
        report(there, "mesh0", UNREACHABLE, NO_PORT, THERE, HERE, about=THERE)
        await wait_for_error(gossip)
        other.send(b"news", at(HERE))

        assert await heard(gossip) == [b"news"]
        assert gossip.take_unreachable() == [THERE]
