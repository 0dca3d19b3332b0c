"""Uses of invites, so that a single-use invite admits one node however many members it is shown to.

Whoever admits by an invite signs that it did.  Two members that cannot hear one another may both
admit by the same invite; when their statements meet, everybody decides alike:

Rule 1: of all uses of one invite, the first `uses` by (used_at, subject) win.  A node admitted by
        that invite and not among the winners is not a member until it is admitted anew.

Rule 2: how often an invite may be used is said by each use; the lowest number counts.

Rule 3: a use without a subject withdraws the invite: uses dated later lose.

Rule 4: a use falls with its signer if the signer is revoked with cascade (`revocation`).  An
        invite without limit has no uses on record, and so only a withdrawal can bar it.

Rule 5: of several uses by the same subject the earliest counts: it retried at another member.

Body:

    1 invite    32 bytes                        4 uses    uint, absent = 1, 0 = without limit
    2 subject   32 bytes, absent = withdrawn    5 signer  32 bytes, a member with `admit`
    3 used_at   time                            6 chain   array of credential blobs, the signer's
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.codec import Fields, pack
from meshd.keys import KEY_BYTES, InviteId, NodeId, fingerprint
from meshd.trust.credential import (
    CHAIN_LENGTH_MAX,
    CREDENTIAL_BYTES_MAX,
    Credential,
    verify_admitter_untrusted,
)
from meshd.trust.fact import FACT_BYTES_MAX, FACT_KEY_BYTES, Fact, FactKind
from meshd.trust.grammar import WALL_MAX, wall_untrusted
from meshd.trust.invite import USES_MAX
from meshd.trust.signed import Statement, sign, split_untrusted, verify_signature_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshd.keys import MeshId, NodeKey
    from meshd.trust.credential import CredentialCache


@dataclass(frozen=True, slots=True)
class InviteUse:
    """See the module docstring."""

    invite: InviteId
    subject: NodeId | None  # None = the invite is withdrawn
    used_at: int
    signer: NodeId
    uses: int = 1  # 0 = without limit
    chain: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class OpenedUse:
    """A verified use with its signer's chain."""

    use: InviteUse
    credentials: tuple[Credential, ...]


@dataclass(frozen=True, slots=True)
class InviteState:
    """What the uses of one invite come to."""

    winners: Mapping[NodeId, int] = field(default_factory=dict)  # used at, in that order
    limit: int | None = None  # None = without limit, or not known
    withdrawn_at: int | None = None

    @property
    def spent(self) -> bool:
        """Whether it admits nobody else."""
        return self.limit is not None and len(self.winners) >= self.limit

    def loses(self, subject: NodeId, admitted_at: int) -> bool:
        """Whether a node whose credential names this invite was not admitted by it after all."""
        if subject in self.winners:
            return False
        withdrawn = self.withdrawn_at is not None and admitted_at > self.withdrawn_at
        return withdrawn or self.spent


def resolve_uses(uses: Iterable[InviteUse]) -> InviteState:
    """Decide an invite.  The order of `uses` does not matter."""
    used = list(uses)
    withdrawn_at = min((use.used_at for use in used if use.subject is None), default=None)
    limit = min((use.uses for use in used if use.uses), default=None)
    in_order = sorted(
        (use.used_at, use.subject)
        for use in used
        if use.subject is not None and (withdrawn_at is None or use.used_at <= withdrawn_at)
    )
    winners: dict[NodeId, int] = {}
    for used_at, subject in in_order:
        if limit is None or len(winners) < limit:
            winners.setdefault(subject, used_at)
    return InviteState(winners, limit, withdrawn_at)


def sign_invite_use(use: InviteUse, key: NodeKey, mesh: MeshId) -> bytes:
    """Return the blob of a use."""
    assert use.signer == key.id
    body: dict[int, object] = {1: bytes(use.invite)}
    if use.subject is not None:
        body[2] = bytes(use.subject)
    body[3] = use.used_at
    if use.uses != 1:
        body[4] = use.uses
    body[5] = bytes(use.signer)
    body[6] = use.chain
    return sign(Statement.INVITE_USE, mesh, key, pack(body))


def open_invite_use_untrusted(blob: bytes, mesh: MeshId, cache: CredentialCache) -> OpenedUse:
    """Return a verified use, or raise BadPacket."""
    signature, body = split_untrusted(blob, bytes_max=FACT_BYTES_MAX)
    fields = Fields.unpack_untrusted(body, what="invite use")
    use = InviteUse(
        invite=InviteId(fields.blob(1, size=KEY_BYTES)),
        subject=NodeId(fields.blob(2, size=KEY_BYTES)) if fields.has(2) else None,
        used_at=wall_untrusted(fields, 3),
        uses=fields.uint(4, maximum=USES_MAX, default=1),
        signer=NodeId(fields.blob(5, size=KEY_BYTES)),
        chain=fields.blobs(6, count_max=CHAIN_LENGTH_MAX, bytes_max=CREDENTIAL_BYTES_MAX),
    )
    fields.done()
    verify_signature_untrusted(Statement.INVITE_USE, mesh, use.signer, body, signature)
    credentials = verify_admitter_untrusted(use.chain, mesh, use.signer, use.used_at, cache)
    return OpenedUse(use, credentials)


def use_fact(use: InviteUse, blob: bytes) -> Fact:
    """Return the fact that an opened use is: one for each invite and subject, the earliest."""
    subject = b"" if use.subject is None else use.subject
    key = fingerprint(use.invite, subject, size=FACT_KEY_BYTES, person=b"meshd.invite-use")
    return Fact(FactKind.INVITE_USE, key, WALL_MAX - use.used_at, blob)
