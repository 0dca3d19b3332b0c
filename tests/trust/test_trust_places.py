"""The table of records when more are offered than it holds."""

import random as random_module

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.keys import NodeKey, WireGuardKey
from meshd.trust.credential import Credential, issue
from meshd.trust.fact import FactKind
from meshd.trust.ledger import Ledger, Outcome
from meshd.trust.line import line_id
from meshd.trust.places import Places, Rank
from meshd.trust.record import Record, sign_record
from trust.world import (
    MESH,
    MESH_KEY,
    WALL,
    A,
    B,
    C,
    chain_to,
    founding_chain,
    record,
    revocation,
    revocation_blob,
)

PLACES = 8
SHARE = PLACES // 2

CHAIN_A = founding_chain(A, "a")
LATER = {"admitted_at": WALL + 10, "issued_at": WALL + 10}
CHAINS = {
    A: CHAIN_A,
    B: chain_to(B, by=A, through=CHAIN_A, name="b", admit=True, **LATER),
    C: chain_to(C, by=A, through=CHAIN_A, name="c", admit=True),
}
KEYS = [NodeKey(bytes([number]) * 32) for number in range(1, 61)]


def made(number, by, *, since=0, line=()):
    """Return the record of a node that somebody lets in."""
    key = KEYS[number]
    at = WALL + 100
    link = Credential(
        by.id, key.id, f"n{number}", admitted_at=WALL + since, issued_at=at, line=line
    )
    chain = (*CHAINS[by], issue(link, by, MESH))
    return record(sign_record(Record(key.id, 1, WireGuardKey(bytes(32)), chain=chain), key, MESH))


# 20 by a, 20 by b, 20 by c, with dates of all kinds; b is revoked with cascade, or is not.
MADE = [made(number, (A, B, C)[number % 3], since=number * 7 % 31) for number in range(60)]
CASCADE = revocation(revocation_blob(B, cascade=True))
OUT = revocation(revocation_blob(KEYS[0]))


def ledger(*facts, own=None):
    held = Ledger(MESH, own=own, members_max=PLACES)
    for kind, blob in facts:
        held.merge_untrusted(kind, blob, WALL)
    return held


def records(held):
    return [fact for fact in held.facts() if fact.kind is FactKind.RECORD]


def exchange(*ledgers, offered=()):
    """Have all tell all others what they hold, until nobody learns anything.

    `offered` is what the nodes themselves tell of themselves, again and again.
    """
    changed, rounds = True, 0
    while changed:
        changed, rounds = False, rounds + 1
        assert rounds < 50, "it comes to an end"
        told = [(fact.kind, fact.blob) for one in ledgers for fact in one.facts()]
        for kind, blob in (*told, *offered):
            for each in ledgers:
                changed = each.merge_untrusted(kind, blob, WALL).changed or changed


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([*MADE, CASCADE, OUT]), unique=True, min_size=5),
    st.integers(2, 4),
    st.randoms(use_true_random=False),
)
def test_the_same_ones_survive_everywhere_whatever_the_order(facts, count, random):
    """Each record's own node keeps it and offers it, as nodes do; so it is never lost."""
    ledgers = []
    for _ in range(count):
        random.shuffle(facts)
        ledgers.append(ledger(*facts))
    exchange(*ledgers, offered=facts)

    assert len({tuple(each.facts()) for each in ledgers}) == 1
    assert tuple(survivors(facts, ledgers[0])) == tuple(fact.blob for fact in records(ledgers[0]))


def survivors(facts, held):
    """Choose by the rule, said otherwise: the best first, as long as there is room for it."""
    wide = Ledger(MESH, members_max=1000)
    for fact in facts:
        wide.merge_untrusted(*fact, WALL)
    ranked = sorted(
        (not standing.admitted, standing.admitted_at, node)
        for node, standing in wide.members().items()
    )
    chosen, by = [], {B.id: 0, C.id: 0}
    for *_, node in ranked:
        issuer = wide.standing(node).credential.issuer
        if len(chosen) < PLACES and by.get(issuer, 0) < SHARE:
            chosen.append(node)
            if issuer in by:
                by[issuer] += 1
    return [wide.standing(node).blob for node in sorted(chosen)]


def test_no_admitter_takes_more_than_half_and_a_root_s_own_may_take_all():
    by_one = ledger(*[made(number, B) for number in range(20)])
    by_the_first = ledger(*[made(number, A) for number in range(20)])

    assert len(records(by_one)) == SHARE
    assert len(records(by_the_first)) == PLACES


def test_who_lets_others_admit_gets_no_second_share():
    """b makes an admitter of a key of its own; that one's members count for b as well."""
    key = KEYS[50]
    deeper = chain_to(key, by=B, through=CHAINS[B], name="x", admit=True, **LATER)
    CHAINS[key] = deeper
    held = ledger(
        *[made(number, B) for number in range(3)], *[made(number, key) for number in range(3, 9)]
    )
    del CHAINS[key]

    assert len(records(held)) == SHARE


def test_a_share_is_not_shed_by_renewals():
    """Renewed by the first of the mesh, with b in their lines, they count for b."""
    laundered = [made(number, A, line=(line_id(B.id),)) for number in range(SHARE)]
    held = ledger(*laundered, *[made(number, B, since=20) for number in range(10, 20)])

    assert len(records(held)) == SHARE


def test_nobody_fills_the_share_of_another_by_naming_it():
    framed = [made(number, B, line=(line_id(C.id),), since=10) for number in range(SHARE)]
    held = ledger(*framed, *[made(number, C, since=20) for number in range(10, 20)])

    assert len(records(held)) == PLACES


def test_who_has_a_grant_of_a_new_root_has_a_share_like_before():
    """There it is b's chain that is a root's alone, with a in its line."""
    granted = Credential(MESH, B.id, "b", admit=True, line=(line_id(A.id),), **LATER)
    CHAINS[B], before = (issue(granted, MESH_KEY, MESH),), CHAINS[B]
    held = ledger(*[made(number, B) for number in range(20)])
    CHAINS[B] = before

    assert len(records(held)) == SHARE


def test_the_revoked_make_room_and_do_not_come_back():
    held = ledger(*[made(number, B, since=10) for number in range(SHARE)])
    late = [made(number, A, since=number) for number in range(20, 20 + PLACES)]
    for fact in late[:SHARE]:
        assert held.merge_untrusted(*fact, WALL).evicted == ()
    assert held.merge_untrusted(*late[SHARE], WALL).outcome is Outcome.FULL

    held.merge_untrusted(*CASCADE, WALL)
    assert len(records(held)) == PLACES, "as long as nobody wants their places"
    evicted = [held.merge_untrusted(*fact, WALL).evicted for fact in late[SHARE:]]

    assert [len(each) for each in evicted] == [1] * SHARE
    assert all(standing.admitted for standing in held.members().values())
    for number in range(SHARE):
        assert held.merge_untrusted(*made(number, B, since=10), WALL).outcome is Outcome.FULL
        assert not held.admitted(KEYS[number].id)
    assert held.judgement().against(B.id) is not None


def test_a_node_that_is_not_told_of_the_revocation_first_ends_with_the_same():
    facts = [made(number, B, since=10) for number in range(SHARE)]
    facts += [made(number, A, since=30) for number in range(20, 20 + PLACES)]
    early, late = ledger(CASCADE, *facts), ledger(*facts, CASCADE)
    exchange(early, late)

    assert list(early.facts()) == list(late.facts())


def test_our_own_record_stays_with_us_though_there_is_no_place_for_it():
    us = KEYS[40]
    ours = made(40, A, since=90)
    older = [made(number, A) for number in range(PLACES)]

    late, early = ledger(*older, ours, own=us.id), ledger(ours, *older, own=us.id)

    for held in (late, early):
        assert held.standing(us.id) is not None
        assert len(records(held)) == PLACES + 1
    assert list(late.facts()) == list(early.facts())
    assert ledger(*older, ours).standing(us.id) is None, "nobody else has it"


def test_an_update_that_has_no_place_takes_that_of_the_record_before_it():
    """A node that was let in by a goes over to b, whose share is taken by those before it."""
    held = ledger(*[made(number, B, since=10) for number in range(SHARE)], made(30, A, since=5))
    key = KEYS[30]
    link = Credential(B.id, key.id, "n30", admitted_at=WALL + 99, issued_at=WALL + 100)
    chain = (*CHAINS[B], issue(link, B, MESH))
    later = sign_record(Record(key.id, 2, WireGuardKey(bytes(32)), chain=chain), key, MESH)

    merge = held.merge_untrusted(FactKind.RECORD, later, WALL)

    assert (merge.outcome, merge.fact, merge.evicted) == (Outcome.FULL, None, (key.id,))
    assert held.standing(key.id) is None


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_of_places_is_as_if_begun_anew(seed):
    rng = random_module.Random(seed)
    places, kept = Places(places_max=6), {}
    for _ in range(200):
        key = rng.choice(KEYS)
        rank = Rank(rng.random() < 0.3, rng.randrange(5), key.id)
        sponsors = tuple(sorted(rng.sample([b"one", b"two", b"three"], rng.randrange(3))))
        leaving = places.room_for(rank, sponsors)
        if leaving is not None:
            for node in leaving:
                places.drop(node)
                del kept[node]
            places.put(rank, sponsors)
            kept[key.id] = (rank, sponsors)
        assert len(kept) <= 6
        for sponsor in (b"one", b"two", b"three"):
            assert sum(sponsor in theirs for _, theirs in kept.values()) <= 3
        anew = Places(places_max=6)
        anew.reset(kept.values())
        assert vars(anew) | {"_ranks": None, "_sponsors": None} == vars(places) | {
            "_ranks": None,
            "_sponsors": None,
        }
        assert anew._ranks == places._ranks
