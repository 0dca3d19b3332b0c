"""Turning an invite into a credential.

    inviter ──invite──▶ (token) ──▶ joiner ──request──▶ admitting member ──▶ credential + use

Rule 1: the admitting member asks, in this order: may I admit; is the invite of this mesh and
        unaltered; may its inviter admit and grant this; is its time not over; is it withdrawn or
        used up; is the joiner revoked; is the name free; may I grant this myself.

Rule 2: an invite's time is judged by the admitting member's own clock, without tolerance: tokens
        are short-lived, and two hours on top would treble the life of most.  The refusal tells
        both times, so that a wrong clock shows.

Rule 3: admission is idempotent.  The same joiner with the same invite gets the same credential
        from the same member, and spends the invite once, however often it asks within
        RETRY_LIFETIME.  (An invite without limit leaves no trace: there each answer bears its own
        date.)  After that a token that was used is used up for its user as well: it is no way to
        go on for ever.

Rule 4: a joiner that was a member before keeps its time of first admission, and so its name and
        its address, as far back as the admitting member's own goes (`line`).

Rule 5: who made the invite answers for the joiner as the admitting member does: it is in its line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.errors import BadPacket
from meshd.trust.credential import ADMISSION_BYTES_MAX, Credential, excess
from meshd.trust.grammar import is_name
from meshd.trust.granting import extend, limited, own_right, utc
from meshd.trust.invite import open_invite_untrusted
from meshd.trust.invite_use import InviteUse, sign_invite_use
from meshd.trust.line import let_in_by, line_for, line_id
from meshd.trust.refusal import Refusal, RefusalCode

if TYPE_CHECKING:
    from meshd.keys import InviteId, NodeId, NodeKey
    from meshd.trust.invite import Invite
    from meshd.trust.ledger import Ledger

RETRY_LIFETIME = 7 * 86400


@dataclass(frozen=True, slots=True)
class Application:
    """What a joiner asks for.  Its right to the node id and to the invite's key is proven by then.

    `name` is used if the invite leaves the choice to the joiner.
    """

    subject: NodeId
    name: str
    invite: bytes  # blob, not yet opened


@dataclass(frozen=True, slots=True)
class Admission:
    """What a joiner gets, and what everybody else is to learn."""

    credential: Credential
    chain: tuple[bytes, ...]  # the admitting member's, and the joiner's credential
    use: bytes | None  # blob of an INVITE_USE to merge before answering; None without limit


def admit(
    ledger: Ledger, application: Application, *, key: NodeKey, chain: tuple[bytes, ...], wall: float
) -> Admission | Refusal:
    """Judge an application as the member that holds `key` and `chain`.

    The ledger is not changed: merge the use, and answer only then.
    """
    issuers = own_right(ledger, key.id, chain, wall)
    if isinstance(issuers, Refusal):
        return issuers
    try:
        invite = open_invite_untrusted(application.invite, ledger.mesh)
    except BadPacket:
        return Refusal(
            RefusalCode.FOREIGN,
            "the token's invite is not of this mesh, or was altered; ask for another token",
        )
    refusal = (
        _judge_inviter(ledger, invite, wall)
        or _judge_invite(ledger, invite, application.subject, wall)
        or _judge_subject(ledger, invite, application, issuers)
    )
    return refusal or _grant(ledger, invite, application, issuers, key=key, chain=chain, wall=wall)


def withdraw(
    invite: InviteId,
    *,
    uses: int,
    key: NodeKey,
    chain: tuple[bytes, ...],
    ledger: Ledger,
    wall: float,
) -> bytes:
    """Return the blob of an INVITE_USE after which the invite admits nobody.

    `uses` is how often it might be used: 0 if that is not known, which limits nobody before.
    """
    use = InviteUse(
        invite=invite,
        subject=None,
        used_at=int(wall),
        signer=key.id,
        uses=uses,
        chain=chain,
    )
    return sign_invite_use(use, key, ledger.mesh)


def _judge_inviter(ledger: Ledger, invite: Invite, wall: float) -> Refusal | None:
    inviter = ledger.standing(invite.issuer)
    if inviter is None:
        return Refusal(
            RefusalCode.INVITER_UNKNOWN,
            f"this member has not heard of the inviter {invite.issuer.short}; "
            "use the inviter itself as seed, or ask for another token",
        )
    if not inviter.may_admit(wall):
        why = "may not admit, is revoked, or has expired"
    elif (too_much := excess(inviter.credential, invite)) is not None:
        why = f"may not grant that much: {too_much}"
    else:
        return None
    return Refusal(
        RefusalCode.INVITER_NOT_ALLOWED,
        f"the inviter '{inviter.credential.name}' {why}; ask another member for a token",
    )


def _judge_invite(ledger: Ledger, invite: Invite, subject: NodeId, wall: float) -> Refusal | None:
    state = ledger.invite(invite.id)
    if subject in state.winners and wall <= state.winners[subject] + RETRY_LIFETIME:
        return None  # rule 3: its answer was lost, and the time may have run out since
    if wall > invite.expires_at:
        return Refusal(
            RefusalCode.EXPIRED,
            f"the token expired at {utc(invite.expires_at)}, and it is {utc(wall)} by the clock "
            "of the member that was asked; ask for another token",
        )
    if state.withdrawn_at is not None:
        return Refusal(
            RefusalCode.WITHDRAWN,
            f"the token was withdrawn at {utc(state.withdrawn_at)}; ask for another one",
        )
    if state.spent or (invite.uses and len(state.winners) >= invite.uses):
        return Refusal(
            RefusalCode.USED,
            "the token has been used; ask for another one, or for one made with --reusable",
        )
    return None


def _judge_subject(
    ledger: Ledger, invite: Invite, application: Application, issuers: tuple[Credential, ...]
) -> Refusal | None:
    if not ledger.has_room_for(application.subject, issuers):
        return Refusal(
            RefusalCode.FULL,
            "the mesh has as many members as it can hold; 'meshctl forget' those that are gone",
        )
    if ledger.revocation(application.subject) is not None:
        return Refusal(
            RefusalCode.REVOKED,
            f"node {application.subject.short} is revoked from this mesh for good; "
            "to come back, start with a new state directory and another token",
        )
    if ledger.lineage.in_place_of(application.subject) is not None:
        return Refusal(
            RefusalCode.SUCCEEDED,
            f"node {application.subject.short} goes on with a new node key, on another machine or "
            "in another state directory; to come in here, start with a new state directory",
        )
    name = invite.name or application.name
    if not is_name(name):
        return Refusal(
            RefusalCode.NAME_MALFORMED,
            "the name must be 1 to 63 of a-z, 0-9 and '-', with no '-' at either end; "
            "choose one with --name",
        )
    if ledger.name_owner(name) not in {None, application.subject}:
        return Refusal(
            RefusalCode.NAME_TAKEN,
            f"the name '{name}' belongs to another member; choose one with --name, "
            f"or run 'meshctl forget {name}' there if that machine is gone",
        )
    return None


def _grant(
    ledger: Ledger,
    invite: Invite,
    application: Application,
    issuers: tuple[Credential, ...],
    *,
    key: NodeKey,
    chain: tuple[bytes, ...],
    wall: float,
) -> Admission | Refusal:
    own = issuers[-1]
    used_at = _used_at(ledger, invite, application.subject, wall)
    # Never before our own credential, or the link would not verify: our clock may have been set
    # back, or another member may have recorded the use before we were admitted.
    issued_at = max(used_at, own.issued_at)
    credential = Credential(
        issuer=key.id,
        subject=application.subject,
        name=invite.name or application.name,
        tags=invite.tags,
        ipv4=invite.ipv4,
        routes=invite.routes,
        admit=invite.admit,
        relay=invite.relay,
        admitted_at=_admitted_at(ledger, application.subject, used_at),
        issued_at=issued_at,
        invite=invite.id,
        line=_line(ledger, invite, application.subject, issuers),
        succeeds=_succeeds(ledger, application.subject),
    )
    credential = limited(credential, own, invite.lifetime)
    extended = extend(chain, own, credential, key=key, ledger=ledger, bytes_max=ADMISSION_BYTES_MAX)
    if isinstance(extended, Refusal):
        return extended
    if credential.expires_at and wall > credential.expires_at:
        return Refusal(
            RefusalCode.USED,
            "the token has been used by this very node, and what it gave has expired; "
            "ask for another one",
        )
    if not invite.uses:
        return Admission(credential, extended, None)
    use = InviteUse(
        invite=invite.id,
        subject=application.subject,
        used_at=used_at,
        signer=key.id,
        uses=invite.uses,
        chain=chain,
    )
    return Admission(credential, extended, sign_invite_use(use, key, ledger.mesh))


def _line(
    ledger: Ledger, invite: Invite, subject: NodeId, issuers: tuple[Credential, ...]
) -> tuple[bytes, ...]:
    """Return on whose word the joiner is in beyond our own: the inviter's, if another."""
    inviter = ledger.standing(invite.issuer)
    assert inviter is not None, "it has been judged"
    return tuple(line_for(subject, (*let_in_by(inviter.chain), line_id(invite.issuer)), issuers))


def _used_at(ledger: Ledger, invite: Invite, subject: NodeId, wall: float) -> int:
    return ledger.invite(invite.id).winners.get(subject, int(wall))


def _succeeds(ledger: Ledger, subject: NodeId) -> NodeId | None:
    """Return the id that a joiner had before, if it was a member then: it stays the same one."""
    standing = ledger.standing(subject)
    return None if standing is None else standing.credential.succeeds


def _admitted_at(ledger: Ledger, subject: NodeId, used_at: int) -> int:
    standing = ledger.standing(subject)
    if standing is None or not standing.admitted:
        return used_at
    return min(used_at, standing.credential.admitted_at)
