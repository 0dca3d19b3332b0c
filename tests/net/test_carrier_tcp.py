"""Datagrams over TCP, with real sockets: carried to the relay's own ports, and to nothing else."""

import contextlib
import functools
import inspect
import random
import socket
from ipaddress import IPv4Address

import pytest
import trio

from meshd.carrier.frames import OWN_PORT, Frame, encode_frame
from meshd.carrier.resort import Door
from meshd.errors import StartError
from meshd.net import carrier, carrier_host
from meshd.net.carrier import OwnPort
from meshd.net.carrier_host import CLIENT_NETWORK, CarrierHost
from meshd.net.carrier_member import CarrierMember
from meshd.net.carrier_tls import host_context
from meshd.wg.types import Endpoint
from net.namespaces import namespaces

pytestmark = pytest.mark.netns

TCP, TLS = 51820, 443
WIREGUARD, CONTROL, RELAY, OTHER = 51820, 51821, 51900, 53
MEMBER_WIREGUARD, MEMBER_CONTROL = 41820, 41821
HERE = IPv4Address("127.0.0.1")


def in_namespace(test):
    """Run an async test inside a namespace of its own, where all ports are free."""

    @functools.wraps(test)
    def run(**fixtures):
        with namespaces(1) as (namespace,):
            namespace.call(trio.run, functools.partial(test, **fixtures))

    # The wrapper is no coroutine function, so pytest-trio leaves it alone.
    run.__signature__ = inspect.signature(test)
    del run.__wrapped__
    return run


class Relay:
    """A relay host: sockets in the place of WireGuard's, meshd's, a relay port and a resolver."""

    def __init__(self, opened):
        self.relay_ports = {RELAY}
        self.came, self.went = [], []
        self.sockets = {
            port: opened.enter_context(udp(port)) for port in (WIREGUARD, CONTROL, RELAY, OTHER)
        }
        self.host = opened.enter_context(
            CarrierHost(
                {TCP: None, TLS: host_context()},
                OwnPort(WIREGUARD, CONTROL),
            )
        )

    async def serve(self):
        await self.host.serve(
            relay_ports=lambda: self.relay_ports, came=self.came.append, went=self.went.append
        )

    async def heard(self, port):
        """What comes next at a port, and from where."""
        with trio.fail_after(5):
            return await self.sockets[port].recvfrom(4096)


def udp(port):
    plain = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    plain._sock.bind(("0.0.0.0", port))
    return plain


@contextlib.asynccontextmanager
async def relaying():
    with contextlib.ExitStack() as opened:
        relay = Relay(opened)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.serve)
            yield relay
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def member_of(*doors, ports=(OWN_PORT,)):
    """A member over TCP, with sockets in the place of its WireGuard's and meshd's."""
    changed = trio.Event()
    member = CarrierMember(
        doors or (door(),),
        OwnPort(MEMBER_WIREGUARD, MEMBER_CONTROL),
        address=HERE,
        rng=random.Random(1),
        changed=lambda: changed.set(),
    )
    with member, udp(MEMBER_WIREGUARD) as wireguard, udp(MEMBER_CONTROL) as control:
        member.set_ports(ports)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(member.run)
            await until(lambda: member.up)
            yield member, wireguard, control
            nursery.cancel_scope.cancel()


def door(port=TCP, *, tls=False, address=HERE):
    return Door(Endpoint(address, port), tls)


def at(endpoint):
    return str(endpoint.address), endpoint.port


async def until(condition, seconds=10):
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - of the world, which has no events
            await trio.sleep(0.01)


async def received(plain):
    with trio.fail_after(5):
        return await plain.recvfrom(4096)


async def connected(port=TCP, source="127.0.0.1"):
    outer = trio.socket.socket()
    await outer.bind((source, 0))
    await outer.connect(("127.0.0.1", port))
    return outer


async def ended(outer):
    """Wait until the other side has ended a connection, and return what came before."""
    data = b""
    with trio.fail_after(20), contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while more := await outer.recv(4096):
            data += more
    return data


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@in_namespace
async def test_datagrams_go_both_ways_over_tcp(tls):
    async with (
        relaying() as relay,
        member_of(door(TLS if tls else TCP, tls=tls)) as (
            member,
            wireguard,
            control,
        ),
    ):
        way = at(member.endpoints[OWN_PORT])
        await wireguard.sendto(b"\4\0\0\0data", way)
        await control.sendto(b"mesh\3probe", way)

        data, source = await relay.heard(WIREGUARD)
        probe, same = await relay.heard(CONTROL)
        assert (data, probe, source) == (b"\4\0\0\0data", b"mesh\3probe", same)
        await relay.sockets[WIREGUARD].sendto(b"\4\0\0\0back", source)
        await relay.sockets[CONTROL].sendto(b"mesh\3pong", source)
        assert await received(wireguard) == (b"\4\0\0\0back", way)
        assert await received(control) == (b"mesh\3pong", way)


@in_namespace
async def test_each_relay_port_has_an_endpoint_of_its_own():
    async with (
        relaying() as relay,
        member_of(ports=(OWN_PORT, RELAY)) as (member, wireguard, _),
    ):
        await wireguard.sendto(b"\4to b", at(member.endpoints[RELAY]))
        data, source = await relay.heard(RELAY)
        await wireguard.sendto(b"\4to r", at(member.endpoints[OWN_PORT]))
        assert (await relay.heard(WIREGUARD))[1] == source, "one address, as behind a good NAT"

        await relay.sockets[RELAY].sendto(b"\4from b", source)

        assert data == b"\4to b"
        assert await received(wireguard) == (b"\4from b", at(member.endpoints[RELAY]))


@in_namespace
async def test_a_port_may_come_and_go_while_connected():
    async with relaying() as relay, member_of() as (member, wireguard, _):
        member.set_ports((OWN_PORT, RELAY))
        await wireguard.sendto(b"\4one", at(member.endpoints[RELAY]))
        _, source = await relay.heard(RELAY)

        member.set_ports((OWN_PORT,))
        await relay.sockets[RELAY].sendto(b"\4late", source)

        await until(lambda: member.dropped["from a port that was not asked"] == 1)
        await wireguard.sendto(b"\4two", at(member.endpoints[OWN_PORT]))
        assert (await relay.heard(WIREGUARD))[0] == b"\4two"


@in_namespace
async def test_no_port_but_the_relays_is_ever_reached():
    async with relaying() as relay:
        outer = await connected()
        with outer:
            for port in (OTHER, TCP + 7, RELAY + 1, 1, 65535):
                await outer.send(encode_frame(Frame(port, b"x")))
            await outer.send(encode_frame(Frame(OWN_PORT, b"\1")))
            await relay.heard(WIREGUARD)

            assert relay.host.statistics().dropped == {"for a port that is not the relay's": 5}
            with trio.move_on_after(0.1) as waited:
                await relay.sockets[OTHER].recv(10)
            assert waited.cancelled_caught


@in_namespace
async def test_a_relay_port_that_is_not_allotted_any_more_is_not_reached():
    async with relaying() as relay:
        outer = await connected()
        with outer:
            await outer.send(encode_frame(Frame(RELAY, b"\4one")))
            _, source = await relay.heard(RELAY)
            relay.relay_ports.clear()
            await outer.send(encode_frame(Frame(RELAY, b"\4two")))
            await relay.sockets[RELAY].sendto(b"\4back", source)

            await until(lambda: len(relay.host.statistics().dropped) == 2)
            assert set(relay.host.statistics().dropped) == {
                "for a port that is not the relay's",
                "from a port that is not the relay's",
            }


@in_namespace
async def test_nobody_else_on_either_host_is_heard():
    async with relaying() as relay, member_of() as (member, wireguard, _):
        way = at(member.endpoints[OWN_PORT])
        await wireguard.sendto(b"\4hello", way)
        _, source = await relay.heard(WIREGUARD)
        with udp(0) as stranger:
            await stranger.sendto(b"\4stranger", way)
            await stranger.sendto(b"\4stranger", source)
            await until(lambda: member.dropped["not to be carried"] == 1)
            await until(lambda: relay.host.statistics().dropped)


@in_namespace
async def test_clients_are_told_apart_by_address_and_their_connections_by_port():
    async with relaying() as relay:
        with contextlib.ExitStack() as opened:
            seen = []
            for source in ("127.0.0.1", "127.0.0.1", "127.0.0.2"):
                outer = opened.enter_context(await connected(source=source))
                await outer.send(encode_frame(Frame(OWN_PORT, b"\1")))
                seen.append((await relay.heard(WIREGUARD))[1])

            assert seen[0][0] == seen[1][0] != seen[2][0]
            assert seen[0][1] != seen[1][1]
            assert [at(endpoint) for endpoint in relay.came] == seen
            assert all(IPv4Address(host) > CLIENT_NETWORK for host, _ in seen)
        await until(lambda: len(relay.went) == 3)
        assert set(relay.went) == set(relay.came)


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0", b"\0\0\0\0"])
@in_namespace
async def test_what_is_no_frame_ends_the_connection_unanswered(junk):
    async with relaying() as relay:
        outer = await connected()
        with outer:
            await outer.send(junk)

            assert await ended(outer) == b""
        await until(lambda: relay.host.statistics().ended == {"frame of an impossible length": 1})


@in_namespace
async def test_what_is_no_tls_ends_the_connection():
    async with relaying() as relay:
        outer = await connected(TLS)
        with outer:
            await outer.send(encode_frame(Frame(OWN_PORT, b"\1")) * 100)

            await ended(outer)
        await until(lambda: relay.host.statistics().ended == {"no TLS": 1})


@pytest.mark.parametrize("port", [TCP, TLS])
@in_namespace
async def test_one_that_says_nothing_is_cut_off(monkeypatch, port):
    monkeypatch.setattr(carrier_host, "UNANSWERED_TIMEOUT", 0.5)
    monkeypatch.setattr(carrier_host, "WATCH_INTERVAL", 0.1)
    async with relaying() as relay:
        outer = await connected(port)
        with outer:
            await outer.send(b"\0")

            assert await ended(outer) == b""
        await until(lambda: relay.host.statistics().ended == {"was not answered": 1})


@in_namespace
async def test_tls_that_does_not_come_about_is_cut_off(monkeypatch):
    monkeypatch.setattr(carrier_host, "HANDSHAKE_TIMEOUT", 0.2)
    async with relaying() as relay:
        outer = await connected(TLS)
        with outer:
            await outer.send(b"\x16\x03\x01\x02\0")

            assert await ended(outer) == b""
        await until(lambda: relay.host.statistics().ended == {"too slow": 1})


@in_namespace
async def test_one_that_was_answered_may_be_idle_for_a_while_only(monkeypatch):
    monkeypatch.setattr(carrier_host, "UNANSWERED_TIMEOUT", 0.1)
    monkeypatch.setattr(carrier_host, "WATCH_INTERVAL", 0.1)
    async with relaying() as relay:
        outer = await connected()
        with outer:
            await outer.send(encode_frame(Frame(OWN_PORT, b"\1")))
            _, source = await relay.heard(WIREGUARD)
            await relay.sockets[WIREGUARD].sendto(b"\2", source)
            await outer.recv(100)
            await trio.sleep(0.5)
            assert relay.host.statistics().answered == 1

            monkeypatch.setattr(carrier_host, "IDLE_TIMEOUT", 0.1)
            await ended(outer)
        await until(lambda: relay.host.statistics().ended == {"idle": 1})


@in_namespace
async def test_a_stranger_gets_few_datagrams_in_until_it_is_answered():
    async with relaying() as relay:
        outer = await connected()
        with outer:
            few = carrier_host.UNANSWERED_FRAMES_MAX
            flood = encode_frame(Frame(OWN_PORT, b"\1" + bytes(100))) * 100_000
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sent, outer, flood)
                for _ in range(few):
                    _, source = await relay.heard(WIREGUARD)
                await trio.sleep(0.2)
                assert relay.host.statistics().frames_in == few

                await relay.sockets[WIREGUARD].sendto(b"\2", source)
                await until(lambda: relay.host.statistics().frames_in > 1000)
                nursery.cancel_scope.cancel()


async def sent(outer, data):
    data = memoryview(data)
    with contextlib.suppress(OSError):
        while data:
            data = data[await outer.send(data) :]


@in_namespace
async def test_one_client_has_a_few_connections_only():
    async with relaying() as relay:
        with contextlib.ExitStack() as opened:
            for _ in range(carrier_host.PER_CLIENT_MAX):
                opened.enter_context(await connected())
            outer = opened.enter_context(await connected())

            assert await ended(outer) == b""

            assert relay.host.statistics().ended == {"too many of one client": 1}
            other = opened.enter_context(await connected(source="127.0.0.9"))
            await other.send(encode_frame(Frame(OWN_PORT, b"\1")))
            await relay.heard(WIREGUARD)


@pytest.mark.slow
@in_namespace
async def test_two_thousand_strangers_keep_no_member_out(monkeypatch):
    monkeypatch.setattr(carrier_host, "ACCEPTS_PER_SECOND_MAX", 5000)
    async with (
        relaying() as relay,
        member_of() as (member, wireguard, _),
        trio.open_nursery() as meanwhile,
    ):
        await wireguard.sendto(b"\1", at(member.endpoints[OWN_PORT]))
        _, source = await relay.heard(WIREGUARD)
        await relay.sockets[WIREGUARD].sendto(b"\2", source)
        await received(wireguard)
        heard = set()
        with contextlib.ExitStack() as opened:
            meanwhile.start_soon(collect, relay.sockets[WIREGUARD], heard)
            for number in range(2000):
                client = f"127.1.{number // 250}.{number % 250 + 1}"
                outer = opened.enter_context(await connected(source=client))
                await outer.send(encode_frame(Frame(OWN_PORT, b"\1")))
            await until(lambda: relay.host.statistics().accepted >= 2001)
            statistics = relay.host.statistics()
            assert statistics.connections <= carrier_host.UNANSWERED_MAX + 1
            assert statistics.answered == 1

            newcomer = opened.enter_context(await connected(source="127.2.0.1"))
            await newcomer.send(encode_frame(Frame(OWN_PORT, b"newcomer")))
            await until(lambda: b"newcomer" in heard)
            await wireguard.sendto(b"member", at(member.endpoints[OWN_PORT]))
            await until(lambda: b"member" in heard)
            assert len(relay.host._addresses._in_use) <= carrier_host.UNANSWERED_MAX + 1
        meanwhile.cancel_scope.cancel()


async def collect(plain, heard):
    while True:
        heard.add(await plain.recv(4096))


@in_namespace
async def test_a_client_that_does_not_read_costs_bounded_memory_and_no_other():
    async with relaying() as relay:
        outer = await connected()
        with outer:
            outer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await outer.send(encode_frame(Frame(OWN_PORT, b"\1")))
            _, source = await relay.heard(WIREGUARD)
            for _ in range(20_000):  # 28 MB
                await relay.sockets[WIREGUARD].sendto(bytes(1400), source)
            carried = relay.host.statistics().frames_out * 1400
            bounded = 4 * carrier.TCP_BUFFER_BYTES + 2 * carrier.UDP_BUFFER_BYTES
            assert carried < bounded

            async with member_of() as (member, wireguard, _):
                await wireguard.sendto(b"\1", at(member.endpoints[OWN_PORT]))
                assert (await relay.heard(WIREGUARD))[0] == b"\1"


@in_namespace
async def test_the_member_is_back_after_the_relay_and_its_endpoints_are_the_same():
    over = trio.Event()

    async def relay_for_a_while():
        async with relaying():
            await over.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay_for_a_while)
        async with member_of() as (member, wireguard, _):
            before = dict(member.endpoints)
            over.set()
            await until(lambda: not member.up)
            for _ in range(20):
                await wireguard.sendto(b"\4old", at(before[OWN_PORT]))

            async with relaying() as relay:
                await until(lambda: member.up)
                assert member.endpoints == before
                await wireguard.sendto(b"\4new", at(before[OWN_PORT]))
                assert (await relay.heard(WIREGUARD))[0] == b"\4new", "what is old is lost"


@in_namespace
async def test_the_first_door_that_opens_is_taken():
    closed = door(9)
    with trio.socket.socket() as silent:
        await silent.bind(("127.0.0.1", 7))
        silent.listen(1)  # takes the connection, and never answers to TLS
        async with relaying() as relay, member_of(closed, door(7, tls=True), door(TLS, tls=True)):
            await until(lambda: relay.host.statistics().connections == 1)


@in_namespace
async def test_a_taken_tcp_port_is_named_with_what_to_do():
    async with relaying():
        with pytest.raises(StartError, match=r"TCP port 51820 .*ss -ltnp"):
            CarrierHost({TCP: None}, OwnPort(1, 1))
