"""Signed statements: bytes that carry their own proof.

    0                64
    ┌────────────────┬──────────────────────────┐
    │ signature      │ body: a msgpack map      │   one "blob", stored and forwarded verbatim
    └────────────────┴──────────────────────────┘

The Ed25519 signature covers `"meshd." kind ".1" NUL`, the 32 bytes of the mesh id, and the body.

Rule 1: the kind and the mesh are signed but not sent.  A statement of one kind is therefore never
        taken for one of another kind, and one made in another mesh is never taken for ours.

Rule 2: nothing in a body is acted on before `open_untrusted` has returned it.  Where the signer
        is named inside the body, the body is parsed first, to find whose signature to ask for.

Rule 3: bodies follow `meshd.codec`: an unknown key below 64 may restrict what the rest means, so
        the statement is refused; an unknown key from 64 on is ignored and forwarded.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

from meshd.errors import BadPacket
from meshd.keys import SIGNATURE_BYTES, verify

if TYPE_CHECKING:
    from meshd.keys import MeshId


class Statement(enum.StrEnum):
    """What is signed.  The values are part of every signature.  Only append."""

    RECORD = "record"
    CREDENTIAL = "credential"
    REVOCATION = "revocation"
    INVITE = "invite"
    INVITE_USE = "invite-use"
    REQUEST = "request"
    ANSWER = "answer"
    CLAIM = "claim"
    SUCCESSION = "succession"
    BOOTSTRAP_EPOCH = "bootstrap-epoch"
    NODE_SUCCESSION = "node-succession"


class Signer(Protocol):
    """A `NodeKey`, `MeshKey` or `InviteKey`."""

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature over a message."""


def signature(kind: Statement, mesh: MeshId, key: Signer, body: bytes) -> bytes:
    """Return the signature alone, for a body that travels elsewhere or not at all."""
    return key.sign(_signed_bytes(kind, mesh, body))


def verify_signature_untrusted(
    kind: Statement, mesh: MeshId, signer: bytes, body: bytes, signature: bytes
) -> None:
    """Raise BadPacket unless `signature` is the signer's over that body."""
    verify(signer, _signed_bytes(kind, mesh, body), signature)


def sign(kind: Statement, mesh: MeshId, key: Signer, body: bytes) -> bytes:
    """Return the blob of a statement."""
    return signature(kind, mesh, key, body) + body


def split_untrusted(blob: bytes, *, bytes_max: int) -> tuple[bytes, bytes]:
    """Return signature and body of a blob, neither of them verified."""
    if len(blob) <= SIGNATURE_BYTES:
        raise BadPacket("statement too short")
    if len(blob) > bytes_max:
        raise BadPacket("statement too long")
    return blob[:SIGNATURE_BYTES], blob[SIGNATURE_BYTES:]


def open_untrusted(kind: Statement, mesh: MeshId, signer: bytes, blob: bytes) -> bytes:
    """Return the body of a blob that the signer has signed, or raise BadPacket."""
    claimed, body = split_untrusted(blob, bytes_max=len(blob))
    verify_signature_untrusted(kind, mesh, signer, body, claimed)
    return body


def _signed_bytes(kind: Statement, mesh: MeshId, body: bytes) -> bytes:
    return b"meshd." + kind.encode() + b".1\0" + mesh + body
