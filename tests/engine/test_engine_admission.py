"""Getting in with a token: who is let in, by whom, as whom, and who is not."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from engine.engine_world import World, all_ping, whole
from meshd.engine import events
from meshd.gossip.claim import MemberState
from meshd.trust.fact import FactKind


def founded(seed):
    """Return a world with one running member that may admit."""
    world = World(seed=seed)
    founder = world.machine("founder")
    founder.start()
    return world, founder


def refusal_of(machine):
    (refusal,) = machine.of(events.RefusedByMesh)
    return refusal


def refused(machine):
    return machine.engine is None and refusal_of(machine).final


def uses_known_to(machine):
    return [fact for fact in machine.engine.ledger.facts() if fact.kind is FactKind.INVITE_USE]


# Let in


def test_a_token_admits_its_bearer():
    world, founder = founded(1)
    joiner = world.machine("joiner")

    joiner.start(token=founder.invite())

    world.run_until(lambda: whole(founder, joiner), within=1.0)
    assert all_ping(founder, joiner)
    assert not joiner.engine.own_credential.admit
    assert founder.engine.name_of(joiner.node) == "joiner"


def test_who_is_admitted_is_told_what_to_keep_on_disk():
    world, founder = founded(2)
    joiner = world.machine("joiner")
    joiner.start(token=founder.invite())
    world.run_until(lambda: joiner.disk.identity is not None, within=1.0)

    (admitted,) = joiner.of(events.Admitted)
    assert len(admitted.identity.chain) == 2
    assert admitted.identity.token is None
    assert admitted.identity.node_key == joiner.disk.node_key

    world.run_until(lambda: whole(founder, joiner), within=1.0)
    address = joiner.ipv4
    joiner.power_off()
    joiner.start()
    world.run_until(lambda: whole(founder, joiner), within=15.0)
    assert joiner.ipv4 == address


def test_nothing_is_kept_before_the_mesh_has_said_yes():
    world, founder = founded(3)
    token = founder.invite()
    founder.kill()
    joiner = world.machine("joiner")

    joiner.start(token=token)
    world.run_for(20.0)

    assert joiner.disk.identity is None
    assert not joiner.disk.facts
    assert joiner.ipv4 is None


def test_the_mesh_teaches_its_ipv4_prefix():
    world = World(seed=4)
    founder, by_token, by_secret = (world.machine(name) for name in ("founder", "t", "s"))
    prefix = IPv4Network("10.77.0.0/16")
    founder.start(prefix=prefix)

    by_token.start(token=founder.invite())
    by_secret.start(seeds=[founder])  # with the default prefix in its configuration

    machines = (founder, by_token, by_secret)
    world.run_until(
        lambda: whole(*machines) and all(machine.ipv4 in prefix for machine in machines),
        within=3.0,
    )
    assert by_secret.disk.identity.ipv4_prefix == prefix
    assert all_ping(*machines)
    (notice,) = by_secret.of("address-changed")
    assert "is not in the mesh's prefix 10.77.0.0/16" in notice.message


def test_a_pinned_address_is_the_bearers():
    world, founder = founded(5)
    joiner = world.machine("joiner")

    joiner.start(token=founder.invite(ipv4=IPv4Address("100.64.9.9"), name="db"))

    world.run_until(lambda: whole(founder, joiner), within=1.0)
    assert str(joiner.ipv4) == "100.64.9.9"
    assert founder.engine.name_of(joiner.node) == "db"
    assert founder.ping(joiner.ipv4)


def test_a_reusable_token_admits_many():
    world, founder = founded(6)
    token = founder.invite(uses=0)
    machines = [world.machine(f"worker{number}") for number in range(5)]

    for machine in machines:
        machine.start(token=token)

    world.run_until(lambda: whole(founder, *machines), within=3.0)
    assert not uses_known_to(founder)


def test_asking_again_and_again_spends_an_invite_once():
    world, founder = founded(7)
    world.underlay.loss = 0.6
    joiner = world.machine("joiner")

    joiner.start(token=founder.invite())

    world.run_until(lambda: joiner.disk.identity is not None, within=60.0)
    world.underlay.loss = 0.0
    world.run_until(lambda: whole(founder, joiner), within=15.0)
    assert len(uses_known_to(founder)) == 1


def test_a_member_may_show_a_token_whose_seed_is_another_member():
    world, founder = founded(8)
    other, joiner = world.machine("other"), world.machine("joiner")
    other.start(token=founder.invite(admit=True))
    world.run_until(lambda: whole(founder, other), within=1.0)

    joiner.start(token=founder.invite(seeds=[other], key="second"))

    world.run_until(lambda: whole(founder, other, joiner), within=2.0)
    assert len(joiner.disk.identity.chain) == 3, "admitted by the seed, two links from the root"


# Handed over


def test_a_seed_that_may_not_admit_asks_a_member_that_may():
    world, founder = founded(10)
    plain, joiner = world.machine("plain"), world.machine("joiner")
    plain.start(token=founder.invite())
    world.run_until(lambda: whole(founder, plain), within=1.0)

    joiner.start(token=founder.invite(seeds=[plain], key="second"))

    world.run_until(lambda: whole(founder, plain, joiner), within=2.0)
    assert joiner.engine.entry.seed == plain.node
    assert len(joiner.disk.identity.chain) == 2, "admitted by the founder itself"
    assert [notice.name for notice in founder.of("member-admitted")] == ["plain", "joiner"]


def test_a_refusal_comes_back_through_the_seed_as_well():
    world, founder = founded(11)
    plain, second = world.machine("plain"), world.machine("second")
    token = founder.invite()
    plain.start(token=token)
    world.run_until(lambda: whole(founder, plain), within=1.0)

    second.start(token=replace(token, seeds=("192.0.2.2:51820",)))

    world.run_until(lambda: refused(second), within=2.0)
    assert "has been used" in refusal_of(second).text


def test_without_a_member_that_may_admit_one_waits_for_it():
    world, founder = founded(12)
    plain, joiner = world.machine("plain"), world.machine("joiner")
    plain.start(token=founder.invite())
    world.run_until(lambda: whole(founder, plain), within=1.0)
    token = founder.invite(seeds=[plain], key="second")
    founder.power_off()
    world.run_until(lambda: plain.state_of(founder) is MemberState.DEAD, within=30.0)

    joiner.start(token=token)
    world.run_for(20.0)
    assert joiner.disk.identity is None
    assert not refusal_of(joiner).final
    assert "no right to admit" in joiner.engine.entry.refusal
    founder.start()

    world.run_until(lambda: whole(founder, plain, joiner), within=30.0)


# Refused


def test_a_single_use_token_shown_twice_is_refused_for_good():
    world, founder = founded(20)
    token = founder.invite()
    first, second = world.machine("first"), world.machine("second")
    first.start(token=token)
    world.run_until(lambda: whole(founder, first), within=1.0)

    second.start(token=token)

    world.run_until(lambda: refused(second), within=1.0)
    assert "has been used" in refusal_of(second).text
    world.run_for(5.0)
    assert founder.state_of(second) is None
    assert second.disk.identity is None


def test_an_expired_token_is_refused_for_good():
    world, founder = founded(21)
    token = founder.invite(expires_in=60)
    joiner = world.machine("joiner")
    world.run_for(61.0)

    joiner.start(token=token)

    world.run_until(lambda: refused(joiner), within=1.0)
    assert "expired" in refusal_of(joiner).text


def test_a_joiners_clock_does_not_matter():
    world, founder = founded(22)
    joiner = world.machine("joiner")
    joiner.clock_offset = -86_400.0 * 365

    joiner.start(token=founder.invite(expires_in=60))

    world.run_until(lambda: whole(founder, joiner), within=1.0)
    assert joiner.engine.entry.clock_is_off


def test_a_taken_name_is_refused_for_good():
    world, founder = founded(23)
    first = world.machine("web")
    first.start(token=founder.invite())
    world.run_until(lambda: whole(founder, first), within=1.0)
    second = world.machine("web")

    second.start(token=founder.invite(key="second"))

    world.run_until(lambda: refused(second), within=1.0)
    assert "'web' belongs to another member" in refusal_of(second).text


def test_a_token_of_another_mesh_gets_no_answer():
    world, founder = founded(24)
    elsewhere = World(seed=99)
    stranger = elsewhere.machine("stranger")
    stranger.start()
    joiner = world.machine("joiner")

    joiner.start(token=stranger.invite(seeds=[founder]))
    world.run_for(20.0)

    assert joiner.engine is not None, "it tries on"
    assert joiner.engine.entry.silent
    assert [notice.event for notice in joiner.of("no-answer")] == ["no-answer"]
    assert founder.engine.bad_packets.total() > 0
    assert founder.engine.others() == []


def test_an_invite_that_was_tampered_with_gets_no_answer():
    world, founder = founded(25)
    token = founder.invite()
    joiner = world.machine("joiner")

    joiner.start(token=replace(token, invite=token.invite[:-1] + b"\1"))
    world.run_for(3.0)

    assert joiner.disk.identity is None
    assert founder.engine.bad_packets.total() > 0


def test_an_invite_by_someone_who_may_not_invite_is_refused():
    world, founder = founded(26)
    plain, joiner = world.machine("plain"), world.machine("joiner")
    plain.start(token=founder.invite())
    world.run_until(lambda: whole(founder, plain), within=1.0)

    joiner.start(token=plain.invite(seeds=[founder]))

    world.run_until(lambda: refused(joiner), within=1.0)
    assert "may not admit" in refusal_of(joiner).text


# Races


@pytest.mark.parametrize("seed", [30, 31, 32])
def test_an_invite_used_on_both_sides_of_a_partition_has_one_winner(seed):
    world, founder = founded(seed)
    other = world.machine("other")
    other.start(token=founder.invite(admit=True))
    world.run_until(lambda: whole(founder, other), within=1.0)
    here, there = world.machine("here"), world.machine("there")
    token = founder.invite(key="contested")
    world.underlay.island = frozenset({"other", "there"})

    here.start(token=token)
    world.run_for(seed - 30.0)
    there.start(token=replace(token, seeds=(f"{other.addresses[0]}:51820",)))
    world.run_until(lambda: whole(founder, here) and whole(other, there), within=20.0)
    world.underlay.island = frozenset()

    def decided():
        members = {frozenset(node for node, _ in m.engine.others()) for m in (founder, other)}
        return len(frozenset.union(*members)) == 3 and founder.state_of(other) is MemberState.ALIVE

    world.run_until(decided, within=15.0)
    winner, loser = (here, there) if founder.engine.ledger.admitted(here.node) else (there, here)
    world.run_until(lambda: whole(founder, other, winner), within=15.0)
    for machine in (founder, other, winner):
        assert not machine.engine.ledger.admitted(loser.node)
        assert not machine.has_peer(loser)
    assert all_ping(founder, other, winner)
