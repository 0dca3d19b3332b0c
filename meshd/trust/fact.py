"""A fact: a durable signed statement that every member keeps and passes on.

Rule 1: of two facts with the same kind and key, the one of greater precedence is kept, and
        precedence is a total order.  Keeping the greater of two is commutative, associative and
        idempotent, so facts may arrive in any order and any number of times.

Rule 2: what a fact means may depend on other facts (a record on revocations).  That never decides
        whether it is kept, so all who have received the same facts hold the same facts.

| kind            | key                              | version                              |
| --------------- | -------------------------------- | ------------------------------------ |
| RECORD          | node id                          | the node's own sequence number       |
| REVOCATION      | fingerprint of (subject, signer) | 1 if it cascades, else 0             |
| INVITE_USE      | fingerprint of (invite, subject) | higher the earlier the use           |
| SUCCESSION      | fingerprint of the root's number | that number                          |
| GRANT           | node id                          | number of its root, then issued_at   |
| BOOTSTRAP_EPOCH | the same for the whole mesh      | number of its root, then its own     |
| NODE_SUCCESSION | the new node id                  | its date                             |
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from meshd.keys import fingerprint

FACT_KEY_BYTES = 32
FACT_BYTES_MAX = 1000  # of any kind's blob; two fit no datagram, one fits every
DIGEST_BYTES = 8


class FactKind(enum.IntEnum):
    """The values are part of the wire format.  Only append."""

    RECORD = 1
    REVOCATION = 2
    INVITE_USE = 3
    SUCCESSION = 4
    GRANT = 5
    BOOTSTRAP_EPOCH = 6
    NODE_SUCCESSION = 7


# Of these, each bears on one node, its key; of others, anybody's standing may change.
ABOUT_ONE_NODE = frozenset({FactKind.RECORD, FactKind.GRANT})
# What the others are worth is decided by these: they are told, fetched and judged before all else.
DECISIVE = frozenset({FactKind.REVOCATION, FactKind.SUCCESSION, FactKind.NODE_SUCCESSION})


@dataclass(frozen=True, slots=True)
class Fact:
    """One verified statement, ready to be stored and forwarded."""

    kind: FactKind
    key: bytes  # FACT_KEY_BYTES
    version: int
    blob: bytes = field(repr=False)
    digest: bytes = field(init=False, repr=False, compare=False)  # DIGEST_BYTES, names this fact

    def __post_init__(self) -> None:
        assert len(self.key) == FACT_KEY_BYTES
        assert len(self.blob) <= FACT_BYTES_MAX
        head = bytes([self.kind]) + self.version.to_bytes(8, "big")
        digest = fingerprint(head, self.key, self.blob, size=DIGEST_BYTES, person=b"meshd.fact")
        object.__setattr__(self, "digest", digest)

    @property
    def precedence(self) -> tuple[int, bytes]:
        """Greater wins.  The blob itself breaks ties: unlike a short digest it cannot collide."""
        return self.version, self.blob
