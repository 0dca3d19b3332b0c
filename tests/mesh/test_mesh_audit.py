"""The audit log of real daemons: kept through crashes, checked with and without one."""

import json
import signal
import sys

import pytest

from lablib import Lab, lan, mesh, wait_until
from mesh.meshes import PATIENCE

pytestmark = [pytest.mark.netns, pytest.mark.slow]

STATE = "/var/lib/meshd"
CONFIG = "/etc/meshd/meshd.toml"
CHANGE = f"""
import sqlite3
with sqlite3.connect("{STATE}/mesh0/mesh.db") as database:
    database.execute("UPDATE audit SET signer_name = 'b' WHERE number = 2")
"""


def entries(node, *where):
    lines = node.meshctl("audit", "--export", *where).stdout.splitlines()
    return [json.loads(line) for line in lines]


def of(node, kind):
    return [entry for entry in entries(node) if entry["kind"] == kind]


def verdict(node, *arguments):
    done = node.meshctl("audit", "verify", "--json", *arguments, check=False)
    return done.returncode, json.loads(done.stdout)


def test_what_happens_is_told_by_every_daemon_and_survives_a_crash():
    with Lab(lan(3)) as lab:
        a, b, c = lab.nodes.values()
        mesh.found(a)
        mesh.admit(b, by=a)
        mesh.admit(c, "--tag", "web", by=a)
        mesh.wait_whole([a, b, c])
        for node in (a, b, c):
            wait_until(
                lambda node=node: len(of(node, "member-admitted")) == 3, "three", timeout=PATIENCE
            )
            signers = {
                e["subject"]["name"]: e["signer"]["name"] for e in of(node, "member-admitted")
            }
            assert signers == {"a": "mesh key", "b": "a", "c": "a"}
        assert len(of(a, "invite-issued")) == 2
        assert {e["subject"]["name"] for e in of(b, "invite-used")} >= {"b"}

        a.file(CONFIG).write_text('log_level = "debug"\n')
        a.stop_daemon(signal.SIGKILL)
        a.start_daemon()
        mesh.wait_whole([a, b, c])
        changed = of(a, "configuration-changed")[-1]
        assert changed["details"]["by"] == "start"
        assert "log_level" in changed["details"]["settings"]
        a.file(CONFIG).write_text('log_level = "info"\n')
        a.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: of(a, "configuration-changed")[-1]["details"]["by"] == "reload",
            "the reload is told",
            timeout=PATIENCE,
        )

        status, document = verdict(a)
        assert (status, document["fault"]) == (0, None)
        assert len(of(a, "member-admitted")) == 3, "nothing is told twice"
        assert a.status()["self"]["audit_head"] == document["head"]


def test_a_log_is_checked_without_a_daemon_and_a_change_is_named():
    with Lab(lan(2)) as lab:
        a, b = lab.nodes.values()
        mesh.found(a)
        mesh.admit(b, by=a)
        mesh.wait_whole([a, b])
        head = a.status()["self"]["audit_head"]
        assert a.stop_daemon() == 0
        where = ("--state-dir", STATE)
        before = sorted(a.file(f"{STATE}/mesh0").iterdir())
        status, document = verdict(a, *where, "--noted", head)
        assert (status, document["noted"]["contained"]) == (0, True)
        assert sorted(a.file(f"{STATE}/mesh0").iterdir()) == before

        # From inside: SQLite resolves the path by which it would be seen from here.
        a.run([sys.executable, "-c", CHANGE])

        status, document = verdict(a, *where)
        assert (status, document["fault"]["number"]) == (1, 2)
        a.start_daemon()
        mesh.wait_whole([a, b])
        status, document = verdict(a)
        assert (status, document["fault"]["number"]) == (1, 2), "it stays wrong"
