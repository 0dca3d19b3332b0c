"""What netlink tells to all who listen: the reading that all its bells have in common.

Rule 1: an overrun of the socket's queue (ENOBUFS) is told once, and the kernel goes on dropping
        until the queue has been emptied: so each read until then is an overrun as well.

Rule 2: of a message only the header is looked at.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, Final

import trio

from meshd.errors import DeviceError
from meshd.net.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
ALIGNMENT = 4
MESSAGE_BYTES_MAX = 65536
NOTICES_MAX = 256  # read in one go, so that an endless storm still lets others run


class Notices(Closing):
    """A netlink socket in some groups, from the moment it is made until it is closed."""

    def __init__(self, protocol: int, groups: int, about: str) -> None:
        """Listen.  `about` names it in errors.  Raise DeviceError."""
        self._about = about
        self._overrun = False
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol
        )
        try:
            self._socket.bind((0, groups))
        except OSError as exc:
            self._socket.close()
            raise DeviceError(f"listen for {about}", exc.errno or 0) from exc

    def close(self) -> None:
        """Stop listening; a task that waits gets trio.ClosedResourceError."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    async def wait_readable(self) -> None:
        """Wait until there is something to `drain`."""
        await trio.lowlevel.wait_readable(self._socket)

    def drain(self) -> Iterator[bytes | None]:
        """Yield what can be read, at most `NOTICES_MAX` times; None where notices were dropped."""
        for _ in range(NOTICES_MAX):
            try:
                data = self._socket.recv(MESSAGE_BYTES_MAX)
            except BlockingIOError:
                self._overrun = False
                return
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise DeviceError(f"hear of {self._about}", exc.errno or 0) from exc
                self._overrun = True
            else:
                yield data
            if self._overrun:
                yield None


def message_types(data: bytes) -> Iterator[int | None]:
    """Yield the types of the messages in a read; None, and no more, where one is no message."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _flags, _sequence, _port = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            yield None
            return
        yield kind
        offset += -(-length // ALIGNMENT) * ALIGNMENT
