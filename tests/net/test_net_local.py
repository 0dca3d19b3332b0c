from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.net.local import (
    HOST_ADDRESSES_MAX,
    TUNNEL_KINDS,
    DefaultRoute,
    HostAddress,
    host_candidates,
    router_of,
)
from meshd.net.rtnetlink import RouteNetlink
from meshd.portmap.gateway import Gateway
from net.namespaces import join, namespaces

OVERLAY = (ip_network("100.64.0.0/10"), ip_network("fd12:3456:789a::/48"))


def host(address, **fields):
    defaults = {
        "interface": "eth0",
        "interface_index": 2,
        "interface_kind": None,
        "running": True,
        "loopback": False,
        "global_scope": True,
        "usable": True,
        "temporary": False,
        "primary": False,
    }
    return HostAddress(ip_address(address), **(defaults | fields))


def candidates(*observed):
    chosen = host_candidates(observed, interface="mesh0", excluded=OVERLAY)
    return [str(address) for address in chosen]


@pytest.mark.parametrize(
    "useless",
    [
        host("192.0.2.9", interface="mesh0"),
        host("127.0.0.53"),
        host("192.0.2.9", loopback=True),
        host("169.254.7.7"),
        host("fe80::1"),
        host("ff05::1"),
        host("100.64.3.3"),
        host("fd12:3456:789a::9"),
        host("192.0.2.9", running=False),
        host("192.0.2.9", global_scope=False),
        host("2001:db8::9", usable=False),
        *(host("192.0.2.9", interface_kind=kind) for kind in sorted(TUNNEL_KINDS)),
    ],
)
def test_an_address_nobody_could_use_is_no_candidate(useless):
    assert candidates(useless, host("192.0.2.1")) == ["192.0.2.1"]


def test_private_addresses_are_candidates_for_the_same_lan():
    assert candidates(host("192.168.1.5"), host("fd00::5")) == ["192.168.1.5", "fd00::5"]


def test_what_leads_to_the_internet_comes_first_and_temporary_addresses_last():
    assert candidates(
        host("2001:db8::aaaa", temporary=True, primary=True),
        host("172.17.0.1", interface="br0", interface_index=1, interface_kind="bridge"),
        host("192.0.2.1", primary=True),
        host("2001:db8::1"),
    ) == ["192.0.2.1", "172.17.0.1", "2001:db8::1", "2001:db8::aaaa"]


hosts = st.builds(
    replace,
    st.sampled_from([host("192.0.2.1"), host("2001:db8::1")]),
    address=st.ip_addresses(),
    interface_index=st.integers(1, 4),
    temporary=st.booleans(),
    primary=st.booleans(),
)


@given(st.lists(hosts, max_size=30), st.randoms(use_true_random=False))
def test_the_order_is_the_same_however_the_kernel_lists_them(observed, rng):
    shuffled = rng.sample(observed, len(observed))

    chosen = candidates(*observed)

    assert candidates(*shuffled) == chosen
    assert len(chosen) <= HOST_ADDRESSES_MAX
    assert len(set(chosen)) == len(chosen)


def observe(fwmark=0):
    with RouteNetlink(OVERLAY) as netlink:
        return netlink.host_addresses(fwmark=fwmark)


@pytest.mark.netns
def test_the_kernels_addresses_are_told_with_what_matters_of_them():
    with namespaces(2) as (here, there):
        join(here, "eth0", there, "eth0")
        join(here, "eth1", there, "eth1")
        there.run("ip link set eth1 down")
        here.run(
            "ip addr add 192.0.2.1/24 dev eth0; ip addr add 192.0.2.2/24 dev eth0;"
            "ip addr add 198.51.100.1/24 dev eth1; ip -6 addr add 2001:db8::1/64 dev eth0;"
            "ip -6 addr add 2001:db8::2/64 dev eth0 preferred_lft 0;"
            "ip tuntap add tun7 mode tun; ip addr add 203.0.113.1/24 dev tun7;"
            "ip link set tun7 up; ip route add default via 192.0.2.254 src 192.0.2.2"
        )

        observed = here.call(observe)

    assert candidates(*observed) == ["192.0.2.2", "192.0.2.1", "2001:db8::1"]
    assert {h.interface: h.interface_kind for h in observed}["tun7"] == "tun"


@pytest.mark.netns
def test_policy_routing_by_our_mark_decides_what_comes_first():
    with namespaces(2) as (here, there):
        join(here, "eth0", there, "eth0")
        join(here, "eth1", there, "eth1")
        here.run(
            "ip addr add 192.0.2.1/24 dev eth0; ip addr add 198.51.100.1/24 dev eth1;"
            "ip route add default via 192.0.2.254;"
            "ip route add default via 198.51.100.254 table 99; ip rule add fwmark 7 lookup 99"
        )

        assert candidates(*here.call(observe)) == ["192.0.2.1", "198.51.100.1"]
        assert candidates(*here.call(observe, 7)) == ["198.51.100.1", "192.0.2.1"]


def test_the_way_out_is_told_by_ip_version_with_its_router():
    with namespaces(2) as (here, router):
        join(here, "eth0", router, "lan")
        here.run(
            "ip address add 192.168.2.2/24 dev eth0; ip route add default via 192.168.2.1;"
            "ip address add 2001:db8::2/64 dev eth0 nodad; ip route add default via 2001:db8::1"
        )
        routes = here.call(default_routes)

        assert routes == (
            DefaultRoute("eth0", ip_address("192.168.2.1"), ip_address("192.168.2.2")),
            DefaultRoute("eth0", ip_address("2001:db8::1"), ip_address("2001:db8::2")),
        )
        assert router_of(routes) == Gateway(
            ip_address("192.168.2.1"), ip_address("192.168.2.2"), "eth0"
        )
        here.run("ip -4 route del default")
        assert router_of(here.call(default_routes)) is None


def test_where_the_internet_is_on_the_wire_there_is_no_router():
    route = DefaultRoute("ppp0", None, ip_address("198.51.100.7"))

    assert router_of((route,)) is None


def default_routes():
    with RouteNetlink(OVERLAY) as links:
        return links.default_routes()
