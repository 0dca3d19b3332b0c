"""What both ends of a TCP connection that carries datagrams have in common: `meshd.carrier`.

    member                                                        relay host
    WireGuard ─▶ 127.0.0.1:a ─▶ frame ═══════ TCP ═══════ frame ─▶ 127.109.0.1:b ─▶ its port
              ◀─             ◀─                                 ◀─               ◀─

To WireGuard and to meshd either end looks like an ordinary endpoint on the same host, so that all
protocols go on as they are.

Rule 1: nothing queues here.  What TCP does not take at once waits in the receive buffers of the UDP
        sockets, and the kernel drops what is too much for these: what is carried sees loss, as it
        would on a slow link, and slows down.  TCP holds little that it has not sent yet.

Rule 2: a datagram counts only if it comes from a port of this host's that is meant to be carried.

Rule 3: what a network does, and whatever the other side does, ends a connection with a reason.
"""

from __future__ import annotations

import errno
import math
import socket
from typing import TYPE_CHECKING, NamedTuple

import trio

from meshd.carrier.frames import DATAGRAM_BYTES_MAX, Frame, FrameReader, encode_frame
from meshd.errors import BadPacket
from meshd.net.datagram import BATCH_MAX, TRANSIENT_ERRNOS
from meshd.underlay import MAGIC

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable, Iterable

LOOPBACK = "127.0.0.1"
UDP_BUFFER_BYTES = 64 * 1024  # of each socket: half a second at 1 Mbit/s
UNSENT_BYTES = 32 * 1024  # that TCP may hold besides what is on its way
TCP_BUFFER_BYTES = 512 * 1024  # of one connection: what may be on its way
READ_BYTES = 32 * 1024

# A connection whose other side is gone is found out within 15 s, with data on its way or without.
TCP_DEAD_AFTER = 15.0
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 9, 2, 3

TCP_NOTSENT_LOWAT = 25  # linux/tcp.h; Python names it from 3.12 on
SO_SNDBUFFORCE = 32  # asm-generic/socket.h


class OwnPort(NamedTuple):
    """The ports of WireGuard and of meshd, which are one where they share it."""

    wireguard: int
    control: int

    def taking(self, datagram: bytes) -> int:
        """Return the one of them that a datagram is for."""
        return self.control if datagram.startswith(MAGIC) else self.wireguard


def open_inner(address: str, *, fwmark: int) -> socket.socket:
    """Return a UDP socket on a loopback address, with a port that the kernel chooses."""
    inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER_BYTES)
        if fwmark:
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, fwmark)
        inner.bind((address, 0))
    except BaseException:
        inner.close()
        raise
    return inner


def tune(outer: socket.socket | trio.socket.SocketType, *, fwmark: int) -> None:
    """Make a TCP socket fit for datagrams: prompt, with little in store, and soon known dead."""
    tcp = socket.IPPROTO_TCP
    outer.setsockopt(tcp, socket.TCP_NODELAY, 1)
    outer.setsockopt(tcp, TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    outer.setsockopt(tcp, socket.TCP_USER_TIMEOUT, int(TCP_DEAD_AFTER * 1000))
    outer.setsockopt(tcp, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    outer.setsockopt(tcp, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    outer.setsockopt(tcp, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    outer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    try:
        outer.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, TCP_BUFFER_BYTES)
    except PermissionError:
        outer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TCP_BUFFER_BYTES)
    if fwmark:
        outer.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, fwmark)


class Connection:
    """One TCP connection, after TLS if there is any, and what it carries."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        counts: Counter[str],
        *,
        unanswered_max: float = math.inf,
    ) -> None:
        """Take a stream, and where to count why datagrams are dropped.

        No more than `unanswered_max` frames are read before something has gone the other way.
        """
        self._stream = stream
        self._counts = counts
        self._unanswered_max = unanswered_max
        self._sending = trio.Lock()
        self._answered = trio.Event()
        self.frames_in = 0
        self.frames_out = 0
        self.sent_at = trio.current_time()

    async def bring(self, deliver: Callable[[Frame], None]) -> str:
        """Give out what comes, until the connection ends.  Return why it did."""
        reader = FrameReader()
        while True:
            try:
                data = await self._stream.receive_some(READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return "broken"
            if not data:
                return "ended"
            try:
                frames = reader.receive_untrusted(bytes(data))
            except BadPacket as exc:
                return exc.reason
            for frame in frames:
                if self._says_too_much:
                    self._counts["before it was answered"] += 1
                else:
                    self.frames_in += 1
                    deliver(frame)
            if self._says_too_much:
                await self._answered.wait()

    async def take(self, inner: socket.socket, port_of: Callable[[int], int | None]) -> str:
        """Send off what a UDP socket gets, until the connection ends.  Return why it did.

        `port_of` gives the port to name for a datagram from a port of this host's, or None.  Raise
        trio.ClosedResourceError when the socket is closed meanwhile.
        """
        while True:
            await _wait_readable(inner)
            frames = [
                encode_frame(Frame(port, datagram))
                for datagram, source in self._drain(inner)
                if (port := port_of(source)) is not None
            ]
            if not frames:
                continue
            try:
                async with self._sending:
                    await self._stream.send_all(b"".join(frames))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return "broken"
            self.frames_out += len(frames)
            self.sent_at = trio.current_time()
            self._answered.set()

    @property
    def _says_too_much(self) -> bool:
        return not self.frames_out and self.frames_in >= self._unanswered_max

    def _drain(self, inner: socket.socket) -> Iterable[tuple[bytes, int]]:
        """Return datagrams from this host, each with the port it came from."""
        for _ in range(BATCH_MAX):
            try:
                datagram, (address, port) = inner.recvfrom(DATAGRAM_BYTES_MAX + 1)
            except BlockingIOError:
                return
            if address != LOOPBACK or not 0 < len(datagram) <= DATAGRAM_BYTES_MAX:
                self._counts["not to be carried"] += 1
                continue
            yield datagram, port

    def inject(self, inner: socket.socket, datagram: bytes, port: int) -> None:
        """Send a datagram to a port of this host, or lose it and count why."""
        try:
            inner.sendto(datagram, (LOOPBACK, port))
        except OSError as exc:
            if exc.errno not in TRANSIENT_ERRNOS:
                raise
            self._counts[errno.errorcode[exc.errno]] += 1


async def _wait_readable(inner: socket.socket) -> None:
    """Wait for a datagram; other tasks may close the socket meanwhile, or have done so."""
    if inner.fileno() >= 0:
        await trio.lowlevel.wait_readable(inner)
    if inner.fileno() < 0:
        raise trio.ClosedResourceError


async def until_one_ends(tasks: Iterable[Callable[[], Awaitable[str]]]) -> str:
    """Run tasks until the first of them ends, and return what it returns."""
    reasons: list[str] = []
    async with trio.open_nursery() as nursery:

        async def run(task: Callable[[], Awaitable[str]]) -> None:
            reasons.append(await task())
            nursery.cancel_scope.cancel()

        for task in tasks:
            nursery.start_soon(run, task)
    return reasons[0]
