"""Network and mount namespaces of a test's own, with wireguard-go's socket directory in them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from pathlib import Path

from meshd.wg.userspace import SOCKET_DIRECTORY, stop_userspace

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
DEADLINE = 20.0  # seconds; generous, because a virtual machine is ten times slower

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def isolated():
    """Put this thread into namespaces of its own, and end in them what is left at the end.

    `/run` is empty there, so that no socket of the host's is in the way, or the other way round.
    """
    directory = Path.cwd()
    with _returning("net"), _returning("mnt"):
        _check(_libc.unshare(CLONE_NEWNET | CLONE_NEWNS))
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        mount("tmpfs", "/run", "tmpfs")
        run("ip", "link", "set", "lo", "up")
        try:
            yield
        finally:
            for socket in SOCKET_DIRECTORY.glob("*.sock"):
                stop_userspace(socket.stem)
    os.chdir(directory)  # another mount namespace begins at its root


@contextlib.contextmanager
def another_network():
    """Put this thread into yet another network namespace, with the same files."""
    with _returning("net"):
        _check(_libc.unshare(CLONE_NEWNET))
        yield


def mount(source, target, kind, flags=0):
    encoded = (str(source).encode(), str(target).encode(), kind and kind.encode())
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), None))


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def eventually(condition):
    """Wait until something holds, and return what it is."""
    deadline = time.monotonic() + DEADLINE
    while not (outcome := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
    return outcome


def wireguard_processes():
    """The process ids of wireguard-go in this thread's network namespace."""
    here = Path("/proc/thread-self/ns/net").stat().st_ino
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (process / "comm").read_text().strip()
            if name == "wireguard-go" and (process / "ns/net").stat().st_ino == here:
                found.append(int(process.name))
    return found


@contextlib.contextmanager
def _returning(namespace):
    with Path(f"/proc/thread-self/ns/{namespace}").open() as before:
        try:
            yield
        finally:
            _check(_libc.setns(before.fileno(), 0))


def _check(outcome):
    if outcome != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
