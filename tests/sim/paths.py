"""What brings two members together outside gossip, as far as gossip can tell.

    bootstrap   newcomer and seed learn each other's record, in one round trip
    path layer  both sides learn the other's record, and that they are in its kernel

Both try again until it has worked; after a crash the path layer notices in a while, and begins
anew.
"""

from __future__ import annotations

_JOIN_RETRY_MAX = 8.0
_PROBE_RETRY_MIN = 0.1
_PROBE_RETRY_MAX = 10.0


class PathLayer:
    """Of all hosts of a cluster.  `probed` is whether paths can be probed at all."""

    def __init__(self, cluster, *, probed):
        self._cluster = cluster
        self._probed = probed

    def join(self, name, seed, *, delay=0.0):
        """Have a host ask a seed to be let in, again and again until it is."""
        host = self._cluster.hosts[name]
        self._cluster.at(delay, self._join, host, host.run, seed, 0.25)

    def member_joined(self, host, name):
        """Take in that a host has learnt of a member."""
        if self._probed:
            self._cluster.at(0.0, self._introduce, host, host.run, name, _PROBE_RETRY_MIN)

    def crashed(self, name):
        """Notice sooner or later, and probe from then on."""
        for other in self._cluster.hosts.values():
            if name in other.introduced:
                del other.introduced[name]
                again = (other, other.run, name, _PROBE_RETRY_MAX)
                self._cluster.at(_PROBE_RETRY_MAX, self._introduce, *again)

    def _join(self, host, run, seed, pause):
        cluster = self._cluster
        if not host.running or host.run != run:
            return
        other = cluster.hosts[seed]
        rtt = cluster.network.round_trip(host.name, seed)
        if rtt is None or not other.running:
            again = (host, run, seed, min(pause * 2, _JOIN_RETRY_MAX))
            cluster.at(pause, self._join, *again)
            return
        cluster.at(rtt / 2, self._learn, other, host)
        cluster.at(rtt, self._learn, host, other)

    def _introduce(self, host, run, name, pause):
        """Probe with our record; a pong comes once we are in the other's kernel."""
        cluster, other = self._cluster, self._cluster.hosts[name]
        if not host.running or host.run != run or name in host.introduced:
            return
        if host.ledger.admitted(other.key.id):
            rtt = cluster.network.round_trip(host.name, name)
            if rtt is not None and other.running:
                host.introduced[name] = None
                cluster.at(rtt / 2, self._learn, other, host)
                cluster.at(rtt, self._ready, host, other, rtt)
                cluster.at(rtt, self._ready, other, host, rtt)
                return
        again = (host, run, name, min(pause * 2, _PROBE_RETRY_MAX))
        cluster.at(pause, self._introduce, *again)

    def _learn(self, host, other):
        self._cluster.learn(host, other.record)

    def _ready(self, host, other, rtt):
        self._cluster.tell(host, lambda node, now: node.contact(other.key.id, now, rtt=rtt))
