"""A member's end: a TCP connection to a relay host, whose ports are sockets on this host meanwhile.

    connect ──▶ carry ──ended──▶ pause ──▶ connect ──▶ …      the sockets stay: WireGuard's
                                 .25 … 30 s                   endpoint is the same afterwards

Rule 1: only datagrams from this host's WireGuard and meshd are carried, and only to them is given
        out what comes.

Rule 2: while there is no connection datagrams are lost, not kept: what is old is of no use.

Rule 3: all doors of the host are tried, each a moment after the one before (as RFC 8305 has it).
"""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from meshd.net.carrier import Connection, OwnPort, open_inner, tune
from meshd.net.carrier_tls import member_context
from meshd.net.closing import Closing
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping
    from ipaddress import IPv4Address
    from random import Random

    from meshd.carrier.frames import Frame
    from meshd.carrier.resort import Door

CONNECT_TIMEOUT = 5.0  # of one door, TLS included
STAGGER = 0.25
PAUSE_MIN = 0.25
PAUSE_MAX = 30.0
PAUSE_JITTER = 0.25  # fraction by which a pause may be shorter
LASTED = 10.0  # a connection that has been up for so long begins its pauses anew
STALE_MAX = 4096  # datagrams that a socket's buffer may hold


class CarrierMember(Closing):
    """One relay host, over TCP."""

    def __init__(
        self,
        doors: Iterable[Door],
        own: OwnPort,
        *,
        address: IPv4Address,
        rng: Random,
        changed: Callable[[], None],
        fwmark: int = 0,
    ) -> None:
        """`address` is the loopback address of our sockets; `changed` hears of `up`."""
        self.up = False
        self.doors = tuple(doors)  # may be others by the next connection
        self._own = own
        self._address = address
        self._rng = rng
        self._changed = changed
        self._fwmark = fwmark
        self._context: ssl.SSLContext | None = None
        self._sockets: dict[int, socket.socket] = {}  # by the host's port
        self._live: tuple[trio.Nursery, Connection] | None = None
        self.dropped: Counter[str] = Counter()  # datagrams, by reason
        self.failure = ""  # why there is no connection: of the last that ended, or was tried

    def close(self) -> None:
        """Close the sockets; what runs ends soon."""
        self.set_ports(())

    def set_ports(self, ports: Iterable[int]) -> None:
        """Have a socket for each of these ports of the host's.  Raise OSError."""
        wanted = dict.fromkeys(ports)
        for port in [port for port in self._sockets if port not in wanted]:
            inner = self._sockets.pop(port)
            trio.lowlevel.notify_closing(inner)
            inner.close()
        for port in wanted:
            if port not in self._sockets:
                inner = open_inner(str(self._address), fwmark=self._fwmark)
                self._sockets[port] = inner
                if self._live is not None:
                    self._live[0].start_soon(self._take, port, inner, *self._live)

    @property
    def endpoints(self) -> Mapping[int, Endpoint]:
        """Where the host's ports seem to be."""
        return {
            port: Endpoint(self._address, inner.getsockname()[1])
            for port, inner in self._sockets.items()
        }

    async def run(self) -> None:
        """Connect, again and again, until cancelled."""
        pause = PAUSE_MIN
        while True:
            stream = await self._connect()
            if stream is not None:
                began_at = trio.current_time()
                try:
                    self.failure = await self._carry(stream)
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.aclose_forcefully(stream)
                if trio.current_time() - began_at >= LASTED:
                    pause = PAUSE_MIN
            await trio.sleep(pause * (1.0 - PAUSE_JITTER * self._rng.random()))
            pause = min(pause * 2, PAUSE_MAX)

    # Connecting

    async def _connect(self) -> trio.abc.Stream | None:
        """Return a connection to the first door that opens; None if none does."""
        opened: list[trio.abc.Stream] = []
        async with trio.open_nursery() as nursery:

            async def attempt(door: Door) -> None:
                stream = await self._open(door)
                if stream is not None and opened:
                    await trio.aclose_forcefully(stream)
                elif stream is not None:
                    opened.append(stream)
                    nursery.cancel_scope.cancel()

            for door in self.doors:
                nursery.start_soon(attempt, door)
                await trio.sleep(STAGGER)
        return opened[0] if opened else None

    async def _open(self, door: Door) -> trio.abc.Stream | None:
        family = socket.AF_INET if door.endpoint.address.version == 4 else socket.AF_INET6
        outer = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            tune(outer, fwmark=self._fwmark)
            with trio.fail_after(CONNECT_TIMEOUT):
                await outer.connect((str(door.endpoint.address), door.endpoint.port))
                stream: trio.abc.Stream = trio.SocketStream(outer)
                if door.tls:
                    if self._context is None:
                        self._context = member_context()
                    stream = trio.SSLStream(stream, self._context, https_compatible=True)
                    await stream.do_handshake()
                return stream
        except (OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
            self.failure = f"{door.endpoint}: {_reason(error)}"
            outer.close()
            return None
        except BaseException:
            outer.close()
            raise

    # Carrying

    async def _carry(self, stream: trio.abc.Stream) -> str:
        connection = Connection(stream, self.dropped)
        for inner in self._sockets.values():
            _discard(inner)
        try:
            async with trio.open_nursery() as nursery:
                self._live = nursery, connection
                for port, inner in self._sockets.items():
                    nursery.start_soon(self._take, port, inner, nursery, connection)
                self._tell(up=True)
                reason = await connection.bring(partial(self._deliver, connection))
                nursery.cancel_scope.cancel()
        finally:
            self._live = None
            self._tell(up=False)
        return reason

    def _tell(self, *, up: bool) -> None:
        self.up = up
        self._changed()

    async def _take(
        self, port: int, inner: socket.socket, nursery: trio.Nursery, connection: Connection
    ) -> None:
        """Send off what is for one port, until that is unwanted or the connection ends."""
        with suppress(trio.ClosedResourceError):  # the port is not wanted any more
            await connection.take(inner, partial(self._port_of, port))
            nursery.cancel_scope.cancel()

    def _port_of(self, port: int, source: int) -> int | None:
        if source in self._own:
            return port
        self.dropped["not to be carried"] += 1
        return None

    def _deliver(self, connection: Connection, frame: Frame) -> None:
        inner = self._sockets.get(frame.port)
        if inner is None:
            self.dropped["from a port that was not asked"] += 1
        else:
            connection.inject(inner, frame.datagram, self._own.taking(frame.datagram))


def _discard(inner: socket.socket) -> None:
    """Lose what has come while there was no connection."""
    for _ in range(STALE_MAX):
        try:
            inner.recv(1)  # of 0 bytes Python would make nothing at all
        except BlockingIOError:
            return


def _reason(error: Exception) -> str:
    if isinstance(error, trio.TooSlowError):
        return "no answer in time"
    if isinstance(error, trio.BrokenResourceError):
        return "no TLS"
    return getattr(error, "strerror", None) or "broken"
