"""Secrets on disk that open only with a key that is not on it.

Where the node key is a credential of systemd's, encrypted for this machine, everything else that is
secret in the state is locked with a key that follows from it.  Then whoever has the disk, or a
backup of it, has neither this node's keys nor the mesh's.

    mark | nonce (24) | XSalsa20-Poly1305(H("meshd.locked"; seed of the node key); secret)

The mark tells what is locked from what is not, so that a state may become a locked one.
"""

from __future__ import annotations

import secrets

import nacl.bindings
import nacl.exceptions

from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, fingerprint

MARK = b"meshd locked 1\0"
NONCE_BYTES = 24


def is_locked(stored: bytes) -> bool:
    """Whether something on disk takes a key to open."""
    return stored.startswith(MARK)


class Strongbox:
    """What locks and unlocks the secrets of one node."""

    def __init__(self, seed: bytes) -> None:
        self._key = fingerprint(seed, size=KEY_BYTES, person=b"meshd.locked")

    def lock(self, secret: bytes) -> bytes:
        """Return what may lie on a disk."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        locked: bytes = nacl.bindings.crypto_secretbox(secret, nonce, self._key)
        return MARK + nonce + locked

    def unlock_untrusted(self, stored: bytes) -> bytes:
        """Undo `lock`.  Raise BadPacket for what was locked with another key, or has changed.

        What is not locked is returned as it is.
        """
        if not is_locked(stored):
            return stored
        start = len(MARK)
        nonce, locked = stored[start : start + NONCE_BYTES], stored[start + NONCE_BYTES :]
        try:
            secret: bytes = nacl.bindings.crypto_secretbox_open(locked, nonce, self._key)
        except (nacl.exceptions.CryptoError, ValueError, TypeError) as exc:
            raise BadPacket("locked secret does not open") from exc
        return secret
