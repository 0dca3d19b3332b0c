"""What the underlay's and the overlay's sockets have in common: batches in, counted sends out.

A wake-up drains up to `BATCH_MAX` datagrams, which costs a quarter of awaiting them one by one.

A send never raises for what a network does: addresses vanish, routes come and go, firewalls and
WireGuard refuse.  Such a datagram is lost, as datagrams are, and counted by its errno.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from meshd.codec import IPAddress

BATCH_MAX = 64
ADDRESSES_MAX = 4096  # kept, that were read or written lately
DATAGRAM_BYTES_MAX = 2048  # above what meshd ever sends; a longer one is dropped and counted

# The default of 208 KiB holds some 90 datagrams, fewer than a mesh that starts all at once sends.
RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024

IP_PKTINFO = 8  # linux/in.h; Python names it from 3.14 on
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
PACKET_INFO_4: Final = struct.Struct("=i4s4s")  # interface, ours, the header's destination
PACKET_INFO_6: Final = struct.Struct("=16si")  # address, interface
ANCILLARY_BYTES = socket.CMSG_SPACE(PACKET_INFO_6.size)

TRANSIENT_ERRNOS: Final = frozenset({
    errno.EACCES,  # a prohibiting route, or a broadcast address
    errno.EADDRNOTAVAIL,  # IPv6: the source address has vanished
    errno.EAFNOSUPPORT,  # IPv6 is switched off
    errno.EAGAIN,  # the send buffer is full
    errno.ECONNREFUSED,  # an ICMP error that an earlier datagram caused
    errno.EDESTADDRREQ,  # WireGuard: the peer has no endpoint yet
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EINVAL,  # IPv4: the source address has vanished; an unreachable route
    errno.EIO,
    errno.EMSGSIZE,  # over the path's MTU
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOBUFS,
    errno.ENODEV,
    errno.ENOKEY,  # WireGuard: no peer has this address
    errno.ENOMEM,
    errno.ENXIO,
    errno.EPERM,  # a firewall's drop on output
    errno.EPROTO,  # an ICMPv6 parameter problem that an earlier datagram caused
    errno.ETIMEDOUT,
})  # fmt: skip


class Datagram(NamedTuple):
    """One received datagram."""

    payload: bytes
    source: Endpoint
    local: IPAddress  # the address it was sent to: an answer leaves from it


@dataclass(frozen=True, slots=True)
class SocketStatistics:
    """What went through a pair of sockets since they were made."""

    received: int
    sent: int
    oversized: int  # longer than `DATAGRAM_BYTES_MAX`
    unanswerable: int  # from a source that no endpoint can name: link-local, or port 0
    send_errors: Mapping[str, int] = field(default_factory=dict)  # errno's name to count
    receive_errors: Mapping[str, int] = field(default_factory=dict)
    unreachable: int = 0  # reports that the very address written to has nobody on that port
    other_reports: Mapping[str, int] = field(default_factory=dict)  # of the error queue, by errno


class Counters:
    """The counts behind `SocketStatistics`."""

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0
        self.oversized = 0
        self.unanswerable = 0
        self._send_errors: Counter[int] = Counter()
        self._receive_errors: Counter[int] = Counter()
        self.unreachable = 0
        self._other_reports: Counter[int] = Counter()

    def send_failed(self, error: OSError) -> None:
        """Count what the network did; raise on what only a bug of ours can cause."""
        self._count(self._send_errors, error)

    def receive_failed(self, error: OSError) -> None:
        """Count an error that the kernel reports in place of a datagram."""
        self._count(self._receive_errors, error)

    def reported(self, number: int) -> None:
        """Count what the error queue tells, and nobody acts on.  Any errno may be in it."""
        self._other_reports[number] += 1

    def statistics(self) -> SocketStatistics:
        """Return the counts so far."""
        return SocketStatistics(
            received=self.received,
            sent=self.sent,
            oversized=self.oversized,
            unanswerable=self.unanswerable,
            send_errors=_named(self._send_errors),
            receive_errors=_named(self._receive_errors),
            unreachable=self.unreachable,
            other_reports=_named(self._other_reports),
        )

    @staticmethod
    def _count(counter: Counter[int], error: OSError) -> None:
        if error.errno not in TRANSIENT_ERRNOS:
            raise error
        counter[error.errno] += 1


def _named(counter: Counter[int]) -> dict[str, int]:
    return {errno.errorcode.get(number, "?"): count for number, count in sorted(counter.items())}


def open_socket(family: socket.AddressFamily) -> socket.socket:
    """Return a non-blocking UDP socket that tells where each datagram was sent to."""
    endpoint = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    if family == socket.AF_INET6:
        endpoint.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        endpoint.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        endpoint.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    try:
        endpoint.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    except PermissionError:
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return endpoint


def drain(endpoint: socket.socket, counters: Counters) -> list[Datagram]:
    """Return the datagrams that are there, without waiting."""
    batch: list[Datagram] = []
    for _ in range(BATCH_MAX):
        try:
            payload, ancillary, flags, source = endpoint.recvmsg(
                DATAGRAM_BYTES_MAX, ANCILLARY_BYTES
            )
        except BlockingIOError:
            break
        except OSError as exc:
            counters.receive_failed(exc)
            continue
        if flags & socket.MSG_TRUNC:
            counters.oversized += 1
            continue
        address = _answerable(source[0])
        local = _local_address(ancillary)
        if local is None or address is None or source[1] == 0:
            counters.unanswerable += 1
            continue
        batch.append(Datagram(payload, Endpoint(address, source[1]), local))
    counters.received += len(batch)
    return batch


def send(
    endpoint: socket.socket,
    counters: Counters,
    payload: bytes,
    target: Endpoint,
    source: IPAddress | None = None,
    *,
    again_on: Container[int] = (),
) -> bool:
    """Send a datagram, from the address `source` if given.  Return whether the kernel took it.

    An errno of `again_on` may be that of an earlier datagram, so that is worth a second try.
    """
    ancillary = [] if source is None else [_packet_info(source)]
    address = _text(target.address), target.port
    try:
        try:
            endpoint.sendmsg([payload], ancillary, 0, address)
        except OSError as exc:
            if exc.errno not in again_on:
                raise
            endpoint.sendmsg([payload], ancillary, 0, address)
    except OSError as exc:
        counters.send_failed(exc)
        return False
    counters.sent += 1
    return True


# Reading and writing an address costs more than sending a datagram, and they are the same ones over
# and over.
@lru_cache(ADDRESSES_MAX)
def _answerable(text: str) -> IPAddress | None:
    address = ip_address(text)
    return None if address.is_link_local else address


@lru_cache(ADDRESSES_MAX)
def _text(address: IPAddress) -> str:
    return str(address)


@lru_cache(ADDRESSES_MAX)
def _ipv6(packed: bytes) -> IPv6Address:
    return IPv6Address(packed)


def _packet_info(source: IPAddress) -> tuple[int, int, bytes]:
    """Return the control message that makes a datagram leave from `source`."""
    if source.version == 6:
        return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, PACKET_INFO_6.pack(source.packed, 0)
    return socket.IPPROTO_IP, IP_PKTINFO, PACKET_INFO_4.pack(0, source.packed, bytes(4))


def _local_address(ancillary: Iterable[tuple[int, int, bytes]]) -> IPAddress | None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return _ipv6(PACKET_INFO_6.unpack(data)[0])
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            # `ipi_spec_dst` is ours even where the header's destination was a broadcast.
            return IPv4Address(PACKET_INFO_4.unpack(data)[1])
    return None
