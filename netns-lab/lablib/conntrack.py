"""Forgetting all tracked connections of a namespace, as a router does that is switched off and on.

One netlink message (include/uapi/linux/netfilter/nfnetlink_conntrack.h), so no program is needed:

    nlmsghdr   length 20 | type ctnetlink, delete | request, ack | 0 | 0
    nfgenmsg   family: all | version 0 | 0                               and no tuple: every entry
"""

from __future__ import annotations

import os
import socket
import struct

NETLINK_NETFILTER = 12
NFNL_SUBSYS_CTNETLINK = 1
IPCTNL_MSG_CT_DELETE = 2
NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")
_FAMILY = struct.Struct("=BBH")
_ERROR = struct.Struct("=i")


def flush() -> None:
    """Forget all tracked connections of this process's network namespace.  Raise OSError."""
    kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
    length = _HEADER.size + _FAMILY.size
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as opened:
        opened.bind((0, 0))
        opened.send(
            _HEADER.pack(length, kind, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
            + _FAMILY.pack(socket.AF_UNSPEC, 0, 0)
        )
        answer = opened.recv(4096)
    _, answered, _, _, _ = _HEADER.unpack_from(answer)
    assert answered == NLMSG_ERROR, answered
    (number,) = _ERROR.unpack_from(answer, _HEADER.size)
    if number:
        raise OSError(-number, os.strerror(-number), "forgetting tracked connections")
