"""Pre-shared keys on real WireGuard: each pair gets one, and no tunnel suffers for it."""

import sqlite3
import stat
from contextlib import closing

import pytest

from lablib import lan, wait_until
from lablib.daemon import PROJECT
from mesh.meshes import PATIENCE, end_wireguard, member, mesh_of, wait_state, wireguard

pytestmark = [pytest.mark.netns, pytest.mark.slow]

RATE = 50  # pings a second
REKEY_AFTER_TIME = 120.0
DATABASE = "/var/lib/meshd/mesh0/mesh.db"


def preshared_keys(node):
    """What the WireGuard device holds: peer to key, None for none."""
    lines = node.run(["wg", "show", "mesh0", "preshared-keys"]).stdout.splitlines()
    keys = dict(line.split("\t") for line in lines)
    return {peer: None if key == "(none)" else key for peer, key in keys.items()}


def shared_key(one, other):
    """The key two nodes' devices have for each other; None unless it is one and the same."""
    ours = preshared_keys(one).get(wireguard(other)[0])
    theirs = preshared_keys(other).get(wireguard(one)[0])
    return ours if ours == theirs else None


def wait_shared(*nodes, other_than=(), timeout=PATIENCE):
    """Wait until each pair has a key; return them all."""
    pairs = [(a, b) for number, a in enumerate(nodes) for b in nodes[:number]]

    def keys():
        found = [shared_key(a, b) for a, b in pairs]
        return found if None not in found and not set(found) & set(other_than) else None

    return wait_until(keys, "every pair has a pre-shared key", timeout=timeout)


def lose_keys():
    with closing(sqlite3.connect(DATABASE)) as database, database:
        return database.execute("DELETE FROM preshared_keys").rowcount


def sessions_are_post_quantum(*nodes):
    return all(m["post_quantum"] for node in nodes for m in node.status()["members"])


def test_every_pair_has_a_key_of_its_own_and_uses_it():
    with mesh_of(lan(3)) as mesh:
        mesh.form()
        a, b, _ = mesh.nodes
        flow = a.ping_flow(mesh.address(b), rate=RATE)

        keys = wait_shared(*mesh.nodes)

        assert len(set(keys)) == 3
        assert not sessions_are_post_quantum(a)  # they are of before
        assert all(0 <= m["psk_age_s"] < PATIENCE for m in a.status()["members"])
        report = flow.stop()
        assert not report.lost, str(report)
        # The next handshake is by the new keys: here because one end is a new interface.
        end_wireguard(b)
        mesh.ping_all()
        wait_until(
            lambda: sessions_are_post_quantum(b) and member(a, "b")["post_quantum"],
            "b's sessions are new on both ends",
            timeout=PATIENCE,
        )
        assert set(wait_shared(*mesh.nodes)) == set(keys)
        assert a.status()["health"] == []


@pytest.mark.long
def test_keys_outlive_daemon_and_machine():
    with mesh_of(lan(2)) as mesh:
        mesh.form()
        a, b = mesh.nodes
        keys = wait_shared(a, b)
        handshakes = wireguard(b)[1]
        flow = a.ping_flow(mesh.address(b), rate=RATE)

        b.kill_daemon()
        b.start_daemon()
        mesh.wait_whole()
        report = flow.stop()

        assert not report.lost, str(report)
        assert wait_shared(a, b) == keys
        assert wireguard(b)[1] == handshakes

        b.kill_daemon()
        end_wireguard(b)  # as after a boot
        wait_state(a, "b", "dead")
        b.start_daemon()
        mesh.wait_whole()
        mesh.ping_all()
        assert wait_shared(a, b) == keys


@pytest.mark.parametrize("booted", [False, True], ids=["daemon", "machine"])
def test_a_node_that_has_lost_its_keys_gets_new_ones(booted):
    with mesh_of(lan(2)) as mesh:
        mesh.form()
        a, b = mesh.nodes
        keys = wait_shared(a, b)
        b.kill_daemon()
        if booted:
            end_wireguard(b)
            wait_state(a, "b", "dead")
        assert b.namespace.call(lose_keys, "keys get lost") == 1

        b.start_daemon()
        mesh.wait_whole()
        mesh.ping_all()

        wait_shared(a, b, other_than=keys)
        assert "lacks the pre-shared key" in a.log_text()
        end_wireguard(b)
        mesh.ping_all()


@pytest.mark.long
def test_one_that_has_them_switched_off_is_shown_and_reached_all_the_same():
    with mesh_of(lan(3)) as mesh:
        mesh.form()
        a, b, c = mesh.nodes
        wait_shared(a, b, c)

        c.stop_daemon()
        c.start_daemon("--no-psk")
        mesh.wait_whole()

        wait_until(
            lambda: [f["code"] for f in a.status()["health"]] == ["no-psk"],
            "a says with whom it shares no key",
            timeout=PATIENCE,
        )
        wait_until(
            lambda: set(preshared_keys(c).values()) == {None} and shared_key(a, b),
            "c has no keys, the others have",
            timeout=PATIENCE,
        )
        assert "c cannot or will not" in a.status()["health"][0]["message"]
        end_wireguard(c)
        mesh.ping_all()


@pytest.mark.long
def test_a_machine_without_the_mechanism_says_so_and_is_a_member(tmp_path):
    (tmp_path / "cryptography.py").write_text("raise ImportError('not on this machine')\n")
    with mesh_of(lan(2)) as mesh:
        mesh.form()
        a, b = mesh.nodes
        b.stop_daemon()
        b.namespace.call(lose_keys, "keys get lost")
        b.start_daemon(env={"PYTHONPATH": f"{tmp_path}:{PROJECT}"})
        mesh.wait_whole()

        for node, code in ((a, "no-psk"), (b, "psk-unavailable")):
            wait_until(
                lambda node=node, code=code: [f["code"] for f in node.status()["health"]] == [code],
                f"{node.name} says {code}",
                timeout=PATIENCE,
            )
        assert not any(preshared_keys(a).values())
        mesh.ping_all()


@pytest.mark.long
def test_a_session_that_is_renewed_under_traffic_takes_the_key_and_loses_nothing():
    with mesh_of(lan(2)) as mesh:
        mesh.form()
        a, b = mesh.nodes
        wait_shared(a, b)
        before = wireguard(a)[1]
        flow = a.ping_flow(mesh.address(b), rate=RATE)

        wait_until(
            lambda: sessions_are_post_quantum(a, b),
            "the sessions are by the key",
            timeout=REKEY_AFTER_TIME + PATIENCE,
        )
        report = flow.stop()

        assert not report.lost, str(report)
        assert wireguard(a)[1] != before


@pytest.mark.long
def test_no_key_is_shown_or_readable():
    with mesh_of(lan(2)) as mesh:
        mesh.form()
        a, b = mesh.nodes
        (key,) = wait_shared(a, b)

        path = a.file(DATABASE)
        shown = a.meshctl("status", "--json").stdout + a.meshctl("events").stdout + a.log_text()

        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "psk_age_s" in shown
        assert key not in shown
