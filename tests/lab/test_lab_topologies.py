"""The lab's own networks, with the real kernel under them."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lablib import CommandFailed, Lab, LabError, internet, lan, nat, take_down, wait_until
from lablib.daemon import PROJECT
from lablib.lab import DIRECTORY
from lablib.namespace import Namespace, destroy

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces takes root"),
]

SILENCE = 1.0  # seconds after which a ping on this machine counts as unanswered
SEND_HELLO = (
    "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 51820)); s"
)


def traces():
    """Return everything on the host that a lab of ours could leave behind.

    Names of labs have the process in them; other programs' come and go meanwhile.
    """
    links = subprocess.run(
        ["ip", "-oneline", "link"], capture_output=True, text=True, check=True
    ).stdout
    return {
        "links": sorted(line.split(":")[1].strip() for line in links.splitlines()),
        "mounts": sorted(filter(ours, Path("/proc/self/mounts").read_text().splitlines())),
        "labs": sorted(path.name for path in DIRECTORY.glob("*") if ours(str(path))),
        "named namespaces": sorted(path.name for path in Path("/run/netns").glob("*")),
        "private files": [path.exists() for path in map(Path, ("/etc/meshd", "/var/lib/meshd"))],
    }


def ours(text):
    """Whether a path, or a line with one, is not of another program's lab."""
    return str(DIRECTORY) not in text or str(os.getpid()) in text


def network_namespaces():
    """Return the inode numbers of the network namespaces that some process is in."""
    inodes = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            inodes.add(link.stat().st_ino)
        except OSError:
            continue
    return inodes


@contextmanager
def leaving_nothing_behind():
    """Hold the block to leaving the host as it was."""
    before = traces()
    yield

    def unchanged():
        after = traces()
        for kind, expected in before.items():
            assert after[kind] == expected, kind
        return True

    wait_until(unchanged, "the host is as it was", timeout=10)


@pytest.mark.parametrize("make", [lan, internet, nat])
def test_everyone_reaches_everyone_the_topology_says_and_down_leaves_nothing(make):
    with leaving_nothing_behind():
        with Lab(make(4)) as lab:
            made = {namespace.record.inode for namespace in lab.namespaces.values()}
            assert made <= network_namespaces()

            silent = lab.ping_underlay(timeout=SILENCE).silent
            silent_ipv6 = lab.ping_underlay(version=6, timeout=SILENCE).silent

        assert not made & network_namespaces()
    members = lab.topology.members
    assert set(silent) == {
        (source.name, target.name)
        for source in members
        for target in members
        if source is not target and not lab.topology.reachable(source, target)
    }
    assert silent_ipv6 == ()


def test_what_comes_out_of_a_nat_has_the_routers_address_and_its_own_port():
    with Lab(nat(2)) as lab, lab["a"].capture("udp") as capture:
        lab["b"].run(
            [
                *(sys.executable, "-c"),
                f"{SEND_HELLO}.sendto(b'hello', ('{lab['a'].ipv4.ip}', 9))",
            ]
        )
        wait_until(lambda: capture.path.stat().st_size > 24, "the datagram is captured", timeout=10)
        [packet] = capture.packets()

    [router] = [router for router in lab.topology.routers if router.masquerades]
    assert (packet.source, packet.source_port) == (router.uplink.ipv4.ip, 51820)
    assert (packet.destination_port, packet.payload) == (9, b"hello")


def test_a_nat_lets_strangers_neither_in_nor_to_itself():
    with Lab(nat(3)) as lab:
        [router] = [router for router in lab.topology.routers if router.masquerades]
        # With a route to the inside, only the router's rules are in the way.
        lab.namespaces["router-c"].run(
            ["ip", "route", "add", str(lab["b"].ipv4.network), "via", str(router.uplink.ipv4.ip)]
        )

        inside, itself = str(lab["b"].ipv4.ip), str(router.uplink.ipv4.ip)
        assert lab["c"].ping(inside, itself, timeout=SILENCE) == {}
        assert lab["b"].ping(str(lab["c"].ipv4.ip), timeout=SILENCE)


def test_a_pulled_cable_stops_a_flow_and_the_machine_keeps_its_configuration():
    with Lab(internet(2)) as lab:
        a, b = lab["a"], lab["b"]
        before = b.run(["ip", "-brief", "address", "show", "eth0"]).stdout.split()[2:]
        flow = a.ping_flow(str(b.ipv4.ip), rate=50)
        b.link_down()
        assert a.ping(str(b.ipv4.ip), timeout=SILENCE) == {}
        assert b.run(["ip", "-brief", "address", "show", "eth0"]).stdout.split()[2:] == before
        b.link_up()
        wait_until(lambda: a.ping(str(b.ipv4.ip), timeout=SILENCE), "b is back", timeout=10)
        report = flow.stop()

    assert len(report.lost) >= 50 * SILENCE * 0.9
    assert report.sent == report.received + len(report.lost)
    assert report.longest_gap >= SILENCE * 0.9


def test_an_undisturbed_flow_loses_nothing():
    with Lab(nat(2)) as lab:
        report = lab["b"].ping_flow(str(lab["a"].ipv4.ip), rate=200, duration=1.0).result()

    assert report.lost == ()
    assert report.sent == 200
    assert str(report).startswith("200 sent, 0 lost")


@pytest.mark.parametrize("make", [lan, internet])
def test_a_renumbered_member_is_reached_at_its_new_address_only(make):
    with Lab(make(3)) as lab:
        a, b = lab["a"], lab["b"]
        old = {str(b.ipv4.ip), str(b.ipv6.ip)}

        b.renumber()

        new = {str(b.ipv4.ip), str(b.ipv6.ip)}
        assert not old & new
        assert set(a.ping(*new, *old, timeout=SILENCE)) == new
        assert set(b.ping(str(a.ipv4.ip), str(a.ipv6.ip), timeout=SILENCE)) == {
            str(a.ipv4.ip),
            str(a.ipv6.ip),
        }


def test_the_default_directories_of_each_node_are_its_own():
    directories = ("/etc/meshd", "/var/lib/meshd", "/run/meshd", "/run/wireguard")
    with leaving_nothing_behind(), Lab(lan(2)) as lab:
        for directory in directories:
            lab["a"].run(["touch", f"{directory}/mine"])
            assert lab["a"].file(f"{directory}/mine").exists()
            assert list(lab["b"].file(directory).iterdir()) == []
        assert lab["a"].run(["hostname"]).stdout == "a\n"
        assert lab["a"].run(["ls", "/sys/class/net"]).stdout.split() == ["eth0", "lo"]


def test_others_are_found_by_name():
    with Lab(nat(3)) as lab:
        assert "1 received" in lab["b"].run(["ping", "-4", "-c1", "-W2", "c"]).stdout
        assert " b\n" not in lab["c"].file("/etc/hosts").read_text()


def wireguard(node, private_key, address):
    """Make wg0, by the kernel where it can, else by wireguard-go."""
    if node.run(["ip", "link", "add", "wg0", "type", "wireguard"], check=False).returncode:
        node.run(["wireguard-go", "wg0"], env={"LOG_LEVEL": "error"})
    node.run(["wg", "set", "wg0", "listen-port", "51820", "private-key", "/dev/stdin"],
             stdin=private_key)  # fmt: skip
    node.run(["ip", "address", "add", f"{address}/24", "dev", "wg0"])
    node.run(["ip", "link", "set", "wg0", "up"])


def test_a_wireguard_tunnel_crosses_the_nat_and_down_ends_its_process():
    with Lab(nat(2)) as lab:
        keys = {}
        for index, (name, node) in enumerate(lab.nodes.items(), start=1):
            private = node.run(["wg", "genkey"]).stdout
            keys[name] = node.run(["wg", "pubkey"], stdin=private).stdout.strip()
            wireguard(node, private, f"10.9.0.{index}")
        lab["a"].run(["wg", "set", "wg0", "peer", keys["b"], "allowed-ips", "10.9.0.2/32"])
        peer = ["peer", keys["a"], "endpoint", f"{lab['a'].ipv4.ip}:51820"]
        lab["b"].run(["wg", "set", "wg0", *peer, "allowed-ips", "10.9.0.1/32"])

        assert lab["b"].ping("10.9.0.1", timeout=20)
        assert lab["a"].ping("10.9.0.2", timeout=5)
        learnt = lab["a"].run(["wg", "show", "wg0", "endpoints"]).stdout
        [router] = [router for router in lab.topology.routers if router.masquerades]
        assert f"{router.uplink.ipv4.ip}:51820" in learnt
        made = {namespace.record.inode for namespace in lab.namespaces.values()}

    assert not made & network_namespaces()


def test_a_process_that_hides_from_its_parent_is_ended_too():
    with Lab(lan(1)) as lab:
        inode = lab["a"].namespace.record.inode
        lab["a"].run(["setsid", "--fork", "sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000"])
    assert inode not in network_namespaces()


def test_two_labs_do_not_disturb_each_other():
    with Lab(nat(2)) as one:
        with Lab(nat(2)) as other:
            other.down()
            other.down()
        assert one["b"].ping(str(one["a"].ipv4.ip), timeout=SILENCE)


def test_a_lab_is_not_built_over_another():
    with Lab(lan(1)) as lab, pytest.raises(LabError, match="is up, or was left behind"):
        Lab(lan(1), name=lab.name).up()


def test_a_lab_is_found_again_by_its_name():
    with Lab(nat(3)) as lab:
        again = Lab.attach(lab.name)

        assert again.topology == lab.topology
        assert again["b"].ping(str(again["a"].ipv4.ip), timeout=SILENCE)


def test_what_is_built_is_removed_when_the_rest_fails():
    plan = lan(2)
    wire = replace(plan.segments[0], name="longer-than-an-interface-name")

    with leaving_nothing_behind(), pytest.raises(CommandFailed, match="fabric: ip -batch"):
        Lab(replace(plan, segments=(wire,))).up()


def test_an_interrupt_takes_the_lab_down():
    with leaving_nothing_behind(), pytest.raises(KeyboardInterrupt), Lab(lan(2)):
        raise KeyboardInterrupt


def killed_program(name, *, after):
    """Run a program that makes a lab, and does something more, to where it is killed."""
    script = (
        "import time; from lablib import Lab, nat\n"
        f"lab = Lab(nat(3), name={name!r}); lab.up(); {after}\n"
        "print('up', flush=True); time.sleep(1000)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "netns-lab")},
        stdout=subprocess.PIPE,
    ) as program:
        assert program.stdout.readline() == b"up\n"
        program.send_signal(signal.SIGKILL)


def test_down_clears_up_after_a_lab_that_was_kept():
    name = f"kept-{os.getpid()}"
    with leaving_nothing_behind():
        killed_program(name, after="lab.keep()")

        assert take_down(name) == 7  # three members, three routers and the fabric
        assert take_down(name) == 0


def test_a_lab_ends_with_the_program_that_made_it():
    name = f"killed-{os.getpid()}"
    hidden = "lab['a'].run(['setsid', '--fork', 'sh', '-c', 'sleep 1000'])"
    with leaving_nothing_behind():
        killed_program(name, after=hidden)

        wait_until(lambda: not (DIRECTORY / name).exists(), "the lab is gone", timeout=60)


def test_a_warden_leaves_a_later_lab_of_the_same_name_alone():
    name = f"later-{os.getpid()}"
    replaced = f"from lablib import take_down; take_down({name!r}); "
    replaced += "again = Lab(nat(2), name=lab.name); again.up(); again.keep(); "
    replaced += "open(again.directory / 'warden', 'w').write(str(lab._warden.pid))"
    with leaving_nothing_behind():
        killed_program(name, after=replaced)
        warden = int((DIRECTORY / name / "warden").read_text())
        wait_until(lambda: not Path(f"/proc/{warden}").exists(), "the warden ends", timeout=60)

        assert take_down(name) == 5  # two members, two routers and the fabric


def test_a_process_in_a_namespace_that_is_not_the_labs_is_never_ended():
    with Lab(lan(1)) as lab:
        record = lab["a"].namespace.record
        for lie in ({"cookie": record.cookie + 1}, {"boot": "another"}):
            assert destroy([replace(record, **lie)]) == []
        assert lab["a"].namespace.alive()
        assert asdict(Namespace.load(lab.directory / "a.ns").record) == asdict(record)


def test_a_failed_command_says_where_and_what():
    with Lab(lan(1)) as lab, pytest.raises(CommandFailed) as failure:
        lab["a"].run(["sh", "-c", "echo oops >&2; exit 3"])

    assert re.match(r"a: sh -c .*: exit status 3\noops", str(failure.value))
