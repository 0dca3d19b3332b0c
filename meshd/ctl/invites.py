"""`meshctl invite` and `meshctl invites`: tokens are made, drawn, listed and taken back."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from meshd import values
from meshd.arguments import reader
from meshd.control.bounds import (
    CREDENTIAL_LIFETIME_MAX,
    CREDENTIAL_LIFETIME_MIN,
    INVITE_LIFETIME_DEFAULT,
    INVITE_LIFETIME_MAX,
    INVITE_LIFETIME_MIN,
)
from meshd.ctl.exits import Exit, Failed
from meshd.ctl.render import Column, table
from meshd.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from meshd.arguments import ArgumentParser
    from meshd.ctl.client import Client, Document
    from meshd.ctl.commands import Output
    from meshd.ctl.render import Screen

SHORT_ID_CHARS = 10
QR_KINDS = (".png", ".svg")
_OF_STATE = {"open": "green", "used": "dim", "withdrawn": "yellow", "expired": "dim", "void": "dim"}


def add_invite(parser: ArgumentParser) -> None:
    """Describe the arguments of `invite`."""
    parser.add_argument(
        "--expires",
        type=reader(_lifetime),
        default=INVITE_LIFETIME_DEFAULT,
        metavar="SPAN",
        help="how long it can be used, such as 30m or 7d (1h)",
    )
    parser.add_argument(
        "--reusable",
        nargs="?",
        type=reader(_uses),
        const=0,
        default=1,
        metavar="COUNT",
        help="by so many machines, or by any number",
    )
    add_grants(parser)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--qr", action="store_true", help="draw the token on the terminal")
    group.add_argument(
        "--qr-file",
        type=Path,
        metavar="FILE.png|FILE.svg",
        help="draw the token into a new file that only you can read",
    )


def add_grants(parser: ArgumentParser) -> None:
    """Describe what `invite` and `approve` grant."""
    parser.add_argument(
        "--tag", action="append", default=[], metavar="T", help="tag they get (repeatable)"
    )
    parser.add_argument(
        "--advertise",
        action="append",
        default=[],
        type=reader(lambda text: str(values.network(text))),
        metavar="CIDR",
        help="network they may offer (repeatable)",
    )
    parser.add_argument(
        "--name", type=reader(values.label), metavar="N", help="name the machine gets"
    )
    parser.add_argument(
        "--address",
        type=reader(lambda text: str(values.ipv4_address(text))),
        metavar="A.B.C.D",
        help="IPv4 address in the mesh that the machine gets, and nobody else",
    )
    parser.add_argument("--admit", action="store_true", help="they may invite others")
    parser.add_argument(
        "--lifetime",
        type=reader(_credential_lifetime),
        metavar="SPAN",
        help="how long their credential lives unless it is renewed, which it is by itself (365d); "
        "0: as long as this node's own",
    )


def grants_of(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the fields of a request that `add_grants` has asked for."""
    return {
        "admit": arguments.admit,
        "name": arguments.name,
        "address": arguments.address,
        "tags": arguments.tag,
        "routes": arguments.advertise,
        "credential_lifetime": arguments.lifetime,
    }


def invite(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Issue an invite; the token alone goes to standard output, so that it can be piped."""
    if arguments.qr and (output.json or output.screen.width is None):
        raise UsageError("--qr draws on a terminal; for anything else take --qr-file FILE.svg")
    body = {
        "lifetime": arguments.expires,
        "uses": arguments.reusable,
        **grants_of(arguments),
    }
    if arguments.qr_file is None:
        document = client.post("/v1/invites", body)
        text = str(document["token"])
        drawn = _drawn(text, output) if arguments.qr else None
        output.show(document, lambda: drawn or text)
    else:
        with _new_file(arguments.qr_file) as descriptor:
            document = client.post("/v1/invites", body)
            _write_image(descriptor, arguments.qr_file, str(document["token"]))
        output.show(document, lambda: f"wrote {arguments.qr_file}")
    output.remark(
        f"For {_machines(document)}, until {document['expires_at']}. Treat it as a password: "
        "whoever has it can join.\n"
        "There, put it into a file and run:  meshd --token-file FILE\n"
        f"To take it back:  meshctl invites withdraw {document['id'][:SHORT_ID_CHARS]}"
    )
    return Exit.DONE


def _machines(document: Document) -> str:
    if not document["reusable"]:
        return "one machine"
    return f"{document['uses']} machines" if document["uses"] else "any number of machines"


def _drawn(token: str, output: Output) -> str | None:
    """Return the code of a token; None, having said why, where the terminal is too narrow."""
    from meshd.ctl import qr  # a tenth of a second, for a flag that is seldom given

    modules = qr.modules_of(token)
    columns, width = len(modules[0]), output.screen.width
    if width is not None and columns > width:
        output.remark(
            f"The code takes {columns} columns and this terminal has {width}: make it wider, or "
            "take --qr-file. The token as text:"
        )
        return None
    return qr.terminal_text(modules)


@contextmanager
def _new_file(path: Path) -> Iterator[int]:
    """Make a file that only its owner can read, and remove it if the rest fails."""
    if path.suffix not in QR_KINDS:
        raise UsageError(f"--qr-file {path}: the name must end in {' or '.join(QR_KINDS)}")
    try:
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
    except FileExistsError:
        raise UsageError(f"--qr-file {path}: is there already; choose another name") from None
    except OSError as exc:
        raise Failed(Exit.FAILED, f"--qr-file {path}: cannot be made: {exc.strerror}") from exc
    try:
        yield descriptor
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _write_image(descriptor: int, path: Path, token: str) -> None:
    from meshd.ctl import qr

    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(qr.image_of(token, path.suffix[1:]))
    except OSError as exc:
        raise Failed(
            Exit.FAILED,
            f"--qr-file {path}: cannot be written: {exc.strerror}; the invite is issued all the "
            "same: see `meshctl invites`, and withdraw it there",
        ) from exc


def add_invites(parser: ArgumentParser) -> None:
    """Describe the arguments of `invites`."""
    parser.add_argument(
        "action", nargs="?", choices=("withdraw",), help="have it admit nobody from now on"
    )
    parser.add_argument(
        "id", nargs="?", metavar="ID", help="which one: its id, or enough of its beginning"
    )


def invites(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Show the invites that are known here, or withdraw one."""
    if arguments.action is None:
        document = client.get("/v1/invites")
        output.show(document, lambda: invites_text(document, output.screen))
        return Exit.DONE
    if arguments.id is None:
        raise UsageError("which invite? `meshctl invites` shows their ids")
    document = client.post("/v1/invites/withdraw", {"id": arguments.id})
    output.show(document, lambda: _withdrawn_text(document))
    return Exit.DONE


def _withdrawn_text(document: Document) -> str:
    text = f"withdrew {document['id'][:SHORT_ID_CHARS]}; it admits nobody any more"
    if document["used_by"]:
        text += f"; who came in by it stays: {', '.join(document['used_by'])}"
    return text


def invites_text(document: Document, screen: Screen) -> str:
    """Return a line an invite, this node's own first."""
    columns = (
        Column("ID"),
        Column("STATE", colours=_OF_STATE.get),
        Column("ISSUED", optional=True),
        Column("EXPIRES"),
        Column("LEFT"),
        Column("GRANTS", cut=True),
        Column("USED BY", cut=True),
    )
    rows = [
        [
            each["id"][:SHORT_ID_CHARS],
            each["state"],
            _instant(each["issued_at"]),
            _instant(each["expires_at"]),
            _left(each),
            " ".join(_grants(each)) or "-",
            " ".join(each["used_by"]) or "-",
        ]
        for each in document["invites"]
    ]
    rows += [
        [
            each["id"][:SHORT_ID_CHARS],
            each["state"],
            "-",
            "-",
            _left(each),
            "(another member's)",
            " ".join(each["used_by"]) or "-",
        ]
        for each in document["others"]
    ]
    return "\n".join(table(columns, rows, screen)) if rows else "no invites"


def _instant(text: str) -> str:
    return text[:19].replace("T", " ") + "Z"


def _left(each: Document) -> str:
    if each["uses_left"] is None:
        return "any" if each["uses"] == 0 else "?"
    return f"{each['uses_left']}/{each['uses']}" if each["uses"] else str(each["uses_left"])


def _grants(each: Document) -> list[str]:
    named = [f"name={each['name']}"] if each["name"] else []
    pinned = [each["ipv4"]] if each["ipv4"] else []
    admit = ["admit"] if each["admit"] else []
    return [*named, *pinned, *admit, *(f"tag={tag}" for tag in each["tags"]), *each["routes"]]


def _uses(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:9]) == 0:
        raise ValueError("must be a whole number from 1 on; without it, any number may use it")
    return int(text[:9])


def _lifetime(text: str) -> float:
    span = values.duration(text)
    if not INVITE_LIFETIME_MIN <= span <= INVITE_LIFETIME_MAX:
        raise ValueError("must be from 1m to 30d")
    return span


def _credential_lifetime(text: str) -> float:
    span = values.duration(text)
    if 0 < span < CREDENTIAL_LIFETIME_MIN or span > CREDENTIAL_LIFETIME_MAX:
        raise ValueError("must be from 10s to 3660d, or 0")
    return span
