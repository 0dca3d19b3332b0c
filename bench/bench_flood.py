#!/usr/bin/env python3
"""What a flood on the bootstrap port does to a mesh, beside the same mesh left in peace.

Three members in the lab, `a` being the target; a fourth machine on the same wire sends datagrams to
its port from forged sources.  All the while `b` pings `a` through the tunnel a hundred times a
second, and a fresh machine joins with `a` as its seed.

    none       nothing: the baseline
    requests   random bytes that look like bootstrap requests, 1,200 bytes each
    probes     random bytes that look like path probes, 200 bytes each
    thief      requests that open, since their sender has the bootstrap key

    bench/bench_flood.py [--rate N] [--thief-rate N] [--seconds S] [--trials N] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import secrets
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "netns-lab"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from lablib import DeadlineExceeded, Lab, lan, mesh, wait_until
from lablib.flood import flood
from mesh import thief
from meshd.trust.secret import derive
from meshd.underlay import DatagramType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lablib import Node

FLOODS = ("none", "requests", "probes", "thief")
DISTINCT = 4096  # payloads, sent again and again
PING_RATE = 100.0
JOIN_TIMEOUT = 120.0
SETTLE = 3.0
TICKS = os.sysconf("SC_CLK_TCK")
UNTRUE = {"member-suspect", "member-dead"}


def main() -> int:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=50_000, help="of junk, a second")
    parser.add_argument("--thief-rate", type=float, default=5_000, help="of what opens")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each flood, at least")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--floods", nargs="+", choices=FLOODS, default=FLOODS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    rows = []
    for trial in range(arguments.trials):
        for kind in arguments.floods:
            rows.append({"flood": kind, "trial": trial, **_measure(kind, arguments)})
            print(json.dumps(rows[-1]), flush=True)
    _print(rows)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def _measure(kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what one flood did to one mesh."""
    with Lab(lan(5)) as lab:
        secret = secrets.token_hex(16)
        a, b, c, attacker, newcomer = lab.nodes.values()
        for node in (a, b, c):
            # Forged sources come in by the way that leads to the Internet.
            port = node.member.port.interface
            node.run(["ip", "route", "add", "default", "via", str(attacker.ipv4.ip), "dev", port])
        mesh.join(a, secret=secret, seed=None)
        mesh.wait_answering(a)
        for node in (b, c):
            mesh.join(node, secret=secret, seed=a)
        mesh.wait_whole([a, b, c])
        time.sleep(SETTLE)  # what belongs to joining is over
        with _flooding(kind, attacker, a, secret, arguments) as sent:
            flow = b.ping_flow(a.status()["self"]["ipv4"], rate=PING_RATE)
            before = _usage(a)
            began_at = time.monotonic()
            time.sleep(arguments.seconds / 3)
            join_seconds = _join(newcomer, secret, a)
            time.sleep(max(0.0, began_at + arguments.seconds - time.monotonic()))
            seconds = time.monotonic() - began_at
            after = _usage(a)
            report = flow.stop()
        return {
            "sent_per_s": sent["rate"],
            "arrived_per_s": (after["packets"] - before["packets"]) / seconds,
            "read_per_s": (after["read"] - before["read"]) / seconds,
            "join_s": join_seconds,
            "pings": report.sent,
            "pings_lost": len(report.lost),
            "longest_gap_ms": report.longest_gap * 1000,
            "rtt_max_ms": report.rtt_max * 1000,
            "suspicions": sum(_untrue(node) for node in (a, b, c)),
            "cpu_percent": (after["cpu"] - before["cpu"]) / seconds * 100,
            "rss_mib_before": before["rss"] / 2**20,
            "rss_mib_after": after["rss"] / 2**20,
        }


@contextlib.contextmanager
def _flooding(
    kind: str, attacker: Node, target: Node, secret: str, arguments: argparse.Namespace
) -> Iterator[dict[str, float]]:
    sent = {"rate": 0.0}
    if kind == "none":
        yield sent
        return
    rate = arguments.rate
    if kind == "requests":
        payloads = thief.junk(DatagramType.BOOTSTRAP_REQUEST, DISTINCT)
    elif kind == "probes":
        payloads = thief.junk(DatagramType.PATH_PROBE, DISTINCT, size=200)
    else:
        rate = arguments.thief_rate
        mesh_key, bootstrap_key = derive(secret.encode())
        # Each is taken once: enough of them that none comes again within the flood.
        count = int(rate * (arguments.seconds + JOIN_TIMEOUT / 4))
        payloads = thief.requests(mesh_key.id, bootstrap_key, count)
    with flood(attacker, target, payloads, rate=rate) as flooding:
        yield sent
    assert flooding.report is not None
    sent["rate"] = flooding.report.rate


def _join(newcomer: Node, secret: str, seed: Node) -> float:
    """Return seconds from exec of a fresh daemon until it hears its seed; inf if it never does."""
    began_at = time.monotonic()
    mesh.join(newcomer, secret=secret, seed=seed)

    def joined() -> bool:
        name = seed.name
        return any(
            m["name"] == name and m["state"] == "alive" for m in newcomer.status()["members"]
        )

    try:
        wait_until(joined, "the newcomer hears its seed", timeout=JOIN_TIMEOUT, interval=0.02)
    except DeadlineExceeded:
        return math.inf
    return time.monotonic() - began_at


def _usage(node: Node) -> dict[str, float]:
    """Return CPU seconds and memory of a daemon, and datagrams that came in and were looked at."""
    assert node.process is not None
    process = Path(f"/proc/{node.process.pid}")
    stat = (process / "stat").read_text().rpartition(")")[2].split()
    pages = int((process / "statm").read_text().split()[1])
    shown = node.run(["ip", "-json", "-stats", "link", "show", node.member.port.interface])
    bad = node.status()["self"]["counters"]["bad_packets"]
    return {
        "cpu": (int(stat[11]) + int(stat[12])) / TICKS,
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        "packets": json.loads(shown.stdout)[0]["stats64"]["rx"]["packets"],
        "read": sum(bad.values()),
    }


def _untrue(node: Node) -> int:
    """Return how often a node has suspected somebody, of whom nobody was ever gone."""
    events = node.control("/v1/events?recent=1000")["events"]
    return sum(event["event"] in UNTRUE for event in events)


def _print(rows: list[dict[str, Any]]) -> None:
    columns = [
        ("sent_per_s", "sent/s", "median"),
        ("read_per_s", "read/s", "median"),
        ("join_s", "join s", "median"),
        ("join_s", "worst", "max"),
        ("pings_lost", "lost", "sum"),
        ("pings", "of", "sum"),
        ("longest_gap_ms", "gap ms", "max"),
        ("rtt_max_ms", "rtt ms", "max"),
        ("suspicions", "suspicions", "sum"),
        ("cpu_percent", "CPU %", "median"),
        ("rss_mib_before", "RSS MiB", "median"),
        ("rss_mib_after", "after", "max"),
    ]
    folds = {"median": statistics.median, "max": max, "sum": sum}
    print("\n" + f"{'flood':10}" + "".join(f"{title:>11}" for _, title, _ in columns))
    for kind in FLOODS:
        some = [row for row in rows if row["flood"] == kind]
        if some:
            cells = (folds[fold]([row[key] for row in some]) for key, _, fold in columns)
            print(f"{kind:10}" + "".join(f"{cell:>11,.1f}" for cell in cells))


if __name__ == "__main__":
    raise SystemExit(main())
