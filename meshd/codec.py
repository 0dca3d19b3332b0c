"""The one way in which meshd turns values into bytes and untrusted bytes into values.

Bodies are msgpack maps with small integers as keys.  The rule for growth: a reader refuses a key
below `OPTIONAL_KEY_MIN` that it does not know, because it may restrict what the rest means, and
ignores an unknown key from there on.  Bodies that are signed are stored and forwarded verbatim,
so a key ignored here still reaches those who know it.

Everything whose name ends in `_untrusted` raises nothing but `BadPacket`, whatever the bytes.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, TypeAlias

import msgpack

from meshd.errors import BadPacket

if TYPE_CHECKING:
    from collections.abc import Mapping

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network

OPTIONAL_KEY_MIN = 64
BODY_BYTES_MAX = 4096  # above any body's own limit; keeps a stray caller from parsing megabytes
UINT64_MAX = 2**64 - 1


def pack(value: object) -> bytes:
    """Return the msgpack form of a value made of None, bool, int, str, bytes, list, tuple, dict."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack_untrusted(data: bytes) -> object:
    """Parse one msgpack value; sequences become tuples."""
    if len(data) > BODY_BYTES_MAX:
        raise BadPacket("body too long")
    try:
        value: object = msgpack.unpackb(data, use_list=False, strict_map_key=False, max_ext_len=0)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as exc:
        raise BadPacket("not msgpack") from exc
    return value


class Fields:
    """A msgpack map from outside, read field by field.

    Each getter takes a key and returns a value of the one type it names, or raises `BadPacket`.
    An absent key gives the getter's `default`, where it has one.  `done` must be called last: it
    refuses the critical keys that no getter asked for.
    """

    def __init__(self, value: object, *, what: str) -> None:
        if not isinstance(value, dict):
            raise BadPacket(f"{what} is not a map")
        self._what = what
        self._fields: Mapping[object, object] = value
        self._asked: set[int] = set()

    @classmethod
    def unpack_untrusted(cls, data: bytes, *, what: str) -> Fields:
        """Parse a body that must be a map."""
        return cls(unpack_untrusted(data), what=what)

    def _get(self, key: int) -> object:
        self._asked.add(key)
        return self._fields.get(key)

    def _bad(self, key: int) -> BadPacket:
        return BadPacket(f"{self._what} field {key} malformed")

    def has(self, key: int) -> bool:
        """Whether the field is there at all."""
        self._asked.add(key)
        return self._fields.get(key) is not None

    def uint(self, key: int, *, maximum: int = UINT64_MAX, default: int | None = None) -> int:
        """Read an unsigned integer up to `maximum`."""
        value = self._get(key)
        if value is None and default is not None:
            return default
        # A bool is an int in Python, and msgpack has both.
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
            raise self._bad(key)
        return value

    def flag(self, key: int, *, default: bool = False) -> bool:
        """Read a bool."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._bad(key)
        return value

    def blob(self, key: int, *, size: int | None = None, maximum: int = BODY_BYTES_MAX) -> bytes:
        """Read bytes of exactly `size`, or of up to `maximum`."""
        value = self._get(key)
        if not isinstance(value, bytes) or len(value) > maximum:
            raise self._bad(key)
        if size is not None and len(value) != size:
            raise self._bad(key)
        return value

    def text(self, key: int, *, bytes_max: int, default: str | None = None) -> str:
        """Read a string of up to `bytes_max` bytes of UTF-8."""
        value = self._get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or len(value.encode("utf-8", "surrogatepass")) > bytes_max:
            raise self._bad(key)
        return value

    def items(self, key: int, *, count_max: int) -> tuple[object, ...]:
        """Read an array of up to `count_max` values; an absent one is empty."""
        value = self._get(key)
        if value is None:
            return ()
        if not isinstance(value, tuple) or len(value) > count_max:
            raise self._bad(key)
        return value

    def blobs(self, key: int, *, count_max: int, bytes_max: int) -> tuple[bytes, ...]:
        """Read an array of byte strings."""
        blobs = []
        for value in self.items(key, count_max=count_max):
            if not isinstance(value, bytes) or len(value) > bytes_max:
                raise self._bad(key)
            blobs.append(value)
        return tuple(blobs)

    def address(self, key: int) -> IPAddress | None:
        """Read an IP address; an absent one is None."""
        value = self._get(key)
        return None if value is None else address_untrusted(value)

    def networks(self, key: int, *, count_max: int) -> tuple[IPNetwork, ...]:
        """Read an array of IP networks."""
        return tuple(network_untrusted(value) for value in self.items(key, count_max=count_max))

    def done(self) -> None:
        """Refuse what no getter has asked for, unless it is optional."""
        for key in self._fields:
            if not isinstance(key, int) or isinstance(key, bool):
                raise BadPacket(f"{self._what} has a key that is not an integer")
            if key < OPTIONAL_KEY_MIN and key not in self._asked:
                raise BadPacket(f"{self._what} has an unknown critical field")


def pack_address(address: IPAddress) -> bytes:
    """Return an address as its 4 or 16 bytes."""
    return address.packed


def address_untrusted(value: object) -> IPAddress:
    """Read an address of 4 or 16 bytes; an IPv4 address in IPv6 clothes is refused."""
    if isinstance(value, bytes) and len(value) == 4:
        return IPv4Address(value)
    if isinstance(value, bytes) and len(value) == 16:
        address = IPv6Address(value)
        if address.ipv4_mapped is None:
            return address
    raise BadPacket("malformed address")


def pack_network(network: IPNetwork) -> bytes:
    """Return a network as its address and one byte of prefix length."""
    return network.network_address.packed + bytes([network.prefixlen])


def network_untrusted(value: object) -> IPNetwork:
    """Read a network of 5 or 17 bytes, with no bits set behind its prefix."""
    if not isinstance(value, bytes) or len(value) not in {5, 17}:
        raise BadPacket("malformed network")
    try:
        if len(value) == 5:
            return IPv4Network((value[:4], value[4]))
        return IPv6Network((value[:16], value[16]))
    except ValueError as exc:
        raise BadPacket("malformed network") from exc


def host_network(address: IPAddress) -> IPNetwork:
    """Return the network that holds one address only."""
    if isinstance(address, IPv4Address):
        return IPv4Network((address.packed, 32))
    return IPv6Network((address.packed, 128))
