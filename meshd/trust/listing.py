"""What a node has signed as one with `admit`: what a succession of it has to list.

    facts held ──┐
                 ├──▶ digests (`NodeSuccession.kept`): credentials, revocations, withdrawals
    just signed ─┘

Rule 1: a credential that is signed for somebody is not a fact.  It is part of one from when its
        subject has used it, so of our own the last ones are remembered until then.

Rule 2: a use of an invite needs no listing where it has a subject: that is let in by a credential
        which is listed, and by that the use counts (`standings`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from meshd.trust.fact import FactKind
from meshd.trust.node_succession import kept_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.keys import NodeId
    from meshd.trust.credential import Credential
    from meshd.trust.held import Held

ISSUED_KEPT_MAX = 16


class Listing:
    """See the module docstring."""

    def __init__(self, held: Held, *, own: NodeId | None) -> None:
        self._held = held
        self._own = own
        self._issued: deque[bytes] = deque(maxlen=ISSUED_KEPT_MAX)  # digests

    def issued(self, credential: bytes) -> None:
        """Take note of a credential that this node has signed for somebody."""
        self._issued.append(kept_digest(credential))

    def signed_by(self, node: NodeId) -> frozenset[bytes]:
        """Return the digests of what a node has signed."""
        kept = set(self._issued) if node == self._own else set()

        def look(chain: Sequence[bytes], credentials: Sequence[Credential]) -> None:
            for credential, blob in zip(credentials, chain, strict=True):
                if credential.issuer == node:
                    kept.add(kept_digest(blob))

        for record in self._held.records.values():
            look(record.record.chain, record.credentials)
        for key, revoked in self._held.revocations.items():
            look(revoked.revocation.chain, revoked.credentials)
            if revoked.revocation.signer == node:
                kept.add(kept_digest(self._held.by_kind[FactKind.REVOCATION][key].blob))
        for uses in self._held.uses.values():
            for key, used in uses.items():
                look(used.use.chain, used.credentials)
                if used.use.signer == node and used.use.subject is None:
                    kept.add(kept_digest(self._held.by_kind[FactKind.INVITE_USE][key].blob))
        return frozenset(kept)
