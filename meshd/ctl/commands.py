"""What each command of `meshctl` does: ask the daemon, write the answer, return the exit status."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.ctl import render
from meshd.ctl.exits import Exit, Failed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from meshd.ctl.client import Client, Document
    from meshd.ctl.render import Screen

WATCH_INTERVAL = 1.0
RETRY_INTERVAL = 0.05  # for a daemon that is being started
WAIT_STEP_MAX = 20.0  # of one request; the server allows 30
LEAVE_TIMEOUT = 30.0
PINGS_UNTIL_DIRECT = 10  # a path that can be direct is so by then


class OutputFailed(Failed):
    """The answer could not be written; what was asked for has been done all the same."""


@dataclass(frozen=True, slots=True)
class Output:
    """Where answers go, and in which form."""

    screen: Screen
    json: bool

    def show(self, document: Document, text: Callable[[], str]) -> None:
        """Write a whole document, or the text made of it."""
        if self.json:
            # Indented for eyes; one line for pipes.
            indent = 2 if self.screen.width is not None else None
            self.line(json.dumps(document, indent=indent, ensure_ascii=False))
        else:
            self.line(text())

    def show_line(self, document: Document, text: Callable[[], str]) -> None:
        """Write one of many documents, or the text made of it, on one line."""
        self.line(json.dumps(document, ensure_ascii=False) if self.json else text())

    def line(self, text: str) -> None:
        """Write a line at once, for those who read along.  Raise BrokenPipeError, OutputFailed."""
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as exc:
            reason = exc.strerror or exc
            raise OutputFailed(Exit.FAILED, f"cannot write the answer: {reason}") from exc

    def remark(self, text: str) -> None:
        """Tell a person something that is not part of the answer."""
        if not self.json:
            sys.stderr.write(text + "\n")


def status(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Show the mesh as this node sees it."""
    if arguments.check is not None:
        return _check(client, arguments.check, output)
    while True:
        document = client.get("/v1/status")
        if arguments.watch and output.screen.width is not None and not output.json:
            sys.stdout.write("\x1b[H\x1b[J")  # to the first line, and clear from there
        if arguments.watch:
            output.show_line(document, lambda: render.status_text(document, output.screen))  # noqa: B023 - called at once
        else:
            output.show(document, lambda: render.status_text(document, output.screen))  # noqa: B023
            return Exit.DONE
        time.sleep(WATCH_INTERVAL)


def _check(client: Client, wanted: str, output: Output) -> Exit:
    document = client.get("/v1/status")
    good = wanted == "live" or document["self"]["ready"]
    answer = {"schema": "meshd.check/1", "check": wanted, "ok": good}
    output.show(answer, lambda: wanted if good else f"not {wanted}")
    return Exit.DONE if good else Exit.FAILED


def peers(client: Client, _: argparse.Namespace, output: Output) -> Exit:
    """Show the WireGuard peers."""
    document = client.get("/v1/peers")
    output.show(document, lambda: render.peers_text(document, output.screen))
    return Exit.DONE


def ping(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Ping a member so often, or until the way is direct; done if any ping was answered."""
    body = {
        "name": arguments.name,
        "count": arguments.count or PINGS_UNTIL_DIRECT,
        "until_direct": arguments.count is None,
        "interval": arguments.interval,
    }
    answered = 0
    for document in client.lines("POST", "/v1/ping", body=body):
        if document["schema"] == "meshd.ping/1":
            output.show_line(document, lambda: render.ping_text(document))  # noqa: B023 - called at once
        else:
            answered = document["answered"]
            output.show_line(document, lambda: render.ping_summary_text(document))  # noqa: B023
    return Exit.DONE if answered else Exit.FAILED


def wait(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Block until a condition holds.

    With `--timeout`, a daemon that is not there yet is waited for as well.
    """
    started = time.monotonic()
    deadline = None if arguments.timeout is None else started + arguments.timeout
    query = {name: getattr(arguments, name) for name in ("members", "name", "state", "path")}
    while True:
        left = WAIT_STEP_MAX if deadline is None else max(0.0, deadline - time.monotonic())
        step = min(left, WAIT_STEP_MAX)
        try:
            document = client.get(
                "/v1/wait", {**query, "timeout": f"{step:.3f}"}, timeout=step + 10
            )
        except Failed as exc:
            late = deadline is None or time.monotonic() >= deadline
            if exc.status is not Exit.NO_DAEMON or late:
                raise
            time.sleep(min(RETRY_INTERVAL, left))
            continue
        satisfied = document["satisfied"]
        if satisfied or (deadline is not None and time.monotonic() >= deadline):
            document["waited_s"] = round(time.monotonic() - started, 3)
            output.show(document, lambda: _waited(document))  # noqa: B023 - called at once
            return Exit.DONE if satisfied else Exit.FAILED


def _waited(document: Document) -> str:
    if document["satisfied"]:
        return f"holds after {document['waited_s']:.1f} s"
    return f"does not hold after {document['waited_s']:.1f} s: {document['lacks']}"


def events(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Show what has happened, and with `--follow` what happens."""
    query = {"recent": arguments.number}
    if not arguments.follow:
        for document in client.get("/v1/events", query)["events"]:
            output.show_line(document, lambda: render.event_text(document))  # noqa: B023 - called at once
        return Exit.DONE
    for document in client.lines("GET", "/v1/events", query={**query, "follow": 1}):
        output.show_line(document, lambda: render.event_text(document))  # noqa: B023 - called at once
    return Exit.NO_DAEMON  # it has ended


def leave(client: Client, _: argparse.Namespace, output: Output) -> Exit:
    """Announce departure and end the daemon."""
    document = client.post("/v1/leave", timeout=LEAVE_TIMEOUT)
    output.show(document, lambda: "left the mesh; keys and state are kept")
    return Exit.DONE


def forget(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Drop what is known of a member that is not alive."""
    document = client.post("/v1/forget", {"name": arguments.name})
    output.show(document, lambda: f"forgot {document['name']}; it may come back by itself")
    return Exit.DONE
