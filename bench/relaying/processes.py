"""Processes in network namespaces, and the CPU that they, or all of the machine, have used."""

from __future__ import annotations

import os
import signal
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from net.namespaces import Namespace

TICKS = os.sysconf("SC_CLK_TCK")
NICENESS = -15
AUTOGROUP = Path("/proc/self/autogroup")  # man 7 sched: niceness counts inside a session only
_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq: man 5 proc


def come_first() -> None:
    """Come before other programs, so that what is measured is not whoever else uses the machine."""
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    with suppress(OSError):  # a kernel without it
        AUTOGROUP.write_text(str(NICENESS))


@contextmanager
def running(namespace: Namespace, function: Callable[[], None]) -> Iterator[int]:
    """Run a function in a process of its own inside a namespace; yield its id, and end it."""
    pid: int = namespace.call(lambda: _fork(function))
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _fork(function: Callable[[], None]) -> int:
    # Forked in a thread that has entered the namespace, the child has that thread alone.
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    return pid


def cpu_of(*pids: int) -> float:
    """Return the CPU seconds of processes, and of what they have left to the kernel's threads.

    What a kernel forwards is charged to whoever was running when the packet came, and where there
    is too much of it, to `ksoftirqd`.
    """
    return sum(_runtime(pid) for pid in (*pids, *_SOFTIRQ_THREADS))


def cpu_of_all() -> float:
    """Return the CPU seconds of the whole machine, interrupts included."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(fields[index]) for index in _BUSY) / TICKS


def _runtime(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _softirq_threads() -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has just ended
            if path.read_text().startswith("ksoftirqd/"):
                yield int(path.parent.name)


_SOFTIRQ_THREADS = tuple(_softirq_threads())
