import struct

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from meshd.net.monitor import Change, NetworkMonitor, parse_notices
from net.namespaces import namespaces


@pytest.fixture
async def watched():
    with namespaces(1) as (namespace,), namespace.call(NetworkMonitor) as monitor:
        yield namespace, monitor


async def run(namespace, command):
    await trio.to_thread.run_sync(namespace.run, command)


async def changes_until(monitor, wanted):
    seen = Change(0)
    with trio.fail_after(5):
        while wanted not in seen:
            seen |= await monitor.wait()
    return seen


@pytest.mark.netns
@pytest.mark.parametrize(
    ("command", "change"),
    [
        ("ip link add br0 type bridge", Change.LINK),
        ("ip addr add 192.0.2.1/32 dev lo", Change.ADDRESS),
        ("ip addr add 2001:db8::1/128 dev lo", Change.ADDRESS),
        ("ip route add 198.51.100.0/24 dev lo", Change.ROUTE),
        ("ip route add 2001:db8:7::/48 dev lo", Change.ROUTE),
    ],
)
async def test_every_kind_of_change_is_noticed(watched, command, change):
    namespace, monitor = watched

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, namespace, command)
        seen = await changes_until(monitor, change)

    assert Change.RESYNC not in seen


@pytest.mark.netns
async def test_what_happened_while_nobody_listened_is_one_notice(watched):
    namespace, monitor = watched
    await run(namespace, "for i in 1 2 3 4 5; do ip addr add 192.0.2.$i/32 dev lo; done")

    with trio.fail_after(5):
        assert Change.ADDRESS in await monitor.wait()
        await run(namespace, "ip link add br0 type bridge")
        assert await monitor.wait() == Change.LINK


@pytest.mark.netns
async def test_a_storm_of_changes_is_a_resync_until_all_of_it_has_been_read(watched):
    namespace, monitor = watched
    batch = "\n".join(f"route add 10.{i // 256}.{i % 256}.0/24 dev lo" for i in range(3000))
    await trio.to_thread.run_sync(lambda: namespace.run("ip -batch -", stdin=batch))

    with trio.fail_after(5):
        assert Change.RESYNC in await monitor.wait()
        for i in range(100):
            await run(namespace, f"ip addr add 192.0.2.{i}/32 dev lo")
            if Change.RESYNC not in (seen := await monitor.wait()):
                break

    assert seen == Change.ADDRESS | Change.ROUTE  # the address has a route of its own


@pytest.mark.netns
async def test_closing_wakes_whoever_waits(watched):
    _, monitor = watched

    async with trio.open_nursery() as nursery:

        async def wait():
            with pytest.raises(trio.ClosedResourceError):
                await monitor.wait()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        monitor.close()


@given(st.binary(max_size=200))
@example(struct.pack("=IHHII", 0, 16, 0, 0, 0))  # a length that would never advance
def test_any_bytes_are_some_change_or_none(data):
    assert parse_notices(data) in ~Change(0) | Change(0)


def test_several_messages_in_one_read_are_one_change():
    link = struct.pack("=IHHII", 17, 16, 0, 0, 0) + b"x" + bytes(3)
    route = struct.pack("=IHHII", 16, 24, 0, 0, 0)

    assert parse_notices(link + route) == Change.LINK | Change.ROUTE
