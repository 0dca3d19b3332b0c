"""Secrets on disk that open only with a key that is not on it.

Where the node key is a credential of systemd's, encrypted for this machine, everything else that is
secret in the state is sealed with a key that follows from it.  Then whoever has the disk, or a
backup of it, has neither this node's keys nor the mesh's.

    mark | nonce (24) | XSalsa20-Poly1305(H("meshd.sealed"; seed of the node key); secret)

The mark tells what is sealed from what is not, so that a state may become a sealed one.
"""

from __future__ import annotations

import secrets

import nacl.bindings
import nacl.exceptions

from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, fingerprint

MARK = b"meshd sealed 1\0"
NONCE_BYTES = 24


def is_sealed(stored: bytes) -> bool:
    """Whether something on disk takes a key to open."""
    return stored.startswith(MARK)


class Sealing:
    """What seals and opens the secrets of one node."""

    def __init__(self, seed: bytes) -> None:
        self._key = fingerprint(seed, size=KEY_BYTES, person=b"meshd.sealed")

    def seal(self, secret: bytes) -> bytes:
        """Return what may lie on a disk."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed: bytes = nacl.bindings.crypto_secretbox(secret, nonce, self._key)
        return MARK + nonce + sealed

    def open_untrusted(self, stored: bytes) -> bytes:
        """Undo `seal`.  Raise BadPacket for what was sealed with another key, or has changed."""
        start = len(MARK)
        nonce, sealed = stored[start : start + NONCE_BYTES], stored[start + NONCE_BYTES :]
        try:
            secret: bytes = nacl.bindings.crypto_secretbox_open(sealed, nonce, self._key)
        except (nacl.exceptions.CryptoError, ValueError, TypeError) as exc:
            raise BadPacket("sealed secret does not open") from exc
        return secret
