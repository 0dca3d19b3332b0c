"""What the lab raises on purpose; anything else is a bug of the lab."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class LabError(Exception):
    """The lab cannot do what was asked.  The message is one line for people."""


class UsageError(LabError):
    """It was asked in a way that cannot be meant."""


class CommandFailed(LabError):
    """A command ended with a status other than 0."""

    def __init__(self, where: str, argv: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"{where}: {' '.join(argv)}: exit status {status}\n{output}".rstrip())
        self.status = status
        self.output = output


class DeadlineExceeded(LabError):
    """A condition did not come to hold in time."""
