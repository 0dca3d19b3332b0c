"""State directories that are read-only, full, damaged, shared, or of another mesh."""

import contextlib
import sqlite3

import pytest

from badinput.machines import NEEDS_ROOT, PATIENCE

pytestmark = NEEDS_ROOT

STATE = "/var/lib/meshd/mesh0"
DATABASE = f"{STATE}/mesh.db"


@pytest.fixture
def disk(machine):
    """A disk of its own for the state."""
    return Disk(machine)


class Disk:
    """What the state directory is on."""

    def __init__(self, machine):
        self.machine = machine

    def mount(self, options):
        """Put a new disk over the state's directory."""
        self.machine.sh(f"mount -t tmpfs -o {options},mode=0755 none /var/lib/meshd")

    def unmount(self):
        """Take it away."""
        self.machine.sh("umount /var/lib/meshd")

    def fill(self):
        """Leave no room on it."""
        self.machine.sh("dd if=/dev/zero of=/var/lib/meshd/fill bs=1k 2>/dev/null || true")

    def clear(self):
        """Make room again."""
        self.machine.sh("rm /var/lib/meshd/fill")


@pytest.fixture
def small_disk(disk):
    disk.mount("size=1m")
    yield disk
    if disk.machine.node.process is not None and disk.machine.node.process.poll() is None:
        disk.machine.node.kill_daemon()
    disk.unmount()


def test_a_read_only_state_directory_is_refused(machine, disk):
    disk.mount("ro")
    try:
        with machine.unchanged():
            outcome = machine.meshd("--init")
    finally:
        disk.unmount()

    outcome.refuses(1, f"{STATE}: cannot be used for state: Read-only file system", "--state-dir")


@pytest.mark.parametrize("pages", [1, 8, 16, 20])
def test_a_state_directory_without_room_is_refused_and_left_empty(machine, disk, pages):
    disk.mount(f"size={pages * 4096}")
    try:
        with machine.unchanged():
            outcome = machine.meshd("--init")
    finally:
        disk.unmount()

    line = outcome.refuses(1, STATE)
    assert "full" in line or "No space left" in line
    assert "damaged" not in line


def test_a_disk_that_is_full_at_a_later_start_is_named_as_such(machine, small_disk):
    machine.start("--init")
    machine.node.stop_daemon()
    small_disk.fill()

    with machine.unchanged():
        outcome = machine.meshd()

    line = outcome.refuses(1, DATABASE)
    assert "disk" in line
    assert "damaged" not in line
    small_disk.clear()
    assert machine.start()["self"]["ready"]


def test_while_the_disk_is_full_the_mesh_goes_on_and_what_is_new_is_kept_later(
    machines, small_disk
):
    a, b = small_disk.machine, machines["b"]
    for each in (a, b):
        each.write_secret()
    a.start("--secret-file", "/etc/meshd/secret")
    small_disk.fill()

    b.start("--secret-file", "/etc/meshd/secret", "--seed", "10.77.0.1")
    a.wait_members(2)

    assert "a restart would forget what is new" in a.wait_finding("state")
    assert len(a.logged("cannot be written")) == 1
    a.meshctl("invite").refuses(1, "cannot be written: database or disk is full")

    small_disk.clear()
    a.wait_healthy()
    assert a.logged("the state can be written again")
    b.node.kill_daemon()
    a.node.kill_daemon()
    assert [member["name"] for member in a.start()["members"]] == ["b"]


def test_a_disk_that_fills_up_while_a_token_waits_costs_nobody_the_token(machines, small_disk):
    joiner, seed = small_disk.machine, machines["b"]
    seed.start("--init")
    token = seed.meshctl("invite").output.splitlines()[0]
    seed.node.stop_daemon()
    joiner.write_token(token)
    joiner.start("--token-file", "/etc/meshd/token")
    small_disk.fill()

    seed.start()
    assert joiner.node.process.wait(PATIENCE) == 1
    assert "could not be kept; make room there, and start again in the same way" in joiner.log
    assert "mesh0" not in joiner.traces()["interfaces"]

    small_disk.clear()
    joiner.start("--token-file", "/etc/meshd/token")
    joiner.wait_members(2)


def test_the_state_of_another_mesh_is_not_mixed_with_this_one(machine):
    machine.start("--init")
    machine.node.stop_daemon()
    machine.write_secret()

    with machine.unchanged():
        outcome = machine.meshd("--secret-file", "/etc/meshd/secret")

    outcome.refuses(1, f"{STATE}: holds the state of mesh", "choose another --interface")


# Damage


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def empty(path):
    path.write_bytes(b"")


def replace(path):
    path.write_bytes(b"these are not the pages you are looking for" * 500)


def scribble(path):
    content = bytearray(path.read_bytes())
    content[4096:12288] = b"\xa5" * 8192
    path.write_bytes(content)


def swap(path):
    with contextlib.closing(sqlite3.connect(":memory:")) as other:
        other.execute("CREATE TABLE music (title)")
        path.write_bytes(other.serialize())


@pytest.fixture(scope="module")
def state(bad_input_lab):
    """The state of a member whose daemon has ended, file by file."""
    machine = bad_input_lab["a"]
    machine.start("--init")
    machine.node.stop_daemon()
    files = {path.name: path.read_bytes() for path in machine.node.file(STATE).iterdir()}
    machine.reset()
    assert set(files) == {"lock", "mesh.db", "node.key"}
    return files


@pytest.fixture
def stopped(machine, state):
    """A member with its state, and nothing else, left."""
    machine.node.file(STATE).mkdir(mode=0o700)
    for name, content in state.items():
        machine.write(f"{STATE}/{name}", content)
    return machine


@pytest.mark.parametrize("damage", [cut, empty, replace, scribble, swap])
def test_a_damaged_database_is_left_as_it_is_and_the_way_out_is_said(stopped, damage):
    damage(stopped.node.file(DATABASE))

    with stopped.unchanged():
        outcome = stopped.meshd()

    outcome.refuses(1, f"{DATABASE}: is damaged", "move it away and join again", "node.key")


def test_after_the_way_out_the_node_is_the_same_in_a_new_mesh(stopped):
    node = stopped.node.file(f"{STATE}/node.key").read_bytes()
    cut(stopped.node.file(DATABASE))
    stopped.sh(f"mv {DATABASE} {DATABASE}.damaged")

    stopped.start("--init")

    assert stopped.node.file(f"{STATE}/node.key").read_bytes() == node


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ("echo x > node.key", "node.key: is damaged; put it back from a backup"),
        ("chmod 644 node.key", "node.key: has mode 0644"),
        ("rm node.key", "node.key is not the key that mesh.db belongs to"),
        ("chown 65534 node.key", "node.key: belongs to user 65534"),
        ("rm mesh.db && mkdir mesh.db", "mesh.db: cannot be read: Is a directory"),
        ("cd .. && rm -r mesh0 && touch mesh0", "mesh0: is there and is no directory"),
    ],
)
def test_a_damaged_state_directory_is_left_as_it_is(stopped, harm, says):
    stopped.sh(f"cd {STATE} && {harm}")

    with stopped.unchanged():
        outcome = stopped.meshd()

    outcome.refuses(1, says)
