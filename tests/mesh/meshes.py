"""What the mesh tests share: a mesh in a lab, and what can be asked of it."""

import contextlib
import secrets

from lablib import Lab, mesh

SEED_PORT = 51820
# A machine with two emulated cores needs ten times as long for the same.
PATIENCE = 60.0


class Mesh:
    """Nodes of a lab with meshd on them, all in one secret's mesh."""

    def __init__(self, lab):
        self.lab = lab
        self.nodes = list(lab.nodes.values())
        self.secret = secrets.token_hex(16)

    def start(self, *nodes, seed=None):
        """Start daemons, without waiting for anything."""
        for node in nodes:
            mesh.join(node, secret=self.secret, seed=seed)

    def form(self, nodes=None, *, timeout=PATIENCE):
        """Start all, the first being the others' seed, and wait until all see all."""
        first, *others = nodes or self.nodes
        self.start(first)
        self.start(*others, seed=first)
        self.wait_whole(first, *others, timeout=timeout)

    def form_by_tokens(self, *grants, nodes=None, timeout=PATIENCE):
        """Have the first found a mesh and let in the others, one after the other."""
        first, *others = nodes or self.nodes
        mesh.found(first)
        for node in others:
            mesh.admit(node, *grants, by=first)
        self.wait_whole(first, *others, timeout=timeout)

    def wait_whole(self, *nodes, timeout=PATIENCE):
        """Wait until each of these holds exactly these for alive."""
        mesh.wait_whole(nodes or self.nodes, timeout=timeout)

    def ping_all(self, *nodes, timeout=PATIENCE):
        """Ping everyone from everyone by both IP versions until all have answered."""
        for version in (4, 6):
            addresses = mesh.addresses(nodes or self.nodes, version=version)
            matrix = self.lab.ping_all(addresses, timeout=timeout)
            assert not matrix.silent, matrix.render()

    def address(self, node, version=4):
        """A node's address in the mesh."""
        return node.status()["self"][f"ipv{version}"]


@contextlib.contextmanager
def mesh_of(topology):
    """A mesh's nodes, with nothing started yet; what they logged is shown when a test fails."""
    with Lab(topology) as lab:
        try:
            yield Mesh(lab)
        except BaseException:
            for node in lab.nodes.values():
                print(f"--- log of {node.name}\n{node.log_text()}")
            raise


def member(node, name):
    """What a node's status says of another."""
    return next((m for m in node.status()["members"] if m["name"] == name), None)


def wait_state(node, name, state, *, timeout=PATIENCE):
    """Wait until a node holds another for alive, dead, ..."""
    mesh.wait_state([node], name, state, timeout=timeout)


def wireguard(node):
    """What the WireGuard device says of itself: public key, then handshake times by peer."""
    dump = node.run(["wg", "show", "mesh0", "dump"]).stdout.splitlines()
    own = dump[0].split("\t")[1]
    peers = {line.split("\t")[0]: int(line.split("\t")[4]) for line in dump[1:]}
    return own, peers


def end_wireguard(node):
    """Delete the interface, whichever backend serves it."""
    node.delete_interface("mesh0")
