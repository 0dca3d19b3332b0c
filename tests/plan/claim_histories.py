"""Histories of claims to IPv4 addresses, generated from a seed, each of which has to end well.

    nodes with real ledgers, real records, real credentials        no tunnels, no timers
       │ join, gossip a part, split, meet, restart from an old disk, pin, renew, forget, revoke
       ▼
    all meet, and tell each other everything until nobody has anything new to say
       ▼
    the same facts and the same plan everywhere; no address with two holders; whoever can have an
    address has one; and on the way nobody gave up an address that nobody else had a better claim to

The prefix is so small that conflicts are the rule.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from meshd.addresses import overlay_address  # noqa: E402
from meshd.codec import host_network  # noqa: E402
from meshd.engine.own_record import own_claim  # noqa: E402
from meshd.engine.presence import claims_of  # noqa: E402
from meshd.keys import MeshKey, NodeKey, WireGuardPrivateKey  # noqa: E402
from meshd.plan.claims import resolve_claims, usable  # noqa: E402
from meshd.plan.plan import PlannedMember, PlannedSelf, make_plan  # noqa: E402
from meshd.trust.credential import Credential, issue  # noqa: E402
from meshd.trust.fact import FactKind  # noqa: E402
from meshd.trust.ledger import Ledger  # noqa: E402
from meshd.trust.record import Record, sign_record  # noqa: E402
from meshd.trust.revocation import Revocation, sign_revocation  # noqa: E402
from sim.memo import remember_signatures  # noqa: E402

MESH_KEY = MeshKey(b"M" * 32)
MESH = MESH_KEY.id
WALL = 1_700_000_000
PREFIXES = [IPv4Network("100.64.0.0/29"), IPv4Network("100.64.0.0/28"), IPv4Network("10.0.0.0/24")]
NODES_MAX = 9
STEPS_MAX = 60
SEQUENCE_SHIFT = 20
# Each round settles at least the next in precedence; one more shows that nothing changes.
ROUNDS_MAX = NODES_MAX + 2
_PROGRESS_INTERVAL = 5.0


@dataclass
class Disk:
    """What a restart finds."""

    facts: list = field(default_factory=list)
    starts: int = 0


class Node:
    """One node's claim, kept as `meshd.engine.presence` keeps it."""

    def __init__(self, number, prefix, rng):
        self._rng = rng
        self.moves = 0
        self.key = NodeKey(bytes([number + 1]) * 32)
        self.wireguard_key = WireGuardPrivateKey(bytes([number + 101]) * 32)
        self.prefix = prefix
        self.wanted = rng.choice([None, *list(prefix)[:4]])
        self.credential = Credential(
            MESH,
            self.key.id,
            f"n{number}",
            # Few values, so that many are admitted in the same second.
            admitted_at=WALL + rng.randrange(4),
            issued_at=WALL + 10,
        )
        self.ledger = None  # while it runs
        self.ipv4 = None
        self.disks = [Disk()]

    @property
    def node(self):
        return self.key.id

    def start(self, disk):
        """Start with what a disk holds."""
        disk.starts += 1
        self.ledger = Ledger(MESH)
        self.ipv4 = None
        # At a random place of the block, as the daemon does: the disk may be a restored backup.
        self._next = (disk.starts << SEQUENCE_SHIFT) + self._rng.randrange(1 << 19)
        self._said = None
        for fact in disk.facts:
            self.ledger.merge_untrusted(fact.kind, fact.blob, WALL)
        self.settle()

    def stop(self):
        self.ledger = None

    def save(self):
        """Write everything; older states are kept, as backups are."""
        self.disks.append(Disk(list(self.ledger.facts()), self.disks[-1].starts))

    def take(self, facts):
        """Take in what another node has sent."""
        for fact in facts:
            self.ledger.merge_untrusted(fact.kind, fact.blob, WALL)
        self.settle()

    def settle(self):
        """Claim what holds, and sign it if it is new."""
        mine = self.ledger.standing(self.node)
        if mine is not None and mine.blob != self._said:
            # A record of ours from elsewhere: go on above it.
            self._next = max(self._next, mine.record.sequence + 1)
            self._said = None
        claims = claims_of(self.others())
        remembered = None if mine is None else mine.record.ipv4
        before = self.ipv4
        own = own_claim(
            self.credential,
            claims,
            admitted_at=self.credential.admitted_at,
            prefix=self.prefix,
            wanted=(before, self.wanted, remembered),
        )
        self.ipv4 = None if own is None else own.address
        if before not in {None, self.ipv4}:
            self.moves += 1
            self._must_have_moved(before, claims)
        content = (self.ipv4, self.credential)
        if self._said is None or content != self._content:
            self._content = content
            record = Record(
                node=self.node,
                sequence=self._next,
                wireguard_key=self.wireguard_key.public,
                ipv4=self.ipv4,
                chain=(issue(self.credential, MESH_KEY, MESH),),
            )
            self._next += 1
            self._said = sign_record(record, self.key, MESH)
            self.ledger.merge_untrusted(FactKind.RECORD, self._said, WALL)

    def _must_have_moved(self, before, claims):
        """A claim is given up for a better one to the same address, or for a pin; for no less."""
        pin = self.credential.ipv4
        if pin is not None and pin != before:
            return
        mine = (pin is None, self.credential.admitted_at, self.node)
        better = [claim for claim in claims if claim.address == before and claim.precedence < mine]
        assert better, f"{self.credential.name} gave {before} up for nothing"

    def others(self):
        return [
            (node, standing)
            for node, standing in self.ledger.members().items()
            if node != self.node and standing.admitted
        ]

    @property
    def admitted(self):
        return self.ledger.admitted(self.node)

    def addresses(self):
        """Return who has which address, as this node sees it."""
        return resolve_claims(claims_of(self._members()), self.prefix)

    def _members(self):
        return [(node, s) for node, s in self.ledger.members().items() if s.admitted]

    def plan(self):
        """Return this node's link addresses, and of each member what its tunnel may carry."""
        addresses = self.addresses()
        plan = make_plan(
            PlannedSelf(
                mesh=MESH,
                private_key=self.wireguard_key,
                listen_port=51820,
                fwmark=0,
                ipv4=addresses.get(self.node),
                ipv4_prefix=self.prefix,
                ipv6=overlay_address(MESH, self.node),
            ),
            [
                PlannedMember(
                    node=node,
                    admitted_at=standing.credential.admitted_at,
                    wireguard_key=standing.record.wireguard_key,
                    ipv4=addresses.get(node),
                    ipv6=overlay_address(MESH, node),
                    live=True,
                    endpoint=None,
                )
                for node, standing in self.others()
            ],
        )
        by_key = {key: peer.allowed_ips for key, peer in plan.device.peers.items()}
        return {**by_key, self.wireguard_key.public: plan.link.addresses}


class History:
    """See the module docstring."""

    def __init__(self, seed):
        self.rng = Random(seed)
        self.prefix = self.rng.choice(PREFIXES)
        count = self.rng.randrange(2, NODES_MAX + 1)
        self.nodes = [Node(number, self.prefix, self.rng) for number in range(count)]
        self.sides = dict.fromkeys(range(count), 0)

    @property
    def running(self):
        return [node for node in self.nodes if node.ledger is not None]

    def run(self):
        """Live through it, and demand that it ends well."""
        for _ in range(self.rng.randrange(5, STEPS_MAX)):
            self.rng.choice(
                [
                    self.join,
                    self.join,
                    *[self.gossip] * 8,
                    self.split,
                    self.meet,
                    self.save,
                    self.save,
                    self.restart,
                    self.stop,
                    self.pin,
                    self.renew,
                    self.forget,
                    self.revoke,
                ]
            )()
        self.meet()
        if not self.running:
            self.nodes[0].start(self.nodes[0].disks[-1])
        self.converge()
        self.judge()

    # What happens

    def pick(self):
        return self.rng.choice(self.running) if self.running else None

    def join(self):
        idle = [node for node in self.nodes if node.ledger is None]
        if idle:
            node = self.rng.choice(idle)
            node.start(node.disks[-1])

    def gossip(self):
        """Have one tell another some of what it knows, if they are on one side."""
        if len(self.running) < 2:
            return
        sender, receiver = self.rng.sample(self.running, 2)
        if self._side(sender) != self._side(receiver):
            return
        facts = [fact for fact in sender.ledger.facts() if self.rng.random() < 0.7]
        self.rng.shuffle(facts)
        receiver.take(facts)

    def split(self):
        self.sides = {number: self.rng.randrange(3) for number in self.sides}

    def meet(self):
        self.sides = dict.fromkeys(self.sides, 0)

    def save(self):
        if (node := self.pick()) is not None:
            node.save()

    def restart(self):
        """From what was last written, or from any older state."""
        if (node := self.pick()) is not None:
            disk = self.rng.choice([node.disks[-1], node.disks[-1], self.rng.choice(node.disks)])
            node.stop()
            node.start(disk)

    def stop(self):
        if (node := self.pick()) is not None and self.rng.random() < 0.5:
            node.stop()

    def pin(self):
        """Have the mesh key fix a node's address, or let it loose again."""
        if (node := self.pick()) is not None:
            address = self.rng.choice([None, *list(self.prefix)[1:5]])
            node.credential = replace(
                node.credential, ipv4=address, issued_at=node.credential.issued_at + 1
            )
            node.settle()

    def renew(self):
        if (node := self.pick()) is not None:
            node.credential = replace(node.credential, issued_at=node.credential.issued_at + 1)
            node.settle()

    def forget(self):
        if (node := self.pick()) is not None:
            other = self.rng.choice(self.nodes)
            if other is not node:
                node.ledger.forget(other.node)
                node.settle()

    def revoke(self):
        if self.rng.random() < 0.2 and (node := self.pick()) is not None:
            subject = self.rng.choice(self.nodes).node
            word = Revocation(subject, MESH, cascade=False, revoked_at=WALL)
            blob = sign_revocation(word, MESH_KEY, MESH)
            node.ledger.merge_untrusted(FactKind.REVOCATION, blob, WALL)
            node.settle()

    def _side(self, node):
        return self.sides[self.nodes.index(node)]

    # How it ends

    def converge(self):
        """Let all tell all, in any order, until nobody has anything new."""
        for _ in range(ROUNDS_MAX):
            before = self._facts()
            pairs = [(a, b) for a in self.running for b in self.running if a is not b]
            self.rng.shuffle(pairs)
            for sender, receiver in pairs:
                receiver.take(list(sender.ledger.facts()))
            if self._facts() == before:
                return
        raise AssertionError(f"not at rest after {ROUNDS_MAX} rounds")

    def judge(self):
        facts, *others = self._facts()
        assert all(other == facts for other in others), "the same facts everywhere"
        members = [node for node in self.running if node.admitted]
        views = [node.addresses() for node in self.running]
        assert all(view == views[0] for view in views), "the same addresses everywhere"
        view = views[0]
        assert len(set(view.values())) == len(view), "one holder for each address"
        self._judge_shares(members, view)
        self._judge_plans(members)
        self._judge_order(facts, view)

    def _judge_shares(self, members, view):
        free = {a for a in self.prefix if usable(a, self.prefix)} - set(view.values())
        for node in members:
            assert view.get(node.node) == node.ipv4, "what it claims, it has"
            if node.credential.ipv4 is None:
                assert node.ipv4 is not None or not free, "there was one left"
            elif node.ipv4 is None:
                assert node.credential.ipv4 in view.values() or not usable(
                    node.credential.ipv4, self.prefix
                ), "its pin is another's, with a better claim"

    def _judge_plans(self, members):
        plans = [node.plan() for node in members]
        for plan in plans:
            assert plan == plans[0], "every tunnel carries the same, seen from everywhere"
            carried = [network for networks in plan.values() for network in networks]
            assert len(set(carried)) == len(carried), "and no two carry one address"
        for node in members:
            wanted = {host_network(overlay_address(MESH, node.node))}
            if node.ipv4 is not None:
                wanted.add(host_network(node.ipv4))
            assert plans[0][node.wireguard_key.public] == wanted

    def _judge_order(self, facts, view):
        """Somebody who learns all of it at once, in whatever order, arrives at the same."""
        for _ in range(3):
            ledger = Ledger(MESH)
            for kind, blob in self.rng.sample(facts, len(facts)):
                ledger.merge_untrusted(kind, blob, WALL)
            members = [(node, s) for node, s in ledger.members().items() if s.admitted]
            assert resolve_claims(claims_of(members), self.prefix) == view

    def _facts(self):
        return [[(f.kind, f.blob) for f in node.ledger.facts()] for node in self.running]


def run_history(seed):
    """Run one history.  Raise AssertionError if it does not end well."""
    remember_signatures()
    History(seed).run()


def _attempt(seed):
    try:
        run_history(seed)
    except Exception:  # any error at all is what is searched for
        return seed, traceback.format_exc()
    return seed, ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--histories", type=int, default=10_000, metavar="N", help="how many")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="where to begin")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), metavar="N")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.histories)
    failed = []
    said_at = began_at = time.monotonic()
    with multiprocessing.Pool(arguments.jobs) as pool:
        attempts = pool.imap_unordered(_attempt, seeds, chunksize=16)
        for count, (seed, wrong) in enumerate(attempts, start=1):
            if wrong:
                failed.append(seed)
                sys.stdout.write(f"\n{wrong}\nhistory {seed}\n")
            if time.monotonic() - said_at > _PROGRESS_INTERVAL:
                said_at = time.monotonic()
                rate = count / (said_at - began_at)
                sys.stdout.write(f"{count} of {len(seeds)}, {rate:.0f} / s, {len(failed)} failed\n")
    sys.stdout.write(f"{len(seeds)} histories of claims, failed: {sorted(failed) or 0}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
