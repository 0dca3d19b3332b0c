"""The credential of a member that goes on under another node id: what it had, and nothing else.

    root ─▶ f ─▶ former          root ─▶ f ─▶ former ─▶ node      by itself, if it may admit
                                 root ─▶ m ─▶ node                by any member that could renew it
                                 root ─▶ node                     by the mesh key, where that is

Rule 1: name, tags, pin, routes, `admit`, `relay`, the end and the length of life stay as they are,
        and so does what is told of the past (`line`).  The invite is not named again: the member is
        in as long as the id is that it came in by (`ledger`).

Rule 2: who is asked issues it upon a succession that both keys have signed, to the member itself,
        as long as that is one.  Whoever it is that asks could as well go on being that member.

Rule 3: the one who asks checks that it gets what it had.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meshd.trust.credential import ADMISSION_BYTES_MAX, issue
from meshd.trust.granting import extend, own_right, utc
from meshd.trust.line import let_in_by, line_for, member_since
from meshd.trust.refusal import Refusal, RefusalCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.keys import MeshId, MeshKey, NodeKey
    from meshd.trust.credential import Credential
    from meshd.trust.ledger import Ledger
    from meshd.trust.node_succession import NodeSuccession


def succeed(
    ledger: Ledger,
    succession: NodeSuccession,
    *,
    key: NodeKey,
    chain: tuple[bytes, ...],
    wall: float,
) -> tuple[bytes, ...] | Refusal:
    """Return the chain that the member with `key` and `chain` gives the new id of a succession."""
    issuers = own_right(ledger, key.id, chain, wall)
    if isinstance(issuers, Refusal):
        return issuers
    own = issuers[-1]
    former = ledger.standing(succession.former)
    if former is None or not former.admitted:
        return Refusal(
            RefusalCode.REVOKED,
            f"node {succession.former.short} is not a member of this mesh any more; "
            "ask whoever runs it",
        )
    successor = _successor(former.chain, succession, issuers)
    if own.expires_at and not 0 < successor.expires_at <= own.expires_at:
        return Refusal(
            RefusalCode.NO_GAIN,
            f"the credential of member '{own.name}' ends at {utc(own.expires_at)}, before that of "
            "the one who asks; ask a member whose own lasts longer",
        )
    issued = replace(
        successor,
        issuer=key.id,
        # Never before our own or its admission, or the link would not verify: clocks differ.
        issued_at=max(int(wall), own.issued_at, successor.admitted_at),
    )
    return extend(chain, own, issued, key=key, ledger=ledger, bytes_max=ADMISSION_BYTES_MAX)


def succeed_by_root(
    former: Sequence[Credential],
    succession: NodeSuccession,
    key: MeshKey,
    mesh: MeshId,
    wall: float,
) -> tuple[bytes, ...] | Refusal:
    """Return the chain that the mesh key gives the new id of a succession; `former` has a chain."""
    successor = _successor(former, succession, ())
    issued_at = max(int(wall), successor.admitted_at)
    blob = issue(replace(successor, issuer=key.id, issued_at=issued_at), key, mesh)
    if len(blob) > ADMISSION_BYTES_MAX:
        return Refusal(
            RefusalCode.CREDENTIAL_TOO_LONG,
            f"the credential would have {len(blob)} bytes, {ADMISSION_BYTES_MAX} are allowed; "
            "join anew with a token for fewer tags and routes",
        )
    return (blob,)


def is_succession(
    chain: Sequence[Credential], former: Sequence[Credential], succession: NodeSuccession
) -> bool:
    """Whether a chain gives the new id of a succession just what the former chain gave."""
    *issuers, new = chain
    successor = _successor(former, succession, issuers)
    return new == replace(successor, issuer=new.issuer, issued_at=new.issued_at)


def _successor(
    former: Sequence[Credential], succession: NodeSuccession, issuers: Sequence[Credential]
) -> Credential:
    """Return the credential behind a chain of issuers, without its issuer and date."""
    credential = former[-1]
    line = line_for(succession.node, let_in_by(former), issuers) if issuers else let_in_by(former)
    return replace(
        credential,
        subject=succession.node,
        succeeds=succession.former,
        invite=None,
        admitted_at=member_since(former),
        # It is said once for all: the date of issue does not tell it any more.
        lifetime=credential.renewed_lifetime,
        line=tuple(line),
    )
