"""A member that says again what was true once: of those that live, have left, or are thrown out."""

from collections import Counter

from adversary.mallory import Village
from meshd.engine.handover import Handover
from meshd.gossip.claim import MemberState
from meshd.keys import InviteKey
from meshd.trust.fact import FactKind
from meshd.wg.types import Endpoint

ALIVE, SUSPECT, DEAD, LEFT = MemberState


def revoke(village, subject, *, cascade=False):
    """Have the mesh key revoke somebody, at the founder."""
    world = village.world
    blob = village.mallory.revocation(subject, key=world.mesh_key, cascade=cascade)
    village.founder.learn(FactKind.REVOCATION, blob)


def everything_about(village, machine):
    """Return what Mallory holds of a member: its record, and what it has said of itself."""
    mallory = village.mallory
    return mallory.record_of(machine), [item.blob for item in mallory.word_of(machine)]


def say_again(village, targets, record, words):
    for target in targets:
        village.mallory.tell(target, record)
        village.mallory.claims(target, *words)
        village.mallory.hand_over(target, Handover.OWN_RECORD, record)


def test_an_old_record_undoes_no_newer_one():
    """Old words are no offence: everybody repeats what it holds.  So they are not counted."""
    village = Village(seed=2)
    record, words = everything_about(village, village.admitter)
    village.admitter.renumber("198.51.100.7")
    village.world.run_for(10.0)
    before = [village.state_of(machine) for machine in village.honest]
    assert village.mallory.record_of(village.admitter) != record

    say_again(village, village.honest, record, words)
    village.world.run_for(5.0)

    assert [village.state_of(machine) for machine in village.honest] == before
    address = village.victim.endpoint_of(village.admitter).address
    assert str(address) == "198.51.100.7"


def test_old_gossip_brings_no_revoked_member_back():
    """Neither at those that threw it out, nor by the accomplice that still holds its words."""
    village = Village(seed=3)
    out = village.admitter
    record, words = everything_about(village, out)
    key = out.public_key
    revoke(village, out.node)
    others = (village.founder, village.victim)
    village.world.run_until(
        lambda: all(m.state_of(out) is None and not m.has_peer(out) for m in others), within=5.0
    )
    dropped = {m.name: m.engine.gossip.statistics().claims_dropped for m in others}

    for _ in range(5):
        say_again(village, others, record, words)
        village.world.run_for(2.0)

    for machine in others:
        assert machine.state_of(out) is None
        assert key not in machine.wireguard.observe().peers
        assert not machine.engine.is_member_address(out.engine.identity.ipv6)
        assert machine.engine.gossip.statistics().claims_dropped >= dropped[machine.name] + 5
        (notice,) = machine.of("member-revoked")
        assert notice.member == out.node


def test_a_newer_word_of_a_revoked_member_brings_it_back_no_more_than_an_old_one():
    """Its accomplice carries what it signs after it was thrown out: a record, and a claim."""
    village = Village(seed=4)
    out = village.admitter
    revoke(village, out.node)
    others = (village.founder, village.victim)
    village.world.run_until(lambda: all(m.state_of(out) is None for m in others), within=5.0)
    mallory = village.mallory
    key = out.disk.node_key
    chain = out.engine.identity.chain
    record = mallory.record(key=key, chain=chain)
    fields = {1: bytes(out.node), 2: 2**40, 3: int(ALIVE)}
    word = mallory.sign("claim", fields, key=key)
    dropped = {m.name: m.engine.gossip.statistics().claims_dropped for m in others}

    say_again(village, others, record, [word])
    village.world.run_for(5.0)

    for machine in others:
        assert machine.engine.gossip.statistics().claims_dropped > dropped[machine.name]
        assert machine.state_of(out) is None
        assert not machine.has_peer_at(out.engine.identity.ipv6)


def test_old_gossip_brings_no_member_back_that_has_left():
    village = Village(seed=5)
    gone = village.admitter
    record, words = everything_about(village, gone)
    address = gone.ipv6
    gone.leave()
    others = (village.founder, village.victim)
    village.world.run_until(lambda: all(m.state_of(gone) is LEFT for m in others), within=5.0)
    village.world.run_for(5.0)

    for _ in range(5):
        for target in others:
            village.mallory.tell(target, record)
            village.mallory.claims(target, *words)
        village.world.run_for(2.0)
        assert all(machine.state_of(gone) is LEFT for machine in others)

    assert not any(machine.has_peer_at(address) for machine in others)


def test_old_gossip_brings_no_dead_member_back():
    village = Village(seed=6)
    gone = village.admitter
    record, words = everything_about(village, gone)
    gone.power_off()
    others = (village.founder, village.victim)
    village.world.run_until(lambda: all(m.state_of(gone) is DEAD for m in others), within=60.0)

    for _ in range(5):
        for target in others:
            village.mallory.tell(target, record)
            village.mallory.claims(target, *words)
        village.world.run_for(2.0)
        assert all(machine.state_of(gone) is DEAD for machine in others)


def test_a_use_of_an_invite_told_again_spends_it_once():
    village = Village(seed=7)
    used = [fact for fact in village.bad.engine.ledger.facts() if fact.kind is FactKind.INVITE_USE]
    assert len(used) == 3
    before = [village.state_of(machine) for machine in village.honest]

    for _ in range(10):
        for target in village.honest:
            village.mallory.tell(target, *(f.blob for f in used), kind=FactKind.INVITE_USE)
        village.world.run_for(1.0)

    assert [village.state_of(machine) for machine in village.honest] == before
    ledger = village.victim.engine.ledger
    invite = InviteKey(village.world.secret("victim founder")).id
    assert list(ledger.invite(invite).winners) == [village.victim.node]


def test_a_notice_of_anothers_revocation_told_again_puts_nobody_out():
    village = Village(seed=8)
    gone = village.world.machine("gone")
    gone.start(token=village.founder.invite(key="gone"))
    village.world.run_until(lambda: village.bad.state_of(gone) is ALIVE, within=10.0)
    revoke(village, gone.node)
    gone.kill()
    village.world.run_until(lambda: village.bad.state_of(gone) is None, within=5.0)
    (notice,) = (f for f in village.bad.engine.ledger.facts() if f.kind is FactKind.REVOCATION)
    village.world.run_for(5.0)

    with village.suffer(counted="told of a revocation that is not ours", at=village.honest):
        for target in village.honest:
            village.mallory.hand_over(target, Handover.REVOKED, notice.blob)
    assert not any(machine.of("revoked") for machine in village.honest)


def test_bootstrap_requests_and_probes_recorded_by_a_member_change_nothing():
    """From the underlay: Mallory has all that was ever sent there, and the bootstrap key."""
    village = Village(seed=9)
    world = village.world
    world.underlay.capture = []
    late = world.machine("late")
    late.start(token=village.founder.invite(key="late", seeds=[village.victim]))
    world.run_until(lambda: village.victim.state_of(late) is ALIVE, within=10.0)
    world.run_for(10.0)
    recorded = [
        sent.payload
        for sent in world.underlay.capture
        if isinstance(sent.payload, bytes) and sent.target.address == village.victim.addresses[0]
    ]
    world.underlay.capture = []
    before = [village.state_of(machine) for machine in village.honest]
    paths = village.victim.engine.path.statistics().replayed
    dropped = sum(village.victim.engine.admission.dropped.values())
    counted = Counter(village.victim.engine.bad_packets)

    source = Endpoint(village.bad.addresses[0], 4444)
    for datagram in recorded:
        village.victim.receive(datagram, source, village.victim.addresses[0])
    world.run_for(5.0)

    more = Counter(village.victim.engine.bad_packets) - counted
    noticed = (
        more.total()
        + village.victim.engine.path.statistics().replayed
        - paths
        + sum(village.victim.engine.admission.dropped.values())
        - dropped
    )
    assert len(recorded) > 3
    assert noticed == len(recorded)
    assert [village.state_of(machine) for machine in village.honest] == before
    assert not [sent for sent in world.underlay.capture if sent.target == source]
