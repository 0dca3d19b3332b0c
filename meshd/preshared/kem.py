"""What is taken of a key encapsulation mechanism.  The one in use is ML-KEM-768 (FIPS 203).

    us                                    peer
    │ generate(): public, kept             │
    │────────── public, 1,184 bytes ──────▶│ encapsulate(public): secret, ciphertext
    │◀───────── ciphertext, 1,088 bytes ───│
    │ decapsulate(ciphertext): secret      │

It is handed to the core as an object, because it has randomness of its own; tests hand in one that
is a function of a seed.  `meshd.daemon.mlkem` has the real one.
"""

from __future__ import annotations

from typing import Protocol

PUBLIC_BYTES = 1184
CIPHERTEXT_BYTES = 1088
SECRET_BYTES = 32


class KemKey(Protocol):
    """A key pair for one agreement."""

    @property
    def public(self) -> bytes:
        """The encapsulation key."""

    def decapsulate_untrusted(self, ciphertext: bytes) -> bytes:
        """Return the secret inside.  Raise BadPacket for what is no ciphertext.

        One made for another key gives a secret that nobody else has, and no error.
        """


class Kem(Protocol):
    """The mechanism."""

    def generate(self) -> KemKey:
        """Make a key pair."""

    def encapsulate_untrusted(self, public: bytes) -> tuple[bytes, bytes]:
        """Return a fresh secret and the ciphertext that brings it to the owner of a public key.

        Raise BadPacket for what is no public key.
        """
