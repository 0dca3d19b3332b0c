"""What breaks heals, with nobody touching anything, and what works is left alone."""

import time

import pytest

from lablib import Start, internet, lan, nat, wait_until
from mesh.meshes import PATIENCE, end_wireguard, mesh_of, wait_state, wireguard

pytestmark = pytest.mark.netns

RATE = 100  # pings a second
KILLED_SECONDS = 30
GUESTS_AT_ONCE = 2 if Start.default() is Start.FORK else 10  # what the CPU can give


def test_a_killed_daemon_loses_no_packet_and_restarts_without_a_handshake():
    with mesh_of(lan(3)) as mesh:
        mesh.form()
        mesh.ping_all()
        a, b, _ = mesh.nodes
        before = wireguard(b)
        flow = a.ping_flow(mesh.address(b), rate=RATE)

        b.kill_daemon()
        killed_at = time.monotonic()
        wait_state(a, "b", "dead")
        # The flow has to last: a session that could not be renewed would end it only later.
        time.sleep(max(0.0, KILLED_SECONDS - (time.monotonic() - killed_at)))
        b.start_daemon()
        mesh.wait_whole()
        report = flow.stop()

        assert report.sent > KILLED_SECONDS * RATE
        assert not report.lost, str(report)
        assert wireguard(b) == before


def test_sigterm_leaves_the_tunnels_up():
    with mesh_of(lan(2)) as mesh:
        mesh.form()
        a, b = mesh.nodes
        address = mesh.address(b)
        flow = a.ping_flow(address, rate=RATE)

        assert b.stop_daemon() == 0
        wait_state(a, "b", "dead")

        report = flow.stop()
        assert not report.lost, str(report)


@pytest.mark.slow
def test_members_that_come_and_go_disturb_nobody(measured):
    """Ten come and leave while two others keep talking."""
    with mesh_of(lan(12)) as mesh:
        a, b, *guests = mesh.nodes
        mesh.form([a, b])
        mesh.ping_all(a, b)
        before = wireguard(a)[1]
        flow = a.ping_flow(mesh.address(b), rate=RATE)

        for first in range(0, len(guests), GUESTS_AT_ONCE):
            present = guests[first : first + GUESTS_AT_ONCE]
            mesh.start(*present, seed=a)
            mesh.wait_whole(a, b, *present)
            for guest in present:
                guest.meshctl("leave")
                assert guest.process.wait(PATIENCE) == 0
            mesh.wait_whole(a, b)
        report = flow.stop()

        measured("pings sent meanwhile", report.sent)
        assert not report.lost, str(report)
        assert wireguard(a)[1] == before


@pytest.mark.long
def test_a_cable_that_was_out_for_a_minute_is_noticed_and_back(measured):
    with mesh_of(internet(3)) as mesh:
        mesh.form()
        a, b, c = mesh.nodes
        c.link_down()
        pulled_at = time.monotonic()
        for node in (a, b):
            wait_state(node, "c", "dead", timeout=60)
        time.sleep(max(0.0, 60 - (time.monotonic() - pulled_at)))

        c.link_up()
        plugged_at = time.monotonic()
        mesh.wait_whole(timeout=15)
        mesh.ping_all(timeout=15)

        measured("s until back", time.monotonic() - plugged_at)


@pytest.mark.slow
def test_a_mesh_that_was_switched_off_comes_back_from_its_own_disks(measured):
    """Nothing is left but the state directories, and at first no seed is reachable."""
    with mesh_of(lan(5)) as mesh:
        mesh.form()
        seed, *others = mesh.nodes
        addresses = {node.name: mesh.address(node) for node in mesh.nodes}
        for node in mesh.nodes:
            node.kill_daemon()
            end_wireguard(node)

        for node in others:
            node.start_daemon()
        mesh.wait_whole(*others, timeout=PATIENCE)
        seed.start_daemon()
        started_at = time.monotonic()
        mesh.wait_whole(timeout=PATIENCE)
        mesh.ping_all()

        measured("s until whole", time.monotonic() - started_at)
        assert {node.name: mesh.address(node) for node in mesh.nodes} == addresses


@pytest.mark.parametrize("topology", [lan(3), nat(3)], ids=lambda t: t.name)
def test_a_member_with_a_new_underlay_address_is_reached_again(topology, measured):
    with mesh_of(topology) as mesh:
        mesh.form()
        mover = mesh.nodes[-1]

        mover.renumber()
        moved_at = time.monotonic()
        mesh.ping_all(timeout=15)

        measured("s until reached", time.monotonic() - moved_at)
        mesh.wait_whole(timeout=15)


def test_a_deleted_interface_is_made_again():
    with mesh_of(lan(2)) as mesh:
        mesh.form()
        _a, b = mesh.nodes

        end_wireguard(b)

        wait_until(lambda: not wireguard_missing(b), "b has its interface", timeout=PATIENCE)
        mesh.ping_all()


def wireguard_missing(node):
    return node.run(["wg", "show", "mesh0"], check=False).returncode != 0


@pytest.mark.slow
def test_one_who_left_is_gone_and_comes_back_as_the_same_node():
    with mesh_of(lan(3)) as mesh:
        mesh.form()
        a, b, c = mesh.nodes
        address = mesh.address(c)

        c.meshctl("leave")
        assert c.process.wait(PATIENCE) == 0
        for node in (a, b):
            wait_state(node, "c", "left")
            wait_until(lambda node=node: len(wireguard(node)[1]) == 1, "no peer", timeout=PATIENCE)
        assert c.run(["ip", "link", "show", "mesh0"], check=False).returncode != 0
        assert "meshd" not in c.run(["nft", "list", "tables"]).stdout

        c.start_daemon()
        mesh.wait_whole()
        assert mesh.address(c) == address


@pytest.mark.slow
def test_a_dead_member_is_forgotten_on_request():
    with mesh_of(lan(2)) as mesh:
        mesh.form()
        a, b = mesh.nodes
        refused = a.meshctl("forget", "b", check=False)
        assert refused.returncode == 1
        assert "alive" in refused.stderr
        b.kill_daemon()
        end_wireguard(b)
        wait_state(a, "b", "dead")

        a.meshctl("forget", "b")

        assert a.status()["members"] == []
        wait_until(lambda: not wireguard(a)[1], "the peer is gone", timeout=PATIENCE)
        b.start_daemon()
        mesh.wait_whole()
