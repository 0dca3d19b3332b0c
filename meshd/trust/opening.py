"""How a statement of any kind is opened: what it says, and the fact that it is.

    kind, blob ──open──▶ Fact      which of two is kept, and where
                         Opened    what it says, with the verified chain of who says it

Rule: opening depends on the statement and on the line of roots alone, never on what else is held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.trust.epoch import OpenedEpoch, epoch_fact, open_epoch_untrusted
from meshd.trust.fact import FactKind
from meshd.trust.grant import OpenedGrant, grant_fact, open_grant_untrusted
from meshd.trust.invite_use import OpenedUse, open_invite_use_untrusted, use_fact
from meshd.trust.lineage import Claim
from meshd.trust.node_succession import (
    NodeSuccession,
    node_succession_fact,
    open_node_succession_untrusted,
    word_date,
)
from meshd.trust.record import open_record_untrusted, record_fact
from meshd.trust.revocation import OpenedRevocation, open_revocation_untrusted, revocation_fact
from meshd.trust.succession import Succession, open_succession_untrusted, succession_fact

if TYPE_CHECKING:
    from meshd.keys import InviteId, MeshId
    from meshd.trust.credential import Credential, CredentialCache
    from meshd.trust.fact import Fact
    from meshd.trust.record import Record
    from meshd.trust.roots import Roots


@dataclass(frozen=True, slots=True)
class OpenedRecord:
    """A verified record with its node's chain."""

    record: Record
    credentials: tuple[Credential, ...]
    blob: bytes

    @property
    def invite(self) -> InviteId | None:
        """The invite that its node was let in by, if it was one."""
        return self.credentials[-1].invite

    @property
    def claim(self) -> Claim | None:
        """Whom its node says it succeeds, and since when."""
        former = self.credentials[-1].succeeds
        return None if former is None else Claim(former, word_date(self.record.former_word))


Opened = (
    OpenedRecord
    | OpenedRevocation
    | OpenedUse
    | Succession
    | OpenedGrant
    | OpenedEpoch
    | NodeSuccession
)


def open_fact_untrusted(
    kind: FactKind, blob: bytes, mesh: MeshId, roots: Roots, cache: CredentialCache
) -> tuple[Fact, Opened]:
    """Return a verified statement.  Raise BadPacket, of which UnknownRoot may pass."""
    match kind:
        case FactKind.RECORD:
            record, credentials = open_record_untrusted(blob, mesh, cache)
            return record_fact(record, blob), OpenedRecord(record, credentials, blob)
        case FactKind.REVOCATION:
            revocation = open_revocation_untrusted(blob, mesh, cache)
            return revocation_fact(revocation.revocation, blob), revocation
        case FactKind.INVITE_USE:
            use = open_invite_use_untrusted(blob, mesh, cache)
            return use_fact(use.use, blob), use
        case FactKind.SUCCESSION:
            succession = open_succession_untrusted(blob, mesh)
            return succession_fact(succession, mesh), succession
        case FactKind.GRANT:
            grant = open_grant_untrusted(blob, mesh, roots, cache)
            return grant_fact(grant, roots), grant
        case FactKind.BOOTSTRAP_EPOCH:
            epoch = open_epoch_untrusted(blob, mesh, cache)
            return epoch_fact(epoch, blob, roots), epoch
        case FactKind.NODE_SUCCESSION:
            followed = open_node_succession_untrusted(blob, mesh)
            return node_succession_fact(followed), followed
