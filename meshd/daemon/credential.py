"""What is shown of this node's own credential, and of what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.control.snapshot import CredentialSnapshot, HealthFinding
from meshd.keys import NodeId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.engine.engine import Engine


def own_credential(engine: Engine) -> CredentialSnapshot | None:
    """Return what admits this node; None before it is admitted."""
    credential = engine.own_credential
    if credential is None:
        return None
    issuer = credential.issuer
    return CredentialSnapshot(
        issuer=engine.called(issuer) if isinstance(issuer, NodeId) else "",
        issued_at=credential.issued_at,
        expires_at=credential.expires_at or None,
        tags=credential.tags,
        routes=credential.routes,
        admit=credential.admit,
        relay=credential.relay,
    )


def credential_findings(engine: Engine) -> Iterator[HealthFinding]:
    """Say that it expires and nobody renews it, or that it is too late for that."""
    renewal = engine.renewal
    if renewal.code is not None:
        soon = renewal.code == "credential-expiring"
        yield HealthFinding("warning" if soon else "error", renewal.code, renewal.message)
