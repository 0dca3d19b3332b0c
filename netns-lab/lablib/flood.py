"""A flood of datagrams from forged sources, as fast as one process of Python can make it.

The frames are made beforehand and handed to the kernel in batches by sendmmsg(2), on a packet
socket of the sender's interface: so a source address may be anybody's.

    with flood(attacker, target, payloads, rate=50_000) as flooding:
        ...
    flooding.report        # what was sent, in how many seconds
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import random
import signal
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, NamedTuple

from lablib.errors import LabError
from lablib.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lablib.node import Node

BATCH = 64
SOURCES = IPv4Address("10.128.0.0")  # 2^22 addresses from here on, none of them anybody's
SOURCES_BITS = 22
START_TIMEOUT = 30.0
ETHERTYPE_IPV4 = 0x0800
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20  # linux/if_packet.h
_IPV4 = struct.Struct("!BBHHHBBH")  # less its two addresses
_UDP = struct.Struct("!HHHH")
_IOVEC = struct.Struct("@PN")  # struct iovec
_MESSAGE = struct.Struct("@PI4xPNPNi4xI4x")  # struct mmsghdr, on a 64-bit machine


@dataclass(frozen=True, slots=True)
class FloodReport:
    """What was sent."""

    sent: int
    seconds: float

    @property
    def rate(self) -> float:
        """Datagrams a second."""
        return self.sent / self.seconds


class Flood:
    """A flood under way."""

    def __init__(self, report: FloodReport | None = None) -> None:
        self.report = report


@contextlib.contextmanager
def flood(
    attacker: Node,
    target: Node,
    payloads: Sequence[bytes],
    *,
    rate: float,
    port: int = 51820,
    forged: bool = True,
    seed: int = 1,
) -> Iterator[Flood]:
    """Flood a port of `target` until the block ends; its `report` is there afterwards.

    Both are on one wire.  The payloads are sent in turn, again and again; each of them always from
    the same source, which is the attacker's own address unless it is `forged`.
    """
    frames = _frames(attacker, target, payloads, port, random.Random(seed) if forged else None)
    interface = attacker.member.port.interface
    running = attacker.namespace.background_call(
        lambda: _send(interface, frames, rate), f"a flood of {rate:g} datagrams a second"
    )
    flooding = Flood()
    try:
        wait_until(
            lambda: running.begun() or running.process.poll() is not None,
            "the flood begins",
            timeout=START_TIMEOUT,
        )
        yield flooding
    except BaseException:
        running.cancel()
        raise
    running.process.send_signal(signal.SIGTERM)
    flooding.report = FloodReport(**running.result())


def _frames(
    attacker: Node, target: Node, payloads: Sequence[bytes], port: int, rng: random.Random | None
) -> list[bytes]:
    head = _mac(target) + _mac(attacker) + ETHERTYPE_IPV4.to_bytes(2, "big")
    frames = []
    for payload in payloads:
        source = attacker.ipv4.ip if rng is None else SOURCES + rng.getrandbits(SOURCES_BITS)
        source_port = rng.randrange(1024, 65536) if rng is not None else 40000
        addresses = source.packed + target.ipv4.ip.packed
        udp = _udp(source_port, port, payload, addresses)
        fields = (0x45, 0, _IPV4.size + len(addresses) + len(udp), 0, 0, 64, socket.IPPROTO_UDP)
        checksum = _checksum(_IPV4.pack(*fields, 0) + addresses)
        frames.append(head + _IPV4.pack(*fields, checksum) + addresses + udp)
    return frames


def _udp(source_port: int, port: int, payload: bytes, addresses: bytes) -> bytes:
    """Return a UDP datagram.  Without its checksum it would not outlive the change of its port."""
    length = _UDP.size + len(payload)
    pseudo_header = addresses + struct.pack("!HH", socket.IPPROTO_UDP, length)
    unsigned = _UDP.pack(source_port, port, length, 0) + payload
    checksum = _checksum(pseudo_header + unsigned) or 0xFFFF
    return _UDP.pack(source_port, port, length, checksum) + payload


def _mac(node: Node) -> bytes:
    path = f"/sys/class/net/{node.member.port.interface}/address"
    return bytes.fromhex(node.run(["cat", path]).stdout.strip().replace(":", ""))


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    if len(data) % 2:
        total += data[-1] << 8
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _send(interface: str, frames: list[bytes], rate: float) -> dict[str, Any]:
    """Send until SIGTERM: runs in a child."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
    batches = itertools.cycle(_batches(frames))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as opened:
        opened.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        opened.bind((interface, 0))
        print(flush=True)
        sent, started_at = 0, time.monotonic()
        while not stopping:
            ahead = started_at + sent / rate - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
            batch = next(batches)
            taken = sendmmsg(opened.fileno(), batch.messages, batch.length, 0)
            number = ctypes.get_errno()
            # A full queue is as if the wire had lost them.
            if taken < 0 and number not in (errno.EAGAIN, errno.ENOBUFS):
                raise LabError(f"sendmmsg: {errno.errorcode.get(number, number)}")
            sent += max(taken, 0)
        return {"sent": sent, "seconds": time.monotonic() - started_at}


class _Batch(NamedTuple):
    messages: Any
    length: int
    pointed_to: tuple[Any, ...]  # which must live as long


def _batches(frames: list[bytes]) -> list[_Batch]:
    """Return arrays for sendmmsg."""
    batches = []
    for start in range(0, len(frames), BATCH):
        some = [ctypes.create_string_buffer(f, len(f)) for f in frames[start : start + BATCH]]
        packed = b"".join(_IOVEC.pack(ctypes.addressof(f), len(f)) for f in some)
        iovecs = ctypes.create_string_buffer(packed, len(packed))
        first = ctypes.addressof(iovecs)
        packed = b"".join(
            _MESSAGE.pack(0, 0, first + index * _IOVEC.size, 1, 0, 0, 0, 0)
            for index in range(len(some))
        )
        messages = ctypes.create_string_buffer(packed, len(packed))
        batches.append(_Batch(messages, len(some), (iovecs, *some)))
    return batches
