"""The warden of a lab: ends it when the program that made it has died without doing so.

A program that is killed, or runs out of memory, takes nothing down.  So each lab has a child of
that program beside it, in a session of its own, that waits for the program's death:

    program ── up ─────────────── down ── dismiss          the warden is ended, with nothing to do
               └ warden ─ waits on the program's pidfd
    program ── up ── killed
               └ warden ──── takes the lab down

1. The lab it takes down is the very one it was made for: its directory is held open, and compared
   with the one that has the name at the end.
2. A lab that is to outlive its program, as with `lab up`, has its warden dismissed by `Lab.keep`.
"""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING

from lablib import forking

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def post(directory: Path, take_down: Callable[[], object]) -> forking.ForkedProcess:
    """Fork a warden off; once this process has ended it calls `take_down`."""
    program = os.getpid()

    def wait_and_take_down() -> None:
        lab = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        _wait_for_the_end_of_parent(program)
        if _is(directory, lab):
            take_down()

    null = os.open(os.devnull, os.O_WRONLY)
    try:
        return forking.fork(wait_and_take_down, f"warden of {directory.name}", output=null)
    finally:
        os.close(null)


def dismiss(warden: forking.ForkedProcess) -> None:
    """End a warden that is not needed any more."""
    warden.send_signal(signal.SIGKILL)
    warden.wait()


def _wait_for_the_end_of_parent(parent: int) -> None:
    try:
        pidfd = os.pidfd_open(parent)
    except ProcessLookupError:
        return
    # Its number may be another's by the time it was opened, but then it is not our parent's.
    if os.getppid() == parent:
        select.select([pidfd], [], [])
    os.close(pidfd)


def _is(directory: Path, opened: int) -> bool:
    try:
        return os.path.samestat(directory.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False
