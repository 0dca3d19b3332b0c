"""How `meshctl` ends."""

from __future__ import annotations

import enum

from meshd.errors import MeshdError


class Exit(enum.IntEnum):
    """Exit statuses: scripts rely on them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_DAEMON = 3
    NOT_ALLOWED = 4
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Failed(MeshdError):
    """A command cannot do what it was asked to; the message says why, and what to do."""

    def __init__(self, status: Exit, message: str) -> None:
        super().__init__(message)
        self.status = status
