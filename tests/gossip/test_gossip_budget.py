"""How much work one member may make us, and that nobody honest comes near it."""

from gossip.harness import Bench, alive, key
from meshd.gossip.budget import (
    STATEMENT_BYTES_MIN,
    TOO_MUCH,
    UNITS_BURST_MAX,
    UNITS_PER_SECOND_MAX,
    Budget,
    cost_of,
)
from meshd.gossip.events import BadPacketReceived
from meshd.gossip.sync import SUMMARIES_MAX, WINDOW_MAX
from meshd.gossip.wire import (
    BUCKETS_BYTES,
    DATAGRAM_BYTES_MAX,
    Message,
    MessageType,
    encode,
)
from meshd.trust.fact import FACT_BYTES_MAX

DIGEST = encode(Message(MessageType.DIGEST, 1, buckets=bytes(BUCKETS_BYTES)))
PING = encode(Message(MessageType.PING, 1))
WANT = encode(Message(MessageType.WANT, 1, ids=(bytes(8),) * WINDOW_MAX))


def test_a_datagram_costs_as_many_units_as_it_may_make_us_verify_or_send():
    longest = bytes([1, MessageType.GOSSIP]) + bytes(DATAGRAM_BYTES_MAX - 2)
    shortest = alive("a", incarnation=0).cost
    assert shortest >= STATEMENT_BYTES_MIN, "no statement is shorter"

    assert cost_of(longest) >= DATAGRAM_BYTES_MAX // shortest
    assert cost_of(DIGEST) >= SUMMARIES_MAX
    assert cost_of(WANT) >= WINDOW_MAX
    assert cost_of(PING) == 1
    assert [cost_of(junk) for junk in (b"", b"\x01", b"\x01\xff")] == [1, 1, 1]


def test_a_newcomer_to_ten_thousand_and_its_partner_stay_within_their_bursts():
    members = 10_000
    facts = members // (DATAGRAM_BYTES_MAX // (FACT_BYTES_MAX // 3)) + 1  # three to a datagram
    full = bytes([1, MessageType.FACTS]) + bytes(DATAGRAM_BYTES_MAX - 2)

    from_partner = facts * cost_of(full) + SUMMARIES_MAX * cost_of(full)
    from_newcomer = members / WINDOW_MAX * cost_of(WANT) + 10 * cost_of(DIGEST)

    assert max(from_partner, from_newcomer) <= UNITS_BURST_MAX


def test_each_has_a_budget_of_its_own_which_fills_up_again_and_ends_with_its_membership():
    budget = Budget()
    one, other = key("a").id, key("b").id
    for _ in range(UNITS_BURST_MAX):
        assert budget.take(one, PING, 0.0)

    assert not budget.take(one, PING, 0.0)
    assert budget.take(other, PING, 0.0)
    assert sum(budget.take(one, PING, 1.0) for _ in range(2 * UNITS_PER_SECOND_MAX)) == (
        UNITS_PER_SECOND_MAX
    )
    budget.forget(one)
    assert len(budget) == 1


def test_what_is_too_much_is_counted_and_neither_parsed_nor_answered():
    bench = Bench("a", "b")
    for _ in range(UNITS_BURST_MAX // cost_of(DIGEST)):
        assert bench.receive_bytes("a", DIGEST)
    assert not bench.seen(BadPacketReceived)

    junk = bytes(DATAGRAM_BYTES_MAX)
    while not bench.seen(BadPacketReceived):
        bench.receive_bytes("a", PING)
    assert not bench.receive_bytes("a", junk), "it is not even parsed"
    assert not bench.receive_bytes("a", DIGEST)
    assert bench.ask_bytes_over_stream("a", DIGEST) is None
    assert {event.reason for event in bench.seen(BadPacketReceived)} == {TOO_MUCH}
    assert bench.receive_bytes("b", PING), "others are heard"
