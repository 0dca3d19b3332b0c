"""A relay's flows in the kernel: ciphertext goes from port to port without waking meshd.

    member a                            relay                             member b
    A:pA ──▶ R:51900 ──┬─ hello? ──▶ meshd                             ┌──▶ B:pB
                       │                                               │
                       └─ prerouting, raw ───── route ───── forward ───┘
                          source port := 51901         source := R'
                          destination := B:pB

Rule 1: stateless.  Connection tracking never sees a relayed datagram, so a binding that moves is
        followed at once, and no NAT of the host's touches it.

Rule 2: the key is all of it: the member's address and port, ours and the allotted port.  What
        differs in one of them goes up to meshd's socket (`meshd.net.forwarder`), as hellos do, and
        fragments, which only a socket puts together again.

Rule 3: the port it leaves from stands for one member.  It is written into the datagram first, and
        is the key to all else: an address cannot be looked up by what has been overwritten.

Rule 4: a local source address in prerouting would be a martian, so it is written on forwarding.

Rule 5: relayed datagrams bear the mark of WireGuard's, so policy routing treats them alike.

Rule 6: where meshd has switched forwarding on itself (`meshd.net.forwarding`), nothing but relayed
        datagrams is forwarded, and no ICMP redirect is sent.

Rule 7: a change is a few elements in one transaction.  The whole table is loaded, in one
        transaction as well, only when its rules are not those of this version and configuration.

Every rule's comment carries a digest of all rules and maps.
"""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.errors import DeviceError
from meshd.net import nft
from meshd.relay.maps import Flow
from meshd.underlay import DatagramType, header
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshd.values import PortRange

ARRIVING_PRIORITY = -300  # raw: before connection tracking
LEAVING_PRIORITY = 300  # behind the host's own judgement of what may be forwarded
DIGEST_BYTES = 4
FLOWS_PER_PORT_MAX = 2  # where a member is, and where it has just been

# Of each IP version: what nft calls it, the type of its addresses, what tells a fragment.
FAMILIES: Final = {
    4: ("ip", "ipv4_addr", "ip frag-off & 0x3fff != 0"),
    6: ("ip6", "ipv6_addr", "exthdr frag exists"),
}
COUNTERS: Final = tuple(
    f"{name}{version}" for name in ("taken", "forwarded") for version in FAMILIES
)


@dataclass(frozen=True, slots=True)
class Fence:
    """Where nothing but relayed datagrams may be forwarded."""

    ipv4: tuple[str, ...] = ()  # what comes in by these interfaces
    ipv6: bool = False  # whatever it comes in by


@dataclass(frozen=True, slots=True)
class RelayTable:
    """What the rules are made from."""

    interface: str
    ports: PortRange
    mark: int
    fence: Fence = field(default_factory=Fence)


class FlowCount(NamedTuple):
    """What has been forwarded.  The kernel counts IP headers too."""

    datagrams: int
    bytes: int

    def plus(self, datagrams: int, octets: int) -> FlowCount:
        """Return the sum."""
        return FlowCount(self.datagrams + datagrams, self.bytes + octets)


NOTHING: Final = FlowCount(0, 0)


@dataclass(frozen=True, slots=True)
class Observed:
    """A relay's table as it stands."""

    intact: bool  # all the rules, as made from exactly this `RelayTable`
    flows: Mapping[Flow, FlowCount] = field(default_factory=dict)  # since its element was made
    # By IP version: datagrams whose destination was rewritten, and those that the host let pass.
    taken: Mapping[int, int] = field(default_factory=dict)
    forwarded: Mapping[int, int] = field(default_factory=dict)


def table_name(interface: str) -> str:
    """Return the name of an interface's own relay table."""
    return f"meshd_relay_{nft.in_name(interface)}"


def fits(flow: Flow) -> bool:
    """Whether the kernel can forward a flow: both sides have one IP version, and come by a wire."""
    source, target = flow.source.address, flow.target.address
    return source.version == target.version and not (source.is_loopback or target.is_loopback)


def render(table: RelayTable, flows: Iterable[Flow]) -> str:
    """Return the transaction that puts rules and flows in place, whatever was there before."""
    name = table_name(table.interface)
    comments = iter(_comments(table))
    chains = "".join(
        f"  chain {chain} {{\n"
        + (f"    type filter {hook}; policy accept;\n" if hook else "")
        + "".join(f'    {rule} comment "{next(comments)}"\n' for rule in rules)
        + "  }\n"
        for chain, (hook, rules) in _chains(table).items()
    )
    # `add` makes the table if there is none, so that `delete` cannot fail.
    return (
        f"add table inet {name}\ndelete table inet {name}\n"
        f"table inet {name} {{\n"
        + "".join(f"  counter {counter} {{ }}\n" for counter in COUNTERS)
        + "".join(f"  map {map_} {{ {text} }}\n" for map_, text in _maps(table).items())
        + f"{chains}}}\n"
        + _commands("add", name, _elements(flows).items())
    )


def render_change(table: RelayTable, before: frozenset[Flow], after: frozenset[Flow]) -> str:
    """Return the transaction that makes the flows after out of those before; perhaps none."""
    name = table_name(table.interface)
    touched = {flow.leaves_from.port for flow in before ^ after}
    old, new = (
        _elements(flow for flow in flows if flow.leaves_from.port in touched)
        for flows in (before, after)
    )
    return _commands("delete", name, old.items() - new.items()) + _commands(
        "add", name, new.items() - old.items()
    )


def observe(table: RelayTable) -> Observed:
    """Return what is in place.  Raise DeviceError."""
    try:
        listing = nft.run(
            *("--json", "list", "table", "inet", table_name(table.interface)),
            operation="list relay rules",
        )
    except DeviceError as error:
        if error.errno == errno.ENOENT:
            return Observed(intact=False)
        raise
    return read_listing(table, listing)


def apply(table: RelayTable, flows: Iterable[Flow]) -> None:
    """Put rules and flows in place, in one step.  Raise DeviceError; then nothing has changed.

    Here and in `change`, each of the flows `fits`.
    """
    nft.load(render(table, flows), operation="load relay rules")


def change(table: RelayTable, before: frozenset[Flow], after: frozenset[Flow]) -> None:
    """Change flows, in one step.  Raise DeviceError; then nothing has changed: observe again."""
    transaction = render_change(table, before, after)
    if transaction:
        nft.load(transaction, operation="change relayed flows")


def remove(interface: str) -> None:
    """Remove an interface's relay table, if there is one.  Raise DeviceError."""
    name = table_name(interface)
    nft.load(f"add table inet {name}\ndelete table inet {name}\n", operation="remove relay rules")


def read_listing(table: RelayTable, listing: str) -> Observed:
    """Return what a listing in JSON says: see libnftables-json(5)."""
    comments: list[str] = []
    counters: dict[str, int] = {}
    maps: dict[str, dict[Any, tuple[Any, FlowCount]]] = {}
    for entry in json.loads(listing)["nftables"]:
        if "rule" in entry:
            comments.append(entry["rule"].get("comment", ""))
        elif "counter" in entry:
            counters[entry["counter"]["name"]] = entry["counter"]["packets"]
        elif "map" in entry:
            elements = entry["map"].get("elem", ())
            maps[entry["map"]["name"]] = dict(_element(*pair) for pair in elements)
    flows: dict[Flow, FlowCount] = {}
    intact = comments == _comments(table) and maps.keys() == _maps(table).keys()
    for version in FAMILIES if intact else ():
        for key, (port, count) in maps[f"arriving{version}"].items():
            try:
                flows[_flow(maps, version, key, port)] = count
            except KeyError:  # somebody has taken a part of it away
                intact = False
    held = sum(len(elements) for elements in maps.values())
    intact = intact and held == len(_elements(flows))
    return Observed(
        intact,
        flows,
        taken={version: counters.get(f"taken{version}", 0) for version in FAMILIES},
        forwarded={version: counters.get(f"forwarded{version}", 0) for version in FAMILIES},
    )


def _flow(maps: Mapping[str, Mapping[Any, Any]], version: int, key: Any, port: int) -> Flow:  # noqa: ANN401 - JSON
    source, source_port, local, local_port = key
    return Flow(
        source=Endpoint(ip_address(source), source_port),
        arrives_at=Endpoint(ip_address(local), local_port),
        leaves_from=Endpoint(ip_address(maps[f"leaving{version}"][port][0]), port),
        target=Endpoint(
            ip_address(maps[f"target{version}"][port][0]), maps["target_port"][port][0]
        ),
    )


def _element(key: Any, value: Any) -> tuple[Any, tuple[Any, FlowCount]]:  # noqa: ANN401 - JSON
    """Return key and value of a map's element, and what it has counted."""
    count = NOTHING
    if isinstance(key, dict) and "elem" in key:
        counter = key["elem"].get("counter", {})
        count = FlowCount(counter.get("packets", 0), counter.get("bytes", 0))
        key = key["elem"]["val"]
    if isinstance(key, dict):
        key = tuple(key["concat"])
    return key, (value, count)


def _maps(table: RelayTable) -> dict[str, str]:
    ports = table.ports.last - table.ports.first + 1
    size = f"size {ports};"
    maps = {"target_port": f"type inet_service : inet_service; {size}"}
    for version, (_, address, _) in FAMILIES.items():
        key = f"{address} . inet_service . {address} . inet_service"
        maps[f"arriving{version}"] = (
            f"type {key} : inet_service; size {FLOWS_PER_PORT_MAX * ports}; counter;"
        )
        maps[f"target{version}"] = f"type inet_service : {address}; {size}"
        maps[f"leaving{version}"] = f"type inet_service : {address}; {size}"
    return maps


def _chains(table: RelayTable) -> dict[str, tuple[str, list[str]]]:
    """Return the chains by name: where each is hooked in, and its rules."""
    hello = header(DatagramType.RELAY_HELLO)
    chains: dict[str, tuple[str, list[str]]] = {}
    leaving = []
    arriving = []
    for version, (ip, _, fragment) in FAMILIES.items():
        key = f"{ip} saddr . udp sport . {ip} daddr . udp dport"
        relay = (
            f"udp sport set {key} map @arriving{version} notrack meta mark set {table.mark:#x} "
            "udp dport set udp sport map @target_port "
            f"{ip} daddr set udp sport map @target{version} counter name taken{version}"
        )
        chains[f"relayed{version}"] = "", [f"{fragment} return", relay]
        arriving.append(
            f"meta nfproto ipv{version} udp dport {table.ports} "
            f"@th,64,{8 * len(hello)} != 0x{hello.hex()} jump relayed{version}"
        )
        leaving.append(
            f"meta mark {table.mark:#x} udp sport {table.ports} "
            f"{ip} saddr set udp sport map @leaving{version} "
            f"counter name forwarded{version} accept"
        )
    chains["arriving"] = f"hook prerouting priority {ARRIVING_PRIORITY}", arriving
    leaving += _fence(table.fence)
    chains["leaving"] = f"hook forward priority {LEAVING_PRIORITY}", leaving
    if table.fence != Fence():
        redirects = ["icmp type redirect drop", "icmpv6 type nd-redirect drop"]
        chains["redirects"] = f"hook output priority {LEAVING_PRIORITY}", redirects
    return chains


def _fence(fence: Fence) -> list[str]:
    rules = []
    if fence.ipv4:
        names = ", ".join(f'"{name}"' for name in fence.ipv4)
        rules.append(f"meta nfproto ipv4 iifname {{ {names} }} drop")
    if fence.ipv6:
        rules.append("meta nfproto ipv6 drop")
    return rules


def _elements(flows: Iterable[Flow]) -> dict[tuple[str, str], str]:
    """Return the values of elements by map and key.  Flows to one member have some in common."""
    elements: dict[tuple[str, str], str] = {}
    for flow in flows:
        version = flow.source.address.version
        source, local = flow.source, flow.arrives_at
        port = str(flow.leaves_from.port)
        key = f"{source.address} . {source.port} . {local.address} . {local.port}"
        elements[f"arriving{version}", key] = port
        elements["target_port", port] = str(flow.target.port)
        elements[f"target{version}", port] = str(flow.target.address)
        elements[f"leaving{version}", port] = str(flow.leaves_from.address)
    return elements


def _commands(verb: str, name: str, elements: Iterable[tuple[tuple[str, str], str]]) -> str:
    """Return the commands that add or delete elements, one for each map."""
    by_map: dict[str, list[str]] = {}
    for (map_, key), value in elements:
        by_map.setdefault(map_, []).append(key if verb == "delete" else f"{key} : {value}")
    return "".join(
        f"{verb} element inet {name} {map_} {{ {', '.join(texts)} }}\n"
        for map_, texts in by_map.items()
    )


def _comments(table: RelayTable) -> list[str]:
    """Return one comment for each rule, in their order, telling of which rule set it is."""
    chains = _chains(table)
    digest = hashlib.blake2s(
        repr((table_name(table.interface), _maps(table), chains)).encode(),
        digest_size=DIGEST_BYTES,
    ).hexdigest()
    return [
        f"meshd {digest} {chain} {number}"
        for chain, (_, rules) in chains.items()
        for number in range(len(rules))
    ]
