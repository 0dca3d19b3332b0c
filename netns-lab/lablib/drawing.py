"""Pictures of topologies, made from their data.

Below each wire come those plugged into it; below a router, the wires on its far side:

    transit  192.0.2.0/24  2001:db8::/64
    |
    +-- router-a  192.0.2.1  2001:db8::1
    |   |
    |   site-a  203.0.113.0/29  2001:db8:1::/64
    |   |
    |   +-- a  203.0.113.2  2001:db8:1::2
    |
    +-- router-b  192.0.2.2  (maps ei, filters apd, keeps ports)
        |
        site-b  192.168.2.0/24
        |
        +-- b  192.168.2.2
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lablib.topology import Router

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lablib.topology import Member, Port, Segment, Topology


def draw(topology: Topology) -> str:
    """Return the picture of a topology, without a newline at its end."""
    below = {port.segment for router in topology.routers for port in router.ports[1:]}
    lines = [f"{topology.name}: {topology.summary}", ""]
    for segment in topology.segments:
        if segment.name not in below:
            lines += _segment_lines(topology, segment)
    return "\n".join(line.rstrip() for line in lines)


def _segment_lines(topology: Topology, segment: Segment) -> Iterator[str]:
    yield f"{segment.name}  {segment.ipv4}  {segment.ipv6 or ''}"
    plugged: list[Router | Member] = [
        *(router for router in topology.routers if router.uplink.segment == segment.name),
        *(member for member in topology.members if member.port.segment == segment.name),
    ]
    for index, machine in enumerate(plugged):
        first, *rest = _machine_lines(topology, machine)
        if index == 0 or rest:
            yield "|"
        yield f"+-- {first}"
        margin = "|   " if index < len(plugged) - 1 else "    "
        for line in rest:
            yield f"{margin}{line}"


def _machine_lines(topology: Topology, machine: Router | Member) -> Iterator[str]:
    if not isinstance(machine, Router):
        yield f"{machine.name}  {_addresses(machine.port)}"
        return
    note = "" if machine.behaviour is None else f"  ({machine.behaviour})"
    yield f"{machine.name}  {_addresses(machine.uplink)}{note}"
    for port in machine.ports[1:]:
        yield "|"
        segment = next(each for each in topology.segments if each.name == port.segment)
        yield from _segment_lines(topology, segment)


def _addresses(port: Port) -> str:
    return f"{port.ipv4.ip}  {port.ipv6.ip if port.ipv6 else ''}".rstrip()
