"""A member that reaches for what a relay has, others' pairs and ports; or that plays one."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from adversary.mallory import TIME_TO_ACT, Village
from meshd.engine import events
from meshd.engine.handover import HANDOVERS_BURST_MAX, Handover
from meshd.keys import NodeId
from meshd.path.wire import Probe, ProbeSealer, ProbeType
from meshd.relay.allocations import REQUESTS_BURST_MAX
from meshd.relay.wire import Draining, Gone, Grant, Reason, Refused, Release, Request, encode
from meshd.wg.types import Endpoint

HERE = Endpoint(ip_address("192.0.2.66"), 4242)
ELSEWHERE = Endpoint(ip_address("198.51.100.7"), 4242)


class Relayed:
    """A village whose founder relays for the victim and the admitter, and what Mallory does."""

    def __init__(self, **grants):
        self.village = Village(seed=40, relays=["founder"], **grants)
        self.world = self.village.world
        self.relay = self.village.founder
        self.world.run_for(2.0)
        self.ask(self.village.victim, Request(self.village.admitter.node))
        assert self.pairs == [{self.village.victim.node, self.village.admitter.node}]

    def ask(self, member, message):
        """Have a member say something to the relay, as its own daemon would."""
        member.engine.relays._send(message, self.relay.node)
        member.engine.handle_timer(self.world.now, self.world.wall)
        member.drain()
        self.world.run_for(0.1)

    @property
    def table(self):
        return self.relay.engine.relays.allocations

    @property
    def pairs(self):
        return [set(each.pair) for each in self.table]

    @property
    def side(self):
        """The victim's side of the pair that it has."""
        return self.table.get(self.village.victim.node, self.village.admitter.node).side(
            self.village.victim.node
        )

    def say(self, kind, message, times=1):
        for _ in range(times):
            self.village.mallory.hand_over(self.relay, kind, encode(message))

    def hello(self, key, challenge=None, *, port=None, source=HERE, nonce=b"n" * 24):
        """Say hello, and return the pong as its sender can read it; None without one."""
        identity = self.relay.engine.identity
        sealer = ProbeSealer(key, identity.mesh, identity.bootstrap_key)
        datagram = sealer.seal(
            Probe(ProbeType.HELLO, b"12345678", challenge=challenge), self.relay.node, nonce
        )
        self.deliver(datagram, source, port)
        sent = self.relay.engine.relay_datagrams()
        if not sent:
            return None
        return sealer.open_probe_untrusted(sealer.open_sender_untrusted(sent[0].datagram))

    def deliver(self, datagram, source, port=None):
        self.relay.engine.receive_relay_datagram(
            datagram,
            source,
            self.side.port if port is None else port,
            self.relay.addresses[0],
            self.world.now,
            self.world.wall,
        )


@pytest.fixture
def relayed():
    return Relayed()


def test_a_relay_allots_nothing_for_one_who_is_no_member(relayed):
    before = relayed.pairs
    relayed.say(Handover.RELAY_REQUEST, Request(NodeId(bytes(range(32)))))
    relayed.world.run_for(TIME_TO_ACT)

    assert relayed.pairs == before


def test_a_member_asks_for_pairs_of_its_own_only(relayed):
    """Whom a request is from is told by the tunnel, so there is no saying it for others."""
    relayed.say(Handover.RELAY_REQUEST, Request(relayed.village.victim.node))
    relayed.world.run_for(TIME_TO_ACT)

    new = [pair for pair in relayed.pairs if relayed.village.bad.node in pair]
    assert new == [{relayed.village.bad.node, relayed.village.victim.node}]
    assert len(relayed.pairs) == 2


@pytest.mark.parametrize("other", ["bad", "founder"])
def test_a_pair_with_itself_or_with_the_relay_is_none(relayed, other):
    village = relayed.village
    with village.suffer(counted="relay request for no pair", at=(relayed.relay,)):
        relayed.say(Handover.RELAY_REQUEST, Request(getattr(village, other).node))
    assert len(relayed.pairs) == 1


def test_requests_without_end_are_cut_short_and_take_one_place(relayed):
    victim = relayed.village.victim.node
    with relayed.village.suffer(counted="too many handovers from one member", at=(relayed.relay,)):
        for _ in range(10):
            relayed.say(Handover.RELAY_REQUEST, Request(victim), times=HANDOVERS_BURST_MAX)
            relayed.world.run_for(1.0)

    assert len(relayed.pairs) == 2
    granted = relayed.relay.engine.relays.statistics()[0].granted
    assert granted < REQUESTS_BURST_MAX + 20 * 10
    assert relayed.relay.engine.relays.statistics()[0].refused > 0


def test_what_is_anothers_is_not_let_go_of(relayed):
    before = relayed.pairs
    for node in (relayed.village.victim.node, relayed.village.admitter.node):
        relayed.say(Handover.RELAY_RELEASE, Release(node))
    relayed.world.run_for(TIME_TO_ACT)

    assert relayed.pairs == before


def test_a_hello_for_anothers_port_binds_nothing_and_is_counted(relayed):
    strangers, bound = relayed.relay.engine.relays.strangers, relayed.side.binding

    assert relayed.hello(relayed.village.mallory.key) is None

    assert relayed.side.binding == bound
    assert relayed.relay.engine.relays.strangers == strangers + 1


def test_a_hello_repeated_from_another_address_moves_nobody(relayed):
    """Recorded on the way, and sent again from where its maker would like the ciphertext."""
    key = relayed.village.victim.disk.node_key
    challenge = relayed.hello(key, nonce=b"1" * 24).challenge
    assert relayed.hello(key, challenge, nonce=b"2" * 24).bound

    identity = relayed.relay.engine.identity
    sealer = ProbeSealer(key, identity.mesh, identity.bootstrap_key)
    for nonce in (b"1" * 24, b"2" * 24, b"3" * 24):  # the last one has never arrived
        probe = Probe(ProbeType.HELLO, b"12345678", challenge=challenge)
        relayed.deliver(sealer.seal(probe, relayed.relay.node, nonce), ELSEWHERE)

    assert relayed.side.binding.endpoint == HERE


def test_a_hello_from_inside_the_mesh_binds_nothing(relayed):
    inside, bound = Endpoint(relayed.village.victim.ipv4, 51820), relayed.side.binding
    relayed.hello(relayed.village.victim.disk.node_key, source=inside)

    assert relayed.side.binding == bound
    assert relayed.relay.engine.bad_packets["relay hello from an impossible address"] == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Handover.RELAY_GRANT, lambda other: Grant(other, 51900, 600)),
        (Handover.RELAY_REFUSED, lambda other: Refused(other, Reason.FULL)),
        (Handover.RELAY_GONE, Gone),
        (Handover.RELAY_DRAINING, lambda _: Draining(draining=True)),
    ],
)
def test_who_may_not_relay_is_not_heard_as_a_relay(relayed, kind, message):
    village = relayed.village
    said = encode(message(village.admitter.node))
    with village.suffer(counted="relaying by one that may not"):
        village.mallory.hand_over(village.victim, kind, said)
    assert village.bad.node not in village.victim.engine.relays.held(village.admitter.node)


def test_a_grant_of_a_relay_gone_bad_is_tried_and_used_only_once_proven():
    """It may offer what it likes: what is not proven end to end carries nothing."""
    relayed = Relayed(relay=True)
    village = relayed.village
    grant = Grant(village.admitter.node, 51999, 600, rtt=0.0)
    with village.suffer_some():
        village.mallory.hand_over(village.victim, Handover.RELAY_GRANT, encode(grant))
    changed = [
        notice
        for notice in village.victim.of("path-changed")
        if notice.details.get("relay") == "mallory"
    ]
    assert changed == []


def test_a_draining_word_of_one_relay_touches_no_other(relayed):
    relayed.say(Handover.RELAY_DRAINING, Draining(draining=True))
    relayed.world.run_for(TIME_TO_ACT)

    assert relayed.relay.engine.presence.relays
    assert not [e for e in relayed.relay.of(events.AllocationChanged) if e.allocation is None]
