"""Two that speak to each other before there is a path, as people do who wait for an answer.

      transit
────┬─────┬─────┬─────┬────
 r-public1  r-public2  r-apd1  r-apd2     both NATs choose another port for every target
    │         │        │       │
 public1   public2    apd1 ⇄ apd2         pings all the time: WireGuard wastes its first initiations
"""

import time

import pytest

from lablib import mesh as lab_mesh
from lablib import topology, wait_until
from lablib.ping import FirstAnswers
from mesh.meshes import PATIENCE, end_wireguard, mesh_of, wireguard

pytestmark = pytest.mark.netns

PINGS = {"interval": 0.1, "timeout": PATIENCE}
FLOW_SECONDS = 6.0  # longer than REKEY_TIMEOUT, after which WireGuard would repeat an initiation


def handshake(node, other):
    """When a node's session with another began, by its device; 0 for never."""
    key, _ = wireguard(other)
    return wireguard(node)[1].get(key, 0)


def test_who_speaks_before_there_is_a_path_gets_one_session_and_keeps_it(measured):
    with mesh_of(topology("nats:apd")) as mesh:
        mesh.form()
        one, other = pair = mesh.lab["apd1"], mesh.lab["apd2"]
        addresses = {node.name: mesh.address(node) for node in pair}
        for node in pair:
            node.stop_daemon()
            end_wireguard(node)

        pings = [
            FirstAnswers(source.namespace, [addresses[target.name]], **PINGS)
            for source, target in (pair, (other, one))
        ]
        for node in pair:
            node.start_daemon()
        began_at = time.monotonic()
        wait_until(lambda: all(each.done() for each in pings), "answers", timeout=PATIENCE)
        for each in pings:
            [answered_at] = each.stop().values()
            measured("s to the first packet by a relay, both speaking", answered_at - began_at)
        lab_mesh.wait_state([one], other.name, "alive", timeout=PATIENCE)
        lab_mesh.wait_state([other], one.name, "alive", timeout=PATIENCE)

        before = handshake(one, other), handshake(other, one)
        flow = one.ping_flow(addresses[other.name], duration=FLOW_SECONDS)
        report = flow.result()

        assert report.sent > len(report.lost)
        assert all(before)
        assert (handshake(one, other), handshake(other, one)) == before
