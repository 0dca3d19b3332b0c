"""What members tell: items come in, are judged, and have their consequences.

Rule 1: facts are the ledger's to judge, claims are `membership`'s.  A fact goes first, because a
        claim about somebody whose record comes in the same datagram must find it known; and a
        revocation before other facts.

Rule 2: what is news is passed on; but not what a newcomer fetches, because everybody else has it.

Rule 3: whoever has missed a refutation is the first to hear of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.errors import BadPacket
from meshd.gossip.events import (
    BadPacketReceived,
    EquivocationSeen,
    FactLearned,
    RecordEvicted,
)
from meshd.gossip.index import turn_of
from meshd.gossip.wire import CLAIM_ITEM, Item, Message, MessageType
from meshd.keys import NodeId
from meshd.trust.fact import ABOUT_ONE_NODE, FactKind
from meshd.trust.ledger import NO_ROOM, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.gossip.broadcast import BroadcastQueue
    from meshd.gossip.index import Index
    from meshd.gossip.membership import Membership
    from meshd.gossip.outbox import Outbox
    from meshd.gossip.store import FactStore
    from meshd.gossip.sync import Sync
    from meshd.trust.fact import Fact

CORRECTIONS_MAX = 4  # in the answer to one datagram; as many as fit


class Intake:
    """Part of a `Node`."""

    def __init__(
        self,
        ledger: FactStore,
        membership: Membership,
        index: Index,
        broadcasts: BroadcastQueue,
        outbox: Outbox,
        sync: Sync,
    ) -> None:
        self._ledger = ledger
        self._membership = membership
        self._index = index
        self._broadcasts = broadcasts
        self._outbox = outbox
        self._sync = sync
        self.facts_learned = 0
        self.bad_packets = 0

    def merge_items_untrusted(
        self, message: Message, source: NodeId, now: float, wall: float
    ) -> list[tuple[int, bytes]]:
        """Take in the facts of a message, then its claims.  Return what they are about."""
        # What a newcomer fetches, everybody else knows; what a settled member fetches is news.
        relay = message.type is not MessageType.FACTS or self._sync.settled
        seen: list[tuple[int, bytes]] = []
        corrections: dict[NodeId, Item] = {}
        changed: list[Fact] = []
        for item in sorted(message.items, key=lambda item: turn_of(item.kind)):
            if item.kind == CLAIM_ITEM and changed:
                self.take_facts(changed, now, broadcast=relay)
                changed = []
            try:
                if item.kind == CLAIM_ITEM:
                    claim, news = self._membership.merge_claim_untrusted(
                        item.blob, now, relay=relay
                    )
                    seen.append((CLAIM_ITEM, claim.subject))
                    if news is not None and source != news.subject:
                        corrections[news.subject] = Item(CLAIM_ITEM, news.blob)
                elif (
                    fact := self._merge_fact_untrusted(item, source, now, wall, changed)
                ) is not None:
                    seen.append((fact.kind, fact.key))
            except BadPacket as exc:
                self._membership.events.append(BadPacketReceived(source, exc.reason))
                self.bad_packets += 1
        self.take_facts(changed, now, broadcast=relay)
        if corrections and self._membership.get(source) is not None:
            # Whoever told us believes it: it is the first to hear otherwise.
            first = list(corrections.values())[:CORRECTIONS_MAX]
            self._outbox.send_piggybacked(source, MessageType.GOSSIP, 0, first=first)
        return seen

    def _merge_fact_untrusted(
        self, item: Item, source: NodeId, now: float, wall: float, changed: list[Fact]
    ) -> Fact | None:
        result = self._ledger.merge_untrusted(item.kind, item.blob, wall)
        fact = result.fact
        for node in result.evicted:
            # It may have come with this very datagram.
            gone = (FactKind.RECORD, bytes(node))
            changed[:] = [each for each in changed if (each.kind, each.key) != gone]
            self.forget_record(node, now)
            self._membership.events.append(RecordEvicted(node))
        if result.outcome is Outcome.FULL:
            raise BadPacket(NO_ROOM)
        if fact is None:
            return None  # of a later version, or ahead of what we know
        if result.outcome is Outcome.EQUIVOCATION:
            self._membership.events.append(EquivocationSeen(fact, source))
        if result.changed:
            self.facts_learned += 1
            self._membership.events.append(FactLearned(fact, source))
            changed.append(fact)
        else:
            key = (fact.kind, fact.key, b"")
            self._broadcasts.came_back(key, item.blob, members=len(self._membership) + 1)
        return fact

    def forget_record(self, node: NodeId, now: float) -> None:
        """Let go of a node whose record the ledger has dropped."""
        self._membership.remove(node, now)
        self._index.remove(FactKind.RECORD, node)
        self._broadcasts.drop((FactKind.RECORD, node, b""))

    def take_facts(self, facts: Sequence[Fact], now: float, *, broadcast: bool) -> None:
        """Act on what the ledger has learnt.  All at once: standings are worked out only once."""
        if not facts:
            return
        for fact in facts:
            self._index.put(fact.kind, fact.key, fact.version, fact.digest)
            if broadcast:
                self._broadcasts.put((fact.kind, fact.key, b""), Item(fact.kind, fact.blob))
        self._sync.facts_changed(now)
        if all(fact.kind in ABOUT_ONE_NODE for fact in facts):
            for fact in facts:
                node = NodeId(fact.key)
                if self._ledger.admitted(node):
                    self._membership.add(node, now)
                else:
                    self._membership.remove(node, now)
        else:
            self.refresh_members(now)

    def refresh_members(self, now: float) -> None:
        """Take from the ledger who is a member."""
        admitted = [node for node in self._ledger.members() if self._ledger.admitted(node)]
        self._membership.refresh(admitted, now)
