"""Credentials that live for seconds: renewed under traffic, by another, by nobody; and rejoined."""

import time

import pytest

from lablib import lan, mesh, wait_until
from mesh.meshes import PATIENCE, member, mesh_of
from meshd.control.views import rfc3339

pytestmark = [pytest.mark.netns, pytest.mark.slow]

LIFE = 20  # seconds; asked for from two thirds of it on
RENEWED_WITHIN = PATIENCE + LIFE


def credential(node):
    """What a node's status says of its own credential."""
    return node.status()["self"]["credential"]


def _now():
    """The present, as documents write it."""
    return rfc3339(time.time())


def codes(node):
    return [finding["code"] for finding in node.status()["health"]]


def wait_renewed(node, *, by, after):
    """Wait until a node has a credential from a member that ends later than another."""

    def renewed():
        own = credential(node)
        return own["issuer"] == by and own["expires_at"] > after["expires_at"]

    wait_until(renewed, f"{node.name} is renewed by {by}", timeout=RENEWED_WITHIN)
    return credential(node)


def test_credentials_are_renewed_under_traffic_by_whoever_may(measured):
    """a founds the mesh; b may admit without end; c has a credential of seconds."""
    with mesh_of(lan(3)) as net:
        a, b, c = net.nodes
        mesh.found(a)
        mesh.admit(b, "--admit", "--lifetime", "0", "--tag", "db", by=a)
        mesh.admit(c, "--lifetime", f"{LIFE}s", "--tag", "db", by=a)
        net.wait_whole()
        net.ping_all()
        first = credential(c)
        assert (first["issuer"], first["tags"], first["admit"]) == ("a", ["db"], False)

        flow = a.ping_flow(net.address(c))
        second = wait_renewed(c, by="a", after=first)
        third = wait_renewed(c, by="a", after=second)
        report = flow.stop()

        measured("pings lost during two renewals", len(report.lost))
        assert report.received > 100
        assert not report.lost, str(report)
        assert (third["tags"], third["admit"]) == (["db"], False)
        for node in (a, b):
            wait_until(
                lambda node=node: member(node, "c")["expires_at"] >= third["expires_at"],
                f"{node.name} knows c's new credential",
                timeout=PATIENCE,
            )

        a.kill_daemon()
        wait_renewed(c, by="b", after=third)
        assert codes(c) == []


@pytest.mark.long
def test_a_node_that_nobody_renews_says_so_keeps_its_tunnels_and_is_renewed_when_somebody_can():
    with mesh_of(lan(2)) as net:
        a, b = net.nodes
        mesh.found(a)
        mesh.admit(b, "--lifetime", f"{LIFE}s", by=a)
        net.wait_whole()
        net.ping_all()
        first = credential(b)
        address = net.address(a)
        a.kill_daemon()

        for code in ("credential-expiring", "credential-expired"):
            wait_until(lambda code=code: code in codes(b), f"b says {code}", timeout=RENEWED_WITHIN)
        assert b.ping(address), "a's kernel still has the tunnel"
        events = [event["event"] for event in b.control("/v1/events")["events"]]
        assert events.count("credential-expired") == 1

        a.start_daemon()
        wait_renewed(b, by="a", after=first)
        assert "credential-expired" not in codes(b)


@pytest.mark.long
def test_a_node_whose_credential_has_expired_rejoins_by_a_token_as_the_same_node():
    with mesh_of(lan(2)) as net:
        a, b = net.nodes
        mesh.found(a)
        mesh.admit(b, "--lifetime", "10s", by=a)
        net.wait_whole()
        before = b.status()["self"]
        b.stop_daemon()
        wait_until(
            lambda: _now() > member(a, "b")["expires_at"], "it has expired", timeout=RENEWED_WITHIN
        )

        mesh.admit(b, "--tag", "again", by=a)
        wait_until(lambda: credential(b)["tags"] == ["again"], "b has rejoined", timeout=PATIENCE)

        net.wait_whole()
        net.ping_all()
        after = b.status()["self"]
        assert [after[key] for key in ("id", "name", "ipv4", "ipv6", "public_key")] == [
            before[key] for key in ("id", "name", "ipv4", "ipv6", "public_key")
        ]
        assert member(a, "b")["tags"] == ["again"]


@pytest.mark.long
def test_a_token_of_another_mesh_is_refused_with_both_names():
    with mesh_of(lan(3)) as net:
        a, other, c = net.nodes
        mesh.found(a)
        mesh.found(other)
        mesh.admit(c, by=a)
        net.wait_whole(a, c)
        id_of = {node.name: node.status()["mesh"]["name"] for node in (a, other)}
        c.stop_daemon()

        mesh.admit(c, by=other)

        assert c.process.wait(PATIENCE) == 1
        assert f"holds the state of mesh {id_of[a.name]}, not of {id_of[other.name]}" in (
            c.log_text()
        )
        c.start_daemon()
        net.wait_whole(a, c)
