"""Members that have gone on under another id: who is the member, what the former key is worth."""

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.codec import pack
from meshd.errors import BadPacket
from meshd.keys import InviteKey, NodeKey
from meshd.trust.credential import CredentialCache, verify_chain_untrusted
from meshd.trust.fact import FACT_BYTES_MAX, FactKind
from meshd.trust.ledger import Ledger, Outcome
from meshd.trust.lineage import RIVALS_MAX
from meshd.trust.node_succession import (
    KEPT_MAX,
    WORD_BYTES,
    kept_digest,
    node_succession_fact,
    open_node_succession_untrusted,
    sign_former_word,
    sign_node_succession,
)
from meshd.trust.refusal import Refusal, RefusalCode
from meshd.trust.rekeying import is_succession, succeed, succeed_by_root
from meshd.trust.renewal import renew_untrusted
from trust.world import (
    INVITE_KEY,
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
    chain_to,
    followed,
    founding_chain,
    ledger_of,
    node_succession,
    record,
    record_blob,
    revocation,
    revocation_blob,
    successor_blob,
    use,
    use_blob,
)

CHAIN_A = founding_chain(A, "a")
CHAIN_B = chain_to(B, by=A, through=CHAIN_A, name="b", tags=("db",), expires_at=WALL + YEAR)
# B goes on as C, and that as D.
CHAIN_C = chain_to(
    C, by=A, through=CHAIN_A, name="b", tags=("db",), expires_at=WALL + YEAR, succeeds=B.id
)
CHAIN_D = chain_to(
    D, by=A, through=CHAIN_A, name="b", tags=("db",), expires_at=WALL + YEAR, succeeds=C.id
)
RECORD_A, RECORD_B = (
    record(record_blob(key, chain)) for key, chain in ((A, CHAIN_A), (B, CHAIN_B))
)
RECORD_C = record(successor_blob(C, CHAIN_C, B))
RECORD_D = record(successor_blob(D, CHAIN_D, C))
B_TO_C, C_TO_D = followed(B, C), followed(C, D)


def members(ledger):
    return {node for node, standing in ledger.members().items() if standing.admitted}


def opened(chain, key):
    return verify_chain_untrusted(chain, MESH, key.id, CredentialCache())


# The statement


def test_a_succession_says_what_was_signed():
    kept = (b"2" * 8, b"1" * 8, b"1" * 8)
    made = node_succession(A, B, dated=WALL + 5, kept=kept)

    read = open_node_succession_untrusted(made.blob, MESH)

    assert read == made
    assert (read.former, read.node, read.dated) == (A.id, B.id, WALL + 5)
    assert read.kept == (b"1" * 8, b"2" * 8)
    fact = node_succession_fact(read)
    assert (fact.kind, fact.key, fact.version) == (
        FactKind.NODE_SUCCESSION,
        bytes(B.id),
        WALL + 5,
    )


def test_the_bytes_are_pinned():
    assert node_succession(A, B, kept=[b"k" * 8]).blob[64:].hex() == (
        "82"
        "01c45884"
        "01c420af06a3e3291714e4f356c19c9b15cd1951ec6e6662aa77be07547f289383341d"
        "02c4202df04125f0015afb47ce853aef8772094ff9498c14cb1b9e12973c2927da0fa6"
        "03ce6553f100"
        "04c4086b6b6b6b6b6b6b6b"
        "02c4402ef8eaa77219c4c738beb6e0796ffb6ce6162bf55895da8e3b9c4f16b963037f"
        "085b8ced561c0af85140261d72c34980614f73abfe38ba55dad2fb8f21871601"
    )
    assert sign_former_word(A, B.id, MESH, WALL)[:8].hex() == "000000006553f100"
    said = pack({1: bytes(A.id), 2: bytes(B.id), 3: WALL})
    assert sign_former_word(A, B.id, MESH, WALL)[8:] == A.sign(
        b"meshd.node-succession.1\0" + MESH + said
    )


def test_the_longest_succession_fits_into_a_fact():
    kept = [number.to_bytes(8, "big") for number in range(KEPT_MAX)]

    blob = sign_node_succession(A, B, MESH, dated=2**40 - 1, kept=kept).blob

    assert len(blob) <= FACT_BYTES_MAX
    assert len(open_node_succession_untrusted(blob, MESH).kept) == KEPT_MAX


def test_neither_key_alone_makes_a_succession():
    """Its own signature is where the other's should be."""
    made = node_succession(A, B).blob
    for signatures in ((A, A), (B, B)):
        former, node = signatures

        class Posing:
            def __init__(self, id_, key):
                self.id, self.sign = id_, key.sign

        forged = sign_node_succession(Posing(A.id, former), Posing(B.id, node), MESH, dated=WALL)
        assert forged.blob != made
        with pytest.raises(BadPacket, match="bad signature"):
            open_node_succession_untrusted(forged.blob, MESH)


def test_a_succession_to_oneself_or_of_another_mesh_is_none():
    with pytest.raises(BadPacket, match="nowhere"):
        open_node_succession_untrusted(node_succession(A, A).blob, MESH)
    with pytest.raises(BadPacket, match="bad signature"):
        open_node_succession_untrusted(node_succession(A, B).blob, OTHER_MESH_KEY.id)


# Who is the member


def test_a_succession_alone_changes_nothing():
    ledger = ledger_of(RECORD_A, RECORD_B, B_TO_C)

    assert members(ledger) == {A.id, B.id}
    assert ledger.lineage.succession_of(B.id) is None


@pytest.mark.parametrize(
    "word",
    [
        b"",
        bytes(WORD_BYTES),
        sign_former_word(D, C.id, MESH, WALL),
        sign_former_word(C, C.id, MESH, WALL),
        sign_former_word(B, D.id, MESH, WALL),
        sign_former_word(B, C.id, OTHER_MESH_KEY.id, WALL),
        (WALL + 1).to_bytes(8, "big") + sign_former_word(B, C.id, MESH, WALL)[8:],
    ],
)
def test_a_record_without_the_former_keys_word_is_nobodys(word):
    ledger = ledger_of(RECORD_A, RECORD_B, B_TO_C)

    with pytest.raises(BadPacket):
        ledger.merge_untrusted(*record(record_blob(C, CHAIN_C, former_word=word)), WALL)

    assert members(ledger) == {A.id, B.id}


def test_the_record_of_the_new_id_puts_it_in_the_place_of_the_former_one():
    """Even where nothing else is known: to somebody who has been away, say."""
    ledger = ledger_of(RECORD_A, RECORD_B, RECORD_C)

    assert members(ledger) == {A.id, C.id}
    assert ledger.standing(B.id).succeeded_by == C.id
    assert ledger.names() == {A.id: "a", C.id: "b"}
    assert ledger.lineage.predecessor(C.id) == B.id


def test_a_newer_word_of_the_former_id_brings_it_back_no_more_than_an_old_one():
    ledger = ledger_of(RECORD_A, RECORD_B, B_TO_C, RECORD_C)

    ledger.merge_untrusted(*record(record_blob(B, CHAIN_B, sequence=99)), WALL)

    assert members(ledger) == {A.id, C.id}


def test_a_succession_to_a_member_that_was_let_in_otherwise_changes_nothing():
    """Who has found a former key cannot have another member take its place."""
    plain = chain_to(D, by=A, through=CHAIN_A, name="d")
    ledger = ledger_of(RECORD_A, RECORD_B, record(record_blob(D, plain)), followed(B, D, dated=1))

    assert members(ledger) == {A.id, B.id, D.id}


def test_a_line_may_be_long():
    ledger = ledger_of(RECORD_A, RECORD_B, B_TO_C, RECORD_C, C_TO_D, RECORD_D)

    assert members(ledger) == {A.id, D.id}
    assert ledger.lineage.present(B.id) == D.id
    assert ledger.lineage.line(D.id) == (D.id, C.id, B.id)
    assert set(ledger.lineage.ids_of(C.id)) == {B.id, C.id, D.id}


def test_a_line_that_bites_its_own_tail_has_no_member():
    tail = chain_to(B, by=A, through=CHAIN_A, name="b", succeeds=C.id)
    ledger = ledger_of(
        RECORD_A, record(successor_blob(B, tail, C)), B_TO_C, RECORD_C, followed(C, B)
    )

    assert members(ledger) == {A.id}
    assert set(ledger.lineage.ids_of(B.id)) == {B.id, C.id}


def test_who_has_been_forgotten_comes_back_with_its_record_and_not_its_former_id():
    ledger = ledger_of(RECORD_A, RECORD_B, B_TO_C, RECORD_C)

    for node in ledger.lineage.line(C.id):
        ledger.forget(node)
    assert members(ledger) == {A.id}
    for fact in (RECORD_C, RECORD_B):
        ledger.merge_untrusted(*fact, WALL)
    assert members(ledger) == {A.id, C.id}


# Rivals

CHAIN_E = chain_to(E, by=A, through=CHAIN_A, name="b", succeeds=B.id)
RIVALS = [
    RECORD_A,
    RECORD_B,
    record(successor_blob(C, CHAIN_C, B, dated=WALL + 1)),
    record(successor_blob(E, CHAIN_E, B)),
    followed(B, C, dated=WALL + 1),
    followed(B, E, dated=WALL),
]


def test_of_two_rivals_the_first_dated_is_the_member_whatever_the_order():
    for order in permutations(RIVALS):
        ledger = ledger_of(*order)
        assert members(ledger) == {A.id, E.id}
        assert ledger.standing(C.id).succeeded_by == E.id


def test_a_rival_without_a_credential_takes_nothing_from_anybody():
    ledger = ledger_of(RECORD_A, RECORD_B, B_TO_C, RECORD_C, followed(B, F, dated=0))

    assert members(ledger) == {A.id, C.id}


def test_rivals_fill_no_table():
    ledger = ledger_of(RECORD_A, RECORD_B)
    outcomes = [
        ledger.merge_untrusted(*followed(B, NodeKey(bytes([n + 1]) * 32)), WALL).outcome
        for n in range(RIVALS_MAX + 2)
    ]

    assert outcomes == [Outcome.NEW] * RIVALS_MAX + [Outcome.FULL] * 2


# Revocations


@pytest.mark.parametrize("subject", [B, C])
@pytest.mark.parametrize("cascade", [False, True])
def test_a_revocation_of_any_id_of_a_line_puts_all_of_it_out(subject, cascade):
    facts = [RECORD_A, RECORD_B, B_TO_C, RECORD_C]
    put_out = revocation(revocation_blob(subject, cascade=cascade))
    for at in range(len(facts) + 1):
        ledger = ledger_of(*facts[:at], put_out, *facts[at:])
        assert members(ledger) == {A.id}
        assert ledger.revocation(C.id) is not None


def test_a_succession_of_a_revoked_id_brings_nobody_back():
    ledger = ledger_of(RECORD_A, RECORD_B, revocation(revocation_blob(B)))

    for fact in (B_TO_C, RECORD_C):
        ledger.merge_untrusted(*fact, WALL)

    assert members(ledger) == {A.id}


def test_a_cascade_takes_whom_either_id_has_let_in():
    chain_b = chain_to(B, by=A, through=CHAIN_A, name="b", admit=True)
    chain_c = chain_to(C, by=A, through=CHAIN_A, name="b", admit=True, succeeds=B.id)
    by_b = chain_to(D, by=B, through=chain_b, name="d")
    by_c = chain_to(E, by=C, through=chain_c, name="e")
    ledger = ledger_of(
        RECORD_A,
        record(successor_blob(C, chain_c, B)),
        *(record(record_blob(key, chain)) for key, chain in ((B, chain_b), (D, by_b), (E, by_c))),
        followed(B, C, kept=[kept_digest(by_b[-1])]),
    )
    assert members(ledger) == {A.id, C.id, D.id, E.id}

    for subject in (B, C):
        fallen = ledger_of(
            *((fact.kind, fact.blob) for fact in ledger.facts()),
            revocation(revocation_blob(subject, cascade=True)),
        )
        assert members(fallen) == {A.id}


# What the former key has signed

ADMITTER_B = chain_to(B, by=A, through=CHAIN_A, name="b", admit=True)
ADMITTER_C = chain_to(C, by=A, through=CHAIN_A, name="b", admit=True, succeeds=B.id)
LET_IN = chain_to(D, by=B, through=ADMITTER_B, name="d")
LATER = chain_to(E, by=B, through=ADMITTER_B, name="e")  # dated back, as a thief would
INVITED = chain_to(D, by=B, through=ADMITTER_B, name="d", invite=INVITE_KEY.id)


def admitter(*facts, kept):
    return ledger_of(
        RECORD_A,
        record(record_blob(B, ADMITTER_B)),
        record(successor_blob(C, ADMITTER_C, B)),
        followed(B, C, kept=kept),
        *facts,
    )


def test_whom_the_former_id_has_let_in_stays_and_nobody_comes_by_it_any_more():
    ledger = admitter(
        record(record_blob(D, LET_IN)),
        record(record_blob(E, LATER)),
        kept=[kept_digest(LET_IN[-1])],
    )

    assert members(ledger) == {A.id, C.id, D.id}
    assert ledger.standing(E.id).unfounded


def test_a_revocation_by_the_former_key_counts_only_if_it_is_listed():
    plain = record(record_blob(F, chain_to(F, by=A, through=CHAIN_A, name="f")))
    blob = revocation_blob(F, by=B, chain=ADMITTER_B)

    listed = admitter(plain, revocation(blob), kept=[kept_digest(blob)])
    unlisted = admitter(plain, revocation(blob), kept=[])

    assert members(listed) == {A.id, C.id}
    assert members(unlisted) == {A.id, C.id, F.id}


def test_a_use_by_the_former_key_takes_an_invite_from_nobody():
    member = record(record_blob(D, INVITED))
    kept = [kept_digest(INVITED[-1])]
    own = use(use_blob(D, by=B, chain=ADMITTER_B))
    forged = use(use_blob(E, by=B, chain=ADMITTER_B, used_at=WALL - 5))

    for order in permutations([member, own, forged]):
        ledger = admitter(*order, kept=kept)
        assert members(ledger) == {A.id, C.id, D.id}
        assert ledger.invite(INVITE_KEY.id).spent


def test_a_withdrawal_by_the_former_key_counts_only_if_it_is_listed():
    blob = use_blob(None, by=B, chain=ADMITTER_B, invite=InviteKey(b"j" * 32))
    invite = InviteKey(b"j" * 32).id

    assert admitter(use(blob), kept=[kept_digest(blob)]).invite(invite).withdrawn_at == WALL
    assert admitter(use(blob), kept=[]).invite(invite).withdrawn_at is None


def test_a_ledger_lists_all_that_an_id_has_signed():
    revoked = revocation_blob(F, by=B, chain=ADMITTER_B)
    withdrawn = use_blob(None, by=B, chain=ADMITTER_B)
    by_d = revocation_blob(
        E, by=D, chain=chain_to(D, by=B, through=ADMITTER_B, name="d", admit=True)
    )
    ledger = ledger_of(
        RECORD_A,
        record(record_blob(B, ADMITTER_B)),
        record(record_blob(D, LET_IN)),
        revocation(revoked),
        revocation(by_d),
        use(withdrawn),
    )

    assert ledger.signed_by(B.id) == {
        kept_digest(LET_IN[-1]),
        kept_digest(revoked),
        kept_digest(chain_to(D, by=B, through=ADMITTER_B, name="d", admit=True)[-1]),
        kept_digest(withdrawn),
    }


def test_a_member_that_has_lost_its_invite_is_not_saved_by_another_id():
    chain_b = chain_to(B, by=A, through=CHAIN_A, name="b", invite=INVITE_KEY.id)
    uses = [
        use(use_blob(key, by=A, chain=CHAIN_A, used_at=WALL + at)) for at, key in enumerate((F, B))
    ]
    ledger = ledger_of(RECORD_A, record(record_blob(B, chain_b)), B_TO_C, RECORD_C, *uses)

    assert members(ledger) == {A.id}
    assert ledger.standing(C.id).losing_invite


# The order of arrival

FACTS = [
    RECORD_A,
    *RIVALS,
    RECORD_D,
    C_TO_D,
    followed(C, D, dated=WALL + 9),
    record(record_blob(B, ADMITTER_B, sequence=2)),
    record(record_blob(F, chain_to(F, by=B, through=ADMITTER_B, name="f"))),
    revocation(revocation_blob(F, by=B, chain=ADMITTER_B)),
    revocation(revocation_blob(D, by=A, chain=CHAIN_A, cascade=True)),
    revocation(revocation_blob(B)),
    use(use_blob(F, by=B, chain=ADMITTER_B)),
]


def state(ledger):
    return (
        [fact.digest for fact in ledger.facts()],
        {node: standing for node, standing in ledger.members().items()},  # noqa: C416 - a copy
        dict(ledger.names()),
        ledger.invite(INVITE_KEY.id),
        [ledger.lineage.line(key.id) for key in (A, B, C, D, E, F)],
    )


@given(st.permutations(FACTS), st.permutations(FACTS), st.integers(0, len(FACTS)))
def test_ledgers_that_were_given_the_same_facts_are_equal(one, other, count):
    held = set(one[:count])
    asked, unasked = Ledger(MESH), Ledger(MESH)
    for fact in one[:count]:
        asked.merge_untrusted(*fact, WALL)
        state(asked)
    for fact in (fact for fact in other if fact in held):
        unasked.merge_untrusted(*fact, WALL)

    assert state(asked) == state(unasked)


# The credential


@pytest.mark.parametrize("by", [A, C])
def test_the_new_credential_gives_what_the_former_one_gave(by):
    chain_by = (
        CHAIN_A
        if by is A
        else chain_to(C, by=A, through=CHAIN_A, name="c", admit=True, tags=("db",))
    )
    ledger = ledger_of(RECORD_A, RECORD_B, record(record_blob(by, chain_by, sequence=2)))
    succession = node_succession(B, D)

    chain = succeed(ledger, succession, key=by, chain=chain_by, wall=WALL + 50)

    former, new = opened(CHAIN_B, B)[-1], opened(chain, D)[-1]
    assert is_succession(opened(chain, D), opened(CHAIN_B, B), succession)
    assert new == replace(
        former,
        issuer=by.id,
        subject=D.id,
        succeeds=B.id,
        issued_at=WALL + 50,
        lifetime=former.renewed_lifetime,
    )
    followed_by = ledger_of(
        *((fact.kind, fact.blob) for fact in ledger.facts()),
        (FactKind.NODE_SUCCESSION, succession.blob),
        record(successor_blob(D, chain, B)),
    )
    assert D.id in members(followed_by)


def test_a_member_may_sign_its_own():
    ledger = ledger_of(RECORD_A)
    chain = succeed(ledger, node_succession(A, B), key=A, chain=CHAIN_A, wall=WALL)
    succession = node_succession(A, B, kept=[kept_digest(chain[-1])])

    for fact in (record(successor_blob(B, chain, A)), (FactKind.NODE_SUCCESSION, succession.blob)):
        ledger.merge_untrusted(*fact, WALL)

    assert members(ledger) == {B.id}
    assert ledger.may_admit(B.id, WALL)


def test_the_mesh_key_signs_without_anybody():
    chain = succeed_by_root(opened(CHAIN_A, A), node_succession(A, B), MESH_KEY, MESH, WALL + 5)

    assert is_succession(opened(chain, B), opened(CHAIN_A, A), node_succession(A, B))
    assert len(chain) == 1


def test_a_chain_that_gives_more_or_less_is_no_succession():
    right = opened(CHAIN_C, C)
    former, succession = opened(CHAIN_B, B), node_succession(B, C)
    right = (*right[:-1], replace(right[-1], lifetime=former[-1].renewed_lifetime))
    assert is_succession(right, former, succession)
    for change in (
        {"name": "c"},
        {"tags": ()},
        {"admit": True},
        {"expires_at": WALL + YEAR + 1},
        {"admitted_at": WALL - 1},
        {"succeeds": A.id},
        {"subject": D.id},
    ):
        assert not is_succession((*right[:-1], replace(right[-1], **change)), former, succession)


def test_who_is_out_or_succeeded_gets_none_and_gives_none():
    revoked = ledger_of(RECORD_A, RECORD_B, revocation(revocation_blob(B)))
    gone = ledger_of(RECORD_A, RECORD_B, B_TO_C, RECORD_C)
    for ledger in (revoked, gone):
        refusal = succeed(ledger, node_succession(B, D), key=A, chain=CHAIN_A, wall=WALL)
        assert isinstance(refusal, Refusal)
        assert refusal.code is RefusalCode.REVOKED
    former = admitter(kept=[])
    refusal = succeed(former, node_succession(F, D), key=B, chain=ADMITTER_B, wall=WALL)
    assert refusal.code is RefusalCode.NOT_ALLOWED


def test_no_credential_outlasts_its_issuers():
    chain_c = chain_to(
        C, by=A, through=CHAIN_A, name="c", tags=("db",), admit=True, expires_at=WALL + YEAR - 1
    )
    ledger = ledger_of(RECORD_A, RECORD_B, record(record_blob(C, chain_c)))

    refusal = succeed(ledger, node_succession(B, D), key=C, chain=chain_c, wall=WALL)

    assert refusal.code is RefusalCode.NO_GAIN


def test_a_renewal_carries_over_whom_a_member_succeeds():
    ledger = ledger_of(RECORD_A, RECORD_B, B_TO_C, RECORD_C)

    chain = renew_untrusted(ledger, C.id, key=A, chain=CHAIN_A, wall=WALL + YEAR - 5)

    assert opened(chain, C)[-1].succeeds == B.id
