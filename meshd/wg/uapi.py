"""The text protocol of userspace WireGuard: changes to bytes, answers to a status.

It is the cross-platform userspace interface that wireguard-go serves on a unix socket: lines
`key=value`, an empty line at the end, keys in hexadecimal.

    set=1                       get=1
    private_key=…               ──────────────────────
    listen_port=51820           private_key=…
    public_key=…                listen_port=51820
    update_only=true            public_key=…
    allowed_ip=10.0.0.1/32      endpoint=192.0.2.1:51820
                                allowed_ip=10.0.0.1/32
    ─────────────               …
    errno=0                     errno=0

Rule 1: the flags of a peer come right behind its `public_key`, and `replace_allowed_ips` before
        the first `allowed_ip`: lines take effect one by one.

Rule 2: an unknown key is skipped, because answers grow with the protocol.

Rule 3: whatever bytes come in, the outcome is a status or a `DeviceError`, and no error holds any
        of them: they may be keys.

This module is pure: `meshd.wg.userspace` owns the socket.
"""

from __future__ import annotations

import errno
import functools
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING

from meshd.errors import DeviceError
from meshd.keys import KEY_BYTES, PresharedKey, WireGuardKey, WireGuardPrivateKey
from meshd.wg.types import DeviceStatus, Endpoint, PeerStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.codec import IPNetwork
    from meshd.wg.types import DeviceChange, PeerChange

GET_REQUEST = b"get=1\n\n"
ANSWER_END = b"\n\n"

# One request's worth of peers: some 20 ms for wireguard-go, however many there are in all.
CHUNK_PEERS_MAX = 256

ERRNO_MAX = 4095  # linux/err.h
PORT_MAX = 2**16 - 1
PREFIX_LENGTH_MAX = 128
FWMARK_MAX = 2**32 - 1
SECONDS_MAX = 2**63 - 1
BYTES_MAX = 2**64 - 1
DIGITS_MAX = 20  # of the largest of these
NANOSECONDS = 1e9

# What is polled again and again is made once.
NETWORKS_CACHED_MAX = 65_536
ENDPOINTS_CACHED_MAX = 16_384

_NO_KEY = bytes(KEY_BYTES)


def encode_set(change: DeviceChange) -> Iterator[bytes]:
    """Encode a change as requests to be sent in order, each after the answer to the one before.

    A change of nothing gives no request.
    """
    lines = [*_device_lines(change)]
    for start in range(0, len(change.peers), CHUNK_PEERS_MAX):
        for peer in change.peers[start : start + CHUNK_PEERS_MAX]:
            lines += _peer_lines(peer)
        yield _request(lines)
        lines = []
    if lines:
        yield _request(lines)


def raise_for_error(answer: bytes, operation: str) -> None:
    """Raise the DeviceError that an answer ends with, unless that is `errno=0`."""
    last = answer.removesuffix(ANSWER_END).rpartition(b"\n")[2]
    if not answer.endswith(ANSWER_END) or not last.startswith(b"errno="):
        raise _malformed()
    # wireguard-go gives the errno as the kernel does, negative; the protocol's text does not say.
    number = _number(last.removeprefix(b"errno=").removeprefix(b"-"), ERRNO_MAX)
    if number:
        raise DeviceError(operation, number)


class StatusReader:
    """Reads the answers to `GET_REQUEST`, which `raise_for_error` has found to be good ones.

    Answers are long, many, and mostly the same: a peer whose lines are those of the answer before
    is not read again.
    """

    def __init__(self) -> None:
        self._peers: dict[bytes, tuple[WireGuardKey, PeerStatus]] = {}  # by their lines

    def read(self, answer: bytes) -> DeviceStatus:
        """Return the device with all its peers."""
        first, *others = (b"\n" + answer).split(b"\npublic_key=")
        device, before = _Lines(first), self._peers
        self._peers = {lines: before.get(lines) or _read_peer(lines) for lines in others}
        private_key = device.key(b"private_key")
        return DeviceStatus(
            private_key=None if private_key is None else WireGuardPrivateKey(private_key),
            listen_port=device.number(b"listen_port", PORT_MAX),
            fwmark=device.number(b"fwmark", FWMARK_MAX),
            peers=dict(self._peers.values()),
        )


def _read_peer(lines: bytes) -> tuple[WireGuardKey, PeerStatus]:
    """Read a peer's lines, from its key on."""
    key, _, rest = lines.partition(b"\n")
    peer = _Lines(rest)
    endpoint, preshared_key = peer.values.get(b"endpoint"), peer.key(b"preshared_key")
    seconds = peer.number(b"last_handshake_time_sec", SECONDS_MAX)
    nanoseconds = peer.number(b"last_handshake_time_nsec", SECONDS_MAX)
    return WireGuardKey(_key(key)), PeerStatus(
        allowed_ips=frozenset(peer.allowed_ips),
        endpoint=None if endpoint is None else _endpoint(endpoint),
        persistent_keepalive=peer.number(b"persistent_keepalive_interval", PORT_MAX),
        preshared_key=None if preshared_key is None else PresharedKey(preshared_key),
        last_handshake_time=seconds + nanoseconds / NANOSECONDS,
        rx_bytes=peer.number(b"rx_bytes", BYTES_MAX),
        tx_bytes=peer.number(b"tx_bytes", BYTES_MAX),
    )


class _Lines:
    """What an answer says of the device itself, or of one peer, by name; read when asked for."""

    def __init__(self, lines: bytes) -> None:
        self.values: dict[bytes, bytes] = {}
        self.allowed_ips: list[IPNetwork] = []
        for line in lines.split(b"\n"):
            name, separator, value = line.partition(b"=")
            if name == b"allowed_ip":
                self.allowed_ips.append(_network(value))
            elif separator:
                self.values[name] = value
            elif line:
                raise _malformed()

    def number(self, name: bytes, maximum: int) -> int:
        """Return a number; 0 where there is none."""
        return _number(self.values[name], maximum) if name in self.values else 0

    def key(self, name: bytes) -> bytes | None:
        """Return a key; None where there is none, or 32 zero bytes, which say so."""
        key = _key(self.values[name]) if name in self.values else _NO_KEY
        return None if key == _NO_KEY else key


def _device_lines(change: DeviceChange) -> Iterator[str]:
    if change.private_key is not None:
        yield f"private_key={change.private_key.hex()}"
    if change.listen_port is not None:
        yield f"listen_port={change.listen_port}"
    if change.fwmark is not None:
        yield f"fwmark={change.fwmark}"


def _peer_lines(peer: PeerChange) -> Iterator[str]:
    yield f"public_key={peer.public_key.hex()}"
    if peer.remove:
        yield "remove=true"
        return
    if peer.update_only:
        yield "update_only=true"
    if peer.preshared_key is not None:
        yield f"preshared_key={peer.preshared_key.hex()}"
    if peer.endpoint is not None:
        yield f"endpoint={peer.endpoint}"
    if peer.replace_allowed_ips:
        yield "replace_allowed_ips=true"
    for text in sorted(map(str, peer.allowed_ips)):
        yield f"allowed_ip={text}"
    # Last: switched on, it sends at once to the endpoint above.
    if peer.persistent_keepalive is not None:
        yield f"persistent_keepalive_interval={peer.persistent_keepalive}"


def _request(lines: list[str]) -> bytes:
    return "\n".join(["set=1", *lines, "", ""]).encode()


def _malformed() -> DeviceError:
    return DeviceError("read an answer of userspace WireGuard", errno.EBADMSG)


def _number(value: bytes, maximum: int) -> int:
    # bytes.isdigit is ASCII only; int() alone takes signs, spaces and underscores as well.
    if not value.isdigit() or len(value) > DIGITS_MAX:
        raise _malformed()
    number = int(value)
    if number > maximum:
        raise _malformed()
    return number


def _key(value: bytes) -> bytes:
    try:
        key = bytes.fromhex(value.decode("ascii"))
    except ValueError:
        raise _malformed() from None  # the cause would hold the key
    if len(key) != KEY_BYTES:
        raise _malformed()
    return key


@functools.lru_cache(NETWORKS_CACHED_MAX)
def _network(value: bytes) -> IPNetwork:
    try:
        address, _, prefix_length = value.decode("ascii").partition("/")
        packed = ip_address(address).packed
        network = IPv4Network if len(packed) == 4 else IPv6Network
        return network((packed, _number(prefix_length.encode(), PREFIX_LENGTH_MAX)))
    except ValueError:
        raise _malformed() from None


@functools.lru_cache(ENDPOINTS_CACHED_MAX)
def _endpoint(value: bytes) -> Endpoint:
    try:
        host, _, port = value.decode("ascii").rpartition(":")
        address = ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise _malformed() from None
    return Endpoint(address, _number(port.encode(), PORT_MAX))
