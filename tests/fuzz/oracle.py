"""What could be believed of the members, given all bytes that a node was ever handed.

An independent and much simpler reader of claims.  It takes every message apart, however broken,
asks libsodium about every claim it finds, and remembers who has said what; order, relays, time and
membership are no concern of it.  Whatever a node believes must be among that:

Rule 1: what a member is believed to have said of itself, it has signed.

Rule 2: each accusation that counts was signed by its accuser, and names the incarnation that its
        subject claims.

Rule 3: nobody is shown alive but by its own word or by its own tunnel, as having left but by its
        own word, and dead but by an accusation that somebody signed.

Rule 4: our own incarnation grows only when somebody who signed has named the one we have, or when
        we have claimed a higher one ourselves.

Rule 5: every record that the ledger takes in was signed by the node that it is about; every
        revocation is one that the mesh key has made.
"""

from __future__ import annotations

import msgpack
import nacl.bindings
import nacl.exceptions

from gossip.harness import MESH
from meshd.gossip.cause import CauseKind
from meshd.gossip.claim import MemberState
from meshd.gossip.wire import CLAIM_ITEM
from meshd.trust.fact import FactKind

_SIGNATURE_BYTES = 64
_KEY_BYTES = 32
_JUDGED_MAX = 1 << 14  # blobs that need not be looked at again
_OWN_WORD = (0, 3)  # ALIVE, LEFT
_ACCUSATION = 1


class Violation(AssertionError):
    """The node believes what nobody has signed, or has grown beyond its bounds."""


class Oracle:
    """See the module docstring."""

    def __init__(self, own, revocations):
        self._own = own
        self._revocations = revocations
        self._words = set()  # (subject, incarnation, state): membership is all that is asked
        self._accusations = set()  # (subject, incarnation, accuser)
        self._accused = set()  # (subject, incarnation)
        self._judged = {}

    def hear(self, datagram):
        """Take in whatever is said in bytes that a node is about to be handed."""
        try:
            fields = msgpack.unpackb(datagram[2:], strict_map_key=False)
            listed = fields.get(4)
        except (ValueError, TypeError, AttributeError, RecursionError, msgpack.UnpackException):
            return
        if isinstance(listed, list):
            for item in listed:
                match item:
                    case [kind, bytes(blob)] if kind == CLAIM_ITEM:
                        self._hear_claim(blob)

    def check_belief(self, subject, belief):
        """Check rules 1 and 2 of one belief."""
        word = (subject, belief.own.incarnation, belief.own.state)
        if word not in self._words:
            raise Violation(f"believed, but never said: {word}")
        if belief.own.subject != subject or belief.own.signer != subject:
            raise Violation(f"a belief about somebody else: {belief}")
        for claim in belief.accusations:
            if claim.signer == self._own:
                self._hear_claim(claim.blob)
            accusation = (subject, belief.own.incarnation, claim.signer)
            if claim.subject != subject or accusation not in self._accusations:
                raise Violation(f"believed, but nobody's accusation: {accusation}")

    def check_change(self, event, source):
        """Check rule 3 of a `MemberStateChanged` that came of an input from `source`, if any."""
        node, kind = event.node, event.cause.kind
        word = (node, event.incarnation, event.after)
        signed = all(
            (node, event.incarnation, accuser) in self._accusations
            for accuser in event.cause.accusers
        )
        match event.after:
            case MemberState.ALIVE if kind is CauseKind.HEARD:
                holds = node == source
            case MemberState.ALIVE if kind is CauseKind.RETRACTED:
                holds = (node, event.incarnation, MemberState.ALIVE) in self._words
            case MemberState.ALIVE | MemberState.LEFT:
                holds = word in self._words
            case MemberState.SUSPECT:
                # Who is heard again while accused goes from dead to suspect.
                holds = node == source or (bool(event.cause.accusers) and signed)
            case MemberState.DEAD:
                returned = event.before is MemberState.LEFT
                holds = returned or (bool(event.cause.accusers) and signed)
        if not holds:
            raise Violation(f"nobody has signed what led to {event}")

    def check_raised(self, before, after):
        """Check rule 4."""
        named = (self._own, after - 1)
        said = {(*named, MemberState.ALIVE), (*named, MemberState.LEFT)}
        accused = after - 1 == before and named in self._accused
        if after <= before or not (accused or said & self._words):
            raise Violation(f"our incarnation has gone from {before} to {after} for no reason")

    def check_fact(self, fact):
        """Check rule 5."""
        if fact.kind is FactKind.RECORD:
            signed = _signed(b"record", fact.key, fact.blob)
        else:
            signed = fact.blob in self._revocations
        if not signed:
            raise Violation(f"a fact that nobody has signed: {fact}")

    def _hear_claim(self, blob):
        if blob in self._judged:
            return
        if len(self._judged) >= _JUDGED_MAX:
            self._judged.clear()
        self._judged[blob] = None
        try:
            body = msgpack.unpackb(blob[_SIGNATURE_BYTES:], strict_map_key=False)
            subject, incarnation, state = body[1], body[2], body[3]
            signer = body.get(4, subject) or subject
        except Exception:  # whatever it is, it is no claim
            return
        key = (subject, incarnation, state)
        if not all(
            isinstance(each, bytes) and len(each) == _KEY_BYTES for each in (subject, signer)
        ):
            return
        if type(incarnation) is not int or type(state) is not int:
            return
        if signer == subject:
            if state in _OWN_WORD and key not in self._words and _signed(b"claim", signer, blob):
                self._words.add(key)
        elif state == _ACCUSATION:
            accusation = (subject, incarnation, signer)
            if accusation not in self._accusations and _signed(b"claim", signer, blob):
                self._accusations.add(accusation)
                self._accused.add(accusation[:2])


def _signed(kind, signer, blob):
    signature, body = blob[:_SIGNATURE_BYTES], blob[_SIGNATURE_BYTES:]
    message = b"meshd." + kind + b".1\0" + MESH + body
    try:
        nacl.bindings.crypto_sign_open(signature + message, bytes(signer))
    except nacl.exceptions.BadSignatureError:
        return False
    return True
