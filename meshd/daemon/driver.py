"""The one task that owns the engine: one input, then its outputs are drained.

    sockets, netlink, meshctl ──inputs──▶ ┌────────┐ ──▶ datagrams, to the sockets
    deadline of get_timer() ────────────▶ │ engine │ ──▶ probes over TCP, each a task
    WireGuard's counters ───────────────▶ │        │ ──▶ events, to the daemon
                      ▲                   └────────┘ ──▶ a new plan, to the reconciler
                      └────────── look ◀──────┘

Rule 1: inputs queue in a channel without a buffer: when the engine is busy, datagrams wait in their
        sockets, and the kernel drops them when they are too many.

Rule 2: datagrams are given in turns of `TURN_SECONDS`.  Between two turns whatever else waits has
        its own: what is due by the clock first, then the other socket, requests of operators.

Rule 3: what is not let in gets no more than `REFUSED_DUTY_MAX` of a core: after a turn that was
        spent on it, the underlay rests.  So a flood costs a known part of this machine, and none of
        what the tunnels and the gossip in them need.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from meshd.daemon.sleep import SleepWatch
from meshd.net.datagram import BATCH_MAX
from meshd.net.overlay import GOSSIP_PORT
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engine.engine import Engine
    from meshd.engine.events import Event, OverlayStream
    from meshd.net.datagram import Datagram
    from meshd.net.overlay import Overlay
    from meshd.net.stream import Streams
    from meshd.net.underlay import Underlay
    from meshd.relay.hello import RelayOutgoing
    from meshd.wg.types import DeviceStatus

TURN_SECONDS = 0.002
REFUSED_DUTY_MAX = 0.5

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
        streams: Streams,
        *,
        on_event: Callable[[Event], None],
        on_plan: Callable[[], None],
        look: Callable[[], DeviceStatus | None],
        send_relayed: Callable[[RelayOutgoing], None],
        on_resumed: Callable[[float], None],
        sleep: SleepWatch | None = None,
    ) -> None:
        """Take what is open already.  `look` observes the device, or returns None if it cannot.

        `send_relayed` sends from the ports that this node relays by.
        `on_resumed` is told how many seconds this machine has slept, after the engine.
        """
        self._engine = engine
        self._underlay = underlay
        self._overlay = overlay
        self._streams = streams
        self._on_event = on_event
        self._on_plan = on_plan
        self._look = look
        self._send_relayed = send_relayed
        self._on_resumed = on_resumed
        self._sleep = sleep or SleepWatch()
        self._nursery: trio.Nursery | None = None  # while running
        self._revision = -1
        self._scope = trio.CancelScope()
        self._send, self._receive = trio.open_memory_channel[Input](0)

    async def run(self) -> None:
        """Run until cancelled, or stopped."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._receive_underlay)
                nursery.start_soon(self._receive_overlay)
                nursery.start_soon(self._serve_streams)
                try:
                    await self._drive()
                finally:
                    self._nursery = None

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
        while True:
            waiting = deque(await self._underlay.receive_batch())
            self._engine.swamped = len(waiting) >= BATCH_MAX
            while waiting:
                refused_seconds = await self.submit(partial(self._take_underlay, waiting))
                await trio.sleep(refused_seconds * (1 / REFUSED_DUTY_MAX - 1))

    def _take_underlay(self, waiting: deque[Datagram], now: float, wall: float) -> float:
        """Give the engine a turn's worth of datagrams.  Return seconds lost on those refused."""
        refused_seconds = 0.0
        until = now + TURN_SECONDS
        while waiting and now < until:
            payload, source, local = waiting.popleft()
            let_in = self._engine.underlay_datagram(payload, source, local, now, wall)
            if let_in:
                self.drain()
            began_at, now = now, trio.current_time()
            if not let_in:
                refused_seconds += now - began_at
        return refused_seconds

    async def _receive_overlay(self) -> None:
        while True:
            waiting = deque(await self._overlay.receive_batch())
            for address in self._overlay.take_unreachable():
                await self.submit(partial(self._engine.overlay_unreachable, address))
            while waiting:
                await self.submit(partial(self._take_overlay, waiting))

    def _take_overlay(self, waiting: deque[Datagram], now: float, wall: float) -> None:
        """Give the engine a turn's worth of datagrams."""
        until = now + TURN_SECONDS
        while waiting and now < until:
            payload, source, _ = waiting.popleft()
            if isinstance(source.address, IPv6Address):
                self._engine.overlay_datagram(payload, source.address, now, wall)
                self.drain()
            now = trio.current_time()

    async def _serve_streams(self) -> None:
        engine = self._engine

        async def answer(frame: bytes, source: IPv6Address) -> bytes | None:
            return await self.submit(partial(engine.overlay_stream, frame, source))

        await self._streams.serve(answer, is_member=engine.is_member_address)

    async def _open_stream(self, stream: OverlayStream) -> None:
        answer = await self._streams.exchange(stream.frame, stream.target, within=stream.timeout)
        if answer is not None:
            await self.submit(partial(self._engine.overlay_datagram, answer, stream.target))

    async def _drive(self) -> None:
        self.drain()
        while True:
            # One input, then drain; the engine relies on it.
            give: Input = self._engine.handle_timer
            with trio.move_on_at(self._engine.get_timer().at):
                give = await self._receive.receive()
            if slept := self._sleep.slept():
                self._engine.resumed(now=trio.current_time(), wall=time.time())
                self.drain()
                self._on_resumed(slept)
            give(now=trio.current_time(), wall=time.time())
            self.drain()

    def drain(self) -> None:
        """Take what the engine has given out.  Due after each of its inputs."""
        if self._scope.cancel_called:
            return
        self._put_out()
        if self._engine.wants_look(now := trio.current_time()):
            self._engine.counters_observed(self._look(), now, time.time())
            self._put_out()

    def _put_out(self) -> None:
        engine = self._engine
        while (event := engine.next_event()) is not None:
            self._on_event(event)
        for datagram, target, source in engine.underlay_datagrams():
            self._underlay.send(datagram, target, source)
        for outgoing in engine.relay_datagrams():
            self._send_relayed(outgoing)
        for payload, address in engine.overlay_datagrams():
            self._overlay.send(payload, Endpoint(address, GOSSIP_PORT))
        if self._nursery is not None:
            for stream in engine.streams_to_open():
                self._nursery.start_soon(self._open_stream, stream)
        if engine.plan_revision != self._revision:
            self._revision = engine.plan_revision
            self._on_plan()
