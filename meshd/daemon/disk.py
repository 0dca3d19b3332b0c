"""Writes to the state that a disk may refuse for a while: full, read-only, failing.

The mesh goes on meanwhile.  What could not be written is a finding in `status`, and is tried again
until it is written; of each kind only the newest, because it says all that the older ones did.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from meshd.control.snapshot import HealthFinding
from meshd.errors import StartError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

RETRY_INTERVAL = 5.0


class Disk:
    """Keeps what has to be kept."""

    def __init__(self) -> None:
        self._unwritten: dict[str, Callable[[], object]] = {}  # by kind, oldest first
        self._error: StoreError | StartError | None = None

    def keep(self, kind: str, write: Callable[[], object]) -> None:
        """Call `write`, at once and, if the disk refuses it, again later."""
        try:
            write()
        except (StoreError, StartError) as error:
            if self._error is None:
                log.error("%s; the mesh goes on, but a restart would forget", error)
            self._error = error
            self._unwritten[kind] = write
        else:
            self._unwritten.pop(kind, None)

    async def run(self) -> None:
        """Try again what could not be written, until cancelled."""
        while True:
            await trio.sleep(RETRY_INTERVAL)
            self._retry()

    def findings(self) -> Iterator[HealthFinding]:
        """Say what a restart would forget."""
        if self._error is not None:
            yield HealthFinding(
                "error",
                "state",
                f"{self._error}; make room on that disk: a restart would forget what is new",
            )

    def _retry(self) -> None:
        if self._error is None:
            return
        try:
            for kind, write in list(self._unwritten.items()):
                write()
                del self._unwritten[kind]
        except (StoreError, StartError) as error:
            self._error = error
        else:
            self._error = None
            log.info("the state can be written again")
