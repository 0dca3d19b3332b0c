"""`Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s`, one handshake of one round trip.

Follows The Noise Protocol Framework, revision 34 (sections 4, 5 and 9), for this one pattern:

    -> psk, e
    <- e, ee

    message 1:  e (32) || AEAD(request)      key from psk and e: every holder of the psk can read it
    message 2:  e (32) || AEAD(answer)       key from psk, both e and their X25519

What it gives: only holders of the psk can make or open a message; the answer can be read by nobody
but whoever made the request, even when the psk leaks later.  What it does not give is identities:
`meshd.bootstrap.messages` puts signatures over `binding` into the payloads.

Both sides are pure: ephemeral private keys are arguments, and must never be used twice.  A message
that does not open changes nothing, so the initiator may go on waiting for the right one.
"""

from __future__ import annotations

import hashlib
import hmac

import nacl.bindings
import nacl.exceptions

from meshd.errors import BadPacket

PROTOCOL_NAME = b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s"
KEY_BYTES = 32
TAG_BYTES = 16
OVERHEAD_BYTES = KEY_BYTES + TAG_BYTES  # what a message is longer than its payload


class _SymmetricState:
    """Section 5.2, with the CipherState of section 5.1 folded in."""

    __slots__ = ("chaining_key", "handshake_hash", "key", "nonce")

    def __init__(self, prologue: bytes) -> None:
        self.handshake_hash = hashlib.blake2s(PROTOCOL_NAME).digest()  # the name is over 32 bytes
        self.chaining_key = self.handshake_hash
        self.key = bytes(KEY_BYTES)
        self.nonce = 0
        self.mix_hash(prologue)

    def copy(self) -> _SymmetricState:
        other = object.__new__(_SymmetricState)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    def mix_hash(self, data: bytes) -> None:
        self.handshake_hash = hashlib.blake2s(self.handshake_hash + data).digest()

    def mix_key(self, material: bytes) -> None:
        self.chaining_key, self.key = _hkdf2(self.chaining_key, material)
        self.nonce = 0

    def mix_key_and_hash(self, material: bytes) -> None:
        self.chaining_key, mixed, self.key = _hkdf3(self.chaining_key, material)
        self.mix_hash(mixed)
        self.nonce = 0

    def mix_public(self, public: bytes) -> None:
        """Process the token `e` of a pattern that has a psk (section 9.2)."""
        self.mix_hash(public)
        self.mix_key(public)

    def encrypt(self, plaintext: bytes) -> bytes:
        ciphertext: bytes = nacl.bindings.crypto_aead_chacha20poly1305_ietf_encrypt(
            plaintext, self.handshake_hash, self._nonce_bytes(), self.key
        )
        self.nonce += 1
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_untrusted(self, ciphertext: bytes) -> bytes:
        try:
            plaintext: bytes = nacl.bindings.crypto_aead_chacha20poly1305_ietf_decrypt(
                ciphertext, self.handshake_hash, self._nonce_bytes(), self.key
            )
        except nacl.exceptions.CryptoError as exc:
            raise BadPacket("handshake does not open") from exc
        self.nonce += 1
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """Return the keys of what follows the handshake: the initiator's first."""
        return _hkdf2(self.chaining_key, b"")

    def _nonce_bytes(self) -> bytes:
        return bytes(4) + self.nonce.to_bytes(8, "little")


class Initiator:
    """The newcomer's side of one handshake."""

    def __init__(self, *, psk: bytes, prologue: bytes, ephemeral: bytes) -> None:
        self._ephemeral = ephemeral
        self._public = nacl.bindings.crypto_scalarmult_base(ephemeral)
        self._state = _SymmetricState(prologue)
        self._state.mix_key_and_hash(psk)
        self._state.mix_public(self._public)

    @property
    def public(self) -> bytes:
        """The ephemeral key that the request begins with."""
        return self._public

    @property
    def binding(self) -> bytes:
        """The handshake hash so far.

        Before `write_request`: what the request's signatures cover.  After `read_answer_untrusted`:
        the whole handshake.
        """
        return self._state.handshake_hash

    def write_request(self, payload: bytes) -> bytes:
        """Return message 1."""
        return self._public + self._state.encrypt(payload)

    def read_answer_untrusted(self, message: bytes) -> tuple[bytes, bytes]:
        """Open message 2.  Return its payload and the binding that its signature covers."""
        public, ciphertext = _split(message)
        state = self._state.copy()
        state.mix_public(public)
        state.mix_key(_x25519_untrusted(self._ephemeral, public))
        binding = state.handshake_hash
        payload = state.decrypt_untrusted(ciphertext)
        self._state = state
        return payload, binding

    def transport_keys(self) -> tuple[bytes, bytes]:
        """Return the keys of what follows message 2: ours to send with, theirs (Split)."""
        return self._state.split()


class Responder:
    """The member's side of one handshake."""

    def __init__(self, *, psk: bytes, prologue: bytes) -> None:
        self._state = _SymmetricState(prologue)
        self._state.mix_key_and_hash(psk)
        self._their_public = b""
        self._public = b""

    @property
    def binding(self) -> bytes:
        """The handshake hash so far; after `write_answer`: the whole handshake's."""
        return self._state.handshake_hash

    def read_request_untrusted(self, message: bytes) -> tuple[bytes, bytes]:
        """Open message 1.  Return its payload and the binding that its signatures cover."""
        public, ciphertext = _split(message)
        state = self._state.copy()
        state.mix_public(public)
        binding = state.handshake_hash
        payload = state.decrypt_untrusted(ciphertext)
        self._state = state
        self._their_public = public
        return payload, binding

    def begin_answer_untrusted(self, ephemeral: bytes) -> bytes:
        """Bring in our own key.  Return the binding that the answer's signature must cover.

        Raise BadPacket, and leave everything as it was, when the newcomer's key is of low order.
        """
        assert self._their_public, "there is no request to answer"
        shared = _x25519_untrusted(ephemeral, self._their_public)
        self._public = nacl.bindings.crypto_scalarmult_base(ephemeral)
        self._state.mix_public(self._public)
        self._state.mix_key(shared)
        return self._state.handshake_hash

    def write_answer(self, payload: bytes) -> bytes:
        """Return message 2."""
        return self._public + self._state.encrypt(payload)

    def transport_keys(self) -> tuple[bytes, bytes]:
        """Return the keys of what follows message 2: theirs, ours to send with (Split)."""
        return self._state.split()


def _split(message: bytes) -> tuple[bytes, bytes]:
    if len(message) < OVERHEAD_BYTES:
        raise BadPacket("handshake too short")
    return message[:KEY_BYTES], message[KEY_BYTES:]


def _x25519_untrusted(private: bytes, public: bytes) -> bytes:
    try:
        shared: bytes = nacl.bindings.crypto_scalarmult(private, public)
    except (RuntimeError, nacl.exceptions.CryptoError) as exc:
        raise BadPacket("handshake key of low order") from exc
    return shared


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, hashlib.blake2s)


def _hkdf2(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    """Section 4.3, two outputs."""
    secret = _hmac(chaining_key, material)
    first = _hmac(secret, b"\x01")
    return first, _hmac(secret, first + b"\x02")


def _hkdf3(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes, bytes]:
    """Section 4.3, three outputs."""
    secret = _hmac(chaining_key, material)
    first = _hmac(secret, b"\x01")
    second = _hmac(secret, first + b"\x02")
    return first, second, _hmac(secret, second + b"\x03")
