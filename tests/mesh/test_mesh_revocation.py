"""A revoked member is out: everywhere, for good, and it can say why."""

import json
import time

import pytest

from lablib import LastAnswers, lan, mesh, wait_until
from mesh.meshes import PATIENCE, end_wireguard, member, mesh_of, wireguard

pytestmark = [pytest.mark.netns, pytest.mark.slow]

WATCHED = 3.0  # seconds in which nothing may come through any more
RATE = 50  # pings a second


def key_of(node):
    return node.status()["self"]["public_key"]


def wait_dropped(key, *nodes, timeout=PATIENCE):
    """Wait until no node's kernel has a peer."""
    for node in nodes:
        wait_until(
            lambda node=node: key not in wireguard(node)[1],
            f"{node.name} has dropped the peer",
            timeout=timeout,
        )


def findings(node):
    return {finding["code"]: finding["message"] for finding in node.status()["health"]}


def wait_says_why(node, *words):
    """Wait until a node shows that it is revoked, with these words."""
    wait_until(lambda: "revoked" in findings(node), f"{node.name} says why", timeout=PATIENCE)
    message = findings(node)["revoked"]
    assert all(word in message for word in words), message


def unreachable(revoked, addresses):
    """Whether no address answers the revoked one for a while."""
    return not revoked.ping(*addresses.values(), timeout=WATCHED)


def test_a_revoked_member_is_dropped_everywhere_at_once_and_says_why(measured):
    """a (founder), b … e, and f, which b throws out."""
    with mesh_of(lan(6)) as made:
        made.form_by_tokens("--admit")
        made.ping_all()
        *others, revoked = made.nodes
        _, b, *_ = others
        key = key_of(revoked)
        addresses = mesh.addresses(others, version=4)
        flow = LastAnswers(revoked.namespace, list(addresses.values()), rate=RATE)
        begun_at = time.monotonic()

        done = json.loads(b.meshctl("revoke", revoked.name, "--yes", "--json").stdout)

        assert done["revoked"]
        assert done["name"] == revoked.name
        wait_dropped(key, *others)
        measured("s until no kernel has the peer, seen from outside", time.monotonic() - begun_at)
        wait_says_why(revoked, "revoked by b at", "another token")
        time.sleep(WATCHED)  # in which an answer would be noted
        last = flow.stop()
        assert set(last) == set(addresses.values())
        measured("s until the last answer to it", max(last.values()) - begun_at)
        assert unreachable(revoked, addresses)
        made.wait_whole(*others)
        made.ping_all(*others)
        assert all(member(node, revoked.name) is None for node in others)
        assert "this node is out of the mesh, revoked by b" in revoked.log_text()


@pytest.mark.long
def test_it_stays_out_after_power_cycles_and_learns_why_when_it_was_off():
    """a (founder), b, c and d; d is off when a throws it out, and b and c lose their power."""
    with mesh_of(lan(4)) as made:
        made.form_by_tokens()
        a, b, c, revoked = made.nodes
        key = key_of(revoked)
        addresses = mesh.addresses([a, b, c], version=4)
        revoked.kill_daemon()

        a.meshctl("revoke", revoked.name, "--yes")
        wait_dropped(key, a, b, c)
        for node in (b, c):
            node.kill_daemon()
            end_wireguard(node)
        a.kill_daemon()  # nobody can tell them
        for node in (b, c):
            node.start_daemon()
        made.wait_whole(b, c)

        assert all(key not in wireguard(node)[1] for node in (b, c))
        assert unreachable(revoked, addresses)
        revoked.start_daemon()
        wait_says_why(revoked, "revoked by the mesh key at")
        assert unreachable(revoked, addresses)
        revoked.stop_daemon()
        revoked.start_daemon()
        mesh.wait_answering(revoked)
        assert "revoked" in findings(revoked), "it knows from its own disk"


@pytest.mark.long
def test_a_partition_that_heals_leaves_it_no_friend():
    """a (founder) and b | c and d; a throws d out, of which c hears when the cable is back."""
    with mesh_of(lan(4)) as made:
        made.form_by_tokens()
        a, b, c, revoked = made.nodes
        key = key_of(revoked)
        addresses = mesh.addresses([a, b, c], version=4)
        for node in (c, revoked):
            cut_off(node, a, b)
        for node in (a, b):
            mesh.wait_state([node], c.name, "dead")

        a.meshctl("revoke", revoked.name, "--yes")
        wait_dropped(key, a, b)
        assert revoked.ping(addresses[c.name])
        for node in (c, revoked):
            cut_off(node, a, b, undo=True)

        wait_dropped(key, c)
        made.wait_whole(a, b, c)
        assert unreachable(revoked, addresses)
        wait_says_why(revoked, "revoked by the mesh key at")


@pytest.mark.long
def test_a_cascade_takes_those_it_let_in_and_a_plain_one_does_not():
    """a (founder) ── b ── c, and a ── d ── e: b goes with all it let in, d alone."""
    with mesh_of(lan(5)) as made:
        a, b, c, d, e = made.nodes
        made.form_by_tokens("--admit", nodes=[a, b, d])
        mesh.admit(c, by=b)
        mesh.admit(e, by=d)
        made.wait_whole()
        keys = {node.name: key_of(node) for node in made.nodes}

        plan = json.loads(a.meshctl("revoke", "b", "--cascade", "--yes", "--json").stdout)
        a.meshctl("revoke", "d", "--yes")

        assert [each["name"] for each in plan["falls"]] == ["c"]
        wait_dropped(keys["c"], a, e)
        wait_dropped(keys["b"], a, e)
        wait_dropped(keys["d"], a, e)
        made.wait_whole(a, e)
        made.ping_all(a, e)
        wait_says_why(c, "let in through b, revoked with all it let in by the mesh key")
        wait_says_why(d, "revoked by the mesh key")


def test_who_may_not_and_what_is_not_meant_is_refused():
    with mesh_of(lan(3)) as made:
        made.form_by_tokens()
        a, b, _ = made.nodes

        def refused(node, *arguments):
            answer = node.meshctl("revoke", *arguments, check=False)
            return answer.returncode, answer.stderr

        assert refused(b, "c", "--yes") == (
            4,
            "meshctl: this node may not revoke; ask one of: a\n",
        )
        status, text = refused(a, "a", "--yes")
        assert (status, "meshctl leave" in text) == (1, True)
        assert refused(a, "nobody", "--yes")[0] == 1
        status, text = refused(a, "c")
        assert (status, "confirm with --yes" in text) == (2, True)
        made.wait_whole()
        a.meshctl("revoke", "c", "--yes")
        status, text = refused(a, "c", "--yes")
        assert (status, "is revoked already" in text) == (1, True)


@pytest.mark.long
def test_a_mesh_of_a_secret_throws_nobody_out_and_names_the_way():
    with mesh_of(lan(2)) as made:
        made.form()
        a, _ = made.nodes

        answer = a.meshctl("revoke", "b", "--yes", check=False)

        assert answer.returncode == 1
        assert "meshctl seal" in answer.stderr
        made.wait_whole()


def cut_off(node, *others, undo=False):
    """Have a node drop what comes from others on the underlay, or no more."""
    if undo:
        node.run(["nft", "delete", "table", "inet", "cut"])
        return
    addresses = ", ".join(str(other.ipv4.ip) for other in others)
    addresses6 = ", ".join(str(other.ipv6.ip) for other in others if other.ipv6)
    rules = ["add table inet cut"]
    rules.append("add chain inet cut in { type filter hook input priority -300; }")
    rules.append(f"add rule inet cut in ip saddr {{ {addresses} }} drop")
    if addresses6:
        rules.append(f"add rule inet cut in ip6 saddr {{ {addresses6} }} drop")
    rules.append("add chain inet cut out { type filter hook output priority -300; }")
    rules.append(f"add rule inet cut out ip daddr {{ {addresses} }} drop")
    if addresses6:
        rules.append(f"add rule inet cut out ip6 daddr {{ {addresses6} }} drop")
    node.run(["nft", "-f", "-"], stdin="\n".join(rules) + "\n")
