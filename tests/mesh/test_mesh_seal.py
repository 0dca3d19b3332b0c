"""A mesh that began with a secret is sealed under traffic; and keys of meshes are replaced."""

import json
import time

import pytest

from lablib import lan, mesh, wait_until
from mesh.meshes import PATIENCE, end_wireguard, member, mesh_of, wait_state, wireguard

pytestmark = [pytest.mark.netns, pytest.mark.slow]

RATE = 100  # pings a second
QUIET = 3.0  # without a handshake, before handshakes are compared


def keys(node):
    return node.control("/v1/keys")


def wait_follows(root, *nodes, timeout=PATIENCE):
    """Wait until nodes start from a root and have the bootstrap key that goes with it."""

    def follow():
        for node in nodes:
            document = keys(node)
            assert document["root"] == root, f"{node.name} starts from {document['root']}"
            assert document["bootstrap"]["held"], f"{node.name} lacks the bootstrap key"
        return True

    wait_until(follow, f"{', '.join(n.name for n in nodes)} follow", timeout=timeout)


def wait_quiet(*nodes):
    """Wait until no handshake has been made for a while, and return when the last ones were."""
    seen = [{}, time.monotonic()]

    def quiet():
        found = {node.name: wireguard(node) for node in nodes}
        if found != seen[0]:
            seen[:] = found, time.monotonic()
        return time.monotonic() - seen[1] > QUIET

    wait_until(quiet, "no handshakes", timeout=PATIENCE)
    return seen[0]


def finding(node, code):
    """What is wrong with a node, by its own word."""
    return next((f["message"] for f in node.status()["health"] if f["code"] == code), None)


def seal(node):
    return json.loads(node.meshctl("seal", "--yes", "--json").stdout)


def test_a_mesh_is_sealed_under_traffic_and_who_was_away_follows(measured):
    """a … e have the secret, e is off meanwhile; f comes with the secret, g with a token."""
    with mesh_of(lan(7)) as made:
        *members, outsider, guest = made.nodes
        a, b, _, d, away = members
        made.form(members)
        made.ping_all(*members)
        addresses = mesh.addresses(members, version=4)
        away.kill_daemon()
        end_wireguard(away)
        wait_state(a, away.name, "dead")
        here = [node for node in members if node is not away]
        refused = a.meshctl("revoke", d.name, "--yes", check=False)
        assert refused.returncode == 1
        assert "meshctl seal" in refused.stderr
        before = wait_quiet(*here)
        flow = a.ping_flow(addresses[b.name], rate=RATE)
        begun_at = time.monotonic()

        sealed = seal(a)

        wait_follows(sealed["root"], *here)
        measured("s until the four there have followed", time.monotonic() - begun_at)
        assert [each["name"] for each in sealed["members"]] == [node.name for node in members]
        assert {node.name: wireguard(node) for node in here} == before, "no session is disturbed"
        report = flow.stop()
        assert not report.lost, str(report)
        assert a.status()["self"]["holds_mesh_key"]
        assert not b.status()["mesh"]["open"]

        away.start_daemon()
        returned_at = time.monotonic()
        wait_follows(sealed["root"], away)
        made.wait_whole(*members)
        measured("s until who was away has followed", time.monotonic() - returned_at)
        assert mesh.addresses(members, version=4) == addresses
        made.ping_all(*members)

        made.start(outsider, seed=b)
        message = wait_until(lambda: finding(outsider, "refused"), "it is told", timeout=PATIENCE)
        assert "was sealed" in message
        assert "meshctl invite" in message
        assert all(member(node, outsider.name) is None for node in members)
        outsider.kill_daemon()

        mesh.admit(guest, by=d)
        made.wait_whole(*members, guest)
        made.ping_all(*members, guest)

        key = guest.status()["self"]["public_key"]
        b.meshctl("revoke", guest.name, "--yes")
        for node in members:
            wait_until(
                lambda node=node: key not in wireguard(node)[1], "it is out", timeout=PATIENCE
            )
        made.wait_whole(*members)


@pytest.mark.long
def test_a_restart_with_the_secret_and_a_power_cycle_leave_a_sealed_mesh_sealed():
    with mesh_of(lan(3)) as made:
        made.form()
        root = seal(made.nodes[0])["root"]
        wait_follows(root, *made.nodes)
        for node in made.nodes:
            node.kill_daemon()
            end_wireguard(node)

        made.start(made.nodes[0])
        made.start(*made.nodes[1:], seed=made.nodes[0])

        made.wait_whole()
        wait_follows(root, *made.nodes)
        made.ping_all()
        assert "the secret is of no use any more" in made.nodes[1].log_text()
        again = made.nodes[1].meshctl("seal", "--yes", check=False)
        assert again.returncode == 1
        assert "or is sealed" in again.stderr


@pytest.mark.long
def test_keys_of_the_mesh_are_rotated_under_traffic(measured):
    """The founder holds the mesh key; b may admit; a token from before is void afterwards."""
    with mesh_of(lan(5)) as made:
        *members, thief, guest = made.nodes
        made.form_by_tokens("--admit", nodes=members)
        a, b, _c = members
        made.ping_all(*members)
        stolen = thief.file("/etc/meshd/token")
        stolen.parent.mkdir(parents=True, exist_ok=True)
        stolen.touch(mode=0o600)
        stolen.write_text(b.meshctl("invite").stdout)
        before = wait_quiet(*members)
        flow = b.ping_flow(made.address(a), rate=RATE)

        begun_at = time.monotonic()
        b.meshctl("keys", "rotate", "--bootstrap", "--yes")
        wait_until(
            lambda: all(keys(node)["bootstrap"] == {"epoch": 1, "held": True} for node in members),
            "all have the new bootstrap key",
            timeout=PATIENCE,
        )
        measured("s until all have the new bootstrap key", time.monotonic() - begun_at)
        begun_at = time.monotonic()
        refused = b.meshctl("keys", "rotate", "--mesh", "--yes", check=False)
        assert refused.returncode == 4
        answer = a.meshctl("keys", "rotate", "--mesh", "--yes", "--json").stdout
        wait_follows(json.loads(answer)["root"], *members)
        measured("s until all follow the new mesh key", time.monotonic() - begun_at)

        assert {node.name: wireguard(node) for node in members} == before
        report = flow.stop()
        assert not report.lost, str(report)
        thief.start_daemon("--token-file", "/etc/meshd/token", "--name", thief.name)
        mesh.admit(guest, by=b)
        made.wait_whole(*members, guest)
        wait_until(lambda: finding(thief, "no-answer"), "the thief hears nothing", timeout=PATIENCE)
        made.wait_whole(*members, guest)
