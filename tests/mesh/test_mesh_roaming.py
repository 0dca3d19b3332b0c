"""The underlay changes under traffic: another address, another uplink, one IP version less.

How long it was silent is printed, not asserted: it depends on the machine that this runs on.
"""

import signal
import time

import pytest

from lablib import internet, nat, wait_until
from lablib.fabric import fabric_port
from mesh.meshes import PATIENCE, mesh_of, wait_state

pytestmark = [pytest.mark.netns, pytest.mark.slow]

RATE = 100
STOPPED_SECONDS = 90


def pinged_through(mesh, node, change, measured):
    """Change something under a flow of pings to a node, and wait until they pass again."""
    first = mesh.nodes[0]
    flow = first.ping_flow(mesh.address(node), rate=RATE)
    time.sleep(1.0)  # of what works, so that a silence has a beginning
    change()
    changed_at = time.monotonic()
    mesh.ping_all(first, node, timeout=PATIENCE)
    measured("s until reached again", time.monotonic() - changed_at)
    mesh.wait_whole()
    report = flow.stop()
    measured("s of silence", report.longest_gap)


@pytest.mark.parametrize("topology", [internet(3), nat(3)], ids=lambda t: t.name)
def test_another_address(topology, measured):
    with mesh_of(topology) as mesh:
        mesh.form()
        mover = mesh.nodes[1]

        pinged_through(mesh, mover, mover.renumber, measured)


def test_a_default_route_moves_to_another_uplink_and_no_address_changes(measured):
    """The first uplink has failed behind its router, as a host that watches it would notice."""
    with mesh_of(internet(3)) as mesh:
        _, mover, neighbour = mesh.nodes
        give_second_uplink(mesh.lab, mover, neighbour)
        mesh.form()

        def move():
            mesh.lab.namespaces["router-b"].run(["ip", "link", "set", "wan", "down"])
            gateways = neighbour.member.gateway_ipv4, neighbour.member.gateway_ipv6
            lines = [f"route replace default via {gateway} dev eth1" for gateway in gateways]
            mover.run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")

        pinged_through(mesh, mover, move, measured)


def give_second_uplink(lab, node, neighbour):
    """Plug a second interface into a neighbour's subnet, with addresses there and no route."""
    end = fabric_port(node.name, "eth1")
    segment = neighbour.member.port.segment
    lab.fabric.run(["ip", "link", "add", end, "type", "veth",
                    "peer", "name", "eth1", "netns", str(node.namespace.pid)])  # fmt: skip
    lab.fabric.run(["ip", "link", "set", end, "master", segment, "up"])
    for address in (neighbour.ipv4, neighbour.ipv6):
        beside = type(address)((address.ip + 1, address.network.prefixlen))
        node.run(["ip", "address", "add", str(beside), "dev", "eth1"])
    node.run(["ip", "link", "set", "eth1", "up"])
    wait_until(
        lambda: "tentative" not in node.run(["ip", "address", "show", "dev", "eth1"]).stdout,
        "the new addresses are usable",
        timeout=PATIENCE,
    )


def test_ipv4_is_lost_and_ipv6_is_there(measured):
    with mesh_of(internet(3)) as mesh:
        mesh.form()
        mover = mesh.nodes[1]

        def lose():
            mover.run(["ip", "-4", "address", "flush", "dev", mover.member.port.interface])

        pinged_through(mesh, mover, lose, measured)


@pytest.mark.long
def test_a_daemon_that_was_stopped_for_long_takes_nobody_for_dead():
    with mesh_of(internet(3)) as mesh:
        mesh.form()
        first, stopped, third = mesh.nodes
        flow = first.ping_flow(mesh.address(stopped), rate=10)

        stopped.process.send_signal(signal.SIGSTOP)
        try:
            for node in (first, third):
                wait_state(node, "b", "dead")
            time.sleep(STOPPED_SECONDS)
        finally:
            stopped.process.send_signal(signal.SIGCONT)
        mesh.wait_whole()
        mesh.ping_all()

        assert not flow.stop().lost
        assert "is dead" not in stopped.log_text()
