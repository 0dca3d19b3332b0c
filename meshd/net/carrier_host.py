"""The relay host's end: takes TCP connections, and injects what they carry into its own ports.

Each connection has a UDP socket of its own, and each client a loopback address of its own, so that
whoever counts by source and port, as the bootstrap does, tells clients apart as it does by UDP.

Rule 1: a frame reaches the port of WireGuard and meshd, or a relay port that is in use, on this
        host's loopback.  Nothing else is ever reached.

Rule 2: who has been answered knows a key of the mesh, for strangers never are.  Until then a
        connection has `UNANSWERED_FRAMES_MAX` and `UNANSWERED_TIMEOUT`; those that wait for an
        answer are few, and the oldest of them makes room for the newest.  So no number of strangers
        keeps a member out, and no more comes of them than by UDP.

Rule 3: a connection ends that has had nothing to carry to its client for `IDLE_TIMEOUT`.

Rule 4: TLS is there to pass where only TLS does.  Its certificate proves nothing, and is made anew
        with each start.
"""

from __future__ import annotations

import errno
import math
import socket
import struct
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Final

import trio

from meshd.bootstrap.limits import source_of
from meshd.carrier.frames import OWN_PORT
from meshd.errors import StartError
from meshd.net.carrier import Connection, open_inner, tune, until_one_ends
from meshd.net.closing import Closing
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Container, Iterator, Mapping

    from trio.socket import SocketType

    from meshd.carrier.frames import Frame
    from meshd.net.carrier import OwnPort

CONNECTIONS_MAX = 512
PER_CLIENT_MAX = 8  # a rack behind one NAT that lets no UDP through
UNANSWERED_MAX = 64  # of all connections
UNANSWERED_TIMEOUT = 10.0
UNANSWERED_FRAMES_MAX = 64  # a newcomer asks ten times in ten seconds, and again with a cookie
IDLE_TIMEOUT = 75.0  # gossip is heard far more often; three keepalives of WireGuard's
HANDSHAKE_TIMEOUT = 5.0  # of TLS
WATCH_INTERVAL = 1.0

ACCEPTS_PER_SECOND_MAX = 100  # each costs 0.3 ms, with TLS 2 ms
ACCEPTS_BURST_MAX = 200
BACKLOG = 128
EXHAUSTED_PAUSE = 0.1  # a listener stays readable while there is no descriptor to accept with

CLIENT_NETWORK = IPv4Address("127.109.0.0")

RESET: Final = struct.pack("=ii", 1, 0)  # SO_LINGER: on, for no time
_FAMILIES: Final = (
    (socket.AF_INET6, "::"),
    (socket.AF_INET, "0.0.0.0"),  # noqa: S104 - every address is the point
)
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class CarrierHostStatistics:
    """What has been carried since the listeners were made."""

    connections: int  # at present
    answered: int  # of those, that were answered
    accepted: int
    frames_in: int
    frames_out: int
    ended: Mapping[str, int] = field(default_factory=dict)  # connections, by reason
    dropped: Mapping[str, int] = field(default_factory=dict)  # datagrams, by reason


@dataclass(slots=True, eq=False)
class _Client:
    """One connection of a client's."""

    source: bytes
    scope: trio.CancelScope
    began_at: float
    connection: Connection | None = None  # None: TLS has not come about yet
    reason: str = ""  # why it was told to end

    @property
    def answered(self) -> bool:
        """Whether something of ours has gone to it."""
        return self.connection is not None and self.connection.frames_out > 0

    def end(self, reason: str) -> None:
        """Have it end soon."""
        self.reason = self.reason or reason
        self.scope.cancel()


class CarrierHost(Closing):
    """The listening sockets, and what is connected."""

    def __init__(
        self,
        ports: Mapping[int, ssl.SSLContext | None],
        own: OwnPort,
        *,
        fwmark: int = 0,
    ) -> None:
        """Listen on TCP ports, each with TLS or without.  Raise StartError."""
        self._own = own
        self._relay_ports: Callable[[], Container[int]] = frozenset
        self._fwmark = fwmark
        self._came: Callable[[Endpoint], None] = _ignore
        self._went: Callable[[Endpoint], None] = _ignore
        self._clients: dict[_Client, None] = {}  # oldest first
        self._addresses = _Addresses()
        self._accepted = 0
        self._frames_in = self._frames_out = 0  # of connections that have ended
        self._ended: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._paced_until = -math.inf
        self._listeners: list[tuple[SocketType, ssl.SSLContext | None]] = []
        try:
            for port, context in ports.items():
                for family, wildcard in _FAMILIES:
                    listener = _listen(family, wildcard, port, fwmark)
                    self._listeners.append((trio.socket.from_stdlib_socket(listener), context))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening; a task that serves gets trio.ClosedResourceError."""
        for listener, _ in self._listeners:
            listener.close()

    def statistics(self) -> CarrierHostStatistics:
        """Return the counts so far."""
        connections = [client.connection for client in self._clients if client.connection]
        return CarrierHostStatistics(
            connections=len(self._clients),
            answered=sum(client.answered for client in self._clients),
            accepted=self._accepted,
            frames_in=self._frames_in + sum(c.frames_in for c in connections),
            frames_out=self._frames_out + sum(c.frames_out for c in connections),
            ended=dict(sorted(self._ended.items())),
            dropped=dict(sorted(self._dropped.items())),
        )

    async def serve(
        self,
        *,
        relay_ports: Callable[[], Container[int]],
        came: Callable[[Endpoint], None],
        went: Callable[[Endpoint], None],
    ) -> None:
        """Carry until cancelled.

        `relay_ports` gives those in use; `came` and `went` hear where clients seem to be.
        """
        self._relay_ports = relay_ports
        self._came, self._went = came, went
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            for listener, context in self._listeners:
                nursery.start_soon(self._accept, listener, context, nursery)

    # Taking connections

    async def _accept(
        self, listener: SocketType, context: ssl.SSLContext | None, nursery: trio.Nursery
    ) -> None:
        while True:
            try:
                outer, peer = await listener.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    await trio.sleep(EXHAUSTED_PAUSE)
                self._ended["not accepted"] += 1
                continue
            self._accepted += 1
            source = source_of(ip_address(peer[0].partition("%")[0]))
            refusal = self._refusal(source)
            if refusal is not None:
                self._ended[refusal] += 1
                _reset(outer)
            else:
                # Counted here and not in the task, which does not run before the next is accepted.
                client = _Client(source, trio.CancelScope(), trio.current_time())
                self._clients[client] = None
                nursery.start_soon(self._serve_one, client, outer, context)
            await self._keep_pace()

    async def _keep_pace(self) -> None:
        """Wait as long as it takes for connections to come no faster than they may."""
        burst_began_at = trio.current_time() - ACCEPTS_BURST_MAX / ACCEPTS_PER_SECOND_MAX
        self._paced_until = max(self._paced_until, burst_began_at) + 1 / ACCEPTS_PER_SECOND_MAX
        await trio.sleep_until(self._paced_until)

    def _refusal(self, source: bytes) -> str | None:
        """Tell why a client is to be turned away, and make room for it if it is not."""
        if sum(client.source == source for client in self._clients) >= PER_CLIENT_MAX:
            return "too many of one client"
        unanswered = [client for client in self._clients if not client.answered]
        if len(unanswered) >= UNANSWERED_MAX:
            unanswered[0].end("had to make room")
            del self._clients[unanswered[0]]
        if len(self._clients) >= CONNECTIONS_MAX:
            return "too many"
        return None

    async def _serve_one(
        self, client: _Client, outer: SocketType, context: ssl.SSLContext | None
    ) -> None:
        reason = "broken"
        try:
            with client.scope:
                tune(outer, fwmark=self._fwmark)
                stream: trio.abc.Stream = trio.SocketStream(outer)
                if context is not None:
                    stream = trio.SSLStream(
                        stream, context, server_side=True, https_compatible=True
                    )
                    with trio.fail_after(HANDSHAKE_TIMEOUT):
                        await stream.do_handshake()
                reason = await self._carry(client, stream)
        except trio.TooSlowError:
            reason = "too slow"
        except trio.BrokenResourceError:
            reason = "no TLS"
        except OSError as error:
            reason = errno.errorcode.get(error.errno or 0, "broken")
        finally:
            self._clients.pop(client, None)
            self._ended[client.reason or reason] += 1
            _reset(outer)

    async def _carry(self, client: _Client, stream: trio.abc.Stream) -> str:
        """Carry what one connection brings.  Raise OSError where there is no socket for it."""
        with (
            self._addresses.of(client.source) as address,
            open_inner(str(address), fwmark=self._fwmark) as inner,
        ):
            seems_at = Endpoint(address, inner.getsockname()[1])
            client.connection = connection = Connection(
                stream, self._dropped, unanswered_max=UNANSWERED_FRAMES_MAX
            )
            self._came(seems_at)
            try:
                return await until_one_ends(
                    (
                        partial(connection.bring, partial(self._deliver, connection, inner)),
                        partial(connection.take, inner, self._port_of),
                    )
                )
            finally:
                self._frames_in += connection.frames_in
                self._frames_out += connection.frames_out
                self._went(seems_at)

    def _deliver(self, connection: Connection, inner: socket.socket, frame: Frame) -> None:
        if frame.port == OWN_PORT:
            connection.inject(inner, frame.datagram, self._own.taking(frame.datagram))
        elif frame.port in self._relay_ports():
            connection.inject(inner, frame.datagram, frame.port)
        else:
            self._dropped["for a port that is not the relay's"] += 1

    def _port_of(self, source: int) -> int | None:
        """Return what a client calls one of our ports; None if it is not to hear from that."""
        if source in self._own:
            return OWN_PORT
        if source in self._relay_ports():
            return source
        self._dropped["from a port that is not the relay's"] += 1
        return None

    async def _watch(self) -> None:
        """End connections by rules 2 and 3."""
        while True:
            await trio.sleep(WATCH_INTERVAL)
            now = trio.current_time()
            for client in list(self._clients):
                if not client.answered:
                    if now - client.began_at >= UNANSWERED_TIMEOUT:
                        client.end("was not answered")
                elif client.connection and now - client.connection.sent_at >= IDLE_TIMEOUT:
                    client.end("idle")


def _ignore(_: Endpoint) -> None:
    """Nobody wants to know."""


class _Addresses:
    """A loopback address for each client that is there, whatever it has connected from."""

    def __init__(self) -> None:
        self._in_use: dict[bytes, IPv4Address] = {}
        self._users: Counter[bytes] = Counter()
        # The one that has been nobody's for longest is given next.
        self._free = deque(CLIENT_NETWORK + number for number in range(1, 2 * CONNECTIONS_MAX))

    @contextmanager
    def of(self, source: bytes) -> Iterator[IPv4Address]:
        """Give a client its address for a while."""
        if not self._users[source]:
            self._in_use[source] = self._free.popleft()
        self._users[source] += 1
        try:
            yield self._in_use[source]
        finally:
            self._users[source] -= 1
            if not self._users[source]:
                del self._users[source]
                self._free.append(self._in_use.pop(source))


def _listen(family: socket.AddressFamily, wildcard: str, port: int, fwmark: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # A restart must not wait for the connections of the run before to be forgotten.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if fwmark:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, fwmark)
        listener.bind((wildcard, port))
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        if exc.errno == errno.EADDRINUSE:
            raise StartError(
                f"TCP port {port} is taken by another program: `ss -ltnp 'sport = :{port}'` shows "
                "which; stop it, or choose another port with --relay-tcp and --relay-tls"
            ) from exc
        raise StartError(f"cannot listen on TCP port {port}: {exc.strerror}") from exc
    return listener


def _reset(outer: SocketType) -> None:
    """Close a connection, and have the kernel forget it at once."""
    if outer.fileno() >= 0:
        outer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    outer.close()
