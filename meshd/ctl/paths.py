"""`meshctl why`, `netcheck`, `relays`, `drain` and `undrain`: how others are reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.ctl.exits import Exit
from meshd.ctl.render import Column, bytes_text, duration_text, milliseconds_text, path_text, table
from meshd.values import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from meshd.arguments import ArgumentParser
    from meshd.ctl.client import Client, Document
    from meshd.ctl.commands import Output
    from meshd.ctl.render import Screen

_OF_RESULT = {"in use": "green", "works": "green", "no answer": "red", "lost": "yellow"}


def add_why(parser: ArgumentParser) -> None:
    """Describe the arguments of `why`."""
    parser.add_argument("name", metavar="NAME", help="name, id or address")


def why(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Say why a member is reached as it is; done if it is reached at all."""
    document = client.get("/v1/why", {"name": arguments.name})
    output.show(document, lambda: why_text(document, output.screen))
    return Exit.DONE if document["path"] else Exit.FAILED


def netcheck(client: Client, _: argparse.Namespace, output: Output) -> Exit:
    """Say what this node's network does."""
    document = client.get("/v1/netcheck")
    output.show(document, lambda: netcheck_text(document, output.screen))
    return Exit.DONE


def relays(client: Client, _: argparse.Namespace, output: Output) -> Exit:
    """Say who relays for whom."""
    document = client.get("/v1/relays")
    output.show(document, lambda: relays_text(document, output.screen))
    return Exit.DONE


def drain(client: Client, _: argparse.Namespace, output: Output) -> Exit:
    """Have those that are relayed here move elsewhere."""
    document = client.post("/v1/drain", {"draining": True})
    output.show(document, lambda: _drained_text(document))
    return Exit.DONE


def undrain(client: Client, _: argparse.Namespace, output: Output) -> Exit:
    """Relay again."""
    document = client.post("/v1/drain", {"draining": False})
    output.show(document, lambda: _self_text(document["self"]))
    return Exit.DONE


def why_text(document: Document, screen: Screen) -> str:
    """Return the path, the reason, what was tried, and what would have to change."""
    way = path_text(document) if document["path"] else "no path"
    head = f"{document['member']}: {document['state']}, {way}"
    if document["path"] and document["rtt_ms"] is not None:
        head += f", {milliseconds_text(document['rtt_ms'])}"
    lines = [printable(head), printable(document["reason"])]
    if document["path"] and not document["installs_us"]:
        lines.append(f"{document['member']} has not said that it has this node as a peer")
    if document["pairs"]:
        columns = (
            Column("TRIED", cut=True),
            Column("CLASS"),
            Column("RESULT", colours=_OF_RESULT.get),
            Column("RTT"),
            Column("ASKED", optional=True),
            Column("WORKED", optional=True),
        )
        rows = [
            [
                pair["address"] + (f" of {pair['relay']}" if pair["relay"] else ""),
                pair["class"],
                pair["result"],
                milliseconds_text(pair["rtt_ms"]),
                _ago(pair["asked_s"]),
                _ago(pair["proven_s"]),
            ]
            for pair in document["pairs"]
        ]
        lines += ["", *table(columns, rows, screen)]
    if document["advice"]:
        lines += ["", "for a direct path:" if document["path"] else "what may help:"]
        lines += [f"  {printable(step)}" for step in document["advice"]]
    return "\n".join(lines)


def netcheck_text(document: Document, screen: Screen) -> str:
    """Return what stands between this node and others, and where it is reached."""
    port = f"UDP port {document['listen_port']}, interface MTU {document['mtu']}"
    if document["control_port"]:
        port += f"; meshd itself at {document['control_port']}: without nft there are two ports"
    lines = [port, *map(_nat_text, document["nats"])]
    if not document["nats"]:
        lines.append(screen.paint("no usable address on this host", "red"))
    lines.append(f"port mapping: {_mapping_text(document['port_mapping'])}")
    if document["candidates"]:
        told = ", ".join(f"{each['endpoint']} ({each['kind']})" for each in document["candidates"])
        lines.append(f"told to members: {told}")
    else:
        lines.append("told to members: no address; they have to be called from here")
    if document["relays"]:
        columns = (Column("RELAY", cut=True), Column("REACHED AT", cut=True), Column("RTT"))
        rows = [
            [relay["name"], relay["endpoint"] or "-", milliseconds_text(relay["rtt_ms"])]
            for relay in document["relays"]
        ]
        lines += ["", *table(columns, rows, screen)]
    else:
        lines.append("relays: no member relays")
    return "\n".join(lines)


def relays_text(document: Document, screen: Screen) -> str:
    """Return who relays for this node, then for whom this node relays."""
    me = document["self"]
    lines = ["no other member relays"]
    if document["relays"]:
        lines = table(_RELAY_COLUMNS, [_relay(relay) for relay in document["relays"]], screen)
    lines += ["", _self_text(me)]
    if me["pairs"]:
        lines += ["", *table(_PAIR_COLUMNS, [_pair(pair) for pair in me["pairs"]], screen)]
    return "\n".join(lines)


_RELAY_COLUMNS = (
    Column("RELAY", cut=True),
    Column("STATE"),
    Column("REACHED AT", cut=True),
    Column("RTT"),
    Column("CARRIES", cut=True),
    Column("SPARE FOR", cut=True),
)
_PAIR_COLUMNS = (
    Column("MEMBERS", cut=True),
    Column("PORTS"),
    Column("STATE"),
    Column("CARRIED"),
    Column("ENDS IN", optional=True),
)


def _relay(relay: Document) -> list[str]:
    return [
        relay["name"],
        relay["state"],
        relay["endpoint"] or "-",
        milliseconds_text(relay["rtt_ms"]),
        " ".join(relay["in_use"]) or "-",
        " ".join(relay["spare"]) or "-",
    ]


def _pair(pair: Document) -> list[str]:
    return [
        " ".join(pair["members"]),
        " ".join(map(str, pair["ports"])),
        "forwards" if pair["bound"] else "waits",
        bytes_text(pair["bytes"]),
        duration_text(pair["expires_in_s"]),
    ]


def _self_text(me: Document) -> str:
    if not me["relaying"] and not me["pairs"]:
        return f"this node relays for nobody: {me['why_not']}"
    pairs = len(me["pairs"])
    text = f"this node relays {pairs} of at most {me['pairs_max']} pairs"
    text += f" by UDP ports {me['ports'][0]} to {me['ports'][1]}"
    if me["strangers"]:
        text += f"; {me['strangers']} datagrams of strangers dropped"
    return text + (f"; {me['why_not']}" if me["why_not"] else "")


def _drained_text(document: Document) -> str:
    pairs = len(document["self"]["pairs"])
    if not pairs:
        return "this node relays for nobody, and takes no new pairs"
    return (
        f"no new pairs; {pairs} {'is' if pairs == 1 else 'are'} asked to move, as soon as they "
        "have another way: `meshctl relays` shows who is left"
    )


def _nat_text(nat: Document) -> str:
    parts = [f"IPv{nat['family']}: {', '.join(nat['addresses'])}", *_behaviour(nat)]
    return "; ".join(parts)


def _behaviour(nat: Document) -> Iterator[str]:
    if not nat["told_by"]:
        yield "nobody has told yet how it looks from outside"
        return
    if nat["mapping"] == "no NAT":
        yield "no NAT"
    else:
        yield f"NAT: mapping {nat['mapping']}, filtering {nat['filtering']}"
        yield "ports preserved" if nat["port_preserving"] else "ports not preserved"
    if nat["reflexive"]:
        yield f"seen from outside as {', '.join(nat['reflexive'])}"
    yield f"told by {nat['told_by']} address{'es' if nat['told_by'] != 1 else ''}"


def _mapping_text(mapping: Document | None) -> str:
    if mapping is None:
        return "switched off"
    if mapping["endpoint"]:
        return f"{mapping['endpoint']} by {mapping['method']}, {_left(mapping['expires_in_s'])}"
    texts = {
        "unneeded": "not needed, or there is no router",
        "asking": "the router is being asked",
        "double-nat": "of no use: the router is itself behind NAT",
        "refused": f"refused by the router: {mapping['reason']}",
        "silent": "the router speaks neither PCP nor NAT-PMP nor UPnP",
        "released": "given back",
    }
    return texts.get(mapping["state"], str(mapping["state"]))


def _left(span: float | None) -> str:
    return "without end" if span is None else f"for {duration_text(span)} more"


def _ago(span: float | None) -> str:
    return "never" if span is None else f"{duration_text(span)} ago"
