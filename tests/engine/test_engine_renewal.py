"""Renewals between whole engines: asked in time, of whoever can, and of nobody's invention."""

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

import pytest

from engine.engine_world import World, whole
from meshd.bootstrap.messages import AdmissionVerdict, encode_admission_verdict
from meshd.codec import pack
from meshd.engine import events
from meshd.engine.handover import Handover, mark
from meshd.errors import BadPacket
from meshd.gossip.claim import MemberState
from meshd.gossip.wire import Item, Message, MessageType, encode
from meshd.trust.admission import RETRY_LIFETIME
from meshd.trust.credential import CHAIN_LENGTH_MAX, issue, verify_chain_untrusted
from meshd.trust.fact import FactKind
from meshd.trust.line import let_in_by, line_id
from meshd.trust.record import Record, open_record_untrusted, sign_record
from meshd.trust.renewal import GRACE, Phase
from meshd.trust.revocation import Revocation, sign_revocation

LIFE = 60  # seconds
ROUTE = IPv4Network("10.1.0.0/16")


def mesh(seed, *, life=LIFE, admit=False, helpers=(), **grants):
    """Return a world, its founder, helpers without end that may admit, and one credential's node.

    founder ──▶ helper …      founder ──▶ node, for `life`
    """
    world = World(seed=seed)
    founder, *others = (world.machine(name) for name in ("founder", *helpers, "node"))
    founder.start()
    for helper in others[:-1]:
        helper.start(token=founder.invite(key=helper.name, admit=True, **grants))
        world.run_until(lambda: whole(founder, *others[: others.index(helper) + 1]), within=3.0)  # noqa: B023 - called at once
    node = others[-1]
    node.options["relay"] = bool(grants.get("relay"))
    node.start(token=founder.invite(key="node", admit=admit, lifetime=life, **grants))
    world.run_until(lambda: whole(founder, *others), within=3.0)
    return world, founder, *others


def end_of(machine):
    return machine.engine.own_credential.expires_at


def as_seen_by(machine, other):
    return machine.engine.ledger.standing(other.node).credential


def tell(machine, source, datagram):
    """Have a datagram come to a machine through another's tunnel."""
    machine.engine.overlay_datagram(datagram, source.ipv6, machine.now, machine.wall)
    machine.drain()


def asked(world, machine, *, within):
    """Let a machine's renewal be asked for, and return whom of and by which reference."""
    renewal = machine.engine.renewal
    world.run_until(lambda: renewal._asked is not None, within=within)
    return renewal._asked


# In time


def test_a_credential_is_renewed_again_and_again_in_the_last_third_of_its_life():
    world, founder, node = mesh(1, tags=("db",), routes=(ROUTE,), relay=True)
    first = node.engine.own_credential
    began_at = world.wall

    world.run_until(lambda: len(node.of("credential-renewed")) == 3, within=4 * LIFE)

    # Each is asked for between two thirds and three quarters of the life before.
    assert 3 * LIFE * 2 / 3 - 2 <= world.wall - began_at <= 3 * LIFE * 3 / 4 + 2
    renewed = node.engine.own_credential
    assert replace(renewed, issued_at=0, expires_at=0) == replace(first, issued_at=0, expires_at=0)
    assert renewed.expires_at == renewed.issued_at + LIFE
    assert len(node.engine.identity.chain) == 2
    assert node.disk.identity.chain == node.engine.identity.chain
    world.run_until(lambda: as_seen_by(founder, node) == renewed, within=2.0)
    assert not node.of("credential-expiring")
    assert whole(founder, node)


def test_renewing_changes_nothing_in_any_kernel():
    world, founder, node = mesh(2)
    before = [machine.engine.desired_state() for machine in (founder, node)]
    changes = []
    for machine in (founder, node):
        machine.wireguard.apply = changes.append
    world.run_until(lambda: len(node.of("credential-renewed")) == 2, within=2 * LIFE)

    assert [machine.engine.desired_state() for machine in (founder, node)] == before
    assert not changes
    assert founder.ping(node.ipv4)


def test_a_lost_answer_is_asked_for_again():
    world, _, node = mesh(3)
    world.run_for(LIFE / 2)
    world.underlay.loss = 0.4

    world.run_until(lambda: node.of("credential-renewed"), within=LIFE / 2)


def test_whoever_does_not_answer_is_followed_by_another():
    world, founder, helper, node = mesh(4, helpers=["helper"])
    order = []
    for machine in (founder, helper):
        machine.engine.renewal._judge_untrusted = lambda *_, who=machine: order.append(who.name)
    world.run_until(lambda: len(order) == 4, within=LIFE)

    assert order == ["founder", "helper", "founder", "helper"]
    assert not node.of("credential-renewed")


def test_another_admitter_takes_over_and_hands_back():
    world, founder, helper, node = mesh(5, helpers=["helper"])
    founder.power_off()
    world.run_until(lambda: node.of("credential-renewed"), within=LIFE)
    assert len(node.engine.identity.chain) == 3, "through the helper"

    founder.start()
    world.run_until(lambda: len(node.of("credential-renewed")) == 2, within=LIFE)

    assert len(node.engine.identity.chain) == 2, "nearer to the mesh key again"
    world.run_until(lambda: whole(founder, helper, node), within=15.0)


def test_a_member_keeps_the_chain_by_which_it_came_in():
    """Renewed by whomever, restarted in between."""
    world, founder, _, node = mesh(8, helpers=["helper"])
    origin = node.engine.identity.chain
    assert node.engine.identity.origin == ()
    founder.power_off()
    world.run_until(lambda: node.of("credential-renewed"), within=LIFE)
    node.power_off()
    founder.start()
    node.start()
    world.run_until(lambda: len(node.of("credential-renewed")) == 2, within=2 * LIFE)

    assert node.engine.identity.origin == origin
    assert let_in_by(node.engine.own_chain) == (line_id(founder.node),)


def test_what_ends_with_its_issuer_is_made_whole_by_one_that_lasts():
    world, founder, helper = mesh(6, life=LIFE, admit=True)[:3]
    late = world.machine("late")
    late.start(token=helper.invite(lifetime=1000 * LIFE))  # it names the helper alone as seed

    world.run_until(lambda: whole(founder, helper, late), within=3.0)

    world.run_until(lambda: end_of(late) >= world.wall + 999 * LIFE, within=3.0)
    assert [notice.name for notice in late.of("credential-renewed")] == ["founder"]


def test_an_admitter_whose_chain_is_full_does_not_lengthen_anybodys():
    world = World(seed=7)
    machines = [world.machine(f"n{number}") for number in range(CHAIN_LENGTH_MAX)]
    machines[0].start()
    for machine, by in zip(machines[1:], machines, strict=False):
        machine.start(token=by.invite(admit=True, lifetime=LIFE))
        world.run_until(lambda m=machine: m.disk.identity is not None, within=3.0)
    world.run_until(lambda: whole(*machines), within=5.0)
    assert len(machines[-1].engine.identity.chain) == CHAIN_LENGTH_MAX

    world.run_for(5 * LIFE)

    for machine in machines[1:]:
        assert len(machine.of("credential-renewed")) >= 5
        assert len(machine.engine.identity.chain) == 2, "all by the one that lasts"


# Too late, and back


def test_whoever_nobody_can_renew_is_told_and_renewed_once_somebody_can():
    world, founder, node = mesh(8)
    founder.power_off()
    world.run_for(LIFE + 1)

    assert len(node.of("credential-expiring")) == 1
    (expired,) = node.of("credential-expired")
    assert "no member that may admit is alive" in expired.message
    assert "start a member that may admit" in expired.message
    assert node.engine.renewal.code == "credential-expired"

    founder.start()
    world.run_until(lambda: node.of("credential-renewed"), within=2 * LIFE)
    assert node.engine.renewal.code is None
    assert whole(founder, node)


def test_whoever_is_there_and_may_not_grant_it_is_named():
    world, founder, helper, node = mesh(18, helpers=["helper"])
    late = world.machine("late")
    late.start(token=founder.invite(key="late", lifetime=LIFE, tags=("db",)))
    world.run_until(lambda: whole(founder, helper, node, late), within=3.0)
    founder.power_off()
    world.run_for(LIFE + 1)

    (expired,) = late.of("credential-expired")
    assert "what helper may grant is less than it, or ends no later" in expired.message
    assert not node.of("credential-expired"), "it has no tags, and the helper may renew it"


def test_whoever_was_off_when_it_expired_is_renewed_when_it_is_back():
    world, founder, node = mesh(9)
    node.power_off()
    world.run_for(2 * LIFE)

    node.start()
    world.run_until(lambda: whole(founder, node), within=15.0)
    world.run_until(lambda: node.of("credential-renewed"), within=10.0)
    assert not node.of("credential-expired"), "there was nothing to be told"


def off_for_too_long(seed, **grants):
    """Return a mesh whose node has been off until its grace was over, and has started again."""
    world, founder, node = mesh(seed, **grants)
    node.power_off()
    for machine in (founder, node):
        machine.clock_offset = GRACE + 2.5 * 3600
    node.start()
    world.run_until(lambda: whole(founder, node), within=20.0)
    return world, founder, node


def test_a_node_that_was_off_for_too_long_is_a_member_without_rights_and_told_so():
    world, founder, node = off_for_too_long(10, relay=True)
    world.run_for(60.0)

    (told,) = node.of("credential-too-late")
    assert "meshd --token-file" in told.message
    assert node.engine.renewal.phase is Phase.LATE
    assert not node.of("credential-renewed")
    assert founder.ping(node.ipv4), "tunnels work"
    standing = founder.engine.ledger.standing(node.node)
    assert standing.record.relay
    assert not standing.relays(founder.wall)


def test_it_rejoins_by_a_token_as_the_same_node():
    world, founder, node = off_for_too_long(20, relay=True)
    before, name, address = node.engine.own_credential, founder.engine.name_of(node.node), node.ipv4
    node.kill()

    node.start(token=founder.invite(key="again", relay=True, tags=("new",), lifetime=LIFE))

    world.run_until(lambda: as_seen_by(founder, node).expires_at > founder.wall, within=5.0)
    after = as_seen_by(founder, node)
    assert (after.subject, after.name, after.admitted_at) == (
        before.subject,
        before.name,
        before.admitted_at,
    )
    assert after.tags == ("new",), "what it may is what the token says"
    assert founder.engine.ledger.standing(node.node).relays(founder.wall)
    assert (founder.engine.name_of(node.node), node.ipv4) == (name, address)
    assert node.disk.identity.chain == node.engine.identity.chain
    assert node.engine.renewal.code is None
    world.run_until(lambda: whole(founder, node), within=15.0)
    world.run_until(lambda: node.of("credential-renewed"), within=LIFE)


def test_company_does_not_keep_a_node_from_showing_its_token():
    """Its seed is off at first, and another member, that may not admit, is there."""
    world, founder, node = mesh(24)
    other = world.machine("other")
    other.start(token=founder.invite(key="other"))
    world.run_until(lambda: whole(founder, other, node), within=3.0)
    token = founder.invite(key="again", tags=("new",), expires_in=2 * GRACE)
    node.power_off()
    founder.power_off()
    for machine in (founder, other, node):
        machine.clock_offset = GRACE + 2.5 * 3600
    node.start(token=token)
    world.run_until(lambda: node.state_of(other) is MemberState.ALIVE, within=3.0)
    world.run_for(2.0)

    founder.start()

    world.run_until(lambda: node.engine.own_credential.tags == ("new",), within=12.0)


def test_a_seed_that_is_in_company_is_shown_the_token_all_the_same():
    world, founder, node = mesh(25)
    node.power_off()
    for machine in (founder, node):
        machine.clock_offset = GRACE + 2.5 * 3600
    name = "founder.example.org"
    node.start(token=founder.invite(seeds=[f"{name}:51820"], key="again", tags=("new",)))
    world.run_until(lambda: whole(founder, node), within=15.0)

    world.names[name] = tuple(map(str, founder.addresses))  # DNS comes up after the tunnels

    world.run_until(lambda: node.engine.own_credential.tags == ("new",), within=5.0)


def test_a_token_is_not_spent_where_none_is_needed():
    world, founder, node = mesh(21)
    node.kill()
    token = founder.invite(key="spare")
    chain = node.disk.identity.chain

    node.start(token=token)
    world.run_until(lambda: whole(founder, node), within=15.0)
    world.run_for(5.0)

    assert node.engine.identity.chain == chain
    assert not founder.engine.ledger.invite(token.invite_key.id).winners


def test_an_old_token_in_a_configuration_keeps_nobody_out():
    """All were off and have other addresses since; the name of the seed follows late."""
    world = World(seed=26)
    founder, node = world.machine("founder"), world.machine("node")
    name = "founder.example.org"
    world.names[name] = tuple(map(str, founder.addresses))
    founder.start()
    token = founder.invite(seeds=[f"{name}:51820"], lifetime=365 * 86400)
    node.start(token=token)
    world.run_until(lambda: whole(founder, node), within=3.0)
    for machine in (founder, node):
        machine.power_off()
        machine.clock_offset = RETRY_LIFETIME + 3600.0
    founder.renumber("198.51.100.7")
    node.renumber("198.51.100.8")

    node.start(token=token)
    world.run_for(18.0)  # the token's turn comes at 20 s
    founder.start()
    world.names[name] = tuple(map(str, founder.addresses))

    world.run_until(lambda: whole(founder, node), within=30.0)
    assert "expired" in node.of(events.RefusedByMesh)[0].text


def test_the_token_it_once_came_in_by_does_not_bring_it_back():
    world = World(seed=22)
    founder, node = world.machine("founder"), world.machine("node")
    founder.start()
    token = founder.invite(lifetime=LIFE)
    node.start(token=token)
    world.run_until(lambda: whole(founder, node), within=3.0)
    node.power_off()
    for machine in (founder, node):
        machine.clock_offset = GRACE + 2.5 * 3600

    node.start(token=token)
    world.run_until(lambda: whole(founder, node), within=15.0)
    world.run_for(30.0)

    assert as_seen_by(founder, node).expires_at < founder.wall
    (refusal,) = [each for each in node.of(events.RefusedByMesh) if each.final]
    assert "expired" in refusal.text
    assert node.engine.renewal.code == "credential-too-late"


def test_who_lost_its_invite_to_another_comes_back_by_a_token_of_its_own():
    """Two halves of a mesh admit two nodes by one token; the later one is out when they meet."""
    world, founder, helper = mesh(23, admit=True)
    first, second = world.machine("first"), world.machine("second")
    token = founder.invite(key="twice", seeds=[founder, helper])
    world.underlay.island = frozenset({founder.name, first.name})
    first.start(token=token)
    world.run_until(lambda: first.disk.identity is not None, within=15.0)
    world.run_for(2.0)
    second.start(token=token)
    world.run_until(lambda: second.disk.identity is not None, within=15.0)
    world.underlay.island = frozenset()
    world.run_until(lambda: whole(founder, helper, first), within=120.0)
    world.run_until(lambda: not founder.engine.ledger.admitted(second.node), within=30.0)
    second.kill()

    second.start(token=founder.invite(key="own"))

    world.run_until(lambda: whole(founder, helper, first, second), within=30.0)
    assert founder.engine.ledger.admitted(second.node)


# Nobody's invention


def forged(machine, issuer, **change):
    """Return the chain to a machine's present credential, but for some changes, by an issuer."""
    engine = machine.engine
    wall = int(machine.wall)
    credential = replace(
        engine.own_credential,
        issuer=issuer.node,
        **({"issued_at": wall, "expires_at": wall + LIFE} | change),
    )
    through = issuer.engine.identity.chain
    return (*through, issue(credential, issuer.disk.node_key, engine.identity.mesh))


@pytest.mark.parametrize(
    "change",
    [
        {"tags": ("db", "root")},
        {"routes": (IPv4Network("0.0.0.0/0"),)},
        {"admit": True},
        {"relay": True},
        {"name": "founder"},
        {"admitted_at": 0},
        {"expires_at": 0},
        {"tags": ()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_not_even_an_admitter_changes_what_a_member_is_by_a_renewal(change):
    world, founder, node = mesh(11, tags=("db",))
    before = node.engine.identity
    founder.engine.renewal._judge_untrusted = lambda *_: None  # the honest one keeps silent
    request = asked(world, node, within=LIFE)
    chain = forged(node, founder, **change)
    verdict = encode_admission_verdict(AdmissionVerdict(request.reference, chain))

    tell(node, founder, mark(Handover.RENEWAL_VERDICT, verdict))

    assert node.engine.identity == before
    assert node.engine.bad_packets["renewal that is none"] == 1


def test_a_renewal_through_a_revoked_member_is_not_taken():
    """Whoever is asked has not heard yet that its own issuer is out, and all let in by it."""
    world, founder, helper, node = mesh(19, helpers=["helper"])
    founder.engine.renewal._judge_untrusted = lambda *_: None
    request = asked(world, node, within=LIFE)
    assert request.issuer == founder.node
    in_hand = replace(
        founder.engine.own_credential, issuer=helper.node, tags=(), routes=(), relay=False
    )
    helpers = helper.engine.identity.chain
    through = (*helpers, issue(in_hand, helper.disk.node_key, world.mesh))
    renewed = replace(
        node.engine.own_credential,
        issuer=founder.node,
        issued_at=int(node.wall),
        expires_at=int(node.wall) + LIFE,
    )
    chain = (*through, issue(renewed, founder.disk.node_key, world.mesh))
    against = Revocation(helper.node, world.mesh, cascade=True, revoked_at=int(world.wall))
    node.learn(FactKind.REVOCATION, sign_revocation(against, world.mesh_key, world.mesh))
    before = node.engine.identity
    verdict = encode_admission_verdict(AdmissionVerdict(request.reference, chain))

    tell(node, founder, mark(Handover.RENEWAL_VERDICT, verdict))

    assert node.engine.identity == before
    assert node.engine.bad_packets["renewal through a revoked member"] == 1


def test_a_renewal_counts_only_from_the_member_that_was_asked_and_only_once():
    world, founder, mallory, node = mesh(12, helpers=["mallory"])
    for machine in (founder, mallory):
        machine.engine.renewal._judge_untrusted = lambda *_: None
    request = asked(world, node, within=LIFE)
    assert request.issuer == founder.node
    before = node.engine.identity
    good = forged(node, founder)
    right = mark(
        Handover.RENEWAL_VERDICT,
        encode_admission_verdict(AdmissionVerdict(request.reference, good)),
    )
    wrong = mark(
        Handover.RENEWAL_VERDICT, encode_admission_verdict(AdmissionVerdict(b"12345678", good))
    )

    tell(node, mallory, right)
    tell(node, founder, wrong)
    assert node.engine.identity == before
    assert node.engine.bad_packets["renewal that was not asked for"] == 2

    tell(node, founder, right)
    assert node.engine.identity.chain == good
    tell(node, founder, right)
    assert node.engine.bad_packets["renewal that was not asked for"] == 3


def test_a_member_that_asks_without_end_gets_one_signature_a_second():
    world, founder, node = mesh(13)
    request = mark(Handover.RENEWAL_REQUEST, pack({1: b"12345678"}))

    for _ in range(100):
        tell(founder, node, request)
    assert founder.engine.bad_packets["renewals asked too often"] == 99

    world.run_for(1.0)
    tell(founder, node, request)
    assert founder.engine.bad_packets["renewals asked too often"] == 99
    assert len(founder.engine.renewal._answered) == 1


@pytest.mark.parametrize("noise", [b"", b"\x80", b"\xff" * 40, pack({1: b"short"}), pack([])])
@pytest.mark.parametrize("kind", [Handover.RENEWAL_REQUEST, Handover.RENEWAL_VERDICT])
def test_what_makes_no_sense_is_dropped_and_counted(kind, noise):
    world, founder, node = mesh(14)
    before = founder.engine.bad_packets.total()

    tell(founder, node, mark(kind, noise))

    assert founder.engine.bad_packets.total() == before + 1
    assert whole(founder, node)
    assert world.underlay.loss == 0.0


# Limits


def widened_record(machine, **fields):
    """Return a member's own record, saying more than its credential allows."""
    engine = machine.engine
    record, _ = open_record_untrusted(engine.presence.blob, engine.ledger.mesh, engine.ledger.cache)
    wide = replace(record, sequence=record.sequence + 1000, **fields)
    assert isinstance(wide, Record)
    return sign_record(wide, machine.disk.node_key, engine.identity.mesh)


@pytest.mark.parametrize(
    "prefix",
    [
        IPv4Network("10.2.0.0/16"),  # another
        IPv4Network("10.0.0.0/8"),  # a wider one
        IPv4Network("0.0.0.0/0"),
        IPv6Network("::/0"),
    ],
    ids=str,
)
def test_a_node_without_the_right_to_a_prefix_gets_it_into_nobodys_allowed_ips(prefix):
    """By gossip, by a fact of its own making, and by its own daemon: refused whole each time."""
    world, founder, node = mesh(15, routes=(ROUTE,))
    key = node.public_key
    record = as_seen_by(founder, node)
    blob = widened_record(node, routes=(ROUTE, prefix))
    held = founder.engine.ledger.standing(node.node).blob

    told = Message(MessageType.GOSSIP, 1, items=(Item(FactKind.RECORD, blob),))
    tell(founder, node, encode(told))
    with pytest.raises(BadPacket, match="routes not granted"):
        founder.engine.learn(FactKind.RECORD, blob, founder.now, founder.wall)
    node.kill()
    node.options["advertise"] = (ROUTE, prefix)
    node.start()
    world.run_until(lambda: whole(founder, node), within=15.0)
    world.run_for(10.0)

    assert founder.engine.bad_packets["record advertises routes not granted"] >= 1
    standing = founder.engine.ledger.standing(node.node)
    assert standing.blob != blob
    assert standing.routes(founder.wall) == (ROUTE,), "what it may, its own daemon does advertise"
    assert standing.credential == record
    assert open_record_untrusted(held, world.mesh, founder.engine.ledger.cache)
    own = {node.ipv4, node.ipv6}
    for allowed in (
        founder.engine.desired_state().device.peers[key].allowed_ips,
        founder.wireguard.observe().peers[key].allowed_ips,
    ):
        assert all(
            (network.num_addresses == 1 and network.network_address in own) or network == ROUTE
            for network in allowed
        )
        assert prefix not in allowed


def test_relaying_without_the_right_to_is_refused_whole():
    _, founder, node = mesh(16)
    blob = widened_record(node, relay=True)

    with pytest.raises(BadPacket, match="relays without the right"):
        founder.engine.learn(FactKind.RECORD, blob, founder.now, founder.wall)

    assert not founder.engine.ledger.standing(node.node).relays(founder.wall)


def test_a_chain_that_widens_is_refused_whole():
    """A member that may admit signs itself a better credential."""
    world, founder, node = mesh(17, admit=True)
    engine = node.engine
    better = replace(engine.own_credential, issuer=node.node, tags=("root",), relay=True)
    chain = (*engine.identity.chain, issue(better, node.disk.node_key, world.mesh))
    with pytest.raises(BadPacket, match="widens"):
        verify_chain_untrusted(chain, world.mesh, node.node, founder.engine.ledger.cache)
    blob = widened_record(node, chain=chain)

    with pytest.raises(BadPacket, match="widens"):
        founder.engine.learn(FactKind.RECORD, blob, founder.now, founder.wall)

    assert founder.state_of(node) is MemberState.ALIVE
    assert as_seen_by(founder, node).tags == ()
    assert not founder.of(events.RefusedByMesh)
