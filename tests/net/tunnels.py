"""Real WireGuard interfaces for tests, of the kernel where it has them, else of wireguard-go."""

from __future__ import annotations

import contextlib
import subprocess

from net.namespaces import PREFIX

PORT = 51820


class Tunnel:
    """A WireGuard interface inside a namespace, listening on `PORT`."""

    def __init__(self, namespace, interface, number):
        self._namespace = namespace
        self.interface = interface
        namespace.run(
            f"wg genkey | wg set {interface} private-key /dev/stdin listen-port {PORT};"
            f"ip addr add 100.64.0.{number}/10 dev {interface}; ip link set {interface} up"
        )
        self.public_key = namespace.run(f"wg show {interface} public-key").strip()

    def add_peer(self, other, number, endpoint=""):
        self._namespace.run(
            f"wg set {self.interface} peer {other.public_key}"
            f" allowed-ips 100.64.0.{number}/32 {endpoint}"
        )

    def endpoint(self):
        return self._namespace.run(f"wg show {self.interface} endpoints").split()[1]


@contextlib.contextmanager
def tunnel(namespace, number):
    """WireGuard, the kernel's where it has one, else wireguard-go."""
    interface = f"{PREFIX[-7:]}w{number}"  # wireguard-go's sockets are in one place for all
    try:
        namespace.run(f"ip link add {interface} type wireguard")
    except AssertionError:
        process = namespace.start("wireguard-go", "-f", interface, stderr=subprocess.DEVNULL)
        try:
            ready = f"until wg show {interface} >/dev/null 2>&1; do sleep 0.01; done"
            namespace.run(f"timeout 10 sh -c '{ready}'")
            yield Tunnel(namespace, interface, number)
        finally:
            process.terminate()
            process.wait(10)
    else:
        yield Tunnel(namespace, interface, number)
