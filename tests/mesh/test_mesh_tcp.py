"""Where UDP is blocked: over TCP to a relay, by that to all, and back to UDP when that works.

    router-a        router-b        router-c
       │               │               │
a: relay, TCP      b: no UDP       c: public
"""

import socket

import pytest

from lablib import internet, wait_until
from mesh.meshes import PATIENCE, member, mesh_of

pytestmark = [pytest.mark.netns, pytest.mark.slow]

NO_UDP = """table inet lab {
chain forward {
type filter hook forward priority -10; policy accept;
meta l4proto udp drop
}
}
"""


def block_udp(mesh, name):
    mesh.lab.namespaces[f"router-{name}"].run(["nft", "-f", "-"], stdin=NO_UDP)


def open_udp(mesh, name):
    mesh.lab.namespaces[f"router-{name}"].run(["nft", "delete", "table", "inet", "lab"])


def start(mesh, node, *arguments):
    """Start meshd with the mesh's secret."""
    file = node.file("/etc/meshd/secret")
    file.touch(mode=0o600)
    file.write_text(mesh.secret)
    node.start_daemon("--secret-file", "/etc/meshd/secret", "--name", node.name, *arguments)


def relay(mesh, node, *arguments):
    start(mesh, node, "--relay", *arguments)
    wait_until(node.status, f"{node.name} answers", timeout=PATIENCE)


def wait_path(node, other, path, transport, *, timeout=PATIENCE):
    """Wait until a node reaches another in a certain way."""

    def reached():
        seen = member(node, other)
        assert seen is not None, f"{node.name} does not know {other}"
        found = seen["state"], seen["path"], seen["transport"]
        assert found == ("alive", path, transport), f"{node.name} has {other} as {found}"
        return True

    wait_until(reached, f"{node.name} reaches {other} {path} over {transport}", timeout=timeout)


def codes(node):
    return [finding["code"] for finding in node.status()["health"]]


@pytest.mark.parametrize(
    ("listen", "seed"),
    [((), "{}"), ((), "tcp://{}"), (("--relay-tcp", "0", "--relay-tls", "443"), "tls://{}")],
    ids=["silent-seed", "tcp", "tls"],
)
def test_a_member_without_udp_joins_by_a_seed_over_tcp(measured, listen, seed):
    with mesh_of(internet(2)) as mesh:
        a, b = mesh.nodes
        block_udp(mesh, "b")
        relay(mesh, a, *listen)
        capture = b.capture()
        start(mesh, b, "--seed", seed.format(a.ipv4.ip))

        mesh.wait_whole()
        mesh.ping_all()

        wait_path(b, "a", "direct", "tcp")
        assert member(a, "b")["transport"] == "tcp"
        assert "direct (tcp)" in b.meshctl("status").stdout
        wait_until(lambda: "udp-blocked" in codes(b), "b says so", timeout=PATIENCE)
        assert "udp-blocked" not in codes(a)
        # tcpdump gets packets in blocks, the first of them after a second.
        wait_until(lambda: capture.path.stat().st_size > 4096, "it is captured", timeout=PATIENCE)
        tcp = [p for p in capture.packets() if p.protocol == socket.IPPROTO_TCP]
        assert tcp
        told = [mesh.secret.encode(), b"meshd"]
        assert not any(secret in packet.payload for packet in tcp for secret in told)


def without_udp(mesh):
    """Form a mesh in which `b` has no UDP."""
    a, b, c = mesh.nodes
    block_udp(mesh, "b")
    relay(mesh, a)
    start(mesh, c, "--seed", str(a.ipv4.ip))
    start(mesh, b, "--seed", str(a.ipv4.ip))
    mesh.wait_whole()
    wait_path(b, "c", "relayed", "tcp")
    return a, b, c


def test_a_member_without_udp_reaches_all_by_the_relay():
    with mesh_of(internet(3)) as mesh:
        _, b, c = without_udp(mesh)

        mesh.ping_all()

        assert "relayed via a (tcp)" in b.meshctl("status").stdout
        assert member(c, "b")["transport"] == "udp"


@pytest.mark.long
def test_it_goes_back_to_udp_without_loss(measured):
    """The traffic of `b` to `c` goes over TCP by `a`, then directly."""
    with mesh_of(internet(3)) as mesh:
        _, b, c = without_udp(mesh)
        mesh.ping_all()

        flow = b.ping_flow(mesh.address(c))
        open_udp(mesh, "b")
        wait_path(b, "c", "direct", "udp", timeout=2 * PATIENCE)
        wait_path(b, "a", "direct", "udp", timeout=2 * PATIENCE)
        wait_until(lambda: codes(b) == [], "b is well", timeout=PATIENCE)
        report = flow.stop()

        measured("pings lost while it moved to UDP", len(report.lost))
        assert not report.lost, report
        wait_until(lambda: tcp_connections(b) == 0, "the connection is let go of", timeout=PATIENCE)


def tcp_connections(node):
    shown = node.run(["ss", "-Htn", "state", "established", "dport", "=", ":51820"])
    return len(shown.stdout.splitlines())
