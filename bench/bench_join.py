#!/usr/bin/env python3
"""How long a machine takes to become a member, beside WireGuard configured by hand.

The newcomer is the last member of the lab's `nat` topology; its time runs from exec of `meshd` to
an answered ping from and to every other member, over IPv4 and IPv6.  The baseline, in the same run
and in namespaces of the same kind, is wireguard-go with both sides' keys and endpoints known
beforehand: from exec to the first answered ping.  Then the whole mesh is watched idling.

    bench/bench_join.py [--members N] [--trials N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "netns-lab"))

from lablib import Lab, lan, mesh, nat, wait_until

if TYPE_CHECKING:
    from lablib import Node

IDLE_SETTLE = 5.0  # after the last join, before idling is measured
IDLE_SECONDS = 20.0
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    by_hand = [_by_hand() for _ in range(arguments.trials)]
    joins = []
    for trial in range(arguments.trials):
        last = trial == arguments.trials - 1
        joins.append(_join(arguments.members, idle=last))
    report = _report(by_hand, joins, arguments.members)
    _print(report)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _by_hand() -> float:
    """Return seconds from starting wireguard-go on the second machine to an answered ping."""
    with Lab(lan(2)) as lab:
        keys: dict[str, str] = {}
        public: dict[str, str] = {}
        for node in lab.nodes.values():
            keys[node.name] = node.run(["wg", "genkey"]).stdout.strip()
            public[node.name] = node.run(["wg", "pubkey"], stdin=keys[node.name]).stdout.strip()
        first, second = lab.nodes.values()
        _configure(first, second, keys[first.name], public[second.name], "10.9.0.1/24")
        started_at = time.monotonic()
        _configure(second, first, keys[second.name], public[first.name], "10.9.0.2/24")
        assert second.ping("10.9.0.1"), "the tunnel answers"
        return time.monotonic() - started_at


def _configure(node: Node, other: Node, key: str, peer: str, address: str) -> None:
    config = (
        f"[Interface]\nPrivateKey = {key}\nListenPort = 51820\n"
        f"[Peer]\nPublicKey = {peer}\nAllowedIPs = 10.9.0.0/24\nEndpoint = {other.ipv4.ip}:51820\n"
    )
    node.file("/etc/meshd/wg.conf").write_text(config)
    commands = (
        "wireguard-go wg0 >/dev/null 2>&1 || ip link add wg0 type wireguard",
        "wg setconf wg0 /etc/meshd/wg.conf",
        f"ip address add {address} dev wg0",
        "ip link set wg0 up",
    )
    node.run(["sh", "-ec", "; ".join(commands)])


def _join(members: int, *, idle: bool) -> dict[str, Any]:
    """Let a mesh form, time its last member, and perhaps watch it idle."""
    with Lab(nat(members)) as lab:
        secret = secrets.token_hex(16)
        *others, newcomer = lab.nodes.values()
        first, *rest = others
        mesh.join(first, secret=secret, seed=None)
        mesh.wait_answering(first)
        for node in rest:
            mesh.join(node, secret=secret, seed=first)
        mesh.wait_whole(others)

        started_at = time.monotonic()
        mesh.join(newcomer, secret=secret, seed=first)
        wait_until(newcomer.status, "the newcomer answers", timeout=30, interval=0.01)
        for version in (4, 6):
            matrix = mesh.ping(lab, version=version, timeout=30)
            assert not matrix.silent, matrix.render()
        result: dict[str, Any] = {
            "seconds": time.monotonic() - started_at,
            "phases": newcomer.status()["self"]["startup"],
        }
        if idle:
            result["idle"] = _idle(list(lab.nodes.values()))
        return result


def _idle(nodes: list[Node]) -> dict[str, float]:
    """Return what a node costs while nothing happens, on average over all nodes."""
    mesh.wait_whole(nodes)
    time.sleep(IDLE_SETTLE)
    before = [_usage(node) for node in nodes]
    time.sleep(IDLE_SECONDS)
    after = [_usage(node) for node in nodes]
    rates = [
        [(late - early) / IDLE_SECONDS for early, late in zip(*each, strict=True)]
        for each in zip(before, after, strict=True)
    ]
    cpu, sent, packets = (statistics.mean(column) for column in zip(*rates, strict=True))
    return {
        "cpu_ms_per_s": cpu * 1000,
        "underlay_bytes_sent_per_s": sent,
        "underlay_packets_sent_per_s": packets,
        "rss_mib": statistics.mean(_rss(node) for node in nodes) / 2**20,
    }


def _usage(node: Node) -> tuple[float, float, float]:
    """Return CPU seconds of the daemon, bytes and packets that left the node so far."""
    stat = Path(f"/proc/{_pid(node)}/stat").read_text().rpartition(")")[2].split()
    shown = node.run(["ip", "-json", "-stats", "link", "show", node.member.port.interface])
    sent = json.loads(shown.stdout)[0]["stats64"]["tx"]
    return (int(stat[11]) + int(stat[12])) / TICKS, sent["bytes"], sent["packets"]


def _rss(node: Node) -> int:
    pages = int(Path(f"/proc/{_pid(node)}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _pid(node: Node) -> int:
    assert node.process is not None
    return node.process.pid


def _report(by_hand: list[float], joins: list[dict[str, Any]], members: int) -> dict[str, Any]:
    seconds = [join["seconds"] for join in joins]
    phases = {
        phase: statistics.median(join["phases"].get(phase, 0.0) for join in joins)
        for phase in joins[-1]["phases"]
    }
    return {
        "members": members,
        "trials": len(joins),
        "by_hand_s": {"median": statistics.median(by_hand), "worst": max(by_hand)},
        "join_s": {"median": statistics.median(seconds), "worst": max(seconds)},
        "ratio": statistics.median(seconds) / statistics.median(by_hand),
        "phases_s": phases,
        "idle": joins[-1]["idle"],
    }


def _print(report: dict[str, Any]) -> None:
    print(f"member {report['members']} of {report['members']} joins, {report['trials']} trials\n")
    print(f"{'':34}{'median':>9}{'worst':>9}")
    for what, key in (
        ("meshd: exec to all pings, v4 and v6", "join_s"),
        ("wireguard-go by hand: exec to ping", "by_hand_s"),
    ):
        print(f"{what:<36}{report[key]['median']:>5.2f} s{report[key]['worst']:>7.2f} s")
    print(f"{'ratio':<36}{report['ratio']:>5.1f}")
    print("\nof which, median: " + ", ".join(f"{p} {s:.2f}" for p, s in report["phases_s"].items()))
    print("\nidle, a node: " + ", ".join(f"{k} {v:.1f}" for k, v in report["idle"].items()))


if __name__ == "__main__":
    raise SystemExit(main())
