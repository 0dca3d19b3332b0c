"""What a machine does not let meshd do: one line that says so, exit status 1, nothing half-done."""

import pytest

from badinput.machines import NEEDS_ROOT, NOBODY, USERSPACE, port_taken

pytestmark = NEEDS_ROOT

WITHOUT_NET_ADMIN = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")


def without(path):
    """Start a program in a mount namespace of its own, in which a directory is empty."""
    return ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {path} && exec "$@"', "sh")


def without_nft():
    """Start a program in a mount namespace of its own, in which nft(8) does not run."""
    script = 'mount --bind /dev/null "$(command -v nft)" && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh")


@pytest.fixture
def refused(machine):
    """Run meshd, and hold it to refusing with status 1 and leaving nothing behind."""

    def run(*args, says=(), **keywords):
        with machine.unchanged():
            outcome = machine.meshd("--init", *args, **keywords)
        return outcome.refuses(1, *says)

    return run


# Privileges and WireGuard


@pytest.mark.parametrize(
    ("within", "who"),
    [(NOBODY, "this user lacks"), (WITHOUT_NET_ADMIN, "root here lacks")],
    ids=["nobody", "a root without the capability"],
)
def test_who_may_not_make_interfaces_is_told_to_become_root(refused, within, who):
    refused(within=within, says=[f"{who} CAP_NET_ADMIN; run meshd as root"])


def test_without_a_tun_device_it_is_named(refused):
    refused(*USERSPACE, within=without("/dev/net"), says=["/dev/net/tun", "modprobe tun"])


def test_without_any_wireguard_the_package_is_named(refused):
    refused(
        *USERSPACE,
        within=("env", "PATH=/nowhere"),
        says=["there is no WireGuard here", "install the Debian package wireguard-go"],
    )


def test_the_kernels_wireguard_is_used_or_refused_where_it_is_insisted_on(machine, refused):
    probe = "ip link add probe type wireguard && ip link delete probe"
    if machine.node.run(["sh", "-c", probe], check=False).returncode == 0:
        machine.start("--init", "--backend", "kernel")
        assert machine.node.status()["self"]["backend"] == "kernel"
    else:
        refused("--backend", "kernel", says=["this kernel has no WireGuard", "--backend userspace"])


@pytest.mark.parametrize(("port", "neighbour"), [(51820, 51821), (65535, 65534)])
def test_without_nft_the_port_beside_wireguards_is_needed_too(machine, port, neighbour):
    with port_taken(machine, f"0.0.0.0:{neighbour}"), machine.unchanged():
        outcome = machine.meshd("--init", "--port", str(port), within=without_nft())

    outcome.refuses(1, f"UDP port {neighbour} is taken by another program")


# Interfaces


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        ("ip link add mesh0 type veth peer name other", "veth"),
        ("ip link add mesh0 type bridge", "bridge"),
        ("ip tuntap add mesh0 mode tun", "tun"),
    ],
    ids=["veth", "bridge", "tun"],
)
def test_an_interface_in_use_by_something_else_is_left_alone(machine, refused, make, kind):
    machine.sh(make)

    refused(says=["mesh0 is in use by something else", kind, "choose another --interface"])


def test_the_wireguard_of_somebody_else_is_left_alone(machine, refused):
    machine.sh("""
        ip link add mesh0 type wireguard 2>/dev/null || LOG_LEVEL=silent wireguard-go mesh0
        wg genkey > /run/meshd/key
        wg set mesh0 private-key /run/meshd/key listen-port 4711
    """)
    before = machine.sh("wg show mesh0 dump")

    refused(says=["mesh0 is somebody else's WireGuard", "ip link delete mesh0"])

    assert machine.sh("wg show mesh0 dump") == before


def test_a_network_that_another_interface_has_is_refused(machine, refused):
    machine.sh("""
        ip link add other type bridge
        ip link set other up
        ip route add 100.64.0.0/10 dev other
    """)

    refused(says=["100.64.0.0/10", "another interface has that network"])


# Ports and the control socket


@pytest.mark.parametrize("address", ["0.0.0.0:51820", "10.77.0.1:51820", "[::1]:51820"])
def test_a_port_that_is_taken_on_any_address_is_refused(machine, address):
    with port_taken(machine, address), machine.unchanged():
        outcome = machine.meshd("--init")

    outcome.refuses(1, "UDP port 51820 is taken", "ss -lunp", "--port")


def test_a_new_port_that_is_taken_leaves_the_interface_on_the_old_one(machine):
    machine.start("--init")
    machine.node.stop_daemon()

    before = machine.sh("wg show mesh0 dump; nft list ruleset")

    with port_taken(machine, "10.77.0.1:4711"):
        machine.meshd("--port", "4711").refuses(1, "UDP port 4711 is taken by another program")

    assert machine.sh("wg show mesh0 dump; nft list ruleset") == before


def test_a_control_socket_whose_path_is_too_long_is_refused(refused):
    refused("--runtime-dir", "/run/" + "x" * 100, says=["at most 107 bytes", "--runtime-dir"])


def test_a_runtime_directory_that_cannot_be_written_is_refused(machine, refused):
    machine.sh("mkdir /run/ro; mount -t tmpfs -o ro none /run/ro")
    try:
        refused("--runtime-dir", "/run/ro", says=["/run/ro/mesh0.sock", "Read-only file system"])
        refused("--runtime-dir", "/run/ro/sub", says=["Read-only file system", "--runtime-dir"])
    finally:
        machine.sh("umount /run/ro; rmdir /run/ro")


def test_a_file_in_the_place_of_the_control_socket_is_left_alone(machine, refused):
    machine.write("/run/meshd/mesh0.sock", "precious")

    refused(says=["/run/meshd/mesh0.sock: is there and is no socket"])


# Two of them


def test_a_second_daemon_is_told_of_the_first(machine):
    machine.start("--init")
    pid = machine.node.process.pid

    with machine.unchanged():
        outcome = machine.meshd()

    outcome.refuses(1, "is in use by a meshd that is running", "(pid", "--state-dir")
    assert machine.node.process.poll() is None
    assert machine.node.status()["self"]["ready"]
    assert pid == machine.node.process.pid


def test_a_daemon_with_a_state_of_its_own_does_not_take_the_interface_of_another(machine):
    machine.start("--init")

    with machine.unchanged():
        outcome = machine.meshd("--init", "--state-dir", "/run/meshd/other")

    outcome.refuses(1, "/run/meshd/mesh0.sock: another daemon answers there")


def test_a_daemon_with_an_interface_of_its_own_does_not_take_the_port_of_another(machine):
    machine.start("--init")

    with machine.unchanged():
        outcome = machine.meshd("--init", "--interface", "mesh1")

    outcome.refuses(1, "UDP port 51820 is taken")


def test_a_clone_of_the_state_does_not_take_anything_from_the_daemon_that_runs(machine):
    machine.start("--init")
    machine.sh("cp -a /var/lib/meshd /run/meshd/clone; rm /run/meshd/clone/mesh0/lock")
    rules = machine.sh("nft list ruleset")

    machine.meshd("--state-dir", "/run/meshd/clone").refuses(1, "another daemon answers there")

    assert machine.sh("nft list ruleset") == rules
