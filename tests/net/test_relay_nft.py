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
from meshd.values import PortRange
from net.namespaces import namespaces
from net.relays import (
    MARK,
    PORTS,
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

TABLE = RelayTable("mesh0", PORTS, MARK, Fence(("one", "two"), ipv6=True))
CIPHERTEXT = b"\x04\0\0\0" + bytes(1396)
HELLO = header(DatagramType.RELAY_HELLO) + bytes(CHALLENGE_BYTES)

RULES = """
udp sport set ip saddr . udp sport . ip daddr . udp dport map @arriving4 notrack \
meta mark set 0x6d65 udp dport set udp sport map @target_port \
ip daddr set udp sport map @target4 counter name taken4
udp sport set ip6 saddr . udp sport . ip6 daddr . udp dport map @arriving6 notrack \
meta mark set 0x6d65 udp dport set udp sport map @target_port \
ip6 daddr set udp sport map @target6 counter name taken6
meta nfproto ipv4 udp dport 51900-53947 @th,64,40 != 0x6d6573680a jump relayed4
meta nfproto ipv6 udp dport 51900-53947 @th,64,40 != 0x6d6573680a jump relayed6
meta mark 0x6d65 udp sport 51900-53947 ip saddr set udp sport map @leaving4 \
counter name forwarded4 accept
meta mark 0x6d65 udp sport 51900-53947 ip6 saddr set udp sport map @leaving6 \
counter name forwarded6 accept
meta nfproto ipv4 iifname { "one", "two" } drop
meta nfproto ipv6 drop
icmp type redirect drop
icmpv6 type nd-redirect drop
"""

names = st.text("abcxyz019._@-", min_size=1, max_size=15)
fences = st.builds(Fence, st.lists(names, max_size=3, unique=True).map(tuple), st.booleans())
tables = st.builds(
    RelayTable,
    names,
    st.tuples(st.integers(1, 60000), st.integers(1, 999)).map(lambda r: PortRange(r[0], sum(r))),
    st.integers(1, 2**32 - 1),
    fences,
)


def test_the_rules_do_not_change_unnoticed():
    text = re.sub(r' comment "[^"]*"', "", relay_nft.render(TABLE, ()))

    rules = [line.strip() for line in text.splitlines() if "udp" in line or "drop" in line]
    assert "\n".join(rules) == RULES.strip()


@given(tables, tables)
def test_other_values_make_other_comments_on_every_rule(one, other):
    comments = [
        set(re.findall(r'comment "([^"]*)"', relay_nft.render(table, ()))) for table in (one, other)
    ]

    assert (comments[0] == comments[1]) == (one == other)
    assert one == other or not comments[0] & comments[1]


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
        "nft flush chain inet meshd_relay_mesh0 leaving",
        "nft flush map inet meshd_relay_mesh0 target4",
        "nft delete table inet meshd_relay_mesh0",
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


def forwarded(relay):
    return relay.call(relay_nft.observe, TABLE).forwarded


@pytest.mark.netns
@pytest.mark.parametrize("version", [4, 6])
def test_each_side_hears_the_other_from_the_address_and_port_it_talks_to(version):
    with (
        relaying(flows=pair_of(version)) as (a, relay, b),
        udp(a, A[version]) as at_a,
        udp(b, B[version]) as at_b,
    ):
        for size in (5, 32, 1400):
            at_a.sendto(bytes(size), (RELAY_TO_A[version], PORTS.first))
            assert source_of(at_b, bytes(size)) == end(RELAY_TO_B[version], PORTS.first + 1)
            at_b.sendto(bytes(size), (RELAY_TO_B[version], PORTS.first + 1))
            assert source_of(at_a, bytes(size)) == end(RELAY_TO_A[version], PORTS.first)

        observed = relay.call(relay_nft.observe, TABLE)
        assert observed.taken[version] == observed.forwarded[version]
        assert observed.taken[version] >= 4
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
            (stranger, CIPHERTEXT),
            (at_a, bytes(3000)),
        ):
            sender.sendto(payload, (RELAY_TO_A[version], PORTS.first))
            source_of(door, payload)
        at_a.sendto(CIPHERTEXT, (RELAY_TO_A[version], PORTS.first))

        source_of(at_b, CIPHERTEXT)  # and nothing before it
        assert forwarded(relay)[version] == 1


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
        relay.call(relay_nft.apply, RelayTable("mesh0", PORTS, MARK, fence), pair_of(version))

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

    assert (observed.taken[version], observed.forwarded[version]) == (10, 0)
