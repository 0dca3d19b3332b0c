"""How often each may ask: a token bucket for everybody who can be told apart.

Rule 1: a source on the underlay is what one party gets from its provider: one IPv4 address, or the
        64 bits of an IPv6 prefix, behind which it may have any number of addresses.

Rule 2: a source gets a bucket only when it has proven that it hears what is sent there.  So forged
        sources fill no table; see `cookie` for the proof.

Rule 3: the table is bounded, and forgets whoever asked longest ago.  To be forgotten early gains
        one burst; the bucket that all share stands behind these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from meshd.underlay import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Hashable

    from meshd.codec import IPAddress

IPV6_SOURCE_BYTES = 8

KeyT = TypeVar("KeyT", bound="Hashable")


class Buckets(Generic[KeyT]):
    """One `TokenBucket` for each key, for `keys_max` of them at most."""

    def __init__(self, *, rate: float, burst: int, keys_max: int) -> None:
        """Allow each key `rate` a second in the long run, and `burst` at once."""
        assert keys_max > 0
        self._rate = rate
        self._burst = burst
        self._keys_max = keys_max
        self._buckets: dict[KeyT, TokenBucket] = {}  # whoever asked last is last

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: KeyT, now: float) -> bool:
        """Spend one token of a key's.  Return whether there was one."""
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            bucket = TokenBucket(rate=self._rate, burst=self._burst, now=now)
        self._buckets[key] = bucket
        if len(self._buckets) > self._keys_max:
            del self._buckets[next(iter(self._buckets))]
        return bucket.take(now)


def source_of(address: IPAddress) -> bytes:
    """Return what all addresses of one party have in common: rule 1."""
    return address.packed if address.version == 4 else address.packed[:IPV6_SOURCE_BYTES]
