"""ML-KEM-768 (FIPS 203) by the `cryptography` package, imported when it is first needed.

The import takes 20 ms and 8 MiB, and not every machine has it: the module came with version 47, and
wheels that can do it with 48.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from meshd.errors import BadPacket

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.mlkem import (
        MLKEM768PrivateKey,
        MLKEM768PublicKey,
    )

    from meshd.daemon.daemon import Daemon
    from meshd.preshared.kem import Kem


async def provide(daemon: Daemon) -> None:
    """Give the engine the mechanism, once it wants it."""
    await daemon.kem_wanted.wait()
    kem = await trio.to_thread.run_sync(load)
    await daemon.driver.submit(partial(daemon.engine.take_kem, kem))


def load() -> Kem | None:
    """Return the mechanism, None where this machine has none.  Slow: see the module docstring."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import mlkem
    except ImportError:
        return None
    kem = MlKem768(mlkem.MLKEM768PrivateKey.generate, mlkem.MLKEM768PublicKey.from_public_bytes)
    try:
        kem.generate()
    except UnsupportedAlgorithm:
        return None
    return kem


class MlKem768:
    """The mechanism.  See `meshd.preshared.kem.Kem`."""

    def __init__(
        self,
        generate: Callable[[], MLKEM768PrivateKey],
        read_public: Callable[[bytes], MLKEM768PublicKey],
    ) -> None:
        self._generate = generate
        self._read_public = read_public

    def generate(self) -> MlKem768Key:
        """Make a key pair."""
        return MlKem768Key(self._generate())

    def encapsulate_untrusted(self, public: bytes) -> tuple[bytes, bytes]:
        """Return a fresh secret and its ciphertext.  Raise BadPacket for what is no public key."""
        try:
            return self._read_public(public).encapsulate()
        except ValueError as exc:
            raise BadPacket("not a public key of ML-KEM-768") from exc


class MlKem768Key:
    """A key pair for one agreement."""

    def __init__(self, key: MLKEM768PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()

    def decapsulate_untrusted(self, ciphertext: bytes) -> bytes:
        """Return the secret inside.  Raise BadPacket for what is no ciphertext."""
        try:
            return self._key.decapsulate(ciphertext)
        except ValueError as exc:
            raise BadPacket("not a ciphertext of ML-KEM-768") from exc
