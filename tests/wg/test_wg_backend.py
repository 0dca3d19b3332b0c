"""Opening, adopting and deleting interfaces, and everything that can be in the way."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from meshd.errors import DeviceError, StartError
from meshd.keys import WireGuardPrivateKey
from meshd.wg import backend as backends
from meshd.wg import userspace
from meshd.wg.backend import delete_device, open_device
from meshd.wg.kernel import KernelDevice
from meshd.wg.types import DeviceChange
from meshd.wg.userspace import SocketState, UserspaceDevice, socket_path, socket_state
from wg.wg_backends import KERNEL, REAL
from wg.wg_namespaces import (
    another_network,
    eventually,
    isolated,
    mount,
    run,
    wireguard_processes,
)

NAME = "wgtest0"
OURS = WireGuardPrivateKey(b"\x11" * 32)
THEIRS = WireGuardPrivateKey(b"\x22" * 32)
REPOSITORY = Path(__file__).parents[2]

each_backend = pytest.mark.parametrize("backend", REAL)


@pytest.fixture(autouse=True)
def _isolated(request):
    if request.node.get_closest_marker("netns") is None:
        yield
        return
    with isolated():
        yield


def index_of(name=NAME):
    return socket.if_nametoindex(name)


def interfaces():
    return {name for _, name in socket.if_nameindex()}


def in_a_process(code, *, prefix=()):
    """Run code in a Python of its own; return its exit status and what it printed."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.netns
@each_backend
def test_an_interface_is_made_and_deleted_without_a_trace(backend):
    device = open_device(NAME, backend=backend)
    assert device.backend == backend
    assert interfaces() == {"lo", NAME}

    delete_device(NAME, device)

    assert interfaces() == {"lo"}
    assert wireguard_processes() == []
    assert socket_state(NAME) is SocketState.ABSENT


@pytest.mark.netns
@each_backend
def test_deleting_what_is_gone_already_is_nothing(backend):
    device = open_device(NAME, backend=backend)
    run("ip", "link", "delete", NAME)

    delete_device(NAME, device)
    delete_device(NAME, device)


@pytest.mark.netns
@each_backend
@pytest.mark.parametrize("asked_again", ["auto", None], ids=["auto", "by name"])
def test_an_interface_is_adopted_as_it_stands(backend, asked_again):
    first = open_device(NAME, backend=backend)
    first.apply(DeviceChange(private_key=OURS, listen_port=51821))
    index, processes = index_of(), wireguard_processes()
    first.close()

    second = open_device(NAME, backend=asked_again or backend, private_key=OURS)

    assert second.observe().private_key == OURS
    assert second.observe().listen_port == 51821
    assert second.backend == backend
    assert (index_of(), wireguard_processes()) == (index, processes)
    second.close()


@pytest.mark.netns
@each_backend
def test_an_interface_that_holds_another_key_is_not_adopted(backend):
    device = open_device(NAME, backend=backend)
    device.apply(DeviceChange(private_key=THEIRS))

    with pytest.raises(StartError, match="somebody else's WireGuard") as refused:
        open_device(NAME, private_key=OURS)

    assert device.observe().private_key == THEIRS
    assert THEIRS.hex() not in str(refused.value)
    device.close()


@pytest.mark.netns
@each_backend
def test_an_interface_without_a_key_is_adopted(backend):
    open_device(NAME, backend=backend).close()

    open_device(NAME, private_key=OURS).close()


@pytest.mark.netns
def test_the_kernel_is_preferred():
    device = open_device(NAME)

    assert device.backend == ("kernel" if KERNEL else "userspace")
    device.close()


if KERNEL:

    @pytest.mark.netns
    @pytest.mark.parametrize(("there", "asked"), [("kernel", "userspace"), ("userspace", "kernel")])
    def test_an_interface_of_the_other_backend_is_refused_by_name(there, asked):
        device = open_device(NAME, backend=there)

        with pytest.raises(StartError, match=f"choose --backend {there}"):
            open_device(NAME, backend=asked)
        device.close()

    @pytest.mark.netns
    def test_an_interface_deleted_under_a_kernel_device_is_no_such_device():
        device = open_device(NAME, backend="kernel")
        run("ip", "link", "delete", NAME)

        with pytest.raises(DeviceError, match=rf"^read WireGuard interface {NAME}") as failed:
            device.observe()
        assert failed.value.errno == errno.ENODEV
        device.close()

    @pytest.mark.netns
    def test_an_interface_of_another_kind_is_no_kernel_device():
        device = KernelDevice("lo")

        with pytest.raises(DeviceError) as failed:
            device.observe()
        assert failed.value.errno == errno.EOPNOTSUPP
        device.close()

    @pytest.mark.netns
    def test_a_port_in_use_is_refused_in_the_kernels_words():
        device = open_device(NAME, backend="kernel")
        run("ip", "link", "set", NAME, "up")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 51821))
            with pytest.raises(DeviceError) as failed:
                device.apply(DeviceChange(listen_port=51821))
        assert failed.value.errno == errno.EADDRINUSE
        device.close()

else:

    @pytest.mark.netns
    def test_a_kernel_without_wireguard_says_so_and_what_to_do():
        with pytest.raises(StartError, match="kernel has no WireGuard: modprobe wireguard"):
            open_device(NAME, backend="kernel")
        assert interfaces() == {"lo"}

    @pytest.mark.netns
    def test_a_kernel_without_wireguard_has_no_such_family():
        with pytest.raises(DeviceError) as failed:
            KernelDevice(NAME)
        assert failed.value.errno == errno.ENOENT

    @pytest.mark.netns
    def test_no_wireguard_at_all_names_what_to_install(monkeypatch):
        monkeypatch.setenv("PATH", "/nonexistent")

        with pytest.raises(StartError, match="install the Debian package wireguard-go"):
            open_device(NAME)


@pytest.mark.netns
@pytest.mark.parametrize("backend", ["auto", *REAL])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        ("ip link add {} type bridge", "a bridge interface"),
        ("ip link add {} type veth peer name other", "a veth interface"),
        ("ip tuntap add {} mode tun", "a tun interface that no WireGuard serves"),
    ],
    ids=["bridge", "veth", "tun"],
)
def test_an_interface_of_another_kind_is_refused_and_left_alone(make, kind, backend):
    run(*make.format(NAME).split())
    index = index_of()

    with pytest.raises(StartError, match=f"{NAME} is in use by something else .{kind}"):
        open_device(NAME, backend=backend)

    assert index_of() == index


@pytest.mark.netns
def test_an_interface_of_no_kind_is_refused():
    with pytest.raises(StartError, match="a hardware or loopback interface"):
        open_device("lo")


@pytest.mark.netns
@each_backend
def test_a_name_too_long_is_refused_in_one_line(backend):
    with pytest.raises(StartError) as refused:
        open_device("a-name-longer-than-any", backend=backend)

    assert "a-name-longer-than-any" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.netns
@each_backend
def test_without_the_capability_it_says_which_one_is_missing(backend):
    status, output = in_a_process(
        "from meshd.errors import StartError\n"
        "from meshd.wg.backend import open_device\n"
        f"try: open_device({NAME!r}, backend={backend!r})\n"
        "except StartError as error: print(error)",
        prefix=("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"),
    )

    assert status == 0
    assert output == (
        f"cannot set up interface {NAME}: root here lacks CAP_NET_ADMIN; run meshd as root, "
        "or grant it this capability\n"
    )


def test_importing_the_backend_does_not_import_pyroute2():
    code = "import meshd.wg.backend, sys; sys.exit('pyroute2' in sys.modules)"

    assert in_a_process(code) == (0, "")


@pytest.mark.netns
def test_without_a_tun_device_it_says_so():
    mount("tmpfs", "/dev/net", "tmpfs")

    with pytest.raises(StartError, match=r"cannot open /dev/net/tun.*modprobe tun"):
        open_device(NAME, backend="userspace")


@pytest.mark.netns
def test_what_wireguard_go_complains_of_is_in_the_error():
    mount("tmpfs", "/var/run", "tmpfs", flags=1)  # read-only: no place for the socket

    with pytest.raises(StartError, match=r"wireguard-go cannot make interface wgtest0: .*"):
        open_device(NAME, backend="userspace")
    assert interfaces() == {"lo"}


@pytest.mark.netns
def test_wireguard_go_has_nothing_of_ours(monkeypatch, tmp_path):
    monkeypatch.setenv("MESHD_SECRET", "a secret of ours")
    with (tmp_path / "file").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        open_device(NAME, backend="userspace")
        (number,) = wireguard_processes()

        process = Path("/proc", str(number))
        files = {}
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it is at work: files come and go
                files[entry.name] = str(entry.readlink())
        assert not any(str(tmp_path) in target or "/dev/pts" in target for target in files.values())
        assert [files[standard] for standard in "012"] == ["/dev/null"] * 3
        assert (process / "environ").read_bytes().count(b"secret") == 0
        assert str((process / "cwd").readlink()) == "/"
        assert os.getsid(number) != os.getsid(0)


@pytest.mark.netns
def test_wireguard_go_survives_the_death_of_who_started_it():
    status, _ = in_a_process(
        "import os\n"
        "from meshd.wg.backend import open_device\n"
        "from meshd.wg.types import DeviceChange\n"
        f"device = open_device({NAME!r}, backend='userspace')\n"
        "device.apply(DeviceChange(listen_port=51823))\n"
        "os.kill(os.getpid(), 9)"
    )
    assert status == -signal.SIGKILL

    assert open_device(NAME).observe().listen_port == 51823


@pytest.mark.netns
def test_the_socket_that_a_killed_wireguard_go_left_is_no_obstacle():
    device = open_device(NAME, backend="userspace")
    (process,) = wireguard_processes()
    os.kill(process, signal.SIGKILL)
    eventually(lambda: socket_state(NAME) is SocketState.STALE and NAME not in interfaces())
    with pytest.raises(DeviceError) as failed:
        device.observe()
    assert failed.value.errno == errno.ECONNREFUSED

    again = open_device(NAME, backend="userspace")

    assert again.observe().private_key is None
    assert device.observe() == again.observe()


@pytest.mark.netns
def test_wireguard_go_whose_interface_was_deleted_is_replaced():
    first = open_device(NAME, backend="userspace")
    first.apply(DeviceChange(private_key=OURS))
    run("ip", "link", "delete", NAME)

    second = open_device(NAME, backend="userspace")

    assert second.observe().private_key is None
    assert NAME in interfaces()


@pytest.mark.netns
def test_wireguard_go_of_another_network_namespace_is_not_ours():
    theirs = open_device(NAME, backend="userspace")
    theirs.apply(DeviceChange(private_key=THEIRS))

    with another_network():
        assert socket_state(NAME) is SocketState.FOREIGN
        with pytest.raises(StartError, match="another network namespace: choose another --inter"):
            open_device(NAME, backend="userspace")
        ours = UserspaceDevice(NAME)
        with pytest.raises(DeviceError, match="another network namespace") as failed:
            ours.apply(DeviceChange(private_key=OURS))
        assert failed.value.errno == errno.EPERM
        with pytest.raises(DeviceError, match="another network namespace"):
            delete_device(NAME, ours)

    assert theirs.observe().private_key == THEIRS


@pytest.mark.netns
def test_a_program_that_does_not_serve_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(userspace, "SERVE_TIMEOUT", 0.02)
    program = tmp_path / "wireguard-go"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    with pytest.raises(StartError, match=r"nobody serves /var/run/wireguard/wgtest0\.sock"):
        userspace.start_userspace(NAME)


def serve(directory, *, answer, name=NAME):
    """Answer one connection to a control socket with these bytes, then hang up."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(socket_path(name, directory)))
    listener.listen()

    def run_server():
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    server = threading.Thread(target=run_server)
    server.start()
    return server


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (b"", errno.ECONNRESET),
        (b"listen_port=1\n", errno.ECONNRESET),
        (b"rubbish\n\n", errno.EBADMSG),
        (b"errno=-22\n\n", errno.EINVAL),
        (b"listen_port=no number\nerrno=0\n\n", errno.EBADMSG),
    ],
)
def test_a_server_that_talks_rubbish_gives_a_device_error(tmp_path, answer, number):
    server = serve(tmp_path, answer=answer)

    with pytest.raises(DeviceError) as failed:
        UserspaceDevice(NAME, directory=tmp_path).observe()

    assert failed.value.errno == number
    server.join()


def test_an_endless_answer_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(userspace, "ANSWER_BYTES_MAX", 1000)
    server = serve(tmp_path, answer=b"x" * 1001)

    with pytest.raises(DeviceError) as failed:
        UserspaceDevice(NAME, directory=tmp_path).observe()

    assert failed.value.errno == errno.EMSGSIZE
    server.join()


def test_a_server_that_is_silent_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(userspace, "ANSWER_TIMEOUT", 0.02)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path(NAME, tmp_path)))
        listener.listen()

        with pytest.raises(DeviceError) as failed:
            UserspaceDevice(NAME, directory=tmp_path).observe()

    assert failed.value.errno == errno.ETIMEDOUT


def test_no_socket_is_no_such_file(tmp_path):
    with pytest.raises(DeviceError) as failed:
        UserspaceDevice(NAME, directory=tmp_path).observe()

    assert failed.value.errno == errno.ENOENT


def test_a_socket_counts_as_ours_by_whichever_path_it_is_named(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    server = serve(tmp_path, answer=b"errno=0\n\n")

    UserspaceDevice(NAME, directory=tmp_path / "link").observe()

    server.join()


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (b"", "it does not say why"),
        (b"banner\nERROR: (t) 2026 Failed\n\n", "ERROR: (t) 2026 Failed"),
        (b"\xff\x1b[31m" + b"x" * 500, "�[31m" + "x" * 195),
    ],
)
def test_a_complaint_is_one_short_printable_line(output, complaint):
    assert userspace._complaint(output) == complaint


def test_every_backend_has_a_name_that_can_be_asked_for():
    assert set(REAL) < set(backends.BACKENDS)
