from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from meshd.addresses import overlay_address, overlay_prefix
from meshd.codec import host_network
from meshd.keys import MeshId, NodeId, PresharedKey, WireGuardKey, WireGuardPrivateKey
from meshd.plan.plan import PlannedMember, PlannedSelf, make_plan
from meshd.wg.diff import diff_device
from meshd.wg.types import DeviceStatus, Endpoint
from wg.fake_device import FakeDevice

MESH = MeshId(b"m" * 32)
PREFIX = IPv4Network("100.64.0.0/10")
OWN_KEY = WireGuardPrivateKey(b"o" * 32)
NODES = [NodeId(bytes([number]) * 32) for number in range(1, 9)]
KEYS = [WireGuardKey(bytes([100 + number]) * 32) for number in range(4)] + [OWN_KEY.public]
ENDPOINT = Endpoint(IPv4Address("192.0.2.1"), 51820)

ME = PlannedSelf(
    mesh=MESH,
    private_key=OWN_KEY,
    listen_port=51820,
    fwmark=0,
    ipv4=IPv4Address("100.64.0.1"),
    ipv4_prefix=PREFIX,
    ipv6=overlay_address(MESH, NodeId(b"s" * 32)),
)


def member(node=NODES[0], key=KEYS[0], **fields):
    defaults = {
        "admitted_at": 1,
        # Claims are settled before the plan: no two members have one address.
        "ipv4": PREFIX.network_address + node[0] + 1,
        "live": True,
        "endpoint": ENDPOINT,
    }
    return PlannedMember(
        node=node, wireguard_key=key, ipv6=overlay_address(MESH, node), **(defaults | fields)
    )


members = st.lists(
    st.builds(
        member,
        node=st.sampled_from(NODES),
        key=st.sampled_from(KEYS),
        admitted_at=st.integers(0, 2),
        live=st.booleans(),
        endpoint=st.sampled_from([None, ENDPOINT]),
        keepalive=st.sampled_from([0, 25]),
    ),
    unique_by=lambda member: member.node,
)
selves = st.builds(lambda ipv4: replace(ME, ipv4=ipv4), st.sampled_from([None, ME.ipv4]))


@given(selves, members)
def test_no_allowed_ip_has_two_peers(me, planned):
    plan = make_plan(me, planned)

    given_out = Counter(
        network for peer in plan.device.peers.values() for network in peer.allowed_ips
    )
    assert all(count == 1 for count in given_out.values())


@given(selves, members, st.randoms())
def test_the_order_of_members_does_not_matter(me, planned, random):
    shuffled = planned.copy()
    random.shuffle(shuffled)

    assert make_plan(me, planned) == make_plan(me, shuffled)


@given(selves, members)
def test_every_member_has_a_tunnel_or_is_reported(me, planned):
    plan = make_plan(me, planned)

    for each in planned:
        peer = plan.device.peers.get(each.wireguard_key)
        owns = peer is not None and host_network(each.ipv6) in peer.allowed_ips
        assert owns != (each.node in plan.key_conflicts)


@given(selves, members)
def test_a_peers_allowed_ips_are_its_members_addresses_and_nothing_else(me, planned):
    addresses = {frozenset({host_network(each.ipv6), host_network(each.ipv4)}) for each in planned}

    for peer in make_plan(me, planned).device.peers.values():
        assert not peer.allowed_ips or peer.allowed_ips in addresses


@given(selves, members)
def test_we_are_never_our_own_peer(me, planned):
    assert OWN_KEY.public not in make_plan(me, planned).device.peers


@given(selves, members)
def test_a_key_two_members_name_is_the_earlier_admitted_ones(me, planned):
    plan = make_plan(me, planned)

    for loser in (each for each in planned if each.node in plan.key_conflicts):
        rivals = [each for each in planned if each.wireguard_key == loser.wireguard_key]
        earliest = min(rivals, key=lambda each: (each.admitted_at, each.node))
        assert loser is not earliest or loser.wireguard_key == OWN_KEY.public


@given(selves, members)
def test_a_device_brought_to_the_plan_needs_nothing_more(me, planned):
    device = FakeDevice(DeviceStatus(private_key=None, listen_port=0, fwmark=0))
    desired = make_plan(me, planned).device

    change = diff_device(desired, device.observe(), applied_endpoints={})
    assert change is not None
    device.apply(change)

    assert diff_device(desired, device.observe(), applied_endpoints={}) is None


@given(st.sampled_from([0, 10, 25]), st.booleans())
def test_only_live_members_are_kept_alive_and_as_often_as_their_path_needs(keepalive, live):
    plan = make_plan(ME, [member(live=live, keepalive=keepalive)])

    wanted = keepalive if live else 0
    assert plan.device.peers[KEYS[0]].persistent_keepalive == wanted


def test_a_dead_member_keeps_its_entry_endpoint_and_addresses():
    alive, dead = member(live=True), member(live=False)

    assert make_plan(ME, [alive]) == make_plan(ME, [dead])


def test_a_switch_of_keys_replaces_the_peer_in_one_plan():
    before = make_plan(ME, [member()])
    after = make_plan(ME, [member(key=KEYS[1])])

    assert after.device.peers == {KEYS[1]: before.device.peers[KEYS[0]]}


def test_a_switch_of_keys_leaves_no_address_without_a_peer_in_between():
    device = FakeDevice(DeviceStatus(private_key=None, listen_port=0, fwmark=0))
    before = make_plan(ME, [member(), member(NODES[1], KEYS[2])]).device
    after = make_plan(ME, [member(key=KEYS[1]), member(NODES[1], KEYS[2])]).device
    first = diff_device(before, device.observe(), applied_endpoints={})
    assert first is not None
    device.apply(first)
    device.history.clear()

    change = diff_device(after, device.observe(), applied_endpoints={})
    assert change is not None
    device.apply(change)

    addresses = set(after.peers[KEYS[1]].allowed_ips)
    for state in device.history:
        assert addresses <= {ip for peer in state.peers.values() for ip in peer.allowed_ips}
    assert [each.public_key for each in change.peers] == [KEYS[1], KEYS[0]]


def test_a_member_without_an_ipv4_address_has_its_ipv6():
    plan = make_plan(ME, [member(ipv4=None)])

    (network,) = plan.device.peers[KEYS[0]].allowed_ips
    assert network == host_network(overlay_address(MESH, NODES[0]))


def test_the_interface_has_our_addresses_and_the_meshs_prefixes():
    link = make_plan(ME, []).link

    assert link.addresses == {host_network(ME.ipv4), host_network(ME.ipv6)}
    assert link.routes == {overlay_prefix(MESH), PREFIX}
    assert link.mtu == 1420


def test_an_address_that_was_ours_stays_on_the_interface_and_in_no_tunnel():
    old = IPv4Address("100.64.0.9")
    plan = make_plan(replace(ME, retired_ipv4=(old,)), [member(ipv4=old)])

    assert plan.link.retired == {host_network(old)}
    assert host_network(old) not in plan.link.addresses
    assert host_network(old) in plan.device.peers[KEYS[0]].allowed_ips, "its new holder's at once"


def test_without_an_ipv4_address_there_is_no_ipv4_route():
    link = make_plan(replace(ME, ipv4=None), []).link

    assert link.addresses == {host_network(ME.ipv6)}
    assert link.routes == {overlay_prefix(MESH)}


def test_a_pre_shared_key_goes_along_to_a_new_wireguard_key():
    preshared = PresharedKey(b"\x05" * 32)

    before, after = (
        make_plan(ME, [member(key=key, preshared_key=preshared)]).device.peers for key in KEYS[:2]
    )

    assert before[KEYS[0]].preshared_key == after[KEYS[1]].preshared_key == preshared
    assert make_plan(ME, [member(preshared_key=None)]).device.peers[KEYS[0]].preshared_key is None
