"""Who hears that nftables rules were removed."""

import socket

import pytest
import trio

from meshd.net.nft_monitor import RulesMonitor, tells_of_removal
from net.namespaces import namespaces

pytestmark = pytest.mark.netns

TABLE = "add table ip one; add chain ip one c; add set ip one s { type ipv4_addr; }"
ELEMENT = "add element ip one s { 192.0.2.1 }"


@pytest.fixture
def alone():
    with namespaces(1) as (namespace,):
        namespace.run(f"nft '{TABLE}'; nft '{ELEMENT}'; nft 'add rule ip one c accept'")
        yield namespace


async def heard(monitor, namespace, command):
    """Whether a command rings."""
    namespace.run(command)
    with trio.move_on_after(0.2):  # notices are there when the command returns
        await monitor.wait()
        return True
    return False


@pytest.mark.parametrize(
    "command",
    [
        "nft flush ruleset",
        "nft delete table ip one",
        "nft flush chain ip one c",
        "nft flush set ip one s",
    ],
)
async def test_a_removal_rings(alone, command):
    with alone.call(RulesMonitor) as monitor:
        assert await heard(monitor, alone, command)


@pytest.mark.parametrize(
    "command",
    ["nft add table ip two", "nft 'add element ip one s { 192.0.2.2 }'", "nft list ruleset"],
)
async def test_nothing_else_rings(alone, command):
    with alone.call(RulesMonitor) as monitor:
        assert not await heard(monitor, alone, command)


async def test_what_another_namespace_removes_does_not_ring(alone):
    with namespaces(1) as (other,), alone.call(RulesMonitor) as monitor:
        other.run("nft add table ip one")
        assert not await heard(monitor, other, "nft flush ruleset")


async def test_an_overrun_of_the_queue_rings(alone):
    with alone.call(RulesMonitor) as monitor:
        monitor._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least there is
        many = "".join(f"add table ip t{number}\n" for number in range(200))
        alone.run("nft -f -", stdin=many)
        with trio.fail_after(30):
            await monitor.wait()


def test_what_is_cut_short_rings_and_what_is_empty_does_not():
    assert tells_of_removal(bytes(16))
    assert not tells_of_removal(b"")
    assert not tells_of_removal(bytes(15))
