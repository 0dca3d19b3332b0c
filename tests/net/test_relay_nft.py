"""Flows in the kernel: what goes across, and what does not."""

import contextlib
import re
import socket
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import DeviceError
from meshd.net import forwarding, relay_nft
from meshd.net.forwarding import Note
from meshd.net.relay_nft import Fence, RelayTable
from meshd.path.wire import CHALLENGE_BYTES
from meshd.underlay import DatagramType, header
from net.namespaces import namespaces
from net.relays import (
    MARK,
    PORTS,
    PORTS_MAX,
    RELAY_TO_A,
    RELAY_TO_B,
    WIREGUARD,
    A,
    B,
    end,
    machines,
    pair,
    pair_of,
    source_of,
    udp,
)

TABLE = RelayTable("mesh0", PORTS_MAX, MARK, Fence(("one", "two"), ipv6=True))
CIPHERTEXT = b"\x04\0\0\0" + bytes(1396)
PROBE = header(DatagramType.PATH_PROBE) + bytes(200)
HELLO = header(DatagramType.RELAY_HELLO) + bytes(CHALLENGE_BYTES)

RULES = """
meta l4proto udp @nh,48,8 != 0x20 @th,64,32 != 0x6d657368 \
udp sport set ip saddr . udp sport . ip daddr . udp dport map @arriving \
notrack meta mark set 0x6d65 \
udp dport set udp sport map @target_port ip daddr set udp sport map @target accept
meta l4proto udp @nh,48,8 != 0x20 @th,64,32 0x6d657368 @th,96,8 != 0x0a \
udp sport set ip saddr . udp sport . ip daddr . udp dport map @arriving \
notrack meta mark set 0x6d65 \
udp dport set udp sport map @target_port ip daddr set udp sport map @target accept
meta mark 0x6d65 ip saddr set @th,0,16 map @leaving counter accept
iifname { "one", "two" } drop
icmp type redirect drop
ip6 nexthdr udp @th,64,32 != 0x6d657368 \
udp sport set ip6 saddr . udp sport . ip6 daddr . udp dport map @arriving \
notrack meta mark set 0x6d65 \
udp dport set udp sport map @target_port ip6 daddr set udp sport map @target accept
ip6 nexthdr udp @th,64,32 0x6d657368 @th,96,8 != 0x0a \
udp sport set ip6 saddr . udp sport . ip6 daddr . udp dport map @arriving \
notrack meta mark set 0x6d65 \
udp dport set udp sport map @target_port ip6 daddr set udp sport map @target accept
meta mark 0x6d65 ip6 saddr set @th,0,16 map @leaving counter accept
drop
icmpv6 type nd-redirect drop
"""

names = st.text("abcxyz019._@-", min_size=1, max_size=15)
fences = st.builds(Fence, st.lists(names, max_size=3, unique=True).map(tuple), st.booleans())
tables = st.builds(
    RelayTable,
    names,
    st.integers(2, 65535),
    st.integers(1, 2**32 - 1),
    fences,
)


def test_the_rules_do_not_change_unnoticed():
    text = re.sub(r' comment "[^"]*"', "", relay_nft.render(TABLE, ()))

    rules = [
        line.strip() for line in text.splitlines() if re.search("udp|drop|counter accept", line)
    ]
    assert "\n".join(rules) == RULES.strip()


@given(tables, tables)
def test_other_values_make_other_comments_on_every_rule(one, other):
    comments = [
        set(re.findall(r'comment "([^"]*)"', relay_nft.render(table, ()))) for table in (one, other)
    ]

    assert (comments[0] == comments[1]) == (one == other)
    same_fences = one.fence.ipv4 == other.fence.ipv4 or one.fence.ipv6 == other.fence.ipv6
    assert one == other or same_fences or not comments[0] & comments[1]


@pytest.fixture
def alone():
    with namespaces(1) as (namespace,):
        yield namespace


MANY = frozenset().union(
    *(
        pair(
            end(f"10.1.{index >> 8}.{index & 255}", 40000),
            end("192.0.2.1", PORTS.first + 2 * index),
            end("192.0.2.2", PORTS.first + 2 * index + 1),
            end(f"10.2.{index >> 8}.{index & 255}", 40001),
        )
        for index in range(1000)
    )
)


@pytest.mark.netns
@pytest.mark.parametrize("flows", [frozenset(), pair_of(4), pair_of(6), MANY], ids=len)
def test_the_kernel_gives_back_what_it_was_given(alone, flows):
    assert not alone.call(relay_nft.observe, TABLE).intact

    for _ in range(2):  # loading again changes nothing
        alone.call(relay_nft.apply, TABLE, flows)
        observed = alone.call(relay_nft.observe, TABLE)
        assert observed.intact
        assert observed.flows.keys() == flows

    for _ in range(2):  # removing again is no error
        alone.call(relay_nft.remove, "mesh0")
        assert alone.run("nft list ruleset") == ""


@pytest.mark.netns
@pytest.mark.parametrize(
    "damage",
    [
        "nft flush ruleset",
        "nft flush chain ip meshd_relay_mesh0 leaving",
        "nft flush map ip meshd_relay_mesh0 target",
        "nft delete table ip6 meshd_relay_mesh0",
    ],
)
def test_what_somebody_else_has_taken_away_is_noticed_and_put_back(alone, damage):
    alone.call(relay_nft.apply, TABLE, pair_of(4))

    alone.run(damage)
    assert not alone.call(relay_nft.observe, TABLE).intact

    alone.call(relay_nft.apply, TABLE, pair_of(4))
    assert alone.call(relay_nft.observe, TABLE).intact


@pytest.mark.netns
def test_a_change_that_fails_changes_nothing(alone):
    alone.call(relay_nft.apply, TABLE, pair_of(4))

    with pytest.raises(DeviceError, match="change relayed flows"):
        alone.call(relay_nft.change, TABLE, pair_of(6), frozenset())

    assert alone.call(relay_nft.observe, TABLE).flows.keys() == pair_of(4)


@pytest.mark.netns
def test_only_what_differs_is_touched(alone):
    """Elements that flows have in common stay until the last of these goes."""
    flows = pair_of(4)
    (there,) = (flow for flow in flows if flow.arrives_at.port == PORTS.first)
    moved = replace(there, source=end(A[4], 40000))
    histories = [flows, flows | {moved}, flows - {there} | {moved}, flows, frozenset(), flows]
    alone.call(relay_nft.apply, TABLE, flows | pair_of(6, port=52000))

    for before, after in pairwise(histories):
        both = [each | pair_of(6, port=52000) for each in (before, after)]
        alone.call(relay_nft.change, TABLE, *both)
        observed = alone.call(relay_nft.observe, TABLE)
        assert observed.intact
        assert observed.flows.keys() == both[1]

    assert relay_nft.render_change(TABLE, flows, flows) == ""
    assert "target" not in relay_nft.render_change(TABLE, flows, flows | {moved})


@contextlib.contextmanager
def relaying(*, flows):
    """The machines, with flows in the relay's kernel."""
    with machines() as (a, relay, b):
        note = relay.call(forwarding.plan, Note(), ("one", "two"), ipv4=True, ipv6=True)
        relay.call(relay_nft.apply, TABLE, flows)
        relay.call(forwarding.switch_on, note)
        yield a, relay, b


def passed(relay):
    return relay.call(relay_nft.observe, TABLE).passed


@pytest.mark.netns
@pytest.mark.parametrize("version", [4, 6])
def test_each_side_hears_the_other_from_the_address_and_port_it_talks_to(version):
    with (
        relaying(flows=pair_of(version)) as (a, relay, b),
        udp(a, A[version]) as at_a,
        udp(b, B[version]) as at_b,
    ):
        for payload in (bytes(5), PROBE, CIPHERTEXT):
            at_a.sendto(payload, (RELAY_TO_A[version], PORTS.first))
            assert source_of(at_b, payload) == end(RELAY_TO_B[version], PORTS.first + 1)
            at_b.sendto(payload, (RELAY_TO_B[version], PORTS.first + 1))
            assert source_of(at_a, payload) == end(RELAY_TO_A[version], PORTS.first)

        observed = relay.call(relay_nft.observe, TABLE)
        assert observed.passed[version] == 6
        assert len(set(observed.flows.values())) == 1


@pytest.mark.netns
@pytest.mark.parametrize("version", [4, 6])
def test_hellos_fragments_and_strangers_are_left_to_the_socket(version):
    with (
        relaying(flows=pair_of(version)) as (a, relay, b),
        udp(a, A[version]) as at_a,
        udp(a, A[version], 9) as stranger,
        udp(b, B[version]) as at_b,
        udp(relay, RELAY_TO_A[version], PORTS.first) as door,
    ):
        for sender, payload in (
            (at_a, HELLO),
            (at_a, HELLO[:5]),
            (stranger, CIPHERTEXT),
            (at_a, bytes(3000)),
        ):
            sender.sendto(payload, (RELAY_TO_A[version], PORTS.first))
            source_of(door, payload)
        at_a.sendto(CIPHERTEXT, (RELAY_TO_A[version], PORTS.first))

        source_of(at_b, CIPHERTEXT)  # and nothing before it
        assert passed(relay)[version] == 1


@pytest.mark.netns
@pytest.mark.parametrize("version", [4, 6])
def test_a_binding_that_moves_is_followed_at_once(version):
    before, after = pair_of(version), pair_of(version, source_port=40000)
    with (
        relaying(flows=before) as (a, relay, b),
        udp(a, A[version]) as old,
        udp(a, A[version], 40000) as new,
        udp(b, B[version], 40000) as at_b,
        udp(relay, RELAY_TO_A[version], PORTS.first) as door,
    ):
        relay.call(relay_nft.change, TABLE, before, after)

        old.sendto(b"old, to nobody", (RELAY_TO_A[version], PORTS.first))
        source_of(door, b"old, to nobody")
        new.sendto(CIPHERTEXT, (RELAY_TO_A[version], PORTS.first))
        source_of(at_b, CIPHERTEXT)
        at_b.sendto(CIPHERTEXT, (RELAY_TO_B[version], PORTS.first + 1))
        source_of(new, CIPHERTEXT)


@pytest.mark.netns
@pytest.mark.parametrize("version", [4, 6])
def test_the_host_does_not_become_a_router(version):
    with (
        relaying(flows=pair_of(version)) as (a, _, b),
        udp(a, A[version]) as at_a,
        udp(b, B[version]) as at_b,
    ):
        at_a.sendto(b"past the relay", (B[version], WIREGUARD))
        # Not by pretending to be what the relay sends either.
        with udp(a, A[version], PORTS.first + 1) as pretender:
            pretender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
            pretender.sendto(b"past the relay", (B[version], WIREGUARD))
        at_a.sendto(CIPHERTEXT, (RELAY_TO_A[version], PORTS.first))

        source_of(at_b, CIPHERTEXT)


@pytest.mark.netns
@pytest.mark.parametrize("version", [4, 6])
def test_a_host_that_is_a_router_goes_on_being_one(version):
    with machines() as (a, relay, b):
        relay.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        note = relay.call(forwarding.plan, Note(), ("one", "two"), ipv4=True, ipv6=True)
        fence = relay.call(forwarding.fence, note)
        relay.call(relay_nft.apply, RelayTable("mesh0", PORTS_MAX, MARK, fence), pair_of(version))

        assert (note, fence) == (Note(), Fence())
        with udp(a, A[version]) as at_a, udp(b, B[version]) as at_b:
            at_a.sendto(b"routed", (B[version], WIREGUARD))
            source_of(at_b, b"routed")
            at_a.sendto(CIPHERTEXT, (RELAY_TO_A[version], PORTS.first))
            assert source_of(at_b, CIPHERTEXT).port == PORTS.first + 1


# What connection tracking of the host's, and its NAT, would make of a relayed datagram.
HOST_FIREWALL = """
table inet host {
  chain in {
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    meta l4proto { icmp, icmpv6 } accept
  }
  chain pass {
    type filter hook forward priority 0; policy accept;
    ct state invalid drop
  }
  chain post {
    type nat hook postrouting priority srcnat; policy accept;
    masquerade
  }
}
"""


@pytest.mark.netns
@pytest.mark.parametrize("version", [4, 6])
def test_the_hosts_connection_tracking_and_masquerade_do_not_touch_it(version):
    with (
        relaying(flows=pair_of(version)) as (a, relay, b),
        udp(a, A[version]) as at_a,
        udp(b, B[version]) as at_b,
    ):
        relay.run("nft -f -", stdin=HOST_FIREWALL)

        at_a.sendto(CIPHERTEXT, (RELAY_TO_A[version], PORTS.first))
        source = source_of(at_b, CIPHERTEXT)

    assert source == end(RELAY_TO_B[version], PORTS.first + 1)


@pytest.mark.netns
@pytest.mark.parametrize("version", [4, 6])
def test_a_firewall_that_lets_nothing_pass_can_be_told_by_the_counters(version):
    with (
        relaying(flows=pair_of(version)) as (a, relay, _),
        udp(a, A[version]) as at_a,
    ):
        relay.run("nft add table inet host")
        relay.run("nft add chain inet host pass '{ type filter hook forward priority 0; }'")
        relay.run("nft add rule inet host pass drop")
        for _ in range(10):
            at_a.sendto(CIPHERTEXT, (RELAY_TO_A[version], PORTS.first))

        observed = relay.call(relay_nft.observe, TABLE)

    assert sum(count.datagrams for count in observed.flows.values()) == 10
    assert observed.passed[version] == 0
