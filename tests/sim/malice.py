"""A member that has gone bad: what it can send with its own key, and with all that it has seen.

It signs accusations of everybody at any incarnation, signs in the name of others with its own key,
claims that it is itself at the highest incarnation, says again what was true long ago, and sends
bytes that are no message at all.  WireGuard lets it do none of that under another's name.
"""

from __future__ import annotations

from random import Random

from meshd.codec import pack
from meshd.gossip.claim import INCARNATION_MAX, MemberState
from meshd.gossip.wire import (
    CLAIM_ITEM,
    DATAGRAM_BYTES_MAX,
    ITEM_BYTES_MAX,
    ITEMS_MAX,
    SEQUENCE_MAX,
    Item,
    Message,
    MessageType,
    decode_untrusted,
    encode,
)
from meshd.trust.signed import Statement, sign

ALIVE, SUSPECT, DEAD, LEFT = MemberState
_SEEN_MAX = 256


class Malice:
    """What one host does.  Its own node goes on as if nothing were."""

    def __init__(self, cluster, name):
        self._cluster = cluster
        self._host = cluster.hosts[name]
        self._rng = Random(f"malice {name} {cluster.seed}")
        self._seen_items = []
        self._seen_datagrams = []
        cluster.malicious[name] = None

    def listen(self):
        """Note what everybody holds, to be said again when it is true no more."""
        for host in self._cluster.running():
            membership = host.node._membership
            for subject in (host.key.id, *(member.node for member in membership)):
                self._seen_items += membership.claims_about(subject)
        self._seen_items = list(dict.fromkeys(self._seen_items))[-_SEEN_MAX:]

    def act(self):
        """Send a few bad things to everybody."""
        sends = [self._accuse, self._forge, self._boast, self._replay, self._garble, self._confuse]
        for _ in range(self._rng.randint(1, 4)):
            send = self._rng.choice(sends)
            for target in self._cluster.running():
                if target is not self._host:
                    self._cluster.inject(self._host.name, target.name, send(target))

    def _someone(self):
        others = [host for host in self._cluster.hosts.values() if host is not self._host]
        return self._rng.choice(others)

    def _incarnation(self, host):
        rng = self._rng
        known = max(self._cluster.incarnations.get(host.name, 0), 0)
        return rng.choice([known, known, known + 1, max(known - 1, 0), INCARNATION_MAX])

    def _gossip(self, items):
        type_ = self._rng.choice([MessageType.GOSSIP, MessageType.PING, MessageType.FACTS])
        known = self._rng.choice([None, 0, INCARNATION_MAX])
        sequence = self._rng.getrandbits(32)
        chosen, budget = [], ITEM_BYTES_MAX
        for item in items[:ITEMS_MAX]:
            if item.cost <= budget:
                budget -= item.cost
                chosen.append(item)
        return encode(Message(type_, sequence, self._incarnation(self._host), known, tuple(chosen)))

    def _claim(self, subject, incarnation, state, signer=None):
        """Sign a claim with its own key, whoever is said to have signed it."""
        fields = {1: bytes(subject.key.id), 2: incarnation, 3: int(state)}
        if signer is not None:
            fields[4] = bytes(signer.key.id)
            fields[5] = self._rng.choice([0, 100, 2**16 - 1])  # milliseconds without an ack
        blob = sign(Statement.CLAIM, self._cluster.mesh, self._host.key, pack(fields))
        return Item(CLAIM_ITEM, blob)

    def _accuse(self, target):
        """Accuse, with its own and proper signature."""
        return self._gossip(
            [
                self._claim(host, self._incarnation(host), SUSPECT, signer=self._host)
                for host in (target, self._someone(), self._someone())
            ]
        )

    def _forge(self, target):
        """Say with its own key what only another may: that it is alive, has left, or accuses."""
        subject, signer = self._someone(), self._rng.choice([None, self._someone()])
        state = self._rng.choice([ALIVE, LEFT, SUSPECT, DEAD])
        return self._gossip([self._claim(subject, self._incarnation(subject), state, signer)])

    def _boast(self, target):
        """Claim an incarnation of its own that cannot be exceeded, or that it has left."""
        incarnation = self._rng.choice([INCARNATION_MAX, INCARNATION_MAX - 1])
        return self._gossip([self._claim(self._host, incarnation, self._rng.choice([ALIVE, LEFT]))])

    def _replay(self, target):
        """Say again what others have said."""
        if not self._seen_items:
            self.listen()
        return self._gossip(self._rng.sample(self._seen_items, min(8, len(self._seen_items))))

    def _garble(self, target):
        """Send bytes: some of a message, or none."""
        datagram = bytearray(self._replay(target))
        match self._rng.randrange(3):
            case 0:
                return self._rng.randbytes(self._rng.randint(0, DATAGRAM_BYTES_MAX))
            case 1:
                return bytes(datagram[: self._rng.randrange(len(datagram))])
            case _:
                for _ in range(self._rng.randint(1, 8)):
                    datagram[self._rng.randrange(len(datagram))] = self._rng.randrange(256)
                return bytes(datagram)

    def _confuse(self, target):
        """Answer what was not asked, and ask for what is not there."""
        rng = self._rng
        type_ = rng.choice([MessageType.ACK, MessageType.NACK, MessageType.PING_REQ])
        asked = None if type_ is MessageType.ACK and rng.random() < 0.5 else self._someone().key.id
        if rng.random() < 0.3:
            ids = tuple(rng.randbytes(8) for _ in range(32))
            message = Message(MessageType.WANT, rng.randint(0, SEQUENCE_MAX), ids=ids)
        else:
            message = Message(type_, rng.randint(0, SEQUENCE_MAX), target=asked)
        datagram = encode(message)
        assert decode_untrusted(datagram)
        return datagram
