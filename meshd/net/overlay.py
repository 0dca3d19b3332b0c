"""The gossip socket, inside the tunnel: UDP on our overlay IPv6 address.

It is bound to the interface as well as to the address.  A datagram for our address that came in
anywhere else has not been through WireGuard, so its source would be nobody's word.

    kernel:    … → WireGuard: allowed-ips checked → interface → socket
    LAN:       … → eth0: to the same address      → interface ✗

The socket may be made before the address is there.  An interface that was deleted and made anew
is another one to the kernel, even under the old name: call `rebind` when its index has changed.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Self

import trio

from meshd.errors import DeviceError, StartError
from meshd.net.datagram import Counters, drain, open_socket, send

if TYPE_CHECKING:
    from ipaddress import IPv6Address
    from types import TracebackType

    from meshd.codec import IPAddress
    from meshd.net.datagram import Datagram, SocketStatistics
    from meshd.wg.types import Endpoint

GOSSIP_PORT = 7946
IPV6_FREEBIND = 78  # linux/in6.h


class Overlay:
    """The socket.  Its interface must exist, and may be down."""

    def __init__(self, address: IPv6Address, interface: str, *, port: int = GOSSIP_PORT) -> None:
        """Bind.  Raise StartError where another program has the port, DeviceError otherwise."""
        self._counters = Counters()
        self._socket = open_socket(socket.AF_INET6)
        self._interface = interface
        try:
            self._socket.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            self.rebind()
            self._bind(address, port)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

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
        """Wait until the socket is readable, and return what is there: perhaps nothing."""
        await trio.lowlevel.wait_readable(self._socket)
        return drain(self._socket, self._counters)

    def send(self, payload: bytes, target: Endpoint, source: IPAddress | None = None) -> bool:
        """Send a datagram, or lose it and count why.  Return whether the kernel took it."""
        return send(self._socket, self._counters, payload, target, source)

    def statistics(self) -> SocketStatistics:
        """Return what went through so far."""
        return self._counters.statistics()

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
