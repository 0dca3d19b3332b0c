import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstrap.world import (
    INVITE_KEY,
    MESH,
    NEWCOMER,
    NEWCOMER_AT,
    OTHER,
    PREFIX,
    SEED,
    WALL,
    by_invite,
    by_record,
    chain_of,
    link_for,
    record_of,
)
from meshd.bootstrap.messages import (
    HANDED_PAYLOAD_BYTES_MAX,
    PAYLOAD_BYTES,
    AdmissionRequest,
    AdmissionVerdict,
    ByInvite,
    ByRecord,
    decode_admission_request_untrusted,
    decode_admission_verdict_untrusted,
    encode_admission_request,
    encode_admission_verdict,
    encode_answer,
    encode_request,
    open_answer_untrusted,
    open_request_untrusted,
)
from meshd.codec import pack, unpack_untrusted
from meshd.errors import BadPacket
from meshd.keys import InviteKey, MeshKey
from meshd.trust.credential import CREDENTIAL_BYTES_MAX, CredentialCache
from meshd.trust.fact import FACT_BYTES_MAX
from meshd.trust.invite import INVITE_BYTES_MAX
from meshd.trust.record import RECORD_BYTES_MAX
from meshd.trust.refusal import REFUSAL_TEXT_BYTES_MAX, Refusal, RefusalCode
from meshd.trust.signed import Statement, signature
from meshd.underlay import pad, unpad_untrusted

BINDING = bytes(range(32))
REFUSAL = Refusal(RefusalCode.USED, "the token has been used; ask for another one")


def request_payload(introduction, *, key=NEWCOMER, binding=BINDING):
    return encode_request(introduction, key=key, mesh=MESH, binding=binding, wall=WALL)


def opened_request(payload, *, binding=BINDING, mesh=MESH):
    return open_request_untrusted(unpad_untrusted(payload), binding, mesh)


def answer_payload(verdict, *, key=SEED, record=None, chain=None, binding=BINDING, revocation=b""):
    return encode_answer(
        verdict,
        key=key,
        mesh=MESH,
        binding=binding,
        record=record or record_of(key),
        chain=chain or chain_of(key),
        observed=NEWCOMER_AT,
        ipv4_prefix=PREFIX,
        wall=WALL,
        revocation=revocation,
    )


def opened_answer(payload, *, binding=BINDING, mesh=MESH):
    return open_answer_untrusted(payload, binding, mesh, CredentialCache())


# Requests


def test_a_request_by_record_is_read_as_it_was_meant():
    introduction = by_record()

    request = opened_request(request_payload(introduction))

    assert (request.node, request.clock) == (NEWCOMER.id, int(WALL))
    assert request.record == introduction.record
    assert request.application is None


def test_a_request_by_invite_is_read_as_it_was_meant():
    introduction = by_invite(name="web-1")

    application = opened_request(request_payload(introduction)).application

    assert application.subject == NEWCOMER.id
    assert (application.name, application.invite) == ("web-1", introduction.invite)


@pytest.mark.parametrize(
    "introduction",
    [
        by_record(),
        by_invite(),
        ByRecord(bytes(RECORD_BYTES_MAX)),
        ByInvite("n" * 63, bytes(INVITE_BYTES_MAX), INVITE_KEY),
    ],
)
def test_every_request_has_the_one_length(introduction):
    assert len(request_payload(introduction)) == PAYLOAD_BYTES


def test_signatures_of_another_handshake_are_refused():
    payload = request_payload(by_invite())

    with pytest.raises(BadPacket, match="bad signature"):
        opened_request(payload, binding=bytes(32))
    with pytest.raises(BadPacket, match="bad signature"):
        opened_request(payload, mesh=MeshKey(b"\x05" * 32).id)


def test_an_invite_without_its_key_is_refused():
    thief = InviteKey(b"\x66" * 32)
    payload = request_payload(replace(by_invite(), invite_key=thief))

    with pytest.raises(BadPacket, match="bad signature"):
        opened_request(payload)


def test_a_request_whose_invite_signature_is_taken_out_is_refused():
    fields = unpack_untrusted(unpad_untrusted(request_payload(by_invite())))
    del fields[2]

    with pytest.raises(BadPacket, match="without the invite key"):
        open_request_untrusted(pack(fields), BINDING, MESH)


@pytest.mark.parametrize("introduction", [by_record(), by_invite()], ids=["record", "invite"])
def test_another_holder_of_the_bootstrap_key_cannot_alter_a_request(introduction):
    # Message 1 is readable by all of them, and they could seal it anew under the same binding.
    fields = unpack_untrusted(unpad_untrusted(request_payload(introduction)))
    body = bytearray(fields[3])
    for position in range(len(body)):
        altered = bytes(body[:position] + bytes([body[position] ^ 1]) + body[position + 1 :])
        with pytest.raises(BadPacket):
            open_request_untrusted(pack({**fields, 3: altered}), BINDING, MESH)


@given(st.binary(max_size=1200))
def test_arbitrary_payloads_only_ever_raise_bad_packet(payload):
    with contextlib.suppress(BadPacket):
        opened_request(payload)
    with contextlib.suppress(BadPacket):
        open_request_untrusted(payload, BINDING, MESH)
    with contextlib.suppress(BadPacket):
        opened_answer(payload)
    with contextlib.suppress(BadPacket):
        decode_admission_request_untrusted(payload)
    with contextlib.suppress(BadPacket):
        decode_admission_verdict_untrusted(payload)


values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**64 - 1) | st.binary(max_size=80) | st.text(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
bodies = st.dictionaries(st.integers(0, 70), values, max_size=10)


@given(bodies, bodies)
@settings(max_examples=200)
def test_well_formed_rubbish_only_ever_raises_bad_packet(outer, inner):
    payload = pack({**outer, 1: bytes(64), 3: pack(inner)})

    with contextlib.suppress(BadPacket):
        open_request_untrusted(payload, BINDING, MESH)
    with contextlib.suppress(BadPacket):
        opened_answer(pad(payload, 0))
    with contextlib.suppress(BadPacket):
        decode_admission_verdict_untrusted(pack(outer))


# Answers


def test_an_answer_is_read_as_it_was_meant():
    chain = (*chain_of(SEED), link_for(NEWCOMER))

    answer = opened_answer(answer_payload(chain))

    assert answer.seed.node == SEED.id
    assert answer.seed_record == record_of(SEED)
    assert (answer.observed, answer.ipv4_prefix) == (NEWCOMER_AT, PREFIX)
    assert (answer.clock, answer.verdict) == (int(WALL), chain)


def test_an_answer_with_nothing_more_is_read_as_it_was_meant():
    assert opened_answer(answer_payload(())).verdict == ()


def test_links_that_the_seeds_record_holds_are_not_sent_twice():
    shared = chain_of(SEED)
    both = (*shared, link_for(NEWCOMER))

    assert len(answer_payload(both)) < len(answer_payload(())) + len(both[-1]) + 10


def test_a_refusal_is_read_as_it_was_meant():
    assert opened_answer(answer_payload(REFUSAL)).verdict == REFUSAL


def test_a_refusal_carries_what_puts_the_newcomer_out_where_there_is_room():
    out = Refusal(RefusalCode.REVOKED, "x" * 200)

    with_room = opened_answer(answer_payload(out, revocation=b"r" * 300))
    without = opened_answer(answer_payload(out, revocation=b"r" * 900))

    assert (with_room.verdict, with_room.revocation) == (out, b"r" * 300)
    assert (without.verdict, without.revocation) == (out, b"")


def test_an_answer_that_does_not_fit_becomes_a_refusal_that_does():
    # A record as long as records get: eight candidates, a long version, and a long chain.
    record = record_of(SEED, candidates=8, version="v" * 32)
    links = tuple(bytes([n]) * 250 for n in range(3))

    payload = answer_payload(links, record=record)

    assert len(payload) <= PAYLOAD_BYTES
    verdict = opened_answer(payload).verdict
    assert verdict.code is RefusalCode.ANSWER_TOO_LONG
    assert not verdict.final


@given(
    st.integers(0, RECORD_BYTES_MAX),
    st.text(max_size=REFUSAL_TEXT_BYTES_MAX),
    st.lists(st.binary(max_size=256), max_size=4),
    st.booleans(),
    st.binary(max_size=FACT_BYTES_MAX),
)
def test_no_answer_is_longer_than_a_request(record_bytes, text, links, refuse, revocation):
    verdict = Refusal(RefusalCode.OTHER, text) if refuse else tuple(links)
    payload = answer_payload(verdict, record=bytes(record_bytes), revocation=revocation)

    assert len(payload) <= PAYLOAD_BYTES


def test_an_answer_to_another_handshake_is_refused():
    with pytest.raises(BadPacket, match="bad signature"):
        opened_answer(answer_payload(()), binding=bytes(32))


def test_an_answer_signed_by_another_than_its_records_node_is_refused():
    payload = answer_payload((), key=OTHER, record=record_of(SEED))

    with pytest.raises(BadPacket, match="bad signature"):
        opened_answer(payload)


def test_an_answer_of_one_who_is_no_member_is_refused():
    # It has a token, and so the bootstrap key; but no chain that leads to the mesh key.
    stranger_link = link_for(OTHER, issuer=OTHER)
    record = record_of(OTHER, chain=(stranger_link,))

    with pytest.raises(BadPacket):
        opened_answer(answer_payload(REFUSAL, key=OTHER, record=record))


def test_a_link_that_the_seeds_chain_does_not_have_is_refused():
    record = record_of(SEED)
    fields = unpack_untrusted(unpad_untrusted(answer_payload((b"x",), record=record)))
    body = unpack_untrusted(fields[3])
    for link in (1, 7, True, "x", bytes(CREDENTIAL_BYTES_MAX + 1)):
        packed = pack({**body, 6: (link,)})
        claimed = signature(Statement.ANSWER, MESH, SEED, BINDING + packed)
        with pytest.raises(BadPacket, match="malformed chain"):
            opened_answer(pad(pack({1: claimed, 3: packed}), 0))


# Hand-over


def test_a_handed_over_request_is_verified_again_from_what_travels():
    payload = unpad_untrusted(request_payload(by_invite(name="n" * 63)))
    assert len(payload) <= HANDED_PAYLOAD_BYTES_MAX
    handed = AdmissionRequest(b"12345678", BINDING, payload)

    decoded = decode_admission_request_untrusted(encode_admission_request(handed))

    assert decoded == handed
    request = open_request_untrusted(decoded.payload, decoded.binding, MESH)
    assert request.application.name == "n" * 63


@pytest.mark.parametrize("verdict", [(b"link one", b"link two"), REFUSAL])
def test_a_verdict_travels_back(verdict):
    handed = AdmissionVerdict(b"12345678", verdict)

    assert decode_admission_verdict_untrusted(encode_admission_verdict(handed)) == handed


def test_a_verdict_that_says_nothing_is_refused():
    with pytest.raises(BadPacket, match="says nothing"):
        decode_admission_verdict_untrusted(pack({1: b"12345678"}))
