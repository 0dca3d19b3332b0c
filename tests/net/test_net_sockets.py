import errno
import os
import socket
from ipaddress import IPv6Address, ip_address

import pytest
import trio
import trio.testing

from meshd.errors import DeviceError, StartError
from meshd.net.datagram import BATCH_MAX, DATAGRAM_BYTES_MAX
from meshd.net.overlay import GOSSIP_PORT, Overlay
from meshd.net.underlay import Underlay, check_port_free
from meshd.wg.types import Endpoint
from net.namespaces import join, namespaces
from net.tunnels import tunnel as wireguard

pytestmark = pytest.mark.netns

HERE_4, HERE_4_TOO, THERE_4 = "192.0.2.1", "192.0.2.2", "192.0.2.9"
HERE_6, HERE_6_TOO, THERE_6 = "2001:db8::1", "2001:db8::2", "2001:db8::9"
OVERLAY_HERE, OVERLAY_THERE = IPv6Address("fd12:3456:789a::1"), IPv6Address("fd12:3456:789a::9")


@pytest.fixture
def pair():
    """Two hosts on one wire; the first has two addresses of each family."""
    with namespaces(2) as (here, there):
        join(here, "eth0", there, "eth0")
        for address in (f"{HERE_4}/24", f"{HERE_4_TOO}/24", f"{HERE_6}/64", f"{HERE_6_TOO}/64"):
            here.run(f"ip addr add {address} dev eth0")
        there.run(f"ip addr add {THERE_4}/24 dev eth0; ip addr add {THERE_6}/64 dev eth0")
        yield here, there


async def receive(endpoint, count):
    datagrams = []
    with trio.fail_after(5):
        while len(datagrams) < count:
            datagrams += await endpoint.receive_batch()
    return datagrams


def filter_output(namespace, rule):
    """Give a host an output firewall of one rule."""
    chain = f"type filter hook output priority 0\n{rule}\n"
    namespace.run("nft -f -", stdin=f"table inet host {{\nchain out {{\n{chain}}}\n}}\n")


def endpoint(address, port):
    return Endpoint(ip_address(address), port)


@pytest.mark.parametrize("asked", [HERE_4, HERE_4_TOO, HERE_6, HERE_6_TOO])
async def test_an_answer_leaves_from_the_address_that_was_asked(pair, asked):
    here, there = pair
    with here.call(Underlay) as ours, there.call(Underlay) as theirs:
        theirs.send(b"ask", endpoint(asked, ours.port))
        (question,) = await receive(ours, 1)
        assert question.payload == b"ask"
        assert question.local == ip_address(asked)
        assert question.source.port == theirs.port

        ours.send(b"answer", question.source, question.local)
        (answer,) = await receive(theirs, 1)

    assert answer.source == endpoint(asked, ours.port)
    assert answer.payload == b"answer"


async def test_both_families_share_one_port_and_one_batch(pair):
    here, there = pair
    with here.call(Underlay) as ours, there.call(Underlay) as theirs:
        theirs.send(b"4", endpoint(HERE_4, ours.port))
        theirs.send(b"6", endpoint(HERE_6, ours.port))

        payloads = {datagram.payload for datagram in await receive(ours, 2)}

    assert payloads == {b"4", b"6"}


async def test_a_batch_has_a_limit_and_nothing_is_lost_behind_it(pair):
    here, there = pair
    with here.call(Underlay) as ours, there.call(Underlay) as theirs:
        for number in range(BATCH_MAX + 6):
            theirs.send(bytes([number]), endpoint(HERE_4, ours.port))

        first = await ours.receive_batch()
        rest = await receive(ours, 6)

        assert len(first) == BATCH_MAX
        assert [d.payload[0] for d in first + rest] == list(range(BATCH_MAX + 6))
        assert ours.statistics().received == BATCH_MAX + 6
        assert theirs.statistics().sent == BATCH_MAX + 6


async def test_a_datagram_too_long_for_meshd_is_dropped_and_counted(pair):
    here, there = pair
    with here.call(Underlay) as ours, there.call(Underlay) as theirs:
        theirs.send(bytes(DATAGRAM_BYTES_MAX + 1), endpoint(HERE_4, ours.port))
        theirs.send(bytes(DATAGRAM_BYTES_MAX), endpoint(HERE_4, ours.port))

        (datagram,) = await receive(ours, 1)

        assert len(datagram.payload) == DATAGRAM_BYTES_MAX
        assert ours.statistics().oversized == 1


async def test_a_link_local_source_is_dropped_because_no_endpoint_can_name_it(pair):
    here, there = pair
    here.run("ip addr add fe80::1/64 dev eth0 nodad")
    there.run("ip addr add fe80::9/64 dev eth0 nodad")
    with here.call(Underlay) as ours:

        def send():
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as stranger:
                index = socket.if_nametoindex("eth0")
                stranger.sendto(b"x", ("fe80::1", ours.port, 0, index))

        there.call(send)
        with there.call(Underlay) as theirs:
            theirs.send(b"fence", endpoint(HERE_6, ours.port))
            (datagram,) = await receive(ours, 1)

        assert datagram.payload == b"fence"
        assert ours.statistics().unanswerable == 1


async def test_what_the_network_does_is_counted_and_never_raised(pair):
    here, _ = pair
    with here.call(Underlay) as ours:
        unreachable = endpoint("203.0.113.1", 9)
        unreachable_6 = endpoint("2001:db8:ffff::1", 9)
        vanished = ip_address("192.0.2.77"), ip_address("2001:db8::77")

        assert not ours.send(b"x", unreachable)
        assert not ours.send(b"x", unreachable_6)
        assert not ours.send(b"x", endpoint(THERE_4, 9), vanished[0])
        assert not ours.send(b"x", endpoint(THERE_6, 9), vanished[1])
        filter_output(here, "meta l4proto udp drop")
        assert not ours.send(b"x", endpoint(THERE_4, 9))

        errors = ours.statistics().send_errors
    assert sum(errors.values()) == 5
    assert errors["ENETUNREACH"] >= 2
    assert errors["EPERM"] == 1


async def test_an_error_that_only_a_bug_can_cause_is_raised(pair):
    here, _ = pair
    ours = here.call(Underlay)
    ours.close()

    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        ours.send(b"x", endpoint(THERE_4, 9))


async def test_the_sockets_carry_the_mark(pair):
    here, there = pair
    filter_output(here, "meta mark != 0x6d meta l4proto udp drop")
    with there.call(Underlay) as theirs:
        with here.call(Underlay) as unmarked:
            assert not unmarked.send(b"x", endpoint(THERE_4, theirs.port))
        with here.call(Underlay, fwmark=0x6D) as marked:
            assert marked.send(b"4", endpoint(THERE_4, theirs.port))
            assert marked.send(b"6", endpoint(THERE_6, theirs.port))
            await receive(theirs, 2)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_a_port_of_another_program_is_named_with_what_to_do(pair, family):
    here, _ = pair

    def taken():
        holder = socket.socket(family, socket.SOCK_DGRAM)
        holder.bind((HERE_4 if family == socket.AF_INET else HERE_6, 51820))
        return holder

    with here.call(taken):
        for ask in (check_port_free, Underlay):
            with pytest.raises(StartError, match=r"UDP port 51820 .*ss -lunp .*--port"):
                here.call(ask, 51820)
    here.call(check_port_free, 51820)


async def test_closing_wakes_whoever_waits(pair):
    here, _ = pair
    here.run("ip link add mesh0 type veth peer name far")
    for made in (here.call(Underlay), here.call(Overlay, OVERLAY_HERE, "mesh0")):
        async with trio.open_nursery() as nursery:

            async def wait(waiting=made):
                with pytest.raises(trio.ClosedResourceError):
                    await waiting.receive_batch()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            made.close()


@pytest.fixture
def tunnel(pair):
    """Beside the wire, a second one named mesh0 in the place of the tunnel, not yet addressed."""
    here, there = pair
    join(here, "mesh0", there, "mesh0")
    return here, there


def give_overlay_addresses(here, there):
    for namespace, address in ((here, OVERLAY_HERE), (there, OVERLAY_THERE)):
        namespace.run(
            f"ip addr add {address}/128 dev mesh0 nodad; ip route add fd12:3456:789a::/48 dev mesh0"
        )


async def test_the_gossip_socket_may_be_made_before_its_address(tunnel):
    here, there = tunnel
    with (
        here.call(Overlay, OVERLAY_HERE, "mesh0") as ours,
        there.call(Overlay, OVERLAY_THERE, "mesh0") as theirs,
    ):
        assert not ours.send(b"early", Endpoint(OVERLAY_THERE, GOSSIP_PORT))
        give_overlay_addresses(here, there)

        assert ours.send(b"ping", Endpoint(OVERLAY_THERE, GOSSIP_PORT))
        (datagram,) = await receive(theirs, 1)

        assert datagram == (b"ping", Endpoint(OVERLAY_HERE, GOSSIP_PORT), OVERLAY_THERE)
        assert sum(ours.statistics().send_errors.values()) == 1


async def test_gossip_that_did_not_come_through_the_tunnel_is_not_heard(tunnel):
    here, there = tunnel
    give_overlay_addresses(here, there)
    there.run(f"ip route add {OVERLAY_HERE}/128 via {HERE_6} dev eth0")
    with (
        here.call(Overlay, OVERLAY_HERE, "mesh0") as ours,
        there.call(Underlay) as stranger,
        there.call(Overlay, OVERLAY_THERE, "mesh0") as theirs,
    ):
        assert stranger.send(b"forged", Endpoint(OVERLAY_HERE, GOSSIP_PORT), OVERLAY_THERE)
        there.run(f"ip route del {OVERLAY_HERE}/128 dev eth0")
        theirs.send(b"true", Endpoint(OVERLAY_HERE, GOSSIP_PORT))

        (datagram,) = await receive(ours, 1)

    assert datagram.payload == b"true"


async def test_the_gossip_socket_follows_an_interface_made_anew(tunnel):
    here, there = tunnel
    with here.call(Overlay, OVERLAY_HERE, "mesh0") as ours:
        here.run("ip link del mesh0")
        with pytest.raises(DeviceError, match="bind to interface mesh0"):
            ours.rebind()
        join(here, "mesh0", there, "mesh0")
        give_overlay_addresses(here, there)
        ours.rebind()

        with there.call(Overlay, OVERLAY_THERE, "mesh0") as theirs:
            ours.send(b"again", Endpoint(OVERLAY_THERE, GOSSIP_PORT))
            (datagram,) = await receive(theirs, 1)

    assert datagram.payload == b"again"


async def test_a_taken_gossip_port_is_named_with_what_to_do(tunnel):
    here, _ = tunnel

    with (
        here.call(Overlay, OVERLAY_HERE, "mesh0"),
        pytest.raises(StartError, match=r"UDP port 7946 .*ss -lunp"),
    ):
        here.call(Overlay, OVERLAY_HERE, "mesh0")


async def test_gossip_to_a_peer_that_wireguard_cannot_reach_is_never_raised(pair):
    here, there = pair
    with wireguard(here, 1) as ours, wireguard(there, 2) as theirs:
        here.run(f"ip route add fd12:3456:789a::/48 dev {ours.interface}")
        here.run(f"ip addr add {OVERLAY_HERE}/128 dev {ours.interface} nodad")
        with here.call(Overlay, OVERLAY_HERE, ours.interface) as gossip:
            target = Endpoint(OVERLAY_THERE, GOSSIP_PORT)
            taken = gossip.send(b"no such peer", target)
            here.run(f"wg set {ours.interface} peer {theirs.public_key} allowed-ips ::/0")
            taken += gossip.send(b"no endpoint", target)

            statistics = gossip.statistics()

    # wireguard-go takes everything and drops it; the kernel says why.
    told = {"EDESTADDRREQ": 1, "ENOKEY": 1}
    assert (taken, statistics.send_errors) in [(2, {}), (0, told)]
    assert statistics.sent == taken
