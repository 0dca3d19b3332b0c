"""Grants: what a new root gives to each member it knows.

A grant is a credential that a root has signed for a node, kept as a fact of its own.  It is the
chain by which the node is a member under the new root, whether it has heard of that root or not:
until it has, its record under the old root is read with the rights of the grant (`ledger`); when it
has, it takes the grant for its own chain.

Rule 1: of several grants for a node that of the newest root counts, then the latest.

Rule 2: the first root makes none: whoever knows a mesh's secret could sign any number of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from meshd.errors import BadPacket
from meshd.trust.credential import CREDENTIAL_BYTES_MAX, issue
from meshd.trust.fact import Fact, FactKind
from meshd.trust.line import LINE_LENGTH_MAX, let_in_by, member_since

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.keys import MeshId, MeshKey
    from meshd.trust.credential import Credential, CredentialCache
    from meshd.trust.roots import Roots

_TIME_BITS = 40


@dataclass(frozen=True, slots=True)
class OpenedGrant:
    """A verified grant."""

    credential: Credential
    blob: bytes


def sign_grant(chain: Sequence[Credential], key: MeshKey, mesh: MeshId, wall: int) -> bytes:
    """Return the grant that gives what a chain gave, to the day on which that ends."""
    credential = chain[-1]
    anew = replace(
        credential,
        issuer=key.id,
        admitted_at=member_since(chain),
        issued_at=max(wall, member_since(chain)),
        lifetime=credential.renewed_lifetime,
        line=let_in_by(chain)[:LINE_LENGTH_MAX],  # of a line too long nobody who wrote it is lost
    )
    blob = issue(anew, key, mesh)
    if len(blob) > CREDENTIAL_BYTES_MAX:
        # Its first date and lifetime are said by fields of their own here.
        blob = issue(replace(anew, invite=None), key, mesh)
    assert len(blob) <= CREDENTIAL_BYTES_MAX
    return blob


def open_grant_untrusted(
    blob: bytes, mesh: MeshId, roots: Roots, cache: CredentialCache
) -> OpenedGrant:
    """Return a grant that a root has signed, or raise BadPacket."""
    credential = cache.open_first_untrusted(blob, mesh)
    if credential.issuer == mesh or roots.number_of(credential.issuer) is None:
        raise BadPacket("grant of the first root")
    if credential.admitted_at > credential.issued_at:
        raise BadPacket("credential admitted after it was issued")
    return OpenedGrant(credential, blob)


def grant_fact(opened: OpenedGrant, roots: Roots) -> Fact:
    """Return the fact that an opened grant is."""
    number = roots.number_of(opened.credential.issuer)
    assert number is not None
    version = number << _TIME_BITS | opened.credential.issued_at
    return Fact(FactKind.GRANT, bytes(opened.credential.subject), version, opened.blob)
