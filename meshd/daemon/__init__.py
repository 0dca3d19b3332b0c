"""The trio shell around the engine: sockets, clocks, disks, the kernel.  It decides nothing.

`run` is the entry point; start reading at `daemon`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.collector import pause_collector

if TYPE_CHECKING:
    from meshd.config import Config


def run(config: Config) -> int:
    """Run a node until it is told to end, and return the exit status.

    Raise UsageError or StartError; nothing is left behind then that was not there before.
    """
    pause_collector()
    from meshd.daemon.daemon import run_daemon

    return run_daemon(config)
