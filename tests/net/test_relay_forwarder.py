"""The relay's sockets: on loopback, members at 127.0.0.2 and 127.0.0.3, the relay at .1 and .4."""

import contextlib
import errno
import os
import select
import socket
import subprocess
import sys

import pytest
import trio

from meshd.net import forwarder as module
from meshd.net.datagram import BATCH_MAX
from meshd.net.forwarder import Forwarder, is_free, raise_descriptor_limit
from meshd.underlay import MAGIC, DatagramType, header
from net.relays import MARK, PORTS, PROMPT, end, machines, pair, pair_of, udp

A, B = "127.0.0.2", "127.0.0.3"
TO_A, TO_B = "127.0.0.1", "127.0.0.4"
CIPHERTEXT = b"\x04\0\0\0" + bytes(1396)
HELLO = header(DatagramType.RELAY_HELLO) + bytes(100)


class Relay:
    """A forwarder with two ports open, and what it was told in hellos."""

    def __init__(self, forwarder, hellos, ports):
        self.forwarder = forwarder
        self.hellos = hellos
        self.ports = ports

    def settle(self):
        """Have it handle all that has been sent: on loopback that is there when `send` returns."""
        self.forwarder.take_turn()
        while select.select([self.forwarder._ready], [], [], 0)[0]:
            self.forwarder.take_turn()

    def bind(self, a, b):
        flows = pair(a, end(TO_A, self.ports[0]), end(TO_B, self.ports[1]), b)
        assert not self.forwarder.set_flows(flows)
        return flows


def free_port():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        return probe.getsockname()[1]


@pytest.fixture
async def relay():
    hellos = []
    with Forwarder(lambda *hello: hellos.append(hello)) as forwarder:
        ports = []
        while len(ports) < 2:
            if forwarder.open(port := free_port()):
                ports.append(port)
        yield Relay(forwarder, hellos, ports)


@contextlib.contextmanager
def plain(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as member:
        member.bind((address, 0))
        member.setblocking(False)
        yield member


def name(member):
    return end(*member.getsockname()[:2])


def received(member):
    datagrams = []
    with contextlib.suppress(BlockingIOError):
        while True:
            payload, (host, port, *_) = member.recvfrom(70000)
            datagrams.append((payload, end(host, port)))
    return datagrams


async def test_each_side_hears_the_other_from_the_address_and_port_it_talks_to(relay):
    with plain(A) as a, plain(B) as b:
        relay.bind(name(a), name(b))
        for size in (0, 1, 1400, 9000):
            a.sendto(bytes(size), (TO_A, relay.ports[0]))
            b.sendto(bytes(size), (TO_B, relay.ports[1]))
        relay.settle()

        expected = [bytes(size) for size in (0, 1, 1400, 9000)]
        assert received(b) == [(each, end(TO_B, relay.ports[1])) for each in expected]
        assert received(a) == [(each, end(TO_A, relay.ports[0])) for each in expected]


async def test_two_ip_versions_are_joined(relay):
    with plain(A) as a, plain("::1") as b:
        flows = pair(name(a), end(TO_A, relay.ports[0]), end("::1", relay.ports[1]), name(b))
        assert not relay.forwarder.set_flows(flows)
        a.sendto(CIPHERTEXT, (TO_A, relay.ports[0]))
        b.sendto(CIPHERTEXT, ("::1", relay.ports[1]))
        relay.settle()

        assert received(b) == [(CIPHERTEXT, end("::1", relay.ports[1]))]
        assert received(a) == [(CIPHERTEXT, end(TO_A, relay.ports[0]))]


async def test_hellos_go_up_with_where_they_came_from_and_where_to(relay):
    with plain(A) as a, plain(B) as b, plain("::1") as sixth:
        a.sendto(HELLO, (TO_A, relay.ports[0]))
        sixth.sendto(HELLO, ("::1", relay.ports[1]))
        relay.settle()
        relay.bind(name(a), name(b))
        a.sendto(HELLO, (TO_A, relay.ports[0]))
        a.sendto(HELLO, (TO_B, relay.ports[0]))
        relay.settle()

        assert sorted(relay.hellos, key=str) == sorted(
            [
                (HELLO, name(a), relay.ports[0], end(TO_A, 1).address),
                (HELLO, name(sixth), relay.ports[1], end("::1", 1).address),
                (HELLO, name(a), relay.ports[0], end(TO_A, 1).address),
                (HELLO, name(a), relay.ports[0], end(TO_B, 1).address),
            ],
            key=str,
        )
        assert received(b) == []


@pytest.mark.parametrize("payload", [CIPHERTEXT, MAGIC + b"\x03", HELLO[:4], b""])
async def test_strangers_are_dropped_and_counted(relay, payload):
    with plain(A) as a, plain(B) as b, plain(A) as stranger:
        relay.bind(name(a), name(b))
        stranger.sendto(payload, (TO_A, relay.ports[0]))
        # The right one, at the other's port, and at another address of ours.
        a.sendto(payload, (TO_B, relay.ports[1]))
        a.sendto(payload, (TO_B, relay.ports[0]))
        relay.settle()

        assert received(b) == received(a) == []
        assert relay.forwarder.statistics().strangers == 3
        assert relay.forwarder.take_counts() == {}


async def test_a_longer_hello_than_there_are_is_no_hello(relay):
    with plain(A) as a, plain(B) as b:
        a.sendto(HELLO + bytes(1200), (TO_A, relay.ports[0]))
        relay.bind(name(a), name(b))
        a.sendto(HELLO + bytes(1200), (TO_A, relay.ports[0]))
        relay.settle()

        assert relay.hellos == []
        assert received(b) == []


async def test_what_came_before_a_lane_was_closed_to_strangers_is_not_forwarded(relay, monkeypatch):
    with plain(A) as a, plain(B) as b, plain(A) as stranger:
        connect = socket.socket.connect

        def while_it_is_open(self, address):
            stranger.sendto(CIPHERTEXT, (TO_A, relay.ports[0]))
            connect(self, address)

        monkeypatch.setattr(socket.socket, "connect", while_it_is_open)
        relay.bind(name(a), name(b))
        relay.settle()

        assert received(b) == []


async def test_a_binding_that_moves_is_followed_and_the_old_one_is_a_stranger(relay):
    with plain(A) as old, plain(A) as new, plain(B) as b:
        relay.bind(name(old), name(b))
        relay.bind(name(new), name(b))
        old.sendto(b"old", (TO_A, relay.ports[0]))
        new.sendto(b"new", (TO_A, relay.ports[0]))
        b.sendto(b"back", (TO_B, relay.ports[1]))
        relay.settle()

        assert [payload for payload, _ in received(b)] == [b"new"]
        assert received(old) == []
        assert [payload for payload, _ in received(new)] == [b"back"]


async def test_an_address_before_may_have_a_flow_of_its_own_and_none_back(relay):
    with plain(A) as old, plain(A) as new, plain(B) as b:
        before = relay.bind(name(old), name(b))
        lingering = frozenset(flow for flow in before if flow.source == name(old))
        now = relay.bind(name(new), name(b))
        assert not relay.forwarder.set_flows(now | lingering)
        old.sendto(b"old", (TO_A, relay.ports[0]))
        new.sendto(b"new", (TO_A, relay.ports[0]))
        b.sendto(b"back", (TO_B, relay.ports[1]))
        relay.settle()

        assert sorted(payload for payload, _ in received(b)) == [b"new", b"old"]
        assert [payload for payload, _ in received(new)] == [b"back"]
        assert received(old) == []


async def test_no_flows_forward_nothing(relay):
    with plain(A) as a, plain(B) as b:
        relay.bind(name(a), name(b))
        relay.forwarder.set_flows(frozenset())
        a.sendto(CIPHERTEXT, (TO_A, relay.ports[0]))
        relay.settle()

        assert received(b) == []
        assert relay.forwarder.statistics().strangers == 1


async def test_a_flow_whose_address_is_not_here_is_told_and_the_others_go_on(relay):
    with plain(A) as a, plain(B) as b:
        good = relay.bind(name(a), name(b))
        bad = pair(name(a), end("192.0.2.1", 4000), end("192.0.2.1", 4001), name(b))

        assert relay.forwarder.set_flows(good | bad) == bad
        a.sendto(CIPHERTEXT, (TO_A, relay.ports[0]))
        relay.settle()

        assert len(received(b)) == 1
        assert relay.forwarder.set_flows(good | bad) == bad  # tried again
        assert not relay.forwarder.set_flows(good)


async def test_a_member_that_is_gone_for_a_while_stops_nothing(relay):
    """Its host says so by ICMP, and the next call on the socket fails with that."""
    with plain(A) as a:
        with plain(B) as b:
            address = b.getsockname()
            relay.bind(name(a), name(b))
        for _ in range(3):
            a.sendto(b"lost", (TO_A, relay.ports[0]))
            relay.settle()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b:
            b.bind(address)
            b.setblocking(False)
            for number in range(3):
                a.sendto(bytes([number]), (TO_A, relay.ports[0]))
                relay.settle()

            assert [payload for payload, _ in received(b)] == [b"\0", b"\1", b"\2"]


async def test_traffic_is_counted_by_the_port_it_came_to(relay):
    with plain(A) as a, plain(B) as b:
        relay.bind(name(a), name(b))
        for size in (100, 200):
            a.sendto(bytes(size), (TO_A, relay.ports[0]))
        b.sendto(bytes(50), (TO_B, relay.ports[1]))
        relay.settle()

        counts = relay.forwarder.take_counts()
        assert {port: (c.datagrams, c.bytes) for port, c in counts.items()} == {
            relay.ports[0]: (2, 300),
            relay.ports[1]: (1, 50),
        }
        assert relay.forwarder.take_counts() == {}
        assert relay.forwarder.statistics().forwarded == 3


async def test_a_turn_takes_a_bounded_number_and_leaves_the_rest(relay):
    with plain(A) as a, plain(B) as b:
        relay.bind(name(a), name(b))
        for _ in range(BATCH_MAX + 5):
            a.sendto(b"x", (TO_A, relay.ports[0]))

        relay.forwarder.take_turn()
        first = len(received(b))
        relay.settle()

        assert first == BATCH_MAX
        assert len(received(b)) == 5


async def test_others_have_their_turn_while_there_is_always_something_to_forward(relay):
    with plain(A) as a, plain(B) as b:
        relay.bind(name(a), name(b))
        turns = 0
        with trio.fail_after(PROMPT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay.forwarder.run)
                while turns < 50:
                    for _ in range(BATCH_MAX):
                        a.sendto(CIPHERTEXT, (TO_A, relay.ports[0]))
                    await trio.lowlevel.checkpoint()
                    turns += 1
                    received(b)
                nursery.cancel_scope.cancel()


async def test_our_own_datagrams_leave_from_the_port_and_address_given(relay):
    with plain(A) as a, plain("::1") as sixth:
        relay.forwarder.send(b"pong", name(a), relay.ports[0], end(TO_B, 1).address)
        relay.forwarder.send(b"pong", name(sixth), relay.ports[1], end("::1", 1).address)
        assert not relay.forwarder.send(b"pong", name(a), 1, end(TO_B, 1).address)

        assert received(a) == [(b"pong", end(TO_B, relay.ports[0]))]
        assert received(sixth) == [(b"pong", end("::1", relay.ports[1]))]


async def test_a_port_that_is_shut_is_given_back(relay):
    port = relay.ports[0]
    assert not is_free(port)

    relay.forwarder.shut(port)

    assert is_free(port)
    assert port not in relay.forwarder.ports


@pytest.mark.parametrize("address", ["::1", "127.0.0.1", "0.0.0.0", "::"])
@pytest.mark.parametrize("shares", [False, True])
async def test_a_port_that_another_has_is_not_opened(relay, address, shares):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shares)
        other.bind((address, 0))
        port = other.getsockname()[1]

        assert not is_free(port)
        assert not relay.forwarder.open(port)

    assert is_free(port)


async def test_nobody_without_our_rights_gets_a_share_of_an_open_port(relay):
    """SO_REUSEPORT is for sockets of one user only, and SO_REUSEADDR for those that all have it."""
    program = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.setsockopt(socket.SOL_SOCKET, getattr(socket, sys.argv[1]), 1)\n"
        "s.bind(('127.0.0.1', int(sys.argv[2])))\n"
    )
    if os.geteuid() != 0:
        pytest.skip("takes root, to be somebody else")
    for option in ("SO_REUSEPORT", "SO_REUSEADDR"):
        done = await trio.run_process(
            ["/usr/bin/python3", "-c", program, option, str(relay.ports[0])],
            user=65534,
            cwd="/",
            capture_stderr=True,
            check=False,
        )
        assert os.strerror(errno.EADDRINUSE) in done.stderr.decode()


def test_the_limit_on_descriptors_is_raised_where_it_can_be():
    program = (
        "import resource; from meshd.net.forwarder import raise_descriptor_limit as limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (512, 4096))\n"
        "print(limit(1024), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["1024", str(1024 * 3 + 256)]


def test_where_it_cannot_be_raised_there_are_fewer_ports(monkeypatch):
    limits = [(1024, 1024)]

    def refuse(_, wanted):
        if wanted[1] > 1024:
            raise ValueError("not allowed to raise maximum limit")
        limits.append(wanted)

    monkeypatch.setattr(module.resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(module.resource, "setrlimit", refuse)

    assert raise_descriptor_limit(1024) == (1024 - 256) // 3
    assert limits[-1] == (1024, 1024)


@pytest.mark.netns
@pytest.mark.parametrize("versions", [(4, 4), (6, 6), (4, 6)], ids=str)
async def test_it_leaves_by_the_wire_from_the_right_address_with_our_mark(versions):
    with machines() as (a, relay, b):
        relay.run("nft add table inet host")
        relay.run("nft add chain inet host out '{ type filter hook output priority 0; }'")
        relay.run(f"nft add rule inet host out meta l4proto udp meta mark != {MARK} drop")
        flows = pair_of(*versions)
        (there,) = (flow for flow in flows if flow.arrives_at.port == PORTS.first)
        with (
            relay.call(Forwarder, lambda *_: None, fwmark=MARK) as forwarder,
            udp(a, str(there.source.address)) as at_a,
            udp(b, str(there.target.address)) as at_b,
        ):
            for port in (there.arrives_at.port, there.leaves_from.port):
                assert relay.call(forwarder.open, port)
            assert not relay.call(forwarder.set_flows, flows)
            at_a.sendto(CIPHERTEXT, (str(there.arrives_at.address), there.arrives_at.port))
            with trio.fail_after(PROMPT):
                await trio.lowlevel.wait_readable(forwarder._ready.fileno())
            forwarder.take_turn()
            _, (host, port, *_) = at_b.recvfrom(2000)

    assert end(host, port) == there.leaves_from
