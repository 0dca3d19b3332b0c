"""A mesh of ten thousand in one process: it begins converged, and what all hold is held once.

    Base      what everybody believes in the beginning: a member each, and an index of all
      ▲ ▲ ▲
    SharedTable, SharedIndex   of each node: its differences from that, and nothing else

A node is the real one, and cannot tell.  It begins at rest: nobody is news to anybody, round trips
were measured, and the last digests were equal.  Records are only names here, and who is a member
does not change.
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from random import Random

from meshd.gossip.claim import Belief, MemberState, sign_claim
from meshd.gossip.index import Entry, Index, belief_digest
from meshd.gossip.member import Member, belief_version
from meshd.gossip.member_table import LIVE, MemberTable
from meshd.gossip.node import Node
from meshd.gossip.sync import QUIET_MIN
from meshd.gossip.wire import BUCKETS, CLAIM_ITEM, EntrySummary
from meshd.keys import NodeKey, fingerprint
from meshd.trust.fact import FactKind
from meshd.trust.ledger import Merge, Outcome
from sim.cluster import Cluster
from sim.host import Host
from sim.memo import remember_signatures
from sim.network import LAN_DELAY

_INCARNATION = 1
# A round is as long as the mesh is large; of it no more is drawn than a trial will use.
_TURNS = 256


class Names:
    """A store of facts in which nothing is ever news."""

    def merge_untrusted(self, kind, blob, wall):
        return Merge(Outcome.KNOWN, None, changed=False)

    def facts(self):
        return iter(())

    def members(self):
        return ()

    def get(self, kind, key):
        return None

    def admitted(self, node):
        return True


class Base:
    """What everybody believes in the beginning."""

    def __init__(self, keys, mesh):
        self.members = {}
        self.index = Index()
        for key in keys:
            claim = sign_claim(_INCARNATION, MemberState.ALIVE, key=key, mesh=mesh)
            self.members[key.id] = Member(
                key.id,
                silent_since=0.0,
                belief=Belief(claim),
                heard=True,
                claims=_INCARNATION,
                knows=_INCARNATION,
                heard_at=0.0,
            )
            version = belief_version(_INCARNATION, MemberState.ALIVE)
            self.index.put(CLAIM_ITEM, key.id, version, belief_digest(key.id, version))
            digest = fingerprint(key.id, size=8, person=b"sim.record")
            self.index.put(FactKind.RECORD, key.id, 1, digest)
        self.circle = sorted(self.members)
        self.sorted_ids = [sorted(bucket) for bucket in self.index._buckets]
        self.entries = {}  # those that differ, each once however many nodes hold it


class Without(Sequence):
    """All but a few elements of a list that is shared."""

    def __init__(self, elements, skipped):
        self._elements = elements
        self._skipped = skipped  # positions, sorted

    def __len__(self):
        return len(self._elements) - len(self._skipped)

    def __getitem__(self, position):
        if not 0 <= position < len(self):
            raise IndexError(position)
        for skipped in self._skipped:
            position += skipped <= position
        return self._elements[position]


class SharedTable(MemberTable):
    """A table that copies a member when it is asked for it.  Nobody is listed until it is open."""

    def __init__(self, own, base):
        super().__init__(own)
        self._base = base
        self.open = False  # a new node compares its members with its facts, of which it has none
        self._circle = base.circle
        self._skipped = [self._position(own)]
        self._live_nodes = Without(base.circle, self._skipped)

    def _position(self, node):
        return bisect.bisect_left(self._circle, node)

    def __len__(self):
        return len(self._circle) - 1

    def __iter__(self):
        if self.open:
            for node, member in self._base.members.items():
                if node != self._own:
                    yield self._members.get(node, member)

    def get(self, node):
        member = self._members.get(node)
        if member is None and node != self._own and node in self._base.members:
            member = self._members[node] = copy.copy(self._base.members[node])
        return member

    def add(self, member):
        raise NotImplementedError("who is a member does not change here")

    def remove(self, node):
        raise NotImplementedError("who is a member does not change here")

    def shown_changed(self, node, before, after):
        self.silent += (after is MemberState.DEAD) - (before is MemberState.DEAD)
        if (before in LIVE) == (after in LIVE):
            return
        if after in LIVE:
            self._skipped.remove(self._position(node))
        else:
            bisect.insort(self._skipped, self._position(node))

    def is_live(self, node):
        return node in self._base.members and self._position(node) not in self._skipped

    @property
    def live(self):
        return self._live_nodes


class SharedIndex(Index):
    """An index that holds what differs from the base."""

    def __init__(self, base):
        super().__init__()
        self._base = base
        self._buckets = None
        self._sums = list(base.index._sums)
        self._differing = {}

    def __len__(self):
        return len(self._base.index)

    def put(self, kind, key, version, digest):
        id_ = self._base.index._ids[kind, key]
        before = self.get(id_)
        if before.summary.digest == digest:
            return
        number = id_[0] >> 2
        self._sums[number] ^= int.from_bytes(before.summary.digest, "big")
        self._sums[number] ^= int.from_bytes(digest, "big")
        entry = Entry(kind, key, EntrySummary(id_, version, digest))
        self._differing[id_] = self._base.entries.setdefault(entry, entry)
        if kind != CLAIM_ITEM:
            self.facts_changed += 1

    def remove(self, kind, key):
        raise NotImplementedError("who is a member does not change here")

    def get(self, id_):
        return self._differing.get(id_) or self._base.index.get(id_)

    def select(self, differing, first, last):
        found = []
        for number, ids in enumerate(self._base.sorted_ids):
            if differing >> (BUCKETS - 1 - number) & 1:
                begin, end = bisect.bisect_left(ids, first), bisect.bisect_right(ids, last)
                found += [self.get(id_) for id_ in ids[begin:end]]
        return found


class LargeMesh(Cluster):
    """A cluster of any size, in the middle of its life."""

    def __init__(self, size, *, seed, config=None):
        remember_signatures()
        self._base = None
        super().__init__(size, seed=seed, config=config, start=False)
        self._base = Base([host.key for host in self.hosts.values()], self.mesh)
        for name in self.hosts:
            self.start(name)

    def add_host(self, name):
        key = NodeKey(hashlib.sha256(f"node {name} {self.seed}".encode()).digest())
        self.hosts[name] = Host(name, key, b"", Names())
        self.names[key.id] = name

    def make_node(self, host):
        rng = Random(f"node {host.name} {self.seed}")
        table = SharedTable(host.key.id, self._base)
        node = Node(
            host.key,
            self.mesh,
            host.ledger,
            config=self.config,
            rng=rng,
            now=self.now,
            incarnation=_INCARNATION,
            table=table,
            index=SharedIndex(self._base),
        )
        table.open = True
        self._rest(node, rng)
        return node

    def _rest(self, node, rng):
        """Leave nothing to do but what there is always to do."""
        membership, sync = node._membership, node._sync
        node._broadcasts.drop((CLAIM_ITEM, node.id, b""))
        membership.round_trips.add(2 * LAN_DELAY)
        sync.settled = True
        sync._quiet = QUIET_MIN
        sync.at = self.now + self.config.digest_interval * rng.random()
        order = node._prober._order
        order._round = rng.sample(membership.live, min(_TURNS, len(membership.live)))
        order._turn = rng.randrange(64)
        node._settle(self.now)


@dataclasses.dataclass(frozen=True)
class Trial:
    """What became of one crash.  Seconds after it, and traffic until all knew."""

    first_suspicion: float
    half_know: float
    all_know: float
    bytes_per_member: float


def crash_trial(mesh, victim, *, within=60.0):
    """Crash a member, and wait until everybody knows."""
    crashed_at, sent = mesh.now, mesh.bytes
    suspected, dead = [], {}
    node = mesh.hosts[victim].key.id

    def watch(host, event):
        if getattr(event, "node", None) != node or not hasattr(event, "after"):
            return
        suspected.append(mesh.now)
        if event.after is MemberState.DEAD:
            dead.setdefault(host.name, mesh.now)

    mesh.watchers.append(watch)
    mesh.crash(victim)
    count = len(mesh.running())
    mesh.run_until(lambda: len(dead) == count, within=within, step=0.01)
    mesh.watchers.remove(watch)
    times = sorted(at - crashed_at for at in dead.values())
    return Trial(
        first_suspicion=suspected[0] - crashed_at,
        half_know=times[len(times) // 2],
        all_know=times[-1],
        bytes_per_member=(mesh.bytes - sent) / count,
    )


def rest(mesh, seconds):
    """Let a mesh be.  Return bytes and packets that a member sends each second."""
    size, sent, packets = len(mesh.hosts), mesh.bytes, mesh.datagrams
    mesh.run_for(seconds)
    return (mesh.bytes - sent) / size / seconds, (mesh.datagrams - packets) / size / seconds
