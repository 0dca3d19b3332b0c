"""Twenty nodes for a year, with credentials of thirty days: see `renewal_world`."""

from ipaddress import IPv4Network
from random import Random

import pytest

from engine.renewal_world import DAY, HOUR, RenewalWorld
from meshd.trust.credential import CHAIN_LENGTH_MAX
from meshd.trust.grammar import CLOCK_SKEW_MAX
from meshd.trust.renewal import GRACE

MONTH = 30 * DAY
ROUTE = IPv4Network("10.1.0.0/16")
EVERYTHING = {"tags": ("*",), "routes": (IPv4Network("0.0.0.0/0"),), "admit": True, "relay": True}
SOMETHING = {"tags": ("db",), "routes": (ROUTE,), "relay": True}


def mesh(seed, *, loss=0.2):
    """Return a world, its three admitters without end, and all others.

    root ──▶ second ──▶ third      without end
      └─▶ four more that may admit, and thirteen that may not, by whom it falls: for thirty days
    """
    rng = Random(f"mesh {seed}")
    world = RenewalWorld(seed=seed, loss=loss)

    def clock():
        return rng.uniform(-CLOCK_SKEW_MAX / 2, CLOCK_SKEW_MAX / 2)

    root = world.member("root", clock=clock(), **EVERYTHING)
    second = world.member("second", by=root, clock=clock(), **EVERYTHING)
    third = world.member("third", by=second, clock=clock(), **EVERYTHING)
    lasting = [root, second, third]
    helpers = [
        world.member(
            f"helper{number}",
            by=rng.choice(lasting),
            clock=clock(),
            lifetime=MONTH,
            admit=True,
            **SOMETHING,
        )
        for number in range(4)
    ]
    issuers = [each for each in [*lasting, *helpers] if len(each.identity.chain) < CHAIN_LENGTH_MAX]
    plain = [
        world.member(
            f"plain{number}",
            by=rng.choice(issuers),
            clock=clock(),
            lifetime=rng.choice([MONTH, MONTH - DAY]) if number % 2 else MONTH - HOUR,
            **SOMETHING,
        )
        for number in range(13)
    ]
    return world, lasting, [*helpers, *plain]


def those_who_lost_rights(world):
    """Return those there whose rights are denied by whoever's clock has gone furthest."""
    strictest = max(world.there(), key=lambda member: member.clock)
    return [other.name for other in world.there() if not strictest.has_rights_of(other)]


@pytest.mark.parametrize("seed", [1, 2])
def test_no_rights_are_lost_in_a_year_in_which_an_admitter_that_lasts_is_there_once_a_week(seed):
    """Admitters come and go, mostly none that lasts is there; all clocks are wrong.

    The others are away for days at a time; on that one day of the week all are there for an hour.
    """
    world, lasting, others = mesh(seed)
    rng = Random(f"year {seed}")
    assert len(world.members) == 20
    for day in range(365):
        for admitter in lasting:
            _place(admitter, there=False)
        if day % 7 == 6:
            for other in others:
                _place(other, there=True)
            _place(rng.choice(lasting), there=True)
            world.run_for(HOUR)
            assert not those_who_lost_rights(world)
        for other in others:
            if rng.random() < 0.2:
                _place(other, not other.there)
        for _ in range(4):
            world.run_for(6 * HOUR if day % 7 < 6 else 5.75 * HOUR)
            assert not those_who_lost_rights(world)

    renewals = {other.name: len(other.chains) - 1 for other in others}
    assert min(renewals.values()) >= 11, renewals
    assert not any(other.told("credential-expired") for other in others)
    for other in others:
        assert all(len(chain) <= CHAIN_LENGTH_MAX for chain in other.chains)
        assert other.own_credential.renewed_lifetime >= MONTH - DAY, "lives do not wear away"
    assert not any(member.bad_packets for member in world.members.values())


@pytest.mark.parametrize("alone", [0, 1, 2], ids=["root", "second", "third"])
def test_one_admitter_that_lasts_keeps_all_others(alone):
    world, lasting, others = mesh(4 + alone, loss=0.0)
    for admitter in lasting:
        _place(admitter, admitter is lasting[alone])
    for _ in range(120):
        world.run_for(DAY)
        assert not those_who_lost_rights(world)

    longest = max(len(other.identity.chain) for other in others)
    assert longest == alone + 2, "each was renewed by it, and no chain is longer than that takes"


def test_without_anybody_who_lasts_all_end_with_the_last_of_their_issuers():
    """The limit of it: members cannot keep one another alive without end."""
    world, lasting, others = mesh(8)
    for admitter in lasting:
        admitter.go()
    last_end = max(other.own_credential.expires_at for other in others)
    world.run_for(last_end - world.wall + CLOCK_SKEW_MAX)

    assert all(other.own_credential.expires_at <= last_end for other in others)
    assert all(other.told("credential-expiring") for other in others)
    assert all(len(other.told("credential-expired")) == 1 for other in others)

    # All that is needed is that one of them comes back within the grace.
    world.run_for(3 * DAY)
    lasting[0].come()
    world.run_for(HOUR)
    assert not those_who_lost_rights(world)


def test_who_was_off_for_too_long_is_told_so_and_not_renewed():
    world, _, others = mesh(9)
    late, just_in_time = others[5], others[6]
    end = max(each.own_credential.expires_at for each in (late, just_in_time))
    late.go()
    just_in_time.go()

    world.run_for(end - world.wall + GRACE - DAY)
    just_in_time.come()
    world.run_for(HOUR)
    assert just_in_time.told("credential-renewed")
    world.run_for(DAY + CLOCK_SKEW_MAX)
    late.come()
    world.run_for(10 * DAY)

    assert not late.told("credential-renewed")
    (notice,) = late.told("credential-too-late")
    assert "meshd --token-file" in notice.message
    assert world.members[late.node].ledger.admitted(late.node), "a member it is all the same"


def test_renewals_are_cheap():
    world, *_ = mesh(10, loss=0.0)
    world.run_for(100 * DAY)

    # A question and an answer for each of seventeen, every twenty-odd days.
    assert 17 * 2 * 4 <= world.datagrams <= 17 * 2 * 5


def _place(member, there):
    if there and not member.there:
        member.come()
    elif not there and member.there:
        member.go()
