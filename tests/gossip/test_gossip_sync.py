"""Anti-entropy between two indexes, with any datagram lost."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.gossip.config import GossipConfig
from meshd.gossip.index import Index, Turn, belief_digest, entry_id, is_belief_id, turn_of_id
from meshd.gossip.sync import PUSHED_MAX, WINDOW_MAX, Sync
from meshd.gossip.wire import CLAIM_ITEM, Message, MessageType, decode_untrusted, encode
from meshd.keys import NodeId, fingerprint

A, B = NodeId(b"a" * 32), NodeId(b"b" * 32)
CONFIG = GossipConfig()
FACT = 1


def digest(kind, key, version):
    if kind == CLAIM_ITEM:
        return belief_digest(NodeId(key), version)
    return fingerprint(bytes([kind]), key, version.to_bytes(8, "big"), size=8, person=b"t")


class Side:
    """One member: an index, and what it holds in it as plain (kind, key) -> version."""

    def __init__(self, node, held, seed=1):
        self.node = node
        self.held = {}
        self.index = Index()
        for (kind, key), version in held.items():
            self.take(kind, key, version)
        self.sync = Sync(self.index, config=CONFIG, rng=random.Random(seed), now=0.0)

    def take(self, kind, key, version):
        if version > self.held.get((kind, key), -1):
            self.held[kind, key] = version
            self.index.put(kind, key, version, digest(kind, key, version))


class Pair:
    """Two sides and a wire.  Only the first one initiates."""

    def __init__(self, first, second, *, loses=lambda: False):
        self.first, self.second = Side(A, first), Side(B, second)
        self.loses = loses
        self.now = 0.0
        self.datagrams = 0
        self.sent = []

    def run(self, *, until):
        """Let the initiator work for so many seconds, or until both hold the same."""
        while self.first.sync.at <= until and self.first.held != self.second.held:
            self.now = max(self.now, self.first.sync.at)
            self.deliver(self.first.sync.handle_timer((B,), self.now))
        return self.first.held == self.second.held

    def deliver(self, outgoing):
        for _, message in outgoing:
            self.sent.append(message)
            if self.lost(message):
                continue
            if message.type is MessageType.DIGEST:
                for summary in self.second.sync.answer_digest(message):
                    if not self.lost(summary):
                        asks, pushed = self.first.sync.handle_summary(B, summary, self.now)
                        self.push(pushed)
                        self.deliver(asks)
            else:
                entries = self.second.sync.answer_want(message)
                arrived = [e for e in entries if not self.loses()]
                for entry in arrived:
                    self.first.take(entry.kind, entry.key, entry.summary.version)
                ids = [entry.summary.id for entry in arrived]
                self.deliver(self.first.sync.handle_facts(B, ids, self.now))

    def push(self, entries):
        assert len(entries) <= PUSHED_MAX
        for entry in entries:
            if not self.loses():
                self.second.take(entry.kind, entry.key, entry.summary.version)

    def lost(self, message):
        self.datagrams += 1
        assert decode_untrusted(encode(message)) == message
        return self.loses()


keys = st.integers(0, 60).map(lambda number: number.to_bytes(32, "big"))
holdings = st.dictionaries(
    st.tuples(st.sampled_from([CLAIM_ITEM, FACT, 2]), keys), st.integers(0, 5), max_size=80
)


@settings(max_examples=50, deadline=None)
@given(holdings, holdings)
def test_two_members_end_up_holding_the_same(first, second):
    assert Pair(first, second).run(until=60.0)


@settings(max_examples=50, deadline=None)
@given(holdings, holdings, st.integers(0, 2**32))
def test_losing_every_second_datagram_only_takes_longer(first, second, seed):
    rng = random.Random(seed)
    assert Pair(first, second, loses=lambda: rng.random() < 0.5).run(until=600.0)


def holding(count, kinds=(CLAIM_ITEM, FACT)):
    return {(kind, n.to_bytes(32, "big")): 1 for n in range(count) for kind in kinds}


def test_equal_members_exchange_two_short_datagrams():
    pair = Pair(holding(100), holding(100))
    pair.deliver(pair.first.sync.handle_timer((B,), 2.0))
    assert pair.datagrams == 2
    assert pair.first.sync.settled


def test_a_newcomer_fetches_all_in_one_exchange():
    pair = Pair({}, holding(20))
    pair.deliver(pair.first.sync.handle_timer((B,), 2.0))
    assert pair.first.held == pair.second.held
    # One digest; one summary of 40 entries; two windows.
    assert [message.type for message in pair.sent] == [
        MessageType.DIGEST,
        MessageType.WANT,
        MessageType.WANT,
    ]


def test_facts_are_fetched_before_beliefs():
    pair = Pair({}, holding(20))
    pair.deliver(pair.first.sync.handle_timer((B,), 2.0))
    asked = [id_ for message in pair.sent for id_ in message.ids]
    assert [is_belief_id(id_) for id_ in asked] == [False] * 20 + [True] * 20


def test_what_travels_follows_the_difference():
    ours = holding(1000)
    theirs = dict(ours)
    theirs[FACT, bytes(31) + b"\x07"] = 2
    pair = Pair(ours, theirs)
    pair.deliver(pair.first.sync.handle_timer((B,), 2.0))
    assert pair.first.held == pair.second.held
    summary = pair.second.sync.answer_digest(
        Message(MessageType.DIGEST, 1, buckets=Pair(ours, {}).first.index.buckets())
    )
    assert len(summary) == 1
    assert len(summary[0].summary.entries) < 80  # one bucket of 64
    assert sum(len(message.ids) for message in pair.sent) == 1


def test_no_more_is_asked_for_at_once_than_a_window():
    pair = Pair({}, holding(200))
    pair.deliver(pair.first.sync.handle_timer((B,), 2.0))
    assert max(len(message.ids) for message in pair.sent) == WINDOW_MAX


def test_a_partner_that_does_not_answer_is_given_up_for_another():
    side = Side(A, holding(3))
    asked = []
    now = 2.0
    while now < 60.0:
        asked += [out.target for out in side.sync.handle_timer((B, A), now)]
        now = side.sync.at
    assert set(asked) == {A, B}


def test_pauses_grow_while_nothing_comes_of_it_and_a_quiet_mesh_is_quiet():
    pair = Pair(holding(10), holding(10))
    starts = []
    while pair.first.sync.at < 120.0:
        pair.now = pair.first.sync.at
        starts.append(pair.now)
        pair.deliver(pair.first.sync.handle_timer((B,), pair.now))
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert pauses[0] < 3.0, "a second opinion soon"
    assert all(7.5 <= pause <= 12.5 for pause in pauses[1:])


def test_a_wish_is_granted_at_once_but_not_faster_than_the_retry():
    pair = Pair(holding(3), holding(3))
    pair.first.sync.wish(B, 0.5)
    assert pair.first.sync.at == 0.5
    pair.deliver(pair.first.sync.handle_timer((B,), 0.5))
    pair.first.sync.wish(B, 0.6)
    assert pair.first.sync.at == pytest.approx(0.75)


def test_a_wish_is_moot_once_somebody_is_found_to_hold_the_same():
    side = Side(A, holding(3))
    side.sync.wish(A, 0.5)
    side.sync.wish(B, 0.5)
    (digest,) = side.sync.handle_timer((A, B), 0.5)
    (summary,) = Side(B, holding(3)).sync.answer_digest(digest.message)
    side.sync.handle_summary(digest.target, summary, 0.6)
    assert side.sync.at >= 0.6 + 0.75 * CONFIG.digest_settle


# The index


@given(
    st.lists(
        st.tuples(st.sampled_from([CLAIM_ITEM, FACT]), keys, st.none() | st.integers(0, 3)),
        max_size=60,
    )
)
def test_the_sums_kept_step_by_step_are_those_of_what_is_held(steps):
    index, held = Index(), {}
    for kind, key, version in steps:
        if version is None:
            index.remove(kind, key)
            held.pop((kind, key), None)
        else:
            index.put(kind, key, version, digest(kind, key, version))
            held[kind, key] = version
    rebuilt = Side(A, held).index
    assert index.buckets() == rebuilt.buckets()
    assert index.differing(rebuilt.buckets()) == 0
    assert len(index) == len(held)
    assert {(entry.kind, entry.key) for entry in index} == set(held)


def test_a_difference_shows_in_its_bucket_only():
    index, other = Index(), Index()
    index.put(FACT, A, 1, b"12345678")
    bucket = entry_id(FACT, A)[0] >> 2
    assert index.differing(other.buckets()) == 1 << (63 - bucket)
    (entry,) = index.select(1 << (63 - bucket), bytes(8), b"\xff" * 8)
    assert entry.key == A
    assert index.select(~(1 << (63 - bucket)), bytes(8), b"\xff" * 8) == []


REVOCATION = 2


@pytest.mark.parametrize("members", [10, 500], ids=["one datagram", "many datagrams"])
def test_revocations_are_fetched_before_anything_else(members):
    theirs = holding(members) | {(REVOCATION, n.to_bytes(32, "big")): 0 for n in range(40)}
    pair = Pair({}, theirs)
    pair.deliver(pair.first.sync.handle_timer((B,), 2.0))
    assert pair.first.held == theirs
    asked = [turn_of_id(id_) for message in pair.sent for id_ in message.ids]
    assert asked[:40] == [Turn.DECISIVE] * 40
    assert Turn.DECISIVE not in asked[40:]


def test_a_revocation_that_is_lost_is_asked_for_again_before_anything_else():
    theirs = holding(10) | {(REVOCATION, bytes(32)): 0}
    lost = iter([False, False, False, True])  # digest, summary, want, and what it asks for
    pair = Pair({}, theirs, loses=lambda: next(lost, False))
    assert pair.run(until=10.0)
    asked = [[turn_of_id(id_) for id_ in message.ids] for message in pair.sent if message.ids]
    assert asked[:2] == [[Turn.DECISIVE]] * 2


def test_who_lacks_a_revocation_gets_it_before_other_facts():
    pair = Pair(holding(40) | {(REVOCATION, bytes(32)): 0}, {})
    (_, digest_message), *_ = pair.first.sync.handle_timer((B,), 2.0)
    (summary,) = pair.second.sync.answer_digest(digest_message)
    _, pushed = pair.first.sync.handle_summary(B, summary, 2.0)
    assert pushed[0].kind == REVOCATION
