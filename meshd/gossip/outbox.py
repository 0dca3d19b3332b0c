"""What a node sends: messages made into datagrams, with the items that go along.

Rule 1: every message says what we know of its receiver's incarnation and what our own is.

Rule 2: pings, acks and gossip carry, in this order and as far as they fit: who we are, if the
        receiver has not heard; what is held against it, so that it can refute; news.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meshd.gossip.wire import (
    CLAIM_ITEM,
    ITEM_BYTES_MAX,
    ITEMS_MAX,
    Item,
    Message,
    MessageType,
    encode,
)
from meshd.keys import NodeId

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshd.gossip.broadcast import BroadcastQueue
    from meshd.gossip.index import Entry
    from meshd.gossip.membership import Membership
    from meshd.gossip.store import FactStore


class StreamProbe(NamedTuple):
    """A ping to be sent over a TCP connection through the tunnel, and when to give up."""

    datagram: bytes
    target: NodeId
    timeout: float  # seconds


class Outbox:
    """Datagrams waiting to be taken.  Part of a `Node`."""

    def __init__(
        self, membership: Membership, broadcasts: BroadcastQueue, ledger: FactStore
    ) -> None:
        self._membership = membership
        self._broadcasts = broadcasts
        self._ledger = ledger
        self._datagrams: list[tuple[bytes, NodeId]] = []
        self._streams: list[StreamProbe] = []
        self.datagrams_sent = 0
        self.bytes_sent = 0
        self.streams_opened = 0

    def take(self) -> list[tuple[bytes, NodeId]]:
        """Return what is to be sent, and forget it."""
        datagrams, self._datagrams = self._datagrams, []
        return datagrams

    def take_streams(self) -> list[StreamProbe]:
        """Return what is to be sent over TCP, and forget it."""
        streams, self._streams = self._streams, []
        return streams

    def send(self, target: NodeId, message: Message) -> None:
        """Queue a message just as it is (rule 1)."""
        datagram = self._encoded(target, message)
        self.datagrams_sent += 1
        self.bytes_sent += len(datagram)
        self._datagrams.append((datagram, target))

    def send_piggybacked(
        self, target: NodeId, type_: MessageType, sequence: int, *, first: Sequence[Item] = ()
    ) -> None:
        """Queue a message with what its receiver should know (rule 2), and `first` before all."""
        self.send(target, self._piggybacked(target, type_, sequence, first))

    def open_stream(self, target: NodeId, sequence: int, timeout: float) -> None:
        """Queue a ping for a connection of its own."""
        ping = self._piggybacked(target, MessageType.PING, sequence)
        self.streams_opened += 1
        self._streams.append(StreamProbe(self._encoded(target, ping), target, timeout))

    def stream_ack(self, target: NodeId, sequence: int) -> bytes:
        """Return the answer to a ping that came over a connection."""
        return self._encoded(target, self._piggybacked(target, MessageType.ACK, sequence))

    def send_entries(self, target: NodeId, entries: Iterable[Entry], *, sequence: int) -> None:
        """Queue all that is held under some entries, in as many datagrams as it takes."""
        batch: list[Item] = []
        budget = ITEM_BYTES_MAX
        for entry in entries:
            for item in self._items(entry):
                if item.cost > budget or len(batch) == ITEMS_MAX:
                    self.send(target, Message(MessageType.FACTS, sequence, items=tuple(batch)))
                    batch, budget = [], ITEM_BYTES_MAX
                batch.append(item)
                budget -= item.cost
        if batch:
            self.send(target, Message(MessageType.FACTS, sequence, items=tuple(batch)))

    def _encoded(self, target: NodeId, message: Message) -> bytes:
        member = self._membership.get(target)
        known = member.incarnation if member is not None and member.belief is not None else None
        own = self._membership.own.incarnation
        return encode(message._replace(incarnation=own, known=known))

    def _piggybacked(
        self, target: NodeId, type_: MessageType, sequence: int, first: Sequence[Item] = ()
    ) -> Message:
        items = list(first)
        items += [item for item in self._membership.claims_for(target) if item not in first]
        budget = ITEM_BYTES_MAX - sum(item.cost for item in items)
        news = self._broadcasts.take(
            budget, members=len(self._membership) + 1, count_max=ITEMS_MAX - len(items)
        )
        items += [item for item in news if item not in items]
        return Message(type_, sequence, items=tuple(items))

    def _items(self, entry: Entry) -> list[Item]:
        if entry.kind == CLAIM_ITEM:
            return self._membership.claims_about(NodeId(entry.key))
        fact = self._ledger.get(entry.kind, entry.key)
        return [] if fact is None else [Item(fact.kind, fact.blob)]
