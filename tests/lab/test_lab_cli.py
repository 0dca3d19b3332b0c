"""The command `lab`, as people type it."""

import os
import subprocess

import pytest

from lablib.daemon import IN_VM, PROJECT

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces takes root"),
    pytest.mark.skipif(IN_VM in os.environ, reason="nothing here depends on the kernel"),
]

NAME = f"cli-{os.getpid()}"


def lab(*arguments):
    return subprocess.run(
        [PROJECT / "netns-lab" / "lab", "--name", NAME, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def running():
    assert lab("up", "nat", "--nodes", "2", "--no-daemons").returncode == 0
    yield
    assert lab("down").returncode == 0


@pytest.mark.usefixtures("running")
def test_exec_carries_output_and_exit_status():
    result = lab("exec", "b", "sh", "-c", "hostname; exit 7")

    assert (result.stdout, result.returncode) == ("b\n", 7)


@pytest.mark.usefixtures("running")
def test_exec_reaches_routers_and_refuses_what_is_not_there():
    assert "masquerade" in lab("exec", "router-b", "nft", "list", "ruleset").stdout
    result = lab("exec", "z", "true")
    assert result.returncode == 2
    assert "only a, b, fabric, router-a, router-b" in result.stderr


@pytest.mark.usefixtures("running")
def test_list_draws_what_is_up():
    listing = lab("list").stdout

    assert f"[{NAME}] nat:" in listing
    assert "+-- router-b  192.0.2.2  (maps ei, filters apd, keeps ports)" in listing


@pytest.mark.usefixtures("running")
def test_ping_ends_in_a_matrix_and_fails_where_someone_is_silent():
    result = lab("ping", "--underlay")

    assert result.returncode == 1
    assert "lost" in result.stdout


@pytest.mark.usefixtures("running")
def test_up_twice_is_refused_in_one_line():
    result = lab("up", "lan", "--no-daemons")

    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "lab down" in result.stderr


def test_down_does_no_harm_when_nothing_is_up():
    result = lab("down")

    assert (result.returncode, result.stdout) == (0, "nothing is up\n")


def test_verbose_prints_the_commands_it_runs():
    try:
        commands = lab("--verbose", "up", "lan", "--nodes", "1", "--no-daemons").stderr
    finally:
        lab("down")

    assert "[fabric]     link add a.eth0 type veth peer name eth0 netns" in commands
    assert "[a]     address add 10.77.0.1/24 dev eth0" in commands


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["up", "torus"], "no topology is called 'torus'"),
        (["up", "lan", "--nodes", "0"], "1 to 64 members"),
        (["--name", "../x", "down"], "a lab's name"),
        (["--vm", "up"], "only `demo` and `matrix`"),
        (["matrix", "--kinds", "cone"], "no kind of NAT is called 'cone'"),
        (["up", "nats:home", "--nodes", "3"], "two of each kind"),
        (["vm"], "takes a command"),
    ],
)
def test_what_cannot_be_meant_ends_with_2_and_one_line(arguments, reason):
    result = lab(*arguments)

    assert result.returncode == 2
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1


def test_exec_without_a_lab_says_what_to_do():
    result = lab("exec", "a", "true")

    assert result.returncode == 1
    assert "`lab up` makes one" in result.stderr
