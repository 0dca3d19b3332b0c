"""Machines that have no secret at all are let in, by people who compare eight letters."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lablib import lan, wait_until
from lablib.daemon import PROJECT
from mesh.meshes import PATIENCE, mesh_of

pytestmark = [pytest.mark.netns, pytest.mark.slow]

HELLOS_UNANSWERED = 3


def found(node):
    """Make a new mesh."""
    node.start_daemon("--init", "--name", node.name)
    wait_until(node.status, f"{node.name} answers", timeout=PATIENCE)


def ask(node, seed, *more):
    """Start a machine that has nothing but the address of a member."""
    node.start_daemon("--ask-approval", "--seed", str(seed.ipv4.ip), "--name", node.name, *more)


def waiting(node):
    return {each["name"]: each for each in node.control("/v1/pending")["pending"]}


def wait_code(node, name):
    """Wait until a member lists a newcomer, and return its code there."""
    return wait_until(
        lambda: waiting(node).get(name), f"{name} waits at {node.name}", timeout=PATIENCE
    )["code"]


def own_code(node):
    """Wait until a newcomer shows a code, and return it."""

    def shown():
        own = node.control("/v1/pending")["own"]
        return own and own["code"]

    return wait_until(shown, f"{node.name} shows a code", timeout=PATIENCE)


def test_machines_without_any_secret_are_let_in_by_their_codes(measured):
    with mesh_of(lan(3)) as mesh:
        a, b, c = mesh.nodes
        found(a)
        a.meshctl("pending", "--open")
        ask(b, a)
        ask(c, a)

        codes = {node.name: own_code(node) for node in (b, c)}
        assert codes == {name: wait_code(a, name) for name in ("b", "c")}
        assert codes["b"] in b.meshctl("pending").stdout
        assert codes["b"] in b.log_text()
        refused = b.meshctl("status", check=False)
        assert refused.returncode == 1
        assert codes["b"] in refused.stderr

        a.meshctl("approve", codes["b"].lower(), "--tag", "web")
        approved_at = time.monotonic()
        mesh.wait_whole(a, b)
        measured("s from approval until both see each other", time.monotonic() - approved_at)
        a.meshctl("approve", codes["c"], "--admit")
        mesh.wait_whole()
        mesh.ping_all()

        (seen,) = [m for m in a.status()["members"] if m["name"] == "b"]
        assert seen["tags"] == ["web"]
        assert b.meshctl("invite", check=False).returncode == 4
        assert c.meshctl("invite").returncode == 0
        kinds = [json.loads(line)["kind"] for line in audit(a)]
        assert kinds.count("newcomer-approved") == 2

        # It is a member like any other: the next start takes no option.
        b.kill_daemon()
        b.start_daemon()
        mesh.wait_whole()


def audit(node):
    return node.meshctl("audit", "--export").stdout.splitlines()


def test_a_member_without_a_window_answers_nothing():
    with mesh_of(lan(2)) as mesh:
        a, b = mesh.nodes
        found(a)
        with b.capture("udp") as capture:
            ask(b, a)
            wait_until(
                lambda: "no answer from" in b.log_text(), "b hears nothing", timeout=PATIENCE
            )
            packets = capture.packets()

        asked = [p for p in packets if p.destination == a.ipv4.ip]
        assert len(asked) >= HELLOS_UNANSWERED
        assert {len(p.payload) for p in asked} == {1200}
        assert [p for p in packets if p.source == a.ipv4.ip] == []
        assert waiting(a) == {}
        assert (
            a.status()["self"]["counters"]["bad_packets"][
                "approval asked for, and no window is open"
            ]
            >= len(asked) - 1
        )
        assert b.stop_daemon() == 0
        assert not list(b.file("/var/lib/meshd").iterdir())


@pytest.mark.long
def test_who_is_denied_ends_and_leaves_nothing():
    with mesh_of(lan(2)) as mesh:
        a, b = mesh.nodes
        found(a)
        a.meshctl("pending", "--open", "5m")
        ask(b, a)
        wait_code(a, "b")

        a.meshctl("deny", "b")

        assert b.process.wait(PATIENCE) == 1
        assert "its operator said no" in b.log_text()
        assert not list(b.file("/var/lib/meshd").iterdir())


@pytest.mark.long
def test_a_name_that_is_taken_is_seen_before_it_is_granted():
    with mesh_of(lan(2)) as mesh:
        a, b = mesh.nodes
        found(a)
        a.meshctl("pending", "--open")
        b.start_daemon("--ask-approval", "--seed", str(a.ipv4.ip), "--name", "a")
        code = wait_code(a, "a")

        taken = a.meshctl("approve", code, check=False)
        assert taken.returncode == 1
        assert "belongs to another member" in taken.stderr
        by_name = a.meshctl("approve", "a", check=False)
        assert by_name.returncode == 2
        assert "give the code" in by_name.stderr

        a.meshctl("approve", code, "--name", "b")
        b.meshctl("wait", "--members", "2", "--timeout", "60s", timeout=PATIENCE)
        mesh.wait_whole()
        twice = a.meshctl("approve", code, check=False)
        assert twice.returncode == 1


@pytest.mark.long
def test_a_window_that_is_closed_voids_the_codes():
    with mesh_of(lan(2)) as mesh:
        a, b = mesh.nodes
        found(a)
        a.meshctl("pending", "--open")
        ask(b, a)
        code = wait_code(a, "b")

        a.meshctl("pending", "--close")

        wait_until(lambda: "the code is void" in b.log_text(), "b knows", timeout=PATIENCE)
        assert a.meshctl("approve", code, check=False).returncode == 1

        a.meshctl("pending", "--open")
        again = wait_code(a, "b")
        assert again != code
        a.meshctl("approve", again)
        mesh.wait_whole()


@pytest.mark.long
@pytest.mark.parametrize("which", ["member", "newcomer"])
def test_after_a_restart_of_either_a_new_code_lets_in(which):
    with mesh_of(lan(2)) as mesh:
        a, b = mesh.nodes
        found(a)
        a.meshctl("pending", "--open")
        ask(b, a)
        code = wait_code(a, "b")

        if which == "member":
            a.kill_daemon()
            a.start_daemon()
            wait_until(a.status, "a answers", timeout=PATIENCE)
            assert a.control("/v1/pending")["open_for_s"] is None
            a.meshctl("pending", "--open")
        else:
            b.kill_daemon()
            ask(b, a)

        def renewed():
            codes = {each["code"] for each in a.control("/v1/pending")["pending"]}
            return own_code(b) in codes - {code} and own_code(b)

        again = wait_until(renewed, "b shows another code, and a the same", timeout=PATIENCE)
        a.meshctl("approve", again)
        mesh.wait_whole()


def test_with_somebody_in_the_middle_the_codes_differ_and_nobody_is_let_in():
    """a (member) ── middle ── b, which has been told that the middle is the member."""
    with mesh_of(lan(3)) as mesh:
        a, b, middle = mesh.nodes
        found(a)
        a.meshctl("pending", "--open")
        tests = Path(__file__).parents[1]
        process = middle.popen(
            [sys.executable, "-m", "mesh.middle", str(a.ipv4.ip)],
            env={"PYTHONPATH": f"{PROJECT}:{tests}"},
            stdout=subprocess.PIPE,
        )
        try:
            ask(b, middle)
            to_newcomer, to_member = json.loads(process.stdout.readline())

            assert own_code(b) == to_newcomer
            assert wait_code(a, "b") == to_member
            assert to_newcomer != to_member
            # The operator types what b shows.
            assert a.meshctl("approve", own_code(b), check=False).returncode == 1
            assert waiting(a)["b"]["state"] == "waiting"
            assert a.status()["members"] == []
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
