"""What is done to a mesh: chaos from a seed, then peace, and what must hold in each.

0 s         5 s               CHAOS_SECONDS                    + CONVERGE_SECONDS
│ join, one by one │ network: loss, delay, copies, partitions, │ heal: everybody knows the truth
│                  │   links that differ by direction, no UDP  │
│                  │ hosts: crash, restart, stall, be slow,    │
│                  │   leave, have their clocks set            │
│                  │ a member: lies (in every third history)   │
└ safety holds at every moment (see `safety`) ─────────────────┘
"""

from __future__ import annotations

from functools import partial
from random import Random

from meshd.gossip.claim import MemberState
from meshd.gossip.events import Heard, MemberRemoved
from sim.cluster import Cluster
from sim.malice import Malice
from sim.network import Link, wide
from sim.safety import DELAY_MAX, Safety

CHAOS_SECONDS = 90.0
# A suspicion by one accuser alone, begun at the last moment, has to run out; a crashed seed may
# have to be waited for by whoever wants to join (8 s); the rest is gossip.
CONVERGE_SECONDS = 60.0
MALICE_SIZE_MIN = 4  # with fewer, nobody but the liar could contradict it


class Chaos:
    """Does bad things to a cluster, chosen by its seed."""

    def __init__(self, cluster, safety, malice=None):
        self._cluster = cluster
        self._safety = safety
        self._malice = malice
        self._rng = Random(f"chaos {cluster.seed}")
        self._actions = [
            *(self._weather, self._weather, self._link, self._far, self._block_udp),
            *(self._partition, self._cut_one_way, self._mend, self._mend),
            *(self._crash, self._restart, self._restart, self._restart, self._publish),
            *(self._stall, self._stall, self._slow, self._clock, self._leave, self._traffic),
        ]
        if malice is not None:
            self._actions += [malice.act] * 6 + [malice.listen]

    def unleash(self, seconds):
        end = self._cluster.now + seconds
        while self._cluster.now < end:
            self._rng.choice(self._actions)()
            self._safety.update()
            self._cluster.run_for(self._rng.uniform(0.1, 6.0))
            self._safety.check()

    def end(self):
        """Heal the network, and the hosts that still run."""
        self._cluster.network.heal()
        for host in self._cluster.hosts.values():
            host.work = 0.0
        self._safety.update()

    def _pair(self):
        return self._rng.sample(list(self._cluster.hosts), 2)

    def _someone(self):
        return self._rng.choice(self._cluster.running())

    def _weather(self):
        network = self._cluster.network
        network.loss = self._rng.choice([0.0, 0.0, 0.05, 0.3])
        network.duplication = self._rng.choice([0.0, 0.1])
        network.delay_max = self._rng.choice([0.001, 0.05, DELAY_MAX])

    def _link(self):
        """One direction of one path is worse than the others."""
        link = Link(self._rng.choice([0.1, 0.5, 0.9]), 0.001, self._rng.choice([0.01, 0.2, 1.0]))
        self._cluster.network.links[tuple(self._pair())] = link

    def _far(self):
        """Somebody is far from everybody else."""
        name, _ = self._pair()
        link = wide(self._rng.choice([0.02, 0.08, 0.15]))
        for other in self._cluster.hosts:
            if other != name:
                self._cluster.network.connect(name, other, link)

    def _block_udp(self):
        self._cluster.network.block_udp(*self._pair())

    def _partition(self):
        names = list(self._cluster.hosts)
        self._cluster.network.island = frozenset(
            self._rng.sample(names, self._rng.randint(1, len(names) - 1))
        )

    def _cut_one_way(self):
        self._cluster.network.cut.add(tuple(self._pair()))

    def _mend(self):
        self._cluster.network.mend()
        self._cluster.network.links.clear()

    def _crash(self):
        if len(self._cluster.running()) > 2:
            self._cluster.crash(self._someone().name, host_up=self._rng.random() < 0.5)

    def _restart(self):
        down = [host for host in self._cluster.hosts.values() if not host.running]
        if down:
            restart(self._cluster, self._rng.choice(down), self._rng)

    def _publish(self):
        host = self._someone()
        sequence = host.ledger.standing(host.key.id).record.sequence
        self._cluster.publish(host.name, sequence + 1)

    def _stall(self):
        host = self._someone()
        if not host.stalled:
            self._cluster.stall(host.name, self._rng.choice([0.3, 1.0, 5.0, 10.0, 30.0]))

    def _slow(self):
        for host in self._cluster.hosts.values():
            host.work = 0.0
        self._cluster.slow(self._someone().name, self._rng.choice([0.0, 0.002, 0.05]))

    def _clock(self):
        hours = self._rng.choice([-24, -2, 2, 24])
        self._cluster.jump_clock(self._someone().name, 3600.0 * hours)

    def _leave(self):
        host = self._someone()
        if len(self._cluster.running()) > 2 and not host.stalled:
            self._cluster.leave(host.name)

    def _traffic(self):
        """Two hosts exchange something of their own, a packet every 50 ms in a while."""
        one, other = self._pair()
        for step in range(100):
            self._cluster.at(step * 0.05, self._cluster.traffic, one, other)
            self._cluster.at(step * 0.05, self._cluster.traffic, other, one)


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


def run_chaos(
    seed, *, size=6, chaos_seconds=CHAOS_SECONDS, converge_seconds=CONVERGE_SECONDS, config=None
):
    """Run one history from its seed to convergence.  Return the cluster."""
    print(f"seed {seed}, size {size}")
    rng = Random(f"scenario {seed}")
    cluster = Cluster(size, seed=seed, config=config, start=False)
    safety = Safety(cluster)
    malice = Malice(cluster, f"n{size - 1}") if size >= MALICE_SIZE_MIN and not seed % 3 else None
    for number, name in enumerate(cluster.hosts):
        cluster.at(rng.uniform(0.0, 3.0) if number else 0.0, partial(arrive, cluster, name))
    cluster.run_for(5.0)
    chaos = Chaos(cluster, safety, malice)
    chaos.unleash(chaos_seconds)
    chaos.end()
    # Machines that were switched off while the mesh was torn come back, or stay away for good.
    for host in list(cluster.hosts.values()):
        if not host.running and rng.random() < 0.5:
            restart(cluster, host, rng)
    cluster.healed_after = cluster.run_until(cluster.converged, within=converge_seconds, step=0.25)
    safety.check()
    assert not cluster.events(MemberRemoved)
    assert cluster.events(Heard)
    return cluster


def run_partition(seed, *, size, seconds=3600.0, merge_seconds=45.0, config=None):
    """Tear a mesh into halves for an hour, until retries are rare, and see them merge."""
    cluster = Cluster(size, seed=seed, mesh_started=True, config=config)
    safety = Safety(cluster)
    cluster.run_until(cluster.converged, within=10.0)
    half = frozenset(f"n{number}" for number in range(size // 2))
    cluster.network.island = half
    safety.update()
    cluster.run_for(seconds)
    for name in cluster.hosts:
        dead = {n for n, state in cluster.view(name).items() if state is MemberState.DEAD}
        others = set(cluster.hosts) - half if name in half else half
        assert dead == others, cluster.explain(f"{name} sees {sorted(dead)} dead")
    cluster.network.heal()
    safety.update()
    cluster.healed_after = cluster.run_until(cluster.converged, within=merge_seconds, step=0.5)
    safety.check()
    return cluster


def arrive(cluster, name):
    """Start a newcomer."""
    cluster.start(name)
    if name != "n0":
        cluster.join(name, "n0")
