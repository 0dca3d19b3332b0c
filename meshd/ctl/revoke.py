"""`meshctl revoke`: throw a member out, after a look at what that comes to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from meshd.ctl.exits import Exit, Failed
from meshd.values import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from meshd.arguments import ArgumentParser
    from meshd.ctl.client import Client, Document
    from meshd.ctl.commands import Output

NAMES_SHOWN_MAX = 20


def add_revoke(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("name", metavar="NAME|ID", help="whole name, id, or id as it is shown")
    parser.add_argument(
        "--cascade", action="store_true", help="and all that it has let in, and those in turn"
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def revoke(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Say what would happen, have that confirmed, and do it; with `--yes` do it."""
    body = {"name": arguments.name, "cascade": arguments.cascade}
    if not arguments.yes:
        plan = client.post("/v1/revoke", body)
        if not _confirmed(plan):
            output.remark("nothing was done")
            return Exit.FAILED
        # By its id: a name might have become another's while we asked.
        body["name"] = plan["id"]
    document = client.post("/v1/revoke", {**body, "sure": True})
    output.show(document, lambda: _done_text(document))
    return Exit.DONE


def _confirmed(plan: Document) -> bool:
    if not sys.stdin.isatty():
        raise Failed(
            Exit.USAGE,
            f"this would revoke {plan['name']} for good: confirm with --yes, or on a terminal",
        )
    sys.stderr.write(_plan_text(plan) + "\nRevoke it? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _plan_text(plan: Document) -> str:
    shown = [plan["id"], plan["ipv4"], plan["ipv6"], plan["state"]]
    lines = [f"{plan['name']}: {', '.join(filter(None, shown))}"]
    if plan["falls"]:
        lines.append(f"out with it: {_names(plan['falls'])}")
    if plan["stays"]:
        lines.append(f"let in through it, and staying: {_names(plan['stays'])} (see --cascade)")
    lines.append(
        "Every member drops it at once and for good; the machine comes back only with a new "
        "state directory and another token."
    )
    return "\n".join(printable(line) for line in lines)


def _done_text(document: Document) -> str:
    text = f"revoked {document['name']} ({document['id']})"
    if document["falls"]:
        text += f", and with it {_names(document['falls'])}"
    return printable(text)


def _names(members: Sequence[Document]) -> str:
    names = [member["name"] for member in members]
    more = len(names) - NAMES_SHOWN_MAX
    return ", ".join(names[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
