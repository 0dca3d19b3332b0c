"""A mesh forms by itself: all at once, behind NAT, by tokens."""

import os
import shutil
import time

import pytest

from lablib import internet, lan, nat, wait_until
from mesh.meshes import PATIENCE, member, mesh_of, wait_state

pytestmark = pytest.mark.netns

SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@pytest.mark.slow
def test_twenty_members_started_at_once_all_answer_all(measured):
    """20 machines on one LAN:  a (seed) ── b ── c ── … ── t, exec'ed at the same moment."""
    with mesh_of(lan(20)) as mesh:
        seed, *others = mesh.nodes
        mesh.start(seed)
        mesh.start(*others, seed=seed)
        started_at = time.monotonic()

        mesh.wait_whole()
        whole = time.monotonic() - started_at
        mesh.ping_all()

        measured("s until all see all", whole)
        measured("s until all pings are answered", time.monotonic() - started_at)


@pytest.mark.parametrize(
    "topology",
    [
        pytest.param(lan(3), marks=pytest.mark.slow),
        pytest.param(internet(3), marks=pytest.mark.slow),
        nat(4),
    ],
    ids=lambda topology: topology.name,
)
def test_members_of_every_topology_reach_each_other(topology):
    with mesh_of(topology) as mesh:
        mesh.form()

        mesh.ping_all()


def test_only_the_member_behind_nat_sends_keepalives():
    with mesh_of(nat(3)) as mesh:
        mesh.form()

        behind = next(node for node in mesh.nodes if node.member.behind_nat)
        for node in mesh.nodes:
            expected = "25" if node is behind else "off"

            def keepalives(node=node):
                shown = node.run(["wg", "show", "mesh0", "persistent-keepalive"]).stdout
                return {line.split()[1] for line in shown.splitlines()}

            wait_until(
                lambda keepalives=keepalives, expected=expected: keepalives() == {expected},
                f"{node.name} has keepalive {expected}",
                timeout=PATIENCE,
            )


def test_a_peer_may_use_its_own_addresses_and_no_other():
    with mesh_of(lan(2)) as mesh:
        mesh.form()
        a, b = mesh.nodes

        allowed = a.run(["wg", "show", "mesh0", "allowed-ips"]).stdout.split()[1:]

        of_b = b.status()["self"]
        assert set(allowed) == {f"{of_b['ipv4']}/32", f"{of_b['ipv6']}/128"}


@pytest.mark.slow
def test_a_seed_may_start_after_those_that_ask_it():
    with mesh_of(lan(3)) as mesh:
        seed, *others = mesh.nodes
        mesh.start(*others, seed=seed)
        for node in others:
            wait_until(
                lambda node=node: node.status()["mesh"]["members"]["alive"] == 1,
                f"{node.name} is a mesh of one",
                timeout=PATIENCE,
            )
            wait_until(
                lambda node=node: "no-answer" in [f["code"] for f in node.status()["health"]],
                f"{node.name} says that nobody answers",
                timeout=PATIENCE,
            )

        mesh.start(seed)

        mesh.wait_whole()
        assert others[0].status()["health"] == []


@pytest.mark.slow
def test_a_token_admits_one_node_and_names_its_seed():
    with mesh_of(lan(3)) as mesh:
        a, b, c = mesh.nodes
        a.start_daemon("--init", "--name", "a")
        wait_until(a.status, "a answers", timeout=PATIENCE)
        token = a.meshctl("invite").stdout.strip()
        for node in (b, c):
            node.file("/etc/meshd/token").write_text(token)
            node.file("/etc/meshd/token").chmod(0o600)

        b.start_daemon("--token-file", "/etc/meshd/token", "--name", "b")
        mesh.wait_whole(a, b)
        mesh.ping_all(a, b)

        c.start_daemon("--token-file", "/etc/meshd/token", "--name", "c")
        assert c.process.wait(PATIENCE) == 1
        assert "has been used" in c.log_text()
        assert not list(c.file("/var/lib/meshd").iterdir())
        assert c.run(["ip", "link", "show", "mesh0"], check=False).returncode != 0


@pytest.mark.slow
def test_a_seed_that_may_not_admit_passes_the_request_on():
    with mesh_of(lan(3)) as mesh:
        a, b, c = mesh.nodes
        a.start_daemon("--init", "--name", "a")
        wait_until(a.status, "a answers", timeout=PATIENCE)
        for node in (b, c):
            token = a.meshctl("invite").stdout.strip()
            node.file("/etc/meshd/token").write_text(token)
            node.file("/etc/meshd/token").chmod(0o600)
        b.start_daemon("--token-file", "/etc/meshd/token", "--name", "b")
        mesh.wait_whole(a, b)
        assert b.meshctl("invite", check=False).returncode == 4

        # The token names a; without it on the underlay only b is left to ask.
        rule = f"ip daddr {a.ipv4.ip} udp dport 51820 drop"
        c.run(
            [
                "nft",
                "add table inet hide; add chain inet hide out "
                "{ type filter hook output priority 0; }; add rule inet hide out " + rule,
            ]
        )
        c.start_daemon("--token-file", "/etc/meshd/token", "--name", "c", "--seed", str(b.ipv4.ip))

        wait_state(b, "c", "alive")
        wait_until(lambda: member(a, "c") is not None, "a knows c", timeout=PATIENCE)


@pytest.mark.slow
def test_an_address_that_was_asked_for_is_given():
    with mesh_of(lan(2)) as mesh:
        a, b = mesh.nodes
        mesh.start(a)
        b.file("/etc/meshd/secret").write_text(mesh.secret)
        b.file("/etc/meshd/secret").chmod(0o600)
        b.start_daemon(
            "--secret-file",
            "/etc/meshd/secret",
            "--name",
            "b",
            "--seed",
            str(a.ipv4.ip),
            "--address",
            "100.64.7.7",
        )
        mesh.wait_whole()

        assert mesh.address(b) == "100.64.7.7"
        assert member(a, "b")["ipv4"] == "100.64.7.7"
        mesh.ping_all()


@pytest.mark.slow
def test_a_seed_may_be_a_name():
    with mesh_of(lan(2)) as mesh:
        a, b = mesh.nodes
        mesh.start(a)
        b.file("/etc/meshd/secret").write_text(mesh.secret)
        b.file("/etc/meshd/secret").chmod(0o600)
        b.start_daemon(
            "--secret-file", "/etc/meshd/secret", "--name", "b", "--seed", "a", "--seed", "nobody"
        )

        mesh.wait_whole()


def test_members_without_nft_are_joined_by_their_second_port():
    with mesh_of(lan(3)) as mesh:
        a, b, c = mesh.nodes
        for node in (a, b):
            node.run(["mount", "--bind", "/dev/null", shutil.which("nft", path=SYSTEM_PATH)])
        mesh.start(a)
        for node in (b, c):
            node.file("/etc/meshd/secret").write_text(mesh.secret)
            node.file("/etc/meshd/secret").chmod(0o600)
            node.start_daemon(
                *("--secret-file", "/etc/meshd/secret", "--name", node.name),
                *("--seed", f"{a.ipv4.ip}:51821"),
            )

        mesh.wait_whole()

        mesh.ping_all()
        assert [finding["code"] for finding in a.status()["health"]] == ["one-port"]
        assert c.status()["health"] == []
