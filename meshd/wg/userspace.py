"""WireGuard in a process of its own, wireguard-go, by its control socket.

The process is not meshd's child in life: it runs in a session of its own, holds none of our
files, and survives whatever happens to us.  Its socket is what is left to find it again by, and
taking the socket file away is what ends it:

    start_userspace ─▶ wireguard-go ─▶ daemon ── serves ──▶ /var/run/wireguard/<interface>.sock
                       (opens TUN and socket, forks, exits)
    stop_userspace ─▶ unlink the socket ─▶ the daemon ends, and the interface with it

The directory is shared by all network namespaces, but an interface belongs to one of them.  A
socket is ours only if it listens in our own: the kernel lists the unix sockets of each namespace
apart (`/proc/net/unix`).  SO_PEERCRED does not tell, since it names the process that called
listen(2), and that is the one which has forked and gone.

boringtun is not supported: as of 0.7 it does not know `update_only`, and panics when a peer that
exists is changed.
"""

from __future__ import annotations

import enum
import errno
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from meshd.errors import DeviceError, StartError
from meshd.wg.uapi import ANSWER_END, GET_REQUEST, StatusReader, encode_set, raise_for_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.wg.types import DeviceChange, DeviceStatus

SOCKET_DIRECTORY = Path("/var/run/wireguard")  # compiled into wireguard-go
PROGRAM = "wireguard-go"
TUN_DEVICE = Path("/dev/net/tun")

ANSWER_TIMEOUT = 2.0  # seconds without a byte; one request takes wireguard-go some 20 ms
ANSWER_BYTES_MAX = 64 * 1024 * 1024  # 65,536 peers are 21 MiB
RECEIVE_BYTES = 256 * 1024
FORK_TIMEOUT = 20.0  # 20 ms as a rule; seconds in a busy virtual machine
SERVE_TIMEOUT = 1.0  # its socket is there when it forks
STOP_TIMEOUT = 5.0
POLL_INTERVAL = 0.005
COMPLAINT_CHARACTERS_MAX = 200

UNIX_SOCKETS = Path("/proc/thread-self/net/unix")
SO_ACCEPTCON = 0x10000  # linux/net.h: the flag of a socket that listens


class SocketState(enum.Enum):
    """What is behind a control socket's path."""

    ABSENT = "nothing"
    STALE = "a file that nobody listens on"
    OURS = "a process in our network namespace"
    FOREIGN = "a process in another network namespace"


class UserspaceDevice:
    """A WireGuard interface of a wireguard-go process."""

    def __init__(self, interface: str, *, directory: Path = SOCKET_DIRECTORY) -> None:
        """Name the interface; whether anybody serves it is first seen by `observe`."""
        self._interface = interface
        self._path = socket_path(interface, directory)
        self._verified: tuple[int, int, int] | None = None
        self._reader = StatusReader()

    @property
    def backend(self) -> str:
        """`userspace`."""
        return "userspace"

    def observe(self) -> DeviceStatus:
        """Return the device with all its peers."""
        answer = self._exchange(GET_REQUEST, f"read WireGuard interface {self._interface}")
        return self._reader.read(answer)

    def apply(self, change: DeviceChange) -> None:
        """Make a change, peers in the order given: some 60 µs for each that is new."""
        for request in encode_set(change):
            self._exchange(request, f"change WireGuard interface {self._interface}")

    def close(self) -> None:
        """Do nothing: each request has a connection of its own.  The process stays."""

    def _exchange(self, request: bytes, operation: str) -> bytes:
        try:
            with _connected(self._path) as connection:
                self._verify(operation)
                connection.sendall(request)
                answer = _receive(connection)
        except TimeoutError:
            raise DeviceError(operation, errno.ETIMEDOUT) from None
        except OSError as exc:
            raise DeviceError(operation, exc.errno or errno.EIO) from exc
        raise_for_error(answer, operation)
        return answer

    def _verify(self, operation: str) -> None:
        """Let no key out to a process that serves another namespace's interface."""
        file = self._path.stat()
        identity = (file.st_dev, file.st_ino, file.st_ctime_ns)
        if identity == self._verified:
            return
        if not _listens_here(self._path):
            text = f"{operation} ({self._path} is served from another network namespace)"
            raise DeviceError(text, errno.EPERM)
        self._verified = identity


def socket_path(interface: str, directory: Path = SOCKET_DIRECTORY) -> Path:
    """Return where an interface's control socket is."""
    return directory / f"{interface}.sock"


def socket_state(interface: str, directory: Path = SOCKET_DIRECTORY) -> SocketState:
    """Find out whether somebody serves an interface, and from where.  Raise DeviceError."""
    path = socket_path(interface, directory)
    try:
        _connected(path).close()
    except FileNotFoundError:
        return SocketState.ABSENT
    except ConnectionRefusedError:
        return SocketState.STALE
    except OSError as exc:
        raise DeviceError(f"connect to {path}", exc.errno or errno.EIO) from exc
    return SocketState.OURS if _listens_here(path) else SocketState.FOREIGN


def start_userspace(interface: str, *, directory: Path = SOCKET_DIRECTORY) -> UserspaceDevice:
    """Start wireguard-go for a new interface in the caller's network namespace.

    Blocks until the process serves its socket, some 20 ms and at most `FORK_TIMEOUT` and
    `SERVE_TIMEOUT`: call it in a thread.  `directory` is where the socket is looked for; where it
    is put is compiled in.
    Raise StartError, and leave nothing behind.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise StartError(
            f"there is no WireGuard here: the kernel has none and {PROGRAM} is not in PATH; "
            f"install the Debian package {PROGRAM}, or a kernel with WireGuard (Linux 5.6)"
        )
    _require_tun()
    _clear_socket(interface, directory)
    try:
        # Neither environment nor files of ours: there may be secrets in them, and the process
        # will outlive us.  It logs nowhere, and complains on standard output before it forks.
        finished = subprocess.run(
            [program, interface],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={},
            start_new_session=True,
            timeout=FORK_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        socket_path(interface, directory).unlink(missing_ok=True)
        raise StartError(f"cannot start {program}: {exc}") from exc
    if finished.returncode != 0:
        raise StartError(
            f"{program} cannot make interface {interface}: {_complaint(finished.stdout)}"
        )
    if not _wait_until(
        lambda: socket_state(interface, directory) is SocketState.OURS, SERVE_TIMEOUT
    ):
        socket_path(interface, directory).unlink(missing_ok=True)
        raise StartError(
            f"{program} was started for interface {interface}, but nobody serves "
            f"{socket_path(interface, directory)}"
        )
    return UserspaceDevice(interface, directory=directory)


def stop_userspace(interface: str, *, directory: Path = SOCKET_DIRECTORY) -> None:
    """End the process behind an interface, and the interface with it.

    Blocks until both are gone, for up to `STOP_TIMEOUT` seconds: call it in a thread.  Raise
    DeviceError when they are not, or when the process is in another network namespace.
    """
    path = socket_path(interface, directory)
    operation = f"end the WireGuard process of interface {interface}"
    if socket_state(interface, directory) is SocketState.FOREIGN:
        raise DeviceError(f"{operation} ({path} is another network namespace's)", errno.EPERM)
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        raise DeviceError(operation, exc.errno or errno.EIO) from exc
    if not _wait_until(lambda: not _listens_here(path) and not _exists(interface), STOP_TIMEOUT):
        raise DeviceError(operation, errno.ETIMEDOUT)


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(ANSWER_TIMEOUT)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _receive(connection: socket.socket) -> bytes:
    answer = bytearray()
    while not answer.endswith(ANSWER_END):
        received = connection.recv(RECEIVE_BYTES)
        if not received:
            raise OSError(errno.ECONNRESET, "answer cut short")
        answer += received
        if len(answer) > ANSWER_BYTES_MAX:
            raise OSError(errno.EMSGSIZE, "answer too long")
    return bytes(answer)


def _listens_here(path: Path) -> bool:
    """Whether a unix socket of this name listens in the calling thread's network namespace."""
    wanted = path.name.encode()
    for line in UNIX_SOCKETS.read_bytes().splitlines()[1:]:
        # address: references protocol flags type state inode path
        columns = line.split(maxsplit=7)
        if len(columns) < 8 or not int(columns[3], 16) & SO_ACCEPTCON:
            continue
        directory, _, name = columns[7].rpartition(b"/")
        if name == wanted and Path(os.fsdecode(directory)).resolve() == path.parent.resolve():
            return True
    return False


def _exists(interface: str) -> bool:
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True


def _require_tun() -> None:
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        raise StartError(
            f"cannot open {TUN_DEVICE}, which {PROGRAM} needs ({exc.strerror}): "
            "modprobe tun, or give the container this device"
        ) from exc


def _clear_socket(interface: str, directory: Path) -> None:
    """Make room for a new process where an old one's socket is left.

    A process whose interface has been deleted may still be on its way out, and would take the
    next one's socket file with it.
    """
    state = socket_state(interface, directory)
    if state is SocketState.FOREIGN:
        raise StartError(
            f"{socket_path(interface, directory)} belongs to a WireGuard process in another "
            "network namespace: choose another --interface, or mount a directory of its own "
            "over /run/wireguard"
        )
    if state is not SocketState.ABSENT:
        stop_userspace(interface, directory=directory)


def _complaint(output: bytes) -> str:
    """Return the last line of what a program has printed, made fit for one line of ours."""
    lines = output.decode("utf-8", "replace").split("\n")
    text = next((line for line in reversed(lines) if line.strip()), "it does not say why")
    printable = "".join(character for character in text if character.isprintable())
    return printable.strip()[:COMPLAINT_CHARACTERS_MAX]


def _wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL)
    return True
