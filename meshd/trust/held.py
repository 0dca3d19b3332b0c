"""The facts that are held: by kind and key, and by what they are about.

    keep(fact, opened) ──▶ by_kind     the fact itself, as it is stored and passed on
                           records     ┐
                           revocations │  what it says, where others look for it
                           uses …      ┘

Rule 1: there is one fact under a key.  Which of two it is, is decided before (`ledger`); whatever
        is replaced is dropped first.

Rule 2: every table has a bound, for what is new; what is known may still be updated.  The last
        quarter of the revocations is for the mesh key alone, so that no member can fill the table
        against it; one half of the grants is for the newest root alone, so that whoever knows the
        key of one before it cannot.  Records have `places`; of successions between roots there are
        as many as the line has.

Rule 3: nothing is judged here.  What is held may count for nothing (`standings`).
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

from meshd.keys import NodeId
from meshd.trust.epoch import OpenedEpoch
from meshd.trust.fact import FactKind
from meshd.trust.grant import OpenedGrant
from meshd.trust.invite_use import OpenedUse
from meshd.trust.lineage import Lineage
from meshd.trust.node_succession import NodeSuccession
from meshd.trust.opening import OpenedRecord
from meshd.trust.revocation import OpenedRevocation
from meshd.trust.succession import Succession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.keys import InviteId
    from meshd.trust.fact import Fact
    from meshd.trust.opening import Opened
    from meshd.trust.roots import Roots

REVOCATIONS_MAX = 8192
REVOCATIONS_BY_MEMBERS_MAX = REVOCATIONS_MAX * 3 // 4
INVITE_USES_MAX = 65536


class Held:
    """See the module docstring.  The tables are for others to read."""

    def __init__(
        self,
        *,
        grants_max: int,
        revocations_max: int,
        revocations_by_members_max: int,
        invite_uses_max: int,
    ) -> None:
        self.grants_max = grants_max
        self.revocations_max = revocations_max
        self.revocations_by_members_max = revocations_by_members_max
        self.invite_uses_max = invite_uses_max
        self.by_kind: dict[FactKind, dict[bytes, Fact]] = {kind: {} for kind in FactKind}
        self.records: dict[NodeId, OpenedRecord] = {}
        self.order: list[NodeId] = []  # of `records`, sorted
        self.invited: dict[InviteId, dict[NodeId, None]] = {}  # whose credential names an invite
        self.revocations: dict[bytes, OpenedRevocation] = {}  # by key
        self.uses: dict[InviteId, dict[bytes, OpenedUse]] = {}  # by invite, then by key
        self.grants: dict[NodeId, OpenedGrant] = {}
        self.epoch: OpenedEpoch | None = None
        self.lineage = Lineage()
        self._revocations_by_members = 0

    def facts(self) -> Iterator[Fact]:
        """Give every fact, ordered by kind and key."""
        for kind in FactKind:
            for _, fact in sorted(self.by_kind[kind].items()):
                yield fact

    @property
    def uses_full(self) -> bool:
        """Whether there is no room for another use of an invite."""
        return len(self.by_kind[FactKind.INVITE_USE]) >= self.invite_uses_max

    def full(self, opened: Opened, roots: Roots) -> bool:
        """Whether there is no room for a statement under a key that is new here: rule 2."""
        match opened:
            case OpenedRevocation(credentials=()):
                return len(self.revocations) >= self.revocations_max
            case OpenedRevocation():
                return (
                    len(self.revocations) >= self.revocations_max
                    or self._revocations_by_members >= self.revocations_by_members_max
                )
            case OpenedUse():
                return self.uses_full
            case OpenedGrant(credential=credential):
                newest = credential.issuer == roots.newest
                return len(self.grants) >= self.grants_max // (1 if newest else 2)
            case NodeSuccession():
                return not self.lineage.has_room_for(opened)
            case OpenedEpoch() | OpenedRecord() | Succession():
                return False  # there is one epoch; of the others see rule 2

    def keep(self, fact: Fact, opened: Opened) -> bool:
        """Take a fact, and return whether which ids are one member is another matter by it."""
        self.by_kind[fact.kind][fact.key] = fact
        match opened:
            case OpenedRecord(record=record):
                self.records[record.node] = opened
                bisect.insort(self.order, record.node)
                if opened.invite is not None:
                    self.invited.setdefault(opened.invite, {})[record.node] = None
                return self.lineage.claim(record.node, opened.claim)
            case OpenedRevocation():
                self.revocations[fact.key] = opened
                self._revocations_by_members += bool(opened.credentials)
            case OpenedUse(use=use):
                self.uses.setdefault(use.invite, {})[fact.key] = opened
            case OpenedGrant(credential=credential):
                self.grants[credential.subject] = opened
            case OpenedEpoch():
                self.epoch = opened
            case NodeSuccession():
                self.lineage.keep(opened)
                return True
            case Succession():
                pass  # these are the line of roots, which `roots` has
        return False

    def drop(self, fact: Fact) -> None:
        """Undo `keep`: of a forgotten record, or of what a fact of greater precedence replaces.

        What the record of a node has claimed (`lineage`) stands until it is told otherwise.
        """
        del self.by_kind[fact.kind][fact.key]
        match fact.kind:
            case FactKind.RECORD:
                self._drop_record(NodeId(fact.key))
            case FactKind.REVOCATION:
                opened = self.revocations.pop(fact.key)
                self._revocations_by_members -= bool(opened.credentials)
            case FactKind.GRANT:
                del self.grants[NodeId(fact.key)]
            case FactKind.BOOTSTRAP_EPOCH:
                self.epoch = None
            case FactKind.NODE_SUCCESSION:
                self.lineage.drop(NodeId(fact.key))
            case FactKind.INVITE_USE | FactKind.SUCCESSION:
                pass  # `keep` replaces it under the same key

    def strange(self, roots: Roots) -> list[Fact]:
        """Return what is no part of a line of roots, to which a token has led us from another."""
        facts = [
            self.by_kind[FactKind.GRANT][bytes(node)]
            for node, grant in self.grants.items()
            if roots.number_of(grant.credential.issuer) is None
        ]
        if self.epoch is not None and roots.number_of(self.epoch.root) is None:
            facts.extend(self.by_kind[FactKind.BOOTSTRAP_EPOCH].values())
        facts.extend(self.by_kind[FactKind.SUCCESSION].values())
        return facts

    def _drop_record(self, node: NodeId) -> None:
        invite = self.records.pop(node).invite
        del self.order[bisect.bisect_left(self.order, node)]
        if invite is not None:
            del self.invited[invite][node]
            if not self.invited[invite]:
                del self.invited[invite]
