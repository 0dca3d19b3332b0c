"""Links, addresses and routes, by the kernel's routing netlink.

Calls are synchronous and take a millisecond or two.  A `RouteNetlink` belongs to the thread that
made it, because pyroute2 keeps a socket and an event loop for each thread.  pyroute2 costs about
100 ms to import, so that it is imported when the first `RouteNetlink` is made, and never by the
command line.

Requests carry their filters to the kernel (NETLINK_GET_STRICT_CHK, Linux 4.20), so that a host
with a full routing table costs no more than any other.
"""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, assert_never

from meshd.errors import DeviceError, StartError
from meshd.net.closing import Closing
from meshd.net.link import (
    ROUTE_PROTOCOL,
    AddAddress,
    LinkStatus,
    PrepareIPv6,
    RemoveAddress,
    RemoveRoute,
    SetMtu,
    SetRoute,
    SetUp,
)
from meshd.net.local import DefaultRoute, HostAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from meshd.codec import IPAddress, IPNetwork
    from meshd.net.link import IPInterface, LinkChange

FAMILIES = (socket.AF_INET, socket.AF_INET6)
RT_TABLE_MAIN = 254
RT_SCOPE_UNIVERSE = 0
RTM_F_FIB_MATCH = 0x2000

IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_LOWER_UP = 0x10000  # has a carrier; IFF_RUNNING says the same up to a second later

# linux/if_addr.h.  On IPv4 the first bit means "secondary" and says nothing of privacy.
IFA_F_TEMPORARY = 0x01
IFA_F_NODAD = 0x02
IFA_F_DADFAILED = 0x08
IFA_F_DEPRECATED = 0x20
IFA_F_TENTATIVE = 0x40
IFA_F_NOPREFIXROUTE = 0x200

# Only looked up, never sent to: the root name server that has moved least.
INTERNET_ADDRESSES = ("198.41.0.4", "2001:503:ba3e::2:30")

IPV6_SYSCTLS = Path("/proc/sys/net/ipv6/conf")


class _Message(Protocol):
    """A netlink message, as pyroute2 gives it: header fields by index, attributes by `get`."""

    def __getitem__(self, field: str, /) -> int: ...
    def get(self, attribute: object, /) -> Any: ...  # noqa: ANN401 - any attribute's type


class _Sysctl(NamedTuple):
    name: str
    value: str
    required: bool  # the others may stay as they are where /proc/sys cannot be written


# The first one is what all else stands on.  Nobody else speaks on our link, so it needs neither
# an address of its own making nor routers.
IPV6_SETTINGS: Final = (
    _Sysctl("disable_ipv6", "0", required=True),
    _Sysctl("addr_gen_mode", "1", required=False),  # IN6_ADDR_GEN_MODE_NONE
    _Sysctl("accept_ra", "0", required=False),
)


def require_ipv6() -> None:
    """Raise StartError where the kernel has no IPv6 at all."""
    if not IPV6_SYSCTLS.is_dir():
        raise StartError(
            "this kernel has no IPv6, and meshd's members talk to each other over it: "
            "load the ipv6 module, or boot without ipv6.disable=1"
        )


class RouteNetlink(Closing):
    """Observes and changes an interface's addresses and routes, and nothing that is not meshd's.

    `owned_prefixes` are the mesh's own: an address inside one of them is taken to be ours.
    """

    def __init__(self, owned_prefixes: Iterable[IPNetwork]) -> None:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        require_ipv6()
        self._owned_prefixes = tuple(owned_prefixes)
        self._refusal = NetlinkError
        self._netlink: Any = IPRoute(strict_check=True)

    def close(self) -> None:
        """Close the netlink socket.  What was set stays."""
        self._netlink.close()

    def observe(self, interface: str) -> LinkStatus | None:
        """Return the interface as it is, or None where there is none of that name."""
        link = self._link(interface)
        if link is None:
            return None
        index = link["index"]
        return LinkStatus(
            index=index,
            kind=_kind(link),
            mtu=link.get("mtu"),
            up=bool(link["flags"] & IFF_UP),
            ipv6_ready=all(_settled(interface, setting) for setting in IPV6_SETTINGS),
            addresses=frozenset(self._own_addresses(index)),
            routes=dict(self._own_routes(index)),
        )

    def apply(self, interface: str, changes: Iterable[LinkChange]) -> None:
        """Make the changes in their order.

        Raise DeviceError at the first that is refused; those before it have been made.
        """
        link = self._link(interface)
        if link is None:
            raise DeviceError(f"find interface {interface}", errno.ENODEV)
        for change in changes:
            self._apply_one(interface, link["index"], change)

    def host_addresses(self, *, fwmark: int = 0) -> tuple[HostAddress, ...]:
        """Return every address of the host, for `meshd.net.local.host_candidates`.

        `fwmark` is that of meshd's own datagrams, so that policy routing is followed.
        """
        links = {link["index"]: link for link in self._dump("list links", self._netlink.link)}
        preferred = {route.source for route in self.default_routes(fwmark=fwmark)}
        addresses = self._dump("list addresses", self._netlink.addr)
        return tuple(
            _host_address(message, links[message["index"]], preferred)
            for message in addresses
            if message["index"] in links
        )

    def default_routes(self, *, fwmark: int = 0) -> tuple[DefaultRoute, ...]:
        """Return how datagrams leave towards the internet, by each IP version that can."""
        routes = (self._towards(target, fwmark) for target in INTERNET_ADDRESSES)
        return tuple(route for route in routes if route is not None)

    def _apply_one(self, interface: str, index: int, change: LinkChange) -> None:
        netlink = self._netlink
        request: dict[str, object]
        match change:
            case PrepareIPv6():
                _prepare_ipv6(interface)
            case SetMtu(mtu):
                request = {"index": index, "mtu": mtu}
                self._do(f"set MTU {mtu} on {interface}", netlink.link, "set", request)
            case SetUp(up):
                request = {"index": index, "state": "up" if up else "down"}
                self._do(f"set {interface} {request['state']}", netlink.link, "set", request)
            case AddAddress(address):
                request = _address_request(index, address)
                self._do(f"add address {address} to {interface}", netlink.addr, "add", request)
            case RemoveAddress(address):
                request = _address_request(index, address)
                operation = f"remove address {address} from {interface}"
                self._do(operation, netlink.addr, "del", request, gone=errno.EADDRNOTAVAIL)
            case SetRoute(destination, source, replace):
                request = _route_request(index, destination, source)
                operation = f"add route {destination} through {interface}"
                self._do(operation, netlink.route, "replace" if replace else "add", request)
            case RemoveRoute(destination):
                request = _route_request(index, destination, None)
                operation = f"remove route {destination} through {interface}"
                self._do(operation, netlink.route, "del", request, gone=errno.ESRCH)
            case _:
                assert_never(change)

    def _do(
        self,
        operation: str,
        call: Callable[..., Iterable[_Message]],
        command: str,
        request: Mapping[str, object],
        *,
        gone: int | None = None,
    ) -> None:
        """Make a request; the errno `gone` means that what is to be removed is not there."""
        try:
            list(call(command, **request))
        except self._refusal as refusal:
            if refusal.code != gone:
                raise DeviceError(operation, refusal.code) from refusal

    def _dump(
        self, operation: str, call: Callable[..., Iterable[_Message]], **filters: object
    ) -> list[_Message]:
        try:
            return list(call("dump", **filters))
        except self._refusal as refusal:
            raise DeviceError(operation, refusal.code) from refusal

    def _link(self, interface: str) -> _Message | None:
        try:
            links: list[_Message] = list(self._netlink.link("get", ifname=interface))
        except self._refusal as refusal:
            if refusal.code == errno.ENODEV:
                return None
            raise DeviceError(f"find interface {interface}", refusal.code) from refusal
        return links[0]

    def _own_addresses(self, index: int) -> Iterator[IPInterface]:
        for message in self._dump("list addresses", self._netlink.addr, index=index):
            address = ip_interface((_address_text(message), message["prefixlen"]))
            if any(address.ip in prefix for prefix in self._owned_prefixes):
                yield address

    def _own_routes(self, index: int) -> Iterator[tuple[IPNetwork, IPAddress | None]]:
        for family in FAMILIES:
            routes = self._dump(
                "list routes",
                self._netlink.route,
                family=family,
                table=RT_TABLE_MAIN,
                proto=ROUTE_PROTOCOL,
                oif=index,
            )
            default = "0.0.0.0" if family == socket.AF_INET else "::"  # noqa: S104 - a route's
            for route in routes:
                source = route.get("prefsrc")
                yield (
                    ip_network((route.get("dst") or default, route["dst_len"])),
                    None if source is None else ip_address(source),
                )

    def _towards(self, target: str, fwmark: int) -> DefaultRoute | None:
        request: dict[str, object] = {"mark": fwmark} if fwmark else {}
        try:
            routes = list(self._netlink.route("get", dst=target, **request))
            interface = socket.if_indextoname(routes[0].get("oif"))
        except (self._refusal, OSError):
            return None  # no route there, which is an answer; or its interface has just gone
        gateway, source = routes[0].get("gateway"), routes[0].get("prefsrc")
        return DefaultRoute(
            interface,
            None if gateway is None else ip_address(gateway),
            None if source is None else ip_address(source),
        )


def _kind(link: _Message) -> str | None:
    kind: str | None = link.get(("linkinfo", "kind"))
    return kind


def _address_text(message: _Message) -> str:
    # On a point-to-point link IFA_ADDRESS is the other end, and IFA_LOCAL is ours.
    text: str = message.get("local") or message.get("address")
    return text


def _address_request(index: int, address: IPInterface) -> dict[str, object]:
    request: dict[str, object] = {
        "index": index,
        "address": str(address.ip),
        "prefixlen": address.network.prefixlen,
    }
    if address.version == 6:
        # There is nobody on the link to ask for duplicates, and asking takes a second.
        request["flags"] = IFA_F_NODAD | IFA_F_NOPREFIXROUTE
    return request


def _route_request(
    index: int, destination: IPNetwork, source: IPAddress | None
) -> dict[str, object]:
    request: dict[str, object] = {
        "family": FAMILIES[destination.version == 6],
        "dst": str(destination),
        "oif": index,
        "proto": ROUTE_PROTOCOL,
        "table": RT_TABLE_MAIN,
    }
    if destination.version == 4:
        request["scope"] = "link"
    if source is not None:
        request["prefsrc"] = str(source)
    return request


def _host_address(
    message: _Message, link: _Message, preferred: set[IPAddress | None]
) -> HostAddress:
    address = ip_address(_address_text(message))
    flags = message.get("flags") or 0
    unusable = IFA_F_DADFAILED | IFA_F_DEPRECATED | IFA_F_TENTATIVE
    return HostAddress(
        address=address,
        interface=link.get("ifname"),
        interface_index=message["index"],
        interface_kind=_kind(link),
        running=bool(link["flags"] & IFF_UP and link["flags"] & IFF_LOWER_UP),
        loopback=bool(link["flags"] & IFF_LOOPBACK),
        global_scope=message["scope"] == RT_SCOPE_UNIVERSE,
        usable=not flags & unusable,
        temporary=address.version == 6 and bool(flags & IFA_F_TEMPORARY),
        primary=address in preferred,
    )


def _settled(interface: str, setting: _Sysctl) -> bool:
    path = IPV6_SYSCTLS / interface / setting.name
    try:
        settled = path.read_text().strip() == setting.value
    except FileNotFoundError:
        # The interface has gone meanwhile, or is too small for IPv6, or the kernel is older.
        settled = not setting.required
    return settled or not (setting.required or os.access(path, os.W_OK))


def _prepare_ipv6(interface: str) -> None:
    for setting in IPV6_SETTINGS:
        if _settled(interface, setting):
            continue
        path = IPV6_SYSCTLS / interface / setting.name
        try:
            path.write_text(setting.value)
        except OSError as exc:
            raise DeviceError(f"write {setting.value} to {path}", exc.errno or 0) from exc
