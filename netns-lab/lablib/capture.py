"""Capturing what passes over a cable, and reading it back.

tcpdump writes the file, so people can open it with their own tools; `packets` reads just enough
of it to say who sent which datagram to whom.
"""

from __future__ import annotations

import re
import signal
import socket
import struct
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Self, TypeAlias

from lablib.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from lablib.namespace import Namespace

IPAddress: TypeAlias = IPv4Address | IPv6Address

STOP_TIMEOUT = 10.0
FRAME_BYTES_MAX = 65535
BUFFER_KIBIBYTES = 32768  # of the kernel's: room for 500 frames, each taking as much as the longest
PCAP_MAGIC = 0xA1B2C3D4  # microseconds; pcap-savefile(5)
_FILE_HEADER = struct.Struct("=IHHiIII")
_RECORD_HEADER = struct.Struct("=IIII")
_ETHERNET_HEADER_BYTES = 14
_IPV6_HEADER_BYTES = 40
_UDP_HEADER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet seen on a cable; ports are 0 and the payload is IP's where it is not UDP."""

    at: float  # Unix time
    source: IPAddress
    destination: IPAddress
    protocol: int  # IPPROTO_…
    source_port: int
    destination_port: int
    payload: bytes


class Capture:
    """A running tcpdump; also a context manager that stops it."""

    def __init__(
        self, namespace: Namespace, interface: str, path: Path, expression: Sequence[str]
    ) -> None:
        self.path = path
        # At once: what lies in a half-full block of the kernel's when it is stopped, is lost.
        argv = ["tcpdump", "--immediate-mode", "-i", interface, "-n", "-U"]
        argv += ["-B", str(BUFFER_KIBIBYTES), "-s", str(FRAME_BYTES_MAX), "-w", "-"]
        # Through standard output, since inside the namespace our /run is out of sight.
        with path.open("wb") as file:
            self._process = namespace.popen(
                [*argv, *expression], stdout=file, stderr=subprocess.PIPE
            )
        messages = self._process.stderr
        assert messages is not None
        said = []
        for line in messages:
            said.append(line)
            if "listening on" in line:
                return
        self._process.wait()
        messages.close()
        raise LabError(f"cannot capture on {interface}: {''.join(said).strip()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> Path:
        """End the capture and return its file; stopping twice does no harm."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        with self._process:
            _, said = self._process.communicate(timeout=STOP_TIMEOUT)
        dropped = re.search(r"^([1-9]\d*) packets? dropped by kernel", said or "", re.MULTILINE)
        if dropped:
            raise LabError(f"the capture {self.path} is incomplete: {dropped[0]}")
        return self.path

    def packets(self) -> list[Packet]:
        """Stop, and return the IP packets in the order they were seen."""
        return list(read_packets(self.stop()))


def read_packets(path: Path) -> Iterator[Packet]:
    """Read the IP packets of a capture made on an Ethernet interface of this machine."""
    data = path.read_bytes()
    magic = _FILE_HEADER.unpack_from(data)[0]
    if magic != PCAP_MAGIC:
        raise LabError(f"{path} is no capture of tcpdump's on this machine")
    offset = _FILE_HEADER.size
    while offset + _RECORD_HEADER.size <= len(data):
        seconds, microseconds, length, _ = _RECORD_HEADER.unpack_from(data, offset)
        offset += _RECORD_HEADER.size
        packet = _parse(seconds + microseconds / 1e6, data[offset : offset + length])
        if packet is not None:
            yield packet
        offset += length


def _parse(at: float, frame: bytes) -> Packet | None:
    """Read an Ethernet frame; None for what is not IP."""
    kind = int.from_bytes(frame[12:14], "big")
    ip = frame[_ETHERNET_HEADER_BYTES:]
    source: IPAddress
    destination: IPAddress
    if kind == 0x0800:
        header_bytes = (ip[0] & 0x0F) * 4
        # Short frames are padded, so IP's own length decides.
        ip = ip[: int.from_bytes(ip[2:4], "big")]
        protocol, source, destination = ip[9], IPv4Address(ip[12:16]), IPv4Address(ip[16:20])
    elif kind == 0x86DD:
        header_bytes = _IPV6_HEADER_BYTES
        ip = ip[: header_bytes + int.from_bytes(ip[4:6], "big")]
        protocol, source, destination = ip[6], IPv6Address(ip[8:24]), IPv6Address(ip[24:40])
    else:
        return None
    payload = ip[header_bytes:]
    if protocol != socket.IPPROTO_UDP:
        return Packet(at, source, destination, protocol, 0, 0, payload)
    source_port, destination_port = struct.unpack_from("!HH", payload)
    data = payload[_UDP_HEADER_BYTES:]
    return Packet(at, source, destination, protocol, source_port, destination_port, data)
