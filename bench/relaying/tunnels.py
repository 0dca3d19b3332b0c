"""iperf3 through tunnels, direct and by way of a third machine: meshd, nebula and tinc.

      a ── router ──┐                ┌── router ── b
                    ├── transit wire ┤
                    └── router ── c ─┘     c relays, where a and b do not hear each other

Each system is set up as its manual says, with an MTU of 1,420 where it takes one, on the very same
namespaces.  For the relayed runs a and b drop what comes from each other's addresses.

| variant            | who relays                                                              |
| ------------------ | ----------------------------------------------------------------------- |
| `meshd-direct`     |                                                                         |
| `meshd-kernel`     | c's kernel, ciphertext                                                  |
| `meshd-userspace`  | meshd on c, without nft, ciphertext                                     |
| `nebula-direct`    |                                                                         |
| `nebula-relayed`   | nebula on c: ciphertext, in an envelope of its own                      |
| `tinc-direct`      |                                                                         |
| `tinc-indirect`    | tincd on c, which opens and seals again (`IndirectData`)                |
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lablib import Lab, internet, mesh, wait_until
from relaying.processes import cpu_of_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from subprocess import Popen

    from lablib import Node

VARIANTS = (
    "meshd-direct",
    "meshd-kernel",
    "meshd-userspace",
    "nebula-direct",
    "nebula-relayed",
    "tinc-direct",
    "tinc-indirect",
)
PATIENCE = 60.0
MTU = 1420
PING_TIMEOUT = 30.0
SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

DEAF = """
table inet bench {{
  chain hear {{
    type filter hook prerouting priority -400; policy accept;
    ip saddr {ipv4} drop
    ip6 saddr {ipv6} drop
  }}
}}
"""

NEBULA_PORT = 4242
NEBULA_NETWORK = "100.70.0."
TINC_NETWORK = "100.71.0."


@dataclass(frozen=True, slots=True)
class Transfer:
    """One run of iperf3."""

    variant: str
    megabits_per_second: float
    cpu_per_gb: float  # of the whole machine: both ends and whoever relays


def measure(variant: str, seconds: float) -> Transfer:
    """Set everything up from nothing, and run iperf3 from a to b once."""
    system, _, way = variant.partition("-")
    with Lab(internet(3)) as lab:
        a, b, c = lab.nodes.values()
        if way != "direct":
            for node, other in ((a, b), (b, a)):
                assert other.ipv6 is not None
                rules = DEAF.format(ipv4=other.ipv4.ip, ipv6=other.ipv6.ip)
                node.run(["nft", "-f", "-"], stdin=rules)
        with _SYSTEMS[system](a, b, c, way) as target:
            wait_until(
                lambda: target in a.ping(target, timeout=PING_TIMEOUT),
                f"{variant}: a's ping comes back from b",
                timeout=PATIENCE,
            )
            return _iperf(variant, a, b, target, seconds)


def _iperf(variant: str, a: Node, b: Node, target: str, seconds: float) -> Transfer:
    server = b.popen(
        ["iperf3", "--server", "--one-off", "--bind", target], stdout=subprocess.DEVNULL
    )
    try:
        wait_until(
            lambda: f"{target}:5201" in b.run(["ss", "-Hltn"]).stdout,
            "iperf3 listens",
            timeout=PATIENCE,
        )
        before = cpu_of_all()
        shown = a.run(
            ["iperf3", "--client", target, "--time", f"{seconds:g}", "--json"],
            timeout=seconds + PATIENCE,
        )
        used = cpu_of_all() - before
    finally:
        server.kill()
        server.wait()
    received = json.loads(shown.stdout)["end"]["sum_received"]
    return Transfer(variant, received["bits_per_second"] / 1e6, used / (received["bytes"] / 1e9))


# meshd


@contextmanager
def _meshd(a: Node, b: Node, c: Node, way: str) -> Iterator[str]:
    if way == "userspace":
        nft = shutil.which("nft", path=SYSTEM_PATH)
        assert nft is not None
        c.run(["mount", "--bind", "/dev/null", nft])
    secret = secrets.token_hex(16)
    for node in (c, a, b):
        file = node.file(mesh.SECRET_FILE)
        file.touch(mode=0o600)
        file.write_text(secret)
        arguments = ["--secret-file", mesh.SECRET_FILE, "--name", node.name]
        if node is c:
            node.start_daemon(*arguments, "--relay")
            mesh.wait_answering(node)
        else:
            port = c.status()["self"]["listen_port"] + (1 if way == "userspace" else 0)
            node.start_daemon(*arguments, "--seed", f"{c.ipv4.ip}:{port}")
    mesh.wait_whole([a, b, c], timeout=PATIENCE)
    for node, other in ((a, b), (b, a)):
        _wait_path(node, other.name, "direct" if way == "direct" else "relayed")
    if way == "kernel":
        wait_until(lambda: _kernel_carries(c), "c's kernel relays", timeout=PATIENCE)
    target: str = b.status()["self"]["ipv4"]
    yield target


def _wait_path(node: Node, other: str, path: str) -> None:
    def is_so() -> bool:
        (member,) = (m for m in node.status()["members"] if m["name"] == other)
        assert member["path"] == path, f"{node.name} reaches {other}: {member['path']}"
        return True

    wait_until(is_so, f"{node.name} reaches {other} {path}", timeout=PATIENCE)


def _kernel_carries(c: Node) -> bool:
    listing = json.loads(c.run(["nft", "--json", "list", "ruleset"]).stdout)["nftables"]
    maps = [each["map"] for each in listing if "map" in each]
    return any(each["name"] == "arriving" and each.get("elem") for each in maps)


# nebula


@contextmanager
def _nebula(a: Node, b: Node, c: Node, way: str) -> Iterator[str]:
    addresses = {node.name: f"{NEBULA_NETWORK}{n}" for n, node in enumerate((a, b, c), start=1)}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as opened:
        folder = Path(directory)
        _run(folder, "nebula-cert", "ca", "-name", "bench")
        for node in (c, a, b):
            name, address = node.name, addresses[node.name]
            _run(folder, "nebula-cert", "sign", "-name", name, "-ip", f"{address}/24")
            config = folder / f"{name}.json"
            settings = _nebula_settings(folder, node, c, addresses, relayed=way == "relayed")
            config.write_text(json.dumps(settings))  # JSON is YAML
            argv = ["nebula", "-config", str(config)]
            opened.callback(_end, node.popen(argv, stderr=subprocess.DEVNULL))
        yield addresses[b.name]


def _nebula_settings(
    folder: Path, node: Node, c: Node, addresses: dict[str, str], *, relayed: bool
) -> dict[str, object]:
    is_relay = node is c
    hub = addresses[c.name]
    anyone = [{"port": "any", "proto": "any", "host": "any"}]
    relay: dict[str, object] = {"am_relay": is_relay, "use_relays": relayed}
    if relayed and not is_relay:
        relay["relays"] = [hub]
    return {
        "pki": {
            "ca": str(folder / "ca.crt"),
            "cert": str(folder / f"{node.name}.crt"),
            "key": str(folder / f"{node.name}.key"),
        },
        "static_host_map": {hub: [f"{c.ipv4.ip}:{NEBULA_PORT}"]},
        "lighthouse": {
            "am_lighthouse": is_relay,
            "hosts": [] if is_relay else [hub],
            "local_allow_list": {"0.0.0.0/0": True, "::/0": False},
        },
        "listen": {"host": "0.0.0.0", "port": NEBULA_PORT},
        "punchy": {"punch": True},
        "relay": relay,
        "tun": {"dev": "nebula0", "mtu": MTU},
        "logging": {"level": "error", "format": "text"},
        "firewall": {"outbound": anyone, "inbound": anyone},
    }


# tinc


@contextmanager
def _tinc(a: Node, b: Node, c: Node, way: str) -> Iterator[str]:
    addresses = {node.name: f"{TINC_NETWORK}{n}" for n, node in enumerate((a, b, c), start=1)}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as opened:
        folders = {node.name: Path(directory, node.name) for node in (a, b, c)}
        for node in (a, b, c):
            folder, name = folders[node.name], node.name
            (folder / "hosts").mkdir(parents=True)
            lines = [f"Name = {name}", "Mode = router", "Interface = tinc0"]
            lines += [] if node is c else [f"ConnectTo = {c.name}"]
            (folder / "tinc.conf").write_text("\n".join(lines) + "\n")
            lines = [f"Address = {node.ipv4.ip}", f"Subnet = {addresses[name]}/32"]
            lines += ["IndirectData = yes"] if way == "indirect" and node is not c else []
            (folder / "hosts" / name).write_text("\n".join(lines) + "\n")
            up = folder / "tinc-up"
            up.write_text(
                f"#!/bin/sh\nip addr add {addresses[name]}/24 dev tinc0\nip link set tinc0 up\n"
            )
            up.chmod(0o755)
            _run(folder, "tincd", "--config", str(folder), "-K2048")
        for one in folders.values():
            for name, other in folders.items():
                if one is not other:
                    shutil.copy(other / "hosts" / name, one / "hosts" / name)
        for node in (c, a, b):
            folder = str(folders[node.name])
            argv = ["tincd", "--config", folder, "--no-detach", "--pidfile", f"{folder}/pid"]
            opened.callback(_end, node.popen(argv, stderr=subprocess.DEVNULL))
        yield addresses[b.name]


_SYSTEMS: dict[str, Callable[[Node, Node, Node, str], object]] = {
    "meshd": _meshd,
    "nebula": _nebula,
    "tinc": _tinc,
}


def _run(folder: Path, *argv: str) -> None:
    program = shutil.which(argv[0], path=SYSTEM_PATH)
    if program is None:
        raise SystemExit(f"{argv[0]} is not installed: `contrib/setup --bench` does that")
    subprocess.run(
        [program, *argv[1:]], cwd=folder, check=True, capture_output=True, stdin=subprocess.DEVNULL
    )


def _end(process: Popen[str]) -> None:
    process.terminate()
    process.wait()
