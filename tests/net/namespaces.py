"""Network namespaces for tests: named after this process, made, wired, and removed again."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
import threading
from pathlib import Path

CLONE_NEWNET = 0x40000000
PREFIX = f"mtest{os.getpid()}x"
_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """One namespace.  `run` and `call` do things inside it."""

    def __init__(self):
        self.name = f"{PREFIX}{next(_numbers)}"
        _run("ip", "netns", "add", self.name)
        self.run("ip link set lo up")

    def run(self, command, *, stdin=None):
        """Run a command line inside; return what it prints."""
        return _run("ip", "netns", "exec", self.name, "sh", "-ec", command, stdin=stdin)

    def call(self, function, *arguments, **keywords):
        """Call a function in a thread inside: sockets that it makes stay in the namespace."""
        outcome = []

        def inside():
            with (Path("/run/netns") / self.name).open() as handle:
                if _libc.setns(handle.fileno(), CLONE_NEWNET) != 0:
                    outcome.append(OSError(ctypes.get_errno(), "setns"))
                    return
            try:
                outcome.append((function(*arguments, **keywords),))
            except BaseException as exc:  # it is raised again in the caller's thread
                outcome.append(exc)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0][0]

    def start(self, *command, **keywords):
        """Start a process inside."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], **keywords)

    def close(self):
        """Remove the namespace; what is in it goes with it."""
        _run("ip", "netns", "del", self.name)


@contextlib.contextmanager
def namespaces(count):
    """Make some namespaces, and remove them whatever happens."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Namespace())) for _ in range(count)]


def join(one, one_name, other, other_name):
    """Connect two namespaces by a pair of interfaces, both up."""
    one.run(f"ip link add {one_name} type veth peer name {other_name} netns {other.name}")
    for namespace, name in ((one, one_name), (other, other_name)):
        # Duplicate address detection would take a second, and there is nobody to ask.
        namespace.run(f"sysctl -qw net.ipv6.conf.{name}.accept_dad=0; ip link set {name} up")


def _run(*command, stdin=None):
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout
