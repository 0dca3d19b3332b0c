"""Probes over TCP, inside the tunnel: another way to a member than the gossip socket's.

Where datagrams are lost, or blocked by somebody's firewall, a member may still answer here.

    client                                    server, on 7946/tcp of its overlay address
      │── connect ──────────────────────────────▶│ a member's?  fewer than 2 of its, 64 in all?
      │── length (2 bytes, big endian), frame ──▶│ the engine is asked
      │◀── length, frame ────────────────────────│
      │◀── end ──────────────────────────────────│

Rule 1: one frame in, one frame out.  Nothing behind it is read, and nothing longer than a gossip
        datagram is waited for.

Rule 2: a connection has a time to end in, whatever the other side does.  One that does not end
        well is reset, so that the kernel forgets it as well.

Rule 3: what a network does is counted and never raised.  A probe that fails has no answer, and
        that is all its sender needs to know.

Like the gossip socket both sides are bound to the interface: what comes in anywhere else has not
been through WireGuard.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final

import trio

from meshd.errors import DeviceError, StartError
from meshd.net.closing import Closing
from meshd.net.datagram import TRANSIENT_ERRNOS
from meshd.net.overlay import GOSSIP_PORT, IPV6_FREEBIND

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from trio.socket import SocketType

LENGTH: Final = struct.Struct("!H")
FRAME_BYTES_MAX = 1232  # as long as a gossip datagram may be

CONNECTIONS_MAX = 64  # that are served at once
CONNECTIONS_PER_SOURCE_MAX = 2
CONNECTION_TIMEOUT = 2.0
EXCHANGES_MAX = 32  # of our own, at once
EXHAUSTED_PAUSE = 0.1  # a listener stays readable while there is no descriptor to accept with

RESET: Final = struct.pack("=ii", 1, 0)  # SO_LINGER: on, for no time

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_TRANSIENT_ERRNOS: Final = TRANSIENT_ERRNOS | {
    errno.EADDRINUSE,  # no port is left to connect from
    errno.ECONNABORTED,  # reset before it was accepted
    errno.ECONNRESET,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOTCONN,  # reset before it was answered
    errno.EPIPE,
}


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """What has been asked of us and by us since the sockets were made."""

    answered: int  # connections that got a frame
    refused: Mapping[str, int] = field(default_factory=dict)  # those that did not, by reason
    exchanged: int = 0  # exchanges of ours that brought a frame
    failed: Mapping[str, int] = field(default_factory=dict)  # those that did not, by reason


class _BadFrame(Exception):
    """The other side did not keep to the protocol.  Nothing of ours has changed."""


class Streams(Closing):
    """The listening socket, and what is connected.  The interface must exist, and may be down."""

    def __init__(self, address: IPv6Address, interface: str, *, port: int = GOSSIP_PORT) -> None:
        """Listen.  Raise StartError where another program has the port, DeviceError otherwise."""
        self._address = address
        self._interface = interface
        self._port = port
        self._connections: Counter[IPv6Address] = Counter()  # being served, by source
        self._exchanging = 0
        self._answered = 0
        self._exchanged = 0
        self._refused: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # A restart must not wait for the connections of the run before to be forgotten.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._set_limits(listener)
            self._follow_interface(listener)
            self._listen(listener)
        except BaseException:
            listener.close()
            raise
        self._listener = trio.socket.from_stdlib_socket(listener)

    def close(self) -> None:
        """Stop listening; a task that serves gets trio.ClosedResourceError."""
        self._listener.close()

    def rebind(self) -> None:
        """Follow the interface's name to what bears it at present.  Raise DeviceError."""
        self._follow_interface(self._listener)

    def statistics(self) -> StreamStatistics:
        """Return the counts so far."""
        return StreamStatistics(
            answered=self._answered,
            refused=dict(sorted(self._refused.items())),
            exchanged=self._exchanged,
            failed=dict(sorted(self._failed.items())),
        )

    # Being asked

    async def serve(
        self,
        answer: Callable[[bytes, IPv6Address], Awaitable[bytes | None]],
        *,
        is_member: Callable[[IPv6Address], bool],
    ) -> None:
        """Answer until cancelled.

        `answer` is given each frame and whose address it came from, and returns the frame to send
        back, or None to drop the connection.
        """
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    connection, peer = await self._listener.accept()
                except OSError as error:
                    self._refused[_reason(error)] += 1
                    if error.errno in _EXHAUSTED:
                        await trio.sleep(EXHAUSTED_PAUSE)
                    continue
                source = IPv6Address(peer[0])
                refusal = self._refusal(source, is_member)
                if refusal is not None:
                    self._refused[refusal] += 1
                    _reset(connection)
                    continue
                # Counted here and not in the task, which does not run before the next is accepted.
                self._connections[source] += 1
                nursery.start_soon(self._serve_one, connection, source, answer)

    def _refusal(self, source: IPv6Address, is_member: Callable[[IPv6Address], bool]) -> str | None:
        if not is_member(source):
            return "not a member"
        if self._connections.total() >= CONNECTIONS_MAX:
            return "too many"
        if self._connections[source] >= CONNECTIONS_PER_SOURCE_MAX:
            return "too many of one member"
        return None

    async def _serve_one(
        self,
        connection: SocketType,
        source: IPv6Address,
        answer: Callable[[bytes, IPv6Address], Awaitable[bytes | None]],
    ) -> None:
        refusal = "too slow"
        try:
            with trio.move_on_after(CONNECTION_TIMEOUT):
                frame = await answer(await _receive_frame_untrusted(connection), source)
                if frame is None:
                    refusal = "no answer to that"
                else:
                    await _send_frame(connection, frame)
                    refusal = ""
        except _BadFrame as error:
            refusal = str(error)
        except OSError as error:
            refusal = _reason(error)
        finally:
            self._connections[source] -= 1
            if not self._connections[source]:
                del self._connections[source]
            if refusal:
                _reset(connection)
            else:
                connection.close()
        if refusal:
            self._refused[refusal] += 1
        else:
            self._answered += 1

    # Asking

    async def exchange(self, frame: bytes, target: IPv6Address, *, within: float) -> bytes | None:
        """Send a frame to a member, and return the one it answers with.

        None if none came within so many seconds, for whatever reason, or if as many exchanges as
        there may be are under way.
        """
        if self._exchanging >= EXCHANGES_MAX:
            self._failed["too many"] += 1
            return None
        self._exchanging += 1
        failure = "no answer in time"
        try:
            with trio.move_on_after(within):
                answer = await self._exchange(frame, target)
                self._exchanged += 1
                return answer
        except _BadFrame as error:
            failure = str(error)
        except OSError as error:
            failure = _reason(error)
        finally:
            self._exchanging -= 1
        self._failed[failure] += 1
        return None

    async def _exchange(self, frame: bytes, target: IPv6Address) -> bytes:
        plain = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        connection = trio.socket.from_stdlib_socket(plain)
        try:
            self._set_limits(plain)
            self._bind_to_interface(plain)
            plain.bind((str(self._address), 0))
            await connection.connect((str(target), self._port))
            await _send_frame(connection, frame)
            answer = await _receive_frame_untrusted(connection)
        except BaseException:
            _reset(connection)
            raise
        connection.close()
        return answer

    # Sockets

    def _set_limits(self, endpoint: socket.socket) -> None:
        endpoint.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        # A connection inherits it from the listener: unacknowledged data is soon given up.
        milliseconds = int(CONNECTION_TIMEOUT * 1000)
        endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def _bind_to_interface(self, endpoint: socket.socket | SocketType) -> None:
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._interface.encode())

    def _follow_interface(self, listener: socket.socket | SocketType) -> None:
        try:
            self._bind_to_interface(listener)
        except OSError as exc:
            raise DeviceError(f"bind to interface {self._interface}", exc.errno or 0) from exc

    def _listen(self, listener: socket.socket) -> None:
        try:
            listener.bind((str(self._address), self._port))
            listener.listen(CONNECTIONS_MAX)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise StartError(
                    f"TCP port {self._port} of {self._address} is taken by another program, and "
                    f"members probe each other there: `ss -ltnp 'sport = :{self._port}'` shows "
                    "which; stop it"
                ) from exc
            raise DeviceError(f"listen on [{self._address}]:{self._port}", exc.errno or 0) from exc


async def _send_frame(connection: SocketType, frame: bytes) -> None:
    data = memoryview(LENGTH.pack(len(frame)) + frame)
    while data:
        data = data[await connection.send(data) :]


async def _receive_frame_untrusted(connection: SocketType) -> bytes:
    (length,) = LENGTH.unpack(await _receive_exactly(connection, LENGTH.size))
    if length > FRAME_BYTES_MAX:
        raise _BadFrame("frame too long")
    return await _receive_exactly(connection, length)


async def _receive_exactly(connection: SocketType, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await connection.recv(count - len(data))
        if not more:
            raise _BadFrame("ended early")
        data += more
    return data


def _reset(connection: SocketType) -> None:
    """Close a connection, and have the kernel forget it at once."""
    if connection.fileno() >= 0:  # a connect that was cancelled has closed it
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()


def _reason(error: OSError) -> str:
    """Return the errno's name to count by; raise on what only a bug of ours can cause."""
    if error.errno not in _TRANSIENT_ERRNOS:
        raise error
    return errno.errorcode[error.errno]
