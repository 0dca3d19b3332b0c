"""From a passphrase to a mesh: the simplest way to start, without anyone to ask.

Both keys of a mesh are Argon2id of the passphrase, so all who know it found the same mesh, and
each signs its own credential with the mesh key.  The salt is fixed: there is nowhere to keep
another one before a node has joined.  A guess costs 64 MiB and some 0.1 s; a passphrase that is
long enough is what protects recorded traffic, hence the floor on its length.
"""

from __future__ import annotations

import nacl.pwhash.argon2id

from meshd.errors import UsageError
from meshd.keys import KEY_BYTES, BootstrapKey, MeshKey

SECRET_LENGTH_MIN = 12
SECRET_LENGTH_MAX = 1024
_MEMORY_BYTES = 64 * 1024 * 1024
_PASSES = 3
_SALT = b"meshd.secret.1\0\0"


def derive(passphrase: bytes) -> tuple[MeshKey, BootstrapKey]:
    """Return the keys of the mesh that a passphrase means; one trailing newline is not part of it.

    Takes about 0.1 s, and the same keys come out everywhere.  Raise UsageError for a passphrase
    too short or too long, without repeating it.
    """
    secret = passphrase.removesuffix(b"\n").removesuffix(b"\r")
    if len(secret) < SECRET_LENGTH_MIN:
        raise UsageError(
            f"the secret has {len(secret)} characters, which can be guessed: take at least "
            f"{SECRET_LENGTH_MIN}, for example from 'openssl rand -base64 24'"
        )
    if len(secret) > SECRET_LENGTH_MAX:
        raise UsageError(
            f"the secret has {len(secret)} characters, at most {SECRET_LENGTH_MAX} are allowed: "
            "is it the right file?"
        )
    keys = nacl.pwhash.argon2id.kdf(
        2 * KEY_BYTES, secret, _SALT, opslimit=_PASSES, memlimit=_MEMORY_BYTES
    )
    return MeshKey(keys[:KEY_BYTES]), BootstrapKey(keys[KEY_BYTES:])
