"""Hears of changed links, addresses and default routes, and passes on what they are by now.

    kernel ─▶ monitor ─ settle ─▶ addresses ─▶ engine: our candidates, and paths proven anew
                                  default routes, if they are others ─▶ engine: paths proven anew
                                  the router ─▶ port mapping
                                  anything at all ─▶ reconciler: look whether it is all there

A default route that moves may leave all addresses as they are: a host with two uplinks.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from meshd.daemon.host import FWMARK
from meshd.net.local import router_of
from meshd.net.monitor import NetworkMonitor

if TYPE_CHECKING:
    from meshd.daemon.daemon import Daemon
    from meshd.net.local import DefaultRoute

LOCAL_SETTLE_INTERVAL = 0.05  # an address and the route that comes with it are one change


class NetworkWatch:
    """See the module docstring."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._routes: tuple[DefaultRoute, ...] = ()

    async def run(self) -> None:
        """Run until cancelled."""
        daemon = self._daemon
        with NetworkMonitor() as monitor:
            self._routes = daemon.host.links.default_routes(fwmark=FWMARK)
            await self._tell_router()
            async for _ in monitor:
                await trio.sleep(LOCAL_SETTLE_INTERVAL)
                addresses = daemon.local_addresses()
                await daemon.driver.submit(partial(daemon.engine.local_changed, addresses))
                await self._look_at_routes()
                daemon.reconciler.resync()

    async def _look_at_routes(self) -> None:
        routes = self._daemon.host.links.default_routes(fwmark=FWMARK)
        if routes != self._routes:
            self._routes = routes
            await self._daemon.driver.submit(self._daemon.engine.routes_changed)
            await self._tell_router()

    async def _tell_router(self) -> None:
        if self._daemon.port_mapping is not None:
            await self._daemon.port_mapping.gateway_changed(router_of(self._routes))
