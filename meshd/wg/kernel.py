"""WireGuard in the kernel, by generic netlink.

Everything is synchronous: the kernel does its work while `send` runs, and its answer is there when
that returns.  A device belongs to the network namespace in which it was opened.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from meshd.errors import DeviceError
from meshd.wg.genetlink import (
    GENL_ID_CTRL,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    decode_family,
    encode_get_family,
    frame,
    raise_for_error,
    split_messages,
)
from meshd.wg.netlink import WG_GENL_NAME, DeviceReader, encode_get_device, encode_set_device

if TYPE_CHECKING:
    from meshd.wg.genetlink import Message, Request
    from meshd.wg.types import DeviceChange, DeviceStatus

# linux/netlink.h
NETLINK_GENERIC = 16
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11

RECEIVE_BYTES_MAX = 64 * 1024  # the kernel makes a dump's datagrams no longer than 32 KiB
ANSWER_TIMEOUT = 2.0  # seconds; the kernel answers before `send` returns
DUMP_ATTEMPTS_MAX = 5
SEQUENCE_MODULUS = 2**32


class KernelDevice:
    """A WireGuard interface of the kernel's."""

    def __init__(self, interface: str) -> None:
        """Connect to the kernel's WireGuard.

        Raise DeviceError, with ENOENT when the kernel has none.  That the interface does not
        exist, or is something else, is first seen by `observe`.
        """
        self._interface = interface
        self._connection = _Connection()
        try:
            self._family = self._connection.family(WG_GENL_NAME)
        except DeviceError:
            self._connection.close()
            raise

    @property
    def backend(self) -> str:
        """`kernel`."""
        return "kernel"

    def observe(self) -> DeviceStatus:
        """Return the device with all its peers."""
        operation = f"read WireGuard interface {self._interface}"
        for _ in range(DUMP_ATTEMPTS_MAX):
            answer = self._connection.exchange(
                encode_get_device(self._interface), self._family, operation
            )
            # Somebody else's change while the dump was made: it may lack what was moved.
            if any(message.flags & NLM_F_DUMP_INTR for message in answer):
                continue
            reader = DeviceReader()
            for message in answer:
                reader.feed(message.payload)
            return reader.status()
        raise DeviceError(operation, errno.EINTR)

    def apply(self, change: DeviceChange) -> None:
        """Make a change, peers in the order given."""
        operation = f"change WireGuard interface {self._interface}"
        for request in encode_set_device(self._interface, change):
            self._connection.exchange(request, self._family, operation)

    def close(self) -> None:
        """Close the netlink socket.  The interface and its sessions stay."""
        self._connection.close()


class _Connection:
    """A generic netlink socket: one request at a time, each with its answer."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        except OSError as exc:
            raise DeviceError("open generic netlink", exc.errno or errno.EIO) from exc
        # An error is to come with the kernel's words, and without our request: it holds keys.
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.settimeout(ANSWER_TIMEOUT)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def family(self, name: str) -> int:
        """Return the number of a generic netlink family."""
        request = encode_get_family(name)
        answer = self.exchange(request, GENL_ID_CTRL, f"find {name} in the kernel")
        return decode_family(b"".join(message.payload for message in answer))

    def exchange(self, request: Request, family: int, operation: str) -> list[Message]:
        """Send a request and return the messages of its answer.

        Raise DeviceError when the kernel refuses.
        """
        self._sequence = (self._sequence + 1) % SEQUENCE_MODULUS
        answer: list[Message] = []
        try:
            self._socket.sendto(frame(request, family, self._sequence), (0, 0))
            while True:
                for message in self._receive():
                    # An answer that came too late for the request before is nobody's.
                    if message.sequence != self._sequence:
                        continue
                    if message.type in {NLMSG_ERROR, NLMSG_DONE}:
                        raise_for_error(message, operation)
                        return answer
                    answer.append(message)
        except TimeoutError as exc:
            raise DeviceError(operation, errno.ETIMEDOUT) from exc
        except OSError as exc:
            raise DeviceError(operation, exc.errno or errno.EIO) from exc

    def _receive(self) -> list[Message]:
        datagram, _, flags, (port, _) = self._socket.recvmsg(RECEIVE_BYTES_MAX)
        if flags & socket.MSG_TRUNC:
            raise OSError(errno.EMSGSIZE, "netlink datagram truncated")
        # Port 0 is the kernel; another process may send to us as well.
        return split_messages(datagram) if port == 0 else []
