"""The keys meshd knows, one type each, so that none is ever used for another.

| type                  | what it is                                            | secret |
| --------------------- | ----------------------------------------------------- | ------ |
| `NodeId`              | Ed25519 public key of a node: its name to machines    | no     |
| `NodeKey`             | the node's signing key; made on it, never leaves it   | yes    |
| `MeshId`              | Ed25519 public key of a mesh: root of all credentials | no     |
| `MeshKey`             | the mesh's signing key; may be kept offline           | yes    |
| `InviteKey`           | signs the request of whoever holds an invite token    | yes    |
| `WireGuardKey`        | Curve25519 public key of a WireGuard interface        | no     |
| `WireGuardPrivateKey` | its private key, rotatable                            | yes    |
| `BootstrapKey`        | 32 bytes shared by the mesh; opens the underlay port  | yes    |

Secret types never show their bytes in `repr` or `str`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from typing import Generic, Self, TypeVar

import nacl.bindings
import nacl.exceptions

from meshd.errors import BadPacket

KEY_BYTES = 32
SIGNATURE_BYTES = 64
SHORT_ID_CHARS = 10
IDS_SHOWN_MAX = 4_096  # of which the text is kept: the reason of each deadline names somebody


class _Key(bytes):
    """32 bytes of one particular kind."""

    def __new__(cls, raw: bytes) -> Self:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"{cls.__name__} takes {KEY_BYTES} bytes, not {len(raw)}")
        return super().__new__(cls, raw)


class _PublicId(_Key):
    """An Ed25519 public key, shown in base32: safe in file names, DNS and shells."""

    def __str__(self) -> str:
        return _base32(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.short})"

    @property
    def short(self) -> str:
        """The beginning of `str`: enough for people to tell nodes apart."""
        return _base32(self)[:SHORT_ID_CHARS]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the form that `str` gives.  Raise ValueError."""
        return cls(base64.b32decode(text.upper() + "=" * (-len(text) % 8)))


@functools.lru_cache(IDS_SHOWN_MAX)
def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()


class NodeId(_PublicId):
    """A node's identity."""


class MeshId(_PublicId):
    """A mesh's identity."""


class InviteId(_PublicId):
    """An invite's identity: the public half of the key inside its token."""


IdT = TypeVar("IdT", bound=_PublicId)


class WireGuardKey(_Key):
    """A WireGuard public key, shown in base64 as wg(8) does."""

    def __str__(self) -> str:
        return base64.b64encode(self).decode()

    def __repr__(self) -> str:
        return f"WireGuardKey({self})"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the base64 form.  Raise ValueError."""
        return cls(base64.b64decode(text, validate=True))


class _SecretKey(_Key):
    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    def __str__(self) -> str:
        return repr(self)


class WireGuardPrivateKey(_SecretKey):
    """A WireGuard private key, clamped as RFC 7748 section 5 asks."""

    def __new__(cls, raw: bytes) -> Self:
        """Clamp 32 bytes."""
        if len(raw) != KEY_BYTES:
            raise ValueError(f"WireGuardPrivateKey takes {KEY_BYTES} bytes, not {len(raw)}")
        # The kernel clamps what it is given; clamping first makes what we set what we read back.
        return super().__new__(cls, bytes([raw[0] & 248, *raw[1:31], raw[31] & 127 | 64]))

    @functools.cached_property
    def public(self) -> WireGuardKey:
        """The public key that belongs to it."""
        return WireGuardKey(nacl.bindings.crypto_scalarmult_base(bytes(self)))


class PresharedKey(_SecretKey):
    """A WireGuard pre-shared key of one pair of peers."""


class BootstrapKey(_SecretKey):
    """What a datagram must be sealed with for a member to look at it at all."""


class _SigningKey(Generic[IdT]):
    """An Ed25519 key pair, from a 32-byte seed."""

    __slots__ = ("_secret", "id", "seed")

    def __init__(self, seed: bytes, id_type: type[IdT]) -> None:
        public, self._secret = nacl.bindings.crypto_sign_seed_keypair(seed)
        self.seed = seed
        self.id = id_type(public)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id.short})"

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature over a message."""
        signed: bytes = nacl.bindings.crypto_sign(message, self._secret)
        return signed[:SIGNATURE_BYTES]


class NodeKey(_SigningKey[NodeId]):
    """A node's signing key."""

    def __init__(self, seed: bytes) -> None:
        super().__init__(seed, NodeId)

    def agree(self, other: NodeId) -> bytes:
        """Return the 32-byte secret this node shares with another: X25519 of the two node keys.

        Ed25519 keys are mapped to Curve25519 as in libsodium.  Raise BadPacket for an id that is
        no point of the curve, or one of low order.
        """
        try:
            theirs = nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(bytes(other))
            ours = nacl.bindings.crypto_sign_ed25519_sk_to_curve25519(self._secret)
            shared: bytes = nacl.bindings.crypto_box_beforenm(theirs, ours)
        except (RuntimeError, nacl.exceptions.CryptoError) as exc:
            raise BadPacket("node id is no curve point") from exc
        return shared


class MeshKey(_SigningKey[MeshId]):
    """A mesh's root signing key."""

    def __init__(self, seed: bytes) -> None:
        super().__init__(seed, MeshId)


class InviteKey(_SigningKey[InviteId]):
    """The key inside an invite token: it signs one joiner's request and nothing else."""

    def __init__(self, seed: bytes) -> None:
        super().__init__(seed, InviteId)


def verify(signer: bytes, message: bytes, signature: bytes) -> None:
    """Raise BadPacket unless `signature` is the signer's over the message."""
    if len(signature) != SIGNATURE_BYTES:
        raise BadPacket("bad signature")
    try:
        nacl.bindings.crypto_sign_open(signature + message, signer)
    except (nacl.exceptions.BadSignatureError, ValueError, RuntimeError) as exc:
        raise BadPacket("bad signature") from exc


def fingerprint(*parts: bytes, size: int, person: bytes) -> bytes:
    """Return a keyed-by-purpose BLAKE2b hash of `size` bytes over length-prefixed parts."""
    hasher = hashlib.blake2b(digest_size=size, person=person)
    for part in parts:
        hasher.update(len(part).to_bytes(4, "big"))
        hasher.update(part)
    return hasher.digest()
