"""How soon a mesh knows what has happened to a member, and what it does not take for a death."""

import time
from datetime import datetime

import pytest

from lablib import lan, wait_until
from mesh.meshes import PATIENCE, mesh_of, wait_state

pytestmark = pytest.mark.netns

# In the virtual machine all is ten times slower.
DEAD_WITHIN = 15.0
SETTLED_SECONDS = 3.0  # a few probes each: round trips are known by then
FAULT_SECONDS = 8.0  # longer than it takes to hold a silent member for dead


def events(node, kind=None, about=None):
    """What `meshctl events` lists, perhaps only of one kind and about one member."""
    recorded = node.control("/v1/events")["events"]
    return [
        event
        for event in recorded
        if kind in (None, event["event"]) and about in (None, event.get("member"))
    ]


def instant(event):
    """When an event happened, by the wall clock."""
    return datetime.fromisoformat(event["at"]).timestamp()


def settled(mesh):
    mesh.form()
    time.sleep(SETTLED_SECONDS)


def wait_event(nodes, kind, about):
    """Wait until one of the nodes has such an event, and return it."""
    return wait_until(
        lambda: [event for node in nodes for event in events(node, kind, about)],
        f"somebody tells {kind} of {about}",
        timeout=PATIENCE,
    )[0]


@pytest.mark.slow
def test_a_killed_daemon_is_betrayed_by_its_kernel(measured):
    """a, b, c on one wire; c's daemon is killed, and its interface stays."""
    with mesh_of(lan(3)) as mesh:
        settled(mesh)
        a, b, c = mesh.nodes

        c.kill_daemon()
        killed_at = time.time()
        for node in (a, b):
            wait_state(node, "c", "dead", timeout=DEAD_WITHIN)

        suspected = min(
            (event for node in (a, b) for event in events(node, "member-suspect", "c")),
            key=instant,
        )
        dead = [instant(events(node, "member-dead", "c")[0]) for node in (a, b)]
        assert "its host answers that nobody listens there" in suspected["message"]
        measured("s from kill to first suspicion", instant(suspected) - killed_at)
        measured("s from kill until all know", max(dead) - killed_at)


@pytest.mark.slow
def test_members_between_whom_udp_is_dropped_are_a_path_fault_and_live():
    """a and b, without 7946/udp between them; nobody else could help, but TCP passes."""
    with mesh_of(lan(2)) as mesh:
        settled(mesh)
        a, b = mesh.nodes

        drop_gossip(b, source=mesh.address(a, version=6))
        drop_gossip(a, source=mesh.address(b, version=6))

        fault = wait_event((a, b), "path-fault", None)
        assert "does not answer directly, but does over TCP" in fault["message"]
        time.sleep(FAULT_SECONDS)
        mesh.wait_whole(timeout=1)
        assert not [event for node in mesh.nodes for event in events(node, "member-dead")]
        mesh.ping_all()


@pytest.mark.slow
def test_a_third_member_helps_where_udp_is_dropped_between_two():
    with mesh_of(lan(3)) as mesh:
        settled(mesh)
        a, b, _ = mesh.nodes

        drop_gossip(b, source=mesh.address(a, version=6))

        fault = wait_event((a,), "path-fault", "b")
        assert "does not answer directly, but does" in fault["message"]
        time.sleep(FAULT_SECONDS)
        mesh.wait_whole(timeout=1)
        assert not [event for node in mesh.nodes for event in events(node, "member-dead")]


@pytest.mark.slow
def test_a_member_whose_cable_is_pulled_is_dead_everywhere_in_seconds_and_comes_back(measured):
    with mesh_of(lan(4)) as mesh:
        settled(mesh)
        *others, victim = mesh.nodes

        victim.link_down()
        pulled_at = time.time()
        for node in others:
            wait_state(node, victim.name, "dead", timeout=DEAD_WITHIN)
        dead = [instant(events(node, "member-dead", victim.name)[0]) for node in others]
        measured("s from pull until all know", max(dead) - pulled_at)

        victim.link_up()
        plugged_at = time.time()
        mesh.wait_whole()
        mesh.ping_all()

        alive = [instant(events(node, "member-alive", victim.name)[-1]) for node in others]
        measured("s from plug until all know", max(alive) - plugged_at)
        # The others never lost each other.
        for node in others:
            assert {event["member"] for event in events(node, "member-dead")} == {victim.name}


def drop_gossip(node, *, source):
    """Drop gossip datagrams from a source inside the node, without a word."""
    node.run(
        ["nft", "-f", "-"],
        stdin="table inet gossip {\n"
        "chain in {\n"
        "type filter hook input priority 0\n"
        f"ip6 saddr {source} udp dport 7946 drop\n"
        "}\n}\n",
    )
