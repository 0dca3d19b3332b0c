"""What a curious user does to a daemon that runs, is starting, or is not there at all."""

import signal
import subprocess

import pytest

from badinput.machines import NEEDS_ROOT, NOBODY, PATIENCE
from lablib import wait_until

pytestmark = NEEDS_ROOT

STATE = "/var/lib/meshd/mesh0"


# meshctl


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "a command is needed, such as `meshctl status`"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["ping"], "the following arguments are required: NAME"),
        (["status", "--wacth"], "unknown option --wacth; did you mean --watch?"),
        (["wait", "--members", "few"], "must be a whole number"),
        (["invite", "--expires", "1s"], "must be from 1m to 30d"),
        (["invite", "--expires", "soon"], "must be a span of time such as 90s"),
        (["invite", "--name", "Not A Label"], "'not-a-label' would do"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_meshctl_refuses_what_cannot_be_meant(machine, arguments, says):
    machine.meshctl(*arguments).refuses(2, says)


def test_meshctl_says_that_no_daemon_runs_and_how_to_start_one(machine):
    machine.meshctl("status").refuses(3, "no meshd runs here", "systemctl start meshd")
    machine.meshctl("--socket", "/x.sock", "status").refuses(3, "there is no /x.sock")


def test_meshctl_says_that_a_daemon_was_killed(machine):
    machine.start("--init")
    machine.node.kill_daemon()

    machine.meshctl("status").refuses(3, "left by one that has ended")


def test_meshctl_says_who_may_use_it(machine):
    machine.start("--init")

    machine.meshctl("status", within=NOBODY).refuses(4, "you may not use it; become root")


def test_meshctl_fails_on_a_member_that_is_not_there(machine):
    machine.start("--init")

    machine.meshctl("ping", "nobody").refuses(1, "no member is called 'nobody'")
    machine.meshctl("forget", machine.name).refuses(1, "is this node itself")
    waited = machine.meshctl("wait", "--members", "2", "--timeout", "0.1s")
    assert waited.status == 1
    assert "1 of 2 members are alive" in waited.output


# Signals


def test_a_broken_configuration_is_refused_whole_by_a_daemon_that_runs(machine):
    machine.start("--init")
    machine.write("/etc/meshd/meshd.toml", "port = 51821\nlog_level = 'loud'\n")
    machine.node.process.send_signal(signal.SIGHUP)
    refused = "the new configuration is refused whole: /etc/meshd/meshd.toml: log_level = 'loud'"
    wait_until(lambda: machine.logged(refused), "it is refused", timeout=10)

    machine.write("/etc/meshd/meshd.toml", "log_level = 'debug'\n")
    machine.node.process.send_signal(signal.SIGHUP)

    wait_until(lambda: machine.logged("configuration read again"), "it is read again", timeout=10)
    assert machine.node.status()["self"]["listen_port"] == 51820


def test_sigterm_leaves_the_tunnels_up_and_a_restart_takes_them_over(machines):
    a, b = machines["a"], machines["b"]
    for each in (a, b):
        each.write_secret()
    a.start("--secret-file", "/etc/meshd/secret")
    b.start("--secret-file", "/etc/meshd/secret", "--seed", "10.77.0.1")
    a.wait_members(2)
    target = b.wait_members(2)["self"]["ipv4"]
    assert a.node.ping(target, timeout=10)
    before, handshakes = b.traces(), b.sh("wg show mesh0 latest-handshakes; wg show mesh0")
    flow = a.node.ping_flow(target, rate=100)

    assert b.node.stop_daemon() == 0
    between = b.traces()
    b.start()
    b.wait_members(2)
    report = flow.stop()

    assert b.logged("ending; the tunnels stay up")
    assert report.lost == ()
    assert between["interfaces"] == before["interfaces"]
    assert between["tables"] == before["tables"]
    assert "meshd/mesh0.sock" not in between["files"]
    shown = b.sh("wg show mesh0 latest-handshakes; wg show mesh0")
    assert shown.splitlines()[0] == handshakes.splitlines()[0]


@pytest.mark.parametrize(
    ("number", "path"),
    [
        (signal.SIGINT, f"{STATE}/lock"),
        (signal.SIGTERM, f"{STATE}/mesh.db"),
        (signal.SIGINT, "/run/meshd/mesh0.sock"),
        (signal.SIGTERM, "/sys/class/net/mesh0"),
    ],
)
def test_a_start_that_is_cut_short_leaves_a_member_or_nothing(machine, number, path):
    """A signal comes as soon as there is a certain file."""
    empty = machine.traces()
    machine.launch("--init")
    file = machine.node.file(path)
    wait_until(file.exists, f"there is {path}", timeout=PATIENCE, interval=0.001)

    assert machine.node.stop_daemon(number) == 0

    assert "Traceback" not in machine.log
    traces = machine.traces()
    if traces["interfaces"] == empty["interfaces"]:
        assert traces == empty
    else:
        assert traces["tables"] == ["table inet meshd_mesh0"]
        assert machine.start()["self"]["ready"]


def test_leaving_ends_the_daemon_and_keeps_the_state(machine):
    node = machine.start("--init")["self"]["id"]

    assert machine.meshctl("leave").status == 0
    assert machine.node.process.wait(PATIENCE) == 0

    traces = machine.traces()
    assert traces["interfaces"] == ["eth0", "lo"]
    assert traces["tables"] == []
    assert "meshd/mesh0/node.key" in traces["files"]
    assert machine.start()["self"]["id"] == node


def test_standard_error_that_is_closed_does_not_end_the_daemon(machine):
    process = machine.node.popen(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *machine.command("--init")],
        env=machine.environment,
        stdout=subprocess.DEVNULL,
    )
    machine.node.process = process

    assert machine.wait_answering()["self"]["ready"]
    assert machine.node.stop_daemon() == 0
