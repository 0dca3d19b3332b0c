"""What members say to each other of pre-shared keys, and the mechanism that makes them."""

from fuzz.registry import Target, decoder, target
from meshd.daemon import mlkem
from meshd.errors import BadPacket
from meshd.preshared import wire
from meshd.preshared.kem import CIPHERTEXT_BYTES, PUBLIC_BYTES
from preshared.preshared_world import DECODERS

_TAGS = (bytes(8), bytes(range(8)))
_MESSAGES = [
    wire.Offer(bytes(8), bytes(PUBLIC_BYTES), None),
    wire.Answer(bytes(8), bytes(CIPHERTEXT_BYTES), _TAGS, None),
    wire.Confirm(_TAGS, (), asks=True),
]

for _message in _MESSAGES:
    decoder(
        f"preshared-{type(_message).__name__.lower()}",
        DECODERS[type(_message)],
        lambda message=_message: [wire.encode(message)],
        encode=wire.encode,
    )


@target("mlkem-public")
def _mlkem_public():
    kem = mlkem.load()
    assert kem is not None, "the locked version of cryptography has it"
    return Target(kem.encapsulate_untrusted, [kem.generate().public])


@target("mlkem-ciphertext")
def _mlkem_ciphertext():
    kem = mlkem.load()
    key = kem.generate()
    secret, ciphertext = kem.encapsulate_untrusted(key.public)

    def decode(data):
        other = key.decapsulate_untrusted(data)
        if data != ciphertext:
            assert other != secret, "two ciphertexts of one secret"
            raise BadPacket("another secret")
        return other

    return Target(decode, [ciphertext])
