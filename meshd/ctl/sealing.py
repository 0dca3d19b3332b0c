"""`meshctl seal`, and `meshctl keys rotate --mesh` and `--bootstrap`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from meshd.ctl.exits import Exit, Failed
from meshd.values import printable

if TYPE_CHECKING:
    import argparse

    from meshd.arguments import ArgumentParser
    from meshd.ctl.client import Client, Document
    from meshd.ctl.commands import Output

SECRET_BYTES_MAX = 4096
NAMES_SHOWN_MAX = 20
SEAL_TIMEOUT = 60.0

_KEY_IS_HERE = (
    "This node now holds the mesh key, which has the last word on who is a member. To take it "
    "offline:  meshctl keys export-mesh FILE"
)


def add_seal(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "--secret-file",
        type=Path,
        metavar="FILE",
        help="the mesh's secret, where the daemon was started without it",
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def seal(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Say who would be taken along, have that confirmed, and seal the mesh."""
    body: dict[str, object] = {"secret": _text_of(arguments.secret_file)}
    plan = client.post("/v1/seal", body, timeout=SEAL_TIMEOUT)
    text = (
        f"members for good, whoever they are: {_names(plan)}\n"
        "The mesh gets a fresh mesh key and a fresh bootstrap key. Its secret and all tokens made "
        "so far admit nobody any more; members that are away follow when they are back."
    )
    if not _confirmed(arguments, text, "seal this mesh", output):
        return Exit.FAILED
    document = client.post("/v1/seal", {**body, "sure": True}, timeout=SEAL_TIMEOUT)
    output.show(document, lambda: f"sealed, with {_names(document)}\n{_KEY_IS_HERE}")
    return Exit.DONE


def rotate_mesh(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Replace the mesh key."""
    body: dict[str, object] = {"mesh_key": _text_of(arguments.mesh_key_file)}
    if arguments.overlap is not None:
        body["overlap"] = int(arguments.overlap)
    plan = client.post("/v1/keys/rotate-mesh", body)
    text = (
        f"taken along: {_names(plan)}\n"
        f"The mesh key of before is good until {plan['overlap_until']} for members that this node "
        "has not heard of."
    )
    if not _confirmed(arguments, text, "replace the mesh key", output):
        return Exit.FAILED
    document = client.post("/v1/keys/rotate-mesh", {**body, "sure": True})
    output.show(
        document, lambda: f"the mesh key is replaced, for {_names(document)}\n{_KEY_IS_HERE}"
    )
    return Exit.DONE


def export_mesh(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Write the mesh key into a file, and then delete it from the node."""
    path: Path = arguments.file
    document = client.post("/v1/keys/export-mesh")
    text = (
        f"The mesh key goes into {path}, and is then deleted from this node.\n"
        "Without that file the mesh key can not be replaced, and has no last word any more."
    )
    if not _confirmed(arguments, text, "take the mesh key offline", output):
        return Exit.FAILED
    _write_secret(path, str(document["mesh_key"]))
    done = client.post("/v1/keys/forget-mesh", {"root": document["root"]})
    output.show(done, lambda: f"the mesh key is in {path}, and on this node no more")
    return Exit.DONE


def _write_secret(path: Path, text: str) -> None:
    """Put a text into a new file that only we can read, for good."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Failed(Exit.FAILED, f"{path}: {error.strerror}; nothing was deleted") from error


def rotate_bootstrap(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Replace the bootstrap key."""
    plan = client.post("/v1/keys/rotate-bootstrap")
    text = f"All tokens made so far become void ({plan['void_invites']} of this node's invites)."
    if plan["away"]:
        text += f" When they are back, these get the new key: {', '.join(plan['away'])}"
    if not _confirmed(arguments, text, "replace the bootstrap key", output):
        return Exit.FAILED
    document = client.post("/v1/keys/rotate-bootstrap", {"sure": True})
    output.show(
        document,
        lambda: "the bootstrap key is replaced; tokens made before are void, make new ones",
    )
    return Exit.DONE


def _text_of(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        data = path.read_bytes()[:SECRET_BYTES_MAX]
        return data.decode()
    except OSError as error:
        raise Failed(Exit.USAGE, f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Failed(Exit.USAGE, f"{path}: is no text") from error


def _confirmed(arguments: argparse.Namespace, text: str, what: str, output: Output) -> bool:
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        raise Failed(Exit.USAGE, f"this would {what}: confirm with --yes, or on a terminal")
    shown = "\n".join(printable(line) for line in text.splitlines())
    sys.stderr.write(f"{shown}\n{what.capitalize()}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() in {"y", "yes"}:
        return True
    output.remark("nothing was done")
    return False


def _names(document: Document) -> str:
    named = [
        member["name"] if member["state"] == "alive" else f"{member['name']} ({member['state']})"
        for member in document["members"]
    ]
    more = len(named) - NAMES_SHOWN_MAX
    text = ", ".join(named[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
    return printable(text)
