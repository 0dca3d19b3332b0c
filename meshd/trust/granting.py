"""What admission and renewal have in common: the granting member's own right, and its signature.

A member grants nothing it could not verify in the hands of another: every credential is held
against the rules of `credential` before it leaves.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING

from meshd.trust.credential import (
    CHAIN_BYTES_MAX,
    CHAIN_LENGTH_MAX,
    CREDENTIAL_BYTES_MAX,
    Credential,
    excess,
    issue,
    verify_chain_untrusted,
)
from meshd.trust.line import LINE_LENGTH_MAX
from meshd.trust.refusal import Refusal, RefusalCode

if TYPE_CHECKING:
    from meshd.keys import NodeId, NodeKey
    from meshd.trust.ledger import Ledger


def own_right(
    ledger: Ledger, node: NodeId, chain: tuple[bytes, ...], wall: float
) -> tuple[Credential, ...] | Refusal:
    """Return the opened chain by which a member may grant, or why it may not."""
    credentials = verify_chain_untrusted(chain, ledger.mesh, node, ledger.cache)
    own = credentials[-1]
    if ledger.judgement().against_chain(credentials) is not None:
        why = "is revoked"
    elif not ledger.roots.lasts(credentials[0].issuer):
        why = "was admitted by a key of the mesh that has been replaced"
    elif ledger.lineage.in_place_of(node) is not None:
        why = "goes on under another node id"
    elif not ledger.lineage.chain_counts(chain, credentials):
        why = "was let in by a node key that has been replaced, and does not vouch for it"
    elif not own.admit:
        why = "has no right to admit"
    elif own.expired(wall):
        why = f"has a credential that expired at {utc(own.expires_at)}"
    else:
        return credentials
    return Refusal(RefusalCode.NOT_ALLOWED, f"member '{own.name}' {why}; ask another member")


def extend(
    chain: tuple[bytes, ...],
    own: Credential,
    credential: Credential,
    *,
    key: NodeKey,
    ledger: Ledger,
    bytes_max: int = CREDENTIAL_BYTES_MAX,
) -> tuple[bytes, ...] | Refusal:
    """Return the chain with one more credential, signed, or why that would not verify.

    `own` is the last credential of `chain`, and `key` its subject's.
    """
    too_much = excess(own, credential)
    if too_much is not None:
        return Refusal(
            RefusalCode.CANNOT_NARROW,
            f"member '{own.name}' may not grant as much as is asked of it: {too_much}; "
            "ask a member that may",
        )
    blob = issue(credential, key, ledger.mesh)
    if len(blob) > bytes_max:
        return Refusal(
            RefusalCode.CREDENTIAL_TOO_LONG,
            f"the credential would have {len(blob)} bytes, {bytes_max} are allowed; "
            "choose a shorter --name, or ask for a token with fewer tags and routes",
        )
    extended = (*chain, blob)
    if (
        len(extended) > CHAIN_LENGTH_MAX
        or sum(map(len, extended)) > CHAIN_BYTES_MAX
        or len(credential.line) > LINE_LENGTH_MAX
    ):
        return Refusal(
            RefusalCode.CHAIN_TOO_LONG,
            f"the chain of credentials through member '{own.name}' would be too long; "
            "ask a member that was admitted nearer to the mesh key",
        )
    ledger.issued(blob)
    return extended


def limited(credential: Credential, own: Credential, lifetime: int) -> Credential:
    """Return a credential that ends after `lifetime`, 0 being never, or with its issuer's.

    Where the issuer's own end cuts it short, it says how long it should have been: the next
    renewal, by an issuer that lasts longer, gives that again.
    """
    wanted = credential.issued_at + lifetime if lifetime else 0
    expires_at = min((end for end in (own.expires_at, wanted) if end), default=0)
    cut_short = bool(lifetime) and expires_at != wanted
    return replace(credential, expires_at=expires_at, lifetime=lifetime if cut_short else 0)


def utc(wall: float) -> str:
    """Return an instant as text for people."""
    try:
        return f"{dt.datetime.fromtimestamp(int(wall), dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError):
        return f"{int(wall)} s after 1970"  # a date beyond the year 9999 is legal, if absurd
