"""Which node ids are one member, one after the other.

    record of b, signed by b: I succeed a, says my credential, and a has signed that too
                                                                  a ◀── b ◀── c    one line

Rule 1: as soon as such a record is held b is the member and a is succeeded, for good.  That follows
        from records alone, never from what is revoked, lost or expired: who is out is judged
        afterwards, and cannot come back by the way in which it is judged.

Rule 2: of several that succeed one id, the one that was dated first has its place, the lower id
        among equals.  The others are out as much as the former id is.  The date is the former key's
        own word; but each of them needs a credential that says what it succeeds, and members with
        `admit` give none to whom they know to be succeeded already.

Rule 3: a succeeded id is no member, and what it has signed as one with `admit` counts only as far
        as the succession lists it (`node_succession`), which is told ahead of the record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meshd.keys import NodeId
from meshd.trust.node_succession import kept_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.keys import MeshId
    from meshd.trust.credential import Credential
    from meshd.trust.node_succession import NodeSuccession

SUCCESSIONS_MAX = 16384
RIVALS_MAX = 4  # successions of one id


class Claim(NamedTuple):
    """What the record of a node says that it succeeds, and since when."""

    former: NodeId
    dated: int


class Lineage:
    """See the module docstring."""

    def __init__(self, *, successions_max: int = SUCCESSIONS_MAX) -> None:
        self._successions_max = successions_max
        self._claims: dict[NodeId, Claim] = {}  # by the new id
        self._heirs: dict[NodeId, dict[NodeId, None]] = {}  # new ids, by the former one
        self._followed: dict[NodeId, NodeId] = {}  # who has the place of a former id
        self._held: dict[NodeId, NodeSuccession] = {}  # by the new id
        self._listed: dict[NodeId, int] = {}  # how many of these there are, by the former id
        # All ids of each line, by any of them; worked out when that is asked for.
        self._ids: dict[NodeId, list[NodeId]] | None = None

    # Inputs

    def claim(self, node: NodeId, claim: Claim | None) -> bool:
        """Take what the record of a node says; None: that it succeeds nobody, or no record.

        Return whether anybody's standing but its own may be another one by that.
        """
        before = self._claims.pop(node, None)
        if before is not None:
            del self._heirs[before.former][node]
        if claim is not None:
            self._claims[node] = claim
            self._heirs.setdefault(claim.former, {})[node] = None
        if before == claim:
            return False
        changed = [self._decide(each.former) for each in (before, claim) if each is not None]
        return any(changed)

    def has_room_for(self, succession: NodeSuccession) -> bool:
        """Whether a succession to an id that is new here may be kept."""
        rivals = self._listed.get(succession.former, 0)
        return len(self._held) < self._successions_max and rivals < RIVALS_MAX

    def keep(self, succession: NodeSuccession) -> None:
        """Take a succession, for what it lists."""
        self._held[succession.node] = succession
        self._listed[succession.former] = self._listed.get(succession.former, 0) + 1

    def drop(self, node: NodeId) -> None:
        """Forget the succession to a new id."""
        former = self._held.pop(node).former
        self._listed[former] -= 1
        if not self._listed[former]:
            del self._listed[former]

    # What follows

    def announced(self, node: NodeId) -> NodeId | None:
        """Return whom a new id says, by a succession that is held, that it will succeed."""
        held = self._held.get(node)
        return None if held is None else held.former

    def in_place_of(self, node: NodeId) -> NodeId | None:
        """Return who is the member in place of a succeeded id, or of a rival that lost: rule 2."""
        followed = self._followed.get(node)
        if followed is not None or node not in self._claims:
            return followed
        won = self._followed[self._claims[node].former]
        return None if won == node else won

    def predecessor(self, node: NodeId) -> NodeId | None:
        """Return whose place a member has taken."""
        claim = self._claims.get(node)
        return claim.former if claim is not None and self._followed[claim.former] == node else None

    def succession_of(self, node: NodeId) -> NodeSuccession | None:
        """Return the succession of a succeeded id, if it is held."""
        held = self._held.get(self._followed.get(node, node))
        return held if held is not None and held.former == node else None

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
        while (followed := self._followed.get(node)) is not None and followed not in seen:
            node = followed
            seen.add(node)
        return node

    def ids_of(self, node: NodeId) -> tuple[NodeId, ...]:
        """Return all ids of the line that a node id is part of, for most its own alone."""
        if self._ids is None:
            self._ids = {}
            lines: dict[NodeId, list[NodeId]] = {}
            for pair in self._followed.items():
                for each in pair:
                    before = self.line(each)
                    ring = self.predecessor(before[-1]) is not None
                    line = lines.setdefault(min(before) if ring else before[-1], [])
                    if each not in self._ids:
                        self._ids[each] = line
                        line.append(each)
        return tuple(self._ids.get(node, (node,)))

    def counts(self, signer: MeshId | NodeId, blob: bytes) -> bool:
        """Whether a statement that bears somebody's signature counts: rule 3."""
        if not self._followed or not isinstance(signer, NodeId):
            return True
        succession = self.succession_of(signer) if signer in self._followed else None
        return succession is None or kept_digest(blob) in succession.kept

    def chain_counts(self, chain: Sequence[bytes], credentials: Sequence[Credential]) -> bool:
        """Whether each link of a chain counts: its blobs, and what they say."""
        return not self._followed or all(
            self.counts(credential.issuer, blob)
            for credential, blob in zip(credentials, chain, strict=True)
        )

    # Inside

    def _decide(self, former: NodeId) -> bool:
        """Work out who has the place of an id.  Return whether that is another one now."""
        before = self._followed.pop(former, None)
        heirs = self._heirs.get(former)
        if heirs:
            self._followed[former] = min(heirs, key=lambda node: (self._claims[node].dated, node))
        elif heirs is not None:
            del self._heirs[former]
        self._ids = None
        return self._followed.get(former) != before
