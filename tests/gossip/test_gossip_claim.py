"""Claims: their bytes, who may sign what, and that beliefs merge in any order."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.codec import pack
from meshd.errors import BadPacket
from meshd.gossip.claim import (
    ACCUSERS_MAX,
    ASKED_MAX,
    CLAIM_BYTES_MAX,
    INCARNATION_MAX,
    WAITED_MS_MAX,
    Belief,
    Claim,
    MemberState,
    peek_claim_untrusted,
    sign_accusation,
    sign_claim,
    verify_claim_untrusted,
)
from meshd.gossip.claim import Testimony as Said  # by its own name pytest takes it for a test
from meshd.keys import MeshKey, NodeId, NodeKey
from meshd.trust.signed import Statement, sign

MESH = MeshKey(bytes(32)).id
KEYS = [NodeKey(bytes([number]) * 32) for number in range(1, 13)]
SUBJECT = KEYS[0]

ALIVE, SUSPECT, DEAD, LEFT = MemberState
ACCUSATION = {1: SUBJECT.id, 2: 1, 3: int(SUSPECT), 4: KEYS[1].id}


def node(number):
    return NodeId(bytes([number]) * 32)


def own(incarnation, state=ALIVE, blob=b""):
    return Claim(node(0), incarnation, state, node(0), blob)


def accusation(incarnation, signer, blob=b""):
    return Claim(node(0), incarnation, SUSPECT, node(signer), blob)


owns = st.builds(
    own,
    st.integers(0, 3),
    st.sampled_from([ALIVE, LEFT]),
    st.sampled_from([b"", b"another encoding"]),
)
accusations = st.builds(
    accusation,
    st.integers(0, 3),
    st.integers(1, 2 * ACCUSERS_MAX),
    st.sampled_from([b"", b"another testimony"]),
)


@st.composite
def beliefs(draw):
    belief = Belief(draw(owns))
    for claim in draw(st.lists(owns | accusations, max_size=24)):
        belief = belief.add(claim)
    return belief


@given(beliefs(), beliefs())
def test_merge_is_commutative(x, y):
    assert x.merge(y) == y.merge(x)


@given(beliefs(), beliefs(), beliefs())
def test_merge_is_associative(x, y, z):
    assert x.merge(y).merge(z) == x.merge(y.merge(z))


@given(beliefs())
def test_merge_is_idempotent(x):
    assert x.merge(x) == x


@given(beliefs(), beliefs())
def test_merging_loses_neither_belief(x, y):
    merged = x.merge(y)
    assert merged.merge(x) == merged
    assert merged.merge(y) == merged


@given(owns, st.lists(accusations, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_accusations_at_one_incarnation_does_not_matter(claim, accused, rng):
    shuffled = list(accused)
    rng.shuffle(shuffled)
    first = second = Belief(claim)
    for one, other in zip(accused, shuffled, strict=True):
        first, second = first.add(one), second.add(other)
    assert first == second


@given(beliefs())
def test_accusations_are_bounded_and_all_count(belief):
    assert len(belief.accusations) <= ACCUSERS_MAX
    assert {claim.incarnation for claim in belief.accusations} <= {belief.incarnation}
    signers = [claim.signer for claim in belief.accusations]
    assert signers == sorted(set(signers))


def test_an_accusation_counts_only_at_the_incarnation_the_subject_has_claimed():
    belief = Belief(own(3))
    assert belief.add(accusation(2, signer=1)) == belief
    assert belief.add(accusation(4, signer=1)) == belief
    assert belief.add(accusation(INCARNATION_MAX, signer=1)) == belief
    assert belief.add(accusation(3, signer=1)).accusations == (accusation(3, signer=1),)


def test_a_higher_incarnation_refutes_every_accusation():
    belief = Belief(own(3)).add(accusation(3, signer=1)).add(accusation(3, signer=2))
    assert belief.add(own(4)) == Belief(own(4))


def test_left_is_final_for_its_incarnation_and_no_further():
    belief = Belief(own(3, LEFT))
    assert belief.add(own(3)) == belief
    assert belief.add(accusation(3, signer=1)) == belief
    assert belief.add(own(4)) == Belief(own(4))


def test_one_accuser_counts_once():
    belief = Belief(own(3)).add(accusation(3, signer=1)).add(accusation(3, 1, b"again"))
    assert belief.accusations == (accusation(3, 1, b"again"),)


def test_what_an_accuser_said_can_be_taken_back():
    belief = Belief(own(3)).add(accusation(3, signer=1)).add(accusation(3, signer=2))
    assert belief.without(node(1)).accusations == (accusation(3, signer=2),)


# Bytes


@pytest.mark.parametrize("state", [ALIVE, LEFT])
def test_a_claim_by_its_subject_survives_the_wire(state):
    claim = sign_claim(7, state, key=SUBJECT, mesh=MESH)
    peeked = peek_claim_untrusted(claim.blob)
    verify_claim_untrusted(peeked, MESH)
    assert peeked == claim
    assert claim.by_subject


@pytest.mark.parametrize("state", [SUSPECT, DEAD])
def test_nobody_claims_to_be_suspect_or_dead(state):
    with pytest.raises(AssertionError):
        sign_claim(7, state, key=SUBJECT, mesh=MESH)


def test_nobody_accuses_itself():
    with pytest.raises(AssertionError):
        sign_accusation(SUBJECT.id, 7, Said(0.3), key=SUBJECT, mesh=MESH)


@pytest.mark.parametrize(
    "asked", [(), (KEYS[2].id,), tuple(other.id for other in KEYS[2 : 2 + ASKED_MAX])]
)
@pytest.mark.parametrize("waited", [0.0, 0.3, WAITED_MS_MAX / 1000])
def test_an_accusation_survives_the_wire_with_its_testimony(waited, asked):
    testimony = Said(waited, asked)
    claim = sign_accusation(SUBJECT.id, INCARNATION_MAX, testimony, key=KEYS[1], mesh=MESH)
    peeked = peek_claim_untrusted(claim.blob)
    verify_claim_untrusted(peeked, MESH)
    assert peeked == claim
    assert not claim.by_subject
    assert peeked.testimony == Said(waited, tuple(node[:4] for node in asked))
    assert peeked.testimony.refused == (waited == 0)
    assert len(claim.blob) <= CLAIM_BYTES_MAX


@given(st.floats(0, 1e6))
def test_what_was_waited_is_told_in_whole_milliseconds_and_never_as_nothing(waited):
    claim = sign_accusation(SUBJECT.id, 7, Said(waited), key=KEYS[1], mesh=MESH)
    told = claim.testimony.waited
    assert told == min(math.ceil(waited * 1000), WAITED_MS_MAX) / 1000
    assert claim.testimony.refused == (waited == 0)


def test_no_more_than_the_first_few_that_were_asked_are_named():
    asked = tuple(other.id for other in KEYS[2:])
    assert len(asked) > ASKED_MAX
    claim = sign_accusation(SUBJECT.id, 7, Said(0.3, asked), key=KEYS[1], mesh=MESH)
    assert claim.testimony.asked == tuple(node[:4] for node in asked[:ASKED_MAX])
    assert peek_claim_untrusted(claim.blob) == claim


def test_the_bytes_of_a_claim_do_not_change():
    claim = sign_claim(7, ALIVE, key=SUBJECT, mesh=MESH)
    assert claim.blob.hex() == PINNED_ALIVE


def test_the_bytes_of_an_accusation_do_not_change():
    testimony = Said(0.3, (KEYS[2].id, KEYS[3].id))
    claim = sign_accusation(SUBJECT.id, 300, testimony, key=KEYS[1], mesh=MESH)
    assert claim.blob.hex() == PINNED_TESTIFIED
    claim = sign_accusation(SUBJECT.id, 300, Said(0.0), key=KEYS[1], mesh=MESH)
    assert claim.blob.hex() == PINNED_REFUSED


def test_an_accusation_without_testimony_is_as_good():
    claim = peek_claim_untrusted(bytes.fromhex(PINNED_SUSPECT))
    verify_claim_untrusted(claim, MESH)
    assert (claim.subject, claim.signer) == (SUBJECT.id, KEYS[1].id)
    assert (claim.incarnation, claim.state, claim.testimony) == (300, SUSPECT, None)


def test_a_claim_of_another_mesh_is_refused():
    claim = sign_claim(7, ALIVE, key=SUBJECT, mesh=MeshKey(b"x" * 32).id)
    with pytest.raises(BadPacket, match="bad signature"):
        verify_claim_untrusted(peek_claim_untrusted(claim.blob), MESH)


def test_a_claim_that_was_tampered_with_is_refused():
    blob = bytearray(sign_claim(7, ALIVE, key=SUBJECT, mesh=MESH).blob)
    blob[blob.index(b"\x02\x07") + 1] = 8  # its incarnation
    claim = peek_claim_untrusted(bytes(blob))
    assert claim.incarnation == 8
    with pytest.raises(BadPacket, match="bad signature"):
        verify_claim_untrusted(claim, MESH)


def test_a_testimony_that_was_tampered_with_is_refused():
    testimony = Said(0.1, (KEYS[2].id,))
    blob = bytearray(sign_accusation(SUBJECT.id, 7, testimony, key=KEYS[1], mesh=MESH).blob)
    blob[blob.index(b"\x05\x64") + 1] = 0  # what was waited: as if it had been refused
    claim = peek_claim_untrusted(bytes(blob))
    assert claim.testimony.refused
    with pytest.raises(BadPacket, match="bad signature"):
        verify_claim_untrusted(claim, MESH)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({1: SUBJECT.id, 2: 1, 3: 0, 4: KEYS[1].id}, "wrong signer"),
        ({1: SUBJECT.id, 2: 1, 3: 3, 4: KEYS[1].id}, "wrong signer"),
        ({1: SUBJECT.id, 2: 1, 3: 1}, "wrong signer"),
        ({1: SUBJECT.id, 2: 1, 3: 1, 4: SUBJECT.id}, "wrong signer"),
        ({1: SUBJECT.id, 2: 1, 3: 2, 4: SUBJECT.id}, "unknown state"),
        ({1: SUBJECT.id, 2: 1, 3: 2, 4: KEYS[1].id}, "unknown state"),
        ({1: SUBJECT.id, 2: 1, 3: 4}, "unknown state"),
        ({1: SUBJECT.id, 2: INCARNATION_MAX + 1, 3: 0}, "malformed"),
        ({1: SUBJECT.id, 2: -1, 3: 0}, "malformed"),
        ({1: b"short", 2: 1, 3: 0}, "malformed"),
        ({2: 1, 3: 0}, "malformed"),
        ({1: SUBJECT.id, 2: 1, 3: 0, 9: 1}, "unknown critical field"),
        ({1: SUBJECT.id, 2: 1, 3: 0, 5: 300}, "unknown critical field"),
        (ACCUSATION | {5: WAITED_MS_MAX + 1}, "field 5 malformed"),
        (ACCUSATION | {5: -1}, "field 5 malformed"),
        (ACCUSATION | {5: b"300"}, "field 5 malformed"),
        (ACCUSATION | {5: True}, "field 5 malformed"),
        (ACCUSATION | {5: 0.3}, "field 5 malformed"),
        (ACCUSATION | {6: b"abcd"}, "unknown critical field"),
        (ACCUSATION | {5: 300, 6: b"abc"}, "testimony of bad length"),
        (ACCUSATION | {5: 300, 6: b"abcde"}, "testimony of bad length"),
        (ACCUSATION | {5: 300, 6: bytes(4 * ASKED_MAX + 4)}, "field 6 malformed"),
        (ACCUSATION | {5: 300, 6: "abcd"}, "field 6 malformed"),
        (ACCUSATION | {5: 300, 7: 1}, "unknown critical field"),
    ],
)
def test_a_claim_that_breaks_a_rule_is_refused(fields, reason):
    plain = {key: bytes(v) if isinstance(v, bytes) else v for key, v in fields.items()}
    with pytest.raises(BadPacket, match=reason):
        peek_claim_untrusted(sign(Statement.CLAIM, MESH, SUBJECT, pack(plain)))


@given(st.binary(max_size=CLAIM_BYTES_MAX + 20))
def test_arbitrary_bytes_only_ever_raise_bad_packet(blob):
    with contextlib.suppress(BadPacket):
        verify_claim_untrusted(peek_claim_untrusted(blob), MESH)


PINNED_ALIVE = (
    "e51c3c484bfd72379336bb314f48960334381703b5230aff2290722404b9768d"
    "6a323c7b52c55bf0625a8955fe5a90abfb207d7d6624d4cd81be660fef200d07"
    "8301c4208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801"
    "b40f6f5c02070300"
)
PINNED_SUSPECT = (
    "8c3c8f9e10d5c2fec41ffa3afb385108401e1091ac03d4ab73e43e058c2c03ec"
    "0950786a4da06a7fb8da7c0f27e107a9779333cb08e3b6b42ebb3c6d8d0e4e03"
    "8401c4208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801"
    "b40f6f5c02cd012c030104c4208139770ea87d175f56a35466c34c7ecccb8d8a"
    "91b4ee37a25df60f5b8fc9b394"
)
PINNED_TESTIFIED = (
    "bfab2348ee79827f749f5750318ac9f96bc2a4cb75697e21cc1cb2c484282e7d"
    "0b8ae86c74a66fcaa06123184c6b2338e78d0f43099e18478d9b17fdd2a34204"
    "8601c4208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801"
    "b40f6f5c02cd012c030104c4208139770ea87d175f56a35466c34c7ecccb8d8a"
    "91b4ee37a25df60f5b8fc9b39405cd012c06c408ed4928c6ca93ac17"
)
PINNED_REFUSED = (
    "e23592682f92f479c45fd9ab01330d5da5f4b8273325a5af85e9c93feaf415a8"
    "66269f7fb938f6f6d2b66897886902a9e3a43d2976ecac11cc0385a1825b7e0a"
    "8501c4208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801"
    "b40f6f5c02cd012c030104c4208139770ea87d175f56a35466c34c7ecccb8d8a"
    "91b4ee37a25df60f5b8fc9b3940500"
)
