#!/usr/bin/env python3
"""How long after `meshctl revoke` a member can still exchange a packet with anybody.

The members are namespaces on one LAN, admitted by tokens, or by a secret in a mesh that was sealed
before (`--sealed`).  In each run one of them is thrown out, and comes back as a new node by a token
for the next run.  Time runs from exec of `meshctl revoke`, on another member, and for each other
member until its kernel has no peer for the revoked one and the last answer to the pings of the
revoked one, whichever is later; the worst of the members counts.  After that nothing may answer for
a while, and the revoked one has to say why.

    bench/bench_revoke.py [--members N] [--runs N] [--sealed] [--json FILE]
"""

from __future__ import annotations

import argparse
import base64
import json
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "netns-lab"))

from lablib import Lab, LastAnswers, lan, mesh, wait_until
from lablib.daemon import PROJECT

if TYPE_CHECKING:
    from lablib import Node

# How exact it is; more often, and looking would take the time that it is to measure.
PING_RATE = 20  # a second, to each member
POLL_INTERVAL = 0.1  # between two looks at all kernels
WATCHED = 3.0  # seconds after the last peer is gone in which nothing may answer
GONE_TIMEOUT = 30.0
PATIENCE = 120.0
TARGET_MEDIAN = 2.0
TARGET_WORST = 5.0


def main() -> int:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--sealed", action="store_true", help="began with a secret, was sealed")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    with Lab(lan(arguments.members)) as lab:
        nodes = list(lab.nodes.values())
        (_form_sealed if arguments.sealed else _form_by_tokens)(nodes)
        runs = []
        for number in range(arguments.runs):
            revoked = nodes[1 + number % (len(nodes) - 1)]
            runs.append(_run(nodes, revoked))
            print(f"run {number + 1}: {revoked.name} out after {runs[-1]['seconds']:.3f} s")
            if number + 1 < arguments.runs:
                _come_back(revoked, nodes)
    report = _report(runs, arguments)
    _print(report)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if report["silent_afterwards"] and report["said_why"] else 1


def _form_by_tokens(nodes: list[Node]) -> None:
    first, *others = nodes
    mesh.found(first)
    for node in others:
        mesh.admit(node, by=first)
    mesh.wait_whole(nodes, timeout=PATIENCE)


def _form_sealed(nodes: list[Node]) -> None:
    first, *others = nodes
    secret = secrets.token_hex(16)
    mesh.join(first, secret=secret, seed=None)
    mesh.wait_answering(first)
    for node in others:
        mesh.join(node, secret=secret, seed=first)
    mesh.wait_whole(nodes, timeout=PATIENCE)
    first.meshctl("seal", "--yes", timeout=PATIENCE)
    mesh.wait_whole(nodes, timeout=PATIENCE)


def _run(nodes: list[Node], revoked: Node) -> dict[str, Any]:
    """Throw one out and watch all others."""
    others = [node for node in nodes if node is not revoked]
    addresses = mesh.addresses(others, version=4)
    key = revoked.status()["self"]["public_key"]
    pings = LastAnswers(revoked.namespace, list(addresses.values()), rate=PING_RATE)
    answered = revoked.ping(*addresses.values(), timeout=PATIENCE)
    assert len(answered) == len(others), "all answer before"

    wall = time.time()
    started_at = time.monotonic()
    process = others[0].popen(
        [sys.executable, "-m", "meshd.meshctl", "revoke", revoked.name, "--yes"],
        env={"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.DEVNULL,
    )
    gone = _watch_peers(others, key, started_at)
    assert process.wait() == 0, "the command was carried out"
    time.sleep(WATCHED)
    last = pings.stop()

    silenced = {
        node.name: max(gone[node.name], last[addresses[node.name]] - started_at) for node in others
    }
    heard = [_heard_at(node, revoked.name, since=wall) - wall for node in others]
    return {
        "revoked": revoked.name,
        "seconds": max(silenced.values()),
        "members": silenced,
        "signed": min(heard),
        "heard": max(heard),
        "after_signing": max(silenced.values()) - min(heard),
        "peers_gone": max(gone.values()),
        "last_answer": max(last.values()) - started_at,
        "silent_afterwards": not revoked.ping(*addresses.values(), timeout=WATCHED),
        "said_why": _says_why(revoked),
    }


def _watch_peers(nodes: list[Node], key: str, started_at: float) -> dict[str, float]:
    """Return when each node's kernel was first seen without a peer."""
    gone: dict[str, float] = {}
    while len(gone) < len(nodes):
        assert time.monotonic() - started_at < GONE_TIMEOUT, "every kernel drops the peer"
        time.sleep(POLL_INTERVAL)
        for node in nodes:
            if node.name not in gone and key not in _peers(node):
                gone[node.name] = time.monotonic() - started_at
    return gone


def _heard_at(node: Node, name: str, *, since: float) -> float:
    """Return when a node's daemon told of the revocation, by the wall clock."""
    for event in reversed(node.control("/v1/events?recent=200")["events"]):
        at = datetime.fromisoformat(event["at"]).timestamp()
        # Events are told to the millisecond.
        if event["event"] == "member-revoked" and event["member"] == name and at > since - 0.001:
            return at
    raise AssertionError(f"{node.name} has not told of the revocation of {name}")


def _peers(node: Node) -> set[str]:
    """Return the keys of a node's WireGuard peers: from wireguard-go itself, else by wg(8)."""
    path = node.file("/run/wireguard/mesh0.sock")
    if not path.exists():
        return set(node.run(["wg", "show", "mesh0", "peers"]).stdout.split())
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"get=1\n\n")
        answer = b""
        while not answer.endswith(b"\n\n"):
            answer += connection.recv(65536)
    lines = (line.partition(b"=") for line in answer.splitlines())
    return {
        base64.b64encode(bytes.fromhex(value.decode())).decode()
        for name, _, value in lines
        if name == b"public_key"
    }


def _says_why(node: Node) -> bool:
    def said() -> bool:
        return any(finding["code"] == "revoked" for finding in node.status()["health"])

    wait_until(said, f"{node.name} says why it is out", timeout=PATIENCE)
    return True


def _come_back(node: Node, nodes: list[Node]) -> None:
    """Have a machine that was thrown out come back as a new node."""
    node.stop_daemon()
    node.delete_interface("mesh0")
    shutil.rmtree(node.file("/var/lib/meshd/mesh0"))
    mesh.admit(node, by=nodes[0])
    mesh.wait_whole(nodes, timeout=PATIENCE)


def _report(runs: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    def spread(key: str) -> dict[str, float]:
        values = [run[key] for run in runs]
        return {"median": statistics.median(values), "worst": max(values)}

    each = [seconds for run in runs for seconds in run["members"].values()]
    return {
        "members": arguments.members,
        "sealed": arguments.sealed,
        "runs": len(runs),
        "seconds": spread("seconds"),
        "a_member": {"median": statistics.median(each), "worst": max(each)},
        "signed": spread("signed"),
        "after_signing": spread("after_signing"),
        "heard": spread("heard"),
        "peers_gone": spread("peers_gone"),
        "last_answer": spread("last_answer"),
        "silent_afterwards": all(run["silent_afterwards"] for run in runs),
        "said_why": all(run["said_why"] for run in runs),
        "each": runs,
    }


def _print(report: dict[str, Any]) -> None:
    how = "by a secret, then sealed" if report["sealed"] else "by tokens"
    print(f"\n{report['members']} members admitted {how}, {report['runs']} runs\n")
    print(f"{'from exec of meshctl revoke':42}{'median':>9}{'worst':>9}")
    for what, key in (
        ("until no member exchanges a packet", "seconds"),
        ("of which: until it was signed", "signed"),
        ("of which: from then on", "after_signing"),
        ("of which: until all have heard of it", "heard"),
        ("of which: until no kernel has the peer", "peers_gone"),
        ("of which: until the last answer to a ping", "last_answer"),
        ("one member, on its own", "a_member"),
    ):
        print(f"{what:<42}{report[key]['median']:>7.3f} s{report[key]['worst']:>7.3f} s")
    print(f"{'target':<42}{TARGET_MEDIAN:>7.3f} s{TARGET_WORST:>7.3f} s")
    for what, key in (
        ("nothing answered afterwards", "silent_afterwards"),
        ("said why", "said_why"),
    ):
        print(f"{what}: {'yes' if report[key] else 'NO'}")


if __name__ == "__main__":
    raise SystemExit(main())
