"""Tells when somebody takes nftables rules away.

Like `meshd.net.monitor` this is a bell, not news: whoever hears it looks at what is there.  What is
added or counted does not ring; what is removed does, and so does an overrun of the socket's queue
(ENOBUFS).  Our own removals ring as well: one look more.

    kernel: NEWRULE NEWSETELEM DELTABLE DELRULE DELCHAIN ···
    wait():                    └── once ──────────────┘
"""

from __future__ import annotations

import errno
import socket

import trio

from meshd.errors import DeviceError
from meshd.net.closing import Closing
from meshd.net.monitor import ALIGNMENT, HEADER, MESSAGE_BYTES_MAX, NOTICES_MAX

NETLINK_NETFILTER = 12  # linux/netlink.h
NFTABLES_GROUP = 1 << (7 - 1)  # NFNLGRP_NFTABLES, linux/netfilter/nfnetlink.h
NFTABLES_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES, the upper byte of a message's type
# linux/netfilter/nf_tables.h: table, chain, rule, set, element of a set
REMOVALS = frozenset({2, 5, 8, 11, 14})


class RulesMonitor(Closing):
    """Hears of every removal in this network namespace from the moment it is made."""

    def __init__(self) -> None:
        """Raise DeviceError."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
        )
        try:
            self._socket.bind((0, NFTABLES_GROUP))
        except OSError as exc:
            self._socket.close()
            raise DeviceError("listen for changes of nftables", exc.errno or 0) from exc

    def close(self) -> None:
        """Stop listening; a task that waits gets trio.ClosedResourceError."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    async def wait(self) -> None:
        """Wait until something was removed since the last time.  Raise DeviceError."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            if self._drain():
                return

    def _drain(self) -> bool:
        removed = False
        for _ in range(NOTICES_MAX):
            try:
                data = self._socket.recv(MESSAGE_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise DeviceError("hear of changes of nftables", exc.errno or 0) from exc
                removed = True
            else:
                removed |= tells_of_removal(data)
        return removed


def tells_of_removal(data: bytes) -> bool:
    """Whether a read from the kernel says that something was removed; by the headers alone."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _flags, _sequence, _port = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return True
        if kind >> 8 == NFTABLES_SUBSYSTEM and kind & 0xFF in REMOVALS:
            return True
        offset += -(-length // ALIGNMENT) * ALIGNMENT
    return False
