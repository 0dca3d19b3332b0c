from itertools import permutations

import pytest

from meshd.errors import BadPacket
from meshd.trust.signed import (
    Statement,
    open_untrusted,
    sign,
    signature,
    split_untrusted,
    verify_signature_untrusted,
)
from trust.world import MESH, OTHER_MESH_KEY, A, B


@pytest.mark.parametrize("kind", Statement)
def test_a_statement_opens_for_its_signer(kind):
    assert open_untrusted(kind, MESH, A.id, sign(kind, MESH, A, b"body")) == b"body"


@pytest.mark.parametrize(("made", "asked"), list(permutations(Statement, 2)))
def test_a_statement_of_one_kind_is_none_of_another(made, asked):
    with pytest.raises(BadPacket, match="bad signature"):
        open_untrusted(asked, MESH, A.id, sign(made, MESH, A, b"body"))


def test_a_statement_of_one_mesh_is_none_of_another():
    blob = sign(Statement.RECORD, MESH, A, b"body")

    with pytest.raises(BadPacket, match="bad signature"):
        open_untrusted(Statement.RECORD, OTHER_MESH_KEY.id, A.id, blob)


def test_a_statement_of_one_signer_is_none_of_another():
    with pytest.raises(BadPacket, match="bad signature"):
        open_untrusted(Statement.RECORD, MESH, B.id, sign(Statement.RECORD, MESH, A, b"body"))


def test_no_bit_of_a_blob_can_be_changed():
    blob = sign(Statement.RECORD, MESH, A, b"body")

    for position in range(len(blob) * 8):
        changed = bytearray(blob)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(BadPacket, match="bad signature"):
            open_untrusted(Statement.RECORD, MESH, A.id, bytes(changed))


def test_a_signature_may_travel_without_its_body():
    detached = signature(Statement.REQUEST, MESH, A, b"handshake hash")

    verify_signature_untrusted(Statement.REQUEST, MESH, A.id, b"handshake hash", detached)
    with pytest.raises(BadPacket):
        verify_signature_untrusted(Statement.ANSWER, MESH, A.id, b"handshake hash", detached)


def test_a_blob_has_a_body_and_a_limit():
    blob = sign(Statement.RECORD, MESH, A, b"body")

    assert split_untrusted(blob, bytes_max=len(blob)) == (blob[:64], b"body")
    with pytest.raises(BadPacket, match="too long"):
        split_untrusted(blob, bytes_max=len(blob) - 1)
    with pytest.raises(BadPacket, match="too short"):
        split_untrusted(blob[:64], bytes_max=1000)


def test_the_signed_bytes_are_pinned():
    signed = []

    class Listener:
        def sign(self, message):
            signed.append(message)
            return bytes(64)

    sign(Statement.INVITE_USE, MESH, Listener(), b"body")

    assert signed == [b"meshd.invite-use.1\0" + bytes(MESH) + b"body"]
