"""A member that signs in another's name, with the only key it has: nothing comes of it."""

import pytest

from adversary.mallory import Village
from meshd.bootstrap.messages import REFERENCE_BYTES, AdmissionVerdict, encode_admission_verdict
from meshd.codec import pack
from meshd.engine.handover import Handover
from meshd.gossip.claim import INCARNATION_MAX, MemberState
from meshd.keys import MeshKey, NodeId
from meshd.trust.epoch import BootstrapEpoch, sign_epoch
from meshd.trust.fact import FactKind
from meshd.trust.invite_use import InviteUse
from meshd.trust.revocation import Revocation
from meshd.trust.signed import Statement
from meshd.trust.succession import Succession, sign_succession

ALIVE, SUSPECT, DEAD, LEFT = MemberState


@pytest.fixture(scope="module")
def village():
    """Attempts that fail leave nothing, so they may share one mesh."""
    return Village(seed=1)


@pytest.fixture
def mallory(village):
    return village.mallory


def resigned(mallory, blob, statement):
    """Return a statement with Mallory's signature in the place of its signer's."""
    body = blob[64:]
    return mallory.key.sign(b"meshd." + statement.encode() + b".1\0" + mallory.mesh + body) + body


# Records, credentials


def test_a_record_in_anothers_name_changes_nothing(village, mallory):
    held = mallory.record_of(village.admitter)
    with village.suffer(counted="bad signature", at=village.honest):
        for target in village.honest:
            mallory.tell(target, resigned(mallory, held, Statement.RECORD))


def test_a_record_in_anothers_name_handed_over_changes_nothing(village, mallory):
    held = resigned(mallory, mallory.record_of(village.admitter), Statement.RECORD)
    with village.suffer(counted="bad signature"):
        mallory.hand_over(village.victim, Handover.OWN_RECORD, held)


def test_a_record_with_anothers_chain_is_nobodys(village, mallory):
    chain = village.admitter.engine.identity.chain
    with village.suffer(counted="credential of another subject"):
        mallory.tell(village.victim, mallory.record(chain=chain))


def test_a_credential_that_the_mesh_key_has_not_signed_admits_nobody(village, mallory):
    key = mallory.key_of_its_own("friend")
    forged = mallory.credential(key.id, admit=True, relay=True)
    with village.suffer(counted="bad signature"):
        mallory.tell(village.victim, mallory.record(key=key, chain=(forged,)))


def test_another_mesh_key_admits_nobody(village, mallory):
    other = MeshKey(village.world.secret("another mesh"))
    key = mallory.key_of_its_own("friend")
    forged = mallory.credential(key.id, by=other, admit=True)
    with village.suffer(counted="bad signature"):
        mallory.tell(village.victim, mallory.record(key=key, chain=(forged,)))


# Revocations, uses of invites


def test_a_revocation_in_the_name_of_the_mesh_key_puts_nobody_out(village, mallory):
    body = {1: bytes(village.victim.node), 4: mallory.wall}
    forged = mallory.sign(Statement.REVOCATION, body)
    with village.suffer(counted="bad signature", at=village.honest):
        for target in village.honest:
            mallory.tell(target, forged, kind=FactKind.REVOCATION)


def test_an_unsigned_revocation_puts_nobody_out(village, mallory):
    body = pack({1: bytes(village.victim.node), 4: mallory.wall})
    with village.suffer(counted="bad signature"):
        mallory.tell(village.victim, bytes(64) + body, kind=FactKind.REVOCATION)


def test_a_revocation_with_an_admitters_chain_puts_nobody_out(village, mallory):
    body = {
        1: bytes(village.founder.node),
        2: bytes(village.admitter.node),
        4: mallory.wall,
        5: village.admitter.engine.identity.chain,
    }
    forged = mallory.sign(Statement.REVOCATION, body)
    with village.suffer(counted="bad signature", at=village.honest):
        for target in village.honest:
            mallory.tell(target, forged, kind=FactKind.REVOCATION)


def test_a_forged_notice_tells_nobody_that_it_is_out(village, mallory):
    forged = mallory.sign(Statement.REVOCATION, {1: bytes(village.victim.node), 4: mallory.wall})
    with village.suffer(counted="bad signature"):
        mallory.hand_over(village.victim, Handover.REVOKED, forged)
    assert not village.victim.of("revoked")


def test_a_use_of_an_invite_in_an_admitters_name_spends_nothing(village, mallory):
    token = village.founder.invite(key="spare")
    use = InviteUse(token.invite_key.id, mallory.node, mallory.wall, village.admitter.node)
    body = {
        1: bytes(use.invite),
        2: bytes(mallory.node),
        3: use.used_at,
        5: bytes(use.signer),
        6: village.admitter.engine.identity.chain,
    }
    with village.suffer(counted="bad signature", at=village.honest):
        for target in village.honest:
            mallory.tell(target, mallory.sign(Statement.INVITE_USE, body), kind=FactKind.INVITE_USE)
    assert not village.founder.engine.ledger.invite(use.invite).winners


# Roots, grants, epochs


def test_a_succession_of_the_mesh_key_is_not_followed(village, mallory):
    """Mallory has the key of the successor, and not that of the predecessor."""
    own, fake = (MeshKey(village.world.secret(text)) for text in ("successor", "predecessor"))
    step = Succession(1, fake.id, own.id, mallory.wall)
    blob = sign_succession(step, fake, own, mallory.mesh)
    misplaced = blob.replace(bytes(fake.id), bytes(mallory.mesh))
    with village.suffer(counted=("bad signature", "succession is misnumbered")):
        mallory.tell(village.victim, misplaced, blob, kind=FactKind.SUCCESSION)


def test_a_grant_by_a_root_of_its_own_gives_nothing(village, mallory):
    root = MeshKey(village.world.secret("own root"))
    forged = mallory.credential(mallory.node, by=root, admit=True, relay=True)
    with village.suffer(counted="bad signature"):
        mallory.tell(village.victim, forged, kind=FactKind.GRANT)


def test_its_own_credential_is_no_grant(village, mallory):
    with village.suffer(counted="grant of the first root"):
        mallory.tell(village.victim, village.founder.engine.identity.chain[0], kind=FactKind.GRANT)


@pytest.mark.parametrize("chain", ["its own", "an admitter's", "none"])
def test_an_epoch_of_the_bootstrap_key_is_not_begun_without_admit(village, mallory, chain):
    chains = {
        "its own": mallory.chain,
        "an admitter's": village.admitter.engine.identity.chain,
        "none": (),
    }
    epoch = BootstrapEpoch(9, bytes(32), mallory.node, mallory.wall, chains[chain])
    key = mallory.key if epoch.chain else MeshKey(village.world.secret("own root"))
    reason = {
        "its own": "signer may not admit",
        "an admitter's": "credential of another subject",
        "none": "bad signature",
    }
    with village.suffer(counted=reason[chain], at=village.honest):
        for target in village.honest:
            blob = sign_epoch(epoch, key, mallory.mesh)
            mallory.tell(target, blob, kind=FactKind.BOOTSTRAP_EPOCH)


def test_a_bootstrap_key_that_nobody_asked_for_is_not_taken(village, mallory):
    """No epoch names another key, so what is handed over has nothing to fit."""
    with village.suffer(counted="bootstrap key that nobody asked for", at=village.honest):
        for target in village.honest:
            mallory.hand_over(target, Handover.BOOTSTRAP_KEY, pack({1: b"k" * 32}))


# Renewals, verdicts


def test_a_renewal_that_nobody_asked_for_changes_no_chain(village, mallory):
    chain = (*mallory.chain, mallory.credential(village.victim.node, admit=True))
    verdict = encode_admission_verdict(AdmissionVerdict(bytes(REFERENCE_BYTES), chain))
    with village.suffer(counted="renewal that was not asked for"):
        mallory.hand_over(village.victim, Handover.RENEWAL_VERDICT, verdict)


# Claims


@pytest.mark.parametrize("state", [ALIVE, LEFT], ids=["alive", "left"])
def test_what_only_a_member_may_say_of_itself_is_not_believed_of_another(village, mallory, state):
    """A `leave`, and an incarnation to end all incarnations, with Mallory's signature."""
    subject = village.admitter.node
    known = village.victim.engine.gossip.member(subject).incarnation
    with village.suffer(counted="bad signature", at=(village.victim, village.founder)):
        for target in (village.victim, village.founder):
            for incarnation in (known, known + 1, INCARNATION_MAX):
                mallory.claims(target, mallory.claim(subject, incarnation, state))


def test_nobody_is_declared_dead(village, mallory):
    """DEAD is on no wire, whoever signs it."""
    subject = village.admitter.node
    known = village.victim.engine.gossip.member(subject).incarnation
    with village.suffer(counted="claim of unknown state"):
        mallory.claims(
            village.victim,
            mallory.claim(subject, known, DEAD),
            mallory.claim(subject, known, DEAD, signer=mallory.node),
        )


def test_forged_accusers_accuse_nobody(village, mallory):
    subject = village.admitter.node
    known = village.victim.engine.gossip.member(subject).incarnation
    with village.suffer(counted="bad signature"):
        mallory.claims(
            village.victim,
            mallory.claim(subject, known, SUSPECT, signer=village.founder.node),
            mallory.claim(subject, known, SUSPECT, signer=village.victim.node),
        )


def test_accusers_that_nobody_knows_accuse_nobody(village, mallory):
    """A sybil that nobody has let in has no voice: dropped before it is even verified."""
    subject = village.admitter.node
    known = village.victim.engine.gossip.member(subject).incarnation
    statistics = village.victim.engine.gossip.statistics()
    before = village.state_of(village.victim)
    for number in range(8):
        key = mallory.key_of_its_own(number)
        fields = {1: bytes(subject), 2: known, 3: int(SUSPECT), 4: bytes(key.id), 5: 1000}
        mallory.claims(village.victim, mallory.sign(Statement.CLAIM, fields, key=key))
    village.world.run_for(3.0)
    assert village.victim.engine.gossip.statistics().claims_dropped == statistics.claims_dropped + 8
    assert village.state_of(village.victim) == before


# Several encodings of one thing


def longer(body):
    """Return another msgpack encoding of the same map: its keys as 16-bit integers."""
    size = body[0] & 0x0F
    assert body[0] == 0x80 | size
    return bytes([0xDE, 0, size]) + body[1:]


def test_another_encoding_of_anothers_word_has_no_signature(village, mallory):
    held = mallory.record_of(village.admitter)
    with village.suffer(counted="bad signature"):
        mallory.tell(village.victim, held[:64] + longer(held[64:]))


def test_a_node_id_cannot_be_written_in_two_ways(village, mallory):
    """The key with its sign bit, which libraries mask or not, is another one, and not usable."""
    odd = bytearray(village.admitter.node)
    odd[31] ^= 0x80
    held = mallory.record_of(village.admitter).replace(bytes(village.admitter.node), bytes(odd))
    assert NodeId(bytes(odd)) != village.admitter.node
    with village.suffer(counted="bad signature"):
        mallory.tell(village.victim, held)


def test_what_is_signed_for_one_use_is_worth_nothing_for_another(village, mallory):
    """Each blob that Mallory holds, told as every other kind."""
    facts = list(village.bad.engine.ledger.facts())
    with village.suffer(counted=("bad signature",)):
        for fact in facts:
            for kind in FactKind:
                if kind is not fact.kind:
                    mallory.tell(village.victim, fact.blob, kind=kind)


def test_a_statement_of_another_mesh_is_worth_nothing(village, mallory):
    elsewhere = MeshKey(b"e" * 32).id
    statement = Revocation(village.victim.node, mallory.node, False, mallory.wall, mallory.chain)
    body = {
        1: bytes(statement.subject),
        2: bytes(mallory.node),
        4: mallory.wall,
        5: mallory.chain,
    }
    packed = pack(body)
    signature = mallory.key.sign(b"meshd.revocation.1\0" + elsewhere + packed)
    with village.suffer(counted="bad signature"):
        mallory.tell(village.victim, signature + packed, kind=FactKind.REVOCATION)
