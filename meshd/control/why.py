"""Why a member is reached as it is, in words: `GET /v1/why?name=…`, `meshd.why/1`.

The daemon fills a `WhySnapshot` with what it has tried; what follows from it, the reason and what
would have to change, is said here.

| the path | the reason                                  | what would change it                   |
| -------- | ------------------------------------------- | -------------------------------------- |
| direct   | which of the member's addresses answered    | nothing is to be changed               |
| relayed  | what keeps the direct ones from answering   | a port opened, IPv6, another NAT       |
| none     | nothing answers, or the member is not there | the same, a relay; or the member's end |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from meshd.control.fields import Fields
from meshd.control.lookup import find_member
from meshd.control.views import milliseconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from meshd.control.netcheck import NatSnapshot
    from meshd.control.routes import Document, Json, Request
    from meshd.control.snapshot import MemberSnapshot, MeshSnapshot
    from meshd.wg.types import Endpoint

Result: TypeAlias = Literal["in use", "works", "draining", "lost", "no answer", "not tried"]
PairClass: TypeAlias = Literal["lan", "host", "mapped", "reflexive", "relayed", "relayed-tcp"]

DIRECT: tuple[PairClass, ...] = ("lan", "host", "mapped", "reflexive")


@dataclass(frozen=True, slots=True)
class PairSnapshot:
    """One address that was tried, or is to be.  Ages in seconds; None for never."""

    pair_class: PairClass
    address: Endpoint
    relay: str | None  # name of the member whose port it is
    result: Result
    asked_age: float | None
    proven_age: float | None
    rtt: float | None
    unanswered: int  # pings since the last answer
    losses: int  # times it has failed under traffic, of late


@dataclass(frozen=True, slots=True)
class WhySnapshot:
    """Everything that is known of the way to one member."""

    member: MemberSnapshot
    installed: bool  # it is a peer in our kernel
    installs_us: bool  # we are one in its, as it said last
    pairs: tuple[PairSnapshot, ...]
    nat: NatSnapshot  # ours, for IPv4
    has_address: bool  # this host, one that can be used
    port: int  # WireGuard's, of this node
    relays: int  # members that relay, and can be reached
    key_conflict: bool  # its WireGuard key is also another member's


def why_route(
    status: Callable[[], MeshSnapshot], why: Callable[[MemberSnapshot], WhySnapshot]
) -> Callable[[Request], Awaitable[Document]]:
    """Return the handler of `GET /v1/why`."""

    async def handle(request: Request) -> Document:
        fields = Fields(request.query)
        name = fields.needed_text("name")
        fields.done()
        return why_document(why(find_member(status(), name)))

    return handle


def reason(snapshot: WhySnapshot) -> str:
    """Say in a sentence why the path is what it is."""
    member = snapshot.member
    if snapshot.key_conflict:
        return f"{member.name} has no tunnel: its WireGuard key is also another member's"
    if member.state == "left":
        return f"{member.name} has left the mesh by its own word"
    used = next((pair for pair in snapshot.pairs if pair.result == "in use"), None)
    if used is None and not snapshot.has_address:
        return "this node has no address to send from: its link is down, or it was given none"
    if used is None:
        return _nothing_works(snapshot)
    if used.pair_class in DIRECT:
        return f"{_OF_CLASS[used.pair_class].format(name=member.name)} answered"
    lost = [pair for pair in snapshot.pairs if pair.pair_class in DIRECT and pair.losses]
    if lost:
        return (
            f"the direct path by {lost[0].address} was lost under traffic; it has to prove itself"
        )
    return _why_not_direct(snapshot)


def advice(snapshot: WhySnapshot) -> list[str]:
    """Say what would have to change for a direct path; nothing where there is one."""
    member = snapshot.member
    if snapshot.key_conflict or member.state == "left" or _is_direct(snapshot):
        return []
    if not snapshot.has_address:
        return ["see to this node's own network: cable, address, default route"]
    return list(_advice(snapshot))


def why_document(snapshot: WhySnapshot) -> Document:
    """Return `meshd.why/1`."""
    member = snapshot.member
    return {
        "schema": "meshd.why/1",
        "member": member.name,
        "id": str(member.id),
        "state": member.state,
        "path": member.path,
        "transport": member.transport,
        "endpoint": None if member.endpoint is None else str(member.endpoint),
        "relay": member.relay,
        "rtt_ms": milliseconds(member.rtt),
        "reason": reason(snapshot),
        "advice": [*advice(snapshot)],
        "installed": snapshot.installed,
        "installs_us": snapshot.installs_us,
        "pairs": [_pair(pair) for pair in snapshot.pairs],
    }


_OF_CLASS = {
    "lan": "a private address of {name}'s own, in a network that both share,",
    "host": "an address of {name}'s own",
    "mapped": "a port that {name}'s router leads to it",
    "reflexive": "the port that {name}'s NAT has open for it",
}


def _pair(pair: PairSnapshot) -> Json:
    return {
        "class": pair.pair_class,
        "address": str(pair.address),
        "relay": pair.relay,
        "result": pair.result,
        "asked_s": _tenths(pair.asked_age),
        "proven_s": _tenths(pair.proven_age),
        "rtt_ms": milliseconds(pair.rtt),
        "unanswered": pair.unanswered,
        "losses": pair.losses,
    }


def _tenths(age: float | None) -> float | None:
    return None if age is None else round(age, 1)


def _is_direct(snapshot: WhySnapshot) -> bool:
    return any(pair.result == "in use" and pair.pair_class in DIRECT for pair in snapshot.pairs)


def _nothing_works(snapshot: WhySnapshot) -> str:
    member = snapshot.member
    if not snapshot.pairs:
        return f"{member.name} has told no address of its own, and has not been heard from"
    if member.state == "dead":
        return (
            f"nothing answers at any address of {member.name}'s: "
            "it or its meshd is down, or it is cut off"
        )
    if not any(pair.unanswered for pair in snapshot.pairs):
        return f"the addresses of {member.name} are being tried"
    return f"none of {member.name}'s addresses answers: {_why_not_direct(snapshot)}"


def _why_not_direct(snapshot: WhySnapshot) -> str:
    direct = [pair for pair in snapshot.pairs if pair.pair_class in DIRECT]
    name = snapshot.member.name
    dependent = snapshot.nat.depends
    if not direct:
        return f"{name} has told no address of its own"
    outside = [pair for pair in direct if pair.pair_class != "lan"]
    if not outside:
        theirs = f"{name} has only private addresses to tell"
        if dependent:
            return f"{theirs}, and this node's NAT uses another port towards each destination"
        return f"{theirs}: its NAT, it seems, uses another port towards each destination"
    if dependent:
        return (
            "this node's NAT uses another port towards each destination, and what is before "
            f"{name} lets in only what it has asked for"
        )
    return f"no answer from {', '.join(str(pair.address) for pair in outside[:3])}"


def _advice(snapshot: WhySnapshot) -> Iterator[str]:
    name, port = snapshot.member.name, snapshot.port
    reached = any(pair.result == "in use" for pair in snapshot.pairs)
    if snapshot.member.state == "dead":
        yield f"see whether {name} is up, and whether it reaches any member: `meshctl status` there"
        direct = (pair for pair in snapshot.pairs if pair.pair_class in DIRECT)
        if any(pair.proven_age is not None for pair in direct):
            return  # there was a direct path, so nothing about NATs has to change
    elif not reached and not snapshot.relays:
        yield "let a member with a public address relay: it does so by itself, or with `--relay`"
    if snapshot.nat.mapping != "no NAT":
        yield (
            f"lead UDP port {port} from this node's router to it, and say so with `--endpoint "
            f"ADDRESS:{port}`; or switch on PCP, NAT-PMP or UPnP in the router"
        )
    yield f"or do the same at {name}: one of the two is enough"
    yield "or give both IPv6: there is no NAT in it, only firewalls, which open from both sides"
