"""The one task that owns the engine: one input, then its outputs are drained.

    sockets, netlink, meshctl ──inputs──▶ ┌────────┐ ──▶ datagrams, to the sockets
    deadline of get_timer() ────────────▶ │ engine │ ──▶ events, to the daemon
                                          └────────┘ ──▶ a new plan, to the reconciler

Inputs queue in a channel without a buffer: when the engine is busy, datagrams wait in their
sockets, and the kernel drops them when they are too many.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from meshd.net.overlay import GOSSIP_PORT
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engine.engine import Engine
    from meshd.engine.events import Event
    from meshd.net.datagram import Datagram
    from meshd.net.overlay import Overlay
    from meshd.net.underlay import Underlay

ResultT = TypeVar("ResultT")


class Input(Protocol):
    """Something for the engine to take in: called with both clocks, read when it is free."""

    def __call__(self, *, now: float, wall: float) -> object:
        """Give it to the engine."""


class Driver:
    """Feeds the engine from sockets, timers and whoever calls `submit`."""

    def __init__(
        self,
        engine: Engine,
        underlay: Underlay,
        overlay: Overlay,
        *,
        on_event: Callable[[Event], None],
        on_plan: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._underlay = underlay
        self._overlay = overlay
        self._on_event = on_event
        self._on_plan = on_plan
        self._revision = -1
        self._scope = trio.CancelScope()
        self._send, self._receive = trio.open_memory_channel[Input](0)

    async def run(self) -> None:
        """Run until cancelled, or stopped."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive_underlay)
                nursery.start_soon(self._receive_overlay)
                await self._drive()

    def stop(self) -> None:
        """Send nothing more, from this moment on."""
        self._scope.cancel()

    async def submit(self, give: Callable[[float, float], ResultT]) -> ResultT:
        """Give the engine an input, called with `now` and `wall`, and return what it returns.

        Its consequences have been drained when this returns.
        """
        done = trio.Event()
        result: list[ResultT] = []

        def input_(*, now: float, wall: float) -> None:
            result.append(give(now, wall))
            done.set()

        await self._send.send(input_)
        await done.wait()
        return result[0]

    async def _receive_underlay(self) -> None:
        engine = self._engine
        while True:
            for datagram in await self._underlay.receive_batch():
                await self._take(datagram, engine.underlay_datagram)

    async def _take(self, datagram: Datagram, take: Callable[..., None]) -> None:
        def input_(*, now: float, wall: float) -> None:
            take(datagram.payload, datagram.source, datagram.local, now, wall)

        await self._send.send(input_)

    async def _receive_overlay(self) -> None:
        engine = self._engine

        def take(payload: bytes, source: Endpoint, _local: object, now: float, wall: float) -> None:
            if source.address.version == 6:
                engine.overlay_datagram(payload, source.address, now, wall)

        while True:
            for datagram in await self._overlay.receive_batch():
                await self._take(datagram, take)

    async def _drive(self) -> None:
        self.drain()
        while True:
            # One input, then drain; the engine relies on it.
            give: Input = self._engine.handle_timer
            with trio.move_on_at(self._engine.get_timer().at):
                give = await self._receive.receive()
            give(now=trio.current_time(), wall=time.time())
            self.drain()

    def drain(self) -> None:
        """Take what the engine has given out.  Due after each of its inputs."""
        if self._scope.cancel_called:
            return
        engine = self._engine
        while (event := engine.next_event()) is not None:
            self._on_event(event)
        for datagram, target, source in engine.underlay_datagrams():
            self._underlay.send(datagram, target, source)
        for payload, address in engine.overlay_datagrams():
            self._overlay.send(payload, Endpoint(address, GOSSIP_PORT))
        if engine.plan_revision != self._revision:
            self._revision = engine.plan_revision
            self._on_plan()
