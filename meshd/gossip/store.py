"""What gossip asks of the ledger of facts: `meshd.trust.ledger.Ledger`, or anything like it.

Gossip carries facts and knows when two nodes hold different ones.  What a fact means, and whether
it is true, is the ledger's to judge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from meshd.keys import NodeId
    from meshd.trust.fact import Fact
    from meshd.trust.ledger import Merge


class FactStore(Protocol):
    """The part of the ledger that gossip needs."""

    def merge_untrusted(self, kind: int, blob: bytes, wall: float) -> Merge:
        """Judge a fact and keep it if it is news.  Raise BadPacket."""

    def facts(self) -> Iterator[Fact]:
        """Return all facts, in a fixed order."""

    def get(self, kind: int, key: bytes) -> Fact | None:
        """Return one fact."""

    def members(self) -> Iterable[NodeId]:
        """Return every node that a record is held of, in a fixed order."""

    def admitted(self, node: NodeId) -> bool:
        """Return whether a node is a member: it has a record and nothing speaks against it."""
