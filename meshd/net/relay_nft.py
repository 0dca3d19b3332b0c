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

Rule 8: a datagram passes two rules in all, as short as can be: their expressions are what a relay
        costs.  So each IP version has a table of its own, and what need not be asked is not.

Every rule's comment carries a digest of all rules and maps.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.errors import DeviceError
from meshd.net import nft
from meshd.relay.maps import Flow
from meshd.underlay import MAGIC, DatagramType
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


ARRIVING_PRIORITY = -300  # raw: before connection tracking
LEAVING_PRIORITY = 300  # behind the host's own judgement of what may be forwarded
DIGEST_BYTES = 4
FLOWS_PER_PORT_MAX = 2  # where a member is, and where it has just been

# By IP version: what nft calls it, the type of its addresses, what a whole datagram has (of IPv4,
# no flag that there are more fragments; behind the first, there is no UDP header to be found), and
# what tells a sender of a shorter way.
FAMILIES: Final = {
    4: ("ip", "ipv4_addr", "meta l4proto udp @nh,48,8 != 0x20", "icmp type redirect"),
    6: ("ip6", "ipv6_addr", "ip6 nexthdr udp", "icmpv6 type nd-redirect"),
}


@dataclass(frozen=True, slots=True)
class Fence:
    """Where nothing but relayed datagrams may be forwarded."""

    ipv4: tuple[str, ...] = ()  # what comes in by these interfaces
    ipv6: bool = False  # whatever it comes in by


@dataclass(frozen=True, slots=True)
class RelayTable:
    """What the rules are made from."""

    interface: str
    ports_max: int
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
    passed: Mapping[int, int] = field(default_factory=dict)  # let by the host, by IP version


def table_name(interface: str) -> str:
    """Return the name of an interface's own relay tables."""
    return f"meshd_relay_{nft.in_name(interface)}"


def fits(flow: Flow) -> bool:
    """Whether the kernel can forward a flow: both sides have one IP version, and come by a wire."""
    source, target = flow.source.address, flow.target.address
    return source.version == target.version and not (source.is_loopback or target.is_loopback)


def render(table: RelayTable, flows: Iterable[Flow]) -> str:
    """Return the transaction that puts rules and flows in place, whatever was there before."""
    name = table_name(table.interface)
    text = render_removal(table.interface)
    for version, (ip, *_) in FAMILIES.items():
        maps = "".join(f"  map {map_} {{ {type_} }}\n" for map_, type_ in _maps(table, version))
        comments = iter(_comments(table, version))
        chains = "".join(
            f"  chain {chain} {{\n    type filter hook {hook}; policy accept;\n"
            + "".join(f'    {rule} comment "{next(comments)}"\n' for rule in rules)
            + "  }\n"
            for chain, hook, rules in _chains(table, version)
        )
        text += f"table {ip} {name} {{\n{maps}{chains}}}\n"
    return text + _commands("add", name, _elements(flows).items())


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


def render_removal(interface: str) -> str:
    """Return the transaction after which there are no tables of an interface's."""
    # `add` makes a table if there is none, so that `delete` cannot fail.
    return "".join(
        f"{verb} table {ip} {table_name(interface)}\n"
        for ip, *_ in FAMILIES.values()
        for verb in ("add", "delete")
    )


def observe(table: RelayTable) -> Observed:
    """Return what is in place.  Raise DeviceError."""
    name = table_name(table.interface)
    try:
        return read_listings(
            table,
            {
                version: nft.run("--json", "list", "table", ip, name, operation="list relay rules")
                for version, (ip, *_) in FAMILIES.items()
            },
        )
    except DeviceError as error:
        if error.errno == errno.ENOENT:
            return Observed(intact=False)
        raise


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
    """Remove an interface's relay tables, if there are any.  Raise DeviceError."""
    nft.load(render_removal(interface), operation="remove relay rules")


def read_listings(table: RelayTable, listings: Mapping[int, str]) -> Observed:
    """Return what listings of both IP versions say, in JSON: see libnftables-json(5)."""
    flows: dict[Flow, FlowCount] = {}
    passed: dict[int, int] = {}
    intact = True
    for version, listing in listings.items():
        comments: list[str] = []
        maps: dict[str, dict[Any, tuple[Any, FlowCount]]] = {}
        for entry in json.loads(listing)["nftables"]:
            if "rule" in entry:
                comments.append(entry["rule"].get("comment", ""))
                for expression in entry["rule"]["expr"]:
                    if "counter" in expression:
                        passed[version] = expression["counter"]["packets"]
            elif "map" in entry:
                elements = entry["map"].get("elem", ())
                maps[entry["map"]["name"]] = dict(_element(*pair) for pair in elements)
        found = _flows(maps)
        held = sum(len(elements) for elements in maps.values())
        intact = (
            intact
            and comments == _comments(table, version)
            and maps.keys() == dict(_maps(table, version)).keys()
            and held == len(_elements(found))  # else somebody has taken away a part
        )
        flows |= found
    return Observed(intact, flows, passed) if intact else Observed(intact=False)


def _flows(maps: Mapping[str, Mapping[Any, tuple[Any, FlowCount]]]) -> dict[Flow, FlowCount]:
    """Return the flows of which all elements are there."""
    flows: dict[Flow, FlowCount] = {}
    for key, (port, count) in maps.get("arriving", {}).items():
        source, source_port, local, local_port = key
        with contextlib.suppress(KeyError):
            (target_port, _), (target, _), (leaving, _) = (
                maps[name][port] for name in ("target_port", "target", "leaving")
            )
            flow = Flow(
                source=Endpoint(ip_address(source), source_port),
                arrives_at=Endpoint(ip_address(local), local_port),
                leaves_from=Endpoint(ip_address(leaving), port),
                target=Endpoint(ip_address(target), target_port),
            )
            flows[flow] = count
    return flows


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


def _maps(table: RelayTable, version: int) -> list[tuple[str, str]]:
    """Return names and types of the maps."""
    address = FAMILIES[version][1]
    ports = table.ports_max
    key = f"{address} . inet_service . {address} . inet_service"
    return [
        ("arriving", f"type {key} : inet_service; size {FLOWS_PER_PORT_MAX * ports}; counter;"),
        ("target_port", f"type inet_service : inet_service; size {ports};"),
        ("target", f"type inet_service : {address}; size {ports};"),
        ("leaving", f"type inet_service : {address}; size {ports};"),
    ]


def _chains(table: RelayTable, version: int) -> list[tuple[str, str, list[str]]]:
    """Return names of the chains, where each is hooked in, and their rules."""
    ip, _, whole, redirect = FAMILIES[version]
    # Most datagrams are WireGuard's, and told by four aligned bytes, which costs least.
    magic, hello = (f"0x{part.hex()}" for part in (MAGIC, bytes([DatagramType.RELAY_HELLO])))
    relay = (
        f"udp sport set {ip} saddr . udp sport . {ip} daddr . udp dport map @arriving "
        f"notrack meta mark set {table.mark:#x} udp dport set udp sport map @target_port "
        f"{ip} daddr set udp sport map @target accept"
    )
    arriving = [
        f"{whole} @th,64,32 != {magic} {relay}",
        f"{whole} @th,64,32 {magic} @th,96,8 != {hello} {relay}",
    ]
    # Raw, as the mark says already that it is UDP.
    source_port = "@th,0,16"
    leaving = [
        f"meta mark {table.mark:#x} {ip} saddr set {source_port} map @leaving counter accept",
        *_fence(table.fence, version),
    ]
    chains = [
        ("arriving", f"prerouting priority {ARRIVING_PRIORITY}", arriving),
        ("leaving", f"forward priority {LEAVING_PRIORITY}", leaving),
    ]
    if leaving[1:]:
        redirects = f"output priority {LEAVING_PRIORITY}"
        chains.append(("redirects", redirects, [f"{redirect} drop"]))
    return chains


def _fence(fence: Fence, version: int) -> list[str]:
    if version == 6:
        return ["drop"] if fence.ipv6 else []
    names = ", ".join(f'"{name}"' for name in fence.ipv4)
    return [f"iifname {{ {names} }} drop"] if names else []


def _elements(flows: Iterable[Flow]) -> dict[tuple[str, str, str], str]:
    """Return the values of elements by IP, map and key.

    Flows to one member have some in common.
    """
    elements: dict[tuple[str, str, str], str] = {}
    for flow in flows:
        ip = FAMILIES[flow.source.address.version][0]
        source, local = flow.source, flow.arrives_at
        port = str(flow.leaves_from.port)
        key = f"{source.address} . {source.port} . {local.address} . {local.port}"
        elements[ip, "arriving", key] = port
        elements[ip, "target_port", port] = str(flow.target.port)
        elements[ip, "target", port] = str(flow.target.address)
        elements[ip, "leaving", port] = str(flow.leaves_from.address)
    return elements


def _commands(verb: str, name: str, elements: Iterable[tuple[tuple[str, str, str], str]]) -> str:
    """Return the commands that add or delete elements, one for each map."""
    by_map: dict[str, list[str]] = {}
    for (ip, map_, key), value in elements:
        text = key if verb == "delete" else f"{key} : {value}"
        by_map.setdefault(f"{ip} {name} {map_}", []).append(text)
    return "".join(
        f"{verb} element {map_} {{ {', '.join(texts)} }}\n" for map_, texts in by_map.items()
    )


def _comments(table: RelayTable, version: int) -> list[str]:
    """Return one comment for each rule, in their order, telling of which rule set it is."""
    chains = _chains(table, version)
    rules = repr((table_name(table.interface), _maps(table, version), chains))
    digest = hashlib.blake2s(rules.encode(), digest_size=DIGEST_BYTES).hexdigest()
    return [
        f"meshd {digest} {chain} {number}"
        for chain, _, texts in chains
        for number in range(len(texts))
    ]
