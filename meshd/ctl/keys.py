"""`meshctl keys`: what this node's keys are, and a new one in place of the WireGuard key."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from meshd.ctl.exits import Exit, Failed
from meshd.ctl.rekeying import rotate_node
from meshd.ctl.sealing import export_mesh, rotate_bootstrap, rotate_mesh

if TYPE_CHECKING:
    import argparse

    from meshd.ctl.client import Client, Document
    from meshd.ctl.commands import Output

POLL_INTERVAL = 0.1
ROTATE_TIMEOUT = 120.0  # others may go first


def keys(client: Client, arguments: argparse.Namespace, output: Output) -> Exit:
    """Show the keys, or rotate the WireGuard key and wait until that is done."""
    if arguments.action == "show" and (arguments.mesh or arguments.bootstrap or arguments.node):
        raise Failed(Exit.USAGE, "--mesh, --bootstrap and --node say what is to be rotated")
    if (arguments.overlap, arguments.mesh_key_file) != (None, None) and not arguments.mesh:
        raise Failed(Exit.USAGE, "--overlap and --mesh-key-file are for the mesh key: give --mesh")
    if (arguments.action == "export-mesh") != (arguments.file is not None):
        raise Failed(Exit.USAGE, "keys export-mesh FILE, and no other, takes a file")
    if arguments.action == "export-mesh":
        return export_mesh(client, arguments, output)
    if arguments.node:
        return rotate_node(client, arguments, output)
    if arguments.mesh:
        return rotate_mesh(client, arguments, output)
    if arguments.bootstrap:
        return rotate_bootstrap(client, arguments, output)
    if arguments.action == "rotate":
        return _rotate(client, output)
    document = client.get("/v1/keys")
    output.show(document, lambda: _keys_text(document))
    return Exit.DONE


def _rotate(client: Client, output: Output) -> Exit:
    before = client.get("/v1/keys")["wireguard"]["public_key"]
    document = client.post("/v1/keys/rotate")
    deadline = time.monotonic() + ROTATE_TIMEOUT
    while document["wireguard"]["rotating"]:
        if time.monotonic() >= deadline:
            raise Failed(
                Exit.FAILED,
                f"the key is not replaced after {ROTATE_TIMEOUT:.0f} s; meshd goes on with it, see "
                "`meshctl keys show` and `meshctl events`",
            )
        time.sleep(POLL_INTERVAL)
        document = client.get("/v1/keys")
    after = document["wireguard"]["public_key"]
    output.show(document, lambda: f"the WireGuard key is {after}; it was {before}")
    return Exit.DONE


def _keys_text(document: Document) -> str:
    wireguard = document["wireguard"]
    rows = [
        ("node", document["node"]),
        ("mesh", document["mesh"]),
        ("root", document["root"] + (", its key is here" if document["holds_mesh_key"] else "")),
        ("WireGuard key", wireguard["public_key"]),
        ("  in use since", f"{wireguard['made_at']} ({_days(wireguard['age_s'])})"),
        ("  to be replaced", wireguard["rotates_at"] or "on request only"),
    ]
    if wireguard["next_public_key"] is not None:
        rows.append(("  next", wireguard["next_public_key"]))
    bootstrap = document["bootstrap"]
    missing = "" if bootstrap["held"] else " (this node lacks it, and asks)"
    rows.append(("bootstrap key", f"epoch {bootstrap['epoch']}{missing}"))
    return "\n".join(f"{label:<17} {value}" for label, value in rows)


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.0f} days" if seconds >= 2 * 86400 else f"{seconds / 3600:.1f} hours"
