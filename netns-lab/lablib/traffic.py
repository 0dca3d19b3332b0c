"""Steady traffic between all pairs: which datagrams were lost and when, how long TCP stood still.

Each node has one process.  At every tick it sends a datagram to each of the others, and now and
then a few bytes on a TCP connection to each of them:

    tick 0        1        2        …    `rate` ticks a second
     │ UDP to all │ UDP    │ UDP
     │ TCP to all                        every TCP_INTERVAL

A late tick is made up for: the number of datagrams sent follows from the time that has passed.
Times are CLOCK_MONOTONIC, which all namespaces of a machine share.
"""

from __future__ import annotations

import bisect
import contextlib
import select
import signal
import socket
import struct
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lablib.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lablib.forking import BackgroundCall
    from lablib.node import Node

PORT = 9009
TCP_INTERVAL = 0.01
TCP_BYTES = 64
LINGER = 1.5  # how long the last datagrams may take
START_TIMEOUT = 30.0
RECEIVE_BUFFER_BYTES = 4 << 20
RECEIVE_BYTES = 65536
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
STALLS_MIN = 0.05  # shorter ones are not worth a note
_DATAGRAM = struct.Struct("!I56x")  # a number, and what makes it 60 bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """A datagram that did not arrive."""

    at: float  # when it was sent
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Stall:
    """A time in which a TCP connection that is never silent delivered nothing."""

    began_at: float
    seconds: float
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """What became of the traffic."""

    sent: int
    rate: float  # datagrams a second from each node to each other, as it was
    lost: tuple[Lost, ...]  # in the order of their times
    stalls: tuple[Stall, ...]  # of STALLS_MIN and longer

    def lost_between(self, begin: float, end: float) -> list[Lost]:
        """Return what was sent in a time and lost."""
        return [lost for lost in self.lost if begin <= lost.at < end]

    def longest_silence(self, begin: float, end: float) -> float:
        """Return the longest time within another in which all that one sent to another was lost."""
        longest = 0.0
        silences: dict[tuple[str, str], tuple[float, float]] = {}  # of the latest: first, last
        for lost in self.lost_between(begin, end):
            pair = lost.source, lost.target
            first, last = silences.get(pair, (lost.at, lost.at))
            if lost.at - last > 1.5 / self.rate:
                first = lost.at
            silences[pair] = first, lost.at
            longest = max(longest, lost.at - first + 1 / self.rate)
        return longest

    def longest_stall(self, begin: float, end: float) -> float:
        """Return the longest stall that began in a time; 0.0 if there was none worth a note."""
        inside = (stall.seconds for stall in self.stalls if begin <= stall.began_at < end)
        return max(inside, default=0.0)


class Traffic:
    """Traffic between nodes at their addresses, from now until it is stopped."""

    def __init__(self, nodes: Sequence[Node], addresses: Mapping[str, str], *, rate: float) -> None:
        self._names = {addresses[node.name]: node.name for node in nodes}
        self._running: dict[str, BackgroundCall] = {}
        for node in nodes:
            own = addresses[node.name]
            others = [addresses[other.name] for other in nodes if other is not node]
            self._running[node.name] = node.namespace.background_call(
                _bound(own, others, rate), "traffic"
            )
        wait_until(self._begun, "the traffic has begun", timeout=START_TIMEOUT)

    def stop(self) -> TrafficReport:
        """Send no more, wait for the last to arrive, and report."""
        for running in self._running.values():
            running.process.send_signal(signal.SIGTERM)
        found = {name: running.result() for name, running in self._running.items()}
        lost, stalls = [], []
        for target, there in found.items():
            for address, arrived in there["arrived"].items():
                source = self._names[address]
                sent_at = found[source]["sent_at"]
                missing = _missing(arrived, len(sent_at))
                lost += [Lost(sent_at[number], source, target) for number in missing]
            stalls += [
                Stall(began_at, seconds, self._names[address], target)
                for address, began_at, seconds in there["stalls"]
            ]
        ticks = [there["sent_at"] for there in found.values()]
        others = len(found) - 1
        return TrafficReport(
            sent=sum(map(len, ticks)) * others,
            rate=min((len(each) - 1) / (each[-1] - each[0]) for each in ticks),
            lost=tuple(sorted(lost, key=lambda each: each.at)),
            stalls=tuple(stalls),
        )

    def _begun(self) -> bool:
        return all(
            running.begun() or running.process.poll() is not None
            for running in self._running.values()
        )


def _missing(runs: Sequence[Sequence[int]], count: int) -> list[int]:
    """Return the numbers below `count` that are in none of the runs (first, last)."""
    missing: list[int] = []
    expected = 0
    for first, last in sorted(map(tuple, runs)):
        missing += range(expected, first)
        expected = max(expected, last + 1)
    return [*missing, *range(expected, count)]


def _bound(own: str, others: list[str], rate: float) -> Any:  # noqa: ANN401 - see Namespace.background_call
    return lambda: _Sender(own, others, rate).run()


class _Sender:
    """The process on one node."""

    def __init__(self, own: str, others: list[str], rate: float) -> None:
        self._others = [(address, PORT) for address in others]
        self._rate = rate
        family = socket.AF_INET6 if ":" in own else socket.AF_INET
        self._udp = socket.socket(family, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        self._udp.bind((own, PORT))
        self._udp.setblocking(False)
        self._listener = socket.create_server((own, PORT), family=family, backlog=len(others))
        self._listener.setblocking(False)
        self._family = family
        self._own = own
        self._outgoing: list[socket.socket] = []
        self._incoming: dict[socket.socket, str] = {}
        self._heard_at: dict[socket.socket, float] = {}
        self._sent_at = array("d")
        self._arrived: dict[str, list[list[int]]] = {address: [] for address in others}
        self._stalls: list[tuple[str, float, float]] = []

    def run(self) -> dict[str, Any]:
        """Send until SIGTERM."""
        stopping = False

        def stop(*_: object) -> None:
            nonlocal stopping
            stopping = True

        signal.signal(signal.SIGTERM, stop)
        self._connect()
        print(flush=True)  # says that it has begun; blanks do not matter to JSON
        began_at = tcp_at = time.monotonic()
        while not stopping:
            now = time.monotonic()
            while len(self._sent_at) <= (now - began_at) * self._rate:
                self._tick()
            if now >= tcp_at:
                tcp_at = now + TCP_INTERVAL
                self._send_stream()
            due_at = began_at + len(self._sent_at) / self._rate
            self._receive(max(0.0, min(due_at, tcp_at) - time.monotonic()))
        ends_at = time.monotonic() + LINGER
        while (left := ends_at - time.monotonic()) > 0:
            self._receive(left)
        for each in (self._udp, self._listener, *self._outgoing, *self._incoming):
            each.close()
        return {
            "sent_at": [round(at, 4) for at in self._sent_at],
            "arrived": self._arrived,
            "stalls": self._stalls,
        }

    def _connect(self) -> None:
        """Connect to everybody; whoever is not there yet is waited for."""
        deadline = time.monotonic() + START_TIMEOUT
        for target in self._others:
            while True:
                try:
                    made = socket.create_connection(
                        target, timeout=START_TIMEOUT, source_address=(self._own, 0)
                    )
                except ConnectionRefusedError:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(0.02)
                else:
                    break
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setblocking(False)
            self._outgoing.append(made)
        while len(self._incoming) < len(self._others):
            select.select([self._listener], [], [], START_TIMEOUT)
            accepted, (address, *_) = self._listener.accept()
            accepted.setblocking(False)
            self._incoming[accepted] = address

    def _tick(self) -> None:
        datagram = _DATAGRAM.pack(len(self._sent_at))
        self._sent_at.append(time.monotonic())
        for target in self._others:
            with contextlib.suppress(OSError):  # whoever counts misses it
                self._udp.sendto(datagram, target)

    def _send_stream(self) -> None:
        for stream in self._outgoing:
            with contextlib.suppress(BlockingIOError):
                stream.send(b"\0" * TCP_BYTES)

    def _receive(self, timeout: float) -> None:
        readable, _, _ = select.select([self._udp, *self._incoming], [], [], timeout)
        now = time.monotonic()
        for each in readable:
            if each is self._udp:
                self._receive_datagrams()
            elif each.recv(RECEIVE_BYTES):
                heard_at = self._heard_at.get(each, now)
                if now - heard_at >= STALLS_MIN:
                    self._stalls.append((self._incoming[each], heard_at, now - heard_at))
                self._heard_at[each] = now
            else:
                del self._incoming[each]
                each.close()

    def _receive_datagrams(self) -> None:
        while True:
            try:
                data, (address, *_) = self._udp.recvfrom(RECEIVE_BYTES)
            except BlockingIOError:
                return
            (number,) = _DATAGRAM.unpack(data)
            _add(self._arrived[address], number)


def _add(runs: list[list[int]], number: int) -> None:
    """Add a number to sorted runs (first, last): mostly to the end of the last one."""
    if runs and number == runs[-1][1] + 1:
        runs[-1][1] = number
    else:
        bisect.insort(runs, [number, number])
