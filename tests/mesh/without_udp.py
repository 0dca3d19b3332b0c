"""What tests of networks that block UDP share: members behind a router that drops it.

The router stands between the member and everybody else, so nothing tells the member but silence.
"""

from lablib import wait_until
from mesh.meshes import PATIENCE, SEED_PORT, member

NO_UDP = """table inet lab {
chain forward {
type filter hook forward priority -10; policy accept;
meta l4proto udp drop
}
}
"""


def block_udp(mesh, name):
    """Have a member's router drop UDP in both directions."""
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
    """Start a member that relays, and wait until it answers."""
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
    """What a node says is not well with it."""
    return [finding["code"] for finding in node.status()["health"]]


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


def tcp_connections(node):
    """Count the connections that a node has to relays."""
    shown = node.run(["ss", "-Htn", "state", "established", "dport", "=", f":{SEED_PORT}"])
    return len(shown.stdout.splitlines())
