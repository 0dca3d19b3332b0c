"""Starting meshd on a node, in the way that suits the machine the lab runs on.

`Start.EXEC` runs `python -m meshd` as a user would.  `Start.FORK` forks this process, which has
imported meshd beforehand, and calls its entry point: in the virtual machine the imports alone
take two seconds, and twenty nodes are to start in the time of one.
"""

from __future__ import annotations

import enum
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lablib import console, forking
from lablib.namespace import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lablib.forking import Process
    from lablib.namespace import Namespace

PROJECT = Path(__file__).resolve().parents[2]
IN_VM = "MLAB_IN_VM"  # set in the environment of what runs in the virtual machine


class Start(enum.Enum):
    """How a daemon is started."""

    EXEC = "exec"
    FORK = "fork"

    @classmethod
    def default(cls) -> Start:
        """Return what suits this machine."""
        return cls.FORK if os.environ.get(IN_VM) else cls.EXEC


def start(
    namespace: Namespace, args: Sequence[str], log: Path, env: Mapping[str, str], how: Start
) -> Process:
    """Start meshd inside; its output is appended to the log."""
    with log.open("ab") as output:
        if how is Start.FORK:
            return _fork(namespace, args, output.fileno(), env)
        return namespace.popen(
            [sys.executable, "-m", "meshd", *args],
            env={"PYTHONPATH": str(PROJECT), **env},
            stdout=output,
            stderr=subprocess.STDOUT,
            new_session=True,
        )


def preload() -> Callable[[Sequence[str]], int | None]:
    """Import meshd into this process and return its entry point."""
    if str(PROJECT) not in sys.path:
        sys.path.insert(0, str(PROJECT))
    # The entry point leaves what is heavy to be imported later; here it is wanted beforehand.
    for name in ("meshd.daemon.daemon", "pyroute2"):
        importlib.import_module(name)
    main: Callable[[Sequence[str]], int | None] = importlib.import_module("meshd.cli").main
    return main


def _fork(
    namespace: Namespace, args: Sequence[str], output: int, env: Mapping[str, str]
) -> Process:
    console.command(namespace.name, ["meshd", *args])
    main = preload()

    def child() -> int | None:
        os.environ.clear()
        os.environ.update(environment(env))
        sys.argv = ["meshd", *args]
        namespace.enter()
        return main(args)

    return forking.fork(child, "meshd", output=output)
