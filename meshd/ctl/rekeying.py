"""`meshctl keys rotate --node`: another node key, and so another node id, for this machine."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from meshd.ctl.exits import Exit, Failed
from meshd.values import printable

if TYPE_CHECKING:
    import argparse

    from meshd.ctl.client import Client, Document
    from meshd.ctl.commands import Output

POLL_INTERVAL = 0.1
TIMEOUT = 60.0  # members are asked one after the other, and the daemon begins anew

_STEPS = {
    "asking": "asking for a credential for the new node key",
    "announced": "telling the members of it",
    None: "starting under the new node key",
}


def rotate_node(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Say what changes, have that confirmed, and wait until the new node is up."""
    plan = client.post("/v1/keys/node")
    if plan["trouble"] is not None and plan["phase"] is None and not arguments.yes:
        output.remark(printable(plan["trouble"]))
    if not arguments.yes and not _confirmed(plan):
        output.remark("nothing was done")
        return Exit.FAILED
    document = client.post("/v1/keys/node", {"sure": True})
    document = _wait(client, plan["node"], document, output)
    output.show(
        document,
        lambda: (
            f"{printable(document['name'])} is node {document['node']} at {document['ipv6']}; it "
            f"was {plan['node']} at {plan['ipv6']}"
        ),
    )
    return Exit.DONE


def _wait(client: Client, former: str, document: Document, output: Output) -> Document:
    deadline = time.monotonic() + TIMEOUT
    said: str | None = ""
    while document["node"] == former:
        if document["phase"] is None and document["trouble"] is not None:
            raise Failed(Exit.FAILED, f"the node key stays as it is: {document['trouble']}")
        if time.monotonic() >= deadline:
            raise Failed(
                Exit.FAILED,
                f"the node key is not replaced after {TIMEOUT:.0f} s; see `meshctl events`",
            )
        if document["phase"] != said:
            said = document["phase"]
            output.remark(_STEPS[said])
        time.sleep(POLL_INTERVAL)
        try:
            document = client.get("/v1/keys/node")
        except Failed as error:
            if error.status is not Exit.NO_DAEMON:
                raise
            document = {**document, "phase": None, "trouble": None}  # it is between the two
    return document


def _confirmed(plan: Document) -> bool:
    if not sys.stdin.isatty():
        raise Failed(
            Exit.USAGE,
            "this would replace the node key: confirm with --yes, or on a terminal",
        )
    lines = [
        f"{plan['name']}, node {plan['node']}, gets another node id.",
        f"Its IPv6 address follows from that: {plan['ipv6']} ends, and what is under way by it.",
        f"Name, IPv4 address ({plan['ipv4'] or 'none'}), rights and tunnels stay.",
    ]
    if plan["invites"]:
        lines.append(f"{plan['invites']} tokens that this node has made become void.")
    lines.append("A node key that may have leaked is no case for this: `meshctl revoke` is.")
    shown = "\n".join(printable(line) for line in lines)
    sys.stderr.write(f"{shown}\nReplace the node key? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
