"""Events on their way to whoever listens.

The hub keeps the last `EVENTS_KEPT_MAX` events and hands each new one to every subscription.  A
subscription holds at most `BACKLOG_MAX` events that its reader has not taken; one more, and it is
cut off: it gives what it holds and then raises `TooSlow`.  The daemon never waits for a reader.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import trio

from meshd.control.snapshot import EventRecord
from meshd.errors import MeshdError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


EVENTS_KEPT_MAX = 1000
BACKLOG_MAX = 256


class TooSlow(MeshdError):
    """A subscriber did not keep up and has missed events.  Only its subscription has ended."""


class Subscription:
    """One reader's view of the hub: an asynchronous iterator that has no end of its own."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[EventRecord](BACKLOG_MAX)

    def offer(self, record: EventRecord) -> None:
        """Add an event, or cut the reader off where there is no room for it."""
        try:
            self._send.send_nowait(record)
        except trio.WouldBlock:
            self._send.close()
        except trio.ClosedResourceError:
            pass  # it has been cut off before and is still being read

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> EventRecord:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise TooSlow(f"more than {BACKLOG_MAX} events were waiting to be read") from None

    def close(self) -> None:
        """Let go of the channel."""
        self._send.close()
        self._receive.close()


class EventHub:
    """Where the daemon publishes its events."""

    def __init__(self, history: Iterable[EventRecord] = ()) -> None:
        self._recent: deque[EventRecord] = deque(history, EVENTS_KEPT_MAX)
        self._subscriptions: list[Subscription] = []
        self._waiting = trio.lowlevel.ParkingLot()

    def publish(self, record: EventRecord) -> None:
        """Hand an event to everyone who listens.  Never blocks."""
        self._recent.append(record)
        for subscription in self._subscriptions:
            subscription.offer(record)
        self._waiting.unpark_all()

    async def wait_published(self) -> None:
        """Return when the next event has been published, for a reader of the state itself."""
        await self._waiting.park()

    def recent(self, count: int = EVENTS_KEPT_MAX) -> tuple[EventRecord, ...]:
        """Return the last `count` events still kept, oldest first."""
        kept = len(self._recent)
        return tuple(islice(self._recent, max(0, kept - count), None))

    @property
    def listeners(self) -> int:
        """How many subscriptions are open."""
        return len(self._subscriptions)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Listen to what is published from here on."""
        subscription = Subscription()
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
            subscription.close()
