"""The diff of links, as pure data and against the kernel's own rules.

`FakeLink` has those rules that matter here; the properties run on it and on a real interface.
"""

from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.errors import DeviceError
from meshd.net.link import (
    AddAddress,
    LinkSpec,
    LinkStatus,
    PrepareIPv6,
    RemoveAddress,
    RemoveRoute,
    SetMtu,
    SetRoute,
    SetUp,
    diff_link,
    wanted_addresses,
    wanted_routes,
)
from meshd.net.rtnetlink import RouteNetlink
from net.namespaces import namespaces

IPV4_PREFIX = ip_network("100.64.0.0/10")
IPV6_PREFIX = ip_network("fd12:3456:789a::/48")
PREFIXES = (IPV4_PREFIX, IPV6_PREFIX)
HOSTS = [
    *(ip_network(f"100.64.7.{i}/32") for i in range(1, 4)),
    *(ip_network(f"fd12:3456:789a::{i}/128") for i in range(1, 4)),
]
STRAYS = [
    *(ip_interface(f"100.64.7.{i}/{length}") for i in range(1, 4) for length in (10, 24)),
    *(ip_interface(f"fd12:3456:789a::{i}/{length}") for i in range(1, 4) for length in (48, 64)),
]
FOREIGN = [ip_interface("10.9.8.7/24"), ip_interface("2001:db8::7/64")]
NETWORKS = [*PREFIXES, ip_network("10.50.0.0/16"), ip_network("2001:db8:50::/48")]


@st.composite
def specs(draw):
    return LinkSpec(
        addresses=draw(st.frozensets(st.sampled_from(HOSTS))),
        routes=draw(st.frozensets(st.sampled_from(NETWORKS))),
        mtu=draw(st.sampled_from([1280, 1420])),
        up=draw(st.sampled_from([True, True, True, False])),
        retired=draw(st.frozensets(st.sampled_from(HOSTS), max_size=2)),
    )


strays = st.lists(st.sampled_from(STRAYS), unique_by=lambda address: address.ip, max_size=3)


@dataclass
class FakeLink:
    """The kernel's rules for one interface.  `observe` and `apply` are RouteNetlink's."""

    mtu: int = 1500
    up: bool = False
    ipv6_ready: bool = False
    addresses: set = field(default_factory=set)
    routes: dict = field(default_factory=dict)

    def observe(self):
        return LinkStatus(
            index=1,
            kind="wireguard",
            mtu=self.mtu,
            up=self.up,
            ipv6_ready=self.ipv6_ready,
            addresses=frozenset(a for a in self.addresses if any(a.ip in p for p in PREFIXES)),
            routes=dict(self.routes),
        )

    def apply(self, changes):
        for change in changes:
            self._apply_one(change)

    def _apply_one(self, change):
        match change:
            case PrepareIPv6():
                self.ipv6_ready = True
            case SetMtu(mtu):
                self.mtu = mtu
            case SetUp(up):
                self.up = up
                if not up:
                    self.routes.clear()
                    self.addresses = {a for a in self.addresses if a.version == 4}
            case AddAddress(address):
                assert address.version == 4 or self.ipv6_ready
                assert address not in self.addresses
                assert address.version == 4 or address.ip not in self._ips()
                self.addresses.add(address)
            case RemoveAddress(address):
                self.addresses.remove(address)
                self._strip(address.ip)
            case SetRoute(destination, source, replace_):
                assert self.up
                assert source is None or source in self._ips()
                taken = destination in self.routes or destination in self._connected()
                assert replace_ or not taken
                self.routes[destination] = source
            case RemoveRoute(destination):
                del self.routes[destination]

    def _ips(self):
        return {address.ip for address in self.addresses}

    def _connected(self):
        return {a.network for a in self.addresses if a.version == 4 and self.up}

    def _strip(self, ip):
        if ip in self._ips():
            return
        for destination in [d for d, source in self.routes.items() if source == ip]:
            if ip.version == 4:
                del self.routes[destination]
            else:
                self.routes[destination] = None


class RealLink:
    """The same on a real interface."""

    def __init__(self, namespace):
        self.namespace = namespace

    def reset(self):
        self.namespace.run(
            "ip link show mesh0 >/dev/null 2>&1 && ip link del mesh0;"
            "ip link add mesh0 type veth peer name far; ip link set far up"
        )

    def observe(self, interface="mesh0"):
        return self.namespace.call(self._observe, interface)

    def apply(self, changes, interface="mesh0"):
        self.namespace.call(self._apply, interface, changes)

    @staticmethod
    def _observe(interface):
        with RouteNetlink(PREFIXES) as netlink:
            return netlink.observe(interface)

    @staticmethod
    def _apply(interface, changes):
        with RouteNetlink(PREFIXES) as netlink:
            netlink.apply(interface, changes)


def assert_converges(link, first, second, stray, foreign):
    """Take a link from one spec to another, with addresses of others added in between."""
    link.apply(diff_link(first, link.observe()))
    assert diff_link(first, link.observe()) == ()
    present = {address.ip for address in link.observe().addresses}
    link.apply([AddAddress(a) for a in (*stray, *foreign) if first.up and a.ip not in present])

    link.apply(diff_link(second, link.observe()))

    status = link.observe()
    assert status.addresses == wanted_addresses(second)
    assert status.routes == wanted_routes(second)
    assert (status.mtu, status.up) == (second.mtu, second.up)
    assert diff_link(second, status) == ()


@given(specs(), specs(), strays)
def test_applying_the_diff_gives_the_desired_link(first, second, stray):
    link = FakeLink()

    assert_converges(link, first, second, stray, FOREIGN)

    kept = {address for address in FOREIGN if address.version == 4 or second.up}
    assert not first.up or kept <= link.addresses


@pytest.fixture(scope="module")
def real_link():
    with namespaces(1) as (namespace,):
        yield RealLink(namespace)


@pytest.mark.netns
@settings(max_examples=40, deadline=None)
@given(first=specs(), second=specs(), stray=strays)
def test_applying_the_diff_gives_the_desired_link_in_the_kernel(real_link, first, second, stray):
    real_link.reset()

    assert_converges(real_link, first, second, stray, FOREIGN)


BARE = LinkStatus(index=3, kind="wireguard", mtu=1500, up=False, ipv6_ready=False)
SPEC = LinkSpec(addresses=frozenset({HOSTS[0], HOSTS[3]}), routes=frozenset(PREFIXES), mtu=1420)
DONE = LinkStatus(
    index=3,
    kind="wireguard",
    mtu=1420,
    up=True,
    ipv6_ready=True,
    addresses=frozenset({ip_interface("100.64.7.1/32"), ip_interface("fd12:3456:789a::1/128")}),
    routes={
        IPV4_PREFIX: ip_address("100.64.7.1"),
        IPV6_PREFIX: ip_address("fd12:3456:789a::1"),
    },
)


def test_an_address_is_there_before_the_route_that_prefers_it():
    assert diff_link(SPEC, BARE) == (
        PrepareIPv6(),
        SetMtu(1420),
        SetUp(True),
        AddAddress(ip_interface("100.64.7.1/32")),
        AddAddress(ip_interface("fd12:3456:789a::1/128")),
        SetRoute(IPV4_PREFIX, ip_address("100.64.7.1"), replace=False),
        SetRoute(IPV6_PREFIX, ip_address("fd12:3456:789a::1"), replace=False),
    )


def test_a_link_already_as_desired_needs_no_changes():
    assert diff_link(SPEC, DONE) == ()


def test_a_new_ipv4_address_takes_the_route_over_before_the_old_one_goes():
    moved = replace(SPEC, addresses=frozenset({HOSTS[1], HOSTS[3]}))

    assert diff_link(moved, DONE) == (
        AddAddress(ip_interface("100.64.7.2/32")),
        SetRoute(IPV4_PREFIX, ip_address("100.64.7.2"), replace=True),
        RemoveAddress(ip_interface("100.64.7.1/32")),
    )


def test_a_retired_address_stays_beside_the_new_one_and_is_no_source():
    """Also where it sorts before the new one: the route prefers that all the same."""
    moved = replace(SPEC, addresses=frozenset({HOSTS[1], HOSTS[3]}), retired=frozenset({HOSTS[0]}))

    assert diff_link(moved, DONE) == (
        AddAddress(ip_interface("100.64.7.2/32")),
        SetRoute(IPV4_PREFIX, ip_address("100.64.7.2"), replace=True),
    )


def test_an_ipv6_address_with_a_wrong_prefix_length_goes_first():
    wrong = ip_interface("fd12:3456:789a::1/64")
    observed = replace(DONE, addresses=frozenset({ip_interface("100.64.7.1/32"), wrong}))

    assert diff_link(SPEC, observed) == (
        RemoveAddress(wrong),
        AddAddress(ip_interface("fd12:3456:789a::1/128")),
        SetRoute(IPV6_PREFIX, ip_address("fd12:3456:789a::1"), replace=True),
    )


def test_a_link_that_is_to_be_down_carries_nothing():
    assert diff_link(replace(SPEC, up=False), DONE) == (
        RemoveRoute(IPV4_PREFIX),
        RemoveRoute(IPV6_PREFIX),
        RemoveAddress(ip_interface("100.64.7.1/32")),
        RemoveAddress(ip_interface("fd12:3456:789a::1/128")),
        SetUp(False),
    )


def test_an_mtu_too_small_for_ipv6_is_a_bug():
    with pytest.raises(AssertionError, match="MTU"):
        replace(SPEC, mtu=1279)


@pytest.mark.netns
def test_what_others_put_on_the_interface_stays(real_link):
    real_link.reset()
    real_link.apply(diff_link(SPEC, real_link.observe()))
    namespace = real_link.namespace
    namespace.run("ip addr add 10.9.8.7/24 dev mesh0; ip route add 10.77.0.0/16 dev mesh0")

    real_link.apply(diff_link(replace(SPEC, addresses=frozenset({HOSTS[4]})), real_link.observe()))

    assert "10.77.0.0/16" in namespace.run("ip route show dev mesh0")
    assert "10.9.8.7/24" in namespace.run("ip addr show dev mesh0")


@pytest.mark.netns
def test_a_route_that_somebody_else_made_is_an_error_and_stays(real_link):
    real_link.reset()
    namespace = real_link.namespace
    namespace.run("ip route add 100.64.0.0/10 dev far")

    with pytest.raises(DeviceError, match=r"add route 100\.64\.0\.0/10 through mesh0: File exists"):
        real_link.apply(diff_link(SPEC, real_link.observe()))

    assert "100.64.0.0/10" in namespace.run("ip route show dev far")


@pytest.mark.netns
def test_ipv6_switched_off_on_the_interface_is_switched_on(real_link):
    real_link.reset()
    namespace = real_link.namespace
    namespace.run("sysctl -qw net.ipv6.conf.mesh0.disable_ipv6=1")

    real_link.apply(diff_link(SPEC, real_link.observe()))

    assert namespace.run("sysctl -n net.ipv6.conf.mesh0.disable_ipv6").strip() == "0"
    listing = namespace.run("ip -6 addr show dev mesh0")
    assert "fd12:3456:789a::1/128" in listing
    assert "tentative" not in listing
    assert "fe80" not in listing


@pytest.mark.netns
def test_an_interface_that_is_not_there_is_observed_as_none_and_cannot_be_changed(real_link):
    assert real_link.observe("absent0") is None
    with pytest.raises(DeviceError, match="find interface absent0"):
        real_link.apply((SetMtu(1420),), "absent0")


async def test_the_kernel_can_be_asked_from_inside_trio():
    with RouteNetlink(PREFIXES) as netlink:
        status = netlink.observe("lo")
        await trio.lowlevel.checkpoint()

    assert status.index == 1


@pytest.mark.netns
def test_an_address_or_route_already_gone_is_no_error(real_link):
    real_link.reset()
    real_link.apply(diff_link(SPEC, real_link.observe()))
    changes = diff_link(replace(SPEC, up=False), real_link.observe())
    real_link.namespace.run("ip addr flush dev mesh0; ip link set mesh0 down")

    real_link.apply(changes)

    assert real_link.observe().addresses == frozenset()
