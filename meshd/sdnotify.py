"""Telling systemd how we are: sd_notify(3), without libsystemd.

Without a supervisor everything here does nothing.  With one that does not listen it does nothing
either: a daemon does not fail because nobody wants to know.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MICROSECONDS = 1_000_000


class Notifier:
    """The way to the supervisor.  No method blocks or raises."""

    def __init__(self, address: str | None, watchdog_timeout: float | None = None) -> None:
        self._socket: socket.socket | None = None
        # Half of the timeout, as sd_watchdog_enabled(3) recommends.
        self.watchdog_interval = None if watchdog_timeout is None else watchdog_timeout / 2
        if address is not None and address[:1] in {"/", "@"}:
            # An abstract address is written with @ and begins with a zero byte.
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._socket = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Notifier:
        """Return a notifier for NOTIFY_SOCKET and WATCHDOG_USEC."""
        timeout = None
        microseconds = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if ours and microseconds.isascii() and microseconds.isdigit() and int(microseconds):
            timeout = int(microseconds) / MICROSECONDS
        return cls(environment.get("NOTIFY_SOCKET"), timeout)

    def ready(self, status: str) -> None:
        """Say that start, or reloading, is complete."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Say in words how things are: `systemctl status` shows it."""
        self._send(f"STATUS={status}")

    def reloading(self, now: float) -> None:
        """Say that the configuration is being read again; `now` is CLOCK_MONOTONIC."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={int(now * MICROSECONDS)}")

    def stopping(self) -> None:
        """Say that the daemon is about to end."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Say that the main loop turns: due every `watchdog_interval`."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        message = "\n".join(line.replace("\n", " ") for line in lines)
        with suppress(OSError):  # the supervisor has gone, or its queue is full
            self._socket.sendto(message.encode(), self._address)
