"""WireGuard keys are replaced under traffic: what is lost, and how long TCP stands still."""

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lablib import Start, Traffic, lan, mesh, wait_until
from mesh.meshes import PATIENCE, end_wireguard, mesh_of, wait_state, wireguard

pytestmark = [pytest.mark.netns, pytest.mark.slow]

IN_VM = Start.default() is Start.FORK
RATE = 20 if IN_VM else 100  # datagrams a second, each way of each pair
REKEY_TIMEOUT = 5.0  # WireGuard's: what a handshake costs that has failed


def rotate(node):
    """Replace a node's key and return the new one."""
    answer = node.meshctl("keys", "rotate", "--json", timeout=PATIENCE)
    return json.loads(answer.stdout)["wireguard"]["public_key"]


def keys(*nodes):
    """The nodes' own keys, and whether each device has exactly the others'."""
    devices = {node.name: wireguard(node) for node in nodes}
    own = {name: key for name, (key, _) in devices.items()}
    for name, (_, peers) in devices.items():
        expected = {key for other, key in own.items() if other != name}
        assert peers.keys() == expected, f"{name} has peers {sorted(peers)}"
    return own


def wait_agreed(*nodes, timeout=PATIENCE):
    return wait_until(lambda: keys(*nodes), "all have the keys of all", timeout=timeout)


def traffic(nodes):
    return Traffic(nodes, mesh.addresses(nodes, version=4), rate=RATE)


@pytest.mark.long
def test_each_of_five_replaces_its_key_under_traffic(measured):
    with mesh_of(lan(5)) as meshed:
        meshed.form()
        meshed.ping_all()
        before = keys(*meshed.nodes)
        flows = traffic(meshed.nodes)
        times = [time.monotonic()]
        for node in meshed.nodes:
            assert rotate(node) != before[node.name]
            wait_agreed(*meshed.nodes)
            times.append(time.monotonic())
        report = flows.stop()

        assert not set(before.values()) & set(wait_agreed(*meshed.nodes).values())
        lost = [len(report.lost_between(*span)) for span in itertools.pairwise(times)]
        stalls = [report.longest_stall(*span) for span in itertools.pairwise(times)]
        measured("lost of 20 flows, the rotation that lost most", max(lost))
        measured("s TCP stood still, at most", max(stalls))
        # Without CPU to spare, what was sent before the switch may be read after it, now and then.
        assert min(lost) == 0, lost
        if not IN_VM:
            assert max(stalls) < REKEY_TIMEOUT, stalls


def test_two_that_are_told_at_the_same_time_both_rotate(measured):
    with mesh_of(lan(3)) as meshed:
        meshed.form()
        before = keys(*meshed.nodes)
        flows = traffic(meshed.nodes)

        with ThreadPoolExecutor() as threads:
            list(threads.map(rotate, meshed.nodes[:2]))
        after = wait_agreed(*meshed.nodes)
        report = flows.stop()

        changed = {name for name in before if before[name] != after[name]}
        assert changed == {node.name for node in meshed.nodes[:2]}
        measured("lost of 6 flows", len(report.lost))
        assert len(report.lost) < RATE  # no pair was apart for seconds


@pytest.mark.long
def test_a_member_that_was_away_follows_when_it_is_back(measured):
    with mesh_of(lan(3)) as meshed:
        meshed.form()
        a, b, c = meshed.nodes
        c.link_down()
        for node in (a, b):
            wait_state(node, "c", "dead")
        rotate(a)
        key, _ = wireguard(a)
        wait_until(lambda: key in wireguard(b)[1], "b has a's new key", timeout=PATIENCE)
        assert key not in wireguard(c)[1]

        c.link_up()
        back_at = time.monotonic()
        wait_agreed(*meshed.nodes)
        meshed.wait_whole()
        meshed.ping_all()

        measured("s until all is well", time.monotonic() - back_at)


@pytest.mark.long
def test_a_key_that_only_the_disk_has_is_taken_at_the_next_start():
    """What a daemon leaves that is killed between the two: its state is one step ahead."""
    with mesh_of(lan(3)) as meshed:
        meshed.form()
        a, b, c = meshed.nodes
        former = a.run(["wg", "show", "mesh0", "private-key"]).stdout
        key = rotate(a)
        wait_agreed(a, b, c)
        a.kill_daemon()
        a.run(["wg", "set", "mesh0", "private-key", "/dev/stdin"], stdin=former)
        assert wireguard(a)[0] != key

        a.start_daemon()

        meshed.wait_whole()
        assert wait_agreed(a, b, c)["a"] == key
        meshed.ping_all()


@pytest.mark.long
def test_a_key_that_is_new_is_the_one_after_the_power_was_off():
    with mesh_of(lan(2)) as meshed:
        meshed.form()
        a, b = meshed.nodes
        key = rotate(a)
        wait_agreed(a, b)
        for node in (a, b):
            node.kill_daemon()
            end_wireguard(node)

        for node in (a, b):
            node.start_daemon()

        meshed.wait_whole()
        assert wait_agreed(a, b)["a"] == key
