"""Which node ids are one member, one after the other.

    succession a ▶ b, held  ┐
    record of b, held, its  ├─▶ b is the member, a is succeeded     a ◀── b ◀── c    one line
    credential succeeds a   ┘                                     first         present

Rule 1: all of this follows from facts that are held, never from what is revoked, lost or expired:
        who is out is judged afterwards, and cannot come back by the way in which it is judged.

Rule 2: of several that succeed one id, the one whose succession is dated first has its place, the
        lower id among equals.  The others are out as much as the former id is.  The date is the
        former key's own word; but each of them needs a credential that says what it succeeds, and
        members with `admit` give none to whom they know to be succeeded already.

Rule 3: a succeeded id is no member, and what it has signed as one with `admit` counts only as far
        as its succession lists it.

Rule 4: whoever claims to succeed an id, and of whose succession nothing is held, is no member: not
        yet, as a rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.keys import NodeId
from meshd.trust.node_succession import kept_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.keys import MeshId
    from meshd.trust.credential import Credential
    from meshd.trust.node_succession import NodeSuccession

SUCCESSIONS_MAX = 16384
RIVALS_MAX = 4  # successions of one id


class Lineage:
    """See the module docstring."""

    def __init__(self, *, successions_max: int = SUCCESSIONS_MAX) -> None:
        self._successions_max = successions_max
        self._held: dict[NodeId, NodeSuccession] = {}  # by the new id
        self._rivals: dict[NodeId, dict[NodeId, None]] = {}  # new ids, by the former one
        self._claims: dict[NodeId, NodeId] = {}  # whom the record of a node says that it succeeds
        self._followed: dict[NodeId, NodeSuccession] = {}  # what counts, by the former id
        # All ids of each line, by any of them; worked out when that is asked for.
        self._ids: dict[NodeId, list[NodeId]] | None = None

    def __bool__(self) -> bool:
        """Whether anybody is succeeded."""
        return bool(self._followed)

    # Inputs

    def has_room_for(self, succession: NodeSuccession) -> bool:
        """Whether a succession to an id that is new here may be kept."""
        rivals = self._rivals.get(succession.former, {})
        return len(self._held) < self._successions_max and len(rivals) < RIVALS_MAX

    def keep(self, succession: NodeSuccession) -> None:
        """Take a succession."""
        self._held[succession.node] = succession
        self._rivals.setdefault(succession.former, {})[succession.node] = None
        self._decide(succession.former)

    def drop(self, node: NodeId) -> None:
        """Forget the succession to a new id."""
        former = self._held.pop(node).former
        del self._rivals[former][node]
        if not self._rivals[former]:
            del self._rivals[former]
        self._decide(former)

    def claim(self, node: NodeId, former: NodeId | None) -> bool:
        """Take whom the record of a node says that it succeeds; None: nobody, or no record.

        Return whether anybody's standing but its own may be another one by that.
        """
        before = self._claims.pop(node, None)
        if former is not None:
            self._claims[node] = former
        if before == former:
            return False
        changed = [self._decide(each) for each in (before, former) if each is not None]
        return any(changed)

    # What follows

    def succession_of(self, node: NodeId) -> NodeSuccession | None:
        """Return by what a node id is succeeded."""
        return self._followed.get(node)

    def in_place_of(self, node: NodeId) -> NodeId | None:
        """Return who is the member in place of a succeeded id, or of a rival that lost: rule 2."""
        followed = self._followed.get(node)
        if followed is not None:
            return followed.node
        former = self._claims.get(node)
        if former is None or not self.proven(node):
            return None
        won = self._followed[former].node
        return None if won == node else won

    def predecessor(self, node: NodeId) -> NodeId | None:
        """Return whose place a member has taken."""
        former = self._claims.get(node)
        followed = None if former is None else self._followed.get(former)
        return former if followed is not None and followed.node == node else None

    def proven(self, node: NodeId) -> bool:
        """Whether a node succeeds nobody, or whom it says it does: rule 4."""
        former = self._claims.get(node)
        if former is None:
            return True
        held = self._held.get(node)
        return held is not None and held.former == former

    def ids_of(self, node: NodeId) -> tuple[NodeId, ...]:
        """Return all ids of the line that a node id is part of, for most its own alone."""
        if self._ids is None:
            self._ids = {}
            lines: dict[NodeId, list[NodeId]] = {}
            for former, followed in self._followed.items():
                for each in (former, followed.node):
                    before = self.line(each)
                    ring = self.predecessor(before[-1]) is not None
                    line = lines.setdefault(min(before) if ring else before[-1], [])
                    if each not in self._ids:
                        self._ids[each] = line
                        line.append(each)
        return tuple(self._ids.get(node, (node,)))

    def line(self, node: NodeId) -> tuple[NodeId, ...]:
        """Return a node id and those before it in its line, the latest first."""
        ids = {node: None}
        before = self.predecessor(node)
        while before is not None and before not in ids:  # of a ring, all are succeeded
            ids[before] = None
            before = self.predecessor(before)
        return tuple(ids)

    def present(self, node: NodeId) -> NodeId:
        """Return the last id of the line that a node id is part of."""
        seen = {node}
        while (followed := self._followed.get(node)) is not None and followed.node not in seen:
            node = followed.node
            seen.add(node)
        return node

    def counts(self, signer: MeshId | NodeId, blob: bytes) -> bool:
        """Whether a statement that bears somebody's signature counts: rule 3."""
        if not self._followed or not isinstance(signer, NodeId):
            return True
        followed = self._followed.get(signer)
        return followed is None or kept_digest(blob) in followed.kept

    def chain_counts(self, chain: Sequence[bytes], credentials: Sequence[Credential]) -> bool:
        """Whether each link of a chain counts: its blobs, and what they say."""
        return not self._followed or all(
            self.counts(credential.issuer, blob)
            for credential, blob in zip(credentials, chain, strict=True)
        )

    # Inside

    def _decide(self, former: NodeId) -> bool:
        """Work out by what an id is succeeded.  Return whether that has changed."""
        before = self._followed.pop(former, None)
        claiming = [
            self._held[node]
            for node in self._rivals.get(former, {})
            if self._claims.get(node) == former
        ]
        if claiming:
            self._followed[former] = min(claiming, key=lambda held: (held.dated, held.node))
        self._ids = None
        return self._followed.get(former) != before
