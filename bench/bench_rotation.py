#!/usr/bin/env python3
"""What it costs to replace a WireGuard key under traffic: datagrams lost, and TCP standing still.

Five nodes on a LAN, datagrams from each to each and a TCP connection besides (`lablib.traffic`).
Each node's key is replaced in turn, `--rounds` times:

| method  | by             | how                                                             |
| ------- | -------------- | --------------------------------------------------------------- |
| `none`  | meshd          | nothing is replaced: what the machine itself loses              |
| `meshd` | meshd          | `meshctl keys rotate`                                           |
| `swap`  | bare WireGuard | switch, tell; the others swap peers and begin the handshake     |
| `ahead` | bare WireGuard | the others have the next key, without allowed-ips; switch, tell; |
|         |                | the others move the allowed-ips                                 |

Bare WireGuard is moved by a small program on each node that waits `--delay` before it acts on what
it is told, which stands for a daemon that reads, verifies and decides.

    bench/bench_rotation.py [--rate N] [--methods …] [--rounds N] [--delay S] [--json FILE]

In the virtual machine: netns-lab/lab vm -- .venv/bin/python bench/bench_rotation.py --rate 100
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import secrets
import select
import socket
import statistics
import sys
import time
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "netns-lab"))

from lablib import Lab, Traffic, lan, mesh, preload, wait_until
from lablib.daemon import Start
from lablib.node import CONTROL_SOCKET
from meshd.ctl.client import Client
from meshd.engine.rotation import SPREAD_TIME
from meshd.keys import KEY_BYTES, WireGuardKey, WireGuardPrivateKey
from meshd.wg.backend import open_device
from meshd.wg.types import DeviceChange, Endpoint, PeerChange

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lablib import Node, TrafficReport
    from meshd.wg.types import Device

METHODS = ("none", "meshd", "swap", "ahead")
SETTLE = 6.0  # after a rotation, before the next: WireGuard repeats a lost handshake after 5 s
WARM_UP = 2.0
INTERFACE = "wg0"
WIREGUARD_PORT, NOTICE_PORT = 51820, 9008
COMMANDS = "/run/rotator.sock"
PATIENCE = 300.0


@dataclass(frozen=True)
class Rotated:
    """One rotation."""

    lost: int  # of all flows
    lost_of_one: int  # of the flow that lost most
    stall_ms: float


def main() -> int:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--rate", type=float, default=1000.0, help="of each flow, a second")
    parser.add_argument("--settle", type=float, default=SETTLE)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--delay", type=float, default=0.005)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if Start.default() is Start.FORK:
        preload()
    results = {}
    for method in arguments.methods:
        results[method] = _measure(method, arguments)
        _print(method, results[method])
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def _measure(method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    with Lab(lan(arguments.nodes)) as lab:
        nodes = list(lab.nodes.values())
        if method in {"meshd", "none"}:
            _start_mesh(nodes)
            backend = nodes[0].status()["self"]["backend"]
            addresses = mesh.addresses(nodes, version=4)
            rotate = _by_meshd if method == "meshd" else _not_at_all
        else:
            by_hand = _ByHand(nodes, arguments.delay)
            backend, addresses = by_hand.backend, by_hand.addresses
            rotate = getattr(by_hand, method)
        assert not lab.ping_all(addresses, timeout=30.0).silent
        traffic = Traffic(nodes, addresses, rate=arguments.rate)
        time.sleep(WARM_UP)
        times = [time.monotonic()]
        for _ in range(arguments.rounds):
            for node in nodes:
                rotate(node)
                time.sleep(arguments.settle)
                times.append(time.monotonic())
        report = traffic.stop()
    rotations = [_rotated(report, begin, end) for begin, end in itertools.pairwise(times)]
    return {
        "backend": backend,
        "rate": report.rate,
        "sent": report.sent,
        "lost": len(report.lost),
        "lost_in_warm_up": len(report.lost_between(0.0, times[0])),
        "rotations": [vars(each) for each in rotations],
    }


def _start_mesh(nodes: list[Node]) -> None:
    secret = secrets.token_hex(16)
    for node in nodes:
        mesh.join(node, secret=secret, seed=None if node is nodes[0] else nodes[0])
    mesh.wait_whole(nodes, timeout=PATIENCE)


def _rotated(report: TrafficReport, begin: float, end: float) -> Rotated:
    lost = report.lost_between(begin, end)
    of_one: dict[tuple[str, str], int] = {}
    for each in lost:
        flow = (each.source, each.target)
        of_one[flow] = of_one.get(flow, 0) + 1
    return Rotated(
        len(lost), max(of_one.values(), default=0), report.longest_stall(begin, end) * 1000
    )


def _print(method: str, result: Mapping[str, Any]) -> None:
    rotations = result["rotations"]
    lost = [each["lost"] for each in rotations]
    of_one = [each["lost_of_one"] for each in rotations]
    stalls = [each["stall_ms"] for each in rotations]
    print(
        f"{method:6} {result['backend']:9} {result['rate']:6.0f}/s a flow, {result['sent']} sent; "
        f"{len(rotations)} rotations, lost of all flows: median {statistics.median(lost):g}, "
        f"most {max(lost)}, of one flow at most {max(of_one)}; TCP stood still for at most "
        f"{max(stalls):.0f} ms (0: under 50)",
        flush=True,
    )


def _by_meshd(node: Node) -> None:
    """Do what `meshctl keys rotate` does, without the cost of starting a Python meanwhile."""
    client = Client(node.file(CONTROL_SOCKET))
    client.post("/v1/keys/rotate", timeout=PATIENCE)
    wait_until(
        lambda: not client.get("/v1/keys", timeout=PATIENCE)["wireguard"]["rotating"],
        f"{node.name} has a new key",
        timeout=PATIENCE,
    )


def _not_at_all(_: Node) -> None:
    time.sleep(SPREAD_TIME)


# Bare WireGuard


class _ByHand:
    """WireGuard on all nodes, and a program on each that moves it."""

    def __init__(self, nodes: list[Node], delay: float) -> None:
        self.addresses = {node.name: f"10.99.0.{n}" for n, node in enumerate(nodes, start=1)}
        self._nodes = nodes
        keys = {node.name: WireGuardPrivateKey(os.urandom(KEY_BYTES)) for node in nodes}
        self._following = {node.name: WireGuardPrivateKey(os.urandom(KEY_BYTES)) for node in nodes}
        self._public = {name: key.public for name, key in keys.items()}
        self._underlay = {node.name: str(node.ipv4.ip) for node in nodes}
        self._running = [
            node.namespace.background_call(
                _Rotator(node.name, keys, self._underlay, self.addresses, delay).run_later(),
                "rotator",
            )
            for node in nodes
        ]
        wait_until(
            lambda: all(node.file(COMMANDS).exists() for node in nodes),
            "all rotators listen",
            timeout=PATIENCE,
        )
        self.backend = nodes[0].run(["ip", "-details", "link", "show", INTERFACE]).stdout
        self.backend = "kernel" if "wireguard" in self.backend else "userspace"

    def swap(self, node: Node) -> None:
        """Have the others swap peers when they are told."""
        self._rotate(node, "swap")

    def ahead(self, node: Node) -> None:
        """Have the others know the key before."""
        following = str(self._following[node.name].public)
        others = [other for other in self._nodes if other is not node]
        for other in others:
            self._command(other, "install", key=following)
        wait_until(
            lambda: all(
                following in other.run(["wg", "show", INTERFACE, "peers"]).stdout
                for other in others
            ),
            "all others have the next key",
            timeout=PATIENCE,
        )
        self._rotate(node, "ahead")

    def _rotate(self, node: Node, how: str) -> None:
        key = self._following[node.name]
        former, self._public[node.name] = self._public[node.name], key.public
        self._following[node.name] = WireGuardPrivateKey(os.urandom(KEY_BYTES))
        self._command(node, how, key=bytes(key).hex(), former=str(former))

    def _command(self, node: Node, what: str, **fields: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            message = json.dumps({"what": what, **fields}).encode()
            sender.sendto(message, str(node.file(COMMANDS)))


class _Rotator:
    """The program on one node."""

    def __init__(
        self,
        name: str,
        keys: Mapping[str, WireGuardPrivateKey],
        underlay: Mapping[str, str],
        overlay: Mapping[str, str],
        delay: float,
    ) -> None:
        self._name = name
        self._key = keys[name]
        self._peers = {other: key.public for other, key in keys.items() if other != name}
        self._underlay = underlay
        self._overlay = overlay
        self._delay = delay

    def run_later(self) -> Callable[[], None]:
        """Return what is to be run on the node."""
        return self._run

    def _run(self) -> None:
        device = open_device(INTERFACE)
        device.apply(
            DeviceChange(
                private_key=self._key,
                listen_port=WIREGUARD_PORT,
                peers=tuple(self._peer(other, key) for other, key in self._peers.items()),
            )
        )
        os.system(
            f"ip addr add {self._overlay[self._name]}/24 dev {INTERFACE};"
            f"ip link set {INTERFACE} mtu 1420 up"
        )
        notices = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        notices.bind((self._underlay[self._name], NOTICE_PORT))
        commands = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        commands.bind(COMMANDS)
        while True:
            readable, _, _ = select.select([notices, commands], [], [])
            for each in readable:
                message = json.loads(each.recv(4096))
                if each is notices:
                    time.sleep(self._delay)
                    self._told(device, notices, message)
                else:
                    self._commanded(device, notices, message)

    def _peer(self, other: str, key: WireGuardKey) -> PeerChange:
        return PeerChange(
            key,
            allowed_ips=frozenset({ip_network(self._overlay[other])}),
            endpoint=Endpoint(ip_address(self._underlay[other]), WIREGUARD_PORT),
        )

    def _commanded(self, device: Device, notices: socket.socket, message: dict[str, str]) -> None:
        if message["what"] == "install":
            device.apply(DeviceChange(peers=(PeerChange(WireGuardKey.parse(message["key"])),)))
            return
        key = WireGuardPrivateKey(bytes.fromhex(message["key"]))
        device.apply(DeviceChange(private_key=key))
        if message["what"] == "swap":
            self._touch(notices, list(self._peers))
        notice = {"what": message["what"], "who": self._name, "key": str(key.public)}
        for other in self._peers:
            notices.sendto(json.dumps(notice).encode(), (self._underlay[other], NOTICE_PORT))

    def _told(self, device: Device, notices: socket.socket, message: dict[str, str]) -> None:
        who, key = message["who"], WireGuardKey.parse(message["key"])
        former, self._peers[who] = self._peers[who], key
        device.apply(DeviceChange(peers=(self._peer(who, key), PeerChange(former, remove=True))))
        if message["what"] == "swap":
            self._touch(notices, [who])

    def _touch(self, notices: socket.socket, others: list[str]) -> None:
        """Send something through the tunnel: whoever it reaches has no use for it."""
        for other in others:
            notices.sendto(b"", (self._overlay[other], 9))


if __name__ == "__main__":
    raise SystemExit(main())
