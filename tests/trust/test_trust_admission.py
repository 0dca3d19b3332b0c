from ipaddress import IPv4Address, IPv4Network

import pytest

from meshd.keys import InviteKey
from meshd.trust.admission import RETRY_LIFETIME, Admission, Application, admit, withdraw
from meshd.trust.credential import verify_chain_untrusted
from meshd.trust.grammar import WALL_MAX
from meshd.trust.invite import open_invite_untrusted
from meshd.trust.ledger import Outcome
from meshd.trust.refusal import (
    REFUSAL_TEXT_BYTES_MAX,
    Refusal,
    RefusalCode,
    refusal_untrusted,
)
from trust.world import (
    HOUR,
    INVITE_KEY,
    MESH,
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
    invite_blob,
    ledger_of,
    record,
    record_blob,
    revocation,
    revocation_blob,
    use,
    use_blob,
)

PREFIX = IPv4Network("10.1.0.0/16")
CHAIN_A = founding_chain(A, "a")
CHAIN_B = chain_to(B, by=A, through=CHAIN_A, name="b", admit=True, expires_at=WALL + YEAR)
CHAIN_C = chain_to(C, by=A, through=CHAIN_A, name="c")
RECORDS = tuple(
    record(record_blob(key, chain)) for key, chain in ((A, CHAIN_A), (B, CHAIN_B), (C, CHAIN_C))
)


def world(*facts, **bounds):
    return ledger_of(*RECORDS, *facts, **bounds)


def ask(ledger=None, *, subject=D, name="d", invite=None, key=A, chain=CHAIN_A, wall=WALL):
    application = Application(subject.id, name, invite_blob(A) if invite is None else invite)
    return admit(ledger or world(), application, key=key, chain=chain, wall=wall)


def refused(verdict):
    assert isinstance(verdict, Refusal)
    assert len(verdict.text) <= REFUSAL_TEXT_BYTES_MAX
    assert ";" in verdict.text, "it must say what to do"
    return verdict.code


def test_an_invite_becomes_what_it_promised():
    pin = IPv4Address("100.64.0.7")
    invite = invite_blob(
        A,
        name="web",
        tags=("db",),
        ipv4=pin,
        routes=(PREFIX,),
        admit=True,
        relay=True,
        lifetime=YEAR,
    )

    admission = ask(invite=invite, name="ignored", wall=WALL + 0.9)

    assert isinstance(admission, Admission)
    credential = verify_chain_untrusted(admission.chain, MESH, D.id, cache())[-1]
    assert credential == admission.credential
    assert (credential.name, credential.tags, credential.ipv4) == ("web", ("db",), pin)
    assert (credential.routes, credential.admit, credential.relay) == ((PREFIX,), True, True)
    assert (credential.admitted_at, credential.issued_at) == (WALL, WALL)
    assert credential.expires_at == WALL + YEAR
    assert credential.invite == INVITE_KEY.id


def test_the_joiner_becomes_a_member():
    ledger = world()
    admission = ask(ledger)

    assert ledger.merge_untrusted(*use(admission.use), WALL).outcome is Outcome.NEW
    ledger.merge_untrusted(*record(record_blob(D, admission.chain)), WALL)

    assert ledger.admitted(D.id)
    assert ledger.name_owner("d") == D.id


def test_a_member_may_admit_by_anothers_invite():
    admission = ask(key=B, chain=CHAIN_B)

    credentials = verify_chain_untrusted(admission.chain, MESH, D.id, cache())
    assert [credential.issuer for credential in credentials] == [MESH, A.id, B.id]


@pytest.mark.parametrize(
    ("lifetime", "expires_at"), [(0, WALL + YEAR), (HOUR, WALL + HOUR), (2 * YEAR, WALL + YEAR)]
)
def test_a_credential_never_outlives_its_issuers(lifetime, expires_at):
    admission = ask(invite=invite_blob(A, lifetime=lifetime), key=B, chain=CHAIN_B)

    assert admission.credential.expires_at == expires_at


def test_asking_again_gives_the_same_and_spends_nothing():
    ledger = world()
    first = ask(ledger)
    ledger.merge_untrusted(*use(first.use), WALL)

    again = ask(ledger, wall=WALL + 30)
    after_expiry = ask(ledger, wall=WALL + 2 * HOUR)

    assert first == again == after_expiry
    assert ledger.merge_untrusted(*use(again.use), WALL).outcome is Outcome.KNOWN


def test_asking_another_member_spends_the_invite_only_once():
    ledger = world(use(ask().use))

    elsewhere = ask(ledger, key=B, chain=CHAIN_B, wall=WALL + 5)
    ledger.merge_untrusted(*use(elsewhere.use), WALL)

    assert elsewhere.credential.admitted_at == WALL
    assert list(ledger.invite(INVITE_KEY.id).winners) == [D.id]
    assert verify_chain_untrusted(elsewhere.chain, MESH, D.id, cache())


def test_a_use_older_than_the_members_own_credential_still_gives_a_valid_chain():
    chain = chain_to(
        B, by=A, through=CHAIN_A, name="b", admit=True, issued_at=WALL + RETRY_LIFETIME
    )
    ledger = world(record(record_blob(B, chain, sequence=2)), use(ask().use))

    admission = ask(ledger, key=B, chain=chain, wall=WALL + RETRY_LIFETIME)

    assert admission.credential.admitted_at == WALL
    assert verify_chain_untrusted(admission.chain, MESH, D.id, cache())


def test_a_token_that_was_used_is_no_way_to_go_on_for_ever():
    """Not even for its user, and though the credential of the member it asks is new."""
    chain = chain_to(B, by=A, through=CHAIN_A, name="b", admit=True, issued_at=WALL + YEAR)
    ledger = world(record(record_blob(B, chain, sequence=2)), use(ask().use))

    late = ask(ledger, key=B, chain=chain, wall=WALL + RETRY_LIFETIME + 1)

    assert refused(late) is RefusalCode.EXPIRED


def test_a_lost_answer_that_has_expired_is_not_given_again():
    invite = invite_blob(A, lifetime=HOUR)
    ledger = world(use(ask(invite=invite).use))

    assert isinstance(ask(ledger, invite=invite, wall=WALL + HOUR), Admission)
    assert refused(ask(ledger, invite=invite, wall=WALL + HOUR + 1)) is RefusalCode.USED


def test_a_single_use_invite_admits_one():
    ledger = world(use(ask().use))

    assert refused(ask(ledger, subject=E, name="e")) is RefusalCode.USED


def test_an_invite_with_a_count_admits_that_many():
    ledger, invite = world(), invite_blob(A, uses=2)
    for key, name in ((D, "d"), (E, "e")):
        admission = ask(ledger, subject=key, name=name, invite=invite)
        ledger.merge_untrusted(*use(admission.use), WALL)

    assert refused(ask(ledger, subject=F, name="f", invite=invite)) is RefusalCode.USED


def test_an_invite_without_limit_leaves_no_uses():
    ledger, invite = world(), invite_blob(A, uses=0)

    for key, name in ((D, "d"), (E, "e")):
        assert ask(ledger, subject=key, name=name, invite=invite).use is None


def test_a_withdrawn_invite_admits_nobody():
    ledger, invite = world(), invite_blob(A, uses=0)
    opened = open_invite_untrusted(invite, MESH)
    ledger.merge_untrusted(
        *use(withdraw(opened.id, uses=opened.uses, key=B, chain=CHAIN_B, ledger=ledger, wall=WALL)),
        WALL,
    )

    assert refused(ask(ledger, invite=invite, wall=WALL + 1)) is RefusalCode.WITHDRAWN


def test_an_expired_invite_is_refused_with_both_times():
    verdict = ask(wall=WALL + HOUR + 1)

    assert refused(verdict) is RefusalCode.EXPIRED
    assert "expired at 2023-11-14 23:13:20 UTC" in verdict.text
    assert "it is 2023-11-14 23:13:21 UTC" in verdict.text
    assert isinstance(ask(wall=WALL + HOUR), Admission)


def test_a_foreign_or_altered_invite_is_refused():
    foreign = invite_blob(A, mesh=OTHER_MESH_KEY.id)
    altered = bytearray(invite_blob(A))
    altered[-1] ^= 1

    for invite in (foreign, bytes(altered), b"", b"x" * 2000):
        assert refused(ask(invite=invite)) is RefusalCode.FOREIGN


def test_a_taken_name_is_refused_unless_it_is_the_joiners_own():
    assert refused(ask(name="b")) is RefusalCode.NAME_TAKEN
    assert refused(ask(invite=invite_blob(A, name="b"))) is RefusalCode.NAME_TAKEN
    assert isinstance(ask(subject=B, name="b"), Admission)


@pytest.mark.parametrize("name", ["", "A", "a.b", "-", "x" * 64])
def test_a_malformed_name_is_refused(name):
    assert refused(ask(name=name)) is RefusalCode.NAME_MALFORMED


def test_an_unknown_inviter_is_refused_for_the_moment():
    verdict = ask(invite=invite_blob(E))

    assert refused(verdict) is RefusalCode.INVITER_UNKNOWN
    assert not verdict.final


def test_an_inviter_without_admit_or_revoked_or_expired_is_refused():
    for ledger, inviter, wall in (
        (world(), C, WALL),
        (world(revocation(revocation_blob(B))), B, WALL),
        (world(), B, WALL + YEAR + 3 * HOUR),
    ):
        verdict = ask(ledger, invite=invite_blob(inviter, expires_at=WALL_MAX), wall=wall)
        assert refused(verdict) is RefusalCode.INVITER_NOT_ALLOWED


@pytest.mark.parametrize("grant", [{"relay": True}, {"tags": ("db",)}, {"routes": (PREFIX,)}])
def test_an_inviter_promises_no_more_than_it_has(grant):
    verdict = ask(invite=invite_blob(B, **grant))

    assert refused(verdict) is RefusalCode.INVITER_NOT_ALLOWED


@pytest.mark.parametrize("grant", [{"relay": True}, {"tags": ("db",)}, {"routes": (PREFIX,)}])
def test_a_member_grants_no_more_than_it_has(grant):
    verdict = ask(invite=invite_blob(A, **grant), key=B, chain=CHAIN_B)

    assert refused(verdict) is RefusalCode.CANNOT_NARROW
    assert not verdict.final


def test_a_member_without_the_right_admits_nobody():
    without = ask(key=C, chain=CHAIN_C)
    expired = ask(key=B, chain=CHAIN_B, wall=WALL + YEAR + 3 * HOUR)
    revoked = ask(world(revocation(revocation_blob(B))), key=B, chain=CHAIN_B)

    for verdict in (without, expired, revoked):
        assert refused(verdict) is RefusalCode.NOT_ALLOWED
        assert not verdict.final


def test_a_revoked_node_is_not_admitted_again():
    verdict = ask(world(revocation(revocation_blob(D))))

    assert refused(verdict) is RefusalCode.REVOKED
    assert verdict.final


def test_a_chain_does_not_grow_beyond_its_limit():
    chain, holder = CHAIN_A, A
    for key in (D, E, F):
        chain = chain_to(key, by=holder, through=chain, name="n", admit=True)
        holder = key

    assert refused(ask(subject=B, name="b", key=F, chain=chain)) is RefusalCode.CHAIN_TOO_LONG


def test_a_credential_too_long_is_refused():
    invite = invite_blob(A, tags=("t" * 32, "u" * 32, "v" * 32))

    verdict = ask(invite=invite, name="n" * 63)

    assert refused(verdict) is RefusalCode.CREDENTIAL_TOO_LONG
    assert isinstance(ask(invite=invite), Admission)


def test_a_full_mesh_says_so_before_anybody_is_admitted():
    assert refused(ask(world(members_max=3))) is RefusalCode.FULL
    other = use(use_blob(E, by=A, chain=CHAIN_A, invite=InviteKey(b"j" * 32)))
    assert refused(ask(world(other, invite_uses_max=1))) is RefusalCode.FULL


def test_a_member_that_rejoins_keeps_the_time_of_its_first_admission():
    admission = ask(subject=B, name="b", wall=WALL + 600)

    assert admission.credential.admitted_at == WALL
    assert admission.credential.issued_at == WALL + 600
    assert list(world(use(admission.use)).invite(INVITE_KEY.id).winners.values()) == [WALL + 600]


def test_the_ledger_is_not_changed_by_judging():
    ledger = world()
    before = list(ledger.facts())

    ask(ledger)

    assert list(ledger.facts()) == before


def test_the_longest_texts_fit():
    names = ["n" * 63, "m" * 63]
    chain = founding_chain(A, names[0])
    other = record(record_blob(E, chain_to(E, by=A, through=chain, name=names[1])))
    ledger = ledger_of(record(record_blob(A, chain)), other)

    assert refused(ask(ledger, name=names[1], chain=chain)) is RefusalCode.NAME_TAKEN
    assert refused(ask(ledger, chain=chain, wall=WALL_MAX)) is RefusalCode.EXPIRED


def test_a_refusal_from_outside_is_fit_for_a_terminal():
    assert refusal_untrusted(2, "used") == Refusal(RefusalCode.USED, "used")
    assert refusal_untrusted(999, "later") == Refusal(RefusalCode.OTHER, "later")
    assert refusal_untrusted(2, "a\x1b[2Jb\n\u202e") == Refusal(RefusalCode.USED, "a[2Jb")
    assert len(refusal_untrusted(2, "x" * 9999).text) == REFUSAL_TEXT_BYTES_MAX


def test_refusal_codes_are_pinned():
    assert [code.name for code in RefusalCode] == [
        "OTHER",
        "EXPIRED",
        "USED",
        "WITHDRAWN",
        "FOREIGN",
        "NAME_TAKEN",
        "NAME_MALFORMED",
        "INVITER_UNKNOWN",
        "INVITER_NOT_ALLOWED",
        "NOT_ALLOWED",
        "CHAIN_TOO_LONG",
        "CANNOT_NARROW",
        "REVOKED",
        "FULL",
        "ANSWER_TOO_LONG",
        "CREDENTIAL_TOO_LONG",
        "TOO_LATE",
        "NO_GAIN",
        "SEALED",
        "SUCCEEDED",
        "UNFOUNDED",
    ]
    assert [int(code) for code in RefusalCode] == list(range(21))
