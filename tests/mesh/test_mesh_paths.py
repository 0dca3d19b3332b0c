"""Paths are changed under traffic: by plan without a loss, without notice for the better of it."""

import contextlib

import pytest

from lablib import faults, moves, topology, wait_until
from lablib.moves import Moves, both_are, endpoint
from mesh.meshes import PATIENCE, mesh_of

pytestmark = pytest.mark.netns


@contextlib.contextmanager
def formed(name):
    """A mesh of this topology in which all are members."""
    with mesh_of(topology(name)) as mesh:
        mesh.form()
        yield mesh


def note(measured, steps):
    for step in steps:
        print(step)
        measured(f"lost, {step.what}", step.lost)
        measured(f"s silent, {step.what}", step.silence)
        measured(f"s until both say so, {step.what}", step.took)
    return {step.what: step for step in steps}


def wait_direct(*nodes):
    wait_until(both_are(*nodes, "direct"), "they are direct", timeout=PATIENCE)


@pytest.mark.slow
def test_from_relay_to_direct_and_back_only_what_was_cut_without_notice_is_lost(measured):
    with mesh_of(topology("nats:ei-apd")) as mesh:
        one, other = mesh.lab["ei-apd1"], mesh.lab["ei-apd2"]
        moves.cut_direct(mesh.lab, one, other)
        mesh.form()

        steps = note(measured, moves.relay_and_back(mesh.lab, one, other))

        assert steps["to direct"].lost == 0
        assert steps["to direct again"].lost == 0


@pytest.mark.long
def test_a_nat_that_was_restarted_is_followed(measured):
    with formed("nats:ei-apd-r") as mesh:
        one, other = mesh.lab["ei-apd-r1"], mesh.lab["ei-apd-r2"]
        wait_direct(one, other)
        traffic = Moves(one, other)
        before = endpoint(other, one)

        traffic.step(
            "NAT restarted",
            lambda: faults.rebind(mesh.lab, one),
            lambda: endpoint(other, one) != before and both_are(one, other, "direct")(),
        )
        note(measured, traffic.stop())


@pytest.mark.long
def test_a_default_route_that_moves_to_another_line_is_followed(measured):
    with formed("nats:ei-apd") as mesh:
        one, other = mesh.lab["public1"], mesh.lab["ei-apd2"]
        wait_direct(one, other)
        line = mesh.lab["public2"].member.port
        address = one.plug_in("eth1", line.segment, host=5)
        traffic = Moves(one, other)

        traffic.step(
            "default route moved",
            lambda: one.run(
                ["ip", "route", "replace", "default", "via", str(line.ipv4.network[1])]
            ),
            lambda: endpoint(other, one).startswith(f"{address.ip}:"),
        )
        [step] = traffic.stop()

        note(measured, [step])


@pytest.mark.long
def test_where_ipv4_is_lost_ipv6_takes_over(measured):
    with formed("internet") as mesh:
        one, other, *_ = mesh.nodes
        wait_direct(one, other)
        traffic = Moves(one, other)

        traffic.step(
            "IPv4 lost",
            lambda: one.run(["ip", "-4", "route", "del", "default"]),
            lambda: endpoint(other, one).startswith("[") and endpoint(one, other).startswith("["),
        )
        note(measured, traffic.stop())
