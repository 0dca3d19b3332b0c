"""What members say to each other of pre-shared keys, and the mechanism that makes them."""

from random import Random

from fuzz.registry import Target, decoder, target
from meshd.daemon import mlkem
from meshd.errors import BadPacket
from meshd.preshared import wire
from meshd.preshared.agreements import Agreements, PresharedConfig
from meshd.preshared.kem import CIPHERTEXT_BYTES, PUBLIC_BYTES
from preshared.preshared_kem import FakeKem
from preshared.preshared_world import DECODERS, KEYS, MESH, WALL

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


@target("preshared-agreements")
def _agreements():
    """The higher end, that answers whatever the lower one says."""
    lower, higher = KEYS
    agreements = Agreements(
        higher, MESH, config=PresharedConfig(), memory={}, rng=Random(1), now=0.0
    )
    agreements.add(lower.id, 0.0)
    agreements.alive(lower.id, 0.0, WALL)
    agreements.take_kem(FakeKem("fuzz"), WALL)
    clock = [0.0]
    kinds = list(DECODERS)

    def decode(data):
        clock[0] += 1.0  # its allowance is not what is searched for
        kind = kinds[data[0] % len(kinds)] if data else kinds[0]
        message = DECODERS[kind](data[1:])
        agreements.receive_untrusted(message, lower.id, clock[0], WALL)
        agreements.handle_timer(clock[0], WALL)
        while agreements.next_event() is not None:
            pass
        return agreements.datagrams_to_send()

    seeds = [bytes([kinds.index(type(m))]) + wire.encode(m) for m in _MESSAGES]
    return Target(decode, seeds, head=1)
