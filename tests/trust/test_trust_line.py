"""On whose word a node is in: through renewals, by the invites of others, whoever hides it."""

from dataclasses import replace
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.bootstrap.cookie import CODE_BYTES
from meshd.bootstrap.messages import PAYLOAD_BYTES, ByRecord, encode_request
from meshd.codec import pack
from meshd.errors import BadPacket
from meshd.trust.admission import Application, admit
from meshd.trust.credential import (
    ADMISSION_BYTES_MAX,
    CREDENTIAL_BYTES_MAX,
    Credential,
    CredentialCache,
    issue,
    verify_chain_untrusted,
)
from meshd.trust.line import (
    LINE_ID_BYTES,
    LINE_LENGTH_MAX,
    let_in_by,
    line_id,
    member_since,
)
from meshd.trust.record import CANDIDATES_MAX, RECORD_BYTES_MAX, Candidate, CandidateKind
from meshd.trust.refusal import Refusal, RefusalCode
from meshd.trust.renewal import renew_untrusted, renews
from meshd.trust.signed import Statement, sign
from meshd.underlay import unpad_untrusted
from trust.world import (
    MESH,
    ROOT_KEY,
    WALL,
    YEAR,
    A,
    B,
    C,
    D,
    E,
    F,
    chain_to,
    founding_chain,
    grant,
    grant_blob,
    invite_blob,
    ledger_of,
    record,
    record_blob,
    revocation,
    revocation_blob,
    succession,
    succession_blob,
)

DAY = 86400
MONTH = 30 * DAY
ENDS = {"expires_at": WALL + MONTH}

# mesh key ─▶ a ─▶ b (bad) ─▶ d;  a ─▶ c, which may admit as well
CHAIN_A = founding_chain(A, "a")
CHAIN_B = chain_to(B, by=A, through=CHAIN_A, name="b", admit=True)
CHAIN_C = chain_to(C, by=A, through=CHAIN_A, name="c", admit=True)
CHAIN_D = chain_to(D, by=B, through=CHAIN_B, name="d", **ENDS)
CHAINS = {A: CHAIN_A, B: CHAIN_B, C: CHAIN_C}
RECORDS = [record(record_blob(key, chain)) for key, chain in CHAINS.items()]


def opened(chain, key):
    return verify_chain_untrusted(chain, MESH, key.id, CredentialCache())


def ids(*keys):
    return tuple(line_id(key.id) for key in keys)


def world(chain, *facts, key=D):
    return ledger_of(*RECORDS, record(record_blob(key, chain)), *facts)


def renewed(by, chain, *, shown, key=D, wall=WALL + 25 * DAY):
    return renew_untrusted(
        world(chain, key=key), key.id, key=by, chain=CHAINS[by], wall=wall, shown=shown
    )


def falls(chain, revoked, *, key=D):
    """Whether a cascade takes a node with this chain; and a plain revocation does not."""
    plain = world(chain, revocation(revocation_blob(revoked)), key=key)
    assert plain.admitted(key.id)
    return not world(chain, revocation(revocation_blob(revoked, cascade=True)), key=key).admitted(
        key.id
    )


# Honest renewals


def test_a_member_is_in_on_the_word_of_whom_its_chain_shows():
    assert let_in_by(opened(CHAIN_D, D)) == ids(A, B)
    assert let_in_by(opened(CHAIN_A, A)) == ()


def test_a_member_renewed_by_another_admitter_falls_with_the_one_that_let_it_in():
    chain = renewed(C, CHAIN_D, shown=CHAIN_D)

    assert opened(chain, D)[-1].line == ids(B), "the rest is in the chain"
    assert falls(chain, B)
    assert falls(chain, C), "as long as its chain leads through it"
    assert not falls(chain, E)


def test_who_has_only_renewed_a_member_does_not_take_it_along_when_another_has_since():
    chain = renewed(B, chain_to(D, by=A, through=CHAIN_A, name="d", **ENDS), shown=())
    origin = chain_to(D, by=A, through=CHAIN_A, name="d", **ENDS)
    again = renewed(C, chain, shown=origin, wall=WALL + 50 * DAY)

    assert falls(chain, B)
    assert opened(again, D)[-1].line == ()
    assert not falls(again, B)


@given(st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=8))
def test_no_number_of_renewals_loses_a_line_or_adds_to_it(renewers):
    chain, wall = CHAIN_D, WALL
    for by in renewers:
        wall += 25 * DAY
        before = opened(chain, D)[-1]
        chain = renewed(by, chain, shown=CHAIN_D, wall=wall)
        assert renews(opened(chain, D), before, opened(CHAIN_D, D), wall)

    last = opened(chain, D)
    assert set(let_in_by(last)) == {*ids(A, B), *ids(*renewers[-1:])}
    assert falls(chain, B)


def test_one_that_shows_nothing_is_in_on_the_word_of_all_that_its_chain_shows():
    first = renewed(C, CHAIN_D, shown=())
    assert opened(first, D)[-1].line == ids(B)
    again = renewed(A, first, shown=(), wall=WALL + 50 * DAY)
    assert opened(again, D)[-1].line == ids(C, B)


# Others that play with it


def test_a_line_that_a_bad_admitter_has_shortened_is_whole_after_an_honest_renewal():
    """b says that a has let d in, and that it renewed it itself; d shows that, or the next one."""
    lying = chain_to(D, by=B, through=CHAIN_B, name="d", admitted_at=WALL - YEAR, **ENDS)
    for shown in (lying, ()):
        first = renewed(C, lying, shown=shown)
        for again in (first, ()):
            chain = renewed(A, first, shown=again, wall=WALL + 50 * DAY)
            assert line_id(B.id) in opened(chain, D)[-1].line
            assert falls(chain, B)


def test_a_line_names_nobody_whom_its_chain_shows():
    for named in (A, B, D):
        chain = chain_to(D, by=B, through=CHAIN_B, name="d", line=ids(named))
        with pytest.raises(BadPacket, match="line names whom the chain shows"):
            opened(chain, D)
    twice = chain_to(D, by=B, through=CHAIN_B, name="d", line=ids(C, C))
    with pytest.raises(BadPacket, match="line names whom the chain shows"):
        opened(twice, D)


def test_the_one_who_asks_takes_no_renewal_with_another_line():
    wall = WALL + 25 * DAY
    origin = opened(CHAIN_D, D)
    *issuers, new = opened(renewed(C, CHAIN_D, shown=CHAIN_D), D)
    assert renews((*issuers, new), origin[-1], origin, wall)

    for line in ((), ids(E), ids(B, E)):
        assert not renews((*issuers, replace(new, line=line)), origin[-1], origin, wall)


def test_the_origin_of_another_admission_or_node_is_no_origin():
    other = chain_to(D, by=A, through=CHAIN_A, name="other", **ENDS)
    with pytest.raises(BadPacket, match="another admission"):
        renewed(C, CHAIN_D, shown=other)
    with pytest.raises(BadPacket, match="another subject"):
        renewed(C, CHAIN_D, shown=CHAIN_B)


def test_revocations_and_uses_fall_with_whose_word_their_signer_is_in_on():
    renewed_c = chain_to(C, by=A, through=CHAIN_A, name="c", admit=True, line=ids(B))
    against = revocation_blob(D, by=C, chain=renewed_c)
    ledger = world(CHAIN_D, revocation(against))
    assert not ledger.admitted(D.id)

    origin = chain_to(D, by=A, through=CHAIN_A, name="d")
    cascade = revocation(revocation_blob(B, cascade=True))
    assert world(origin, revocation(against), cascade).admitted(D.id)


# Invites of others, and roots


def test_who_made_the_invite_is_in_the_line_where_another_admits():
    ledger = ledger_of(*RECORDS)
    application = Application(D.id, "d", invite_blob(B))

    admitted = admit(ledger, application, key=C, chain=CHAIN_C, wall=WALL)
    by_itself = admit(ledger, application, key=B, chain=CHAIN_B, wall=WALL)

    assert let_in_by(opened(admitted.chain, D)) == ids(A, C, B)
    assert falls(admitted.chain, B)
    assert by_itself.credential.line == ()


def test_a_grant_of_a_new_root_keeps_the_line():
    ledger = world(
        CHAIN_D, succession(succession_blob()), grant(grant_blob(D, CHAIN_D, by=ROOT_KEY))
    )
    ledger.follow(ledger.roots.settle())
    assert ledger.admitted(D.id)
    assert len(ledger.standing(D.id).chain) == 1

    against = revocation(revocation_blob(B, by=ROOT_KEY, cascade=True))
    ledger.merge_untrusted(*against, WALL)

    assert not ledger.admitted(D.id)


# Dates


def test_nobody_is_a_member_for_longer_than_whose_word_it_is_in_on():
    late = {"admitted_at": WALL + DAY, "issued_at": WALL + DAY}
    late_b = chain_to(B, by=A, through=CHAIN_A, name="b", admit=True, **late)
    early = {"admitted_at": 0, "issued_at": WALL + DAY}
    made_up = chain_to(D, by=B, through=late_b, name="d", **early, **ENDS)

    assert member_since(opened(made_up, D)) == WALL + DAY
    ledger = ledger_of(*RECORDS, record(record_blob(D, made_up)))
    assert ledger.standing(D.id).admitted_at == WALL + DAY

    honest = renew_untrusted(
        ledger, D.id, key=A, chain=CHAIN_A, wall=WALL + 25 * DAY, shown=made_up
    )
    assert opened(honest, D)[-1].admitted_at == WALL + DAY


# Bytes


def test_the_longest_credential_can_be_renewed_by_anybody_else():
    """Two dates and the longest line are what a renewal or a grant may add."""
    full = Credential(
        issuer=A.id,
        subject=D.id,
        name="d" * 63,
        tags=("t" * 32, "u" * 16),
        admitted_at=WALL,
        issued_at=WALL,
        expires_at=WALL + MONTH,
    )
    grown = replace(
        full,
        issued_at=WALL + MONTH,
        admitted_at=WALL,
        lifetime=MONTH,
        line=tuple(bytes([n]) * LINE_ID_BYTES for n in range(LINE_LENGTH_MAX)),
    )
    first, later = (len(issue(each, A, MESH)) for each in (full, grown))

    assert later - first == 63
    assert ADMISSION_BYTES_MAX + (later - first) <= CREDENTIAL_BYTES_MAX


def test_the_longest_record_fits_into_the_shortest_request():
    """That is one with a cookie; a line makes room for itself by taking candidates' place."""
    line = tuple(bytes([n]) * LINE_ID_BYTES for n in range(LINE_LENGTH_MAX))
    chain = chain_to(D, by=B, through=CHAIN_B, name="d" * 63, line=line)
    candidate = Candidate(CandidateKind.HOST, IPv6Address("2001:db8::1"), 51820, 51821)
    blob = record_blob(D, chain, candidates=(candidate,) * CANDIDATES_MAX, version="v" * 32)
    assert len(blob) <= RECORD_BYTES_MAX
    longest = ByRecord(blob.ljust(RECORD_BYTES_MAX, b"\0"))

    payload = encode_request(longest, key=D, mesh=MESH, binding=bytes(32), wall=2**40 - 1)

    assert 2 + len(unpad_untrusted(payload)) == 1124, "what docs/wire-format.md says"
    assert PAYLOAD_BYTES - CODE_BYTES >= 1124


def test_a_line_that_is_too_long_is_refused_with_what_to_do():
    """Seven are behind it: e was let in through six more than its present chain shows."""
    line = tuple(bytes([n]) * LINE_ID_BYTES for n in range(LINE_LENGTH_MAX))
    chain = chain_to(E, by=C, through=CHAIN_C, name="e", line=line, **ENDS)

    refusal = renewed(A, chain, shown=chain, key=E)

    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.CHAIN_TOO_LONG


@pytest.mark.parametrize("packed", [b"", b"short", bytes(LINE_ID_BYTES * (LINE_LENGTH_MAX + 1))])
def test_a_malformed_line_is_refused(packed):
    body = pack({1: bytes(F.id), 2: "f", 9: WALL, 65: packed})
    blob = sign(Statement.CREDENTIAL, MESH, A, body)

    with pytest.raises(BadPacket):
        opened((*CHAIN_A, blob), F)


def test_the_line_is_pinned():
    blob = chain_to(D, by=B, through=CHAIN_B, name="d", line=ids(C))[-1]

    assert blob[64:].hex().endswith("41c408" + line_id(C.id).hex())
    assert line_id(C.id).hex() == "bcd947ccf5c374fb"
