"""What the lab tells the person at the terminal, and the commands it shows with -v."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_verbose = False


def set_verbose(*, verbose: bool) -> None:
    """Choose whether `command` prints."""
    global _verbose
    _verbose = verbose


def say(text: str = "") -> None:
    """Print a line for people, at once."""
    print(text, flush=True)


def command(where: str, argv: Sequence[str], stdin: str | None = None) -> None:
    """With -v, print a command and where it runs; what it is fed follows, indented."""
    if not _verbose:
        return
    print(f"[{where}] {shlex.join(argv)}", file=sys.stderr)
    for line in (stdin or "").splitlines():
        print(f"[{where}]     {line}", file=sys.stderr)
    sys.stderr.flush()
