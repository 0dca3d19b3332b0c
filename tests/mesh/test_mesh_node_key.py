"""Node keys are replaced under traffic: what is lost, what stays, and what a copy is told."""

import json
import shutil
import signal

import pytest

from lablib import Traffic, lan, mesh, wait_until
from mesh.meshes import PATIENCE, member, mesh_of, wireguard

pytestmark = [pytest.mark.netns, pytest.mark.slow]

RATE = 100  # datagrams a second, each way of each pair
STATE = "/var/lib/meshd/mesh0"


def rekey(node):
    """Replace a node's key, and return what the command says."""
    done = node.meshctl("keys", "rotate", "--node", "--yes", "--json", timeout=PATIENCE)
    return json.loads(done.stdout)


def of(node, *events):
    """The events of some names that a node tells of."""
    told = map(json.loads, node.meshctl("events", "--json").stdout.splitlines())
    return [event for event in told if event["event"] in events]


def wait_known(node, name, id_):
    """Wait until a node shows another under its new id, alive."""
    wait_until(
        lambda: (
            (found := member(node, name)) is not None
            and (found["id"], found["state"]) == (id_, "alive")
        ),
        f"{node.name} has {name} as {id_}",
        timeout=PATIENCE,
    )


def test_a_member_and_the_founder_get_new_node_keys_under_traffic(measured):
    with mesh_of(lan(3)) as meshed:
        meshed.form_by_tokens()
        meshed.ping_all()
        founder, x, y = meshed.nodes
        before = {node.name: node.status()["self"] for node in meshed.nodes}
        devices = {node.name: wireguard(node) for node in meshed.nodes}
        flows = Traffic(meshed.nodes, mesh.addresses(meshed.nodes, version=4), rate=RATE)
        ids = {}
        for node in (x, founder):  # by the founder's word, and by the mesh key
            ids[node.name] = rekey(node)["node"]
            for other in meshed.nodes:
                if other is not node:
                    wait_known(other, node.name, ids[node.name])
        report = flows.stop()

        measured("sent", report.sent)
        measured("lost", len(report.lost))
        assert not report.lost
        assert {node.name: wireguard(node) for node in meshed.nodes} == devices
        for node in (x, founder):
            own, former = node.status()["self"], before[node.name]
            assert own["id"] == ids[node.name] != former["id"]
            assert own["ipv6"] != former["ipv6"]
            assert [own[key] for key in ("name", "ipv4", "public_key")] == [
                former[key] for key in ("name", "ipv4", "public_key")
            ]
        rekeyed = of(y, "member-rekeyed")
        assert [event["member"] for event in rekeyed] == [x.name, founder.name]
        measured("times suspected meanwhile", len(of(y, "member-suspect")))
        assert not of(y, "member-dead", "member-left", "key-conflict")
        meshed.wait_whole()
        meshed.ping_all()

        for node in (x, founder):
            node.stop_daemon(signal.SIGKILL)
            node.start_daemon()
        meshed.wait_whole()
        meshed.ping_all()
        assert {node.name: node.status()["self"]["id"] for node in (x, founder)} == ids
        for node in meshed.nodes:
            assert node.meshctl("audit", "verify").returncode == 0


def test_a_copy_of_the_state_from_before_is_told_and_stays_out():
    with mesh_of(lan(3)) as meshed:
        founder, x, copy = meshed.nodes
        meshed.form_by_tokens(nodes=(founder, x))
        x.stop_daemon(signal.SIGTERM)
        shutil.copytree(x.file(STATE), copy.file(STATE), dirs_exist_ok=True)
        x.start_daemon()
        meshed.wait_whole(founder, x)
        id_ = rekey(x)["node"]
        wait_known(founder, x.name, id_)

        copy.start_daemon()
        mesh.wait_answering(copy)

        def told():
            return [f for f in copy.status()["health"] if f["code"] == "succeeded"]

        [finding] = wait_until(told, "the copy is told", timeout=PATIENCE)
        assert id_[:10] in finding["message"]
        wait_until(lambda: not wireguard(copy)[1], "the copy has no peers", timeout=PATIENCE)
        assert member(founder, x.name)["id"] == id_
        meshed.wait_whole(founder, x)
        meshed.ping_all(founder, x)
