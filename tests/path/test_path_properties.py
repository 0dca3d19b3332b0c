"""Two members, whatever NATs they are behind, whatever happens in whatever order.

While it happens: no endpoint is where none may be, and none is chosen that nothing was heard from.
Then all is healed, and what RFC 4787 allows must be: direct, or else relayed; one path for both.
"""

from random import Random

import pytest

from path.nats import BEHAVIOURS, meets
from path.test_path_relays import cut_direct, direct, pair_behind, relayed, same_path

EVENTS = 25
SEEDS = range(6)
MORE_SEEDS = range(100, 200)

KINDS = [
    {"mapping": mapping, "filtering": filtering, "preserves": preserves}
    for mapping, filtering in BEHAVIOURS
    for preserves in (False, True)
]


class History:
    """One history: a seed is one of them."""

    def __init__(self, seed):
        self.rng = Random(seed)
        kinds = self.rng.choice(KINDS), self.rng.choice(KINDS)
        self.internet, self.a, self.b = pair_behind(*kinds, seed=seed)
        self.streams = []
        self.told = []

    def happen(self):
        """Let something happen."""
        event = self.rng.choice(
            [
                self.rebind,
                self.cut,
                self.heal,
                self.lose,
                self.lose_relay,
                self.drain_relay,
                self.renumber,
                self.reroute,
                self.sleep,
                self.suspect,
                self.talk,
                self.fall_silent,
            ]
        )
        self.told.append((round(self.internet.now, 3), event.__name__))
        event()
        self.internet.run_for(self.rng.choice([0.1, 0.7, 3.0, 20.0]))

    def one(self):
        return self.rng.choice([self.a, self.b])

    def rebind(self):
        self.internet.nats[self.one().realm].rebind()

    def cut(self):
        cut_direct(self.internet, self.a, self.b)

    def heal(self):
        cut_direct(self.internet, self.a, self.b, cut=False)
        for relay in self.internet.relays:
            relay.cut = False
        self.internet.loss = 0.0

    def lose(self):
        self.internet.loss = 0.2

    def lose_relay(self):
        self.rng.choice(self.internet.relays).cut = True

    def drain_relay(self):
        self.internet.drain_relay(self.rng.choice(self.internet.relays))

    def renumber(self):
        node = self.one()
        node.move(f"192.168.1.{self.rng.randrange(3, 250)}")

    def reroute(self):
        node = self.one()
        node.agent.routes_changed(self.internet.now)
        node.drain()

    def sleep(self):
        node = self.one()
        node.cut = True
        self.internet.run_for(self.rng.choice([1.0, 40.0]))
        node.cut = False
        node.agent.resumed(self.internet.now)
        node.drain()

    def suspect(self):
        self.one().suspect_all()

    def talk(self):
        for ends in ((self.a, self.b), (self.b, self.a)):
            self.streams.append(self.internet.stream(*ends, rate=10.0))

    def fall_silent(self):
        for stream in self.streams:
            stream.ended = True
        self.streams = []

    def end_well(self):
        """Heal all, and have everybody looked after, as the gossip would."""
        self.heal()
        for node in self.internet.nodes:
            node.suspect_all()
        self.fall_silent()
        self.talk()


def check_choices(internet, node, other):
    for at, event in node.selections(other):
        heard = internet.heard(node, event.endpoint)
        assert event.reason == "peer roamed" or any(when < at + 1e-3 for when in heard), event


def check(seed):
    history = History(seed)
    internet, a, b = history.internet, history.a, history.b
    for _ in range(EVENTS):
        history.happen()
    history.end_well()
    expected = direct if meets(*(internet.nats[realm] for realm in "xy")) else relayed

    internet.run_until(
        lambda: expected(a, b) and same_path(a, b) and a.ready(b) and b.ready(a), within=400
    )
    began = internet.now
    internet.run_for(10)

    for node, other in ((a, b), (b, a)):
        check_choices(internet, node, other)
    for stream in history.streams:
        assert stream.lost(since=began, until=internet.now - 1) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_the_right_path_is_found_and_no_wrong_one_chosen(seed):
    check(seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_whatever_happens_at_length(seed):
    check(seed)
