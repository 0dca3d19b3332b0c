"""A member that reaches for what is another's: addresses, networks, keys, rights, lives."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from adversary.mallory import TIME_TO_ACT, Village
from engine.engine_wireguard import Packet
from engine.engine_world import PORT, whole
from meshd.codec import pack, pack_address
from meshd.engine.handover import Handover
from meshd.gossip.claim import INCARNATION_MAX, MemberState
from meshd.trust.credential import CLOCK_SKEW_MAX
from meshd.trust.fact import FactKind
from meshd.trust.line import line_id
from meshd.trust.record import Candidate, CandidateKind, sign_record
from meshd.trust.signed import Statement

ALIVE, SUSPECT, DEAD, LEFT = MemberState
ROUTE = IPv4Network("10.1.0.0/16")
YEAR = 365 * 86400


@pytest.fixture
def village():
    return Village(seed=20)


@pytest.fixture(scope="module")
def shared():
    """Attempts that fail leave nothing, so they may share one mesh."""
    return Village(seed=20)


def peer_of(village, machine):
    """Return what a member's kernel has of Mallory."""
    return machine.wireguard.observe().peers[village.bad.disk.identity.wireguard_key.public]


def allowed(village, machine):
    return set(peer_of(village, machine).allowed_ips)


def as_mallory(village, **fields):
    """Sign a record as Mallory does, whose honest daemon is dead."""
    key = village.bad.disk.node_key
    standing = village.founder.engine.ledger.standing(village.bad.node)
    record = replace(standing.record, sequence=standing.record.sequence + 1000, **fields)
    return sign_record(record, key, village.world.mesh)


# Addresses


def test_a_claim_to_anothers_address_takes_it_from_nobody(village):
    """The later admitted has no address at all by such a claim, which all show."""
    wanted = village.victim.ipv4
    village.bad.kill()
    record = as_mallory(village, ipv4=wanted)
    before = [village.state_of(machine) for machine in village.honest]

    village.founder.learn(FactKind.RECORD, record)
    village.world.run_for(TIME_TO_ACT)

    assert [village.state_of(machine) for machine in village.honest] == before
    for machine in village.honest:
        assert machine.engine.presence.addresses.get(village.bad.node) is None
        assert IPv4Network(wanted) not in allowed(village, machine)
    assert village.victim.ping(village.founder.ipv4)


@pytest.mark.parametrize(
    "address",
    ["192.0.2.1", "0.0.0.0", "255.255.255.255", "100.64.0.0", "100.127.255.255", "127.0.0.1"],
)
def test_an_address_outside_of_the_prefix_is_nobodys(village, address):
    village.bad.kill()
    before = [village.state_of(machine) for machine in village.honest]

    village.founder.learn(FactKind.RECORD, as_mallory(village, ipv4=IPv4Address(address)))
    village.world.run_for(TIME_TO_ACT)

    assert [village.state_of(machine) for machine in village.honest] == before
    for machine in village.honest:
        assert allowed(village, machine) == {IPv6Network(village.bad.disk.identity.ipv6)}


def test_an_ipv6_address_cannot_be_claimed_at_all(shared):
    """It follows from the node id, so there is no field for it; the one there is has four bytes."""
    mallory = shared.mallory
    standing = shared.bad.engine.ledger.standing(mallory.node)
    fields = {
        1: bytes(mallory.node),
        2: standing.record.sequence + 1,
        3: bytes(standing.record.wireguard_key),
        6: pack_address(shared.victim.ipv6),
        10: mallory.chain,
    }
    with shared.suffer(counted="not an IPv4 address"):
        mallory.tell(shared.victim, mallory.sign(Statement.RECORD, fields))


def test_a_pinned_address_is_taken_by_nobody_and_left_by_nobody():
    """Neither can Mallory claim one that is pinned, nor another than its own pin."""
    village = Village(seed=21, ipv4=IPv4Address("100.64.9.9"))
    with village.suffer(counted="record claims another address than its pin", at=village.honest):
        for target in village.honest:
            record = village.mallory.record(ipv4=village.founder.ipv4)
            village.mallory.tell(target, record)
    for machine in village.honest:
        assert IPv4Network("100.64.9.9/32") in allowed(village, machine)


def test_a_member_cannot_pin_an_address_for_itself(shared):
    mallory = shared.mallory
    pinned = mallory.credential(mallory.node, ipv4=shared.victim.ipv4)
    with shared.suffer(counted="credential widens: admit is needed to grant anything"):
        mallory.tell(shared.victim, mallory.record(chain=(*mallory.chain, pinned), ipv4=None))


def test_packets_in_anothers_name_do_not_leave_the_tunnel(village):
    """Allowed-ips, not words: neither the victim's IPv4 address, nor a stranger's."""
    forbidden = village.founder.wireguard.forbidden_sources
    before = [village.state_of(machine) for machine in village.honest]
    for source, target in (
        (village.victim.ipv4, village.founder.ipv4),
        (village.victim.ipv6, village.founder.ipv6),
        (IPv6Address("2001:db8::1"), village.founder.ipv6),
    ):
        village.bad.wireguard.send(Packet(source, target, "echo", b"forged"))
    village.world.run_for(TIME_TO_ACT)
    assert village.founder.wireguard.forbidden_sources == forbidden + 3
    assert [village.state_of(machine) for machine in village.honest] == before


# Networks, endpoints


@pytest.mark.parametrize(
    "route", ["10.1.0.0/15", "10.2.0.0/16", "0.0.0.0/0", "::/0", "100.64.0.0/10"]
)
def test_a_network_beyond_the_credential_is_advertised_to_nobody(route):
    village = Village(seed=22, routes=(ROUTE,))
    try:
        wide = IPv4Network(route, strict=False)
    except ValueError:
        wide = IPv6Network(route)
    with village.suffer(counted="record advertises routes not granted", at=village.honest):
        for target in village.honest:
            village.mallory.tell(target, village.mallory.record(routes=(ROUTE, wide)))
    for machine in village.honest:
        assert wide not in allowed(village, machine)


def test_an_endpoint_inside_the_mesh_is_never_used(village):
    """No routing loop: it is neither asked, nor given to WireGuard."""
    village.bad.kill()
    inside = (village.victim.ipv4, village.victim.ipv6, IPv6Address("fd00::1"))
    candidates = tuple(Candidate(CandidateKind.HOST, each, PORT) for each in inside[:2])
    village.world.underlay.capture = []
    before = [village.state_of(machine) for machine in village.honest]

    village.founder.learn(FactKind.RECORD, as_mallory(village, candidates=candidates))
    village.world.run_for(10.0)

    assert not {sent.target.address for sent in village.world.underlay.capture} & set(inside)
    assert [village.state_of(machine) for machine in village.honest] == before


# WireGuard keys


def test_a_members_next_wireguard_key_cannot_be_taken_either(village):
    """Announced as its own next one, and then as its present one."""
    village.bad.kill()
    before = [village.state_of(machine) for machine in village.honest]

    village.founder.learn(
        FactKind.RECORD, as_mallory(village, next_wireguard_key=village.victim.public_key)
    )
    village.world.run_for(TIME_TO_ACT)
    assert [village.state_of(machine) for machine in village.honest] == before
    village.founder.learn(
        FactKind.RECORD, as_mallory(village, wireguard_key=village.victim.public_key)
    )
    village.world.run_for(TIME_TO_ACT)

    assert [village.state_of(machine) for machine in village.honest] == before
    for machine in (village.founder, village.admitter):
        assert machine.engine.key_conflicts == (village.bad.node,)
        assert machine.ping(village.victim.ipv4)
    assert village.victim.engine.key_conflicts == (village.bad.node,)


# Rights


def test_a_member_that_may_not_admit_lets_nobody_in(shared):
    mallory = shared.mallory
    with shared.suffer(
        counted="credential widens: admit is needed to grant anything", at=shared.honest
    ):
        for target in shared.honest:
            mallory.tell(target, mallory.sybil(1))


@pytest.mark.parametrize(
    ("grants", "reason"),
    [
        ({"tags": ("db", "web")}, "credential widens: tags exceed the issuer's"),
        ({"tags": ("*",)}, "credential widens: tags exceed the issuer's"),
        ({"relay": True}, "credential widens: relay exceeds the issuer's"),
        ({"routes": (IPv4Network("10.0.0.0/8"),)}, "credential widens: routes exceed the issuer's"),
        ({"expires_at": 0}, "credential outlives its issuer's"),
        ({"expires_at": 2_000_000_000}, "credential outlives its issuer's"),
    ],
    ids=["more tags", "all tags", "relay", "wider network", "no end", "a later end"],
)
def test_an_admitter_lets_nobody_in_with_more_than_it_has(grants, reason):
    village = Village(seed=23, admit=True, tags=("web",), routes=(ROUTE,), lifetime=86400)
    end = village.bad.engine.own_credential.expires_at
    given = {"expires_at": end} | grants
    with village.suffer(counted=reason, at=village.honest):
        for target in village.honest:
            village.mallory.tell(target, village.mallory.sybil(1, **given))


def test_an_admitter_gives_itself_no_more_than_it_has():
    """By one more link, for the same node."""
    village = Village(seed=24, admit=True, lifetime=86400)
    mallory = village.mallory
    end = village.bad.engine.own_credential.expires_at
    wider = mallory.credential(mallory.node, name="mallory", admit=True, relay=True, expires_at=end)
    longer = mallory.credential(mallory.node, name="mallory", admit=True, expires_at=end + 1)
    reasons = ("credential widens: relay exceeds the issuer's", "credential outlives its issuer's")
    with village.suffer(counted=reasons):
        for link in (wider, longer):
            mallory.tell(village.victim, mallory.record(chain=(*mallory.chain, link), relay=False))


def test_a_chain_through_made_up_admitters_has_an_end():
    village = Village(seed=25, admit=True)
    mallory = village.mallory
    chain, by = list(mallory.chain), None
    for number in range(4 - len(chain) + 1):
        key = mallory.key_of_its_own(f"admitter {number}")
        chain.append(mallory.credential(key.id, by=by, admit=True))
        by = key
    with village.suffer(counted="record field 10 malformed"):
        body = {1: bytes(by.id), 2: 1, 3: bytes(32), 10: tuple(chain)}
        mallory.tell(village.victim, mallory.sign(Statement.RECORD, body, key=by))


# The clock


def test_a_date_of_its_own_choice_gives_a_member_no_precedence(shared):
    """Who is admitted first is said by the credential, which Mallory did not sign."""
    mallory = shared.mallory
    backdated = mallory.credential(mallory.node, admitted_at=0, issued_at=0)
    with shared.suffer(counted="credential widens: admit is needed to grant anything"):
        mallory.tell(shared.victim, mallory.record(chain=(*mallory.chain, backdated)))


def test_an_expired_admitter_lets_nobody_in_that_outlives_it():
    """With a date before its own end, or after it: whoever it lets in has expired as well."""
    village = Village(seed=26, admit=True, lifetime=3600)
    mallory, world = village.mallory, village.world
    village.bad.engine.renewal._choose = lambda *args: None  # nobody renews it
    end = village.bad.engine.own_credential.expires_at
    for machine in village.all:
        machine.clock_offset = 2 * 86400.0
    late = end + CLOCK_SKEW_MAX + 1
    reasons = ("credential issued by an expired issuer", "credential outlives its issuer's")
    with village.suffer(counted=reasons):
        mallory.tell(village.victim, mallory.sybil(1, expires_at=end, issued_at=late))
        mallory.tell(village.victim, mallory.sybil(2, expires_at=end + YEAR, issued_at=end - 1))

    # Dated before its end it counts: as a member without any right, like its issuer.
    mallory.tell(village.victim, mallory.sybil(3, expires_at=end, issued_at=end - 1, admit=True))
    world.run_for(TIME_TO_ACT)
    sybil = mallory.key_of_its_own(3).id
    ledger = village.victim.engine.ledger
    assert ledger.admitted(sybil)
    assert not ledger.may_admit(sybil, village.victim.wall)


def test_an_expired_admitter_revokes_nobody_after_its_end():
    village = Village(seed=27, admit=True, lifetime=3600)
    village.bad.engine.renewal._choose = lambda *args: None
    end = village.bad.engine.own_credential.expires_at
    late = end + CLOCK_SKEW_MAX + 1
    with village.suffer(counted="signer had expired", at=village.honest):
        for target in village.honest:
            forged = village.mallory.revocation(village.victim.node, revoked_at=late)
            village.mallory.tell(target, forged, kind=FactKind.REVOCATION)


# Lives


def test_accusing_alone_kills_nobody(village):
    """With its proper signature, at every incarnation there is, again and again."""
    mallory = village.mallory
    victim, founder = village.admitter, village.founder
    deaths = {machine.name: len(machine.of("member-dead")) for machine in village.honest}
    for _ in range(20):
        known = founder.engine.gossip.member(victim.node).incarnation
        for target in (founder, village.victim):
            for incarnation in (known, known + 1, INCARNATION_MAX):
                mallory.claims(target, mallory.accusation(victim.node, incarnation))
        village.world.run_for(0.5)
    village.world.run_for(5.0)

    for machine in village.honest:
        assert len(machine.of("member-dead")) == deaths[machine.name]
    assert whole(*village.honest)
    assert founder.of("member-suspect"), "it shows"
    (suspicion, *_) = founder.of("member-suspect")
    assert suspicion.member == victim.node
    assert victim.engine.gossip.incarnation > 0, "one word of its own refutes it"


def test_a_maximal_incarnation_moves_nobodys_but_its_own(village):
    """memberlist #358: of others nothing is believed, of itself only it bears the cost."""
    mallory = village.mallory
    before = [village.state_of(machine) for machine in village.honest]
    for target in village.honest:
        mallory.claims(
            target,
            mallory.accusation(village.victim.node, INCARNATION_MAX),
            mallory.accusation(target.node, INCARNATION_MAX),
            mallory.claim(mallory.node, INCARNATION_MAX - 1, ALIVE),
        )
    village.world.run_for(TIME_TO_ACT)
    assert [village.state_of(machine) for machine in village.honest] == before


def test_an_accusation_of_ourselves_from_nowhere_changes_nothing(shared):
    mallory = shared.mallory
    before = shared.victim.engine.gossip.incarnation
    with shared.suffer(counted="bad signature"):
        mallory.claims(
            shared.victim,
            *(
                mallory.claim(shared.admitter.node, 1, SUSPECT, signer=signer.node)
                for signer in (shared.founder, shared.victim)
            ),
            mallory.claim(shared.founder.node, 2**20, ALIVE),
        )
    assert shared.victim.engine.gossip.incarnation == before


def test_a_member_that_nobody_revoked_is_not_talked_out_of_its_tunnels(shared):
    """An admitter cannot be made to send a notice; and one of Mallory's own says nothing."""
    mallory = shared.mallory
    blob = mallory.revocation(shared.victim.node)
    with shared.suffer(counted="signer may not admit"):
        mallory.hand_over(shared.victim, Handover.REVOKED, blob)
        mallory.hand_over(shared.victim, Handover.REVOKED, pack({}))


# What one with `admit` can do all the same: stated limits, which show and have a remedy


def test_an_admission_dated_before_its_issuers_own_takes_nothing_from_those_before_it():
    """Nobody is a member for longer than whoever let it in; also when another renews that."""
    village = Village(seed=28, admit=True)
    mallory, victim, admitter = village.mallory, village.victim, village.admitter
    key, long_ago = mallory.key_of_its_own("thief"), {"admitted_at": 0}
    link = mallory.credential(key.id, name="victim", **long_ago)
    laundered = mallory.credential(
        key.id, name="victim", line=(line_id(admitter.node),), **long_ago
    )
    before = [village.state_of(machine) for machine in village.honest]
    for last in (link, laundered):
        record = mallory.record(key=key, chain=(*mallory.chain, last), ipv4=victim.ipv4)
        mallory.tell(village.founder, record)
        village.world.run_for(TIME_TO_ACT)

        for machine, was in zip(village.honest, before, strict=True):
            after = village.state_of(machine)
            for kept in ("ipv4", "plan", "kernel", "identity"):
                assert after[kept] == was[kept]
            assert machine.engine.ledger.names()[victim.node] == "victim"
            assert machine.engine.ledger.names()[key.id] == "victim-2", "it shows"
            assert key.id not in machine.engine.presence.addresses
        assert not victim.of("address-changed")


def test_a_newcomer_that_takes_a_name_or_an_address_is_told_of_with_who_let_it_in():
    """By right: from one admitted after the admitter, or by a pin.  A cascade undoes it."""
    village = Village(seed=28, admit=True)
    mallory, victim, world = village.mallory, village.victim, village.world
    late = world.machine("late")
    late.start(token=village.founder.invite(key="late"))
    world.run_until(lambda: whole(*village.all, late), within=10.0)
    address, pinned = late.ipv4, victim.ipv4
    thief, other = (mallory.key_of_its_own(name) for name in ("thief", "other"))
    for key, given in (
        (thief, {"name": "late", "admitted_at": 0}),
        (other, {"name": "other", "ipv4": pinned}),
    ):
        link = mallory.credential(key.id, **given)
        claimed = given.get("ipv4", address)
        mallory.tell(
            village.founder, mallory.record(key=key, chain=(*mallory.chain, link), ipv4=claimed)
        )
    world.run_until(lambda: late.ipv4 != address and victim.ipv4 != pinned, within=5.0)
    world.run_for(TIME_TO_ACT)

    for machine in village.honest:
        assert machine.engine.ledger.names()[late.node] == "late-2"
        (name,) = machine.of("name-taken-over")
        assert (name.member, name.details["issuer"]) == (thief.id, "mallory")
        addresses = {notice.member: notice.details for notice in machine.of("address-taken-over")}
        assert addresses.keys() == {thief.id, other.id}
        assert addresses[other.id]["pinned"]
        assert {details["issuer"] for details in addresses.values()} == {"mallory"}
    assert late.of("address-changed")
    assert victim.of("address-changed")
    assert village.founder.ping(victim.ipv4)

    out = mallory.revocation(mallory.node, key=village.world.mesh_key, cascade=True)
    village.founder.learn(FactKind.REVOCATION, out)
    world.run_for(5.0)
    for machine in village.honest:
        assert machine.engine.ledger.names()[late.node] == "late"
        assert not machine.engine.ledger.admitted(thief.id)
        assert not machine.engine.ledger.admitted(other.id)


def test_an_expired_admitter_that_dates_a_revocation_back_is_undone_by_the_mesh_key():
    village = Village(seed=29, admit=True, lifetime=3600)
    mallory, victim = village.mallory, village.victim
    village.bad.engine.renewal._choose = lambda *args: None  # nobody renews it
    end = village.bad.engine.own_credential.expires_at
    for machine in village.all:
        machine.clock_offset = 2 * 86400.0

    forged = mallory.revocation(victim.node, revoked_at=end - 5)
    mallory.tell(village.founder, forged, kind=FactKind.REVOCATION)
    village.world.run_until(lambda: village.founder.state_of(victim) is None, within=5.0)
    (notice,) = village.founder.of("member-revoked")
    assert notice.details["signer"] == "mallory"

    out = mallory.revocation(mallory.node, key=village.world.mesh_key, cascade=True)
    for machine in (village.founder, victim):
        machine.learn(FactKind.REVOCATION, out)
    village.world.run_until(lambda: whole(*village.honest), within=60.0)
