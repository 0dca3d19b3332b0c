"""What one bad member can do to a mesh that is otherwise well: cost it some traffic."""

import pytest

from meshd.gossip.claim import MemberState
from sim.cluster import Cluster
from sim.malice import Malice
from sim.safety import Safety

ALIVE, SUSPECT, DEAD, LEFT = MemberState
LIAR = "n7"
ACTS = 100


def mesh(seed):
    cluster = Cluster(8, seed=seed, mesh_started=True)
    safety = Safety(cluster)
    cluster.run_until(cluster.converged, within=15)
    cluster.run_for(10)
    return cluster, safety


def honest(cluster, changes):
    """Of state changes, those that honest members show of honest members."""
    return [
        (at, name, event)
        for at, name, event in changes
        if name != LIAR and cluster.names[event.node] != LIAR
    ]


@pytest.mark.parametrize("seed", range(3))
def test_a_liar_kills_nobody_and_nothing_grows(seed):
    cluster, safety = mesh(seed)
    malice = Malice(cluster, LIAR)
    sent = cluster.datagrams
    malice.listen()
    for _ in range(ACTS):
        malice.act()
        cluster.run_for(0.3)
        safety.check()

    changes = honest(cluster, cluster.changes())
    assert [change for change in changes if change[2].after in {DEAD, LEFT}] == []
    # Each lie may cost a refutation, which is news to everybody; but no lie feeds on itself.
    lies = ACTS * 4 * 7
    assert cluster.datagrams - sent < 8 * lies
    cluster.run_for(10)
    quiet = cluster.datagrams
    cluster.run_for(10)
    assert (cluster.datagrams - quiet) / 10 / 8 < 5, "it is over when the liar stops"
    assert cluster.converged()


@pytest.mark.parametrize("seed", range(3))
def test_a_liar_brings_nobody_back(seed):
    cluster, safety = mesh(seed)
    malice = Malice(cluster, LIAR)
    malice.listen()
    cluster.crash("n1")
    cluster.leave("n2")
    cluster.run_until(lambda: cluster.state("n0", "n1") is DEAD, within=10)
    cluster.run_for(10)
    since = cluster.now
    for _ in range(ACTS):
        malice.act()
        cluster.run_for(0.1)
        safety.check()

    back = [change for change in cluster.changes(ALIVE) if change[0] >= since]
    assert [c for c in honest(cluster, back) if cluster.names[c[2].node] in {"n1", "n2"}] == []
