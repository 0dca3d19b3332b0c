"""Renewal: the same credential again, signed by whichever member may admit, before it expires.

    issued_at            + 2/3              + 5/6          expires_at            + GRACE
    ├────── FRESH ─────────┼─────── DUE ──────┼── EXPIRING ──┼────── EXPIRED ──────┼── LATE ──▶
                           each member asks at its own moment,     still renewed     a new token,
                           and again until somebody renews it      by anybody        the same node

Rule 1: a renewal carries over all that the mesh has granted: name, tags, pin, routes, `admit`,
        `relay`, the time of admission, the invite.  It cannot widen any of it, for the one who
        asks says nothing but that it asks: what it holds is read off its record.

Rule 2: it lives as long as what it renews was meant to, from the renewing member's time on, and
        never longer than the renewing member's own credential.  What lasts no longer than before
        is refused; so nobody can live on beyond everybody who was trusted by the mesh key itself.

Rule 3: a chain is the renewing member's and one link more, whatever it was before: renewing does
        not add up.  Those nearest to the mesh key are asked first, so chains stay short, and
        nobody asks a member whose own chain leads through the one who asks.

Rule 4: what a renewal says of the past, the line and the date of admission, comes from the chain
        by which the member came in: its origin, which it shows (`line`).  One who shows none, or
        one under a root that has ended, is in on the word of whom its present chain shows as well.
        The one who asks takes no renewal that says anything else.

Rule 5: from `expires_at` + GRACE on nobody renews it.  Its node is a member all the same, and comes
        back to its rights by a token; name, address and time of admission stay.
"""

from __future__ import annotations

import enum
from dataclasses import replace
from typing import TYPE_CHECKING

from meshd.errors import BadPacket
from meshd.keys import fingerprint
from meshd.trust.credential import CHAIN_LENGTH_MAX, excess, verify_chain_untrusted
from meshd.trust.grammar import CLOCK_SKEW_MAX
from meshd.trust.granting import extend, limited, own_right, utc
from meshd.trust.line import let_in_by, line_for, member_since
from meshd.trust.refusal import Refusal, RefusalCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.keys import NodeId, NodeKey
    from meshd.trust.credential import Credential
    from meshd.trust.ledger import Ledger
    from meshd.trust.standing import Standing

GRACE = 30 * 86400
_DUE_FROM, _DUE_UNTIL = 2 / 3, 3 / 4  # of a life: when members begin to ask, each at its moment
_EXPIRING_FROM = 5 / 6  # who has not been renewed by then should be looked after


class Phase(enum.IntEnum):
    """How far a credential's life has gone.  Later ones are greater."""

    FRESH = 0
    DUE = 1
    EXPIRING = 2
    EXPIRED = 3
    LATE = 4


def phase(credential: Credential, wall: float) -> Phase:
    """Return how far a credential's life has gone, without tolerance: by its holder's own clock."""
    if not credential.expires_at:
        return Phase.FRESH
    return max((each for each, at in _begins(credential) if wall >= at), default=Phase.FRESH)


def next_phase_at(credential: Credential, wall: float) -> float | None:
    """Return when the next part of a credential's life begins; None if there is none to come."""
    if not credential.expires_at:
        return None
    return min((at for _, at in _begins(credential) if wall < at), default=None)


def due_at(credential: Credential) -> float:
    """Return when the holder of a credential that ends is to ask: the same at each start.

    One that was cut short by its issuer's end is due as if it had lived its whole life by then:
    whoever can give more should be asked while there is time.
    """
    hashed = fingerprint(
        credential.subject,
        credential.issued_at.to_bytes(8, "big"),
        size=4,
        person=b"meshd.renewal",
    )
    jitter = int.from_bytes(hashed, "big") / 2**32
    part = _DUE_FROM + (_DUE_UNTIL - _DUE_FROM) * jitter
    return credential.expires_at - (1 - part) * credential.renewed_lifetime


def issuer_rank(
    issuer: Standing, credential: Credential, wall: float
) -> tuple[bool, bool, int, bytes] | None:
    """Return how good a member would be to ask, the lowest first; None: it could not help.

    Whoever can give the whole life comes first, then whoever has been a member for as long as the
    one who asks, or it would count as one for no longer than they; then whoever is nearest to the
    mesh key.  Among equals the members divide themselves up.
    """
    if not issuer.may_admit(wall) or excess(issuer.credential, credential) is not None:
        return None
    if len(issuer.chain) >= CHAIN_LENGTH_MAX:
        return None
    if any(link.subject == credential.subject for link in issuer.chain):
        return None
    ends = issuer.credential.expires_at
    if ends and ends <= credential.expires_at:
        return None
    whole = not ends or ends >= wall + credential.renewed_lifetime
    share = fingerprint(
        credential.subject, issuer.credential.subject, size=8, person=b"meshd.renewer"
    )
    later = issuer.admitted_at > credential.admitted_at
    return not whole, later, len(issuer.chain), share


def renew_untrusted(
    ledger: Ledger,
    subject: NodeId,
    *,
    key: NodeKey,
    chain: tuple[bytes, ...],
    wall: float,
    shown: tuple[bytes, ...] = (),
) -> tuple[bytes, ...] | Refusal:
    """Return the chain that the member with `key` and `chain` gives a member that asks for it.

    `shown` is what that one says is its origin.  Raise BadPacket if it cannot be.
    """
    issuers = own_right(ledger, key.id, chain, wall)
    if isinstance(issuers, Refusal):
        return issuers
    own = issuers[-1]
    standing = ledger.standing(subject)
    if standing is None or not standing.admitted:
        return Refusal(
            RefusalCode.REVOKED,
            f"node {subject.short} is not a member of this mesh any more; ask whoever runs it",
        )
    credential = standing.credential
    if credential.expires_at and wall > credential.expires_at + GRACE + CLOCK_SKEW_MAX:
        return Refusal(
            RefusalCode.TOO_LATE,
            f"the credential expired at {utc(credential.expires_at)}, more than "
            f"{GRACE // 86400} days ago; rejoin with a token: meshd --token-file FILE",
        )
    told = _told(credential, _origin_untrusted(ledger, standing, shown), issuers)
    renewed = limited(
        replace(
            told,
            issuer=key.id,
            # Never before our own or its admission, or the link would not verify: clocks differ.
            issued_at=max(int(wall), own.issued_at, told.admitted_at),
        ),
        own,
        credential.renewed_lifetime,
    )
    if not outlasts(renewed, credential):
        return Refusal(
            RefusalCode.NO_GAIN,
            f"a credential from member '{own.name}' would last no longer than the one there is; "
            "ask a member whose own lasts longer",
        )
    return extend(chain, own, renewed, key=key, ledger=ledger)


def renews(
    chain: Sequence[Credential], old: Credential, origin: Sequence[Credential], wall: float
) -> bool:
    """Whether a chain is what a renewal may be: the same, but for times and issuers.

    The one who asked checks it, by the origin that it has shown: nobody is to change what it is,
    nor what is said of its past, by way of a renewal.
    """
    *issuers, new = chain
    return (
        bool(issuers)
        and _same(new, _told(old, origin, issuers))
        and outlasts(new, old)
        and new.renewed_lifetime == old.renewed_lifetime
        and new.expires_at <= wall + old.renewed_lifetime + CLOCK_SKEW_MAX
    )


def outlasts(new: Credential, old: Credential) -> bool:
    """Whether a credential that ends does so later than another."""
    return bool(old.expires_at) and new.expires_at > old.expires_at


def _origin_untrusted(
    ledger: Ledger, standing: Standing, shown: tuple[bytes, ...]
) -> tuple[Credential, ...]:
    if not shown:
        return standing.chain
    subject = standing.credential.subject
    origin = verify_chain_untrusted(shown, ledger.mesh, subject, ledger.cache)
    if not ledger.counts(shown, origin):
        return standing.chain
    if not _same(_pastless(origin[-1]), _pastless(standing.credential)):
        raise BadPacket("renewal by the origin of another admission")
    return origin


def _told(
    credential: Credential, origin: Sequence[Credential], issuers: Sequence[Credential]
) -> Credential:
    """Return a credential with what an origin tells, for a link behind the chain of an issuer."""
    line = line_for(credential.subject, let_in_by(origin), issuers)
    return replace(credential, admitted_at=member_since(origin), line=tuple(line))


def _pastless(credential: Credential) -> Credential:
    return replace(credential, admitted_at=0, line=())


def _same(one: Credential, other: Credential) -> bool:
    """Whether two credentials grant the same and tell the same past, whoever signed, and when."""
    return other == replace(
        one,
        issuer=other.issuer,
        issued_at=other.issued_at,
        expires_at=other.expires_at,
        lifetime=other.lifetime,
    )


def _begins(credential: Credential) -> tuple[tuple[Phase, float], ...]:
    ends, life = credential.expires_at, credential.expires_at - credential.issued_at
    return (
        (Phase.DUE, due_at(credential)),
        (Phase.EXPIRING, ends - (1 - _EXPIRING_FROM) * life),
        (Phase.EXPIRED, ends),
        (Phase.LATE, ends + GRACE),
    )
