"""The gossip socket, inside the tunnel: UDP on our overlay IPv6 address.

It is bound to the interface as well as to the address.  A datagram for our address that came in
anywhere else has not been through WireGuard, so its source would be nobody's word.

    kernel:    … → WireGuard: allowed-ips checked → interface → socket
    LAN:       … → eth0: to the same address      → interface ✗

The socket may be made before the address is there.  An interface that was deleted and made anew
is another one to the kernel, even under the old name: call `rebind` when its index has changed.

A member whose daemon has ended still has a kernel, and that answers each datagram at once: nobody
has this port.  The kernel here puts such ICMP errors into the socket's error queue:

    our datagram ──▶ tunnel ──▶ kernel of the member ✗ port 7946
    error queue  ◀── tunnel ◀── ICMPv6 1/4 from the member's own address (the offender)

Rule 1: only a port unreachable counts, and only if the offender is whom the datagram was for.
        WireGuard lets a member use no address but its own, so that nobody speaks for another.

Rule 2: an error that is waiting makes the next call fail instead of doing its work.  A datagram
        to one member must not be lost for the error of another's, so it is sent once more.

Rule 3: what wakes us is taken away before we wait again: the queue keeps a socket readable.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final

import trio

from meshd.errors import DeviceError, StartError
from meshd.net.closing import Closing
from meshd.net.datagram import ANCILLARY_BYTES, Counters, drain, open_socket, send

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.codec import IPAddress
    from meshd.net.datagram import Datagram, SocketStatistics
    from meshd.wg.types import Endpoint

GOSSIP_PORT = 7946
IPV6_FREEBIND = 78  # linux/in6.h
IPV6_RECVERR = 25  # linux/in6.h

# linux/errqueue.h: `struct sock_extended_err` with the offender, a `struct sockaddr_in6`, behind it
EXTENDED_ERROR: Final = struct.Struct("=I3B9x")  # errno, origin, type, code
OFFENDER: Final = struct.Struct("=H6x16s4x")  # family, address
# What the socket tells of each datagram comes first, so there has to be room for it too.
REPORT_BYTES = ANCILLARY_BYTES + socket.CMSG_SPACE(EXTENDED_ERROR.size + OFFENDER.size)
ORIGIN_ICMP6 = 3  # SO_EE_ORIGIN_ICMP6
PORT_UNREACHABLE = (1, 4)  # ICMPv6 type and code (RFC 4443, section 3.1)
REPORTS_MAX = 64  # taken in one go

# What the kernel makes of ICMPv6 errors (net/ipv6/icmp.c: icmpv6_err_convert).
REPORTED_ERRNOS: Final = frozenset({
    errno.EACCES,
    errno.ECONNREFUSED,
    errno.EHOSTUNREACH,
    errno.EMSGSIZE,
    errno.ENETUNREACH,
    errno.EPROTO,
})  # fmt: skip


class Overlay(Closing):
    """The socket.  Its interface must exist, and may be down."""

    def __init__(self, address: IPv6Address, interface: str, *, port: int = GOSSIP_PORT) -> None:
        """Bind.  Raise StartError where another program has the port, DeviceError otherwise."""
        self._counters = Counters()
        self._socket = open_socket(socket.AF_INET6)
        self._interface = interface
        self._unreachable: dict[IPv6Address, None] = {}  # an ordered set
        try:
            self._socket.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            self._socket.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
            self.rebind()
            self._bind(address, port)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket; a task that waits gets trio.ClosedResourceError."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    def rebind(self) -> None:
        """Follow the interface's name to what bears it at present.  Raise DeviceError."""
        try:
            self._socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._interface.encode()
            )
        except OSError as exc:
            raise DeviceError(f"bind to interface {self._interface}", exc.errno or 0) from exc

    async def receive_batch(self) -> list[Datagram]:
        """Wait until the socket is readable, and return what is there: perhaps nothing.

        Whose daemon turned out to be gone meanwhile, `take_unreachable` tells.
        """
        await trio.lowlevel.wait_readable(self._socket)
        self._drain_reports()
        return drain(self._socket, self._counters)

    def take_unreachable(self) -> list[IPv6Address]:
        """Return those whose own kernel has said that nobody gossips there, and forget them."""
        unreachable, self._unreachable = list(self._unreachable), {}
        return unreachable

    def send(self, payload: bytes, target: Endpoint, source: IPAddress | None = None) -> bool:
        """Send a datagram, or lose it and count why.  Return whether the kernel took it."""
        return send(self._socket, self._counters, payload, target, source, again_on=REPORTED_ERRNOS)

    def statistics(self) -> SocketStatistics:
        """Return what went through so far."""
        return self._counters.statistics()

    def _drain_reports(self) -> None:
        """Take what ICMP errors our datagrams have met with."""
        for _ in range(REPORTS_MAX):
            try:
                _, ancillary, _, target = self._socket.recvmsg(0, REPORT_BYTES, socket.MSG_ERRQUEUE)
            except BlockingIOError:
                return
            except OSError as exc:
                self._counters.receive_failed(exc)
                continue
            offender = self._offender(ancillary)
            if offender is None:
                continue
            if target and IPv6Address(target[0]) == offender:
                self._counters.unreachable += 1
                self._unreachable[offender] = None
            else:
                self._counters.reported(errno.ECONNREFUSED)

    def _offender(self, ancillary: Iterable[tuple[int, int, bytes]]) -> IPv6Address | None:
        """Return who says that the port is unreachable; None if it says something else."""
        for level, kind, data in ancillary:
            if (level, kind) != (socket.IPPROTO_IPV6, IPV6_RECVERR):
                continue
            number, origin, type_, code = EXTENDED_ERROR.unpack_from(data)
            if origin == ORIGIN_ICMP6 and (type_, code) == PORT_UNREACHABLE:
                family, address = OFFENDER.unpack_from(data, EXTENDED_ERROR.size)
                if family == socket.AF_INET6:
                    return IPv6Address(address)
            self._counters.reported(number)
        return None

    def _bind(self, address: IPv6Address, port: int) -> None:
        try:
            self._socket.bind((str(address), port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise StartError(
                    f"UDP port {port} of {address} is taken by another program, and members "
                    f"gossip there: `ss -lunp 'sport = :{port}'` shows which; stop it"
                ) from exc
            raise DeviceError(f"bind to [{address}]:{port}", exc.errno or 0) from exc
