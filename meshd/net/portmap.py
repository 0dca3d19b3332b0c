"""The sockets and the process by which a router is asked for a port.

| socket        | sends to                          | takes what comes from                    |
| ------------- | --------------------------------- | ---------------------------------------- |
| control       | the router's port 5351            | there, and the ICMP error                |
| search        | port 1900, router and multicast   | the router's address                     |
| announcements | nobody                            | the router's address, to 224.0.0.1:5350  |

All are bound to the interface that leads to the router; what comes from anywhere else is not looked
at.  They decide nothing: `meshd.portmap.mapper` does.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from meshd.errors import DeviceError
from meshd.net.closing import Closing
from meshd.portmap import natpmp, ssdp, upnp

if TYPE_CHECKING:
    from meshd.portmap.gateway import Gateway

ANNOUNCED_TO = ("224.0.0.1", 5350)  # RFC 6886 section 3.2.1, RFC 6887 section 14.1
DATAGRAM_BYTES_MAX = 2048
MULTICAST_TTL = 2  # UPnP Device Architecture 1.1, section 1.3.2
UPNP_CLIENT = Path(__file__).with_name("upnp_client.py")
UPNP_TIMEOUT = 15.0


class Router(Closing):
    """What is open towards one router."""

    def __init__(self, gateway: Gateway, *, fwmark: int) -> None:
        """Raise DeviceError."""
        self.gateway = gateway
        source = str(gateway.source)
        with contextlib.ExitStack() as opened:
            try:
                self._control = opened.enter_context(_open(gateway.interface, fwmark))
                self._search = opened.enter_context(_open(gateway.interface, fwmark))
                self._announcements = opened.enter_context(_open(gateway.interface, fwmark))
                self._control.bind((source, 0))
                self._control.connect((str(gateway.address), natpmp.PORT))
                self._search.bind((source, 0))
                self._search.setsockopt(
                    socket.IPPROTO_IP, socket.IP_MULTICAST_IF, gateway.source.packed
                )
                self._search.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, MULTICAST_TTL)
                # Others on this host may listen as well: each of us hears a multicast.
                self._announcements.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._announcements.bind(ANNOUNCED_TO)
            except OSError as exc:
                raise DeviceError(
                    f"ask router {gateway.address} for a port", exc.errno or 0
                ) from exc
            opened.pop_all()

    def close(self) -> None:
        """Close the sockets; a task that waits gets trio.ClosedResourceError."""
        for opened in (self._control, self._search, self._announcements):
            trio.lowlevel.notify_closing(opened)
            opened.close()

    def ask(self, datagram: bytes) -> None:
        """Send to the router's port for PCP and NAT-PMP, or lose it."""
        with contextlib.suppress(OSError):
            self._control.send(datagram)

    def search(self, datagram: bytes, target: str) -> None:
        """Send to a port for SSDP, or lose it."""
        with contextlib.suppress(OSError):
            self._search.sendto(datagram, (target, ssdp.PORT))

    async def answer(self) -> bytes | None:
        """Wait for what comes from the router's port; None: it has no such port."""
        while True:
            await trio.lowlevel.wait_readable(self._control)
            try:
                return self._control.recv(DATAGRAM_BYTES_MAX)
            except BlockingIOError:
                continue
            except OSError:
                return None

    async def search_answer(self) -> bytes:
        """Wait for what comes from the router's address to our search."""
        return await self._from_router(self._search)

    async def announcement(self) -> bytes:
        """Wait for what the router tells everybody."""
        return await self._from_router(self._announcements)

    async def _from_router(self, opened: socket.socket) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(opened)
            with contextlib.suppress(OSError):  # such as the ICMP error for a search
                data, source = opened.recvfrom(DATAGRAM_BYTES_MAX)
                if source[0] == str(self.gateway.address):
                    return data


async def call_upnp(line: bytes) -> bytes:
    """Have the UPnP process answer one question; nothing, if it does not within `UPNP_TIMEOUT`."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-I", str(UPNP_CLIENT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
    )
    answer = b""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with trio.move_on_after(UPNP_TIMEOUT), contextlib.suppress(trio.BrokenResourceError):
            await process.stdin.send_all(line)
            while len(answer) <= upnp.ANSWER_BYTES_MAX:
                part = await process.stdout.receive_some(upnp.ANSWER_BYTES_MAX + 1)
                if not part:
                    break
                answer += part
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()
    return answer


def _open(interface: str, fwmark: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, fwmark)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    except OSError:
        opened.close()
        raise
    return opened
