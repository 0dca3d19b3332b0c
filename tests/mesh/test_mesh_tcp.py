"""Where UDP is blocked: over TCP to a relay, and by that to all.

    router-a        router-b        router-c
       │               │               │
a: relay, TCP      b: no UDP       c: public
"""

import socket

import pytest

from lablib import internet, wait_until
from mesh.meshes import PATIENCE, member, mesh_of
from mesh.without_udp import block_udp, codes, relay, start, wait_path, without_udp

pytestmark = [pytest.mark.netns, pytest.mark.slow]


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


def test_a_member_without_udp_reaches_all_by_the_relay():
    with mesh_of(internet(3)) as mesh:
        _, b, c = without_udp(mesh)

        mesh.ping_all()

        assert "relayed via a (tcp)" in b.meshctl("status").stdout
        assert member(c, "b")["transport"] == "udp"
