"""Tells when the host's links, addresses or routes change.

The kernel's notifications are used as a bell, not as news: whoever hears it observes again, so a
notice may be lost, doubled or late without harm.  All that rang while nobody listened is one
notice.  An overrun of the socket's queue (ENOBUFS) is a notice too: `RESYNC`.

    kernel: ADDRESS ROUTE ROUTE ········ LINK ADDRESS ···
    wait(): ADDRESS|ROUTE → (observe, apply) → LINK|ADDRESS → …
"""

from __future__ import annotations

import enum
import socket
from typing import Final, Self

from meshd.net.notices import Notices, message_types

# linux/rtnetlink.h
RTMGRP_LINK = 0x1
RTMGRP_IPV4_IFADDR = 0x10
RTMGRP_IPV4_ROUTE = 0x40
RTMGRP_IPV6_IFADDR = 0x100
RTMGRP_IPV6_ROUTE = 0x400
GROUPS = (
    RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
)


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


class NetworkMonitor(Notices):
    """Hears of everything that happens from the moment it is made."""

    def __init__(self) -> None:
        """Raise DeviceError."""
        super().__init__(socket.NETLINK_ROUTE, GROUPS, "network changes")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        return await self.wait()

    async def wait(self) -> Change:
        """Wait for the next notice, and return all that has changed since the last one."""
        change = NOTHING
        while not change:
            await self.wait_readable()
            for data in self.drain():
                change |= Change.RESYNC if data is None else parse_notices(data)
        return change


def parse_notices(data: bytes) -> Change:
    """Return what a read from the kernel is about; only the messages' headers are looked at."""
    change = NOTHING
    for kind in message_types(data):
        change |= Change.RESYNC if kind is None else CHANGE_OF_TYPE.get(kind, NOTHING)
    return change
