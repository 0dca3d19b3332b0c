"""Has the router's port lead to ours for as long as the daemon runs, and tells the engine of it.

    default route ─▶ ┌────────┐ ─▶ datagrams, searches ─▶ router
    router's words ─▶│ mapper │ ─▶ a UPnP process, one at a time
    its deadlines ─▶ └────────┘ ─▶ endpoint ─▶ engine: a candidate in our record

Only where one port serves both: the router is asked for WireGuard's port and no other, and a
candidate that no probe can reach is worth nothing.  When the daemon ends, the mapping stays until
its life is over, as the tunnels do; `meshctl leave` ends it.

What comes from the router's address is read at most once every `HEARD_INTERVAL`, so that a flood in
its name costs nothing; the kernel drops the rest.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from meshd import logs
from meshd.control.snapshot import HealthFinding
from meshd.errors import DeviceError
from meshd.keys import fingerprint
from meshd.net.portmap import Router, call_upnp
from meshd.portmap import pcp
from meshd.portmap.actions import Ask, Call, Search
from meshd.portmap.mapper import Mapper, State

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Iterable, Iterator

    from meshd.codec import IPNetwork
    from meshd.keys import NodeKey
    from meshd.portmap.gateway import Gateway
    from meshd.portmap.mapper import MapperView
    from meshd.wg.types import Endpoint

log = logging.getLogger(__name__)

HEARD_INTERVAL = 0.02
RELEASE_TIMEOUT = 1.0  # for the router to hear that its port is not needed any more


class PortMapping:
    """Owns the mapper and what is open towards the router."""

    def __init__(
        self,
        key: NodeKey,
        *,
        port: int,
        fwmark: int,
        excluded: Iterable[IPNetwork],
        tell: Callable[[Endpoint | None], Awaitable[object]],
    ) -> None:
        """`tell` takes the mapped endpoint whenever it has changed; `excluded`: the mesh's own."""
        # The same in each run: a router gives a mapping to nobody who does not know it.
        nonce = fingerprint(key.seed, size=pcp.NONCE_BYTES, person=b"meshd pcp nonce")
        self._mapper = Mapper(port, nonce, excluded=excluded, rng=random.SystemRandom())
        self._fwmark = fwmark
        self._tell = tell
        self._told: Endpoint | None = None
        self._released = trio.Event()
        self._router: Router | None = None
        self._listening = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._helpers: trio.Nursery | None = None
        self._send, self._receive = trio.open_memory_channel[Callable[[float], None]](0)

    async def run(self) -> None:
        """Run until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                while True:
                    give: Callable[[float], None] = self._mapper.handle_timer
                    with trio.move_on_at(self._mapper.get_timer().at):
                        give = await self._receive.receive()
                    give(trio.current_time())
                    await self._put_out()
        finally:
            self._nursery = None
            self._close()

    async def gateway_changed(self, gateway: Gateway | None) -> None:
        """Take the router that IPv4 datagrams leave by."""
        if gateway != self._mapper.view().gateway:
            await self._send.send(partial(self._turn_to, gateway))

    async def resumed(self) -> None:
        """Take that this machine has slept."""
        await self._send.send(self._mapper.resumed)

    async def release(self) -> None:
        """End the mapping, if the router listens."""
        with trio.move_on_after(RELEASE_TIMEOUT):
            await self._send.send(self._mapper.release)
            await self._released.wait()

    def view(self) -> MapperView:
        """Return what is known of the mapping."""
        return self._mapper.view()

    @property
    def bad_packets(self) -> Counter[str]:
        """What was dropped of what the router said, or somebody in its name, by reason."""
        return self._mapper.bad_packets

    def findings(self) -> Iterator[HealthFinding]:
        """Say what keeps others from reaching this node by its router's port."""
        view = self._mapper.view()
        if view.state is State.DOUBLE_NAT:
            yield HealthFinding(
                "info",
                "double-nat",
                f"the router {_address(view)} is itself behind NAT: its outside is {view.outside}; "
                "a port of it leads nobody here, so others are reached by hole punching or relays",
            )

    # One thing after the other

    def _turn_to(self, gateway: Gateway | None, now: float) -> None:
        self._close()
        if gateway is not None:
            try:
                self._router = Router(gateway, fwmark=self._fwmark)
            except DeviceError as error:
                log.warning("%s; no port is mapped", error)
                gateway = None
        self._mapper.gateway_changed(gateway, now)
        if self._router is not None:
            assert self._nursery is not None
            self._listening = trio.CancelScope()
            self._nursery.start_soon(self._listen, self._router, self._listening)

    def _close(self) -> None:
        self._listening.cancel()
        if self._router is not None:
            self._router.close()
            self._router = None

    async def _put_out(self) -> None:
        for action in self._mapper.actions():
            assert self._router is not None, "no router, no questions"
            match action:
                case Ask(datagram):
                    self._router.ask(datagram)
                case Search(datagram, target):
                    self._router.search(datagram, target)
                case Call(line):
                    assert self._helpers is not None, "the search was answered"
                    self._helpers.start_soon(self._call, line)
        endpoint, state = self._mapper.endpoint, self._mapper.view().state
        if state is State.RELEASED:
            if self._mapper.done:
                self._released.set()
        elif endpoint != self._told:
            self._told = endpoint
            self._log()
            await self._tell(endpoint)

    def _log(self) -> None:
        view = self._mapper.view()
        if view.endpoint is None:
            log.info("the router %s maps no port to this node any more", _address(view))
        else:
            log.info(
                "the router %s maps %s to this node, by %s",
                _address(view),
                view.endpoint,
                view.method,
                extra=logs.fields(event="port-mapped"),
            )

    async def _listen(self, router: Router, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                self._helpers = nursery  # which end with the router that they are about
                nursery.start_soon(self._hear_answers, router)
                nursery.start_soon(
                    self._hear, router.search_answer, self._mapper.receive_search_answer
                )
                nursery.start_soon(
                    self._hear, router.announcement, self._mapper.receive_announcement
                )

    async def _hear_answers(self, router: Router) -> None:
        while True:
            answer = await router.answer()
            if answer is None:
                await self._send.send(self._mapper.unreachable)
            else:
                await self._send.send(partial(self._mapper.receive_datagram, answer))
            await trio.sleep(HEARD_INTERVAL)

    async def _hear(
        self, receive: Callable[[], Awaitable[bytes]], give: Callable[[bytes, float], None]
    ) -> None:
        while True:
            await self._send.send(partial(give, await receive()))
            await trio.sleep(HEARD_INTERVAL)

    async def _call(self, line: bytes) -> None:
        answer = await call_upnp(line)
        await self._send.send(partial(self._mapper.upnp_answered, answer))


def _address(view: MapperView) -> str:
    return "" if view.gateway is None else str(view.gateway.address)
