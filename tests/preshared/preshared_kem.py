"""A KEM that is a function of a seed and hides nothing; sizes are those of ML-KEM-768."""

import hashlib

from meshd.errors import BadPacket
from meshd.preshared.kem import CIPHERTEXT_BYTES, PUBLIC_BYTES, SECRET_BYTES


def stretched(seed, size):
    return hashlib.shake_256(seed).digest(size)


class FakeKem:
    def __init__(self, seed):
        self._seed = seed
        self._count = 0
        self.generated = 0
        self.encapsulated = 0

    def generate(self):
        self.generated += 1
        return FakeKemKey(self._fresh())

    def encapsulate_untrusted(self, public):
        if len(public) != PUBLIC_BYTES:
            raise BadPacket("not a public key")
        self.encapsulated += 1
        ciphertext = stretched(self._fresh(), CIPHERTEXT_BYTES)
        return stretched(public + ciphertext, SECRET_BYTES), ciphertext

    def _fresh(self):
        self._count += 1
        return f"{self._seed} {self._count}".encode()


class FakeKemKey:
    def __init__(self, seed):
        self.public = stretched(b"public" + seed, PUBLIC_BYTES)

    def decapsulate_untrusted(self, ciphertext):
        if len(ciphertext) != CIPHERTEXT_BYTES:
            raise BadPacket("not a ciphertext")
        return stretched(self.public + ciphertext, SECRET_BYTES)
