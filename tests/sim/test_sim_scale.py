"""What thousands share is to each as if it were its own; and a crash is known to all soon."""

from random import Random

import pytest

from meshd.gossip.claim import MemberState
from meshd.gossip.events import MemberStateChanged
from meshd.gossip.index import Index, belief_digest
from meshd.gossip.member import belief_version
from meshd.gossip.member_table import MemberTable
from meshd.gossip.wire import BUCKETS, CLAIM_ITEM
from meshd.keys import MeshKey, NodeKey
from sim.scale import Base, LargeMesh, SharedIndex, SharedTable, crash_trial, rest

ALIVE, SUSPECT, DEAD, LEFT = MemberState
KEYS = [NodeKey(bytes([number]) * 32) for number in range(1, 40)]


@pytest.fixture(scope="module")
def base():
    return Base(KEYS, MeshKey(b"m" * 32).id)


@pytest.mark.parametrize("seed", range(5))
def test_a_shared_table_is_like_one_of_its_own(base, seed):
    rng = Random(seed)
    own = KEYS[seed].id
    shared, plain = SharedTable(own, base), MemberTable(own)
    shared.open = True
    for member in base.members.values():
        if member.node != own:
            plain.add(member)
            plain.shown_changed(member.node, DEAD, ALIVE)
    shown = dict.fromkeys((member.node for member in plain), ALIVE)
    for _ in range(200):
        node = rng.choice(list(shown))
        before, shown[node] = shown[node], rng.choice(list(MemberState))
        for table in (shared, plain):
            table.shown_changed(node, before, shown[node])
        assert len(shared) == len(plain)
        assert set(shared.live) == set(plain.live)
        assert len(shared.live) == len(plain.live)
        assert shared.silent == plain.silent
        for key in KEYS:
            assert shared.is_live(key.id) == plain.is_live(key.id)
            assert shared.followers(key.id, 5) == plain.followers(key.id, 5)
    assert {member.node for member in shared} == {member.node for member in plain}
    assert shared.get(own) is None


def test_what_one_table_changes_no_other_sees(base):
    one, other = SharedTable(KEYS[0].id, base), SharedTable(KEYS[1].id, base)
    one.get(KEYS[2].id).heard = False
    assert other.get(KEYS[2].id).heard
    assert not one.get(KEYS[2].id).heard


@pytest.mark.parametrize("seed", range(5))
def test_a_shared_index_is_like_one_of_its_own(base, seed):
    rng = Random(seed)
    shared, plain = SharedIndex(base), Index()
    for entry in base.index:
        plain.put(entry.kind, entry.key, entry.summary.version, entry.summary.digest)
    for _ in range(100):
        node = rng.choice(KEYS).id
        version = belief_version(rng.randint(1, 3), rng.choice([ALIVE, DEAD, LEFT]))
        for index in (shared, plain):
            index.put(CLAIM_ITEM, node, version, belief_digest(node, version))
        assert shared.buckets() == plain.buckets()
        assert shared.differing(base.index.buckets()) == plain.differing(base.index.buckets())
        differing = rng.getrandbits(BUCKETS)
        first, last = sorted(rng.randbytes(8) for _ in range(2))
        assert shared.select(differing, first, last) == plain.select(differing, first, last)
    assert len(shared) == len(plain)


def test_five_hundred_at_rest_say_no_more_than_fifty_and_know_of_a_crash_as_one():
    sent = {}
    for size in (50, 500):
        mesh = LargeMesh(size, seed=1)
        sent[size], _ = rest(mesh, 10.0)
        assert not mesh.events(MemberStateChanged)
        trial = crash_trial(mesh, "n7", within=8.0)
        print(size, sent[size], trial)
        assert trial.first_suspicion < 3.5
    assert sent[500] < 1.1 * sent[50]
