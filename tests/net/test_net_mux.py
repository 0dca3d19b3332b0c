"""One port for two programs: the rules as text, and as packets between namespaces.

       10.1.0.0/24             203.0.113.0/24
       fd00:1::/64             2001:db8::/64
┌──────┐       ┌───────────────────┐       ┌──────┐
│ home ├───────┤ router: masquerade├───────┤ seed │
└──────┘ .2  .1└───────────────────┘.1   .2└──────┘
"""

import contextlib
import re
import shutil
import socket
from ipaddress import ip_address

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import DeviceError
from meshd.net import mux
from meshd.net.mux import PortMux
from meshd.net.underlay import Underlay
from meshd.underlay import MAGIC
from meshd.wg.types import Endpoint
from net.namespaces import join, namespaces
from net.tunnels import PORT, tunnel

MARK = 0x6D657368
SEED = {4: "203.0.113.2", 6: "2001:db8::2"}
MUX = PortMux("mesh0", wireguard_port=PORT, control_port=40000, mark=MARK)

ports = st.integers(1, 65535)
muxes = st.builds(
    lambda interface, both, mark: PortMux(interface, *both, mark),
    st.text(st.characters(codec="utf-8", exclude_characters="/\0 "), min_size=1, max_size=15),
    st.lists(ports, min_size=2, max_size=2, unique=True),
    st.integers(1, 2**32 - 1),
)


def test_the_rules_do_not_change_unnoticed():
    assert re.sub(r' comment "[^"]*"', "", mux.render(MUX)) == (
        "add table inet meshd_mesh0\n"
        "delete table inet meshd_mesh0\n"
        "table inet meshd_mesh0 {\n"
        "  chain outgoing {\n"
        "    type filter hook output priority -310; policy accept;\n"
        "    meta mark 0x6d657368 udp sport 40000 udp sport set 51820\n"
        "  }\n"
        "  chain incoming {\n"
        "    type filter hook input priority 300; policy accept;\n"
        "    udp dport 51820 @th,64,32 0x6d657368 udp dport set 40000 accept\n"
        "    udp dport 40000 drop\n"
        "  }\n"
        "}\n"
    )


@given(muxes, muxes)
def test_rules_are_intact_only_as_made_from_the_very_same_values(one, other):
    assert mux.is_intact(one, mux.render(one))
    assert mux.is_intact(one, mux.render(other)) == (one == other)


@given(muxes)
def test_one_rule_missing_is_noticed(made):
    lines = mux.render(made).splitlines()

    for index, line in enumerate(lines):
        if "comment" in line:
            assert not mux.is_intact(made, "\n".join(lines[:index] + lines[index + 1 :]))


@given(muxes, muxes)
def test_every_interface_has_a_table_of_its_own_with_a_name_that_nft_takes(one, other):
    names = [mux.table_name(each.interface) for each in (one, other)]

    assert all(re.fullmatch(r"meshd_[A-Za-z0-9_]+", name) for name in names)
    assert (names[0] == names[1]) == (one.interface == other.interface)


@pytest.mark.parametrize(("control_port", "mark"), [(PORT, MARK), (40000, 0)])
def test_rules_that_would_take_others_datagrams_are_a_bug(control_port, mark):
    with pytest.raises(AssertionError):
        PortMux("mesh0", PORT, control_port, mark)


@pytest.fixture
def alone():
    with namespaces(1) as (namespace,):
        yield namespace


@pytest.mark.netns
@pytest.mark.parametrize("interface", ["mesh0", "my-mesh.7", "ü_1"])
def test_the_kernel_takes_the_rules_and_gives_them_back(alone, interface):
    made = PortMux(interface, PORT, 40000, MARK)
    assert alone.call(mux.nft_available)
    assert not alone.call(mux.observe, made)

    for _ in range(2):  # loading again changes nothing
        alone.call(mux.apply, made)
        assert alone.call(mux.observe, made)
    assert alone.run("nft list ruleset").count("udp sport set") == 1

    for _ in range(2):  # removing again is no error
        alone.call(mux.remove, interface)
        assert alone.run("nft list ruleset") == ""


@pytest.mark.netns
@pytest.mark.parametrize(
    "damage",
    [
        "nft flush ruleset",
        "nft flush chain inet meshd_mesh0 incoming",
        "nft delete table inet meshd_mesh0",
    ],
)
def test_rules_flushed_by_somebody_else_are_noticed_and_repaired(alone, damage):
    alone.call(mux.apply, MUX)

    alone.run(damage)
    assert not alone.call(mux.observe, MUX)

    alone.call(mux.apply, MUX)
    assert alone.call(mux.observe, MUX)


@pytest.mark.netns
def test_rules_of_another_port_are_not_ours_and_are_replaced_in_one_step(alone):
    alone.call(mux.apply, MUX)
    moved = PortMux("mesh0", PORT, 40001, MARK)
    assert not alone.call(mux.observe, moved)

    alone.call(mux.apply, moved)

    assert alone.call(mux.observe, moved)
    assert "40000" not in alone.run("nft list ruleset")


@pytest.mark.netns
def test_rules_of_others_are_left_alone(alone):
    alone.run("nft add table inet host")
    alone.call(mux.apply, MUX)
    alone.call(mux.remove, "mesh0")

    assert alone.run("nft list tables").strip() == "table inet host"


def test_a_host_without_nft_is_told_apart(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)

    assert not mux.nft_available()
    with pytest.raises(DeviceError, match=r"nft\(8\) is not installed"):
        mux.apply(MUX)


# A home router: nobody from outside gets in unasked.  Its masquerade may choose other ports.
ROUTER = """
table inet router {{
  chain forward {{
    type filter hook forward priority 0; policy accept;
    iifname wan ct state established,related accept
    iifname wan drop
  }}
  chain post {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname wan masquerade {masquerade}
  }}
}}
"""

# What hosts behind and before it may have: both let only WireGuard's port in, or answers.
SEED_FIREWALL = """
table inet host {
  chain in {
    type filter hook input priority 0; policy drop;
    meta l4proto { icmp, icmpv6 } accept
    iifname lan udp dport 51820 accept
    iifname != lan accept
  }
}
"""
HOME_FIREWALL = """
table inet host {
  chain in {
    type filter hook input priority 0; policy drop;
    meta l4proto { icmp, icmpv6 } accept
    iifname lan ct state established,related accept
    iifname != lan accept
  }
}
"""


@contextlib.contextmanager
def internet(masquerade=""):
    """The drawing above, with a firewall on both hosts."""
    with namespaces(3) as (home, router, seed):
        join(home, "lan", router, "lan")
        join(seed, "lan", router, "wan")
        for namespace, device, ipv4, ipv6 in (
            (home, "lan", "10.1.0.2", "fd00:1::2"),
            (router, "lan", "10.1.0.1", "fd00:1::1"),
            (router, "wan", "203.0.113.1", "2001:db8::1"),
            (seed, "lan", "203.0.113.2", "2001:db8::2"),
        ):
            namespace.run(
                f"ip addr add {ipv4}/24 dev {device}; ip addr add {ipv6}/64 dev {device} nodad"
            )
        home.run("ip route add default via 10.1.0.1; ip -6 route add default via fd00:1::1")
        router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        router.run("nft -f -", stdin=ROUTER.format(masquerade=masquerade))
        seed.run("nft -f -", stdin=SEED_FIREWALL)
        home.run("nft -f -", stdin=HOME_FIREWALL)
        yield home, router, seed


@contextlib.contextmanager
def joined(namespace):
    """An underlay socket that shares WireGuard's port."""
    with namespace.call(Underlay, fwmark=MARK) as underlay:
        namespace.call(mux.apply, PortMux("mesh0", PORT, underlay.port, MARK))
        yield underlay


@contextlib.contextmanager
def plain_socket(namespace, version, port=0):
    """A socket of some other program."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with namespace.call(socket.socket, family, socket.SOCK_DGRAM) as plain:
        if version == 6:
            plain.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        plain.bind(("", port))
        plain.settimeout(5)
        yield plain


async def one(underlay):
    with trio.fail_after(5):
        while not (batch := await underlay.receive_batch()):
            pass
    (datagram,) = batch
    return datagram


@pytest.mark.netns
@pytest.mark.parametrize("version", [4, 6])
async def test_the_magic_alone_decides_who_gets_a_datagram(version):
    with (
        internet() as (home, _, seed),
        joined(seed) as underlay,
        plain_socket(seed, version, PORT) as wireguard,
        plain_socket(home, version) as stranger,
    ):
        for payload in (MAGIC + b"ours", b"\x01\0\0\0 handshake", MAGIC[:3], b"", MAGIC):
            stranger.sendto(payload, (SEED[version], PORT))

        assert [wireguard.recv(100) for _ in range(3)] == [b"\x01\0\0\0 handshake", b"mes", b""]
        with trio.fail_after(5):
            batch = await underlay.receive_batch()
        assert [datagram.payload for datagram in batch] == [MAGIC + b"ours", MAGIC]
        assert {datagram.local for datagram in batch} == {ip_address(SEED[version])}


@pytest.mark.netns
@pytest.mark.parametrize("version", [4, 6])
async def test_the_control_port_cannot_be_reached_directly(version):
    with (
        internet() as (home, _, seed),
        joined(seed) as underlay,
        plain_socket(home, version) as stranger,
    ):
        seed.run("nft delete table inet host")  # it would drop them already
        stranger.sendto(MAGIC + b"direct", (SEED[version], underlay.port))
        stranger.sendto(MAGIC + b"fence", (SEED[version], PORT))

        datagram = await one(underlay)

    assert datagram.payload == MAGIC + b"fence"


@pytest.mark.netns
async def test_another_programs_datagrams_keep_their_source_port():
    with (
        internet() as (home, _, seed),
        joined(home),
        plain_socket(seed, 4, PORT) as server,
        plain_socket(home, 4) as program,
    ):
        program.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        program.sendto(MAGIC, (SEED[4], PORT))

        _, source = server.recvfrom(100)

        port = program.getsockname()[1]

    assert source[1] == port


@pytest.mark.netns
@pytest.mark.parametrize("masquerade", ["", "fully-random"])
@pytest.mark.parametrize("version", [4, 6])
async def test_wireguard_and_meshd_share_one_port_and_one_nat_mapping(version, masquerade):
    with (
        internet(masquerade) as (home, _, seed),
        joined(home) as home_underlay,
        joined(seed) as seed_underlay,
        tunnel(home, 1) as home_tunnel,
        tunnel(seed, 2) as seed_tunnel,
    ):
        target = Endpoint(ip_address(SEED[version]), PORT)
        home_underlay.send(MAGIC + b"ask", target)
        question = await one(seed_underlay)
        seed_underlay.send(MAGIC + b"answer", question.source, question.local)
        answer = await one(home_underlay)

        home_tunnel.add_peer(seed_tunnel, 2, f"endpoint {target}")
        seed_tunnel.add_peer(home_tunnel, 1)
        await trio.to_thread.run_sync(home.run, "ping -c1 -W5 100.64.0.2")
        seen_by_wireguard = seed_tunnel.endpoint()

        # The tunnel is up, and the two still talk beside it.
        seed_underlay.send(MAGIC + b"again", question.source, question.local)
        again = await one(home_underlay)

    assert answer.source == again.source == target
    assert str(question.source) == seen_by_wireguard
    assert (question.payload, again.payload) == (MAGIC + b"ask", MAGIC + b"again")
