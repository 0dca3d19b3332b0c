"""`meshctl audit`: show the log, export it, and check it, by the daemon or without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from meshd.arguments import reader
from meshd.ctl.exits import Exit, Failed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from meshd.arguments import ArgumentParser
    from meshd.ctl.client import Client, Document
    from meshd.ctl.commands import Output

SHOWN = 50
EXPORTED = 200_000
VERIFY_TIMEOUT = 120.0


def add_audit(parser: ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.add_argument(
        "action", nargs="?", choices=("verify",), help="check that nothing was changed"
    )
    parser.add_argument(
        "-n",
        "--number",
        type=reader(_count),
        default=SHOWN,
        metavar="N",
        help=f"so many of the last entries ({SHOWN})",
    )
    parser.add_argument("--export", action="store_true", help="all entries, as JSON lines")
    parser.add_argument(
        "--noted", metavar="HEAD", help="a head noted earlier, which must still be in the log"
    )
    parser.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="read the log there, without a daemon"
    )


def audit(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Show the newest entries, or check all of them; done if nothing is wrong."""
    path = None if arguments.state_dir is None else _database(arguments)
    if arguments.action == "verify":
        document = _verdict(client, path, arguments.noted)
        output.show(document, lambda: verdict_text(document))
        return Exit.DONE if document["ok"] else Exit.FAILED
    last = EXPORTED if arguments.export else arguments.number
    for entry in _entries(client, path, last):
        if arguments.export:
            output.line(json.dumps(entry, ensure_ascii=False))
        else:
            output.show_line(entry, lambda: entry_text(entry))  # noqa: B023 - called at once
    return Exit.DONE


def verdict_text(document: Document) -> str:
    """Return what a verification has found."""
    count, fault, noted = document["entries"], document["fault"], document["noted"]
    lines = [f"{count} entries, head {document['head']}"]
    if fault is not None:
        lines.append(f"WRONG from entry {fault['number']} on: {fault['reason']}")
    else:
        lines.append("no entry was changed, removed, moved or put in")
    if noted is None:
        lines.append(
            "note the head elsewhere, and give it to --noted: whoever can write to this disk "
            "can make all of it anew, or put back an older copy, and only that shows it"
        )
    elif noted["contained"] is None:
        lines.append("the head that was noted is older than what is kept, so it tells nothing")
    elif noted["contained"]:
        lines.append("the head that was noted is in the log")
    else:
        lines.append("WRONG: the head that was noted is not in the log: it is another, or older")
    return "\n".join(lines)


def entry_text(entry: Document) -> str:
    """Return one line."""
    from meshd.values import printable

    details = " ".join(f"{key}={_value(value)}" for key, value in entry["details"].items())
    signer = f"by {_who(entry['signer'])}" if entry["signer"] else ""
    subject = _who(entry["subject"]) if entry["subject"] else ""
    parts = [str(entry["number"]), entry["at"], entry["kind"], subject, signer, details]
    return printable("  ".join(part for part in parts if part))


def _who(who: Document) -> str:
    return f"{who['name'] or ''}({who['id'][:10]})"


def _value(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _entries(client: Client, path: Path | None, last: int) -> Iterable[Document]:
    if path is None:
        return client.lines("GET", "/v1/audit", query={"last": last})
    return _offline(path, last)


def _offline(path: Path, last: int) -> Iterator[Document]:
    from meshd.control.audit import entry_document
    from meshd.store_audit import reading

    with reading(path) as log:
        for entry in log.after(log.before_last(last), last):
            yield entry_document(entry)


def _verdict(client: Client, path: Path | None, noted: str | None) -> Document:
    if path is None:
        return client.get("/v1/audit/verify", {"noted": noted}, timeout=VERIFY_TIMEOUT)
    from meshd.audit import Head
    from meshd.control.audit import verify_document

    try:
        head = None if noted is None else Head.parse(noted)
    except ValueError:
        raise Failed(Exit.USAGE, "--noted: give a head as `audit verify` shows it") from None
    return verify_document(path, head)


def _database(arguments: argparse.Namespace) -> Path:
    """Return the database that is meant.  Raise Failed."""
    directory: Path = arguments.state_dir
    interface = getattr(arguments, "interface", None)
    found = sorted(directory.glob(f"{interface or '*'}/mesh.db"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise Failed(Exit.FAILED, f"{directory}: holds no state of a meshd that may be read")
    names = ", ".join(path.parent.name for path in found)
    raise Failed(Exit.USAGE, f"{directory} holds several ({names}): choose one with --interface")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= EXPORTED:
        raise ValueError(f"must be a whole number from 1 to {EXPORTED}")
    return int(text[:9])
