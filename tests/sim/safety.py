"""What no fault may break, at any moment of any history.

Rule 1: nobody dies who is reachable from a majority.  A host is *well* while it runs, is neither
        stopped nor slow nor a liar, and has a good path, in both directions, to a majority of all
        that run: not cut, UDP not blocked, no more than LOSS_MAX lost and DELAY_MAX of delay.  A
        death is an error if for WELL_SECONDS both who died and who concluded it were well.

Rule 2: nothing unsigned changes anything.  No member is shown at an incarnation that it never had,
        or as having left if it has not, or back from the dead if nobody runs under its key.

Rule 3: nobody is shown alive whom that node has not heard.

Rule 4: no queue and no table grows beyond what the members, and the constants, allow.

Rule 5: the digest kept step by step is that of what is held.
"""

from __future__ import annotations

import math

from meshd.gossip.cause import CauseKind
from meshd.gossip.claim import ACCUSERS_MAX, MemberState
from meshd.gossip.events import MemberStateChanged
from meshd.gossip.index import Index, belief_digest
from meshd.gossip.pings import PINGS_MAX
from meshd.gossip.sync import PUSHED_MAX, SUMMARIES_MAX, WINDOW_MAX
from meshd.gossip.wire import CLAIM_ITEM

LOSS_MAX = 0.3
DELAY_MAX = 0.4
WELL_SECONDS = 15.0
# For how long what a host had sent may still bring news of it, once it has gone.
_ECHO_SECONDS = 5.0
# Deadlines about a member: contact, suspicion, watch, evidence.  And of a node: a handful.
_TIMERS_PER_MEMBER = 4
_TIMERS = 16


class Safety:
    """Watches a cluster.  Construct it before anything happens."""

    def __init__(self, cluster):
        self._cluster = cluster
        self._well_since = {}
        self._able_since = {}
        self._ran_until = {}
        cluster.watchers.append(self._event)
        cluster.on_change.append(self.update)

    def update(self):
        """Take in that hosts or network have changed.  Due after each change of the network."""
        cluster = self._cluster
        well = self._well()
        for name, host in cluster.hosts.items():
            if name not in well:
                self._well_since.pop(name, None)
            else:
                self._well_since.setdefault(name, cluster.now)
            if not host.able:
                self._able_since.pop(name, None)
            else:
                self._able_since.setdefault(name, cluster.now)
            if host.running:
                self._ran_until[name] = math.inf
            elif self._ran_until.get(name) == math.inf:
                self._ran_until[name] = cluster.now

    def check(self):
        """Check the rules about what is, as opposed to those about what happens."""
        for host in self._cluster.hosts.values():
            if host.running:
                self._check_views(host)
                self._check_bounds(host)
                check_index(host)

    def _well(self):
        """Return who is well (rule 1)."""
        cluster = self._cluster
        running = [host.name for host in cluster.running()]
        able = [n for n in running if cluster.hosts[n].able and n not in cluster.malicious]
        return {
            name
            for name in able
            if 2 * sum(other == name or self._joined(name, other) for other in able) > len(running)
        }

    def _joined(self, one, other):
        return self._good(one, other) and self._good(other, one)

    def _good(self, source, target):
        network = self._cluster.network
        link = network.link(source, target)
        passes = network.passes(source, target)
        return passes and link.loss <= LOSS_MAX and link.delay_max <= DELAY_MAX

    def _able_for(self, name):
        return self._cluster.now - self._able_since.get(name, self._cluster.now)

    def _was_well(self, name):
        since = self._well_since.get(name)
        return since is not None and self._cluster.now - since >= WELL_SECONDS

    def _event(self, host, event):
        if not isinstance(event, MemberStateChanged):
            return
        cluster = self._cluster
        name = cluster.names[event.node]
        if name in cluster.malicious:
            return
        if event.after is MemberState.DEAD and event.before is not MemberState.LEFT:
            assert not (self._was_well(name) and self._was_well(host.name)), cluster.explain(
                f"{host.name} concludes that {name} is dead: {event}"
            )
        elif event.after is MemberState.ALIVE and event.cause.kind is CauseKind.HEARD:
            gone = cluster.now - self._ran_until.get(name, -math.inf)
            # Who stood still reads what had been sent by then.
            assert gone < _ECHO_SECONDS or self._able_for(host.name) < _ECHO_SECONDS, (
                cluster.explain(f"{host.name} revives {name}: {event}")
            )

    def _check_views(self, host):
        cluster = self._cluster
        for view in host.node.members():
            name = cluster.names[view.node]
            if name in cluster.malicious:
                continue  # what it says of itself is its own affair
            claimed = cluster.incarnations.get(name, 0)
            assert view.incarnation <= claimed, cluster.explain(f"{name} never was so far")
            assert view.state is not MemberState.LEFT or name in cluster.ever_left, cluster.explain(
                f"{name} has not left"
            )
            if view.state in {MemberState.ALIVE, MemberState.SUSPECT}:
                assert view.heard, cluster.explain(f"{host.name} has not heard {name}")

    def _check_bounds(self, host):
        cluster = self._cluster
        members = len(cluster.hosts)
        node, statistics = host.node, host.node.statistics()
        # Of each member its record, its own word, and what is held against it.
        assert statistics.broadcasts_queued <= members * (2 + ACCUSERS_MAX), host.name
        assert statistics.entries <= 2 * members, host.name
        assert len(node._timers) <= _TIMERS + _TIMERS_PER_MEMBER * members + PINGS_MAX, host.name
        assert len(node._pinger) <= PINGS_MAX, host.name
        for view in node.members():
            assert len(view.accusers) <= ACCUSERS_MAX, host.name
        assert cluster.outputs_max <= SUMMARIES_MAX + PUSHED_MAX + WINDOW_MAX + 4 * members


def check_index(host):
    """Check rule 5 of one host."""
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
