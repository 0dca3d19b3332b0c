"""Hellos: an address is bound by its member only, from there only, whatever is repeated."""

from __future__ import annotations

from ipaddress import ip_network
from random import Random

import pytest

from meshd.errors import BadPacket
from meshd.path.wire import ProbeType
from meshd.relay.hello import (
    CHALLENGE_LIFETIME,
    HELLOS_BURST_MAX,
    REPLAYS_REMEMBERED_MAX,
    Greeter,
)
from relay.members import (
    BOOTSTRAP_KEY,
    LOCAL,
    MESH,
    RELAY,
    A,
    B,
    C,
    endpoint,
    hello,
    opened,
    table,
)

HERE = endpoint("203.0.113.7", 40_001)
ELSEWHERE = endpoint("203.0.113.99", 40_001)
EXCLUDED = (ip_network("100.64.0.0/10"),)


class Port:
    """A relay with one pair, a and b, and its member's way of talking to it."""

    def __init__(self, *, seed=1):
        self.table = table()
        self.allocation = self.table.request(A.id, B.id, 0.0)
        self.side = self.allocation.side(A.id)
        self.now = 0.0
        self._nonces = Random(seed)
        self.restart(seed)

    def restart(self, seed):
        self.greeter = Greeter(
            RELAY, MESH, BOOTSTRAP_KEY, None, allocations=self.table, rng=Random(seed)
        )

    def receive(self, datagram, source=HERE, port=None, local=LOCAL):
        """Return whether it was let in."""
        port = self.side.port if port is None else port
        return self.greeter.receive_untrusted(datagram, source, port, local, EXCLUDED, self.now)

    def say(self, *, key=A, source=HERE, challenge=None, **options):
        """Say hello, and return the pong; None if there was none."""
        datagram = hello(key, challenge=challenge, nonce=self._nonces.randbytes(24))
        self.receive(datagram, source, **options)
        sent = self.greeter.datagrams_to_send()
        if not sent:
            return None
        (outgoing,) = sent
        assert outgoing.target == source
        assert outgoing.port == options.get("port", self.side.port)
        assert outgoing.source == options.get("local", LOCAL)
        assert len(outgoing.datagram) <= len(datagram)
        return opened(key, outgoing.datagram)

    def come(self, source=HERE, **options):
        """Say hello until the relay knows the address.  Return the last pong."""
        first = self.say(source=source, **options)
        return self.say(source=source, challenge=first.challenge, **options)

    @property
    def where(self):
        return None if self.side.binding is None else self.side.binding.endpoint


@pytest.fixture
def port():
    return Port()


def test_the_second_hello_binds_the_address_of_the_first(port):
    first = port.say()
    assert first.type is ProbeType.HELLO_PONG
    assert (first.observed, first.bound) == (HERE, False)
    assert port.where is None

    second = port.say(challenge=first.challenge)

    assert second.bound
    assert port.where == HERE
    assert port.side.binding.local == LOCAL


def test_a_hello_from_where_the_member_is_needs_no_challenge(port):
    port.come()

    assert port.say().bound


def test_a_member_that_has_moved_is_followed(port):
    port.come()

    moved = port.say(source=ELSEWHERE)
    assert not moved.bound
    assert port.where == HERE

    assert port.say(source=ELSEWHERE, challenge=moved.challenge).bound
    assert port.where == ELSEWHERE


def test_what_was_bound_before_a_restart_stays_and_needs_no_challenge(port):
    port.come()
    port.restart(seed=2)

    assert port.say().bound
    assert port.where == HERE


def test_a_hello_sent_again_from_elsewhere_moves_nothing(port):
    first = port.say()
    datagram = hello(A, challenge=first.challenge, nonce=b"r" * 24)
    assert port.receive(datagram)
    assert port.where == HERE
    port.greeter.datagrams_to_send()

    assert not port.receive(datagram, ELSEWHERE)

    assert port.where == HERE
    assert not port.greeter.datagrams_to_send()
    assert port.greeter.statistics().replayed == 1


def test_a_hello_sent_again_after_a_restart_moves_nothing_either(port):
    first = port.say()
    datagram = hello(A, challenge=first.challenge, nonce=b"r" * 24)
    port.receive(datagram)
    port.restart(seed=2)

    assert port.receive(datagram, ELSEWHERE)  # the guard has forgotten it

    assert port.where == HERE
    (pong,) = port.greeter.datagrams_to_send()
    assert not opened(A, pong.datagram).bound


def test_a_hello_sent_again_from_the_address_before_moves_nothing_once_its_challenge_is_old(port):
    first = port.say()
    recorded = hello(A, challenge=first.challenge, nonce=b"r" * 24)
    port.come(source=ELSEWHERE)
    port.now += 2 * CHALLENGE_LIFETIME

    port.receive(recorded, HERE)

    assert port.where == ELSEWHERE


def test_a_challenge_is_good_for_its_address_only(port):
    challenge = port.say().challenge

    assert not port.say(source=ELSEWHERE, challenge=challenge).bound
    assert not port.say(source=endpoint("203.0.113.7", 40_002), challenge=challenge).bound


def test_a_challenge_is_good_for_its_port_only(port):
    challenge = port.say().challenge
    other = port.table.request(A.id, C.id, 0.0).side(A.id)

    assert not port.say(challenge=challenge, port=other.port).bound
    assert other.binding is None


def test_a_hello_at_anothers_port_is_dropped_and_counted(port):
    theirs = port.allocation.side(B.id).port

    assert port.say(key=A, port=theirs) is None
    assert port.say(key=C) is None

    assert port.greeter.statistics().strangers == 2
    assert not any(side.binding for side in port.allocation.sides)


def test_a_hello_at_nobodys_port_is_dropped_and_counted(port):
    assert not port.receive(hello(A), port=51910)
    assert port.greeter.statistics().strangers == 1


@pytest.mark.parametrize("kind", [ProbeType.PING, ProbeType.PONG])
def test_a_probe_is_no_hello(port, kind):
    assert not port.receive(hello(A, kind=kind))
    assert not port.greeter.datagrams_to_send()


def test_a_probe_in_a_hellos_clothes_binds_nothing(port):
    ping = bytearray(hello(A, kind=ProbeType.PING))
    ping[4] = 10  # the type of the datagram is not sealed

    with pytest.raises(BadPacket, match="another type"):
        port.receive(bytes(ping))


def test_a_pong_is_not_answered(port):
    with pytest.raises(BadPacket, match="another type"):
        port.receive(hello(A, kind=ProbeType.HELLO_PONG))


@pytest.mark.parametrize("address", ["100.64.0.9", "0.0.0.0", "224.0.0.1", "169.254.1.1"])
def test_an_impossible_address_is_not_bound(port, address):
    with pytest.raises(BadPacket, match="impossible"):
        port.receive(hello(A), endpoint(address))


def test_a_member_that_comes_over_tcp_is_on_this_very_host(port):
    assert port.come(source=endpoint("127.109.0.5", 4242), local=endpoint("127.0.0.1").address)
    assert port.where == endpoint("127.109.0.5", 4242)


def test_hellos_without_end_are_cut_short_and_fill_nothing(port):
    nonces = Random(5)
    let_in = sum(
        port.receive(hello(A, nonce=nonces.randbytes(24))) for _ in range(HELLOS_BURST_MAX + 50)
    )

    assert let_in == HELLOS_BURST_MAX
    assert port.greeter.statistics().limited == 50
    assert len(port.greeter._replays) <= REPLAYS_REMEMBERED_MAX
    assert not port.table.take_changed(0.0, 0.0)[1:]


def test_garbage_is_a_bad_packet(port):
    for datagram in (b"mesh\x0a", b"mesh\x0a" + b"x" * 200, b"mesh\x0a" + b"x" * 1300):
        with pytest.raises(BadPacket):
            port.receive(datagram)
