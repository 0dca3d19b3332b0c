"""Roots follow one another: what is adopted, what is refused, and what becomes of older facts."""

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import BadPacket
from meshd.keys import BootstrapKey, MeshKey, WireGuardKey
from meshd.trust.epoch import NUMBER_BY_MEMBERS_MAX, bootstrap_fingerprint
from meshd.trust.fact import FactKind
from meshd.trust.ledger import Ledger, Outcome
from meshd.trust.roots import Roots, Verdict
from meshd.trust.signed import sign
from meshd.trust.succession import (
    ROOTS_MAX,
    Statement,
    open_succession_untrusted,
    succession_fact,
)
from trust.world import (
    HOUR,
    INVITE_KEY,
    MESH,
    MESH_KEY,
    OTHER_MESH_KEY,
    ROOT_KEY,
    WALL,
    A,
    B,
    C,
    D,
    E,
    chain_to,
    epoch,
    epoch_blob,
    founding_chain,
    grant,
    grant_blob,
    record,
    record_blob,
    revocation,
    revocation_blob,
    roots_after,
    succession,
    succession_blob,
    use,
    use_blob,
)

NEXT_KEY = MeshKey(b"N" * 32)
SEAL = succession_blob(grants=2)
ROTATION = succession_blob(overlap_until=WALL + HOUR, grants=2)
NEW_KEY = BootstrapKey(b"n" * 32)

OLD_A, OLD_B, OLD_C = (founding_chain(key, name) for key, name in ((A, "a"), (B, "b"), (C, "c")))


def new_chain(key, name):
    return (grant_blob(key, founding_chain(key, name)),)


def ledger_with(*facts, roots=None):
    ledger = Ledger(MESH, roots=roots)
    for kind, blob in facts:
        ledger.merge_untrusted(kind, blob, WALL)
    return ledger


def admitted(ledger):
    return [node for node in ledger.members() if ledger.admitted(node)]


# Statements


def test_a_succession_bears_the_signature_of_both_keys():
    opened = open_succession_untrusted(SEAL, MESH)
    assert (opened.predecessor, opened.successor) == (MESH, ROOT_KEY.id)
    assert opened.seal
    assert opened.grants == 2
    body = SEAL[64:]

    with pytest.raises(BadPacket, match="bad signature"):
        open_succession_untrusted(sign(Statement.SUCCESSION, MESH, OTHER_MESH_KEY, body), MESH)
    half = bytearray(body)
    half[-1] ^= 1  # of the successor's signature
    with pytest.raises(BadPacket, match="bad signature"):
        open_succession_untrusted(sign(Statement.SUCCESSION, MESH, MESH_KEY, bytes(half)), MESH)


def test_a_successors_half_is_no_succession_of_its_own():
    said, half = SEAL[64 + 3 : -68], SEAL[-64:]

    with pytest.raises(BadPacket):
        open_succession_untrusted(half + said, MESH)


@pytest.mark.parametrize(("before", "number"), [(MESH_KEY, 2), (ROOT_KEY, 1), (MESH_KEY, 0)])
def test_a_succession_that_is_misnumbered_is_refused(before, number):
    with pytest.raises(BadPacket):
        open_succession_untrusted(succession_blob(before, NEXT_KEY, number=number), MESH)


def test_a_line_of_roots_survives_the_disk():
    second = succession_blob(ROOT_KEY, NEXT_KEY, number=2, overlap_until=WALL)
    for roots in (
        Roots.first(MESH),
        roots_after(SEAL, settled=False),
        roots_after(SEAL, second),
        Roots(MESH, NEXT_KEY.id, 2),
    ):
        assert Roots.decode_untrusted(roots.encode(), MESH) == roots


@pytest.mark.parametrize(
    "roots",
    [
        Roots(MESH, NEXT_KEY.id, 0),
        Roots(MESH, MESH, 1),
        Roots(MESH, NEXT_KEY.id, 1, roots_after(SEAL).line),
        Roots(MESH, ROOT_KEY.id, 2, roots_after(SEAL).line),
    ],
)
def test_a_line_that_does_not_hang_together_is_refused(roots):
    with pytest.raises(BadPacket):
        Roots.decode_untrusted(roots.encode(), MESH)


# What is adopted


def test_what_follows_the_newest_root_is_adopted_and_a_rival_never():
    ledger = ledger_with(succession(SEAL))
    assert ledger.roots.newest == ROOT_KEY.id
    rival = succession_blob(MESH_KEY, NEXT_KEY)

    merge = ledger.merge_untrusted(FactKind.SUCCESSION, rival, WALL)

    assert merge.outcome is Outcome.RIVAL
    assert not merge.changed
    assert ledger.roots.newest == ROOT_KEY.id
    assert ledger.rivals == 1
    assert ledger.rival.successor == NEXT_KEY.id
    assert ledger.get(FactKind.SUCCESSION, merge.fact.key).blob == SEAL


def test_who_knows_the_old_secret_cannot_seal_a_sealed_mesh_again_whatever_the_date():
    ledger = ledger_with(succession(SEAL))
    ledger.follow(ledger.roots.settle())
    for number in (1, 2):
        for overlap_until in (0, 1, WALL + HOUR):
            fields = {"number": number, "overlap_until": overlap_until}
            with contextlib.suppress(BadPacket):
                blob = succession_blob(MESH_KEY, NEXT_KEY, **fields)
                ledger.merge_untrusted(FactKind.SUCCESSION, blob, WALL)

    assert ledger.roots == roots_after(SEAL)
    assert not ledger.take_waiting()


def test_a_succession_that_is_ahead_waits_for_the_one_before():
    second = succession_blob(ROOT_KEY, NEXT_KEY, number=2)
    ledger = ledger_with(succession(second))
    assert ledger.roots == Roots.first(MESH)

    ledger.merge_untrusted(FactKind.SUCCESSION, SEAL, WALL)
    for kind, blob in ledger.take_waiting():
        ledger.merge_untrusted(kind, blob, WALL)

    assert ledger.roots.newest == NEXT_KEY.id


def test_who_began_with_a_token_learns_what_came_before_and_nothing_else():
    second = succession_blob(ROOT_KEY, NEXT_KEY, number=2)
    ledger = Ledger(MESH, roots=Roots(MESH, NEXT_KEY.id, 2))
    forged = succession_blob(OTHER_MESH_KEY, ROOT_KEY, number=2)
    assert not ledger.merge_untrusted(FactKind.SUCCESSION, SEAL, WALL).changed
    assert not ledger.merge_untrusted(FactKind.SUCCESSION, forged, WALL).changed

    assert ledger.merge_untrusted(FactKind.SUCCESSION, second, WALL).changed
    assert ledger.merge_untrusted(FactKind.SUCCESSION, SEAL, WALL).changed

    assert ledger.roots.keys == (NEXT_KEY.id, ROOT_KEY.id, MESH)
    assert ledger.roots.settled
    assert Roots.decode_untrusted(ledger.roots.encode(), MESH) == ledger.roots


def test_the_line_has_a_bound():
    keys = [MESH_KEY, *(MeshKey(bytes([number]) * 32) for number in range(1, ROOTS_MAX))]
    roots = Roots.first(MESH)
    for number in range(1, ROOTS_MAX):
        blob = succession_blob(keys[number - 1], keys[number], number=number)
        roots = roots.grown(open_succession_untrusted(blob, MESH)).settle()
    assert roots.full

    with pytest.raises(BadPacket):
        open_succession_untrusted(succession_blob(keys[-1], NEXT_KEY, number=ROOTS_MAX), MESH)


# What becomes of older facts


def test_until_it_has_settled_a_node_trusts_both_roots():
    ledger = ledger_with(
        record(record_blob(A, OLD_A)), record(record_blob(B, OLD_B)), succession(SEAL)
    )
    ledger.merge_untrusted(FactKind.RECORD, record_blob(C, new_chain(C, "c")), WALL)

    assert admitted(ledger) == sorted([A.id, B.id, C.id])


def test_with_the_old_root_go_all_that_have_no_grant():
    facts = [record(record_blob(key, chain)) for key, chain in ((A, OLD_A), (B, OLD_B))]
    ledger = ledger_with(*facts, succession(SEAL), grant(grant_blob(A, OLD_A)))

    ledger.follow(ledger.roots.settle())

    assert admitted(ledger) == [A.id]
    assert ledger.standing(B.id).ended
    assert ledger.standing(A.id).chain[0].issuer == ROOT_KEY.id
    assert len(ledger.members()) == 2, "nothing is lost"
    ledger.merge_untrusted(FactKind.GRANT, grant_blob(B, OLD_B), WALL)
    assert admitted(ledger) == sorted([A.id, B.id])


def test_the_holder_of_the_secret_admits_nobody_to_a_sealed_mesh():
    ledger = ledger_with(roots=roots_after(SEAL))
    blob = record_blob(E, founding_chain(E, "e"))

    assert ledger.has_ended_untrusted(blob)
    ledger.merge_untrusted(FactKind.RECORD, blob, WALL)

    assert not ledger.admitted(E.id)
    assert not ledger.may_admit(E.id, WALL)
    assert E.id not in ledger.names()
    with pytest.raises(BadPacket, match="first root"):
        ledger.merge_untrusted(FactKind.GRANT, grant_blob(E, founding_chain(E), by=MESH_KEY), WALL)


def test_a_grant_gives_what_was_there_before_and_no_more():
    chain = chain_to(
        C,
        by=A,
        through=OLD_A,
        name="c",
        tags=("db",),
        admitted_at=WALL + 9,
        issued_at=WALL + 60,
        expires_at=WALL + 60 + HOUR,
    )
    blob = record_blob(C, chain)
    before = ledger_with(record(blob)).standing(C.id).credential
    ledger = ledger_with(record(blob), grant(grant_blob(C, chain)), roots=roots_after(SEAL))

    after = ledger.standing(C.id).credential

    for field in ("subject", "name", "tags", "ipv4", "routes", "admit", "relay", "admitted_at"):
        assert getattr(after, field) == getattr(before, field)
    assert after.expires_at == before.expires_at
    assert after.renewed_lifetime == before.renewed_lifetime


def test_a_record_says_no_more_than_its_grant_allows():
    narrow = chain_to(B, by=A, through=OLD_A, name="b")
    ledger = ledger_with(
        record(record_blob(B, OLD_B, relay=True)),
        grant(grant_blob(B, narrow)),
        roots=roots_after(SEAL),
    )

    standing = ledger.standing(B.id)

    assert standing.admitted
    assert not standing.relays(WALL)
    assert not standing.may_admit(WALL)


def test_a_grant_of_a_newer_root_counts_before_a_later_one_of_an_older():
    second = succession_blob(ROOT_KEY, NEXT_KEY, number=2)
    late = grant(grant_blob(A, OLD_A, wall=WALL + HOUR))
    newer = grant(grant_blob(A, OLD_A, by=NEXT_KEY))
    for facts in ([late, newer], [newer, late]):
        ledger = ledger_with(*facts, roots=roots_after(SEAL, second))
        assert ledger.grant(A.id).credential.issuer == NEXT_KEY.id


@pytest.mark.parametrize(("blob", "stands"), [(SEAL, False), (ROTATION, True)])
def test_what_was_said_under_a_sealed_root_counts_for_nothing_and_under_a_rotated_one_stands(
    blob, stands
):
    facts = [
        record(record_blob(B, OLD_B)),
        grant(grant_blob(B, OLD_B)),
        revocation(revocation_blob(C)),
        revocation(revocation_blob(D, by=A, chain=OLD_A)),
        use(use_blob(E, by=A, chain=OLD_A)),
    ]
    ledger = ledger_with(*facts, roots=roots_after(blob))

    assert (ledger.revocation(C.id) is not None) is stands
    assert (ledger.revocation(D.id) is not None) is stands
    assert bool(ledger.invite(INVITE_KEY.id).winners) is stands


def test_a_revocation_by_any_root_that_was_not_sealed_stands():
    second = succession_blob(ROOT_KEY, NEXT_KEY, number=2, overlap_until=WALL + HOUR)
    ledger = ledger_with(
        revocation(revocation_blob(B, by=ROOT_KEY)),
        revocation(revocation_blob(C, by=NEXT_KEY)),
        revocation(revocation_blob(D)),
        roots=roots_after(SEAL, second),
    )

    assert ledger.revocation(B.id) is not None
    assert ledger.revocation(C.id) is not None
    assert ledger.revocation(D.id) is None


def test_nobody_with_the_old_secret_begins_an_epoch_of_the_bootstrap_key():
    forged = epoch_blob(BootstrapKey(b"x" * 32), by=A, chain=OLD_A, number=NUMBER_BY_MEMBERS_MAX)
    genuine = epoch_blob(NEW_KEY)
    for blobs in ([forged, genuine], [genuine, forged]):
        ledger = ledger_with(*map(epoch, blobs), roots=roots_after(SEAL))
        assert ledger.epoch.number == 1


def test_only_a_member_with_admit_begins_an_epoch():
    plain = chain_to(B, by=A, through=OLD_A, name="b")

    with pytest.raises(BadPacket, match="may not admit"):
        Ledger(MESH).merge_untrusted(
            FactKind.BOOTSTRAP_EPOCH, epoch_blob(NEW_KEY, by=B, chain=plain), WALL
        )


def test_a_member_that_takes_the_greatest_number_leaves_others_for_the_mesh_key():
    """Its epoch has no key to it; one more of its own would be none, and the root's replaces it."""
    forged = epoch_blob(BootstrapKey(b"x" * 32), by=A, chain=OLD_A, number=NUMBER_BY_MEMBERS_MAX)
    beyond = epoch_blob(NEW_KEY, by=A, chain=OLD_A, number=NUMBER_BY_MEMBERS_MAX + 1)
    genuine = epoch_blob(NEW_KEY, by=MESH_KEY, number=NUMBER_BY_MEMBERS_MAX + 1)
    ledger = Ledger(MESH)

    ledger.merge_untrusted(FactKind.BOOTSTRAP_EPOCH, forged, WALL)
    with pytest.raises(BadPacket, match="number for roots"):
        ledger.merge_untrusted(FactKind.BOOTSTRAP_EPOCH, beyond, WALL)
    ledger.merge_untrusted(FactKind.BOOTSTRAP_EPOCH, genuine, WALL)

    assert ledger.epoch.fingerprint == bootstrap_fingerprint(NEW_KEY, MESH)


# Any order


ALL = [
    record(record_blob(A, OLD_A)),
    record(record_blob(B, OLD_B)),
    record(record_blob(C, OLD_C)),
    record(record_blob(A, new_chain(A, "a"), sequence=2, wireguard_key=WireGuardKey(b"2" * 32))),
    succession(SEAL),
    succession(succession_blob(ROOT_KEY, NEXT_KEY, number=2, overlap_until=WALL + HOUR)),
    grant(grant_blob(A, OLD_A)),
    grant(grant_blob(B, OLD_B)),
    grant(grant_blob(B, OLD_B, by=NEXT_KEY)),
    revocation(revocation_blob(B, by=NEXT_KEY)),
    revocation(revocation_blob(A)),
    revocation(revocation_blob(C, by=A, chain=new_chain(A, "a"))),
    epoch(epoch_blob(NEW_KEY)),
    epoch(epoch_blob(NEW_KEY, by=A, chain=OLD_A, number=9)),
]


def given_in(order):
    """Merge as a node does: what waited for a root is merged again when one is new."""
    ledger = Ledger(MESH)
    for kind, blob in order:
        try:
            changed = ledger.merge_untrusted(kind, blob, WALL).changed
        except BadPacket:
            continue
        while changed and kind is FactKind.SUCCESSION:
            before = ledger.roots
            for other, waiting in ledger.take_waiting():
                with contextlib.suppress(BadPacket):
                    ledger.merge_untrusted(other, waiting, WALL)
            changed = ledger.roots != before
    ledger.follow(ledger.roots.settle())
    return ledger


@given(st.permutations(ALL))
def test_any_order_of_the_same_facts_gives_the_same_members(order):
    expected, ledger = given_in(ALL), given_in(order)

    assert list(ledger.facts()) == list(expected.facts())
    assert dict(ledger.members()) == dict(expected.members())
    assert admitted(ledger) == admitted(expected)
    assert ledger.roots == expected.roots
    assert ledger.epoch == expected.epoch


@given(st.integers(0, 2**16))
def test_given_the_line_of_roots_the_order_of_all_else_is_free(seed):
    line = given_in(ALL).roots
    order = ALL[:]
    random.Random(seed).shuffle(order)

    assert list(ledger_with(*order, roots=line).facts()) == list(given_in(ALL).facts())


def test_what_waits_for_a_root_is_bounded():
    ledger = Ledger(MESH)
    blobs = [record_blob(A, new_chain(A, "a"), sequence=number) for number in range(1, 600)]
    for blob in blobs:
        with pytest.raises(BadPacket, match="bad signature"):
            ledger.merge_untrusted(FactKind.RECORD, blob, WALL)

    waiting = ledger.take_waiting()

    assert len(waiting) == 512
    assert waiting[-1] == (FactKind.RECORD, blobs[-1])


def test_a_verdict_for_each_way_a_succession_can_lie():
    roots = roots_after(SEAL)
    second = open_succession_untrusted(succession_blob(ROOT_KEY, NEXT_KEY, number=2), MESH)
    stranger = open_succession_untrusted(succession_blob(OTHER_MESH_KEY, NEXT_KEY, number=2), MESH)
    rival = open_succession_untrusted(succession_blob(MESH_KEY, NEXT_KEY), MESH)

    assert roots.judge(open_succession_untrusted(SEAL, MESH)) is Verdict.HELD
    assert roots.judge(second) is Verdict.FOLLOWS
    assert roots.judge(stranger) is Verdict.UNCONNECTED
    assert roots.judge(rival) is Verdict.RIVAL
    assert succession_fact(rival, MESH).key == succession_fact(roots.line[0], MESH).key
