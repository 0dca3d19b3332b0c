"""meshd's own UDP sockets on the underlay: one per address family, both on one port.

A wildcard socket answers from whatever address the routing table likes; a peer behind a firewall
or a NAT takes the answer only from the address it asked.  So each datagram comes with the address
it was sent to (`Datagram.local`), and an answer is sent with it as `source`.

The mark is WireGuard's: policy routing that keeps WireGuard's datagrams out of a tunnel keeps
meshd's out of it too, and `meshd.net.mux` knows them by it.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from typing import TYPE_CHECKING, Final

import trio

from meshd.errors import StartError
from meshd.net.closing import Closing
from meshd.net.datagram import Counters, drain, open_socket, send

if TYPE_CHECKING:
    from meshd.codec import IPAddress
    from meshd.net.datagram import Datagram, SocketStatistics
    from meshd.wg.types import Endpoint

FAMILIES: Final = (
    (6, socket.AF_INET6, "::"),
    (4, socket.AF_INET, "0.0.0.0"),  # noqa: S104 - every address is the point
)
EPHEMERAL_TRIES_MAX = 16  # a port free for one family may be taken for the other


class Underlay(Closing):
    """Both sockets.  `port` is the one they are bound to."""

    def __init__(self, port: int = 0, *, fwmark: int = 0) -> None:
        """Bind to `port`, or to one the kernel chooses.  Raise StartError."""
        self._counters = Counters()
        self._sockets = _open_pair(port, fwmark)
        self.port: int = self._sockets[6].getsockname()[1]
        self._ready = select.epoll()
        self._by_descriptor = {s.fileno(): s for s in self._sockets.values()}
        for descriptor in self._by_descriptor:
            self._ready.register(descriptor, select.EPOLLIN)

    def close(self) -> None:
        """Close both sockets; a task that waits gets trio.ClosedResourceError."""
        trio.lowlevel.notify_closing(self._ready.fileno())
        self._ready.close()
        for endpoint in self._sockets.values():
            endpoint.close()

    async def receive_batch(self) -> list[Datagram]:
        """Wait until a socket is readable, and return what is there: perhaps nothing."""
        # An epoll descriptor is itself readable while one of its own is.
        await trio.lowlevel.wait_readable(self._ready.fileno())
        batch: list[Datagram] = []
        for descriptor, _events in self._ready.poll(0):
            batch += drain(self._by_descriptor[descriptor], self._counters)
        return batch

    def send(self, payload: bytes, target: Endpoint, source: IPAddress | None = None) -> bool:
        """Send a datagram, or lose it and count why.  Return whether the kernel took it."""
        return send(self._sockets[target.address.version], self._counters, payload, target, source)

    def statistics(self) -> SocketStatistics:
        """Return what went through so far."""
        return self._counters.statistics()


def check_port_free(port: int) -> None:
    """Raise StartError when a UDP port that WireGuard is to listen on is another program's.

    WireGuard listens on every address of both families, so one address taken is enough.  A device
    that is there already holds its port itself: ask only for a port that none of ours listens on.
    """
    for endpoint in _bind_pair(port, 0).values():
        endpoint.close()


def _open_pair(port: int, fwmark: int) -> dict[int, socket.socket]:
    """Return sockets by IP version, both bound to `port`, or to one the kernel chooses."""
    for _ in range(EPHEMERAL_TRIES_MAX if port == 0 else 0):
        with contextlib.suppress(StartError):
            return _bind_pair(port, fwmark)
    return _bind_pair(port, fwmark)


def _bind_pair(port: int, fwmark: int) -> dict[int, socket.socket]:
    sockets: dict[int, socket.socket] = {}
    try:
        for version, family, wildcard in FAMILIES:
            endpoint = sockets[version] = open_socket(family)
            if fwmark:
                endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, fwmark)
            endpoint.bind((wildcard, port))
            port = endpoint.getsockname()[1]
    except OSError as exc:
        for endpoint in sockets.values():
            endpoint.close()
        if exc.errno == errno.EADDRINUSE:
            raise StartError(
                f"UDP port {port} is taken by another program: `ss -lunp 'sport = :{port}'` "
                "shows which; stop it, or choose another port with --port"
            ) from exc
        raise StartError(f"cannot open UDP port {port}: {exc.strerror}") from exc
    return sockets
