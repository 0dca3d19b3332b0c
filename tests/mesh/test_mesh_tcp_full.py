"""Where UDP comes and goes, where two sites have none, and where a relay is started again.

    router-a        router-b        router-c
       │               │               │
a: relay, TCP   b: UDP at times    c: public
"""

import time

import pytest

from lablib import Capture, internet, topology, wait_until
from mesh.meshes import PATIENCE, mesh_of
from mesh.without_udp import (
    block_udp,
    codes,
    open_udp,
    relay,
    start,
    tcp_connections,
    wait_path,
    without_udp,
)

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.long]

MARKER = b"sixteen of these"  # in what is sent through the tunnels


def test_it_goes_back_to_udp_without_loss_and_over_tcp_again(measured):
    """The traffic of `b` to `c` goes over TCP by `a`, then directly, then over TCP by `a`."""
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

        began_at = time.monotonic()
        block_udp(mesh, "b")
        wait_path(b, "c", "relayed", "tcp", timeout=2 * PATIENCE)
        b.ping(mesh.address(c), timeout=PATIENCE)
        measured("s until it was over TCP again", time.monotonic() - began_at)
        mesh.ping_all()


def test_those_without_udp_and_behind_symmetric_nats_meet_and_survive_a_relays_restart(
    measured, tmp_path
):
    """Six: two that relay, two without UDP, two behind NATs whose ports nobody can tell."""
    with mesh_of(topology("nats:no-udp,apd")) as mesh:
        first, second = (mesh.lab[f"public{number}"] for number in (1, 2))
        relay(mesh, first)
        relay(mesh, second, "--seed", str(first.ipv4.ip))
        behind = [node for node in mesh.nodes if node not in {first, second}]
        for node in behind:
            start(mesh, node, "--seed", str(first.ipv4.ip), "--seed", str(second.ipv4.ip))
        mesh.wait_whole(timeout=2 * PATIENCE)
        mesh.ping_all()
        one, other, symmetric = (mesh.lab[name] for name in ("no-udp1", "no-udp2", "apd1"))
        wait_path(one, "no-udp2", "relayed", "tcp")
        wait_path(other, "no-udp1", "relayed", "tcp")
        wait_path(one, "apd1", "relayed", "tcp")
        wait_path(symmetric, "no-udp1", "relayed", "udp")

        relays = [node.capture() for node in (first, second)]
        tunnels = [
            Capture(node.namespace, "mesh0", tmp_path / node.name, ())
            for node in (other, symmetric)
        ]
        for target in (other, symmetric):
            one.run(["ping", "-c", "20", "-i", "0.05", "-p", MARKER.hex(), mesh.address(target)])
        for capture in tunnels:
            assert MARKER in capture.stop().read_bytes(), "it arrives as it was sent"
        assert sum(len(capture.packets()) for capture in relays) >= 2 * 20, "it passes the relays"
        for capture in relays:
            assert MARKER not in capture.path.read_bytes()

        began_at = time.monotonic()
        first.stop_daemon()
        relay(mesh, first)
        mesh.wait_whole(timeout=2 * PATIENCE)
        mesh.ping_all(timeout=2 * PATIENCE)
        measured("s until all is well after a relay's restart", time.monotonic() - began_at)
        wait_until(lambda: tcp_connections(one) == 2, "both relays are connected", timeout=PATIENCE)
