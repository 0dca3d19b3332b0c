"""What a member grants at renewal, what it refuses, and whom it is best to ask."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import BadPacket
from meshd.keys import NodeKey
from meshd.trust.credential import CHAIN_LENGTH_MAX, CredentialCache, verify_chain_untrusted
from meshd.trust.grammar import CLOCK_SKEW_MAX
from meshd.trust.line import line_id
from meshd.trust.refusal import REFUSAL_TEXT_BYTES_MAX, Refusal, RefusalCode
from meshd.trust.renewal import (
    GRACE,
    Phase,
    due_at,
    issuer_rank,
    next_phase_at,
    phase,
    renew_untrusted,
    renews,
)
from trust.world import (
    HOUR,
    INVITE_KEY,
    MESH,
    MESH_KEY,
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
    ledger_of,
    record,
    record_blob,
    revocation,
    revocation_blob,
    use,
    use_blob,
)

DAY = 86400
MONTH = 30 * DAY
ROUTE = IPv4Network("10.1.0.0/16")
FULL = {
    "tags": ("db", "web"),
    "ipv4": IPv4Address("100.64.0.7"),
    "routes": (ROUTE,),
    "admit": True,
    "relay": True,
    "invite": INVITE_KEY.id,
}

ENOUGH = {key: FULL[key] for key in ("tags", "routes", "relay")} | {"admit": True}  # to renew that

CHAIN_A = founding_chain(A, "a")
CHAIN_B = chain_to(B, by=A, through=CHAIN_A, name="b", expires_at=WALL + MONTH, **FULL)
RECORD_A = record(record_blob(A, CHAIN_A))
RECORD_B = record(record_blob(B, CHAIN_B, ipv4=FULL["ipv4"]))


def opened(chain, key):
    return verify_chain_untrusted(chain, MESH, key.id, CredentialCache())


def last(chain, key):
    return opened(chain, key)[-1]


def world(*facts):
    return ledger_of(RECORD_A, RECORD_B, *facts)


def ask(ledger=None, *, subject=B, key=A, chain=CHAIN_A, wall=WALL + 25 * DAY, shown=()):
    return renew_untrusted(
        ledger or world(), subject.id, key=key, chain=chain, wall=wall, shown=shown
    )


def is_renewal(new, *, wall=WALL + 25 * DAY, old=CHAIN_B, key=B, through=CHAIN_A):
    """Whether a member takes a credential, behind the chain of its issuer, for a renewal."""
    origin = opened(old, key)
    return renews((*opened(through, A), new), origin[-1], origin, wall)


def refused(verdict):
    assert isinstance(verdict, Refusal)
    assert len(verdict.text) <= REFUSAL_TEXT_BYTES_MAX
    assert ";" in verdict.text, "it must say what to do"
    return verdict.code


def member(key, *, by=A, through=CHAIN_A, name=None, **grants):
    """Return a member's chain, and the fact that is its record."""
    chain = chain_to(key, by=by, through=through, name=name or f"n{key.id.short}", **grants)
    return chain, record(record_blob(key, chain, ipv4=grants.get("ipv4")))


# What is granted


def test_a_renewal_is_the_same_for_as_long_as_before():
    chain = ask(wall=WALL + 25 * DAY + 0.9)

    renewed, before = last(chain, B), last(CHAIN_B, B)
    assert renewed == replace(before, issued_at=WALL + 25 * DAY, expires_at=WALL + 25 * DAY + MONTH)
    assert renewed.admitted_at == WALL
    assert renewed.invite == INVITE_KEY.id


def test_the_same_issuer_does_not_lengthen_the_chain():
    chain, wall = CHAIN_B, WALL
    for _ in range(12):
        wall += 25 * DAY
        ledger = ledger_of(RECORD_A, record(record_blob(B, chain, ipv4=FULL["ipv4"])))
        chain = ask(ledger, wall=wall)

    assert [link.issuer for link in opened(chain, B)] == [MESH, A.id]


def test_a_renewal_ends_with_its_issuers_own_credential_and_the_next_one_is_whole_again():
    chain_c, record_c = member(C, expires_at=WALL + 40 * DAY, **ENOUGH)
    short = ask(world(record_c), key=C, chain=chain_c, wall=WALL + 25 * DAY)

    assert last(short, B).expires_at == WALL + 40 * DAY
    assert last(short, B).renewed_lifetime == MONTH
    ledger = ledger_of(RECORD_A, record_c, record(record_blob(B, short, ipv4=FULL["ipv4"])))
    whole = last(ask(ledger, wall=WALL + 38 * DAY), B)
    assert whole.expires_at == WALL + 38 * DAY + MONTH
    assert whole.lifetime == 0, "what its two dates say is not said again"


def test_a_credential_without_end_is_not_renewed():
    assert refused(ask(subject=A, key=B, chain=CHAIN_B)) is RefusalCode.NO_GAIN


def test_an_expired_credential_is_renewed_until_its_grace_is_over():
    end = WALL + MONTH + GRACE + CLOCK_SKEW_MAX

    assert last(ask(wall=end), B).expires_at == end + MONTH
    assert refused(ask(wall=end + 1)) is RefusalCode.TOO_LATE


def test_a_clock_that_is_behind_still_gives_a_chain_that_verifies():
    """Behind the subject's admission, and behind the renewing member's own."""
    later = WALL + 3 * DAY
    dates = {"admitted_at": later, "issued_at": later, "expires_at": later + DAY}
    cut = chain_to(B, by=A, through=CHAIN_A, name="b", lifetime=MONTH, **dates)
    chain_c, record_c = member(C, issued_at=later + HOUR, **ENOUGH)
    ledger = ledger_of(RECORD_A, record_c, record(record_blob(B, cut)))

    assert last(ask(ledger, wall=WALL), B).issued_at == later
    assert last(ask(ledger, key=C, chain=chain_c, wall=WALL), B).issued_at == later + HOUR


def test_dated_like_what_it_renews_it_is_no_renewal():
    ahead = chain_to(
        B,
        by=A,
        through=CHAIN_A,
        name="b",
        admitted_at=WALL + HOUR,
        issued_at=WALL + HOUR,
        expires_at=WALL + 2 * HOUR,
    )
    ledger = ledger_of(RECORD_A, record(record_blob(B, ahead)))

    assert refused(ask(ledger, wall=WALL)) is RefusalCode.NO_GAIN


# What is refused


@pytest.mark.parametrize("by", [MESH_KEY, A])
def test_a_revoked_member_is_not_renewed(by):
    against = revocation_blob(B, by=by, chain=() if by is MESH_KEY else CHAIN_A)

    assert refused(ask(world(revocation(against)))) is RefusalCode.REVOKED


def test_nobody_is_renewed_through_a_chain_that_has_fallen():
    chain_c, record_c = member(C, by=B, through=CHAIN_B, expires_at=WALL + 20 * DAY)
    assert len(ask(world(record_c), subject=C, wall=WALL + 15 * DAY)) == len(chain_c) - 1

    fallen = world(record_c, revocation(revocation_blob(B, cascade=True)))

    assert refused(ask(fallen, subject=C, wall=WALL + 15 * DAY)) is RefusalCode.REVOKED


def test_who_lost_its_invite_does_not_get_in_by_a_renewal():
    _, record_c = member(
        C, expires_at=WALL + MONTH, invite=INVITE_KEY.id, admitted_at=WALL + 1, issued_at=WALL + 1
    )
    renewed = ask(world(record_c), subject=C)
    assert isinstance(renewed, tuple)

    # The use that was first arrives after the renewal, which changes nothing about it.
    ledger = ledger_of(
        RECORD_A,
        record(record_blob(C, renewed)),
        use(use_blob(B, by=A, chain=CHAIN_A, used_at=WALL)),
        use(use_blob(C, by=A, chain=CHAIN_A, used_at=WALL + 1)),
    )

    assert not ledger.admitted(C.id)
    assert refused(ask(ledger, subject=C)) is RefusalCode.REVOKED


@pytest.mark.parametrize(
    "grants",
    [
        {"admit": False},
        {"admit": True, "expires_at": WALL + 24 * DAY},
    ],
    ids=["may not admit", "has expired"],
)
def test_only_a_member_that_may_admit_renews(grants):
    chain_c, record_c = member(C, **({"expires_at": WALL + YEAR} | grants))

    assert refused(ask(world(record_c), key=C, chain=chain_c)) is RefusalCode.NOT_ALLOWED


def test_a_revoked_member_renews_nobody():
    chain_c, record_c = member(C, admit=True)
    ledger = world(record_c, revocation(revocation_blob(C)))

    assert refused(ask(ledger, key=C, chain=chain_c)) is RefusalCode.NOT_ALLOWED


@pytest.mark.parametrize("lacks", ["tags", "routes", "relay"])
def test_tags_routes_and_relay_cannot_be_widened_through_renewal(lacks):
    """A member that lacks a right renews nobody who has it: neither with it nor without."""
    grants = {"tags": ("db", "web"), "routes": (ROUTE,), "relay": True} | {
        lacks: {"tags": ("db",), "routes": (), "relay": False}[lacks]
    }
    chain_c, record_c = member(C, admit=True, **grants)

    assert refused(ask(world(record_c), key=C, chain=chain_c)) is RefusalCode.CANNOT_NARROW


@pytest.mark.parametrize(
    "change",
    [
        {"name": "c"},
        {"tags": ("db", "web", "root")},
        {"ipv4": None},
        {"routes": (ROUTE, IPv4Network("10.2.0.0/16"))},
        {"routes": ()},
        {"admit": False},
        {"relay": False},
        {"admitted_at": WALL - 1},
        {"invite": None},
        {"expires_at": 0},
        {"expires_at": WALL + MONTH},
        {"expires_at": WALL + 10 * YEAR},
        {"lifetime": YEAR},
        {"line": (line_id(D.id),)},
        {"subject": C.id},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_more_or_less_than_before_is_not_taken_for_a_renewal(change):
    new = last(ask(), B)
    assert is_renewal(new)

    assert not is_renewal(replace(new, **change))


def test_admit_cannot_be_gained_through_renewal():
    chain_c, record_c = member(C, expires_at=WALL + MONTH)
    renewed = last(ask(world(record_c), subject=C), C)

    assert not renewed.admit
    assert is_renewal(renewed, old=chain_c, key=C)
    assert not is_renewal(replace(renewed, admit=True), old=chain_c, key=C)


def test_a_full_chain_renews_nobody():
    chain, holder, facts = CHAIN_A, A, []
    for key in (C, D, E):
        chain, fact = member(
            key,
            by=holder,
            through=chain,
            admit=True,
            tags=("db", "web"),
            routes=(ROUTE,),
            relay=True,
        )
        facts.append(fact)
        holder = key
    assert len(chain) == CHAIN_LENGTH_MAX
    ledger = world(*facts)

    assert refused(ask(ledger, key=E, chain=chain)) is RefusalCode.CHAIN_TOO_LONG
    assert issuer_rank(ledger.standing(E.id), last(CHAIN_B, B), WALL + 25 * DAY) is None


# When


def test_a_life_has_five_parts():
    credential = last(CHAIN_B, B)
    due = due_at(credential)

    assert WALL + 20 * DAY <= due <= WALL + 22.5 * DAY
    for wall, expected in (
        (WALL - YEAR, Phase.FRESH),
        (due - 1, Phase.FRESH),
        (due, Phase.DUE),
        (WALL + 25 * DAY, Phase.EXPIRING),
        (WALL + MONTH - 1, Phase.EXPIRING),
        (WALL + MONTH, Phase.EXPIRED),
        (WALL + MONTH + GRACE - 1, Phase.EXPIRED),
        (WALL + MONTH + GRACE, Phase.LATE),
    ):
        assert phase(credential, wall) is expected
        following = next_phase_at(credential, wall)
        if expected is Phase.LATE:
            assert following is None
        else:
            assert following > wall
            assert phase(credential, following) is Phase(expected + 1)


def test_a_credential_without_end_stays_fresh():
    assert phase(last(CHAIN_A, A), WALL + 1000 * YEAR) is Phase.FRESH
    assert next_phase_at(last(CHAIN_A, A), WALL) is None


def test_what_was_cut_short_is_due_as_soon_as_it_would_have_been():
    cut = replace(last(CHAIN_B, B), expires_at=WALL + 8 * DAY, lifetime=MONTH)

    assert phase(cut, WALL) is Phase.DUE, "a third of thirty days is more than eight"
    assert phase(cut, WALL + 7 * DAY) is Phase.EXPIRING, "a sixth of eight days"


def test_members_admitted_together_do_not_ask_together():
    keys = [NodeKey(bytes([number]) * 32) for number in range(100)]
    credential = last(CHAIN_B, B)

    dues = sorted(due_at(replace(credential, subject=key.id)) for key in keys)

    assert dues[0] >= WALL + 20 * DAY
    assert dues[-1] < WALL + 22.5 * DAY
    # Spread evenly, as far as chance goes: no tenth of the time has a third of the members.
    for tenth in range(10):
        begin = WALL + (20 + tenth / 4) * DAY
        assert sum(begin <= due < begin + DAY / 4 for due in dues) < 33


def test_a_node_asks_at_the_same_moment_after_every_start():
    assert due_at(last(CHAIN_B, B)) == due_at(last(CHAIN_B, B))


# Whom


def ranks(ledger, credential, *keys, wall=WALL + 25 * DAY):
    return [issuer_rank(ledger.standing(key.id), credential, wall) for key in keys]


def test_those_nearest_to_the_mesh_key_are_asked_first():
    chain_c, record_c = member(C, **ENOUGH)
    _, record_d = member(D, by=C, through=chain_c, **ENOUGH)
    ledger = world(record_c, record_d)

    near, middle, far = ranks(ledger, last(CHAIN_B, B), A, C, D)

    assert near < middle < far


def test_those_that_can_give_the_whole_life_are_asked_before_those_that_cannot():
    chain_c, record_c = member(C, **ENOUGH)
    _, record_d = member(D, by=C, through=chain_c, **ENOUGH)
    _, record_e = member(E, expires_at=WALL + 31 * DAY, **ENOUGH)
    ledger = world(record_c, record_d, record_e)

    whole_but_far, short_but_near = ranks(ledger, last(CHAIN_B, B), D, E)

    assert whole_but_far < short_but_near


def test_whoever_is_trusted_through_the_one_who_asks_is_not_asked():
    """Not even where the link in its chain is an older one that lasts longer."""
    older = chain_to(B, by=A, through=CHAIN_A, name="b", expires_at=WALL + YEAR, **FULL)
    _, through_b = member(D, by=B, through=older, expires_at=WALL + YEAR, **ENOUGH)

    assert ranks(world(through_b), last(CHAIN_B, B), D) == [None]


def test_those_that_could_not_help_are_not_asked():
    _, plain = member(C, **(ENOUGH | {"admit": False}))
    _, through_b = member(D, by=B, through=CHAIN_B, admit=True, expires_at=WALL + 28 * DAY)
    _, poor = member(E, admit=True)
    _, ending = member(F, expires_at=WALL + MONTH, **ENOUGH)
    ledger = world(plain, through_b, poor, ending)

    assert ranks(ledger, last(CHAIN_B, B), C, D, E, F) == [None] * 4


# Properties

RIGHTS = st.fixed_dictionaries(
    {
        "tags": st.lists(st.sampled_from(["db", "web", "ci"]), unique=True).map(tuple),
        "routes": st.lists(
            st.sampled_from([ROUTE, IPv4Network("10.1.2.0/24"), IPv4Network("10.2.0.0/16")]),
            unique=True,
        ).map(tuple),
        "admit": st.booleans(),
        "relay": st.booleans(),
        "ipv4": st.sampled_from([None, IPv4Address("100.64.0.7")]),
        "invite": st.sampled_from([None, INVITE_KEY.id]),
    }
)
LIVES = st.integers(1, 3 * MONTH)


@st.composite
def histories(draw):
    """Give a ledger, the admitters in it with their chains, and a subject's chain.

    Whoever can be made a member by somebody is; the others fall away.
    """
    chains = {A: CHAIN_A}
    facts = [RECORD_A]
    for key in draw(st.permutations([B, C, D, E])):
        by = draw(st.sampled_from(sorted(chains, key=lambda key: key.id)))
        rights = draw(RIGHTS) | {"admit": key is not E and draw(st.integers(0, 3)) > 0}
        issued_at = WALL + draw(st.integers(0, MONTH))
        life = draw(st.sampled_from([0, 0, 1]) | LIVES) if key is not E else draw(LIVES)
        own_end = last(chains[by], by).expires_at
        end = min((e for e in (own_end, life and issued_at + life) if e), default=0)
        chain = chain_to(
            key,
            by=by,
            through=chains[by],
            name=f"n{key.id.short}",
            admitted_at=WALL,
            issued_at=issued_at,
            expires_at=end,
            **rights,
        )
        try:
            opened(chain, key)
        except BadPacket:
            continue
        chains[key] = chain
        facts.append(record(record_blob(key, chain, ipv4=rights["ipv4"])))
    return ledger_of(*facts), chains


@given(histories(), st.integers(-MONTH, 6 * MONTH), st.data())
def test_a_renewal_verifies_carries_all_and_never_outlives_its_issuer(history, passed, data):
    ledger, chains = history
    keys = sorted(chains, key=lambda key: key.id)
    subject = data.draw(st.sampled_from(keys))
    issuer = data.draw(st.sampled_from(keys))
    wall = WALL + passed
    before = last(chains[subject], subject)

    verdict = ask(ledger, subject=subject, key=issuer, chain=chains[issuer], wall=wall)

    if isinstance(verdict, Refusal):
        return
    *through, renewed = opened(verdict, subject)
    assert len(verdict) == len(chains[issuer]) + 1 <= CHAIN_LENGTH_MAX
    assert through == list(opened(chains[issuer], issuer))
    assert before.expires_at < renewed.expires_at <= (through[-1].expires_at or renewed.expires_at)
    assert renewed.expires_at <= max(wall, renewed.issued_at) + before.renewed_lifetime
    assert renewed.renewed_lifetime == before.renewed_lifetime
    for field in ("name", "tags", "ipv4", "routes", "admit", "relay", "admitted_at", "invite"):
        assert getattr(renewed, field) == getattr(before, field)


@given(histories(), st.integers(0, 2 * MONTH))
def test_who_is_asked_first_says_yes(history, passed):
    """The order in which members are asked, and their judgement, are two views of one rule."""
    ledger, chains = history
    wall = WALL + passed
    for subject, chain in chains.items():
        credential = last(chain, subject)
        if not credential.expires_at or wall > credential.expires_at + GRACE:
            continue
        for issuer, through in chains.items():
            if issuer is subject:
                continue
            rank = issuer_rank(ledger.standing(issuer.id), credential, wall)
            verdict = ask(ledger, subject=subject, key=issuer, chain=through, wall=wall)
            if rank is not None and rank[0] is False:
                assert not isinstance(verdict, Refusal) or verdict.code in {
                    RefusalCode.NO_GAIN,  # the subject's was dated in the future
                    RefusalCode.CHAIN_TOO_LONG,  # in bytes
                }
            if rank is None:
                assert isinstance(verdict, Refusal) or any(
                    link.subject == subject.id for link in opened(through, issuer)
                )


@given(st.lists(st.sampled_from([A, C, D]), min_size=1, max_size=30))
def test_however_often_and_by_whom_it_is_renewed_a_chain_does_not_add_up(renewers):
    """All renewed by all in turn: a chain is as long as the way to the mesh key, and no longer."""
    chain_c, record_c = member(C, **ENOUGH)
    chain_d, record_d = member(D, by=C, through=chain_c, **ENOUGH)
    chains = {A: CHAIN_A, C: chain_c, D: chain_d}
    chain, wall = CHAIN_B, WALL
    for issuer in renewers:
        wall += 25 * DAY
        ledger = ledger_of(
            RECORD_A, record_c, record_d, record(record_blob(B, chain, ipv4=FULL["ipv4"]))
        )
        chain = ask(ledger, key=issuer, chain=chains[issuer], wall=wall)
        assert len(chain) == len(chains[issuer]) + 1

    assert last(chain, B).admitted_at == WALL
