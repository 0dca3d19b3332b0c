"""Tokens in a real mesh: counted, taken back, and shown on two sides of a partition."""

import pytest

from lablib import lan, topology, wait_until
from mesh.meshes import PATIENCE, mesh_of

pytestmark = [pytest.mark.netns, pytest.mark.slow]

TOKEN_FILE = "/etc/meshd/token"


def found(node):
    node.start_daemon("--init", "--name", node.name)
    wait_until(node.status, f"{node.name} answers", timeout=PATIENCE)


def join(node, token, *more):
    node.file(TOKEN_FILE).touch(mode=0o600)
    node.file(TOKEN_FILE).write_text(token)
    node.start_daemon("--token-file", TOKEN_FILE, "--name", node.name, *more)


def invite(node, *grants):
    return node.meshctl("invite", *grants).stdout.strip()


def findings(node):
    return {finding["code"]: finding["message"] for finding in node.status()["health"]}


def separate(node, *others):
    """Have a node hear nothing of these any more."""
    rules = "; ".join(
        f"add rule inet apart in {family} saddr {address.ip} drop"
        for other in others
        for family, address in (("ip", other.ipv4), ("ip6", other.ipv6))
        if address is not None
    )
    node.run(
        ["nft", "add table inet apart; add chain inet apart in "
         "{ type filter hook input priority -300; }; " + rules]
    )  # fmt: skip


def reunite(*nodes):
    for node in nodes:
        node.run(["nft", "delete", "table", "inet", "apart"])


def test_a_token_made_behind_a_nat_lets_in_a_stranger_from_elsewhere():
    """public ◀── token ── apd1 ═ NAT ═ ... ═ NAT ═ apd2: who made the token cannot be called."""
    with mesh_of(topology("nats:apd")) as mesh:
        public, _, inviter, newcomer = mesh.nodes
        found(public)
        join(inviter, invite(public, "--admit"))
        mesh.wait_whole(public, inviter)

        join(newcomer, invite(inviter))

        mesh.wait_whole(public, inviter, newcomer)


def test_one_token_used_on_both_sides_of_a_partition_admits_one():
    """a (admits c) ═╪═ b (admits d), both by one single-use token; then the cut heals."""
    with mesh_of(lan(4)) as mesh:
        a, b, c, d = mesh.nodes
        found(a)
        join(b, invite(a, "--admit"))
        mesh.wait_whole(a, b)
        token = invite(a)
        for node, others in ((a, (b, d)), (b, (a, c)), (c, (b, d)), (d, (a, c))):
            separate(node, *others)

        join(c, token)
        wait_until(
            lambda: any(m["name"] == "c" and m["state"] == "alive" for m in a.status()["members"]),
            "a has let c in",
            timeout=PATIENCE,
        )
        join(d, token, "--seed", str(b.ipv4.ip))
        wait_until(
            lambda: any(m["name"] == "d" and m["state"] == "alive" for m in b.status()["members"]),
            "b has let d in",
            timeout=PATIENCE,
        )
        addresses = {version: mesh.address(d, version) for version in (4, 6)}
        reunite(a, b, c, d)

        mesh.wait_whole(a, b, c)
        for node in (a, b, c):
            wait_until(
                lambda node=node: "d: out" in findings(node).get("invite-lost-by", ""),
                f"{node.name} says that d is out",
                timeout=PATIENCE,
            )
            assert "invite-lost" in node.meshctl("events").stdout
            assert not node.ping(*addresses.values(), timeout=1.0)

        def told():
            said = findings(d)
            return "used before by c" in said.get("invite-lost", "") + said.get("refused", "")

        wait_until(told, "d says why it is out", timeout=PATIENCE)

        # A new token: the same machine, name and address.
        d.kill_daemon()
        join(d, invite(a), "--seed", str(b.ipv4.ip))
        mesh.wait_whole()
        assert {version: mesh.address(d, version) for version in (4, 6)} == addresses
        assert "invite-lost-by" not in findings(a)


@pytest.mark.long
def test_a_token_for_two_machines_admits_two_and_shows_who():
    with mesh_of(lan(4)) as mesh:
        a, b, c, d = mesh.nodes
        found(a)
        token = invite(a, "--reusable", "2", "--tag", "web")
        for node in (b, c):
            join(node, token)
        mesh.wait_whole(a, b, c)

        (listed,) = a.control("/v1/invites")["invites"]
        assert (listed["uses"], listed["uses_left"], listed["state"]) == (2, 0, "used")
        assert sorted(listed["used_by"]) == ["b", "c"]
        (known,) = b.control("/v1/invites")["others"]
        assert (known["id"], sorted(known["used_by"])) == (listed["id"], ["b", "c"])

        join(d, token)
        assert d.process.wait(PATIENCE) == 1
        assert "has been used" in d.log_text()


@pytest.mark.long
def test_a_withdrawn_token_admits_nobody_at_any_member():
    with mesh_of(lan(3)) as mesh:
        a, b, c = mesh.nodes
        found(a)
        join(b, invite(a, "--admit"))
        mesh.wait_whole(a, b)
        token = invite(a)
        listed = next(i for i in a.control("/v1/invites")["invites"] if i["state"] == "open")

        # By another member than the one that has issued it, which takes the whole id.
        assert b.meshctl("invites", "withdraw", listed["id"][:10], check=False).returncode == 1
        b.meshctl("invites", "withdraw", listed["id"])

        def withdrawn():
            states = {i["id"]: i["state"] for i in a.control("/v1/invites")["invites"]}
            return states[listed["id"]] == "withdrawn"

        wait_until(withdrawn, "a knows", timeout=PATIENCE)
        again = a.meshctl("invites", "withdraw", listed["id"][:6], check=False)
        assert again.returncode == 1
        assert "withdrawn already" in again.stderr
        join(c, token, "--seed", str(b.ipv4.ip))
        assert c.process.wait(PATIENCE) == 1
        assert "was withdrawn" in c.log_text()


@pytest.mark.long
def test_a_pinned_address_and_name_are_the_bearers():
    with mesh_of(lan(2)) as mesh:
        a, b = mesh.nodes
        found(a)
        b_address = "100.64.7.7"
        join(b, invite(a, "--address", b_address, "--name", "b"))
        mesh.wait_whole()

        assert mesh.address(b) == b_address
        taken = a.meshctl("invite", "--address", b_address, check=False)
        assert taken.returncode == 2
        assert "pinned to b already" in taken.stderr


@pytest.mark.long
def test_no_token_stands_in_the_process_list():
    with mesh_of(lan(2)) as mesh:
        a, b = mesh.nodes
        found(a)
        token = invite(a)

        b.start_daemon("--token", token, "--name", "b")

        mesh.wait_whole()
        shown = b.run(["ps", "-eww", "-o", "args"]).stdout
        assert "--token ------" in shown
        assert token not in shown
        assert token not in b.log_text()
