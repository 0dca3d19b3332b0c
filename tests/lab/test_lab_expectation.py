"""The reference model says what comes of it when NATs are played through, datagram by datagram.

Here is no reasoning about kinds: routers keep tables of mappings and of those that were sent to,
two members ping each other wherever they heard of each other, and datagrams take random times, so
that of two orders in which things can happen both do.
"""

import heapq
import itertools
from random import Random

import pytest

from lablib.expectation import Expected, expected
from lablib.nats import FORWARDED_PORT, KINDS, Dependence, Firewall, Kind, Nat

SEEDS = range(30)
ROUNDS = 6
PORT = FORWARDED_PORT
PUBLIC_OBSERVERS = (("observer 1", 1), ("observer 2", 1))


def dependent(dependence, remote):
    """The part of a remote endpoint that something depends on."""
    return (None, remote[0], remote)[dependence]


class Router:
    """One NAT or firewall, between the wire inside and the one its uplink is on."""

    def __init__(self, name, behaviour, above, rng):
        self.address = name
        self.above = above  # the router in front of it, None for the internet
        self.behaviour = behaviour
        self._rng = rng
        self._mapped = {}  # (inside, what the mapping depends on) to port
        self._inside = {}  # port to inside
        self._sent = set()  # (port, what the filter depends on)
        self._occupied = set()  # (port, remote) of strangers that were answered

    def out(self, inside, remote):
        """Translate a source; None where the datagram goes nowhere."""
        if isinstance(self.behaviour, Firewall):
            self._sent.add((inside, remote))
            return inside
        if not self.behaviour.passes_udp:
            return None
        key = (inside, dependent(self.behaviour.mapping, remote))
        port = self._mapped.get(key) or self._new_port(inside)
        if (port, remote) in self._occupied:
            key = (inside, remote)
            port = self._mapped.get(key) or self._rng.randrange(20_000, 60_000)
        self._mapped[key] = port
        self._inside[port] = inside
        self._sent.add((port, dependent(self.behaviour.filtering, remote)))
        return self.address, port

    def _new_port(self, inside):
        return inside[1] if self.behaviour.preserves_ports else self._rng.randrange(20_000, 60_000)

    def come_in(self, target, remote, host):
        """Translate a destination; None where a datagram is dropped."""
        if isinstance(self.behaviour, Firewall):
            return target if (target, remote) in self._sent else None
        if self.behaviour.forwards_port and target[1] == FORWARDED_PORT:
            return host
        if (target[1], dependent(self.behaviour.filtering, remote)) in self._sent:
            return self._inside[target[1]]
        if self.behaviour.answers_strangers:
            self._occupied.add((target[1], remote))
        return None


class World:
    """Two members, their routers, and the internet between."""

    def __init__(self, kinds, version, seed):
        self.rng = Random(seed)
        self.now = 0.0
        self.version = version
        self.routers = {}
        self.behind = {}  # member to the router it is behind
        for name, kind in zip("ab", kinds, strict=True):
            above = None
            if kind.carrier is not None:
                above = self.routers.get(kind.name) or self._router(kind.name, kind.carrier, None)
            if kind.router is None:
                self.behind[name] = None
            elif kind.shared and kinds[0] is kinds[1] and name == "b":
                self.behind[name] = self.behind["a"]
            else:
                self.behind[name] = self._router(f"r-{name}", kind.router, above)
        self._has = {
            name: (version == 6) == isinstance(kind.router, Firewall) or kind.router is None
            for name, kind in zip("ab", kinds, strict=True)
        }
        self.heard_of = {"a": [], "b": []}  # where the other may be
        self.asked = {"a": set(), "b": set()}
        self.proven = set()
        self._order = itertools.count()
        self._queue = []

    def _router(self, name, behaviour, above):
        self.routers[name] = made = Router(name, behaviour, above, self.rng)
        return made

    def direct(self):
        """Let both learn where they are seen, tell each other, and try."""
        if not all(self._has.values()):
            return False
        for name, other in (("a", "b"), ("b", "a")):
            seen = [self._up(name, observer)[0] for observer in PUBLIC_OBSERVERS]
            self.heard_of[other] = [(name, PORT), *filter(None, dict.fromkeys(seen))]
        for number in range(ROUNDS):
            for name in "ab":
                self._at(number * 10 + self.rng.random(), lambda name=name: self._ping_all(name))
        while self._queue:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        assert self.proven in (set(), {"a", "b"})
        return bool(self.proven)

    def _at(self, when, action):
        heapq.heappush(self._queue, (when, next(self._order), action))

    def _ping_all(self, name):
        for target in list(self.heard_of[name]):
            self.asked[name].add(target)
            self._send(name, target, "ping")

    def _send(self, name, target, what):
        """Have a datagram leave its member; each router on its way sees it a little later."""
        source, at = self._up(name, target)
        if source is not None:
            delay = self.rng.random()
            self._at(self.now + delay, lambda: self._arrive(source, target, at, what))

    def _up(self, name, target):
        """Return the source of a datagram at the wire where its target is, and which that is."""
        source, router = (name, PORT), self.behind[name]
        while router is not None and not self._on_wire(target[0], router):
            if target[0] == router.address:
                if not router.behaviour.hairpins:
                    return None, None
                return router.out(source, target), router
            source = router.out(source, target)
            if source is None:
                return None, None
            router = router.above
        return source, router

    def _on_wire(self, address, router):
        """Whether an address is on the wire behind a router."""
        if address in self.behind:
            mine = self.behind[address]
            return mine is router
        return address in self.routers and self.routers[address].above is router

    def _arrive(self, source, target, wire, what):
        """Have a datagram come down from a wire to a member."""
        while target[0] not in self.behind or self.behind[target[0]] is not wire:
            router = self._router_towards(target[0], wire)
            if router is None:
                return
            host = next(
                (n, PORT) for n, behind in self.behind.items() if self._below(behind, router)
            )
            target = router.come_in(target, source, host)
            if target is None:
                return
            wire = router
        self._receive(target[0], source, what)

    def _router_towards(self, address, wire):
        """Return the router on a wire that has an address, or whose site has it."""
        for router in self.routers.values():
            hairpin = router is wire and address == router.address
            firewalled = isinstance(router.behaviour, Firewall)
            site = firewalled and address in self.behind and self.behind[address] is router
            if hairpin or (router.above is wire and (address == router.address or site)):
                return router
        return None

    def _below(self, router, above):
        while router is not None and router is not above:
            router = router.above
        return router is above

    def _receive(self, name, source, what):
        if what == "ping":
            if source not in self.heard_of[name]:
                self.heard_of[name].append(source)
            self._send(name, source, "pong")
        elif source in self.asked[name]:
            self.proven.add(name)


def played(one, other):
    """All that comes of two kinds, over either IP version."""
    return {
        any(World((one, other), version, seed).direct() for version in (4, 6)) for seed in SEEDS
    }


PAIRS = list(itertools.combinations_with_replacement(KINDS.values(), 2))


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda kind: kind.name)
def test_the_model_says_what_comes_of_it(one, other):
    outcomes = {
        Expected.DIRECT: {True},
        Expected.RELAYED: {False},
        Expected.RELAYED_OVER_TCP: {False},
        Expected.EITHER_OVER_TCP: {False},  # it plays UDP only
        Expected.EITHER: {True, False},
    }
    assert played(one, other) == outcomes[expected(one, other)]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda kind: kind.name)
def test_it_does_not_matter_who_is_called_first(one, other):
    assert expected(one, other) is expected(other, one)


EVERY_NAT = [
    Kind(f"{mapping.short}-{filtering.short}-{preserves}", "", Nat(mapping, filtering, preserves))
    for mapping, filtering in itertools.product(Dependence, repeat=2)
    if filtering >= mapping
    for preserves in ([True, False] if mapping is Dependence.NOTHING else [False])
]


@pytest.mark.parametrize(
    ("one", "other"),
    list(itertools.combinations_with_replacement(EVERY_NAT, 2)),
    ids=lambda kind: kind.name,
)
def test_the_model_holds_for_every_nat_that_can_be_described(one, other):
    assert played(one, other) == {expected(one, other) is Expected.DIRECT}


def test_only_where_strangers_are_answered_is_it_a_matter_of_luck():
    uncertain = [pair for pair in PAIRS if expected(*pair) is Expected.EITHER]

    assert uncertain
    assert all("answers" in {kind.name for kind in pair} for pair in uncertain)


@pytest.mark.parametrize(
    ("said", "path", "allowed"),
    [
        (Expected.DIRECT, "direct", True),
        (Expected.DIRECT, "relayed", False),
        (Expected.RELAYED, "direct", False),
        (Expected.EITHER, "direct", True),
        (Expected.EITHER, "relayed", True),
        (Expected.EITHER, "relayed over TCP", False),
        (Expected.RELAYED_OVER_TCP, "relayed over TCP", True),
        (Expected.EITHER_OVER_TCP, "direct over TCP", True),
        (Expected.EITHER_OVER_TCP, "relayed over TCP", True),
        (Expected.EITHER_OVER_TCP, "direct", False),
        (Expected.RELAYED, "none", False),
    ],
)
def test_a_path_is_compared_with_what_was_expected(said, path, allowed):
    assert said.allows(path) == allowed
