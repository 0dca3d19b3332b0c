"""Probes over TCP: one frame in, one frame out, and bounds for everything else."""

import contextlib
import errno
import socket
from ipaddress import IPv6Address

import pytest
import trio
import trio.testing

from meshd.errors import DeviceError, StartError
from meshd.net import stream
from meshd.net.overlay import GOSSIP_PORT, Overlay
from meshd.net.stream import FRAME_BYTES_MAX, LENGTH, Streams
from net.namespaces import join, namespaces

pytestmark = pytest.mark.netns

HERE, THERE = (IPv6Address(f"fd12:3456:789a::{n}") for n in (1, 9))
MORE = [IPv6Address(f"fd12:3456:789a::1:{n:x}") for n in range(stream.CONNECTIONS_MAX)]
LAN_HERE = IPv6Address("2001:db8::1")


@pytest.fixture
def pair():
    """Two hosts on two wires; mesh0 is in the place of the tunnel, eth0 is the LAN."""
    with namespaces(2) as (here, there):
        join(here, "mesh0", there, "mesh0")
        join(here, "eth0", there, "eth0")
        give_addresses(here, there)
        here.run(f"ip addr add {LAN_HERE}/64 dev eth0 nodad")
        there.run("ip addr add 2001:db8::9/64 dev eth0 nodad")
        yield here, there


def give_addresses(here, there):
    for namespace, own in ((here, HERE), (there, THERE)):
        namespace.run(
            f"ip addr add {own}/128 dev mesh0 nodad; ip route add fd12:3456:789a::/48 dev mesh0"
        )


@contextlib.asynccontextmanager
async def serving(streams, answer=None, *, members=lambda _: True):
    """Serve meanwhile; frames are sent back in capitals by default."""

    async def capitals(frame, _source):
        return frame.upper()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: streams.serve(answer or capitals, is_member=members))
        yield
        nursery.cancel_scope.cancel()


async def inside(namespace, function):
    """Run an async function in a namespace: what sockets it makes are there."""
    return await trio.to_thread.run_sync(lambda: namespace.call(trio.run, function))


async def ask(namespace, frame, *, within=2.0, port=GOSSIP_PORT):
    """Ask `HERE` from a namespace.  Return the answer, and the statistics."""

    async def exchange():
        with Streams(THERE, "mesh0") as streams:
            streams._port = port
            return await streams.exchange(frame, HERE, within=within), streams.statistics()

    return await inside(namespace, exchange)


def connected(namespace, *, source=THERE, target=HERE):
    """Return a plain connection from a namespace, for doing with it what a client must not."""

    def connect():
        plain = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        try:
            plain.bind((str(source), 0))
            plain.settimeout(5)
            plain.connect((str(target), GOSSIP_PORT))
        except OSError:
            plain.close()
            raise
        return plain

    return trio.socket.from_stdlib_socket(namespace.call(connect))


async def rest_of(connection):
    """Return all that comes until the other side ends or resets the connection."""
    data = b""
    with trio.fail_after(5), contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while more := await connection.recv(4096):
            data += more
    return data


async def until(condition):
    with trio.fail_after(5):
        while not condition():
            await trio.lowlevel.checkpoint()


async def test_a_frame_is_answered_with_a_frame(pair):
    here, there = pair
    asked = []

    async def answer(frame, source):
        asked.append((frame, source))
        return b"ack"

    with here.call(Streams, HERE, "mesh0") as streams:
        async with serving(streams, answer):
            got, ours = await ask(there, b"ping")

        assert got == b"ack"
        assert asked == [(b"ping", THERE)]
        assert streams.statistics() == stream.StreamStatistics(answered=1)
        assert ours == stream.StreamStatistics(answered=0, exchanged=1)


@pytest.mark.parametrize("length", [0, 1, FRAME_BYTES_MAX])
async def test_a_frame_of_any_length_allowed_comes_through(pair, length):
    here, there = pair
    frame = b"x" * length
    with here.call(Streams, HERE, "mesh0") as streams:
        async with serving(streams):
            got, _ = await ask(there, frame)

    assert got == frame.upper()


async def test_a_frame_that_is_too_long_ends_the_connection_unread(pair):
    here, there = pair
    with here.call(Streams, HERE, "mesh0") as streams:
        async with serving(streams):
            connection = connected(there)
            with connection:
                await connection.send(LENGTH.pack(FRAME_BYTES_MAX + 1))

                assert await rest_of(connection) == b""

        assert streams.statistics().refused == {"frame too long": 1}


async def test_an_answer_that_is_too_long_is_none(pair):
    here, there = pair

    async def too_much(_frame, _source):
        return bytes(FRAME_BYTES_MAX + 1)

    with here.call(Streams, HERE, "mesh0") as streams:
        async with serving(streams, too_much):
            got, statistics = await ask(there, b"ping")

    assert got is None
    assert statistics.failed == {"frame too long": 1}


async def test_one_that_never_ends_its_frame_is_reset_in_time(pair, monkeypatch):
    here, there = pair
    monkeypatch.setattr(stream, "CONNECTION_TIMEOUT", 0.2)
    with here.call(Streams, HERE, "mesh0") as streams:
        async with serving(streams):
            with connected(there) as connection:
                for byte in LENGTH.pack(4) + b"pin":
                    await connection.send(bytes([byte]))

                assert await rest_of(connection) == b""

        assert streams.statistics().refused == {"too slow": 1}


async def test_one_whose_answer_takes_too_long_is_reset(pair, monkeypatch):
    here, there = pair
    monkeypatch.setattr(stream, "CONNECTION_TIMEOUT", 0.2)

    async def forever(_frame, _source):
        await trio.sleep_forever()

    with here.call(Streams, HERE, "mesh0") as streams:
        async with serving(streams, forever):
            connection = connected(there)
            with connection:
                await connection.send(LENGTH.pack(1) + b"x")

                assert await rest_of(connection) == b""

        assert streams.statistics().refused == {"too slow": 1}


async def test_a_stranger_is_turned_away_before_it_says_anything(pair):
    here, there = pair
    with here.call(Streams, HERE, "mesh0") as streams:
        async with serving(streams, members=lambda source: source != THERE):
            connection = connected(there)
            with connection:
                assert await rest_of(connection) == b""

        assert streams.statistics().refused == {"not a member": 1}


async def test_a_third_connection_of_one_member_is_turned_away(pair):
    here, there = pair
    with here.call(Streams, HERE, "mesh0") as streams:
        async with serving(streams):
            first, second = connected(there), connected(there)
            third = connected(there)
            with first, second, third:
                assert await rest_of(third) == b""
                await second.send(LENGTH.pack(1) + b"x")
                assert await rest_of(second) == LENGTH.pack(1) + b"X"

                with connected(there) as fourth:
                    await fourth.send(LENGTH.pack(1) + b"y")
                    assert await rest_of(fourth) == LENGTH.pack(1) + b"Y"

        assert streams.statistics().refused["too many of one member"] == 1


async def test_there_are_never_more_connections_than_there_may_be(pair):
    here, there = pair
    lines = "".join(f"addr add {address}/128 dev mesh0 nodad\n" for address in MORE)
    there.run("ip -batch -", stdin=lines)
    with here.call(Streams, HERE, "mesh0") as streams, contextlib.ExitStack() as opened:
        async with serving(streams):
            for source in MORE:
                opened.enter_context(connected(there, source=source))
            await until(lambda: streams._connections.total() == stream.CONNECTIONS_MAX)

            connection = opened.enter_context(connected(there))
            assert await rest_of(connection) == b""

            assert streams.statistics().refused == {"too many": 1}
        assert not streams._connections


async def test_one_that_has_ended_its_half_is_still_answered(pair):
    here, there = pair
    with here.call(Streams, HERE, "mesh0") as streams:
        async with serving(streams):
            with connected(there) as connection:
                await connection.send(LENGTH.pack(4) + b"ping")
                connection.shutdown(socket.SHUT_WR)

                assert await rest_of(connection) == LENGTH.pack(4) + b"PING"


@pytest.mark.parametrize(
    "begun", [b"", LENGTH.pack(4)[:1], LENGTH.pack(4), LENGTH.pack(4) + b"pin"]
)
async def test_one_that_ends_early_is_not_answered(pair, begun):
    here, there = pair
    with here.call(Streams, HERE, "mesh0") as streams:
        async with serving(streams):
            with connected(there) as connection:
                await connection.send(begun)
                connection.shutdown(socket.SHUT_WR)

                assert await rest_of(connection) == b""

        assert streams.statistics().refused == {"ended early": 1}


async def test_what_comes_behind_the_frame_is_not_read(pair):
    here, there = pair
    asked = []

    async def answer(frame, _source):
        asked.append(frame)
        return frame

    with here.call(Streams, HERE, "mesh0") as streams:
        async with serving(streams, answer):
            with connected(there) as connection:
                await connection.send((LENGTH.pack(4) + b"ping") * 3)
                await rest_of(connection)

    assert asked == [b"ping"]


async def test_a_frame_that_deserves_no_answer_gets_none(pair):
    here, there = pair

    async def nothing(_frame, _source):
        return None

    with here.call(Streams, HERE, "mesh0") as streams:
        async with serving(streams, nothing):
            got, statistics = await ask(there, b"rubbish")

        assert got is None
        assert statistics.failed.keys() <= {"ECONNRESET", "ended early"}
        assert streams.statistics().refused == {"no answer to that": 1}


async def test_nobody_there_is_no_answer(pair):
    _, there = pair

    got, statistics = await ask(there, b"ping")

    assert got is None
    assert statistics.failed == {"ECONNREFUSED": 1}


async def test_silence_is_no_answer_in_time(pair):
    here, there = pair
    here.run("ip link set mesh0 down")

    got, statistics = await ask(there, b"ping", within=0.1)

    assert got is None
    assert statistics.failed.keys() <= {"no answer in time", "ENETUNREACH", "EHOSTUNREACH"}


async def test_an_interface_that_is_gone_is_no_answer(pair):
    _, there = pair

    async def exchange():
        with Streams(THERE, "mesh0") as streams:
            there.run("ip link del mesh0")
            return await streams.exchange(b"ping", HERE, within=1.0), streams.statistics()

    got, statistics = await inside(there, exchange)

    assert got is None
    assert statistics.failed == {"ENODEV": 1}


async def test_more_exchanges_than_there_may_be_are_dropped(pair):
    here, there = pair
    here.run("nft -f -", stdin=DROP_TCP)

    async def exchange_many():
        results = []
        with Streams(THERE, "mesh0") as streams:

            async def one():
                results.append(await streams.exchange(b"ping", HERE, within=0.2))

            async with trio.open_nursery() as nursery:
                for _ in range(stream.EXCHANGES_MAX + 5):
                    nursery.start_soon(one)
            return results, streams.statistics()

    results, statistics = await inside(there, exchange_many)

    assert results == [None] * (stream.EXCHANGES_MAX + 5)
    assert statistics.failed == {"no answer in time": stream.EXCHANGES_MAX, "too many": 5}


DROP_TCP = """table inet host {
chain in {
type filter hook input priority 0
meta l4proto tcp drop
}
}
"""


async def test_nothing_is_left_of_what_was_cancelled(pair):
    here, there = pair

    async def cancelled():
        with Streams(THERE, "mesh0") as streams, trio.move_on_after(0.1):
            await streams.exchange(b"ping", HERE, within=10)

    with here.call(Streams, HERE, "mesh0") as streams:  # in whose backlog it waits
        await inside(there, cancelled)

        shown = there.run("ss -Htan state connected")

    assert shown == ""
    assert streams.statistics().answered == 0


async def test_who_came_in_elsewhere_is_not_heard(pair):
    here, there = pair
    there.run(f"ip route add {HERE}/128 via {LAN_HERE} dev eth0")
    with here.call(Streams, HERE, "mesh0") as streams:
        async with serving(streams):
            with pytest.raises(ConnectionRefusedError):
                connected(there, source=IPv6Address("2001:db8::9"))


async def test_it_listens_before_the_address_is_there_and_beside_the_gossip_socket(pair):
    here, there = pair
    here.run(f"ip addr del {HERE}/128 dev mesh0")
    with here.call(Overlay, HERE, "mesh0"), here.call(Streams, HERE, "mesh0") as streams:
        here.run(f"ip addr add {HERE}/128 dev mesh0 nodad")
        async with serving(streams):
            assert (await ask(there, b"ping"))[0] == b"PING"


async def test_it_follows_an_interface_made_anew(pair):
    here, there = pair
    with here.call(Streams, HERE, "mesh0") as streams:
        here.run("ip link del mesh0")
        with pytest.raises(DeviceError, match="bind to interface mesh0"):
            streams.rebind()
        join(here, "mesh0", there, "mesh0")
        give_addresses(here, there)
        async with serving(streams):
            assert (await ask(there, b"ping", within=0.2))[0] is None
            streams.rebind()
            assert (await ask(there, b"ping"))[0] == b"PING"


async def test_it_listens_again_at_once_after_serving(pair):
    here, there = pair
    for _ in range(2):
        with here.call(Streams, HERE, "mesh0") as streams:
            async with serving(streams):
                assert (await ask(there, b"ping"))[0] == b"PING"


async def test_a_taken_port_is_named_with_what_to_do(pair):
    here, _ = pair

    with (
        here.call(Streams, HERE, "mesh0"),
        pytest.raises(StartError, match=r"TCP port 7946 .*ss -ltnp"),
    ):
        here.call(Streams, HERE, "mesh0")


async def test_closing_ends_whoever_serves(pair):
    here, _ = pair
    streams = here.call(Streams, HERE, "mesh0")

    async def serve():
        with pytest.raises(BaseExceptionGroup) as caught:
            async with serving(streams):
                await trio.sleep_forever()
        assert caught.group_contains(trio.ClosedResourceError)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
        streams.close()


async def test_no_descriptor_left_to_accept_with_is_waited_out(pair, monkeypatch):
    here, there = pair
    monkeypatch.setattr(stream, "EXHAUSTED_PAUSE", 0.01)
    with here.call(Streams, HERE, "mesh0") as streams:
        accept, failures = streams._listener.accept, iter([errno.EMFILE, errno.ECONNABORTED])

        async def failing():
            number = next(failures, None)
            if number is not None:
                raise OSError(number, "")
            return await accept()

        monkeypatch.setattr(streams._listener, "accept", failing, raising=False)
        async with serving(streams):
            assert (await ask(there, b"ping"))[0] == b"PING"

        assert streams.statistics().refused == {"ECONNABORTED": 1, "EMFILE": 1}
