from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.bootstrap.noise import OVERHEAD_BYTES, Initiator, Responder
from meshd.errors import BadPacket

PSK = bytes(range(32))
PROLOGUE = b"mesh\x01"
FIRST = b"\x11" * 32
SECOND = b"\x22" * 32

keys = st.binary(min_size=32, max_size=32)
payloads = st.binary(max_size=1200)


def handshake(request, answer, *, psk=PSK, prologue=PROLOGUE, ephemerals=(FIRST, SECOND)):
    """Run one handshake.  Return its messages, what was read, and the final bindings."""
    initiator = Initiator(psk=psk, prologue=prologue, ephemeral=ephemerals[0])
    responder = Responder(psk=psk, prologue=prologue)
    first = initiator.write_request(request)
    read_request, _ = responder.read_request_untrusted(first)
    responder.begin_answer_untrusted(ephemerals[1])
    second = responder.write_answer(answer)
    read_answer, _ = initiator.read_answer_untrusted(second)
    return (first, second), (read_request, read_answer), (initiator.binding, responder.binding)


@given(payloads, payloads, keys, keys, keys)
def test_both_sides_read_what_the_other_wrote_and_share_a_binding(a, b, psk, one, two):
    messages, read, bindings = handshake(a, b, psk=psk, ephemerals=(one, two))

    assert read == (a, b)
    assert bindings[0] == bindings[1]
    assert [len(message) for message in messages] == [
        len(a) + OVERHEAD_BYTES,
        len(b) + OVERHEAD_BYTES,
    ]


def test_what_each_side_signs_is_the_same_on_both_sides():
    initiator = Initiator(psk=PSK, prologue=PROLOGUE, ephemeral=FIRST)
    responder = Responder(psk=PSK, prologue=PROLOGUE)
    signed_in_request = initiator.binding
    _, seen_in_request = responder.read_request_untrusted(initiator.write_request(b""))
    signed_in_answer = responder.begin_answer_untrusted(SECOND)
    _, seen_in_answer = initiator.read_answer_untrusted(responder.write_answer(b""))

    assert signed_in_request == seen_in_request
    assert signed_in_answer == seen_in_answer
    assert signed_in_request != signed_in_answer


@pytest.mark.parametrize("which", [0, 1])
def test_a_bit_flipped_anywhere_opens_nothing(which):
    messages, _, _ = handshake(b"request", b"answer")
    message = messages[which]
    for position in range(len(message)):
        for bit in range(8):
            flipped = bytearray(message)
            flipped[position] ^= 1 << bit
            with pytest.raises(BadPacket):
                read(which, bytes(flipped))


@given(st.integers(0, 1), st.binary(max_size=200))
def test_arbitrary_bytes_only_ever_raise_bad_packet(which, message):
    with pytest.raises(BadPacket):
        read(which, message)


def read(which, message, *, psk=PSK, prologue=PROLOGUE):
    if which == 0:
        return Responder(psk=psk, prologue=prologue).read_request_untrusted(message)
    initiator = Initiator(psk=psk, prologue=prologue, ephemeral=FIRST)
    initiator.write_request(b"request")
    return initiator.read_answer_untrusted(message)


def test_another_psk_or_prologue_opens_nothing():
    (first, _), _, _ = handshake(b"request", b"answer")

    assert read(0, first)
    with pytest.raises(BadPacket, match="does not open"):
        read(0, first, psk=bytes(32))
    with pytest.raises(BadPacket, match="does not open"):
        read(0, first, prologue=b"mesh\x02")


def test_a_message_that_does_not_open_changes_nothing():
    initiator = Initiator(psk=PSK, prologue=PROLOGUE, ephemeral=FIRST)
    responder = Responder(psk=PSK, prologue=PROLOGUE)
    request = initiator.write_request(b"request")
    with pytest.raises(BadPacket):
        responder.read_request_untrusted(bytes(100))
    assert responder.read_request_untrusted(request)[0] == b"request"
    responder.begin_answer_untrusted(SECOND)
    answer = responder.write_answer(b"answer")
    with pytest.raises(BadPacket):
        initiator.read_answer_untrusted(b"\x05" * 100)

    assert initiator.read_answer_untrusted(answer)[0] == b"answer"


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)], ids=["zero", "one"])
def test_a_key_of_low_order_is_refused(point):
    # Whoever has the psk can make a request with any key; our secret must still count.
    responder = Responder(psk=PSK, prologue=PROLOGUE)
    forged = Initiator(psk=PSK, prologue=PROLOGUE, ephemeral=FIRST)
    forged._public = point
    forged._state = Responder(psk=PSK, prologue=PROLOGUE)._state
    forged._state.mix_public(point)
    responder.read_request_untrusted(forged.write_request(b"request"))
    before = responder.binding

    with pytest.raises(BadPacket, match="low order"):
        responder.begin_answer_untrusted(SECOND)
    assert responder.binding == before


def test_the_answer_is_for_the_one_who_asked_alone():
    (_, second), _, _ = handshake(b"request", b"answer")
    eavesdropper = Initiator(psk=PSK, prologue=PROLOGUE, ephemeral=SECOND)
    eavesdropper.write_request(b"request")

    with pytest.raises(BadPacket):
        eavesdropper.read_answer_untrusted(second)


def test_the_bytes_on_the_wire_do_not_change():
    # Pinned from an implementation that reproduces the published vector of this pattern.
    (first, second), _, (binding, _) = handshake(b"request", b"answer")

    assert first.hex() == (
        "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13"
        "e463c59be8319697c018eed15b69da722c5da011490fd4"
    )
    assert second.hex() == (
        "0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20"
        "9e1a8e325d6d956021a1aeab00c02d008eaaef24f78c"
    )
    assert binding.hex() == ("773e6f51127b22e26bcacf4b74f1a6c743ccf7e2f9b16f4d8e5276ae89d37994")


# Debian's golang-github-flynn-noise-dev carries the vectors of several implementations.
VECTORS = Path("/usr/share/gocode/src/github.com/flynn/noise/vectors.txt")


def published_vectors(name):
    blocks = VECTORS.read_text().split("\n\n")
    tables = [dict(line.split("=", 1) for line in block.split("\n") if line) for block in blocks]
    return [table for table in tables if table.get("handshake") == name]


def test_published_vectors_are_reproduced():
    vectors = published_vectors("Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s")
    assert len(vectors) >= 4

    for vector in vectors:
        values = {key: bytes.fromhex(value) for key, value in vector.items() if key != "handshake"}
        messages, _, _ = handshake(
            values["msg_0_payload"],
            values["msg_1_payload"],
            psk=values["preshared_key"],
            prologue=values.get("prologue", b""),
            ephemerals=(values["gen_init_ephemeral"], values["gen_resp_ephemeral"]),
        )

        assert list(messages) == [values["msg_0_ciphertext"], values["msg_1_ciphertext"]]
