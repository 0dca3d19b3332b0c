"""What sounds like silence, and what only turns out once a node is in."""

import pytest

from badinput.machines import NEEDS_ROOT, SECRET
from lablib import wait_until

pytestmark = NEEDS_ROOT

BY_SECRET = ("--secret-file", "/etc/meshd/secret")


@pytest.fixture
def joiners(machines):
    """Machines that know the secret."""
    for machine in machines.values():
        machine.write_secret()
    return machines


def test_a_dead_seed_a_blocked_port_and_another_mesh_are_waited_out(joiners):
    """
    a   the seed, at first down
    b   asks it by IPv4, its secret file without a newline at its end
    c   asks it by IPv6, its secret file from another operating system
    d   behind a firewall that blocks the port
    e   has another secret
    f   asks for a name that does not exist
    g   has another mesh's token
    """
    a, b, c, d, e, f, g = joiners.values()
    b.write_secret(SECRET)
    c.write_secret(SECRET + "\r\n")
    e.write_secret("another secret altogether\n")
    d.sh("nft 'add table inet fw; add chain inet fw out { type filter hook output priority 0; }'")
    d.sh("nft add rule inet fw out udp dport 51820 drop")
    g.write_token(foreign_token(g))
    g.launch("--token-file", "/etc/meshd/token", "--seed", "10.77.0.1")
    for machine in (b, d, e):
        machine.launch(*BY_SECRET, "--seed", "10.77.0.1")
    c.launch(*BY_SECRET, "--seed", "[2001:db8:77::1]:51820")
    f.launch(*BY_SECRET, "--seed", "nowhere.invalid")
    for machine in (b, c, d, e, f, g):
        ready = machine.wait_answering()["self"]["ready"]
        assert ready == (machine is not g)
        finding = machine.wait_finding("no-answer")
        assert "it is down, or UDP is blocked on the way, or the secret" in finding
        assert len(machine.logged("no answer from")) == 1
    assert "nowhere.invalid:51820 has no address: check the spelling" in f.findings()["seed-name"]

    a.start(*BY_SECRET)
    d.sh("nft delete table inet fw")

    a.wait_members(4)
    for machine in (b, c, d):
        machine.wait_healthy()
    assert a.bad_packets()["handshake does not open"] > 0  # from e and g
    for machine in (e, f, g):
        assert machine.findings()["no-answer"]
        assert machine.node.status()["members"] == []


def foreign_token(machine):
    """A token of a mesh that is no more."""
    machine.start("--init")
    token = machine.meshctl("invite").output.splitlines()[0]
    machine.reset()
    return token


def test_two_of_one_name_are_told_apart_and_the_later_is_warned(joiners):
    a, b, c, *_ = joiners.values()
    a.start(*BY_SECRET)
    b.start(*BY_SECRET, "--name", "twin", "--seed", "10.77.0.1")
    a.wait_members(2)
    # Who is earlier is told by seconds, and within one by the id.
    c.launch(*BY_SECRET, "--name", "twin", "--seed", "10.77.0.1", clock=60)
    c.wait_answering()

    finding = c.wait_finding("name-taken")

    assert "the name twin belongs to a member admitted earlier" in finding
    assert "shown as twin-2" in finding
    wait_until(lambda: c.logged("shown as twin-2"), "it is logged", timeout=10)
    names = [member["name"] for member in a.wait_members(3)["members"]]
    assert names == ["twin", "twin-2"]
    assert "name-taken" not in b.findings()


def test_a_clock_an_hour_off_is_let_in_and_told(joiners):
    a, fast, slow, *_ = joiners.values()
    a.start(*BY_SECRET)
    fast.launch(*BY_SECRET, "--seed", "10.77.0.1", clock=3600)
    slow.launch(*BY_SECRET, "--seed", "10.77.0.1", clock=-3600)

    for machine, words in ((fast, "ahead of"), (slow, "behind")):
        machine.wait_answering()
        assert f"{words} the seed's; set it right" in machine.wait_finding("clock")
        wait_until(
            lambda machine=machine: machine.logged("set it right"), "it is logged", timeout=10
        )
    a.wait_members(3)
    assert a.findings() == {}


def test_a_name_given_later_does_not_take_and_is_remarked_on(machine):
    machine.start("--init", "--name", "first")
    machine.node.stop_daemon()

    status = machine.start("--name", "second")

    assert status["self"]["name"] == "first"
    assert machine.logged("the name stays first")


def test_a_seed_whose_name_nobody_could_have_is_no_reason_to_crash(machine):
    machine.write_secret()

    machine.start(*BY_SECRET, "--seed", "x" * 64)

    assert "has no address" in machine.wait_finding("seed-name")
