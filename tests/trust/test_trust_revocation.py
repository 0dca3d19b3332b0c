import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.errors import BadPacket
from meshd.trust.ledger import Outcome
from meshd.trust.revocation import Judgement, Revocation, open_revocation_untrusted, sign_revocation
from meshd.trust.signed import Statement, sign
from trust.world import (
    MESH,
    MESH_KEY,
    OTHER_MESH_KEY,
    WALL,
    YEAR,
    A,
    B,
    C,
    D,
    E,
    F,
    cache,
    chain_to,
    founding_chain,
    ledger_of,
    record,
    record_blob,
    revocation,
    revocation_blob,
)

# mesh key ─▶ a ─▶ b ─▶ c,  a ─▶ d;  mesh key ─▶ e.  All but f may admit.
CHAIN_A = founding_chain(A, "a")
CHAIN_B = chain_to(B, by=A, through=CHAIN_A, name="b", admit=True)
CHAIN_C = chain_to(C, by=B, through=CHAIN_B, name="c", admit=True)
CHAIN_D = chain_to(D, by=A, through=CHAIN_A, name="d", admit=True)
CHAIN_E = founding_chain(E, "e", wall=WALL + 1)
CHAIN_F = chain_to(F, by=E, through=CHAIN_E, name="f", admitted_at=WALL + 2, issued_at=WALL + 2)
CHAINS = {A: CHAIN_A, B: CHAIN_B, C: CHAIN_C, D: CHAIN_D, E: CHAIN_E}
RECORDS = [record(record_blob(key, chain)) for key, chain in (*CHAINS.items(), (F, CHAIN_F))]


def by(signer, subject, **fields):
    if signer is MESH_KEY:
        return revocation(revocation_blob(subject, **fields))
    return revocation(revocation_blob(subject, by=signer, chain=CHAINS[signer], **fields))


def out(*revocations):
    """Return who is out, by any order of arrival."""
    results = {
        tuple(key for key in (*CHAINS, F) if not ledger.admitted(key.id))
        for ledger in (
            ledger_of(*RECORDS, *revocations),
            ledger_of(*reversed(revocations), *reversed(RECORDS)),
        )
    }
    assert len(results) == 1
    return results.pop()


def test_the_mesh_key_puts_anybody_out():
    assert out(by(MESH_KEY, A)) == (A,)


def test_a_member_with_admit_puts_another_out():
    assert out(by(B, A)) == (A,)
    assert out(by(C, E)) == (E,)


def test_without_cascade_what_the_revoked_one_signed_stands():
    assert out(by(MESH_KEY, A), by(A, E)) == (A, E)


def test_with_cascade_chains_through_the_revoked_one_fall():
    assert out(by(MESH_KEY, A, cascade=True)) == (A, B, C, D)
    assert out(by(MESH_KEY, B, cascade=True)) == (B, C)
    assert out(by(E, B, cascade=True)) == (B, C)


def test_with_cascade_revocations_by_the_revoked_one_fall():
    assert out(by(MESH_KEY, B, cascade=True), by(B, E)) == (B, C)
    assert out(by(MESH_KEY, B, cascade=True), by(C, E)) == (B, C)
    assert out(by(A, B, cascade=True), by(B, E)) == (B, C)


def test_two_that_revoke_one_another_are_both_out():
    for first, second in itertools.product([False, True], repeat=2):
        assert {A, E} <= set(out(by(A, E, cascade=first), by(E, A, cascade=second)))


def test_a_revoked_member_cannot_sign_itself_back_in():
    assert A in out(by(E, A), by(A, E, cascade=True))
    assert A in out(by(E, A), by(B, E, cascade=True))
    assert B in out(by(E, B, cascade=True), by(C, E, cascade=True))


def test_revoked_members_cannot_sign_one_another_back_in():
    revoked = out(by(E, B), by(E, D), by(B, E, cascade=True), by(D, E, cascade=True))

    assert {B, D} <= set(revoked)


def test_the_mesh_key_has_the_last_word():
    disputed = [by(A, E, cascade=True), by(E, A), by(A, F)]

    assert out(*disputed) == (A, E, F)
    assert out(*disputed, by(MESH_KEY, A, cascade=True)) == (A, B, C, D)
    assert out(*disputed, by(MESH_KEY, E, cascade=True)) == (E, F)


def test_a_revocation_needs_nothing_else_to_be_known():
    ledger = ledger_of(by(C, F))

    assert ledger.revocation(F.id).signer == C.id
    ledger.merge_untrusted(*record(record_blob(F, CHAIN_F)), WALL)
    assert not ledger.admitted(F.id)
    assert ledger.standing(F.id).revoked


def test_a_revoked_node_stays_out_with_a_newer_record_and_a_new_credential():
    ledger = ledger_of(*RECORDS, by(MESH_KEY, F))
    renewed = chain_to(F, by=A, through=CHAIN_A, name="f", issued_at=WALL + YEAR)

    merge = ledger.merge_untrusted(*record(record_blob(F, renewed, sequence=2)), WALL)

    assert merge.outcome is Outcome.UPDATED
    assert not ledger.admitted(F.id)


def test_nobody_without_admit_revokes():
    blob = revocation_blob(A, by=F, chain=CHAIN_F)

    with pytest.raises(BadPacket, match="may not admit"):
        open_revocation_untrusted(blob, MESH, cache())


def test_nobody_revokes_after_expiry():
    chain = chain_to(B, by=A, through=CHAIN_A, name="b", admit=True, expires_at=WALL)

    in_time = revocation_blob(C, by=B, chain=chain, revoked_at=WALL)
    assert open_revocation_untrusted(in_time, MESH, cache())
    late = revocation_blob(C, by=B, chain=chain, revoked_at=WALL + YEAR)
    with pytest.raises(BadPacket, match="expired"):
        open_revocation_untrusted(late, MESH, cache())


def test_nobody_revokes_with_the_chain_of_another():
    forged = sign_revocation(Revocation(C.id, B.id, False, WALL, CHAIN_A), B, MESH)

    with pytest.raises(BadPacket, match="another subject"):
        open_revocation_untrusted(forged, MESH, cache())


def test_nobody_revokes_in_the_name_of_the_mesh_key():
    genuine = revocation_blob(A)

    for key in (A, OTHER_MESH_KEY):
        forged = sign(Statement.REVOCATION, MESH, key, genuine[64:])
        with pytest.raises(BadPacket, match="bad signature"):
            open_revocation_untrusted(forged, MESH, cache())


def test_adding_a_cascade_replaces_the_revocation_and_nothing_takes_it_back():
    plain, cascading = by(MESH_KEY, A), by(MESH_KEY, A, cascade=True)

    for facts in ((plain, cascading), (cascading, plain)):
        ledger = ledger_of(*facts)
        assert len(list(ledger.facts())) == 1
        assert ledger.revocation(A.id).cascade


statements = st.lists(
    st.tuples(
        st.sampled_from([MESH_KEY, A, B, C, D, E]),
        st.sampled_from([A, B, C, D, E, F]),
        st.booleans(),
        st.integers(WALL, WALL + 1),
    ),
    max_size=8,
)


WARM = cache()


def judged(statements_made):
    opened = []
    for signer, subject, cascade, revoked_at in statements_made:
        _, blob = by(signer, subject, cascade=cascade, revoked_at=revoked_at)
        opened.append(open_revocation_untrusted(blob, MESH, WARM))
    return Judgement(opened)


@settings(max_examples=60)
@given(statements, st.randoms())
def test_revocations_come_to_the_same_in_any_order(made, random):
    shuffled = made.copy()
    random.shuffle(shuffled)
    first = ledger_of(*RECORDS, *(by(s, k, cascade=c, revoked_at=t) for s, k, c, t in made))
    second = ledger_of(*(by(s, k, cascade=c, revoked_at=t) for s, k, c, t in shuffled), *RECORDS)

    assert first.members() == second.members()
    assert list(first.facts()) == list(second.facts())


@settings(max_examples=60)
@given(statements)
def test_what_the_mesh_key_revokes_is_out_whatever_members_say(made):
    judgement = judged(made)

    for signer, subject, _, _ in made:
        if signer is MESH_KEY:
            assert judgement.against(subject.id) is not None


@settings(max_examples=200)
@given(statements, statements)
def test_what_revoked_members_sign_afterwards_brings_nobody_back(made, afterwards):
    before = judged(made)
    rebellion = [
        each
        for each in afterwards
        if each[0] is not MESH_KEY and before.against(each[0].id) is not None
    ]
    after = judged([*made, *rebellion])

    for key in (A, B, C, D, E, F):
        assert before.against(key.id) is None or after.against(key.id) is not None


def test_the_body_is_pinned():
    mesh_keys = sign_revocation(Revocation(A.id, MESH, True, WALL), MESH_KEY, MESH)
    members = sign_revocation(Revocation(A.id, B.id, False, WALL, (b"link",)), B, MESH)

    assert mesh_keys[64:].hex() == (
        "8301c420af06a3e3291714e4f356c19c9b15cd1951ec6e6662aa77be07547f289383341d03c304ce6553f100"
    )
    assert members[64:].hex() == (
        "84"
        "01c420af06a3e3291714e4f356c19c9b15cd1951ec6e6662aa77be07547f289383341d"
        "02c4202df04125f0015afb47ce853aef8772094ff9498c14cb1b9e12973c2927da0fa6"
        "04ce6553f100"
        "0591c4046c696e6b"
    )
