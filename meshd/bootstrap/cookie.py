"""Cookies: how a newcomer proves that it hears what is sent to the address it asks from.

Whoever has the bootstrap key (a token, used or not, is enough) can make requests that open, and
send them from forged addresses.  When too many come, a member no longer judges those whose source
is unproven, but hands out cookies, as WireGuard does (its paper, section 5.3, "Denial of Service
Mitigation & Cookies"):

    newcomer                                       member, too busy for strangers
       │ request                                      │
       │─────────────────────────────────────────────▶│ opens under the bootstrap key
       │ cookie, sealed for the very request          │ keeps nothing
       │◀─────────────────────────────────────────────│
       │ request with a code made with the cookie     │ the code is right: somebody is there,
       │─────────────────────────────────────────────▶│ and has a bucket of its own
       │ answer                                       │
       │◀─────────────────────────────────────────────│

    cookie datagram:   "mesh" | 4 | nonce (24) | sealed cookie (16 + 16)          61 bytes
    request with one:  "mesh" | 5 | code (16)  | Noise message 1               1,200 bytes

    cookie   BLAKE2s-128(secret; address, port)
    sealed   XChaCha20-Poly1305(H("meshd.cookie"; bootstrap key); cookie; over the request's
             ephemeral key)
    code     BLAKE2s-128(cookie; all of the request but the code)

Rule 1: a cookie is a function of the source, the port and a secret that is replaced every
        `SECRET_LIFETIME`: a member remembers nothing of whom it gave one.

Rule 2: only a request that opens under the bootstrap key gets one, once: outsiders get no answer
        however busy a member is, not even by sending again what they have recorded.  A cookie is a
        twentieth of what it answers.

Rule 3: a wrong code is no worse than none: the secret has been replaced, or the newcomer's address
        has changed.  It gets another cookie.

Rule 4: a cookie opens only for the request it answers, so who does not see that cannot make a
        newcomer take a wrong one.  Whoever does, and has the bootstrap key, can delay it, as by
        dropping its datagrams.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import nacl.bindings
import nacl.exceptions

from meshd.bootstrap.noise import KEY_BYTES
from meshd.errors import BadPacket
from meshd.keys import fingerprint

if TYPE_CHECKING:
    from random import Random

    from meshd.keys import BootstrapKey
    from meshd.wg.types import Endpoint

COOKIE_BYTES = 16
CODE_BYTES = 16
NONCE_BYTES = 24
SEALED_BYTES = NONCE_BYTES + COOKIE_BYTES + 16
SECRET_LIFETIME = 120.0  # as WireGuard's; a newcomer keeps a cookie no longer


class CookieMaker:
    """The member's side.  `rng` must be unpredictable outside tests: `SystemRandom`."""

    def __init__(self, *, rng: Random) -> None:
        self._rng = rng
        self._secret = b""  # made when the first cookie is wanted
        self._made_at = 0.0

    def cookie(self, source: Endpoint, now: float) -> bytes:
        """Return a source's cookie, the same one until the secret is replaced."""
        if not self._secret or now - self._made_at >= SECRET_LIFETIME:
            self._secret = self._rng.randbytes(KEY_BYTES)
            self._made_at = now
        where = source.address.packed + source.port.to_bytes(2, "big")
        return hashlib.blake2s(where, digest_size=COOKIE_BYTES, key=self._secret).digest()

    def sealed(self, source: Endpoint, mark: bytes, key: BootstrapKey, now: float) -> bytes:
        """Return a source's cookie, sealed for its request whose ephemeral key is `mark`."""
        nonce = self._rng.randbytes(NONCE_BYTES)
        sealed: bytes = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
            self.cookie(source, now), mark, nonce, _sealing_key(key)
        )
        return nonce + sealed


def open_cookie_untrusted(sealed: bytes, mark: bytes, key: BootstrapKey) -> bytes:
    """Return the cookie that answers the request whose ephemeral key is `mark`."""
    if len(sealed) != SEALED_BYTES:
        raise BadPacket("cookie of the wrong length")
    try:
        cookie: bytes = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
            sealed[NONCE_BYTES:], mark, sealed[:NONCE_BYTES], _sealing_key(key)
        )
    except nacl.exceptions.CryptoError as exc:
        raise BadPacket("cookie does not open") from exc
    return cookie


def code_of(cookie: bytes, header: bytes, message: bytes) -> bytes:
    """Return what proves, in a request, that its sender has the cookie."""
    return hashlib.blake2s(header + message, digest_size=CODE_BYTES, key=cookie).digest()


def _sealing_key(key: BootstrapKey) -> bytes:
    return fingerprint(key, size=KEY_BYTES, person=b"meshd.cookie")
