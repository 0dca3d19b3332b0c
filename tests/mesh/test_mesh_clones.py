"""A node's state on a second machine: all report it, one works, the other says why it does not."""

import shutil
import signal
import time

import pytest

from lablib import lan, wait_until
from lablib import mesh as mesh_lab
from mesh.meshes import PATIENCE, mesh_of, wireguard

pytestmark = [pytest.mark.netns, pytest.mark.slow]

STATE = "/var/lib/meshd"
RATE = 50  # pings a second
FLOW_SECONDS = 10


def copy_state(original, copy):
    """Copy what an image of the disk has: all files as they were at one moment."""
    running = original.process.poll() is None
    if running:
        original.process.send_signal(signal.SIGSTOP)
    try:
        shutil.copytree(original.file(STATE), copy.file(STATE), dirs_exist_ok=True)
    finally:
        if running:
            original.process.send_signal(signal.SIGCONT)


def findings(node):
    return [
        finding["message"]
        for finding in node.status()["health"]
        if finding["code"] == "identity-cloned"
    ]


def reported(*nodes):
    def by_all():
        for node in nodes:
            assert len(findings(node)) == 1, f"{node.name}: {node.status()['health']}"
        return True

    wait_until(by_all, "all report the clone", timeout=PATIENCE)


def works(mesh, original, *others):
    """Ping it from the others for a while.  Return whether every ping was answered."""
    address = mesh.address(original)
    flows = [node.ping_flow(address, rate=RATE) for node in others]
    time.sleep(FLOW_SECONDS)  # what is looked for is that nothing happens
    reports = [flow.stop() for flow in flows]
    print("\n".join(map(str, reports)))
    return not any(report.lost for report in reports)


@pytest.mark.parametrize(
    "rebooted",
    [
        pytest.param(False, id="while it runs"),
        pytest.param(True, id="both started anew", marks=pytest.mark.long),
    ],
)
def test_of_a_machine_and_its_copy_the_first_started_works_and_all_say_so(rebooted, measured):
    with mesh_of(lan(4)) as mesh:
        a, b, original, copy = mesh.nodes
        mesh.form([a, b, original])
        if rebooted:
            assert original.stop_daemon() == 0
        copy_state(original, copy)
        if rebooted:
            original.start_daemon()
            mesh.wait_whole(a, b, original)
        copy.start_daemon()
        mesh_lab.wait_answering(copy)
        began_at = time.monotonic()

        reported(a, b, original, copy)
        measured("s until all report", time.monotonic() - began_at)
        wait_until(lambda: not wireguard(copy)[1], "the copy has no peers", timeout=PATIENCE)
        address = mesh.address(original)
        wait_until(
            lambda: a.ping(address, timeout=0.5) and b.ping(address, timeout=0.5),
            "the original is reached",
            timeout=PATIENCE,
        )
        measured("s until reached", time.monotonic() - began_at)
        wait_until(lambda: works(mesh, original, a, b), "no ping is lost", timeout=2 * PATIENCE)

        assert "this one goes on" in findings(original)[0]
        assert "this one steps back" in findings(copy)[0]
        assert "join there with a new token" in copy.meshctl("status").stdout
        assert original.name in findings(a)[0]


@pytest.mark.long
def test_a_copy_that_joins_anew_is_a_node_of_its_own():
    with mesh_of(lan(3)) as mesh:
        a, original, copy = mesh.nodes
        mesh.form([a, original])
        copy_state(original, copy)
        copy.start_daemon()
        mesh_lab.wait_answering(copy)
        reported(a, original, copy)

        assert copy.stop_daemon() == 0
        copy.delete_interface("mesh0")
        shutil.rmtree(copy.file(STATE) / "mesh0")
        mesh.start(copy, seed=a)
        original.stop_daemon()
        original.start_daemon()

        mesh.wait_whole()
        mesh.ping_all()
        for node in mesh.nodes:
            wait_until(lambda node=node: not findings(node), "nobody reports", timeout=PATIENCE)


@pytest.mark.long
def test_a_restored_backup_is_no_copy(tmp_path):
    with mesh_of(lan(3)) as mesh:
        _a, _b, c = mesh.nodes
        mesh.form()
        backup = tmp_path / "backup"
        assert c.stop_daemon() == 0
        shutil.copytree(c.file(STATE), backup)
        for _ in range(2):
            c.start_daemon()
            mesh.wait_whole()
            assert c.stop_daemon() == 0
        shutil.rmtree(c.file(STATE) / "mesh0")
        shutil.copytree(backup, c.file(STATE), dirs_exist_ok=True)

        c.start_daemon()

        mesh.wait_whole()
        mesh.ping_all()
        for node in mesh.nodes:
            assert not findings(node)
