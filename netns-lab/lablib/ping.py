"""Pings: who reaches whom at this moment, and whether a flow of packets was ever interrupted.

Both use the kernel's ping sockets: it fills in identifiers and checksums, and gives each socket
only the answers to its own requests.
"""

from __future__ import annotations

import itertools
import select
import signal
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, TypeAlias

from lablib.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lablib.forking import BackgroundCall
    from lablib.namespace import Namespace

IPAddress: TypeAlias = IPv4Address | IPv6Address

RETRY_INTERVAL = 0.2
START_TIMEOUT = 10.0
LINGER = 1.0  # how long a flow waits for its last answers
RECEIVE_BUFFER_BYTES = 1 << 20
SEQUENCE_COUNT = 1 << 16  # of the 16 bits in an echo request; the flow's own count is its payload
ECHO_REQUEST = {4: 8, 6: 128}  # RFC 792, RFC 4443
ECHO_REPLY = {4: 0, 6: 129}
_HEADER = struct.Struct("!BBHHH")
_PAYLOAD = struct.Struct("!Qd")


def _open(version: int) -> socket.socket:
    family, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP)
        if version == 4
        else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    opened = socket.socket(family, socket.SOCK_DGRAM, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    opened.setblocking(False)
    return opened


def _request(version: int, number: int) -> bytes:
    header = _HEADER.pack(ECHO_REQUEST[version], 0, 0, 0, number % SEQUENCE_COUNT)
    return header + _PAYLOAD.pack(number, time.monotonic())


def _send(opened: socket.socket, target: IPAddress, number: int) -> None:
    try:
        opened.sendto(_request(target.version, number), (str(target), 0))
    except OSError:
        # No route, no carrier, a full queue: to whoever counts answers, a ping that was lost.
        return


def _replies(opened: socket.socket) -> list[tuple[str, int, float]]:
    """Return the answers waiting: from whom, which number, sent when."""
    replies: list[tuple[str, int, float]] = []
    while True:
        try:
            data, source = opened.recvfrom(2048)
        except BlockingIOError:
            return replies
        except OSError:  # an ICMP error about an earlier request
            continue
        if len(data) >= _HEADER.size + _PAYLOAD.size and data[0] in ECHO_REPLY.values():
            number, sent_at = _PAYLOAD.unpack_from(data, _HEADER.size)
            replies.append((source[0], number, sent_at))


def ping_each(targets: Sequence[str], timeout: float) -> dict[str, float]:
    """Ping every address until it answers; return round-trip seconds by address.

    Those that have not answered after `timeout` are missing from the result.
    """
    waiting = [ip_address(target) for target in targets]
    answered: dict[str, float] = {}
    sockets = {version: _open(version) for version in sorted({each.version for each in waiting})}
    started_at = time.monotonic()
    number = 0
    while waiting and time.monotonic() - started_at < timeout:
        for target in waiting:
            number += 1
            _send(sockets[target.version], target, number)
        round_ends_at = time.monotonic() + RETRY_INTERVAL
        while waiting and (left := round_ends_at - time.monotonic()) > 0:
            readable, _, _ = select.select(list(sockets.values()), [], [], left)
            for opened in readable:
                for source, _, sent_at in _replies(opened):
                    address = ip_address(source.split("%")[0])
                    if address in waiting:
                        waiting.remove(address)
                        answered[str(address)] = time.monotonic() - sent_at
    for opened in sockets.values():
        opened.close()
    return answered


@dataclass(frozen=True, slots=True)
class Matrix:
    """Who got an answer from whom: round-trip seconds by source and target, None for silence."""

    rtts: Mapping[tuple[str, str], float | None]

    @property
    def silent(self) -> tuple[tuple[str, str], ...]:
        """The pairs (source, target) that got no answer."""
        return tuple(pair for pair, rtt in self.rtts.items() if rtt is None)

    def render(self) -> str:
        """Draw a row for each source and a column for each target, in milliseconds."""
        sources = list(dict.fromkeys(source for source, _ in self.rtts))
        targets = list(dict.fromkeys(target for _, target in self.rtts))
        targets.sort(key=lambda name: (len(name), name))
        width = max(6, *(len(name) + 1 for name in [*sources, *targets]))
        lines = ["".join(name.rjust(width) for name in ["", *targets]) + "  (ms)"]
        for source in sources:
            cells = [self._cell(source, target) for target in targets]
            lines.append("".join(cell.rjust(width) for cell in [source, *cells]))
        return "\n".join(lines)

    def _cell(self, source: str, target: str) -> str:
        if (source, target) not in self.rtts:
            return "."
        rtt = self.rtts[source, target]
        return "lost" if rtt is None else f"{rtt * 1000:.1f}"


def ping_matrix(
    sources: Mapping[str, Namespace],
    targets: Mapping[str, Mapping[str, str]],
    *,
    timeout: float,
) -> Matrix:
    """From every source at the same time, ping each of its targets until it answers.

    `targets` maps a source's name to the addresses of those it pings, by their names.
    """
    calls = {
        name: namespace.background_call(
            _bound(list(targets[name].values()), timeout), "pings to the others"
        )
        for name, namespace in sources.items()
    }
    rtts: dict[tuple[str, str], float | None] = {}
    for source, running in calls.items():
        answered = running.result()
        for target, address in targets[source].items():
            rtts[source, target] = answered.get(str(ip_address(address)))
    return Matrix(rtts)


def _bound(addresses: list[str], timeout: float) -> Any:  # noqa: ANN401 - see ping_each
    return lambda: ping_each(addresses, timeout)


@dataclass(frozen=True, slots=True)
class FlowReport:
    """What became of a flow of pings."""

    sent: int
    received: int
    lost: tuple[int, ...]  # numbers of requests without an answer, from 0
    longest_gap: float  # seconds without an answer, the beginning and the end included
    rtt_max: float  # seconds

    def __str__(self) -> str:
        text = f"{self.sent} sent, {len(self.lost)} lost, longest gap {self.longest_gap:.3f} s"
        return f"{text}, lost numbers {self.lost[0]} to {self.lost[-1]}" if self.lost else text


class PingFlow:
    """A steady flow of pings out of a namespace, for as long as wanted."""

    def __init__(
        self, namespace: Namespace, target: str, *, rate: float, duration: float | None
    ) -> None:
        self._running: BackgroundCall = namespace.background_call(
            lambda: _flow(ip_address(target), rate, duration), f"pings to {target}"
        )
        wait_until(
            lambda: self._running.begun() or self._running.process.poll() is not None,
            f"the pings to {target} begin",
            timeout=START_TIMEOUT,
        )

    def stop(self) -> FlowReport:
        """Send no more, wait for the last answers, and report."""
        self._running.process.send_signal(signal.SIGTERM)
        return self.result()

    def result(self) -> FlowReport:
        """Wait for the end of the flow's duration, and report."""
        return FlowReport(**{**(found := self._running.result()), "lost": tuple(found["lost"])})


class FirstAnswers:
    """Pings to many addresses, to each until it answers, to learn when that was."""

    def __init__(
        self, namespace: Namespace, targets: Sequence[str], *, interval: float, timeout: float
    ) -> None:
        """`interval` is that between two pings to the same address, in seconds."""
        self._running: BackgroundCall = namespace.background_call(
            lambda: _first_answers([ip_address(target) for target in targets], interval, timeout),
            f"pings to {len(targets)}",
        )

    def done(self) -> bool:
        """Whether all have answered, or it was given up."""
        return self._running.process.poll() is not None

    def stop(self) -> dict[str, float]:
        """Return instants of `time.monotonic`; those that never answered are missing."""
        wait_until(
            lambda: self._running.begun() or self.done(), "the pings begin", timeout=START_TIMEOUT
        )
        self._running.process.send_signal(signal.SIGTERM)
        found: dict[str, float] = self._running.result()
        return found


class LastAnswers:
    """Steady pings to many addresses, to learn when each has answered last."""

    def __init__(self, namespace: Namespace, targets: Sequence[str], *, rate: float) -> None:
        """`rate` is that of the pings to each."""
        self._running: BackgroundCall = namespace.background_call(
            lambda: _last_answers([ip_address(target) for target in targets], rate),
            f"pings to {len(targets)}",
        )
        wait_until(
            lambda: self._running.begun() or self._running.process.poll() is not None,
            "the pings begin",
            timeout=START_TIMEOUT,
        )

    def stop(self) -> dict[str, float]:
        """Return instants of `time.monotonic`; those that never answered are missing."""
        self._running.process.send_signal(signal.SIGTERM)
        found: dict[str, float] = self._running.result()
        return found


def _first_answers(
    targets: Sequence[IPAddress], interval: float, timeout: float
) -> dict[str, float]:
    """Be the pings: runs in a child, until all have answered or SIGTERM comes."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    print(flush=True)  # says that we can be stopped; blanks do not matter to JSON
    opened = {version: _open(version) for version in {target.version for target in targets}}
    first: dict[str, float] = {}
    gives_up_at = time.monotonic() + timeout
    number = 0
    while len(first) < len(targets) and not stopping and time.monotonic() < gives_up_at:
        for target in targets:
            if str(target) not in first:
                number += 1
                _send(opened[target.version], target, number)
        round_ends_at = time.monotonic() + interval
        while (left := round_ends_at - time.monotonic()) > 0 and len(first) < len(targets):
            select.select([*opened.values()], [], [], left)
            now = time.monotonic()
            for each in opened.values():
                for source, _, _ in _replies(each):
                    first.setdefault(source, now)
    for each in opened.values():
        each.close()
    return first


def _last_answers(targets: Sequence[IPAddress], rate: float) -> dict[str, float]:
    """Be the pings: runs in a child, until SIGTERM comes."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    print(flush=True)  # says that we can be stopped; blanks do not matter to JSON
    opened = {version: _open(version) for version in {target.version for target in targets}}
    last: dict[str, float] = {}
    sent = 0
    started_at = time.monotonic()
    while not stopping:
        due_at = started_at + sent / rate / len(targets)
        if time.monotonic() >= due_at:
            target = targets[sent % len(targets)]
            _send(opened[target.version], target, sent)
            sent += 1
            due_at = 0.0  # look for answers, and go on
        select.select([*opened.values()], [], [], max(0.0, due_at - time.monotonic()))
        now = time.monotonic()
        for each in opened.values():
            last |= dict.fromkeys((source for source, _, _ in _replies(each)), now)
    for each in opened.values():
        each.close()
    return last


def _flow(target: IPAddress, rate: float, duration: float | None) -> dict[str, Any]:
    """Be the flow: runs in a child, until the duration is over or SIGTERM comes."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    print(flush=True)  # says that we can be stopped; blanks do not matter to JSON
    opened = _open(target.version)
    arrived: dict[int, float] = {}  # number -> when
    rtt_max = 0.0
    sent = 0
    started_at = last_sent_at = time.monotonic()
    ends_at = None if duration is None else started_at + duration
    linger_until = None
    while True:
        now = time.monotonic()
        if linger_until is None and (stopping or (ends_at is not None and now >= ends_at)):
            linger_until = now + LINGER
        if linger_until is not None and (len(arrived) == sent or now >= linger_until):
            break
        due_at = started_at + sent / rate if linger_until is None else linger_until
        if linger_until is None and now >= due_at:
            _send(opened, target, sent)
            sent += 1
            last_sent_at = now
            continue
        select.select([opened], [], [], max(0.0, min(due_at - now, LINGER)))
        arrived_at = time.monotonic()
        for _, number, sent_at in _replies(opened):
            arrived.setdefault(number, arrived_at)
            rtt_max = max(rtt_max, arrived_at - sent_at)
    opened.close()
    times = [started_at, *sorted(arrived.values())]
    if sent - 1 not in arrived:
        times.append(last_sent_at)
    gaps = (later - earlier for earlier, later in itertools.pairwise(times))
    return {
        "sent": sent,
        "received": len(arrived),
        "lost": [number for number in range(sent) if number not in arrived],
        "longest_gap": max(gaps, default=0.0),
        "rtt_max": rtt_max,
    }
