"""`meshctl pending`, `approve` and `deny`: machines that ask to be let in without any secret."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from meshd import values
from meshd.arguments import reader
from meshd.bootstrap.approval_code import parse_code
from meshd.control.bounds import WINDOW_DEFAULT, WINDOW_MAX, WINDOW_MIN
from meshd.ctl.exits import Exit, Failed
from meshd.ctl.invites import add_grants, grants_of
from meshd.ctl.render import Column, duration_text, table
from meshd.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from meshd.arguments import ArgumentParser
    from meshd.ctl.client import Client, Document
    from meshd.ctl.commands import Output
    from meshd.ctl.render import Screen


def add_pending(parser: ArgumentParser) -> None:
    """Describe the arguments of `pending`."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--open",
        nargs="?",
        type=reader(_window),
        const=WINDOW_DEFAULT,
        metavar="SPAN",
        help="let machines without any secret ask, for 10m or so long",
    )
    group.add_argument("--close", action="store_true", help="let nobody ask any more")


def add_approve(parser: ArgumentParser) -> None:
    """Describe the arguments of `approve`."""
    parser.add_argument("who", metavar="CODE", help="the code that the machine shows; or its name")
    add_grants(parser)


def add_deny(parser: ArgumentParser) -> None:
    """Describe the arguments of `deny`."""
    parser.add_argument("who", metavar="CODE", help="the code that `pending` shows; or a name")


def pending(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Show who asks to be let in, having opened or closed the window."""
    if arguments.close:
        document = client.post("/v1/pending", {"close": True})
    elif arguments.open is not None:
        document = client.post("/v1/pending", {"open": arguments.open})
    else:
        document = client.get("/v1/pending")
    output.show(document, lambda: pending_text(document, output.screen))
    return Exit.DONE


def approve(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Let a machine in.  A name takes a look at the code as well, for names are only claimed."""
    code = parse_code(arguments.who) or _compared(client, arguments.who, output)
    document = client.post("/v1/approve", {"code": code, **grants_of(arguments)})
    output.show(
        document, lambda: f"approved {document['name']} ({document['code']}): it joins by itself"
    )
    return Exit.DONE


def deny(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Send a machine away."""
    code = parse_code(arguments.who) or _named(client, arguments.who)["code"]
    document = client.post("/v1/deny", {"code": code})
    output.show(document, lambda: f"denied {document['name']} ({document['code']})")
    return Exit.DONE


def _compared(client: Client, name: str, output: Output) -> str:
    """Return the code of the machine of a name, once somebody has seen it there."""
    found = _named(client, name)
    code = str(found["code"])
    if output.json or not sys.stdin.isatty():
        raise UsageError(f"give the code that {name} shows, not its name: anybody can claim that")
    sys.stderr.write(f"{name} at {found['address']} has the code {code} here.\n")
    sys.stderr.write("Does that machine itself show the same code? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Failed(
            Exit.FAILED,
            "not approved; if the codes differ, somebody is between the two machines: "
            f"`meshctl deny {code}`",
        )
    return code


def _named(client: Client, name: str) -> Document:
    """Return the one machine that waits under a name.  Raise Failed."""
    waiting = [
        each
        for each in client.get("/v1/pending")["pending"]
        if each["name"] == name and each["state"] == "waiting"
    ]
    if len(waiting) == 1:
        found: Document = waiting[0]
        return found
    if waiting:
        codes = ", ".join(each["code"] for each in waiting)
        raise Failed(Exit.FAILED, f"several call themselves {name}: give one of the codes {codes}")
    raise Failed(Exit.FAILED, f"nobody called {name!r} waits; `meshctl pending` shows who does")


def pending_text(document: Document, screen: Screen) -> str:
    """Return this machine's own code, or a line for each that waits."""
    own = document["own"]
    if own is not None:
        return (
            f"this machine asks {own['member']} to be let in; its code is "
            f"{screen.paint(own['code'], 'bold')}\n"
            f"there: meshctl approve {own['code']}"
        )
    span = document["open_for_s"]
    if span is None:
        head = "no window is open: nobody can ask; `meshctl pending --open` opens one for 10m"
    else:
        head = f"machines may ask for {duration_text(span)} more"
    rows = [
        [
            each["code"],
            each["name"],
            each["address"],
            duration_text(each["age_s"]),
            each["state"],
        ]
        for each in document["pending"]
    ]
    if not rows:
        return head if span is None else f"{head}; nobody has"
    columns = (
        Column("CODE"),
        Column("NAME", cut=True),
        Column("ADDRESS", cut=True),
        Column("AGE"),
        Column("STATE", optional=True),
    )
    lines = [head, "", *table(columns, rows, screen)]
    lines.append("Approve only a machine that shows the very same code.")
    return "\n".join(lines)


def _window(text: str) -> float:
    span = values.duration(text)
    if not WINDOW_MIN <= span <= WINDOW_MAX:
        raise ValueError("must be from 10s to 1h")
    return span
