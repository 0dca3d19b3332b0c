"""A digest of everything that replicates, so that two members can tell what they hold differently.

Each thing (a fact, or the belief about one member's liveness) is an entry: an id that is a hash of
what it is about, a version, and a digest of what is held.  The first six bits of the id choose one
of 64 buckets, and a bucket's sum is the XOR of its entries' digests: it is kept up to date entry by
entry, and does not depend on the order.

    id      8 bytes   hash of (kind, key); the last two bits say what is fetched first: 0 what
                      decides on the rest (`DECISIVE`), 1 other facts, 2 beliefs
    version uint64    a fact's own version; of a belief: incarnation, then how dead
    digest  8 bytes   the fact's own; of a belief: hash of (subject, version)
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from meshd.gossip.wire import BUCKETS, CLAIM_ITEM, ID_BYTES, EntrySummary
from meshd.keys import fingerprint
from meshd.trust.fact import DECISIVE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.keys import NodeId

_BUCKET_SHIFT = 2  # of the id's first byte
_TURN_BITS = 3  # of its last


class Entry(NamedTuple):
    """What is held under one id."""

    kind: int
    key: bytes
    summary: EntrySummary


class Turn(enum.IntEnum):
    """What is judged, fetched and told first.  The values are part of the wire format."""

    DECISIVE = 0
    FACT = 1
    BELIEF = 2


def turn_of(kind: int) -> Turn:
    """Return the turn of what is of a kind."""
    if kind == CLAIM_ITEM:
        return Turn.BELIEF
    return Turn.DECISIVE if kind in DECISIVE else Turn.FACT


def entry_id(kind: int, key: bytes) -> bytes:
    """Return the id of the entry about something."""
    hashed = fingerprint(bytes((kind,)), key, size=ID_BYTES, person=b"meshd.entry")
    return hashed[:-1] + bytes((hashed[-1] & ~_TURN_BITS | turn_of(kind),))


def turn_of_id(id_: bytes) -> int:
    """Return the turn of an entry.  Of an id from outside it may be none of `Turn`."""
    return id_[-1] & _TURN_BITS


def is_belief_id(id_: bytes) -> bool:
    """Return whether an entry is about a member's liveness, not a fact."""
    return turn_of_id(id_) >= Turn.BELIEF


def belief_digest(subject: NodeId, version: int) -> bytes:
    """Return the digest of a belief about a member's liveness."""
    return fingerprint(subject, version.to_bytes(8, "big"), size=8, person=b"meshd.belief")


class Index:
    """All entries, by bucket."""

    def __init__(self) -> None:
        self._buckets: list[dict[bytes, Entry]] = [{} for _ in range(BUCKETS)]
        self._sums = [0] * BUCKETS
        self._ids: dict[tuple[int, bytes], bytes] = {}
        self.facts_changed = 0  # how often: what anti-entropy measures its progress by

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Entry]:
        for bucket in self._buckets:
            yield from bucket.values()

    def put(self, kind: int, key: bytes, version: int, digest: bytes) -> None:
        """Set the entry about something, replacing the one there was."""
        id_ = self._ids.get((kind, key)) or entry_id(kind, key)
        self._ids[kind, key] = id_
        number = id_[0] >> _BUCKET_SHIFT
        before = self._buckets[number].get(id_)
        if before is not None:
            self._sums[number] ^= int.from_bytes(before.summary.digest, "big")
        self._sums[number] ^= int.from_bytes(digest, "big")
        self._buckets[number][id_] = Entry(kind, key, EntrySummary(id_, version, digest))
        if kind != CLAIM_ITEM:
            self.facts_changed += 1

    def remove(self, kind: int, key: bytes) -> None:
        """Drop the entry about something, if there is one."""
        id_ = self._ids.pop((kind, key), None)
        if id_ is not None:
            number = id_[0] >> _BUCKET_SHIFT
            entry = self._buckets[number].pop(id_)
            self._sums[number] ^= int.from_bytes(entry.summary.digest, "big")

    def get(self, id_: bytes) -> Entry | None:
        """Return the entry with an id."""
        return self._buckets[id_[0] >> _BUCKET_SHIFT].get(id_)

    def buckets(self) -> bytes:
        """Return the sums of all buckets."""
        return b"".join(total.to_bytes(8, "big") for total in self._sums)

    def differing(self, buckets: bytes) -> int:
        """Return which buckets differ from another node's, bit 63 - i for bucket i."""
        differing = 0
        for number, total in enumerate(self._sums):
            if buckets[number * 8 : number * 8 + 8] != total.to_bytes(8, "big"):
                differing |= 1 << (BUCKETS - 1 - number)
        return differing

    def select(self, differing: int, first: bytes, last: bytes) -> list[Entry]:
        """Return the entries of some buckets within a range of ids, in the order of ids."""
        return [
            bucket[id_]
            for number, bucket in enumerate(self._buckets)
            if differing >> (BUCKETS - 1 - number) & 1
            for id_ in sorted(bucket)
            if first <= id_ <= last
        ]
