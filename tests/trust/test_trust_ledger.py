from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.errors import BadPacket
from meshd.keys import InviteKey, NodeKey
from meshd.trust.credential import CredentialCache, verify_chain_untrusted
from meshd.trust.fact import Fact, FactKind
from meshd.trust.grammar import CLOCK_SKEW_MAX
from meshd.trust.invite_use import InviteUse, resolve_uses
from meshd.trust.ledger import Ledger, Outcome
from trust.world import (
    BOOTSTRAP_KEY,
    HOST,
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
    chain_to,
    epoch,
    epoch_blob,
    followed,
    founding_chain,
    grant,
    grant_blob,
    ledger_of,
    record,
    record_blob,
    revocation,
    revocation_blob,
    succession,
    succession_blob,
    use,
    use_blob,
)

CHAIN_A = founding_chain(A, "a")
CHAIN_B = chain_to(B, by=A, through=CHAIN_A, name="b", admit=True, relay=True)
OPENED_A = verify_chain_untrusted(CHAIN_A, MESH, A.id, CredentialCache())
INVITED = {"invite": INVITE_KEY.id}


def invited(key, name, at=WALL, *, by=A, through=CHAIN_A):
    return chain_to(
        key, by=by, through=through, name=name, invite=INVITE_KEY.id, admitted_at=at, issued_at=at
    )


RECORD_A = record(record_blob(A, CHAIN_A))
RECORD_B = record(record_blob(B, CHAIN_B))

# Everything that contradicts something else in the list, or depends on it.
FACTS = [
    RECORD_A,
    record(record_blob(A, CHAIN_A, sequence=2)),
    record(record_blob(A, CHAIN_A, sequence=2, candidates=())),
    RECORD_B,
    record(record_blob(B, CHAIN_B, sequence=2**40, relay=True)),
    record(record_blob(C, invited(C, "web", WALL + 1))),
    record(record_blob(D, invited(D, "web", WALL, by=B, through=CHAIN_B))),
    record(record_blob(E, chain_to(E, by=B, through=CHAIN_B, name="web"))),
    use(use_blob(C, by=A, chain=CHAIN_A, used_at=WALL + 1)),
    use(use_blob(D, by=B, chain=CHAIN_B, used_at=WALL)),
    use(use_blob(C, by=B, chain=CHAIN_B, used_at=WALL + 2)),
    use(use_blob(None, by=A, chain=CHAIN_A, used_at=WALL + 3)),
    revocation(revocation_blob(B)),
    revocation(revocation_blob(B, cascade=True)),
    revocation(revocation_blob(B, by=A, chain=CHAIN_A)),
    revocation(revocation_blob(A, by=B, chain=CHAIN_B, cascade=True)),
    revocation(revocation_blob(E, by=B, chain=CHAIN_B)),
]


def state(ledger):
    return (
        list(ledger.facts()),
        list(ledger.members().items()),
        ledger.names(),
        [ledger.admitted(key.id) for key in (A, B, C, D, E)],
        [ledger.revocation(key.id) for key in (A, B, C, D, E)],
        ledger.invite(INVITE_KEY.id),
    )


@settings(max_examples=150)
@given(st.lists(st.sampled_from(FACTS), max_size=30), st.randoms())
def test_the_same_facts_give_the_same_ledger_in_any_order_and_number(given_facts, random):
    distinct = list(dict.fromkeys(given_facts))
    random.shuffle(distinct)

    assert state(ledger_of(*given_facts)) == state(ledger_of(*distinct))


@settings(max_examples=50)
@given(st.lists(st.sampled_from(FACTS)), st.lists(st.sampled_from(FACTS)), st.randoms())
def test_two_ledgers_that_exchange_their_facts_are_equal(first_facts, second_facts, random):
    first, second = ledger_of(*first_facts), ledger_of(*second_facts)
    offered = list(second.facts())
    returned = list(first.facts())
    random.shuffle(offered)

    for fact in offered:
        first.merge_untrusted(fact.kind, fact.blob, WALL)
    for fact in returned:
        second.merge_untrusted(fact.kind, fact.blob, WALL)

    assert state(first) == state(second)


@settings(max_examples=50)
@given(st.lists(st.sampled_from(FACTS)), st.sampled_from(FACTS), st.booleans())
def test_asking_in_between_changes_nothing(given_facts, last, forgets):
    asked, unasked = Ledger(MESH), Ledger(MESH)
    for fact in (*given_facts, last):
        for ledger in (asked, unasked):
            ledger.merge_untrusted(*fact, WALL)
            if forgets:
                ledger.forget(B.id)
        state(asked)

    assert state(asked) == state(unasked)


def test_a_merge_says_what_became_of_it():
    ledger = Ledger(MESH)
    older, newer = record_blob(A, CHAIN_A), record_blob(A, CHAIN_A, sequence=2)

    new = ledger.merge_untrusted(FactKind.RECORD, older, WALL)
    known = ledger.merge_untrusted(FactKind.RECORD, older, WALL)
    updated = ledger.merge_untrusted(FactKind.RECORD, newer, WALL)
    stale = ledger.merge_untrusted(FactKind.RECORD, older, WALL)

    assert (new.outcome, new.changed, new.fact.blob) == (Outcome.NEW, True, older)
    assert (known.outcome, known.changed, known.fact) == (Outcome.KNOWN, False, new.fact)
    assert (updated.outcome, updated.changed, updated.fact.blob) == (Outcome.UPDATED, True, newer)
    assert (stale.outcome, stale.changed, stale.fact) == (Outcome.STALE, False, updated.fact)
    assert ledger.get(FactKind.RECORD, bytes(A.id)) == updated.fact


def test_a_bad_fact_changes_nothing():
    ledger = ledger_of(RECORD_A)
    before = state(ledger)
    bad = bytearray(record_blob(A, CHAIN_A, sequence=2))
    bad[5] ^= 1

    for kind in FactKind:
        with pytest.raises(BadPacket):
            ledger.merge_untrusted(kind, bytes(bad), WALL)
    assert state(ledger) == before


def test_a_fact_of_another_mesh_is_refused():
    foreign = founding_chain(A, mesh_key=OTHER_MESH_KEY)
    blob = record_blob(A, foreign, mesh=OTHER_MESH_KEY.id)

    assert Ledger(OTHER_MESH_KEY.id).merge_untrusted(FactKind.RECORD, blob, WALL).changed
    with pytest.raises(BadPacket):
        Ledger(MESH).merge_untrusted(FactKind.RECORD, blob, WALL)


def test_a_fact_known_under_one_kind_is_not_known_under_another():
    ledger = ledger_of(RECORD_A)

    with pytest.raises(BadPacket):
        ledger.merge_untrusted(FactKind.REVOCATION, RECORD_A[1], WALL)


@pytest.mark.parametrize("kind", [0, 8, 255, 2**64])
def test_a_kind_from_a_later_version_is_nobodys_fault(kind):
    ledger = Ledger(MESH)

    merge = ledger.merge_untrusted(kind, b"anything", WALL)

    assert (merge.outcome, merge.fact, merge.changed) == (Outcome.UNKNOWN_KIND, None, False)
    assert ledger.get(kind, bytes(32)) is None


def test_two_bodies_of_one_sequence_are_reported_and_one_is_kept_everywhere():
    one = record_blob(A, CHAIN_A, sequence=5)
    other = record_blob(A, CHAIN_A, sequence=5, candidates=(HOST,))
    kept = max(one, other)

    for first, second in ((one, other), (other, one)):
        ledger = ledger_of(record(first))
        merge = ledger.merge_untrusted(FactKind.RECORD, second, WALL)
        assert merge.outcome is Outcome.EQUIVOCATION
        assert merge.fact.blob == kept
        assert merge.changed == (second == kept)

    newer = record(record_blob(A, CHAIN_A, sequence=6))
    assert ledger.merge_untrusted(*newer, WALL).outcome is Outcome.UPDATED


def test_facts_come_ordered_by_kind_and_key():
    root = (
        succession(succession_blob()),
        grant(grant_blob(B, CHAIN_B)),
        epoch(epoch_blob(BOOTSTRAP_KEY)),
        followed(A, F),
    )
    facts = list(ledger_of(*FACTS, *root).facts())

    assert facts == sorted(facts, key=lambda fact: (fact.kind, fact.key))
    assert len({fact.digest for fact in facts}) == len(facts)
    assert {fact.kind for fact in facts} == set(FactKind)


def test_members_come_ordered_by_id():
    members = ledger_of(*FACTS).members()

    assert list(members) == sorted(key.id for key in (A, B, C, D, E))
    assert len(members) == 5
    assert InviteKey(bytes(32)).id not in members


def test_members_may_be_merged_and_forgotten_while_they_are_listed():
    ledger = ledger_of(RECORD_A)

    for node in ledger.members():
        ledger.merge_untrusted(*RECORD_B, WALL)
        ledger.forget(node)

    assert list(ledger.members()) == [B.id]


def test_a_forgotten_node_may_come_back():
    ledger = ledger_of(RECORD_A, RECORD_B)

    assert ledger.forget(B.id)
    assert not ledger.forget(B.id)
    assert ledger.standing(B.id) is None
    assert not ledger.admitted(B.id)
    assert ledger.get(FactKind.RECORD, bytes(B.id)) is None
    assert ledger.merge_untrusted(*RECORD_B, WALL).outcome is Outcome.NEW
    assert ledger.admitted(B.id)


def test_forgetting_a_revoked_node_does_not_forgive_it():
    ledger = ledger_of(RECORD_B, revocation(revocation_blob(B)))

    ledger.forget(B.id)
    ledger.merge_untrusted(*RECORD_B, WALL)

    assert not ledger.admitted(B.id)


# Names


def test_a_name_belongs_to_the_earlier_admitted_and_to_nobody_who_is_out():
    early, late, last = (
        record(
            record_blob(
                key,
                chain_to(
                    key,
                    by=A,
                    through=CHAIN_A,
                    name="web",
                    admitted_at=WALL + 9 - at,
                    issued_at=WALL + 9,
                ),
            )
        )
        for key, at in ((C, 1), (D, 3), (E, 2))
    )
    ledger = ledger_of(RECORD_A, early, late, last)

    assert ledger.name_owner("web") == D.id
    assert ledger.names() == {A.id: "a", D.id: "web", E.id: "web-2", C.id: "web-3"}

    ledger.merge_untrusted(*revocation(revocation_blob(D)), WALL)

    assert ledger.name_owner("web") == E.id
    assert ledger.names() == {A.id: "a", E.id: "web", C.id: "web-2"}
    assert ledger.name_owner("nobody") is None


# Standing


def test_an_expired_member_stays_one_and_loses_its_privileges():
    prefix = IPv4Network("10.1.0.0/16")
    chain = chain_to(
        B,
        by=A,
        through=CHAIN_A,
        name="b",
        admit=True,
        relay=True,
        routes=(prefix,),
        expires_at=WALL + HOUR,
    )
    ledger = ledger_of(RECORD_A, record(record_blob(B, chain, routes=(prefix,), relay=True)))
    standing = ledger.standing(B.id)

    for wall in (WALL, WALL + HOUR + CLOCK_SKEW_MAX):
        assert standing.routes(wall) == (prefix,)
        assert standing.relays(wall)
        assert ledger.may_admit(B.id, wall)
    late = WALL + HOUR + CLOCK_SKEW_MAX + 1
    assert standing.routes(late) == ()
    assert not standing.relays(late)
    assert not ledger.may_admit(B.id, late)
    assert ledger.admitted(B.id)
    assert ledger.may_admit(A.id, late)


def test_a_revoked_member_has_no_privileges():
    ledger = ledger_of(RECORD_A, RECORD_B, revocation(revocation_blob(B)))

    assert not ledger.may_admit(B.id, WALL)
    assert ledger.standing(B.id).routes(WALL) == ()


def test_a_pin_is_a_claim_even_without_one_in_the_record():
    pin = IPv4Address("100.64.0.7")
    chain = chain_to(B, by=A, through=CHAIN_A, name="b", ipv4=pin)
    ledger = ledger_of(RECORD_A, record(record_blob(B, chain, ipv4=None)))

    assert (ledger.standing(B.id).ipv4, ledger.standing(B.id).pinned) == (pin, True)
    assert ledger.standing(A.id).ipv4 == IPv4Address("100.64.1.1")
    assert not ledger.standing(A.id).pinned


# Invites


def test_of_two_uses_of_a_single_invite_the_earlier_wins():
    ledger = ledger_of(
        RECORD_A,
        RECORD_B,
        record(record_blob(C, invited(C, "c", WALL + 1))),
        record(record_blob(D, invited(D, "d", WALL, by=B, through=CHAIN_B))),
        use(use_blob(C, by=A, chain=CHAIN_A, used_at=WALL + 1)),
    )
    assert ledger.admitted(C.id)
    assert not ledger.admitted(D.id)

    ledger.merge_untrusted(*use(use_blob(D, by=B, chain=CHAIN_B, used_at=WALL)), WALL)

    assert ledger.admitted(D.id)
    assert not ledger.admitted(C.id)
    assert ledger.standing(C.id).losing_invite


def test_of_uses_at_one_second_the_lower_subject_wins():
    low, high = sorted([C, D], key=lambda key: key.id)
    uses = [use(use_blob(key, by=A, chain=CHAIN_A)) for key in (low, high)]

    assert list(ledger_of(*uses).invite(INVITE_KEY.id).winners) == [low.id]


def test_a_loser_that_is_admitted_anew_is_a_member():
    ledger = ledger_of(
        record(record_blob(C, invited(C, "c"))), use(use_blob(D, by=A, chain=CHAIN_A))
    )
    assert not ledger.admitted(C.id)

    anew = chain_to(C, by=A, through=CHAIN_A, name="c", invite=InviteKey(b"j" * 32).id)
    ledger.merge_untrusted(*record(record_blob(C, anew, sequence=2)), WALL)

    assert ledger.admitted(C.id)


def test_an_invite_with_a_count_admits_that_many():
    uses = [
        use(use_blob(key, by=A, chain=CHAIN_A, used_at=WALL + at, uses=2))
        for at, key in enumerate((C, D, E))
    ]
    state_of_it = ledger_of(*uses).invite(INVITE_KEY.id)

    assert list(state_of_it.winners) == [C.id, D.id]
    assert state_of_it.spent
    assert state_of_it.loses(E.id, WALL)


def test_a_withdrawn_invite_keeps_those_it_admitted_before():
    ledger = ledger_of(
        use(use_blob(C, by=A, chain=CHAIN_A, used_at=WALL + 1, uses=0)),
        use(use_blob(None, by=A, chain=CHAIN_A, used_at=WALL + 2, uses=0)),
        use(use_blob(D, by=A, chain=CHAIN_A, used_at=WALL + 3, uses=0)),
    )
    found = ledger.invite(INVITE_KEY.id)

    assert list(found.winners) == [C.id]
    assert found.withdrawn_at == WALL + 2
    assert not found.loses(C.id, WALL + 1)
    assert found.loses(D.id, WALL + 3)
    assert not found.loses(E.id, WALL)


def test_a_use_falls_with_a_signer_revoked_with_cascade():
    theft = use(use_blob(D, by=B, chain=CHAIN_B, used_at=0))
    genuine = use(use_blob(C, by=A, chain=CHAIN_A))
    facts = [theft, genuine, record(record_blob(C, invited(C, "c")))]

    assert not ledger_of(*facts).admitted(C.id)
    plain = revocation(revocation_blob(B))
    assert not ledger_of(*facts, plain).admitted(C.id)
    cascading = revocation(revocation_blob(B, cascade=True))
    assert ledger_of(*facts, cascading).admitted(C.id)
    assert ledger_of(cascading, *facts).admitted(C.id)


def test_nobody_without_admit_uses_up_an_invite():
    chain = chain_to(E, by=A, through=CHAIN_A, name="e")

    with pytest.raises(BadPacket, match="may not admit"):
        Ledger(MESH).merge_untrusted(FactKind.INVITE_USE, use_blob(D, by=E, chain=chain), WALL)


uses = st.lists(
    st.builds(
        InviteUse,
        invite=st.just(INVITE_KEY.id),
        subject=st.sampled_from([None, A.id, B.id, C.id, D.id]),
        used_at=st.integers(0, 4),
        signer=st.just(A.id),
        uses=st.integers(0, 3),
    )
)


@given(uses, st.randoms())
def test_uses_are_resolved_alike_in_any_order_and_within_the_limit(made, random):
    shuffled = made.copy()
    random.shuffle(shuffled)
    first = resolve_uses(made)

    assert first == resolve_uses(shuffled)
    assert first.limit is None or len(first.winners) <= first.limit
    assert not any(first.loses(winner, 0) for winner in first.winners)


def test_the_use_body_is_pinned():
    blob = use_blob(C, by=A, chain=(b"link",), uses=3)

    assert blob[64:].hex() == (
        "86"
        "01c420e34d3a01b6112e1429ead61668405f4ef4be4f8853abee5079d28ac6c13ffdd0"
        "02c420a7f6dfaf8f38b89ba8ce649b594f91e4d01fdc57f9c9493df43b5e50a9987367"
        "03ce6553f100"
        "0403"
        "05c420af06a3e3291714e4f356c19c9b15cd1951ec6e6662aa77be07547f289383341d"
        "0691c4046c696e6b"
    )


# Bounds


def test_at_the_bound_new_members_are_refused_and_known_ones_updated():
    ledger = ledger_of(RECORD_A, members_max=1)

    later = {"admitted_at": WALL + 1, "issued_at": WALL + 1}
    late = record_blob(B, chain_to(B, by=A, through=CHAIN_A, name="b", **later))
    full = ledger.merge_untrusted(*record(late), WALL)
    updated = ledger.merge_untrusted(*record(record_blob(A, CHAIN_A, sequence=2)), WALL)

    assert (full.outcome, full.fact, full.changed) == (Outcome.FULL, None, False)
    assert updated.outcome is Outcome.UPDATED
    assert not ledger.has_room_for(B.id, OPENED_A)
    assert ledger.has_room_for(A.id, OPENED_A)


def test_uses_are_bounded():
    ledger = ledger_of(use(use_blob(C, by=A, chain=CHAIN_A)), invite_uses_max=1)

    merge = ledger.merge_untrusted(*use(use_blob(D, by=A, chain=CHAIN_A)), WALL)

    assert merge.outcome is Outcome.FULL
    assert not ledger.has_room_for(D.id, OPENED_A)


def test_members_cannot_fill_the_revocations_against_the_mesh_key():
    strangers = [NodeKey(bytes([number]) * 32) for number in range(1, 7)]
    ledger = Ledger(MESH, revocations_max=3, revocations_by_members_max=2)

    outcomes = [
        ledger.merge_untrusted(*revocation(revocation_blob(key, by=A, chain=CHAIN_A)), WALL).outcome
        for key in strangers[:3]
    ]
    outcomes += [
        ledger.merge_untrusted(*revocation(revocation_blob(key)), WALL).outcome
        for key in strangers[3:5]
    ]
    upgraded = revocation(revocation_blob(strangers[0], by=A, chain=CHAIN_A, cascade=True))

    assert outcomes == [Outcome.NEW, Outcome.NEW, Outcome.FULL, Outcome.NEW, Outcome.FULL]
    assert ledger.merge_untrusted(*upgraded, WALL).outcome is Outcome.UPDATED
    assert ledger.statistics().revocations == 3


def test_questions_about_unknown_invites_cost_no_memory():
    ledger = Ledger(MESH)

    for number in range(100):
        assert not ledger.invite(InviteKey(bytes([number]) * 32).id).spent
    assert ledger._standings._invites == {}


def test_statistics_count_what_is_held():
    statistics = ledger_of(*FACTS).statistics()

    assert (statistics.records, statistics.revocations, statistics.invite_uses) == (5, 4, 3)
    assert statistics.credentials_cached == 5


def test_a_facts_digest_covers_all_of_it():
    fact = Fact(FactKind.RECORD, bytes(32), 1, b"blob")
    others = [
        replace(fact, kind=FactKind.REVOCATION),
        replace(fact, key=bytes(31) + b"1"),
        replace(fact, version=2),
        replace(fact, blob=b"blub"),
    ]

    assert len({fact.digest, *(other.digest for other in others)}) == 5
    assert fact.digest.hex() == "66cf4156b7ae35a2"


def test_a_renewed_member_keeps_the_time_of_its_admission():
    renewed = chain_to(B, by=A, through=CHAIN_A, name="b", issued_at=WALL + YEAR)
    ledger = ledger_of(RECORD_B, record(record_blob(B, renewed, sequence=2)))

    assert ledger.standing(B.id).credential.admitted_at == WALL
    assert ledger.standing(B.id).credential.issued_at == WALL + YEAR
