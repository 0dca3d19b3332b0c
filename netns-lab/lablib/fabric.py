"""From a topology to the commands that build it.  Pure: text in, text out.

All wires are bridges in one namespace of their own, the fabric; every interface of a machine is
one end of a veth pair whose other end, named `machine.interface`, is a port of its bridge:

     a                       fabric                     router-a
    +------+     +---------------------------------+     +------+
    | eth0 |-----| a.eth0 --[site-a]-- router-a.lan |-----| lan  |
    +------+     +---------------------------------+     +------+

So a cable is pulled by taking the fabric's end down: the machine loses its carrier and keeps its
configuration, as it would with a real cable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lablib import nats

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lablib.topology import Member, Port, Router, Topology

FABRIC = "fabric"

_IPV6_AT_ONCE = {
    "net/ipv6/conf/all/accept_ra": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    # The addresses are ours: a second of tentativeness would only be waiting.
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
}
MEMBER_SYSCTLS = {
    **_IPV6_AT_ONCE,
    # As systemd's distributions have it.
    "net/ipv4/conf/all/rp_filter": "2",
    "net/ipv4/conf/default/rp_filter": "2",
    "net/ipv4/ping_group_range": "0 2147483647",
}
ROUTER_SYSCTLS = {
    **_IPV6_AT_ONCE,
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
}
FABRIC_SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
}


def fabric_port(machine: str, interface: str) -> str:
    """Return the name of the fabric's end of a cable."""
    return f"{machine}.{interface}"


def cables(topology: Topology) -> Iterator[tuple[str, Port]]:
    """Name every machine with each of its ports."""
    for router in topology.routers:
        for port in router.ports:
            yield router.name, port
    for member in topology.members:
        yield member.name, member.port


def fabric_commands(topology: Topology, pids: Mapping[str, int]) -> str:
    """Return what `ip -batch` does in the fabric; `pids` are the machines' holders."""
    lines = ["link set lo up"]
    for segment in topology.segments:
        # Snooping would take a while to learn who wants which multicast.
        lines.append(f"link add {segment.name} type bridge stp_state 0 mcast_snooping 0")
        lines.append(f"link set {segment.name} up")
    for machine, port in cables(topology):
        end = fabric_port(machine, port.interface)
        peer = f"peer name {port.interface} netns {pids[machine]}"
        lines.append(f"link add {end} type veth {peer}")
        lines.append(f"link set {end} master {port.segment} up")
    return _batch(lines)


def member_commands(member: Member) -> str:
    """Return what `ip -batch` does in a member."""
    lines = ["link set lo up", *_port_lines(member.port), *gateway_lines(member)]
    return _batch(lines)


def gateway_lines(member: Member) -> Iterator[str]:
    """Set the default routes; again after the address they hang on was taken away."""
    for gateway in (member.gateway_ipv4, member.gateway_ipv6):
        if gateway is not None:
            yield f"route replace default via {gateway} dev {member.port.interface}"


def router_commands(router: Router) -> str:
    """Return what `ip -batch` does in a router."""
    lines = ["link set lo up"]
    for port in router.ports:
        lines += _port_lines(port)
    lines += [f"route add {network} via {gateway}" for network, gateway in router.routes]
    return _batch(lines)


def router_rules(topology: Topology, router: Router) -> str:
    """Return what `nft -f` loads in a router: nothing in one that only routes."""
    if router.behaviour is None:
        return ""
    wires = {port.segment for port in router.ports[1:]}
    machines = (member.port for member in topology.members)
    inside = next((port.ipv4.ip for port in machines if port.segment in wires), None)
    return nats.router_rules(router.behaviour, router.uplink.ipv4.ip, inside)


def hosts_file(topology: Topology, member: Member) -> str:
    """Return a member's /etc/hosts: everyone it could call, by name."""
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    for other in topology.members:
        if topology.reachable(member, other):
            lines.append(f"{other.port.ipv4.ip} {other.name}")
            if other.port.ipv6 and member.port.ipv6:
                lines.append(f"{other.port.ipv6.ip} {other.name}")
    return _batch(lines)


def _port_lines(port: Port) -> Iterator[str]:
    yield f"link set {port.interface} up"
    yield f"address add {port.ipv4} dev {port.interface}"
    if port.ipv6:
        yield f"address add {port.ipv6} dev {port.interface} nodad"


def _batch(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
