"""What an adversary gets out of a node: one with no key, one with the bootstrap key, a member."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from random import Random

import pytest

from engine.engine_wireguard import Packet
from engine.engine_world import PORT, World, all_ping, whole
from meshd.addresses import overlay_prefix
from meshd.bootstrap.messages import AdmissionVerdict, encode_admission_verdict
from meshd.engine import events
from meshd.engine.handover import HANDOVERS_BURST_MAX, Handover, mark
from meshd.keys import NodeKey
from meshd.trust.fact import FactKind
from meshd.trust.record import Candidate, CandidateKind, Record, open_record_untrusted, sign_record
from meshd.trust.refusal import Refusal, RefusalCode
from meshd.trust.revocation import Revocation, sign_revocation
from meshd.underlay import MAGIC
from meshd.wg.types import Endpoint

ATTACKER = Endpoint(ip_address("198.51.100.66"), 4444)


def revoke(machine, subject, *, cascade=False):
    """Have the mesh key revoke a member; the operator is at `machine`."""
    world = machine.world
    statement = Revocation(subject.node, world.mesh, cascade, int(world.wall))
    blob = sign_revocation(statement, world.mesh_key, world.mesh)
    machine.learn(FactKind.REVOCATION, blob)


def facts_of(machine):
    return [fact.digest for fact in machine.engine.ledger.facts()]


def state_of(machine):
    """Return what an attack must not change."""
    engine = machine.engine
    return (
        facts_of(machine),
        [(view.node, view.state, view.incarnation) for view in engine.gossip.members()],
        engine.gossip.incarnation,
        engine.desired_state(),
        engine.identity,
    )


def captured_from(machine, seconds):
    """Return what a machine's daemon sends on the underlay in the next seconds."""
    underlay = machine.world.underlay
    underlay.capture = []
    machine.world.run_for(seconds)
    capture, underlay.capture = underlay.capture, None
    mine = (sent.payload for sent in capture if sent.sender == machine.name)
    return [payload for payload in mine if isinstance(payload, bytes)]


def bad_packets(machine):
    engine = machine.engine
    paths = engine.path.statistics()
    return engine.bad_packets.total() + sum(engine.admission.dropped.values()) + paths.replayed


# Revocation


@pytest.mark.parametrize("reached", [True, False], ids=["running", "switched off"])
def test_a_revoked_member_loses_its_peer_entry_everywhere(reached):
    world = World(seed=1)
    a, b, c, mallory = world.mesh_of(4)
    if not reached:
        mallory.kill()
    key = mallory.disk.identity.wireguard_key.public

    revoke(a, mallory)

    world.run_until(
        lambda: all(key not in m.wireguard.observe().peers for m in (a, b, c)), within=3.0
    )
    assert all(m.state_of(mallory) is None for m in (a, b, c))
    assert not mallory.ping(a.ipv4)
    assert whole(a, b, c)
    world.run_for(60.0)
    assert all(key not in m.wireguard.observe().peers for m in (a, b, c))


def test_a_revoked_member_that_asks_again_is_told_so():
    world = World(seed=2)
    a, mallory = world.mesh_of(2)
    mallory.kill()
    revoke(a, mallory)
    world.run_for(2.0)

    mallory.start(seeds=[a])
    world.run_for(20.0)

    assert a.state_of(mallory) is None
    (refusal, *_) = mallory.of(events.RefusedByMesh)
    assert refusal.final
    assert "not a member of this mesh any more" in refusal.text


def test_a_revocation_reaches_those_who_were_away():
    world = World(seed=3)
    a, b, c, mallory = world.mesh_of(4)
    c.power_off()
    mallory.kill()
    revoke(a, mallory)
    world.run_for(5.0)

    c.start()
    world.run_until(lambda: whole(a, b, c), within=15.0)

    world.run_until(lambda: not c.has_peer_at(mallory.disk.identity.ipv6), within=3.0)


def test_with_cascade_those_whom_the_revoked_one_let_in_go_too():
    world = World(seed=4)
    founder, mallory, friend, other = (world.machine(n) for n in ("founder", "m", "friend", "o"))
    founder.start()
    mallory.start(token=founder.invite(admit=True))
    other.start(token=founder.invite(key="other"))
    world.run_until(lambda: whole(founder, mallory, other), within=2.0)
    friend.start(token=mallory.invite())
    world.run_until(lambda: whole(founder, mallory, friend, other), within=2.0)

    revoke(founder, mallory, cascade=True)

    world.run_until(lambda: other.state_of(friend) is None, within=3.0)
    assert other.state_of(mallory) is None
    assert whole(founder, other)
    world.run_until(lambda: not other.has_peer_at(friend.ipv6), within=0.1)


# A member that lies


def lying_record(machine, **fields):
    """Return a machine's newest record, altered and signed by itself."""
    engine = machine.engine
    record, _ = open_record_untrusted(
        engine.presence.blob, engine.identity.mesh, engine.ledger.cache
    )
    values = {
        name: getattr(record, name)
        for name in ("node", "wireguard_key", "candidates", "ipv4", "version", "chain")
    }
    altered = Record(sequence=record.sequence + 1000, **{**values, **fields})
    return sign_record(altered, machine.disk.node_key, engine.identity.mesh)


def test_a_member_that_copies_anothers_wireguard_key_gets_no_tunnel_and_is_reported():
    world = World(seed=10)
    a, victim = world.mesh_of(2)
    world.run_for(2.0)  # whoever comes later is admitted later
    mallory = world.machine("mallory")
    mallory.start(seeds=[a])
    world.run_until(lambda: whole(a, victim, mallory), within=2.0)
    endpoint = a.endpoint_of(victim)
    record = lying_record(mallory, wireguard_key=victim.public_key)
    mallory.kill()  # its honest daemon would put the record right

    a.learn(FactKind.RECORD, record)

    world.run_for(1.0)
    assert a.engine.key_conflicts == (mallory.node,)
    assert not a.has_peer_at(mallory.disk.identity.ipv6)
    assert a.has_peer(victim)
    assert a.endpoint_of(victim) == endpoint
    assert not a.engine.path.view(mallory.node).installed, "the peer of that key is the victim's"
    assert a.ping(victim.ipv4)


def test_a_member_that_names_our_own_wireguard_key_gets_no_tunnel():
    world = World(seed=11)
    a, mallory = world.mesh_of(2)
    record = lying_record(mallory, wireguard_key=a.public_key)
    mallory.kill()

    a.learn(FactKind.RECORD, record)

    world.run_for(1.0)
    assert a.engine.key_conflicts == (mallory.node,)
    assert a.wireguard.observe().peers == {}


def test_a_verdict_counts_only_from_the_member_that_was_asked():
    world = World(seed=16)
    founder, plain, mallory = (world.machine(name) for name in ("founder", "plain", "mallory"))
    founder.start()
    for machine in (plain, mallory):
        machine.start(token=founder.invite(key=machine.name))
    world.run_until(lambda: whole(founder, plain, mallory), within=2.0)
    joiner = world.machine("joiner")
    token = founder.invite(seeds=[plain])
    founder.kill()  # it is asked, and does not answer
    joiner.start(token=token)
    world.run_until(lambda: plain.engine.admission.get_timer() is not None, within=1.0)
    (reference, *_) = plain.engine.admission._handed_over
    refusal = Refusal(RefusalCode.USED, "go away")
    verdict = encode_admission_verdict(AdmissionVerdict(reference, refusal))

    plain.engine.overlay_datagram(
        mark(Handover.ADMISSION_VERDICT, verdict), mallory.ipv6, world.now, world.wall
    )
    plain.drain()
    founder.start()
    world.run_until(lambda: whole(founder, plain, mallory, joiner), within=15.0)

    assert plain.engine.bad_packets["verdict on nothing we handed over"] == 1
    assert not joiner.of(events.RefusedByMesh)


def test_addresses_inside_the_mesh_never_become_endpoints():
    world = World(seed=12)
    a, b, mallory = world.mesh_of(3)
    inside = [IPv4Address("100.64.0.1"), b.ipv4, b.ipv6, overlay_prefix(world.mesh)[9]]
    bad = [ip_address(text) for text in ("127.0.0.1", "0.0.0.0", "224.0.0.1", "::1")]
    candidates = tuple(Candidate(CandidateKind.HOST, each, PORT) for each in (*inside, *bad))
    record = lying_record(mallory, candidates=candidates)
    mallory.kill()
    key = mallory.disk.identity.wireguard_key.public
    world.underlay.capture = []

    a.learn(FactKind.RECORD, record)
    world.run_for(20.0)

    assert not {sent.target.address for sent in world.underlay.capture} & {*inside, *bad}
    endpoint = a.wireguard.observe().peers[key].endpoint
    assert endpoint.address == mallory.addresses[0], "where it has proven to be"


def test_a_source_inside_the_mesh_is_no_endpoint_either():
    world = World(seed=13)
    a, b = world.mesh_of(2)
    a.plugged = False
    b.renumber("198.51.100.2")
    (ping, *_) = captured_from(b, 0.1)
    endpoint = a.endpoint_of(b)

    a.receive(ping, Endpoint(b.ipv6, PORT), a.addresses[0])

    assert a.engine.bad_packets["probe from an impossible address"] == 1
    world.run_for(1.0)
    assert a.endpoint_of(b) == endpoint


def test_a_packet_with_anothers_overlay_address_does_not_come_out_of_the_tunnel():
    world = World(seed=14)
    a, b, mallory = world.mesh_of(3)
    mallory.wireguard.send(Packet(b.ipv6, a.ipv6, 7946, b"\x01forged"))
    world.run_for(0.1)

    assert a.wireguard.forbidden_sources == 1
    assert not a.engine.bad_packets


def test_what_arrives_for_no_member_is_counted_and_dropped():
    world = World(seed=15)
    (a,) = world.mesh_of(1)

    a.engine.overlay_datagram(b"\x01\x02", IPv6Address("fd00::1"), world.now, world.wall)

    assert a.engine.bad_packets["overlay source is no member"] == 1


# An outsider


def test_a_node_without_the_secret_gets_no_answer_and_changes_nothing():
    world = World(seed=20)
    (a,) = world.mesh_of(1)
    elsewhere = World(seed=21)
    outsider = elsewhere.machine("outsider", "198.51.100.66")
    outsider.start(seeds=["192.0.2.1:51820"])
    requests = captured_from(outsider, 20.0)
    before = state_of(a)
    world.underlay.capture = []

    for request in requests:
        a.receive(request, ATTACKER, a.addresses[0])

    assert len(requests) > 5
    assert bad_packets(a) == len(requests)
    assert state_of(a) == before
    assert not [sent for sent in world.underlay.capture if sent.target == ATTACKER]


def mutations(datagrams, rng, count):
    """Return datagrams with bits flipped, cut, extended and put together."""
    for _ in range(count):
        data = bytearray(rng.choice(datagrams))
        match rng.randrange(4):
            case 0:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[rng.randrange(len(data)) :]
            case 2:
                data += rng.randbytes(rng.randrange(1, 100))
            case _:
                other = rng.choice(datagrams)
                at = rng.randrange(len(data))
                data[at:] = other[at:] or b"\0"
        if bytes(data) not in datagrams:
            yield bytes(data)


@pytest.mark.parametrize("seed", range(30, 33))
def test_whatever_an_outsider_sends_gets_no_byte_back_and_changes_nothing(seed):
    world = World(seed=seed)
    world.underlay.capture = []
    a, b, c = world.mesh_of(3)
    recorded = [
        sent.payload
        for sent in world.underlay.capture
        if isinstance(sent.payload, bytes) and sent.target.address == a.addresses[0]
    ]
    rng = Random(seed)
    noise = [rng.randbytes(rng.randrange(0, 1300)) for _ in range(60)]
    typed = [MAGIC + bytes([rng.randrange(5)]) + rng.randbytes(1195) for _ in range(60)]
    shorter = [each[: rng.randrange(1200)] for each in typed]
    hostile = [*noise, *typed, *shorter, *mutations(recorded, rng, 200), *recorded]
    before, counted = state_of(a), bad_packets(a)
    revision = a.engine.plan_revision
    world.underlay.capture = []

    for datagram in hostile:
        a.receive(datagram, ATTACKER, a.addresses[0])

    assert [sent for sent in world.underlay.capture if sent.target == ATTACKER] == []
    assert bad_packets(a) == counted + len(hostile)
    assert state_of(a) == before
    assert a.engine.plan_revision == revision
    world.run_for(5.0)
    assert [sent for sent in world.underlay.capture if sent.target == ATTACKER] == []
    assert whole(a, b, c)


@pytest.mark.parametrize("seed", range(40, 43))
def test_whatever_comes_through_a_members_tunnel_breaks_nothing(seed):
    world = World(seed=seed)
    a, b, c = world.machine("a"), world.machine("b"), world.machine("c")
    recorded = []
    take = Recorder(a, recorded)
    a.start()
    take.attach()
    b.start(seeds=[a])
    c.start(seeds=[a])
    world.run_until(lambda: whole(a, b, c), within=2.0)
    world.run_for(3.0)
    rng = Random(seed)
    noise = [rng.randbytes(rng.randrange(0, 1300)) for _ in range(60)]
    marked = [bytes([mark]) + rng.randbytes(200) for mark in (0xF1, 0xF2) for _ in range(30)]
    facts = facts_of(a)
    hostile = [*noise, *marked, *mutations(recorded, rng, 400), *recorded]
    rng.shuffle(hostile)

    for datagram in hostile:
        a.engine.overlay_datagram(datagram, rng.choice((b, c)).ipv6, world.now, world.wall)
        a.drain()

    assert facts_of(a) == facts
    assert a.engine.bad_packets.total() > len(noise) + len(marked) - 10
    world.run_for(5.0)
    world.run_until(lambda: whole(a, b, c), within=15.0)
    assert all_ping(a, b, c)


class Recorder:
    """Keeps what comes to an engine through its tunnels."""

    def __init__(self, machine, recorded):
        self.machine, self.recorded = machine, recorded

    def attach(self):
        take = self.machine.engine.overlay_datagram

        def overlay_datagram(datagram, source, now, wall):
            self.recorded.append(datagram)
            take(datagram, source, now, wall)

        self.machine.engine.overlay_datagram = overlay_datagram


# Identities that come twice


def test_a_restored_backup_goes_on_above_its_newer_self_and_is_no_clone():
    world = World(seed=50)
    a, b, c = world.mesh_of(3)
    backup = c.disk.copy()
    for _ in range(3):
        c.kill()
        c.start()
        world.run_for(3.0)
    newest = c.engine.ledger.standing(c.node).record.sequence
    c.power_off()
    c.disk = backup
    c.renumber("198.51.100.3")

    c.start()
    world.run_until(lambda: whole(a, b, c), within=15.0)
    world.run_for(5.0)

    for machine in (a, b, c):
        assert machine.engine.ledger.standing(c.node).record.sequence > newest
        assert not machine.of("identity-cloned")
    assert c.of(events.SequenceOutrun)
    assert c.disk.starts > newest >> 20, "the next run begins above it"


def test_two_records_with_one_number_are_reported_however_they_come():
    world = World(seed=52)
    a, mallory = world.mesh_of(2)
    standing = a.engine.ledger.standing(mallory.node)
    record = replace(standing.record, candidates=())
    mallory.kill()

    a.learn(FactKind.RECORD, sign_record(record, mallory.disk.node_key, world.mesh))

    (notice,) = a.of("identity-cloned")
    assert notice.member == mallory.node
    assert "keys are in use twice" in notice.message


@pytest.mark.parametrize("restarts", [0, 5], ids=["one number twice", "other numbers"])
def test_a_cloned_machine_raises_an_alarm(restarts):
    world = World(seed=51)
    a, b, original = world.mesh_of(3)
    clone = world.machine("clone", node_key=NodeKey(original.disk.node_key.seed))
    original.power_off()
    clone.disk = original.disk.copy()
    clone.disk.starts += restarts

    original.start(seeds=[a])
    clone.start(seeds=[a])
    machines = (a, b, original, clone)
    world.happens(lambda: any(m.of("identity-cloned") for m in machines), within=60.0)

    notices = [notice for machine in machines for notice in machine.of("identity-cloned")]
    assert notices
    assert all(notice.member == original.node for notice in notices)


def test_a_member_that_hands_over_without_end_is_cut_short():
    world = World(seed=61)
    a, b = world.mesh_of(2)
    rubbish = mark(Handover.ADMISSION_REQUEST, b"\x80")
    heard_before = bad_packets(a)

    for _ in range(1000):
        a.engine.overlay_datagram(rubbish, b.engine.identity.ipv6, world.now, world.wall)

    counts = a.engine.bad_packets
    assert counts["too many handovers from one member"] == 1000 - HANDOVERS_BURST_MAX
    assert bad_packets(a) - heard_before == 1000
