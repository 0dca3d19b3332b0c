"""A relay's sockets: hellos go up, datagrams of bound members across, all else nowhere.

For each allotted port there are two kinds of sockets:

    door   one per IP version, on every address: whoever says hello comes here, and strangers
    lane   one per bound member, connected to its address: what it sends comes here

    A:pA ──▶ lane (R:51900 ⇄ A:pA) ──▶ lane (R:51901 ⇄ B:pB) ──▶ B:pB
    anyone ─▶ door (*:51900) ── hello? ──▶ engine            or dropped, and counted

Rule 1: a lane is bound to the very address that its member talks to, so what is sent through it
        leaves from there; and the kernel has looked at the sender before we do.

Rule 2: what came to a lane between its bind and its connect may be anybody's, and is dropped.

Rule 3: flows that the kernel forwards (`meshd.net.relay_nft`) have their lanes all the same: they
        carry the datagrams that come first, and any that come after someone has flushed the rules.

Rule 4: a wake-up takes up to `BATCH_MAX` datagrams of a socket, and a turn ends after
        `TURN_SECONDS`, so that the daemon's other tasks have theirs.  The kernel queues the ready
        sockets in a ring, so none is forgotten.

Rule 5: nobody waits for anybody: what the other side's socket does not take is lost and counted.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import select
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from meshd.net.closing import Closing
from meshd.net.datagram import (
    BATCH_MAX,
    SO_RCVBUFFORCE,
    TRANSIENT_ERRNOS,
    Counters,
    drain,
    open_socket,
    send,
)
from meshd.net.relay_nft import NOTHING
from meshd.net.underlay import FAMILIES
from meshd.underlay import DATAGRAM_BYTES_MAX, DatagramType, header

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from meshd.codec import IPAddress
    from meshd.net.relay_nft import FlowCount
    from meshd.relay.maps import Flow
    from meshd.wg.types import Endpoint

TURN_SECONDS = 0.002
SOCKETS_PER_TURN_MAX = 128

# What a stalled daemon leaves waiting: some 900 datagrams of a lane.  Doors have a few hellos.
LANE_BUFFER_BYTES = 2 * 1024 * 1024
DOOR_BUFFER_BYTES = 256 * 1024

DESCRIPTORS_PER_PORT = 3
DESCRIPTORS_BESIDES = 256

# No relayed datagram of WireGuard is longer: its MTU is 1,420, and jumbo frames have 9,000.
RELAYED_BYTES_MAX = 65536

# Why a socket cannot be had: the port or the address is not ours, or there are too many.
_UNAVAILABLE: Final = TRANSIENT_ERRNOS | {errno.EADDRINUSE, errno.EMFILE, errno.ENFILE}

_HELLO: Final = header(DatagramType.RELAY_HELLO)
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h


@dataclass(frozen=True, slots=True)
class ForwarderStatistics:
    """Since the start."""

    forwarded: int
    strangers: int  # datagrams from somebody who is not bound to the port
    lost: int  # the other side's socket did not take it


class Forwarder(Closing):
    """Sockets of allotted ports.  `on_hello(datagram, source, port, local)` is called for each."""

    def __init__(
        self, on_hello: Callable[[bytes, Endpoint, int, IPAddress], None], *, fwmark: int = 0
    ) -> None:
        self._on_hello = on_hello
        self._fwmark = fwmark
        self._ready = select.epoll()
        self._doors: dict[int, dict[int, _Door]] = {}  # by port, then by IP version
        self._flows: frozenset[Flow] = frozenset()
        self._lanes: dict[tuple[Endpoint, Endpoint], _Lane] = {}  # by our end, and the member's
        self._by_descriptor: dict[int, _Door | _Lane] = {}
        self._buffer = bytearray(RELAYED_BYTES_MAX)
        self._counts: dict[int, FlowCount] = {}
        self._forwarded = 0
        self._strangers = 0
        self._lost = 0

    # Which sockets there are

    @property
    def ports(self) -> AbstractSet[int]:
        """The ports that are open."""
        return self._doors.keys()

    def open(self, port: int) -> bool:
        """Open a port.  Return whether it could be: it may be another program's."""
        doors: dict[int, _Door] = {}
        try:
            for version, family, wildcard in FAMILIES:
                doors[version] = _Door(_door_socket(family, wildcard, port, self._fwmark), port)
        except OSError as exc:
            for door in doors.values():
                door.socket.close()
            if exc.errno not in _UNAVAILABLE:
                raise
            return False
        self._doors[port] = doors
        for door in doors.values():
            self._watch(door)
        return True

    def shut(self, port: int) -> None:
        """Close a port."""
        for door in self._doors.pop(port).values():
            self._forget(door)
        self._counts.pop(port, None)

    def set_flows(self, flows: frozenset[Flow]) -> frozenset[Flow]:
        """Forward exactly these.  Return those that have no socket: their address is not here.

        They are tried again with the next call.
        """
        removed, added = self._flows - flows, flows - self._flows
        kept_ends = {_end(flow) for flow in added}
        for flow in removed:
            lane = self._lanes[_end(flow)]
            lane.across = None
            if _end(flow) not in kept_ends:
                del self._lanes[_end(flow)]
                self._forget(lane)
        failed = frozenset(flow for flow in added if not self._open_lane(*_end(flow)))
        self._flows = flows - failed
        for flow in added - failed:
            there = self._lanes.get((flow.leaves_from, flow.target))
            self._lanes[_end(flow)].across = None if there is None else there.socket
        return failed

    def close(self) -> None:
        """Close all; a task that runs gets trio.ClosedResourceError."""
        if self._ready.closed:
            return
        trio.lowlevel.notify_closing(self._ready.fileno())
        for each in list(self._by_descriptor.values()):
            self._forget(each)
        self._doors.clear()
        self._lanes.clear()
        self._ready.close()

    # What goes through them

    async def run(self) -> None:
        """Forward, until cancelled."""
        while True:
            # An epoll descriptor is itself readable while one of its own is.
            await trio.lowlevel.wait_readable(self._ready.fileno())
            self.take_turn()

    def take_turn(self) -> None:
        """Handle what is there, for `TURN_SECONDS` at most.  What is left makes it ready again."""
        until = time.monotonic() + TURN_SECONDS
        for descriptor, _ in self._ready.poll(0, SOCKETS_PER_TURN_MAX):
            each = self._by_descriptor.get(descriptor)
            if isinstance(each, _Lane):
                self._drain_lane(each)
            elif each is not None:
                self._drain_door(each)
            if time.monotonic() >= until:
                return

    def send(self, payload: bytes, target: Endpoint, port: int, source: IPAddress) -> bool:
        """Send a datagram of our own from an open port, or lose it.  Return whether it went."""
        doors = self._doors.get(port)
        if doors is None:
            return False
        door = doors[target.address.version]
        return send(door.socket, door.counters, payload, target, source)

    def take_counts(self) -> dict[int, FlowCount]:
        """Return what arrived at each port and was forwarded since this was last called."""
        counts, self._counts = self._counts, {}
        return counts

    def statistics(self) -> ForwarderStatistics:
        """Return the sums since the start."""
        return ForwarderStatistics(self._forwarded, self._strangers, self._lost)

    def _drain_lane(self, lane: _Lane) -> None:
        receive, across, buffer = lane.socket.recv_into, lane.across, self._buffer
        view = memoryview(buffer)
        taken = octets = 0
        for _ in range(BATCH_MAX):
            try:
                size = receive(buffer)
            except BlockingIOError:
                break
            except OSError:  # what an ICMP error says of an earlier datagram
                continue
            if buffer.startswith(_HELLO, 0, size):
                if size <= DATAGRAM_BYTES_MAX:
                    self._on_hello(bytes(view[:size]), lane.member, lane.end.port, lane.end.address)
            elif across is None or not _put(across, view[:size]):
                self._lost += 1
            else:
                taken += 1
                octets += size
        if taken:
            self._forwarded += taken
            port = lane.end.port
            self._counts[port] = self._counts.get(port, NOTHING).plus(taken, octets)

    def _drain_door(self, door: _Door) -> None:
        before = door.counters.oversized + door.counters.unanswerable
        for payload, source, local in drain(door.socket, door.counters):
            if payload.startswith(_HELLO) and len(payload) <= DATAGRAM_BYTES_MAX:
                self._on_hello(payload, source, door.port, local)
            else:
                self._strangers += 1
        self._strangers += door.counters.oversized + door.counters.unanswerable - before

    def _open_lane(self, end: Endpoint, member: Endpoint) -> bool:
        """Have a lane.  Return whether it could be made."""
        if (end, member) in self._lanes:
            return True
        try:
            opened = _lane_socket(end, member, self._fwmark)
        except OSError as exc:
            if exc.errno not in _UNAVAILABLE:
                raise
            return False
        lane = self._lanes[end, member] = _Lane(opened, end, member)
        self._watch(lane)
        return True

    def _watch(self, each: _Door | _Lane) -> None:
        descriptor = each.socket.fileno()
        self._by_descriptor[descriptor] = each
        self._ready.register(descriptor, select.EPOLLIN)

    def _forget(self, each: _Door | _Lane) -> None:
        descriptor = each.socket.fileno()
        del self._by_descriptor[descriptor]
        self._ready.unregister(descriptor)
        each.socket.close()


class _Door:
    __slots__ = ("counters", "port", "socket")

    def __init__(self, opened: socket.socket, port: int) -> None:
        self.socket = opened
        self.port = port
        self.counters = Counters()


class _Lane:
    __slots__ = ("across", "end", "member", "socket")

    def __init__(self, opened: socket.socket, end: Endpoint, member: Endpoint) -> None:
        self.socket = opened
        self.end = end
        self.member = member
        self.across: socket.socket | None = None  # the other member's


def _end(flow: Flow) -> tuple[Endpoint, Endpoint]:
    return flow.arrives_at, flow.source


def raise_descriptor_limit(ports: int) -> int:
    """Allow this process the sockets of so many ports.  Return how many ports it can have."""
    wanted = ports * DESCRIPTORS_PER_PORT + DESCRIPTORS_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        except (ValueError, OSError):  # raising the hard limit takes CAP_SYS_RESOURCE
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, wanted), hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(0, min(ports, (soft - DESCRIPTORS_BESIDES) // DESCRIPTORS_PER_PORT))


def is_free(port: int) -> bool:
    """Whether a port is nobody's, on any address of both IP versions."""
    for _, family, wildcard in FAMILIES:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((wildcard, port))
            except OSError:
                return False
    return True


def _door_socket(
    family: socket.AddressFamily, wildcard: str, port: int, fwmark: int
) -> socket.socket:
    opened = open_socket(family)
    try:
        _set_up(opened, fwmark, DOOR_BUFFER_BYTES)
        opened.bind((wildcard, port))
        # From here on lanes may share the port.  Not before: the bind has to fail where another
        # program, perhaps one that shares its ports as well, has it.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        opened.close()
        raise
    return opened


def _lane_socket(end: Endpoint, member: Endpoint, fwmark: int) -> socket.socket:
    family = socket.AF_INET6 if end.address.version == 6 else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        _set_up(opened, fwmark, LANE_BUFFER_BYTES)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.bind((str(end.address), end.port))
        opened.connect((str(member.address), member.port))
        with contextlib.suppress(BlockingIOError):
            while True:
                opened.recv(1)
    except OSError:
        opened.close()
        raise
    return opened


def _set_up(opened: socket.socket, fwmark: int, buffer_bytes: int) -> None:
    if fwmark:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, fwmark)
    for forced, option in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            opened.setsockopt(socket.SOL_SOCKET, forced, buffer_bytes)
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)


def _put(across: socket.socket, datagram: memoryview) -> bool:
    """Send a datagram.  Return whether the kernel took it."""
    try:
        across.send(datagram)
    except ConnectionRefusedError:  # what an ICMP error says of an earlier one, once
        with contextlib.suppress(OSError):
            across.send(datagram)
            return True
        return False
    except OSError:
        return False
    return True
