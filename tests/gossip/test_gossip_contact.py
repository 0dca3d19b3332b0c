"""When the silent are pinged."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gossip.config import GossipConfig
from meshd.gossip.contact import contact_delay, retry_delay
from meshd.keys import NodeId

CONFIG = GossipConfig()
LOW, HIGH = NodeId(bytes(32)), NodeId(b"\xff" * 32)


class Middling(random.Random):
    """A generator without jitter: always in the middle."""

    def random(self):
        return 0.5


def delay(tries, silent_for=0.0, silent_members=1, first=CONFIG.dead_retry_min):
    return retry_delay(
        tries,
        first=first,
        silent_for=silent_for,
        silent_members=silent_members,
        config=CONFIG,
        rng=Middling(),
    )


def test_the_higher_id_gives_way():
    assert contact_delay(LOW, HIGH, CONFIG) == 0.0
    assert contact_delay(HIGH, LOW, CONFIG) == pytest.approx(0.15)


def test_the_higher_id_gives_way_for_longer_on_a_longer_path():
    assert contact_delay(LOW, HIGH, CONFIG, rtt=0.16) == 0.0
    # 1.5 round trips until the other knows that it is ready, half of one for its initiation.
    assert contact_delay(HIGH, LOW, CONFIG, rtt=0.16) >= 0.15 + 2 * 0.16


def test_a_dead_member_is_retried_with_growing_pauses():
    assert [delay(tries) for tries in range(5)] == [2.0, 4.0, 8.0, 10.0, 10.0]


def test_the_pauses_follow_how_long_it_has_been_silent():
    assert delay(99, silent_for=599) == 10.0
    assert delay(99, silent_for=601) == 60.0
    assert delay(99, silent_for=86_401) == 600.0
    assert delay(10**6, silent_for=10**9) == 600.0, "but never end"


def test_many_silent_members_share_ten_pings_a_second():
    assert delay(0, silent_members=500) == 50.0


@given(
    st.integers(0, 10**6),
    st.floats(0, 1e9),
    st.integers(0, 65_536),
    st.randoms(use_true_random=False),
)
def test_a_pause_is_never_nothing_and_never_for_ever(tries, silent_for, silent_members, rng):
    pause = retry_delay(
        tries,
        first=CONFIG.contact_retry_min,
        silent_for=silent_for,
        silent_members=silent_members,
        config=CONFIG,
        rng=rng,
    )
    assert 0.3 < pause < 2 * 6553.6
