"""What befalls an underlay: routers that lose datagrams, forget what they know, or lose a line.

A cut is a table of its own in a router, in front of its other rules, about one address beyond it:

    inside ──▶ │ forward: cut at -10, then the router's own at 0 │ ──▶ uplink ──▶ that address
           ◀── │                                                 │ ◀──
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lablib import conntrack, fabric
from lablib.errors import LabError

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from lablib.lab import Lab
    from lablib.namespace import Namespace
    from lablib.node import Node
    from lablib.topology import Router

PERCENT_MAX = 100


def router_of(lab: Lab, node: Node) -> Router:
    """Return the router next to a node."""
    segment = node.member.port.segment
    for router in lab.topology.routers:
        if any(port.segment == segment for port in router.ports[1:]):
            return router
    raise LabError(f"{node.name} is behind no router")


def outside_address(lab: Lab, node: Node) -> IPv4Address:
    """Return the IPv4 address that others see a node at: its own, or its outermost NAT's."""
    address, segment = node.ipv4.ip, node.member.port.segment
    while True:
        above = next(
            (
                router
                for router in lab.topology.routers
                if router.masquerades and any(port.segment == segment for port in router.ports[1:])
            ),
            None,
        )
        if above is None:
            return address
        address, segment = above.uplink.ipv4.ip, above.uplink.segment


def cut(
    lab: Lab, node: Node, address: IPv4Address | IPv6Address, *, percent: int = PERCENT_MAX
) -> None:
    """Have a node's router lose what goes to an address and comes from it, or a part of it."""
    assert 0 < percent <= PERCENT_MAX
    family = "ip" if address.version == 4 else "ip6"
    some = "" if percent == PERCENT_MAX else f"numgen random mod {PERCENT_MAX} < {percent} "
    rules = (
        f"table inet cut\ndelete table inet cut\n"
        f"table inet cut {{\n  chain forward {{\n"
        f"    type filter hook forward priority filter - 10; policy accept;\n"
        f"    {family} saddr {address} {some}drop\n"
        f"    {family} daddr {address} {some}drop\n  }}\n}}\n"
    )
    _machine(lab, node).run(["nft", "-f", "-"], stdin=rules)


def mend(lab: Lab, node: Node) -> None:
    """Undo a cut."""
    _machine(lab, node).run(["nft", "delete", "table", "inet", "cut"])


def rebind(lab: Lab, node: Node) -> None:
    """Restart the NAT next to a node: it knows no mapping any more, and makes new ones."""
    router = router_of(lab, node)
    machine = lab.namespaces[router.name]
    # Meanwhile nothing passes: it would have its old mapping learnt again.
    machine.run(["nft", "-f", "-"], stdin=f"{_OFF}{fabric.router_rules(lab.topology, router)}")
    machine.call(conntrack.flush, "forget tracked connections")
    machine.run(["nft", "delete", "table", "inet", "off"])


_OFF = """table inet off {
  chain prerouting {
    type filter hook prerouting priority raw - 10; policy drop;
  }
}
"""


def _machine(lab: Lab, node: Node) -> Namespace:
    return lab.namespaces[router_of(lab, node).name]
