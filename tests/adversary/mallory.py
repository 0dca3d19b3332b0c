"""A member that has gone bad, with all that a member has: its keys, its tunnels, the underlay.

    Village ── founder      holds the mesh key's own credential, and no other right than that
            ── admitter     may admit, by a token of the founder's
            ── victim       a plain member, by such a token
            ── Mallory      as plain as the victim, or with the grants a test gives it

What Mallory says goes through the simulated tunnel of its own machine, so that WireGuard has a say
in it; its honest daemon goes on beside, as if nothing were.  `suffer` is what each attempt is made
in: when it is over and has had its time, nothing of the others may have changed, and each of them
must have counted it or said so.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace

from engine.engine_wireguard import Packet
from engine.engine_world import GOSSIP_PORT, World, all_ping, whole
from meshd.codec import pack
from meshd.engine.handover import mark
from meshd.gossip.claim import MemberState
from meshd.gossip.wire import CLAIM_ITEM, Item, Message, MessageType, encode
from meshd.keys import MeshKey, NodeKey, WireGuardKey
from meshd.trust.credential import Credential, issue
from meshd.trust.fact import FactKind
from meshd.trust.invite_use import InviteUse, sign_invite_use
from meshd.trust.record import Record, sign_record
from meshd.trust.revocation import Revocation, sign_revocation
from meshd.trust.signed import Statement, sign

TIME_TO_ACT = 3.0  # virtual seconds in which an attempt may have its effect


class Mallory:
    """See the module docstring.  It signs whatever it likes, with its own key."""

    def __init__(self, machine):
        self.machine = machine
        self.world = machine.world
        self.mesh = machine.world.mesh
        self.key = machine.disk.node_key
        self.node = machine.node
        self.heard = []  # what has come through its tunnel

    # What it has

    @property
    def chain(self):
        return self.machine.engine.identity.chain

    @property
    def wall(self):
        return int(self.world.wall)

    def held(self, kind, node):
        """Return a fact about a node as Mallory holds it: a blob it may send whenever it likes."""
        return self.machine.engine.ledger.get(kind, bytes(node)).blob

    def record_of(self, machine):
        return self.held(FactKind.RECORD, machine.node)

    def word_of(self, machine):
        """Return what a member says of itself and what is said against it, verbatim."""
        return self.machine.engine.gossip._membership.claims_about(machine.node)

    def key_of_its_own(self, name):
        return NodeKey(self.world.secret(f"mallory {name}"))

    # What it makes

    def sign(self, statement, fields, key=None):
        return sign(statement, self.mesh, key or self.key, pack(fields))

    def record(self, *, key=None, chain=None, **fields):
        """Sign a record: of itself, or of a node whose key it has made."""
        key = key or self.key
        standing = self.machine.engine.ledger.standing(self.node)
        base = replace(standing.record, node=key.id, sequence=standing.record.sequence + 1000)
        record = replace(base, chain=self.chain if chain is None else chain, **fields)
        return sign_record(record, key, self.mesh)

    def credential(self, subject, *, by=None, **fields):
        """Sign a credential with its own key, or another of its keys; nobody asks it to be true."""
        by = by or self.key
        given = {"admitted_at": self.wall, "issued_at": self.wall} | fields
        name = given.pop("name", "sybil")
        return issue(Credential(by.id, subject, name, **given), by, self.mesh)

    def sybil(self, number, *, chain=None, by=None, **grants):
        """Return the record of a node that Mallory has made up and let in, itself or by such."""
        key = self.key_of_its_own(number)
        link = self.credential(key.id, name=f"s{number}", by=by, **grants)
        chain = (*(chain or self.chain), link)
        return sign_record(
            Record(key.id, 1, WireGuardKey(self.world.secret(f"wg {number}")), chain=chain),
            key,
            self.mesh,
        )

    def revocation(self, subject, *, key=None, chain=None, cascade=False, revoked_at=None):
        key = key or self.key
        if chain is None:
            chain = () if isinstance(key, MeshKey) else self.chain
        at = self.wall if revoked_at is None else revoked_at
        return sign_revocation(Revocation(subject, key.id, cascade, at, chain), key, self.mesh)

    def use(self, invite, subject, *, used_at=None, uses=1):
        at = self.wall if used_at is None else used_at
        statement = InviteUse(invite, subject, at, self.node, uses, self.chain)
        return sign_invite_use(statement, self.key, self.mesh)

    def claim(self, subject, incarnation, state, *, signer=None):
        """Sign a claim with its own key, whoever is said to have signed it."""
        fields = {1: bytes(subject), 2: incarnation, 3: int(state)}
        if signer is not None:
            fields |= {4: bytes(signer), 5: 1000}
        return self.sign(Statement.CLAIM, fields)

    def accusation(self, subject, incarnation):
        return self.claim(subject, incarnation, MemberState.SUSPECT, signer=self.node)

    # What it sends

    def send(self, victim, datagram):
        """Send anything at all through its tunnel to a member, as gossip goes."""
        packet = Packet(self.machine.engine.identity.ipv6, victim.ipv6, GOSSIP_PORT, datagram)
        self.machine.wireguard.send(packet)

    def tell(self, victim, *blobs, kind=FactKind.RECORD):
        """Gossip statements of one kind, in as few datagrams as they fit."""
        for blob in blobs:
            message = Message(MessageType.GOSSIP, 1, items=(Item(int(kind), blob),))
            self.send(victim, encode(message))

    def claims(self, victim, *blobs):
        for blob in blobs:
            self.tell(victim, blob, kind=CLAIM_ITEM)

    def hand_over(self, victim, kind, data):
        self.send(victim, mark(kind, data))


class Village:
    """See the module docstring."""

    def __init__(self, seed=1, *, relays=(), **grants):
        """`relays` are the names of those that relay; the grants are Mallory's."""
        world = self.world = World(seed=seed)
        names = ("founder", "admitter", "victim", "mallory")
        self.founder, self.admitter, self.victim, self.bad = (
            world.machine(name, relay=name in relays) for name in names
        )
        self.founder.start()
        for machine, given in (
            (self.admitter, {"admit": True}),
            (self.victim, {}),
            (self.bad, grants),
        ):
            machine.start(token=self.founder.invite(key=machine.name, **given))
            world.run_for(1.1)  # admitted one after the other, to the second
        world.run_until(lambda: whole(*self.all), within=10.0)
        world.run_for(10.0)
        self.mallory = Mallory(self.bad)

    @property
    def all(self):
        return self.founder, self.admitter, self.victim, self.bad

    @property
    def honest(self):
        return self.founder, self.admitter, self.victim

    def suffer(self, *, counted=(), seen=(), at=None, within=TIME_TO_ACT):
        """Let an attempt have its time.  Then nothing of the honest ones may be different.

        `counted`: reasons, each of which each member of `at` has counted; `seen`: events that each
        of them has shown.
        """
        assert counted or seen, "an attempt that nobody sees"
        return self.suffer_some(counted=counted, seen=seen, at=at, within=within)

    @contextlib.contextmanager
    def suffer_some(self, *allowed, counted=(), seen=(), at=None, within=TIME_TO_ACT):
        """The same where some of it may change: what a member with `admit` may well sign."""
        reasons = (counted,) if isinstance(counted, str) else counted
        shown = (seen,) if isinstance(seen, str) else seen
        at = (self.victim,) if at is None else at
        before = [self.state_of(machine) for machine in self.honest]
        counts = {machine.name: Counter(machine.engine.bad_packets) for machine in at}
        events = {
            (machine.name, event): len(machine.of(event)) for machine in at for event in shown
        }

        yield

        self.world.run_for(within)
        after = [self.state_of(machine) for machine in self.honest]
        for machine, was, is_ in zip(self.honest, before, after, strict=True):
            for name in was.keys() - set(allowed):
                assert is_[name] == was[name], (machine.name, name)
        for machine in at:
            more = Counter(machine.engine.bad_packets) - counts[machine.name]
            for reason in reasons:
                assert more[reason] > 0, (machine.name, reason, more)
            for event in shown:
                assert len(machine.of(event)) > events[machine.name, event], (machine.name, event)
        assert all_ping(*self.honest)

    def state_of(self, machine):
        """Return what of an honest member must be as it was: all but what it knows of Mallory."""
        engine, honest = machine.engine, {m.node for m in self.honest}
        bad = self.bad.node
        peers = engine.desired_state().device.peers
        kernel = machine.wireguard.observe().peers
        keys = {m.public_key for m in self.honest}
        return {
            "facts": [
                (fact.kind, fact.key, fact.digest)
                for fact in engine.ledger.facts()
                if fact.key != bytes(bad)
            ],
            "members": [
                (view.node, view.state, view.incarnation)
                for view in engine.gossip.members()
                if view.node != bad
            ],
            "incarnation": engine.gossip.incarnation,
            "admitted": [node for node in honest if engine.ledger.admitted(node)],
            "names": {node: name for node, name in engine.ledger.names().items() if node != bad},
            "addresses": {n: a for n, a in engine.presence.addresses.items() if n != bad},
            "ipv4": engine.presence.ipv4,
            "identity": engine.identity,
            "plan": {key: _peer(peers[key]) for key in peers if key in keys},
            "kernel": {key: _peer(kernel[key]) for key in kernel if key in keys},
            "roots": engine.ledger.roots,
            "epoch": engine.ledger.epoch,
            "revoked": engine.revoking.revocation,
        }


def _peer(peer):
    return peer.endpoint, tuple(sorted(peer.allowed_ips, key=str))
