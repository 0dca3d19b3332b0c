"""What is done to a mesh: chaos from a seed, then peace, and what must hold in each.

0 s            CHAOS_SECONDS                       + CONVERGE_SECONDS
│ join, one by one │ loss, delay, copies, partitions,  │ heal: everybody knows the truth
│                  │ one-way links, crashes, restarts  │
└ safety holds at every moment ─────────────────────────┘
"""

from functools import partial
from random import Random

from meshd.gossip.claim import MemberState
from meshd.gossip.events import Heard, MemberRemoved
from meshd.gossip.index import Index, belief_digest
from meshd.gossip.wire import CLAIM_ITEM
from sim.cluster import Cluster

CHAOS_SECONDS = 90.0
# A suspicion by one accuser alone, begun at the last moment, takes 24 s in a mesh this small; a
# crashed seed may have to be waited for by whoever wants to join (8 s); the rest is gossip.
CONVERGE_SECONDS = 60.0


def assert_safe(cluster):
    """Check what no fault of network or machine may break."""
    ever_left = {name for name, host in cluster.hosts.items() if host.left}
    for host in cluster.hosts.values():
        if not host.running:
            continue
        for view in host.node.members():
            name = cluster.names[view.node]
            claimed = cluster.incarnations.get(name, 0)
            assert view.incarnation <= claimed, cluster.explain(f"{name} never was so far")
            assert view.state is not MemberState.LEFT or name in ever_left, cluster.explain(
                f"{name} has not left"
            )
            if view.state in {MemberState.ALIVE, MemberState.SUSPECT}:
                assert view.heard, cluster.explain(f"{host.name} has not heard {name}")
        assert_index_true(host)


def assert_index_true(host):
    """Check that the digest kept step by step is that of what is held."""
    rebuilt = Index()
    for fact in host.ledger.facts():
        rebuilt.put(fact.kind, fact.key, fact.version, fact.digest)
    membership = host.node._membership
    own = membership.own
    version = own.incarnation << 2 | own.state
    rebuilt.put(CLAIM_ITEM, own.subject, version, belief_digest(own.subject, version))
    for member in membership:
        if member.belief is not None:
            digest = belief_digest(member.node, member.version)
            rebuilt.put(CLAIM_ITEM, member.node, member.version, digest)
    assert rebuilt.buckets() == host.node._index.buckets(), host.name


class Chaos:
    """Does bad things to a cluster, chosen by its seed."""

    def __init__(self, cluster):
        self._cluster = cluster
        self._rng = Random(f"chaos {cluster.seed}")

    def unleash(self, seconds):
        end = self._cluster.now + seconds
        while self._cluster.now < end:
            self._rng.choice(
                [
                    self._weather,
                    self._weather,
                    self._partition,
                    self._cut_one_way,
                    self._mend,
                    self._crash,
                    self._restart,
                    self._restart,
                    self._publish,
                ]
            )()
            self._cluster.run_for(self._rng.uniform(0.1, 6.0))
            assert_safe(self._cluster)

    def _weather(self):
        network = self._cluster.network
        network.loss = self._rng.choice([0.0, 0.05, 0.3])
        network.duplication = self._rng.choice([0.0, 0.1])
        network.delay_max = self._rng.choice([0.001, 0.05, 0.4])

    def _partition(self):
        names = list(self._cluster.hosts)
        self._cluster.network.island = frozenset(
            self._rng.sample(names, self._rng.randint(1, len(names) - 1))
        )

    def _cut_one_way(self):
        source, target = self._rng.sample(list(self._cluster.hosts), 2)
        self._cluster.network.cut.add((source, target))

    def _mend(self):
        self._cluster.network.cut.clear()
        self._cluster.network.island = frozenset()

    def _crash(self):
        running = [host.name for host in self._cluster.running()]
        if len(running) > 2:
            self._cluster.crash(self._rng.choice(running))

    def _restart(self):
        down = [host for host in self._cluster.hosts.values() if not host.running]
        if down:
            restart(self._cluster, self._rng.choice(down), self._rng)

    def _publish(self):
        host = self._rng.choice(self._cluster.running())
        sequence = host.ledger.standing(host.key.id).record.sequence
        self._cluster.publish(host.name, sequence + 1)


def restart(cluster, host, rng):
    """Start a host again: as it was, with an old incarnation, or with nothing but its key."""
    how = rng.choice(["disk", "old", "blank"])
    if how == "disk":
        cluster.start(host.name)
    elif how == "old":
        cluster.start(host.name, incarnation=0)
    else:
        cluster.start(host.name, disk=False)
        seed = rng.choice([name for name in cluster.hosts if name != host.name])
        cluster.join(host.name, seed)


def run_chaos(seed, *, size=6, chaos_seconds=CHAOS_SECONDS, converge_seconds=CONVERGE_SECONDS):
    """Run one history from its seed to convergence.  Return the cluster."""
    print(f"seed {seed}")
    rng = Random(f"scenario {seed}")
    cluster = Cluster(size, seed=seed, start=False)
    for number, name in enumerate(cluster.hosts):
        cluster.at(rng.uniform(0.0, 3.0) if number else 0.0, partial(arrive, cluster, name))
    cluster.run_for(5.0)
    Chaos(cluster).unleash(chaos_seconds)
    cluster.network.heal()
    # Machines that were switched off while the mesh was torn come back, or stay away for good.
    for host in list(cluster.hosts.values()):
        if not host.running and rng.random() < 0.5:
            restart(cluster, host, rng)
    cluster.healed_after = cluster.run_until(cluster.converged, within=converge_seconds, step=0.25)
    assert_safe(cluster)
    assert not cluster.events(MemberRemoved)
    assert cluster.events(Heard)
    return cluster


def arrive(cluster, name):
    """Start a newcomer."""
    cluster.start(name)
    if name != "n0":
        cluster.join(name, "n0")
