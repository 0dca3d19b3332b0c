"""Running a Python function in a forked child, where starting a Python anew would cost too much.

In the virtual machine an interpreter that imports meshd takes seconds to start and a fork takes
milliseconds, so what the lab runs often (pings, and there the daemons too) is forked off.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from lablib.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable

OPEN_FILES_MAX = 65536  # file descriptors above this one are not closed in a child


class Process(Protocol):
    """A child of ours, forked or executed: what `subprocess.Popen` offers as well."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def poll(self) -> int | None:
        """Return the exit status, minus the signal that ended it, or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status.  Raise subprocess.TimeoutExpired."""

    def send_signal(self, sig: int, /) -> None:
        """Send a signal, unless it has ended."""


class ForkedProcess:
    """A forked child."""

    def __init__(self, pid: int, what: str) -> None:
        self.pid = pid
        self._what = what
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, minus the signal that ended it, or None while it runs."""
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # the end of the lab came first
                self._status = -signal.SIGKILL
            else:
                if pid == self.pid:
                    self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status.  Raise subprocess.TimeoutExpired."""
        if self.poll() is None:
            pidfd = os.pidfd_open(self.pid)  # of our own child, so it cannot be another's
            select.select([pidfd], [], [], timeout)
            os.close(pidfd)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self._what, timeout or 0.0)
        return status

    def send_signal(self, sig: int, /) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)


def fork(function: Callable[[], int | None], what: str, *, output: int) -> ForkedProcess:
    """Run a function in a child with a session of its own; its return value is the exit status.

    Its standard output and error are the file descriptor `output`, its input is empty, and it has
    no other file descriptor of ours.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # Idle worker threads of another library hold no lock, and the child makes none go on.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _run_child(function, output)
    return ForkedProcess(pid, what)


NAME_LENGTH_MAX = 200  # of a file in memory: the kernel takes 249


class BackgroundCall:
    """A function that runs in a forked child and whose result, which must be JSON, is wanted."""

    def __init__(self, function: Callable[[], Any], what: str) -> None:
        self._what = what
        # A file in memory rather than a pipe: nobody has to read for the child to get on.
        self._output = os.memfd_create(what[:NAME_LENGTH_MAX])

        def child() -> None:
            json.dump(function(), sys.stdout)

        self.process = fork(child, what, output=self._output)

    def begun(self) -> bool:
        """Whether the function has written anything, be it blank, to standard output."""
        return os.fstat(self._output).st_size > 0

    def result(self, timeout: float | None = None) -> Any:  # noqa: ANN401 - whatever JSON holds
        """Wait for the result, once.  Raise LabError where the function raised anything."""
        status = self.process.wait(timeout)
        with open(self._output, encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            file.seek(0)
            output = file.read()
        if status != 0:
            raise LabError(f"{self._what}: {output.strip() or f'exit status {status}'}")
        return json.loads(output)

    def cancel(self) -> None:
        """End the child and forget its result."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._output)


def call(function: Callable[[], Any], what: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Run a function in a child and return its result: see BackgroundCall."""
    return BackgroundCall(function, what).result()


def _run_child(function: Callable[[], int | None], output: int) -> NoReturn:
    """Become a process like one that was just started, run the function, and end."""
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, OPEN_FILES_MAX)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - lasts as long as the process
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        logging.root.handlers.clear()
        warnings.resetwarnings()
        status = function() or 0
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
