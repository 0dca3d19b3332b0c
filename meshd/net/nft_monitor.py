"""Tells when somebody takes nftables rules away.

Like `meshd.net.monitor` this is a bell, not news: whoever hears it looks at what is there.  What is
added or counted does not ring; what is removed does, and so does an overrun of the socket's queue
(ENOBUFS).  Our own removals ring as well: one look more.

    kernel: NEWRULE NEWSETELEM DELTABLE DELRULE DELCHAIN ···
    wait():                    └── once ──────────────┘
"""

from __future__ import annotations

from meshd.net.notices import Notices, message_types

NETLINK_NETFILTER = 12  # linux/netlink.h
NFTABLES_GROUP = 1 << (7 - 1)  # NFNLGRP_NFTABLES, linux/netfilter/nfnetlink.h
NFTABLES_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES, the upper byte of a message's type
# linux/netfilter/nf_tables.h: table, chain, rule, set, element of a set
REMOVALS = frozenset({2, 5, 8, 11, 14})


class RulesMonitor(Notices):
    """Hears of every removal in this network namespace from the moment it is made."""

    def __init__(self) -> None:
        """Raise DeviceError."""
        super().__init__(NETLINK_NETFILTER, NFTABLES_GROUP, "changes of nftables")

    async def wait(self) -> None:
        """Wait until something was removed since the last time.  Raise DeviceError."""
        removed = False
        while not removed:
            await self.wait_readable()
            for data in self.drain():
                removed = removed or data is None or tells_of_removal(data)


def tells_of_removal(data: bytes) -> bool:
    """Whether a read from the kernel says that something was removed."""
    return any(
        kind is None or (kind >> 8 == NFTABLES_SUBSYSTEM and kind & 0xFF in REMOVALS)
        for kind in message_types(data)
    )
