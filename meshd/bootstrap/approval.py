"""Getting in without any secret: what a newcomer and a member say until a person has decided.

    newcomer                                  member whose operator has opened a window
       │ hello    Noise 1: H(nonce n)            │
       │────────────────────────────────────────▶│
       │ welcome  Noise 2: nonce m               │   both can work out the code from here on;
       │◀────────────────────────────────────────│   neither could choose it
       │ question: nonce n, name, node           │
       │────────────────────────────────────────▶│   it is H(nonce n)?  then `meshctl pending`
       │ reply: wait                             │   shows name and code
       │◀────────────────────────────────────────│
       │ the same question, every second         │
       │────────────────────────────────────────▶│   `meshctl approve CODE`
       │ reply: a token                          │
       │◀────────────────────────────────────────│

    hello, welcome    header | Noise message 1 or 2 (`noise`), under a key that everybody knows
    question, reply   header | reference (8) | counter (8) | sealed

    hello: 1 commitment     welcome: 1 nonce     question: 1 nonce     reply: 1 verdict
                                                           2 name             2 token body
                                                           3 node

Rule 1: the handshake keeps out listeners, and nobody else: without a secret whoever sits between
        the two can be the member to one and the newcomer to the other.  The code tells: it is a
        hash of the whole handshake and both nonces, so the two sides of such a person differ in it.

Rule 2: the newcomer is bound to its nonce before it sees the member's.  So nobody can work out, at
        home, keys that give two sessions one code: each try takes a session with the member, which
        limits those, and hits one code in 2^40.

Rule 3: every datagram of the newcomer's has 1,200 bytes, and none of the member's is longer.

Rule 4: a counter seals one question and the one reply to it.  It only grows.

Rule 5: what the approved one gets is a token that admits one node, once, within minutes: the way
        in is the ordinary one from there on (`messages`), and nothing else can admit.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import nacl.bindings
import nacl.exceptions

from meshd.bootstrap.approval_code import CODE_BYTES, format_code
from meshd.bootstrap.noise import OVERHEAD_BYTES, TAG_BYTES
from meshd.codec import Fields, pack
from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, NodeId, fingerprint
from meshd.trust.grammar import name_untrusted
from meshd.underlay import (
    DATAGRAM_BYTES_MAX,
    HEADER_BYTES,
    MAGIC,
    DatagramType,
    datagram_type_untrusted,
    header,
    pad,
    unpad_untrusted,
)

if TYPE_CHECKING:
    from meshd.bootstrap.noise import Initiator, Responder

VERSION = 1
PROLOGUE = MAGIC + b" approval" + bytes([VERSION])
# No secret: it keeps this handshake apart from all others, and hides it from nobody.
PUBLIC_KEY = fingerprint(b"everybody knows this", size=KEY_BYTES, person=b"meshd.approval")

NONCE_BYTES = 32
REFERENCE_BYTES = 8
COUNTER_BYTES = 8
COUNTER_MAX = 2**63 - 1
HELLO_PAYLOAD_BYTES = DATAGRAM_BYTES_MAX - HEADER_BYTES - OVERHEAD_BYTES
_SEALED_OVERHEAD = HEADER_BYTES + REFERENCE_BYTES + COUNTER_BYTES
QUESTION_PAYLOAD_BYTES = DATAGRAM_BYTES_MAX - _SEALED_OVERHEAD - TAG_BYTES
TOKEN_BODY_MAX = QUESTION_PAYLOAD_BYTES - 16  # room for the map around it


class ReplyVerdict(enum.IntEnum):
    """What has been decided so far.  The values are part of the wire format.  Only append."""

    WAIT = 0
    DENIED = 1
    APPROVED = 2


@dataclass(frozen=True, slots=True)
class Question:
    """What a newcomer tells of itself.  Nothing of it is proven: a person is to look."""

    nonce: bytes
    name: str
    node: NodeId


@dataclass(frozen=True, slots=True)
class Reply:
    """What the member says.  `token` is the body of one (`trust.invite`) when approved."""

    verdict: ReplyVerdict
    token: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Session:
    """What both sides share after the handshake."""

    reference: bytes
    binding: bytes  # hash of the whole handshake
    newcomer_key: bytes = field(repr=False)  # seals questions
    member_key: bytes = field(repr=False)  # seals replies

    @classmethod
    def after(cls, handshake: Initiator | Responder) -> Session:
        """Return the session that a handshake, complete on this side, has made."""
        newcomer_key, member_key = handshake.transport_keys()
        binding = handshake.binding
        return cls(binding[:REFERENCE_BYTES], binding, newcomer_key, member_key)

    def code(self, newcomer_nonce: bytes, member_nonce: bytes) -> str:
        """Return what both sides show."""
        digest = fingerprint(
            self.binding, newcomer_nonce, member_nonce, size=CODE_BYTES, person=b"meshd.code"
        )
        return format_code(digest)


def commitment(nonce: bytes) -> bytes:
    """Return what binds a newcomer to its nonce without telling it."""
    return fingerprint(nonce, size=KEY_BYTES, person=b"meshd.commit")


def encode_hello(committed: bytes) -> bytes:
    """Return the payload of a hello, padded to its one length."""
    return pad(pack({1: committed}), HELLO_PAYLOAD_BYTES)


def decode_hello_untrusted(payload: bytes) -> bytes:
    """Return the commitment in a hello."""
    fields = Fields.unpack_untrusted(unpad_untrusted(payload), what="approval hello")
    committed = fields.blob(1, size=KEY_BYTES)
    fields.done()
    return committed


def encode_welcome(nonce: bytes) -> bytes:
    """Return the payload of a welcome."""
    return pack({1: nonce})


def decode_welcome_untrusted(payload: bytes) -> bytes:
    """Return the member's nonce."""
    fields = Fields.unpack_untrusted(payload, what="approval welcome")
    nonce = fields.blob(1, size=NONCE_BYTES)
    fields.done()
    return nonce


def encode_question(question: Question) -> bytes:
    """Return the payload of a question, padded to its one length."""
    body = {1: question.nonce, 2: question.name, 3: bytes(question.node)}
    return pad(pack(body), QUESTION_PAYLOAD_BYTES)


def decode_question_untrusted(payload: bytes) -> Question:
    """Parse a question."""
    fields = Fields.unpack_untrusted(unpad_untrusted(payload), what="approval question")
    question = Question(
        nonce=fields.blob(1, size=NONCE_BYTES),
        name=name_untrusted(fields, 2),
        node=NodeId(fields.blob(3, size=KEY_BYTES)),
    )
    fields.done()
    return question


def encode_reply(reply: Reply) -> bytes:
    """Return the payload of a reply."""
    body: dict[int, object] = {1: int(reply.verdict)}
    if reply.token:
        body[2] = reply.token
    return pad(pack(body), 0)


def decode_reply_untrusted(payload: bytes) -> Reply:
    """Parse a reply.  A verdict of a later version is none yet."""
    fields = Fields.unpack_untrusted(unpad_untrusted(payload), what="approval reply")
    number = fields.uint(1)
    token = fields.blob(2, maximum=TOKEN_BODY_MAX) if fields.has(2) else b""
    fields.done()
    verdict = ReplyVerdict(number) if number in set(ReplyVerdict) else ReplyVerdict.WAIT
    if (verdict is ReplyVerdict.APPROVED) != bool(token):
        raise BadPacket("approval reply contradicts itself")
    return Reply(verdict, token)


def seal(kind: DatagramType, reference: bytes, key: bytes, counter: int, payload: bytes) -> bytes:
    """Return the datagram of a question or a reply.  A key and a counter seal one payload only."""
    front = header(kind) + reference + counter.to_bytes(COUNTER_BYTES, "big")
    sealed: bytes = nacl.bindings.crypto_aead_chacha20poly1305_ietf_encrypt(
        payload, front, _nonce(counter), key
    )
    return front + sealed


def split_untrusted(datagram: bytes, kind: DatagramType) -> tuple[bytes, int]:
    """Return reference and counter of a question or a reply, not yet proven."""
    if datagram_type_untrusted(datagram) is not kind or len(datagram) < _SEALED_OVERHEAD:
        raise BadPacket("malformed approval datagram")
    counter_at = HEADER_BYTES + REFERENCE_BYTES
    counter = int.from_bytes(datagram[counter_at:_SEALED_OVERHEAD], "big")
    if counter > COUNTER_MAX:
        raise BadPacket("malformed approval datagram")
    return datagram[HEADER_BYTES:counter_at], counter


def open_untrusted(datagram: bytes, key: bytes, counter: int) -> bytes:
    """Return the payload of a datagram that `split_untrusted` has looked at."""
    front, sealed = datagram[:_SEALED_OVERHEAD], datagram[_SEALED_OVERHEAD:]
    try:
        payload: bytes = nacl.bindings.crypto_aead_chacha20poly1305_ietf_decrypt(
            sealed, front, _nonce(counter), key
        )
    except (nacl.exceptions.CryptoError, ValueError) as exc:
        raise BadPacket("approval datagram does not open") from exc
    return payload


def _nonce(counter: int) -> bytes:
    return bytes(4) + counter.to_bytes(COUNTER_BYTES, "little")
