"""A mesh in which nothing happens but renewals, so that a year of it passes in seconds.

    Member ── Renewal     the real one; so are the ledger, records, credentials and judgements
           ── the rest    of an engine as far as `Renewal` sees it: whoever is there hears of every
                          record at once, and whoever comes back learns what it has missed

`test_engine_renewal` runs the same part inside the real engine, for minutes.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Network
from random import Random
from types import SimpleNamespace

from meshd.engine.identity import Identity
from meshd.engine.renewal import Renewal
from meshd.gossip.claim import MemberState
from meshd.keys import BootstrapKey, MeshKey, NodeKey, WireGuardPrivateKey
from meshd.trust.credential import Credential, issue, verify_chain_untrusted
from meshd.trust.fact import FactKind
from meshd.trust.ledger import Ledger
from meshd.trust.record import Record, sign_record

WALL = 1_700_000_000
HOUR = 3600
DAY = 86400
BETWEEN = 0.02  # seconds that a datagram takes


class Member:
    """A node, with what `Renewal` asks of its engine."""

    def __init__(self, world, name, *, clock=0.0):
        self.world = world
        self.name = name
        self.clock = clock  # seconds by which its wall clock is wrong
        self.key = NodeKey(world.secret(name))
        self.there = True
        self.ledger = Ledger(world.mesh_key.id)
        self.bad_packets = Counter()
        self.notices = []  # (instant, notice)
        self.chains = []  # all it has had
        self.gossip = SimpleNamespace(members=self._views)
        self.renewal = None
        self.identity = Identity(
            mesh=world.mesh_key.id,
            node_key=self.key,
            wireguard_key=WireGuardPrivateKey(world.secret(f"wireguard {name}")),
            bootstrap_key=BootstrapKey(world.secret("bootstrap")),
            name=name,
            ipv4_prefix=IPv4Network("100.64.0.0/10"),
        )

    @property
    def node(self):
        return self.key.id

    @property
    def wall(self):
        return self.world.wall + self.clock

    # What an engine has

    @property
    def own_credential(self):
        chain = self.identity.chain
        return verify_chain_untrusted(chain, self.ledger.mesh, self.node, self.ledger.cache)[-1]

    def become(self, identity, now):
        self.identity = identity
        self.chains.append(identity.chain)
        record = Record(
            node=self.node,
            sequence=len(self.chains),
            wireguard_key=identity.wireguard_key.public,
            relay=self.own_credential.relay,
            routes=self.own_credential.routes,
            chain=identity.chain,
        )
        blob = sign_record(record, self.key, identity.mesh)
        for member in self.world.there():
            member.ledger.merge_untrusted(FactKind.RECORD, blob, member.wall)
        if self.renewal is not None:
            self.renewal.begin(now)

    def emit(self, notice):
        self.notices.append((self.world.now, notice))

    def name_of(self, node):
        return self.world.members[node].name

    def send_overlay(self, datagram, node):
        self.world.carry(datagram, self, self.world.members[node])

    def _views(self):
        return [
            SimpleNamespace(
                node=member.node, state=MemberState.ALIVE if member.there else MemberState.DEAD
            )
            for member in self.world.members.values()
            if member is not self
        ]

    # What befalls it

    def go(self):
        self.there = False

    def come(self):
        """Be there again, and learn from the others what has happened, and they from it."""
        self.there = True
        others = [member for member in self.world.there() if member is not self]
        for other in others:
            for fact in list(other.ledger.facts()):
                self.ledger.merge_untrusted(fact.kind, fact.blob, self.wall)
        for fact in self.ledger.facts():
            for other in others:
                other.ledger.merge_untrusted(fact.kind, fact.blob, other.wall)
        self.renewal = self._new_renewal()
        self.world.schedule(self)

    def _new_renewal(self):
        rng = Random(f"{self.name} {self.world.seed} {self.world.now}")
        return Renewal(self, rng=rng, now=self.world.now)

    # Reading

    def told(self, event):
        return [notice for _, notice in self.notices if notice.event == event]

    def has_rights_of(self, other):
        """Whether this member grants another all that its credential says, at this moment."""
        standing, wall = self.ledger.standing(other.node), self.wall
        credential = standing.credential
        return (
            standing.may_admit(wall) == credential.admit
            and standing.relays(wall) == credential.relay
            and standing.routes(wall) == credential.routes
        )


class RenewalWorld:
    """See the module docstring."""

    def __init__(self, *, seed=1, loss=0.0):
        self.seed = seed
        self.loss = loss
        self.now = 0.0
        self.mesh_key = MeshKey(self.secret("mesh"))
        self.members = {}  # by node id
        self.datagrams = 0
        self._rng = Random(f"world {seed}")
        self._queue = []
        self._order = 0

    @property
    def wall(self):
        return WALL + self.now

    def member(self, name, *, by=None, clock=0.0, lifetime=0, **grants):
        """Admit a member: by the mesh key, or by another member, for so many seconds."""
        member = Member(self, name, clock=clock)
        issuer = self.mesh_key if by is None else by.key
        dated = int(self.wall)
        credential = Credential(
            issuer=issuer.id,
            subject=member.node,
            name=name,
            admitted_at=dated,
            issued_at=dated,
            expires_at=dated + lifetime if lifetime else 0,
            **grants,
        )
        through = () if by is None else by.identity.chain
        chain = (*through, issue(credential, issuer, self.mesh_key.id))
        self.members[member.node] = member
        member.become(replace(member.identity, chain=chain), self.now)
        member.come()
        return member

    def there(self):
        return [member for member in self.members.values() if member.there]

    def carry(self, datagram, sender, target):
        self.datagrams += 1
        if self._rng.random() < self.loss:
            return

        def arrive():
            if target.there:
                target.renewal.receive_handover(datagram, sender.node, self.now, target.wall)
                self.schedule(target)

        self.at(BETWEEN, arrive)

    def at(self, delay, action):
        self._order += 1
        heapq.heappush(self._queue, (self.now + delay, self._order, action))

    def schedule(self, member):
        """Have a member's timer go off when it says."""
        renewal = member.renewal

        def fire():
            superseded = member.renewal is not renewal or self.now < renewal.get_timer().at
            if superseded or not member.there:
                return
            renewal.handle_timer(self.now, member.wall)
            assert renewal.get_timer().at > self.now, "it would never sleep"
            self.schedule(member)

        self.at(max(0.0, renewal.get_timer().at - self.now), fire)

    def run_for(self, seconds):
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = end

    def secret(self, purpose):
        return hashlib.blake2b(f"{purpose} {self.seed}".encode(), digest_size=32).digest()
