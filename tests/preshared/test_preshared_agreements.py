"""Two ends come to use one key, and go on doing so whatever is lost."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.errors import BadPacket
from meshd.keys import NodeKey, PresharedKey
from meshd.preshared.agreements import (
    MESSAGES_BURST_MAX,
    KemWanted,
    KeyAgreed,
    KeyLost,
    RingChanged,
)
from meshd.preshared.keys import NO_KEY, Keyring, SharedKey
from meshd.preshared.pair import Pair
from meshd.preshared.wire import Answer, Confirm, Offer
from preshared.preshared_world import ONE_WAY, World

SOON = 30.0
ROTATION = 1000.0


def agreed_world(**config):
    world = World(**config)
    world.probe()
    assert world.run(SOON, until=lambda: world.agreed)
    world.run(5.0)
    return world


def key_of(end):
    return end.agreements.preshared_key(end.other.node)


def test_two_members_agree_soon_after_both_are_alive():
    world = World()
    world.probe()

    assert world.run(SOON, until=lambda: world.agreed)

    world.run(1.0)
    assert [end.count(KeyAgreed) for end in world.ends] == [1, 0]
    assert world.lower.bad == world.higher.bad == []


def test_it_takes_one_round_of_each_and_no_pong():
    """A path that cannot be probed is no hindrance."""
    world = World()

    assert world.run(SOON, until=lambda: world.agreed)
    assert (world.lower.kem.generated, world.higher.kem.encapsulated) == (1, 1)


def test_the_key_comes_into_effect_with_the_next_handshake():
    world = agreed_world()
    assert [key for _, key in world.handshakes] == [NO_KEY]

    world.run(130.0)

    assert world.handshakes[-1][1] == key_of(world.lower) != NO_KEY
    assert world.dead_longest == 0.0


def test_keys_are_replaced_after_their_time_and_tunnels_never_notice():
    world = agreed_world(rotation=ROTATION)
    before = key_of(world.lower)

    world.run(2 * ROTATION + SOON)

    assert world.lower.count(KeyAgreed) == 3
    assert world.agreed
    assert key_of(world.lower) != before
    assert world.dead_longest == 0.0
    assert all(end.count(KeyLost) == 0 for end in world.ends)


def test_a_key_depends_on_the_one_before():
    """Whoever learns all of one exchange still lacks what the pair had."""
    fresh, later = agreed_world(rotation=ROTATION), agreed_world(rotation=ROTATION)
    later.run(ROTATION)
    assert later.lower.count(KeyAgreed) == 2

    used = later.lower.agreements.ring(later.higher.node)
    assert used.held[1].key == key_of(fresh.lower)
    assert used.held[0].key != used.held[1].key


def test_a_restart_keeps_the_key():
    world = agreed_world()
    key = key_of(world.lower)

    for end in world.ends:
        end.restart()
    world.run(5.0)

    assert world.agreed
    assert key_of(world.lower) == key
    assert world.lower.count(KeyAgreed) == 1


def test_before_anything_is_heard_the_key_of_the_last_run_is_used():
    world = agreed_world()
    key = key_of(world.higher)

    world.higher.start()

    assert key_of(world.higher) == world.higher.kernel == key


@pytest.mark.parametrize("who", [0, 1], ids=["lower", "higher"])
@pytest.mark.parametrize("what", ["lost", "old"])
def test_an_end_that_has_lost_its_keys_gets_a_new_one(who, what):
    world = agreed_world(rotation=ROTATION)
    if what == "old":
        world.run(ROTATION)
    before = key_of(world.lower)

    world.ends[who].restart(what)
    assert world.lower.kernel == world.higher.kernel

    assert world.run(SOON, until=lambda: world.agreed and key_of(world.lower) != before)
    world.run(200.0)
    assert world.dead_longest == 0.0


@pytest.mark.parametrize("who", [0, 1], ids=["lower", "higher"])
def test_a_tunnel_that_died_of_different_keys_is_back_in_seconds(who):
    """The pong did not come at the restart, and the power was gone, so there is no session."""
    world = agreed_world()
    victim = world.ends[who]
    victim.disk = [Keyring()]
    victim.start()
    world.cut()

    assert world.run(15.0, until=lambda: world.open)
    assert world.dead_longest <= 10.0
    assert world.run(SOON, until=lambda: world.agreed)


@pytest.mark.parametrize("who", [0, 1], ids=["lower", "higher"])
def test_one_that_takes_no_part_any_more_has_tunnels_without_a_key(who):
    world = agreed_world()

    world.ends[who].restart(enabled=False)

    assert [end.kernel for end in world.ends] == [NO_KEY, NO_KEY]
    world.run(200.0)
    assert world.dead_longest == 0.0
    assert world.ends[1 - who].agreements.takes_no_part(world.ends[who].node)

    world.ends[who].restart()  # and may change its mind
    assert world.run(SOON, until=lambda: world.agreed)


def test_a_machine_without_the_mechanism_says_so_and_is_left_alone():
    world = World()
    world.higher.kem = None
    world.probe()

    world.run(SOON)

    assert not world.agreed
    assert world.lower.agreements.takes_no_part(world.higher.node)
    generated = world.lower.kem.generated
    world.run(600.0)
    assert world.lower.kem.generated == generated


def test_a_machine_that_has_lost_the_mechanism_gives_its_key_up():
    world = agreed_world()
    world.higher.start()
    world.run(1.0)
    world.higher.agreements.take_kem(None, world.wall)
    world.higher.drain()
    world.run(1.0)

    assert [end.kernel for end in world.ends] == [NO_KEY, NO_KEY]


def test_a_member_that_never_answers_is_asked_ever_more_rarely():
    world = World(fate=tuple)
    world.probe()

    world.run(3600.0)

    assert world.lower.kem.generated == 0  # it never came in step
    assert 5 <= world.lower.agreements._pairs[world.higher.node].failures <= 9


@pytest.mark.parametrize("lost", range(6))
def test_any_one_message_may_be_lost(lost):
    count = iter(range(10**6))
    world = World(fate=lambda: () if next(count) == lost else (ONE_WAY,))
    world.probe()

    assert world.run(SOON, until=lambda: world.agreed)
    assert world.dead_longest == 0.0


def test_what_is_said_twice_changes_nothing():
    world = World(fate=lambda: (ONE_WAY, 2 * ONE_WAY))
    world.probe()
    assert world.run(SOON, until=lambda: world.agreed)
    key = key_of(world.lower)

    world.run(60.0)

    assert world.agreed
    assert key_of(world.lower) == key
    assert not world.flying
    assert world.higher.kem.encapsulated == 1


def test_those_who_have_agreed_are_silent():
    world = agreed_world()
    sent = []
    world.fate = lambda: sent.append(1) or (ONE_WAY,)

    world.run(3600.0)

    assert not sent


def test_a_member_that_goes_leaves_nothing():
    world = agreed_world()
    lower, higher = world.ends

    lower.agreements.remove(higher.node)
    lower.drain()

    assert lower.events[-1] == RingChanged(higher.node, Keyring())
    assert lower.agreements.preshared_key(higher.node) == NO_KEY
    assert lower.agreements.get_timer() is None


def test_one_agreement_at_a_time_is_begun():
    """A mesh of a hundred that starts is no storm."""
    world = World()
    agreements = world.lower.agreements
    others = sorted(NodeKey(bytes([number]) * 32).id for number in range(50, 150))
    others = [node for node in others if node > world.lower.node]
    for node in others:
        agreements.add(node, world.now)
        agreements.alive(node, world.now, world.wall)
        agreements.heard(node, b"", world.now, world.wall)
    begun = []

    for _ in range(240):
        world.now += 0.25
        timer = agreements.get_timer()
        while timer is not None and timer.at <= world.now:
            agreements.handle_timer(timer.at, world.wall)
            while (event := agreements.next_event()) is not None:
                if isinstance(event, KemWanted):
                    agreements.take_kem(world.lower.kem, world.wall)
            begun += [
                node
                for message, node in agreements.datagrams_to_send()
                if isinstance(message, Confirm) and message.asks
            ]
            timer = agreements.get_timer()

    # None of them answers: each has three tries of seven seconds together.
    assert 3 * 60 / 7 - 9 <= len(begun) <= 3 * 60 / 7 + 3


def test_a_flood_of_talk_is_cut_off():
    world = agreed_world()
    state = Confirm((), (), asks=True)

    for _ in range(10 * MESSAGES_BURST_MAX):
        world.lower.receive(state)

    assert world.lower.bad.count("too much talk of pre-shared keys") >= 8 * MESSAGES_BURST_MAX


def test_offers_come_from_the_lower_and_answers_to_what_was_asked():
    world = agreed_world()
    offer = Offer(b"r" * 8, b"\1" * 1184, None)

    world.lower.receive(offer)
    world.lower.receive(Answer(b"r" * 8, b"\1" * 1088, (), ()))

    assert world.lower.bad == ["key offer from the wrong side", "key answer to no offer"]
    assert world.agreed


def test_a_liar_harms_its_own_pair_only_and_not_for_long():
    world = agreed_world()

    world.lower.receive(Confirm((b"x" * 8,), (), asks=False))

    assert world.lower.kernel == NO_KEY
    assert world.run(2.0, until=lambda: world.lower.kernel == world.higher.kernel != NO_KEY)


def test_a_list_that_is_none_is_a_bad_packet():
    world = agreed_world()

    for told in (b"x", b"x" * 17, b"x" * 24):
        with pytest.raises(BadPacket):
            world.lower.agreements.heard(world.higher.node, told, world.now, world.wall)
    assert world.agreed


def test_no_key_is_shown():
    world = agreed_world()
    ring = world.lower.agreements.ring(world.higher.node)

    shown = repr((ring, world.lower.events, ring.held[0]))

    assert ring.held[0].key.hex() not in shown
    assert repr(bytes(ring.held[0].key))[2:-1] not in shown
    assert "PresharedKey(…)" in shown


def test_an_offer_that_comes_again_gets_the_same_answer():
    """The first answer may be on its way: another key would not be the one that it brings."""
    world = World()
    world.run(1.0)
    world.higher.agreements.take_kem(world.higher.kem, world.wall)
    world.flying.clear()
    offer = Offer(b"r" * 8, b"\1" * 1184, None)

    world.higher.receive(offer)
    world.higher.receive(offer)

    first, second = (message for *_, message in world.flying)
    assert isinstance(first, Answer)
    assert first == second
    assert world.higher.kem.encapsulated == 1


def test_an_offer_that_starts_from_another_key_is_not_answered():
    world = agreed_world()
    sent = world.flying
    before = world.higher.agreements.ring(world.lower.node)

    world.higher.receive(Offer(b"r" * 8, b"\1" * 1184, b"another1"))

    assert [type(message) for *_, message in sent] == [Confirm]
    assert world.higher.agreements.ring(world.lower.node) == before


def test_an_offer_before_anything_was_heard_leaves_the_key_in_use():
    world = agreed_world()
    world.higher.start()
    world.higher.agreements.take_kem(world.higher.kem, world.wall)
    used = world.higher.agreements.ring(world.lower.node).used

    world.higher.receive(Offer(b"r" * 8, b"\1" * 1184, used.tag))

    ring = world.higher.agreements.ring(world.lower.node)
    assert ring.used == used
    assert len(ring.held) == 2


def test_news_that_is_old_is_put_right():
    """Two confirmations have overtaken each other."""
    world = agreed_world()

    world.lower.receive(Confirm((), world.lower.agreements._pairs[world.higher.node].tags))
    assert world.lower.kernel == NO_KEY

    world.run(1.0)
    assert world.lower.kernel == world.higher.kernel != NO_KEY


def test_both_ends_go_by_the_lower_ones_order():
    keys = [SharedKey(PresharedKey(bytes([number]) * 32), number) for number in (1, 2)]
    lower, higher = (
        Pair(Keyring(held), lower=lower, allowance=None)
        for held, lower in ((tuple(keys), True), (tuple(reversed(keys)), False))
    )

    lower.hear(higher.tags)
    higher.hear(lower.tags)
    lower.settle(1.0)
    higher.settle(1.0)

    assert lower.ring.used == higher.ring.used == keys[0]


happenings = st.one_of(
    st.tuples(st.just("wait"), st.floats(0.25, 200.0)),
    st.tuples(
        st.sampled_from(["restart", "reboot"]),
        st.integers(0, 1),
        st.sampled_from(["same", "lost", "old"]),
    ),
    st.tuples(st.just("probe")),
    st.tuples(st.just("cut")),
)


@given(
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    st.lists(happenings, max_size=12),
)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_both_use_one_key_in_the_end(seed, loss, story):
    chance = Random(seed)

    def fate():
        copies = chance.choices([1, 2], [9, 1])[0]
        return [
            chance.choice([ONE_WAY, 3 * ONE_WAY, 1.0])
            for _ in range(copies)
            if chance.random() >= loss
        ]

    world = World(seed=seed, fate=fate, rotation=ROTATION)
    for happening in story:
        match happening:
            case ("wait", seconds):
                world.run(seconds)
            case ("restart", who, what):
                world.ends[who].restart(what)
            case ("reboot", who, what):
                world.ends[who].restart(what)
                world.cut()
            case ("probe",):
                world.probe()
            case ("cut",):
                world.cut()
    # A reboot takes a session and the tunnel is back with the next handshake: never much later.
    assert world.dead_longest <= 12.0

    world.fate = lambda: (ONE_WAY,)
    world.dead_longest = 0.0
    assert world.run(3700.0, until=lambda: world.agreed), story
    world.run(400.0)
    assert world.agreed
    ring = world.lower.agreements.ring(world.higher.node)
    assert world.handshakes[-1][1] in {
        key.key for key in ring.held
    }  # it may have been replaced since
    assert world.dead_longest <= 12.0
