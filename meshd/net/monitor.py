"""Tells when the host's links, addresses or routes change.

The kernel's notifications are used as a bell, not as news: whoever hears it observes again, so a
notice may be lost, doubled or late without harm.  All that rang while nobody listened is one
notice.  An overrun of the socket's queue (ENOBUFS) is a notice too: `RESYNC`.

    kernel: ADDRESS ROUTE ROUTE ········ LINK ADDRESS ···
    wait(): ADDRESS|ROUTE → (observe, apply) → LINK|ADDRESS → …
"""

from __future__ import annotations

import enum
import errno
import socket
import struct
from typing import Final, Self

import trio

from meshd.errors import DeviceError
from meshd.net.closing import Closing

# linux/rtnetlink.h
RTMGRP_LINK = 0x1
RTMGRP_IPV4_IFADDR = 0x10
RTMGRP_IPV4_ROUTE = 0x40
RTMGRP_IPV6_IFADDR = 0x100
RTMGRP_IPV6_ROUTE = 0x400
GROUPS = (
    RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
)

HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
ALIGNMENT = 4
MESSAGE_BYTES_MAX = 65536
NOTICES_MAX = 256  # read in one go, so that an endless storm still lets others run


class Change(enum.Flag):
    """What a notice is about."""

    LINK = enum.auto()
    ADDRESS = enum.auto()
    ROUTE = enum.auto()
    RESYNC = enum.auto()  # the kernel dropped notices: anything may have changed


CHANGE_OF_TYPE: Final = {
    16: Change.LINK,  # RTM_NEWLINK
    17: Change.LINK,  # RTM_DELLINK
    20: Change.ADDRESS,  # RTM_NEWADDR
    21: Change.ADDRESS,  # RTM_DELADDR
    24: Change.ROUTE,  # RTM_NEWROUTE
    25: Change.ROUTE,  # RTM_DELROUTE
}
NOTHING = Change(0)


class NetworkMonitor(Closing):
    """Hears of everything that happens from the moment it is made."""

    def __init__(self) -> None:
        self._overrun = False
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            self._socket.bind((0, GROUPS))
        except OSError as exc:
            self._socket.close()
            raise DeviceError("listen for network changes", exc.errno or 0) from exc

    def close(self) -> None:
        """Stop listening; a task that waits gets trio.ClosedResourceError."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        return await self.wait()

    async def wait(self) -> Change:
        """Wait for the next notice, and return all that has changed since the last one."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            if change := self._drain():
                return change

    def _drain(self) -> Change:
        change = NOTHING
        for _ in range(NOTICES_MAX):
            try:
                data = self._socket.recv(MESSAGE_BYTES_MAX)
            except BlockingIOError:
                self._overrun = False
                break
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise DeviceError("hear of network changes", exc.errno or 0) from exc
                # Told once; the kernel goes on dropping until the queue has been emptied.
                self._overrun = True
                change |= Change.RESYNC
            else:
                change |= parse_notices(data)
                if self._overrun:
                    change |= Change.RESYNC
        return change


def parse_notices(data: bytes) -> Change:
    """Return what a read from the kernel is about; only the messages' headers are looked at."""
    change = NOTHING
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _flags, _sequence, _port = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return change | Change.RESYNC
        change |= CHANGE_OF_TYPE.get(kind, NOTHING)
        offset += -(-length // ALIGNMENT) * ALIGNMENT
    return change
