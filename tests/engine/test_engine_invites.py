"""What becomes of invites: used twice, withdrawn; and who is told."""

from dataclasses import replace

import pytest

from engine.engine_world import World, all_ping, whole
from meshd.engine import events
from meshd.gossip.claim import MemberState
from meshd.trust.invite import open_invite_untrusted


def founded(seed):
    world = World(seed=seed)
    founder = world.machine("founder")
    founder.start()
    return world, founder


def contested(seed, *, uses=1):
    """Return a healed partition in which both sides have admitted by one invite."""
    world, founder = founded(seed)
    other = world.machine("other")
    other.start(token=founder.invite(admit=True))
    world.run_until(lambda: whole(founder, other), within=1.0)
    here, there = world.machine("here"), world.machine("there")
    token = founder.invite(key="contested", uses=uses)
    world.underlay.island = frozenset({"other", "there"})
    here.start(token=token)
    world.run_for(2.0)
    there.start(token=replace(token, seeds=(f"{other.addresses[0]}:51820",)))
    world.run_until(lambda: whole(founder, here) and whole(other, there), within=20.0)
    world.underlay.island = frozenset()
    return world, (founder, other, here), there


def told(machine, loser):
    return [notice for notice in machine.of("invite-lost") if notice.member == loser.node]


@pytest.mark.parametrize("seed", range(50, 56))
def test_the_loser_of_a_double_use_is_dropped_and_everybody_is_told(seed):
    world, members, loser = contested(seed)

    world.run_until(lambda: all(told(m, loser) for m in members), within=30.0)
    world.run_until(lambda: whole(*members), within=15.0)

    for machine in members:
        (notice,) = told(machine, loser)
        assert "had been used before by here" in notice.message
        assert "start it with a new token" in notice.message
        assert [node for node, _ in machine.engine.invites.losers()] == [loser.node]
        assert not machine.has_peer(loser)
    assert all_ping(*members)


@pytest.mark.parametrize("seed", range(50, 56))
def test_the_loser_of_a_double_use_learns_why_and_what_to_do(seed):
    world, (founder, _, winner), loser = contested(seed)

    def knows():
        asked = loser.engine.entry.refusal or ""
        own = loser.engine.ledger.standing(loser.node)
        return "had been used before by here" in asked + loser.engine.invites.own_loss(own)

    world.run_until(knows, within=60.0)

    said = (loser.engine.entry.refusal or "") + "".join(
        notice.message for notice in told(loser, loser)
    )
    assert "get a new one" in said
    assert founder.engine.ledger.admitted(winner.node)


def test_an_invite_with_enough_uses_puts_nobody_out():
    world, members, there = contested(60, uses=2)

    world.run_until(lambda: whole(*members, there), within=30.0)

    assert not told(members[0], there)


def test_a_withdrawn_invite_admits_nobody_at_any_member():
    world, founder = founded(61)
    other, late = world.machine("other"), world.machine("late")
    other.start(token=founder.invite(admit=True))
    world.run_until(lambda: whole(founder, other), within=1.0)
    token = founder.invite(key="regretted")
    invite = open_invite_untrusted(token.invite, token.mesh)

    state = founder.engine.invites.withdraw(invite.id, invite.uses, world.now, world.wall)
    founder.drain()
    world.run_until(
        lambda: other.engine.ledger.invite(invite.id).withdrawn_at is not None, within=1.0
    )
    late.start(token=replace(token, seeds=(f"{other.addresses[0]}:51820",)))
    world.run_until(lambda: late.engine is None, within=5.0)

    assert state.withdrawn_at is not None
    (refused,) = late.of(events.RefusedByMesh)
    assert "was withdrawn" in refused.text
    assert len(founder.of("invite-withdrawn")) == 1


def test_a_withdrawal_puts_nobody_out_who_came_before():
    world, founder = founded(62)
    guest = world.machine("guest")
    token = founder.invite(uses=0)
    guest.start(token=token)
    world.run_until(lambda: whole(founder, guest), within=1.0)
    invite = open_invite_untrusted(token.invite, token.mesh)

    world.run_for(2.0)
    founder.engine.invites.withdraw(invite.id, 0, world.now, world.wall)
    founder.drain()
    world.run_for(20.0)

    assert whole(founder, guest)
    assert founder.state_of(guest) is MemberState.ALIVE


def test_any_member_that_may_admit_can_withdraw_what_another_has_issued():
    world, founder = founded(63)
    other = world.machine("other")
    other.start(token=founder.invite(admit=True))
    world.run_until(lambda: whole(founder, other), within=1.0)
    token = founder.invite(key="open", uses=3)
    invite = open_invite_untrusted(token.invite, token.mesh)
    first = world.machine("first")
    first.start(token=token)
    world.run_until(lambda: whole(founder, other, first), within=5.0)

    other.engine.invites.withdraw(invite.id, 0, world.now, world.wall)  # it knows no limit
    other.drain()
    world.run_for(5.0)

    state = founder.engine.ledger.invite(invite.id)
    assert state.withdrawn_at is not None
    assert state.limit == 3
    assert whole(founder, other, first)
