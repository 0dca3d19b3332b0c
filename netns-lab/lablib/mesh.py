"""A mesh of meshd on the members of a lab, joined by a shared secret or by tokens."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

from lablib.errors import LabError
from lablib.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lablib.lab import Lab
    from lablib.node import Node
    from lablib.ping import Matrix

SECRET_BYTES = 16
SECRET_FILE = "/etc/meshd/secret"
TOKEN_FILE = "/etc/meshd/token"
ANSWER_TIMEOUT = 60.0  # generous: in the virtual machine a Python takes seconds to start
WHOLE_TIMEOUT = 60.0


def new_secret() -> str:
    """Return a passphrase that nobody guesses."""
    return secrets.token_hex(SECRET_BYTES)


def start(lab: Lab, *, secret: str) -> None:
    """Start meshd everywhere, the first member being the others' seed; wait until all see all."""
    first, *others = lab.nodes.values()
    join(first, secret=secret, seed=None)
    wait_answering(first)
    for node in others:
        join(node, secret=secret, seed=first)
    wait_whole(list(lab.nodes.values()))


def join(node: Node, *options: str, secret: str, seed: Node | None) -> None:
    """Start meshd on a node, with a secret file and perhaps a seed and further options."""
    file = node.file(SECRET_FILE)
    file.touch(mode=0o600)
    file.write_text(f"{secret}\n")
    arguments = ["--secret-file", SECRET_FILE, "--name", node.name, *options]
    if seed is not None:
        arguments += ["--seed", seed_address(node, seed)]
    node.start_daemon(*arguments)


def seed_address(node: Node, seed: Node) -> str:
    """Return where a node finds another on the underlay: by IPv4 unless it has IPv6 only."""
    gone = node.member.gateway_ipv4 is None and node.member.gateway_ipv6 is not None
    return str(seed.ipv6.ip if gone and seed.ipv6 is not None else seed.ipv4.ip)


def found(node: Node) -> None:
    """Start meshd on a node as the first of a new mesh, and wait until it answers."""
    node.start_daemon("--init", "--name", node.name)
    wait_answering(node)


def admit(node: Node, *grants: str, by: Node) -> None:
    """Start meshd on a node with a token that a member has made; `grants` are flags of `invite`."""
    file = node.file(TOKEN_FILE)
    file.touch(mode=0o600)
    file.write_text(by.meshctl("invite", *grants).stdout)
    node.start_daemon("--token-file", TOKEN_FILE, "--name", node.name)


def wait_answering(node: Node) -> dict[str, Any]:
    """Wait until a node's daemon answers, and return its status."""

    def answers() -> dict[str, Any]:
        if node.process is not None and node.process.poll() is not None:
            raise LabError(f"meshd on {node.name} has ended; its log ends:\n{node.log_tail()}")
        return node.status()

    return wait_until(answers, f"meshd on {node.name} answers", timeout=ANSWER_TIMEOUT)


def alive(node: Node) -> dict[str, dict[str, Any]]:
    """Return those a node holds for alive, itself included, by name: parts of its status."""
    status = node.status()
    members = [member for member in status["members"] if member["state"] == "alive"]
    return {member["name"]: member for member in [status["self"], *members]}


def wait_whole(nodes: Sequence[Node], *, timeout: float = WHOLE_TIMEOUT) -> None:
    """Wait until each of the nodes holds exactly these for alive."""
    expected = {node.name for node in nodes}

    def whole() -> bool:
        for node in nodes:
            seen = set(alive(node))
            assert seen == expected, (
                f"{node.name} misses {sorted(expected - seen)} "
                f"and holds {sorted(seen - expected)} for alive besides"
            )
        return True

    wait_until(whole, f"{', '.join(sorted(expected))} see each other", timeout=timeout)


def wait_state(
    nodes: Sequence[Node], name: str, state: str, *, timeout: float = WHOLE_TIMEOUT
) -> None:
    """Wait until each of the nodes holds another for alive, suspect, dead or left."""

    def held() -> bool:
        for node in nodes:
            seen = [m["state"] for m in node.status()["members"] if m["name"] == name]
            assert seen == [state], f"{node.name} holds {name} for {seen or 'nobody'}"
        return True

    wait_until(held, f"{name} is held for {state}", timeout=timeout)


def member(node: Node, name: str) -> dict[str, Any]:
    """Return what a node's status says of another member."""
    for each in node.status()["members"]:
        if each["name"] == name:
            found: dict[str, Any] = each
            return found
    raise LabError(f"{node.name} knows no member called {name}")


def wait_path(node: Node, name: str, path: str, *, timeout: float = WHOLE_TIMEOUT) -> None:
    """Wait until a node reaches another directly, or relayed, as `path` says."""

    def reached() -> bool:
        seen = member(node, name)["path"]
        assert seen == path, f"{node.name} reaches {name} {seen}"
        return True

    wait_until(reached, f"{node.name} reaches {name} {path}", timeout=timeout)


def wait_spare(node: Node, name: str, *, timeout: float = WHOLE_TIMEOUT) -> None:
    """Wait until a second way to another member has proven itself to a node."""

    def ready() -> bool:
        why = json.loads(node.meshctl("why", name, "--json").stdout)
        results = [pair["result"] for pair in why["pairs"]]
        assert "works" in results, f"of {node.name}'s ways to {name} are {results}"
        return True

    wait_until(ready, f"{node.name} has a second way to {name}", timeout=timeout)


def addresses(nodes: Sequence[Node], *, version: int) -> dict[str, str]:
    """Return the nodes' own addresses in the mesh."""
    return {node.name: node.status()["self"][f"ipv{version}"] for node in nodes}


def ping(lab: Lab, *, version: int, timeout: float = 5.0) -> Matrix:
    """Ping everyone from everyone through the mesh."""
    nodes = list(lab.nodes.values())
    return lab.ping_all(addresses(nodes, version=version), timeout=timeout)
