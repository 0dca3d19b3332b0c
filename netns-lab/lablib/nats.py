"""What stands between a member and everybody else: kinds of NAT and firewall, as data and as rules.

A NAT is told apart by two things (RFC 4787, sections 4.1 and 5).  Inside is the endpoint x, at the
uplink x' stands for it; y and z are endpoints outside:

    mapping     is x' the same towards y and z?         x ──▶ [x'] ──▶ y    always:     ei
    filtering   x has sent to y: may z answer to x'?    x ◀── [x'] ◀── z    at y's      ad
                                                                              address:
                                                                            never:      apd

Rule 1: a kind claims, and tests/lab/test_lab_nats.py measures each claim with plain sockets.

Rule 2: a mapping that is not `apd` and does not keep ports is learnt: the first datagram of x gets
        a port at random, which is written into `mapped` and found there by the next ones.

Rule 3: what may come in unasked is learnt in the same place, behind the translation, where the
        packet shows what the world sees: `inside` leads from a port of ours back to x, `contacted`
        says whom x has sent to from it.  With `apd` filtering, connection tracking is all it takes.

Rule 4: strangers are dropped before they leave a trace.  A router that answers them instead has
        them in its connection tracking, where they occupy what x needs for sending to them: its
        datagram gets another port, which nobody expects.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lablib.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from ipaddress import IPv4Address

WAN = "wan"  # every router's uplink
LAN = "lan"
FORWARDED_PORT = 51820  # what a forwarding router sends on to the machine inside: WireGuard's
LEARNT_LIFETIME = "3m"  # RFC 4787 REQ-5: not less than two minutes
LEARNT_MAX = 4096


class Dependence(enum.IntEnum):
    """What a mapping or a filter depends on besides the endpoint inside; the larger, the worse."""

    NOTHING = 0  # "endpoint-independent"
    ADDRESS = 1
    ADDRESS_AND_PORT = 2

    @property
    def short(self) -> str:
        """The letters it goes by in names of kinds."""
        return ("ei", "ad", "apd")[self]


@dataclass(frozen=True, slots=True)
class Nat:
    """A router that translates IPv4 and carries no IPv6."""

    mapping: Dependence
    filtering: Dependence
    preserves_ports: bool = False
    hairpins: bool = False  # from the inside, x' leads to x
    answers_strangers: bool = False  # rule 4
    forwards_port: bool = False  # FORWARDED_PORT, for ever
    passes_udp: bool = True

    def __post_init__(self) -> None:
        dependent = self.mapping is not Dependence.NOTHING
        assert not (dependent and self.preserves_ports), "a port that is kept is no dependent one"
        assert self.filtering >= self.mapping, "what passes a filter has to have a way to x"
        assert not self.hairpins or self.filtering is Dependence.NOTHING, "hairpins pass no filter"

    @property
    def learns(self) -> bool:
        """Whether rule 2 or 3 applies."""
        return self.learns_mapping or self.filtering is not Dependence.ADDRESS_AND_PORT

    @property
    def learns_mapping(self) -> bool:
        """Whether rule 2 applies."""
        return not self.preserves_ports and self.mapping is not Dependence.ADDRESS_AND_PORT

    def __str__(self) -> str:
        notes = {
            "keeps ports": self.preserves_ports,
            "hairpins": self.hairpins,
            "answers strangers": self.answers_strangers,
            f"forwards {FORWARDED_PORT}": self.forwards_port,
            "no UDP": not self.passes_udp,
        }
        said = ", ".join(note for note, holds in notes.items() if holds)
        return f"maps {self.mapping.short}, filters {self.filtering.short}, {said}".rstrip(", ")


@dataclass(frozen=True, slots=True)
class Firewall:
    """A router that carries IPv6 only, as it is, and lets nobody in who was not asked."""

    def __str__(self) -> str:
        return "IPv6 only, no strangers"


@dataclass(frozen=True, slots=True)
class Kind:
    """How a member is connected.  A lab has two members of each."""

    name: str
    summary: str
    router: Nat | Firewall | None = None  # none: a public subnet
    carrier: Nat | None = None  # one for both members' routers, in front of them
    shared: bool = False  # both members are on one wire behind one router


_EI, _AD, _APD = Dependence

PUBLIC = Kind("public", "public addresses, no firewall")
MASQUERADE = Nat(_EI, _APD, preserves_ports=True)  # what Linux does for one machine

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        PUBLIC,
        Kind("ei-ei", "keeps ports; anyone may answer", Nat(_EI, _EI, preserves_ports=True)),
        Kind("ei-ad", "keeps ports; an address may answer", Nat(_EI, _AD, preserves_ports=True)),
        Kind("ei-apd", "keeps ports; an endpoint may answer", MASQUERADE),
        Kind("ei-ei-r", "one port at random; anyone may answer", Nat(_EI, _EI)),
        Kind("ei-ad-r", "one port at random; an address may answer", Nat(_EI, _AD)),
        Kind("ei-apd-r", "one port at random; an endpoint may answer", Nat(_EI, _APD)),
        Kind("ad", "a port at random for each address", Nat(_AD, _APD)),
        Kind("apd", "a port at random for each endpoint", Nat(_APD, _APD)),
        Kind(
            "answers",
            "keeps ports, but answers strangers",
            Nat(_EI, _APD, preserves_ports=True, answers_strangers=True),
        ),
        Kind(
            "forward",
            "keeps ports, and forwards WireGuard's",
            Nat(_EI, _APD, preserves_ports=True, forwards_port=True),
        ),
        Kind("home", "two members on one wire behind one NAT", Nat(_EI, _APD), shared=True),
        Kind(
            "cgn",
            "a NAT behind the carrier's, which hairpins",
            MASQUERADE,
            carrier=Nat(_EI, _EI, hairpins=True),
        ),
        Kind("cgn-flat", "a NAT behind the carrier's", MASQUERADE, carrier=Nat(_EI, _EI)),
        Kind("v6-only", "IPv6 behind a stateful firewall", Firewall()),
        Kind(
            "no-udp",
            "TCP passes, UDP does not",
            Nat(_EI, _APD, preserves_ports=True, passes_udp=False),
        ),
    )
}


def kinds_named(names: Sequence[str]) -> tuple[Kind, ...]:
    """Return the kinds of these names, all without any; PUBLIC is always the first of them.

    Raise UsageError for a name that is none.
    """
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise UsageError(f"no kind of NAT is called {unknown[0]!r}; there are {', '.join(KINDS)}")
    return tuple(
        kind for kind in KINDS.values() if not names or kind is PUBLIC or kind.name in names
    )


def router_rules(router: Nat | Firewall, uplink: IPv4Address, inside: IPv4Address | None) -> str:
    """Return what `nft -f` loads in a router, in the place of what it had.

    `uplink` is its address outside, `inside` the machine that a forwarded port leads to.
    """
    if isinstance(router, Firewall):
        return "".join(f"{line}\n" for line in _firewall_lines())
    return "".join(f"{line}\n" for line in _nat_lines(router, uplink, inside))


def _firewall_lines() -> Iterator[str]:
    yield "table inet router"
    yield "delete table inet router"
    yield "table inet router {"
    yield from _chain(
        "forward",
        "type filter hook forward priority filter",
        "meta nfproto ipv4 drop",
        f"iifname {WAN} ct state established,related accept",
        f"iifname {WAN} drop",
    )
    yield "}"


def _nat_lines(nat: Nat, uplink: IPv4Address, inside: IPv4Address | None) -> Iterator[str]:
    yield "table ip router"
    yield "delete table ip router"
    yield "table ip router {"
    yield from _tables(nat)
    yield from _chain(
        "prerouting",
        "type nat hook prerouting priority dstnat",
        *_incoming(nat, uplink, inside),
    )
    strangers = "accept" if nat.answers_strangers else "drop"
    yield from _chain(
        "input",
        "type filter hook input priority filter",
        f"iifname {WAN} ct state established,related accept",
        f"iifname {WAN} {strangers}",
    )
    yield from _chain(
        "forward",
        "type filter hook forward priority filter",
        *([] if nat.passes_udp else ["meta l4proto udp drop"]),
        "ct state established,related accept",
        "ct status dnat accept",
        f"iifname {WAN} drop",
    )
    yield from _chain(
        "postrouting",
        "type nat hook postrouting priority srcnat",
        *_outgoing(nat, uplink),
    )
    if nat.learns:
        yield from _chain(
            "learn", "type filter hook postrouting priority srcnat + 10", *_learning(nat)
        )
    yield "}"


def _chain(name: str, hook: str, *rules: str) -> Iterator[str]:
    yield f"  chain {name} {{"
    yield f"    {hook}; policy accept;"
    for rule in rules:
        yield f"    {rule}"
    yield "  }"


def _tables(nat: Nat) -> Iterator[str]:
    """Declare what rules 2 and 3 learn."""
    bounds = f"flags dynamic,timeout; timeout {LEARNT_LIFETIME}; size {LEARNT_MAX};"
    endpoint = "ipv4_addr . inet_service"
    if nat.learns_mapping:
        towards = " . ipv4_addr" if nat.mapping is Dependence.ADDRESS else ""
        yield f"  map mapped {{ type {endpoint}{towards} : {endpoint}; {bounds} }}"
    if nat.filtering is not Dependence.ADDRESS_AND_PORT:
        yield f"  map inside {{ type inet_service : {endpoint}; {bounds} }}"
    if nat.filtering is Dependence.ADDRESS:
        yield f"  set contacted {{ type inet_service . ipv4_addr; {bounds} }}"


def _incoming(nat: Nat, uplink: IPv4Address, inside: IPv4Address | None) -> Iterator[str]:
    """Translate the destination of what comes in unasked."""
    back = "dnat ip to udp dport map @inside"
    if nat.forwards_port:
        yield f"iifname {WAN} udp dport {FORWARDED_PORT} dnat to {inside}"
    if nat.filtering is Dependence.NOTHING:
        yield f"iifname {WAN} {back}"
    if nat.filtering is Dependence.ADDRESS:
        yield f"iifname {WAN} udp dport . ip saddr @contacted {back}"
    if nat.hairpins:
        yield f"iifname {LAN} ip daddr {uplink} {back}"


def _outgoing(nat: Nat, uplink: IPv4Address) -> Iterator[str]:
    """Translate the source of what goes out, or out and in again."""
    towards = " . ip daddr" if nat.mapping is Dependence.ADDRESS else ""
    found = f"meta l4proto udp snat ip to ip saddr . udp sport{towards} map @mapped"
    if nat.learns_mapping:
        yield f"oifname {WAN} {found}"
    yield f"oifname {WAN} masquerade{'' if nat.preserves_ports else ' random,fully-random'}"
    if nat.hairpins:
        # RFC 4787 REQ-9: seen from inside, x is where it is seen from outside.
        yield f"iifname {LAN} oifname {LAN} ct status dnat {found}"
        yield f"iifname {LAN} oifname {LAN} ct status dnat snat to {uplink}"


def _learning(nat: Nat) -> Iterator[str]:
    """Write down where a datagram came from and what it looks like outside."""
    inside = "ct original ip saddr . ct original proto-src"
    rule = [f"iifname {LAN} meta l4proto udp ct direction original"]
    if nat.learns_mapping:
        towards = " . ip daddr" if nat.mapping is Dependence.ADDRESS else ""
        rule.append(f"update @mapped {{ {inside}{towards} : ip saddr . udp sport }}")
    if nat.filtering is not Dependence.ADDRESS_AND_PORT:
        rule.append(f"update @inside {{ udp sport : {inside} }}")
    if nat.filtering is Dependence.ADDRESS:
        rule.append("update @contacted { udp sport . ip daddr }")
    yield " ".join(rule)
