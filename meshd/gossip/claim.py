"""What is said about a member's liveness, and which of two sayings holds.

Rule 1: everything that decides whether one claim overrides another is in this file.

Rule 2: ALIVE and LEFT are signed by their subject, SUSPECT and DEAD by their accuser.  Who relayed
        a claim, and how it travelled, is of no interest here.

Rule 3: claims are ordered by (incarnation, state), and the greater one holds.  Only the subject
        raises its incarnation; that is how it refutes an accusation, and how it returns after
        having left.

Rule 4: an accusation counts only at the very incarnation that its subject claims to be alive at.
        A lower one has been refuted; a higher one names an incarnation that the subject has never
        claimed, so it proves nothing but its accuser's malice.

Rule 5: an accusation is one accuser's.  Nobody says of another that it is dead: each node concludes
        that by itself, when its own suspicion runs out (see `suspicion`).

Rule 6: an accuser says what it has tried.  That is for people: it decides nothing.

                 SUSPECT, by any accuser
        ALIVE i ─────────────────────────▶ SUSPECT i ──(own timer)──▶ DEAD i
          ▲ ▲                                 │                         │
          │ └─────── ALIVE i+1, by subject ───┴─────────────────────────┤
          └───────── ALIVE i+1, by subject ─── LEFT i ◀── LEFT, by subject

A `Belief` is what a set of claims about one subject amounts to.  Merging beliefs is commutative,
associative and idempotent, so claims may be lost, repeated and reordered.

A claim on the wire is a signed statement of kind CLAIM (see `meshd.trust.signed`) with this body:

    1  subject      32 bytes
    2  incarnation  uint, up to INCARNATION_MAX
    3  state        uint: ALIVE, SUSPECT or LEFT
    4  signer       32 bytes; absent where the subject signs
    5  waited       uint, milliseconds without an ack; 0 if the subject's host refused the ping;
                    optional
    6  asked        4 bytes for each member that was asked for an indirect ack, the first of its id;
                    optional
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.codec import Fields, pack
from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, NodeId
from meshd.trust.signed import Statement, open_untrusted, sign, split_untrusted

if TYPE_CHECKING:
    from meshd.keys import MeshId, NodeKey

CLAIM_BYTES_MAX = 192
INCARNATION_MAX = 2**48 - 1
ACCUSERS_MAX = 8  # accusations kept about one member
WAITED_MS_MAX = 2**16 - 1
ASKED_MAX = 4
ASKED_PREFIX_BYTES = 4


class MemberState(enum.IntEnum):
    """A member's liveness, in the order in which one claim overrides another.

    The values are part of the wire format.  Only append.  DEAD is believed, but never claimed.
    """

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


# Who may sign what: see rule 2.
_SIGNED_BY_SUBJECT = {MemberState.ALIVE, MemberState.LEFT}
_CLAIMABLE = {*_SIGNED_BY_SUBJECT, MemberState.SUSPECT}


@dataclass(frozen=True, slots=True)
class Testimony:
    """What an accuser has tried before it accused (rule 6)."""

    waited: float  # seconds without an ack; 0 if the subject's host refused the ping
    asked: tuple[bytes, ...] = ()  # who was asked for an indirect ack: how their ids begin

    @property
    def refused(self) -> bool:
        """Whether the host answered, that nobody listens there."""
        return self.waited == 0


@dataclass(frozen=True, slots=True)
class Claim:
    """One signed saying about one member."""

    subject: NodeId
    incarnation: int
    state: MemberState
    signer: NodeId
    blob: bytes
    testimony: Testimony | None = None

    @property
    def by_subject(self) -> bool:
        """Whether the member says this of itself."""
        return self.signer == self.subject

    @property
    def order(self) -> tuple[int, MemberState, bytes]:
        """What the greater one of overrides the other.

        The blob decides between two encodings of one statement, lest nodes disagree for ever.
        """
        return self.incarnation, self.state, self.blob


def sign_claim(incarnation: int, state: MemberState, *, key: NodeKey, mesh: MeshId) -> Claim:
    """Say of ourselves that we are ALIVE or have LEFT."""
    assert state in _SIGNED_BY_SUBJECT, "see rule 2"
    body = pack({1: bytes(key.id), 2: incarnation, 3: int(state)})
    return Claim(key.id, incarnation, state, key.id, sign(Statement.CLAIM, mesh, key, body))


def sign_accusation(
    subject: NodeId, incarnation: int, testimony: Testimony, *, key: NodeKey, mesh: MeshId
) -> Claim:
    """Say of another that it is SUSPECT."""
    assert subject != key.id, "see rule 2"
    waited_ms = min(math.ceil(testimony.waited * 1000), WAITED_MS_MAX)
    fields: dict[int, object] = {
        1: bytes(subject),
        2: incarnation,
        3: int(MemberState.SUSPECT),
        4: bytes(key.id),
        5: waited_ms,
    }
    asked = tuple(node[:ASKED_PREFIX_BYTES] for node in testimony.asked[:ASKED_MAX])
    if asked:
        fields[6] = b"".join(asked)
    blob = sign(Statement.CLAIM, mesh, key, pack(fields))
    said = Testimony(waited_ms / 1000, asked)
    return Claim(subject, incarnation, MemberState.SUSPECT, key.id, blob, said)


def peek_claim_untrusted(blob: bytes) -> Claim:
    """Parse a claim without verifying it: fit only for deciding that it is not worth verifying."""
    _, body = split_untrusted(blob, bytes_max=CLAIM_BYTES_MAX)
    fields = Fields.unpack_untrusted(body, what="claim")
    subject = NodeId(fields.blob(1, size=KEY_BYTES))
    incarnation = fields.uint(2, maximum=INCARNATION_MAX)
    state = fields.uint(3)
    signer = NodeId(fields.blob(4, size=KEY_BYTES)) if fields.has(4) else subject
    testimony = _testimony_untrusted(fields) if signer != subject else None
    fields.done()
    if state not in _CLAIMABLE:
        raise BadPacket("claim of unknown state")
    if (signer == subject) != (state in _SIGNED_BY_SUBJECT):
        raise BadPacket("claim by the wrong signer")
    return Claim(subject, incarnation, MemberState(state), signer, blob, testimony)


def _testimony_untrusted(fields: Fields) -> Testimony | None:
    if not fields.has(5):
        return None
    waited_ms = fields.uint(5, maximum=WAITED_MS_MAX)
    asked = b""
    if fields.has(6):
        asked = fields.blob(6, maximum=ASKED_MAX * ASKED_PREFIX_BYTES)
    if len(asked) % ASKED_PREFIX_BYTES:
        raise BadPacket("testimony of bad length")
    starts = range(0, len(asked), ASKED_PREFIX_BYTES)
    prefixes = tuple(asked[start : start + ASKED_PREFIX_BYTES] for start in starts)
    return Testimony(waited_ms / 1000, prefixes)


def verify_claim_untrusted(claim: Claim, mesh: MeshId) -> None:
    """Raise BadPacket unless a parsed claim is really its signer's."""
    open_untrusted(Statement.CLAIM, mesh, claim.signer, claim.blob)


@dataclass(frozen=True, slots=True)
class Belief:
    """What all claims about one member amount to.

    `own` is the member's newest word on itself; `accusations` are those that count against it (rule
    4), in the order of their signers, one for each.
    """

    own: Claim
    accusations: tuple[Claim, ...] = ()

    @property
    def incarnation(self) -> int:
        """The newest incarnation that the member has claimed."""
        return self.own.incarnation

    def merge(self, other: Belief) -> Belief:
        """Return what two beliefs about the same member amount to together."""
        assert self.own.subject == other.own.subject, "beliefs about two members"
        own = max(self.own, other.own, key=_order)
        return Belief(own, _accusations(own, (*self.accusations, *other.accusations)))

    def add(self, claim: Claim) -> Belief:
        """Return what this belief and one more claim amount to."""
        assert self.own.subject == claim.subject, "claim about another member"
        if claim.by_subject:
            return self.merge(Belief(claim))
        return Belief(self.own, _accusations(self.own, (*self.accusations, claim)))

    def accused_by(self, signer: NodeId) -> Claim | None:
        """Return the accusation that a member has made, if it counts."""
        return next((claim for claim in self.accusations if claim.signer == signer), None)

    def without(self, signer: NodeId) -> Belief:
        """Return this belief less what one accuser has said."""
        return Belief(self.own, tuple(c for c in self.accusations if c.signer != signer))


def _order(claim: Claim) -> tuple[int, MemberState, bytes]:
    return claim.order


def _accusations(own: Claim, accusations: tuple[Claim, ...]) -> tuple[Claim, ...]:
    """Keep of each accuser its greatest accusation that counts, of all the first by signer.

    Which ones are kept depends on nothing but the set of them: keeping the first to arrive would
    make merging depend on the order.
    """
    if own.state is not MemberState.ALIVE:
        return ()
    newest: dict[NodeId, Claim] = {}
    for claim in accusations:
        if claim.incarnation == own.incarnation:
            known = newest.get(claim.signer)
            newest[claim.signer] = claim if known is None else max(known, claim, key=_order)
    return tuple(newest[signer] for signer in sorted(newest)[:ACCUSERS_MAX])
