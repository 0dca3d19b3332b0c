"""Any bytes give a value or BadPacket, for everything in `meshd.trust` that reads bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.codec import pack
from meshd.errors import BadPacket
from meshd.keys import InviteKey
from meshd.trust.credential import verify_chain_untrusted
from meshd.trust.epoch import open_epoch_untrusted
from meshd.trust.fact import FactKind
from meshd.trust.invite import format_token, open_invite_untrusted, parse_token_untrusted
from meshd.trust.invite_use import open_invite_use_untrusted
from meshd.trust.ledger import Ledger
from meshd.trust.node_succession import open_node_succession_untrusted
from meshd.trust.record import open_record_untrusted
from meshd.trust.revocation import open_revocation_untrusted
from meshd.trust.signed import Statement, sign
from meshd.trust.succession import open_succession_untrusted
from trust.world import (
    BOOTSTRAP_KEY,
    MESH,
    MESH_KEY,
    OTHER_MESH_KEY,
    ROOT_KEY,
    WALL,
    A,
    B,
    cache,
    chain_to,
    epoch_blob,
    founding_chain,
    grant_blob,
    invite_blob,
    node_succession,
    record_blob,
    revocation_blob,
    roots_after,
    succession_blob,
    token,
    use_blob,
)

CHAIN = founding_chain(A)
CHAIN_B = chain_to(B, by=A, through=CHAIN, name="b")

DECODERS = {
    "record": (Statement.RECORD, A, lambda blob: open_record_untrusted(blob, MESH, cache())),
    "credential": (
        Statement.CREDENTIAL,
        MESH_KEY,
        lambda blob: verify_chain_untrusted((blob,), MESH, A.id, cache()),
    ),
    "revocation": (
        Statement.REVOCATION,
        MESH_KEY,
        lambda blob: open_revocation_untrusted(blob, MESH, cache()),
    ),
    "member's revocation": (
        Statement.REVOCATION,
        A,
        lambda blob: open_revocation_untrusted(blob, MESH, cache()),
    ),
    "invite": (Statement.INVITE, A, lambda blob: open_invite_untrusted(blob, MESH)),
    "invite use": (
        Statement.INVITE_USE,
        A,
        lambda blob: open_invite_use_untrusted(blob, MESH, cache()),
    ),
    "succession": (
        Statement.SUCCESSION,
        MESH_KEY,
        lambda blob: open_succession_untrusted(blob, MESH),
    ),
    "node succession": (
        Statement.NODE_SUCCESSION,
        A,
        lambda blob: open_node_succession_untrusted(blob, MESH),
    ),
    "bootstrap epoch": (
        Statement.BOOTSTRAP_EPOCH,
        MESH_KEY,
        lambda blob: open_epoch_untrusted(blob, MESH, cache()),
    ),
    "member's bootstrap epoch": (
        Statement.BOOTSTRAP_EPOCH,
        A,
        lambda blob: open_epoch_untrusted(blob, MESH, cache()),
    ),
}
GENUINE = {
    "record": record_blob(A, CHAIN),
    "credential": CHAIN[0],
    "revocation": revocation_blob(B),
    "member's revocation": revocation_blob(B, by=A, chain=CHAIN),
    "invite": invite_blob(A, tags=("db",)),
    "invite use": use_blob(B, by=A, chain=CHAIN),
    "succession": succession_blob(),
    "node succession": node_succession(A, B, kept=[bytes(8)]).blob,
    "bootstrap epoch": epoch_blob(BOOTSTRAP_KEY, by=MESH_KEY),
    "member's bootstrap epoch": epoch_blob(BOOTSTRAP_KEY, by=A, chain=CHAIN),
}

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=40)
    | st.sampled_from([bytes(A.id), bytes(B.id), CHAIN[0]])
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
bodies = st.dictionaries(st.integers(-1, 12) | scalars, values, max_size=12)


def value_or_bad_packet(decode, data):
    try:
        decode(data)
    except BadPacket as exc:
        reason = exc.reason
    else:
        return
    assert len(reason) <= 80, "reasons are metric labels"


@pytest.mark.parametrize("name", DECODERS)
@given(st.binary(max_size=1100))
def test_any_bytes_give_a_value_or_bad_packet(name, blob):
    value_or_bad_packet(DECODERS[name][2], blob)


@pytest.mark.parametrize("name", DECODERS)
@given(st.binary(max_size=300) | values.map(pack) | bodies.map(pack))
def test_any_body_that_is_signed_gives_a_value_or_bad_packet(name, body):
    kind, key, decode = DECODERS[name]

    value_or_bad_packet(decode, sign(kind, MESH, key, body))


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=300)
@given(st.data())
def test_any_change_to_a_body_that_is_signed_again_gives_a_value_or_bad_packet(name, data):
    kind, key, decode = DECODERS[name]
    body = bytearray(GENUINE[name][64:])
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, min(start + 4, len(body))))
    body[start:end] = data.draw(st.binary(max_size=4))

    value_or_bad_packet(decode, sign(kind, MESH, key, bytes(body)))


@pytest.mark.parametrize("name", DECODERS)
def test_what_was_left_alone_still_decodes(name):
    kind, key, decode = DECODERS[name]

    assert decode(GENUINE[name])
    assert decode(sign(kind, MESH, key, GENUINE[name][64:]))


@given(st.integers(0, 8), st.binary(max_size=1100))
def test_any_fact_merges_or_is_a_bad_packet(kind, blob):
    value_or_bad_packet(lambda data: Ledger(MESH).merge_untrusted(kind, data, WALL), blob)


@given(st.text() | st.text().map("meshd1.".__add__))
def test_any_text_is_a_token_or_a_bad_packet(text):
    value_or_bad_packet(parse_token_untrusted, text)


@given(st.data())
def test_any_token_body_with_a_true_check_is_a_token_or_a_bad_packet(data):
    key = InviteKey(data.draw(st.binary(min_size=32, max_size=32)))
    changed = token(invite=data.draw(st.binary(max_size=400)), invite_key=key)

    value_or_bad_packet(parse_token_untrusted, format_token(changed))


@pytest.mark.parametrize("kind", FactKind)
def test_every_kind_of_fact_has_its_decoder(kind):
    blobs = {
        FactKind.RECORD: GENUINE["record"],
        FactKind.REVOCATION: GENUINE["revocation"],
        FactKind.INVITE_USE: GENUINE["invite use"],
        FactKind.SUCCESSION: succession_blob(ROOT_KEY, OTHER_MESH_KEY, number=2),
        FactKind.GRANT: grant_blob(A, CHAIN),
        FactKind.BOOTSTRAP_EPOCH: GENUINE["bootstrap epoch"],
        FactKind.NODE_SUCCESSION: GENUINE["node succession"],
    }

    assert (
        Ledger(MESH, roots=roots_after(GENUINE["succession"]))
        .merge_untrusted(kind, blobs[kind], WALL)
        .fact.kind
        is kind
    )


def test_a_low_order_key_signs_nothing():
    weak = bytes(32)
    forged = bytes(64) + GENUINE["invite"][64:].replace(bytes(A.id), weak)

    with pytest.raises(BadPacket):
        open_invite_untrusted(forged, MESH)
