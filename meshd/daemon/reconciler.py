"""Keeps the kernel as the plan wants it: observe, diff, apply, again and again.

Level-triggered: it does not matter what woke it.  A new plan, a notice from the kernel or the
clock all lead to the same three steps, and so does an error, after a pause.  Nothing else in meshd
writes to the kernel.

    plan changed ─┐
    netlink ──────┼─▶ observe ─▶ diff ─▶ apply ─▶ tell the engine what is there
    every 5 s ────┘      ▲                 │
                         └── pause ◀─ DeviceError

A new plan mostly changes peers, so only the device is looked at for it; the interface's addresses,
routes and nft rules are when they are to change, when netlink rings, and every few seconds.

Others may `look` at the device in between.  They get nothing while it is being made anew, and
nothing while it is in trouble: one who waits for a device that hangs is enough.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from meshd.errors import DeviceError, StartError
from meshd.net import mux as one_port
from meshd.net.link import diff_link
from meshd.wg.backend import open_device
from meshd.wg.diff import diff_device, renewal, with_fresh_starts

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.keys import WireGuardKey
    from meshd.net.link import LinkSpec
    from meshd.net.mux import PortMux
    from meshd.net.rtnetlink import RouteNetlink
    from meshd.plan.plan import DesiredState
    from meshd.wg.types import Device, DeviceStatus, Endpoint

log = logging.getLogger(__name__)

RESYNC_INTERVAL = 5.0  # handshakes, counters and roaming have no notifications
COALESCE_INTERVAL = 0.005  # a burst of records becomes one change
DUTY_MAX = 0.25  # of the time, while changes keep coming
ERROR_PAUSE_MIN = 0.2
ERROR_PAUSE_MAX = 10.0


@dataclass(slots=True)
class ReconcilerStatistics:
    """What metrics read."""

    runs: int = 0
    changes: int = 0
    errors: int = 0
    repairs: dict[str, int] = field(default_factory=dict)


class Reconciler:
    """Owns the device handle and the interface's addresses, routes and rules."""

    def __init__(
        self,
        interface: str,
        *,
        backend: str,
        device: Device,
        links: RouteNetlink,
        mux: PortMux | None,
        desired: Callable[[], DesiredState],
        observed: Callable[[DeviceStatus], None],
        repaired: Callable[[str, str], None],
        link_replaced: Callable[[], None],
    ) -> None:
        """Take what is open already.

        `desired` gives the plan of the moment, `observed` takes what the device turned out to
        hold, `repaired` hears what had been broken from outside and is whole again, and
        `link_replaced` that the interface is another one under the same name.
        """
        self._interface = interface
        self._backend = backend
        self.device = device
        self._links = links
        self._mux = mux
        self._desired = desired
        self._observed = observed
        self._repaired = repaired
        self._applied_endpoints: dict[WireGuardKey, Endpoint] = {}
        self._wanted = trio.Event()
        self._rest = trio.CancelScope()  # the pause after a run
        self._stale = True  # anything besides the peers may have changed
        self._link: LinkSpec | None = None  # as last applied
        self._link_replaced = link_replaced
        self._index: int | None = None
        self._stopped = False
        self._making_anew = False
        self.error: DeviceError | None = None
        self.statistics = ReconcilerStatistics()

    def stop(self) -> None:
        """Write nothing more: the interface is to go."""
        self._stopped = True

    def wake(self) -> None:
        """Ask for a run soon: the plan has changed."""
        self._wanted.set()

    def end_rest(self) -> None:
        """Have the run that is asked for begin now, however long the last one took."""
        self._rest.cancel()

    def resync(self) -> None:
        """Ask for a run soon that looks at everything: something has changed on this host."""
        self._stale = True
        self._wanted.set()

    def look(self) -> DeviceStatus | None:
        """Observe the device without changing anything; None where that cannot be done."""
        if self._stopped or self._making_anew or self.error is not None:
            return None
        try:
            return self.device.observe()
        except DeviceError as error:
            self._failed(error)
            self.resync()
            return None

    def hurry(self) -> None:
        """Bring the device to the plan in this very step; where that cannot be done, soon."""
        if self._stopped or self._making_anew or self.error is not None:
            return
        try:
            status = self._reconcile_device(self._desired())
        except DeviceError as error:
            self._failed(error)
            self.resync()
            return
        self._observed(status)

    def renew(self, key: WireGuardKey) -> None:
        """Make a peer anew that has had no session."""
        if self._stopped or self._making_anew or self.error is not None:
            return
        try:
            status = self.device.observe()
            change = renewal(self._desired().device, status, key)
            if change is not None:
                self.device.apply(change)
                status = self.device.observe()
        except DeviceError as error:
            self._failed(error)
            self.resync()
            return
        self._observed(status)

    async def run(self) -> None:
        """Run until cancelled."""
        pause = ERROR_PAUSE_MIN
        resync_at = trio.current_time() + RESYNC_INTERVAL
        while True:
            with trio.move_on_at(resync_at):
                await self._wanted.wait()
                await trio.sleep(COALESCE_INTERVAL)
            started_at = trio.current_time()
            if started_at >= resync_at:
                self._stale = True
                resync_at = started_at + RESYNC_INTERVAL
            self._wanted = trio.Event()
            if self._stopped:
                return
            self._rest = trio.CancelScope()  # may be over before it begins
            try:
                await self.reconcile()
            except DeviceError as error:
                self._failed(error)
                await trio.sleep(pause)
                pause = min(pause * 2, ERROR_PAUSE_MAX)
                self.resync()
            else:
                self.error = None
                pause = ERROR_PAUSE_MIN
                took = trio.current_time() - started_at
                with self._rest:
                    await trio.sleep(min(took * (1 / DUTY_MAX - 1), 1.0))

    async def reconcile(self) -> None:
        """Bring the kernel to the desired state once.  Raise DeviceError."""
        self.statistics.runs += 1
        desired = self._desired()
        stale = self._stale or desired.link != self._link
        if stale:
            await self._reconcile_link(desired.link)
            desired = self._desired()  # time has passed: keys may be others
        status = self._reconcile_device(desired)
        self._stale = False
        self._observed(status)

    async def _reconcile_link(self, desired: LinkSpec) -> None:
        first = self._index is None
        link = self._links.observe(self._interface)
        if link is None or (not first and link.index != self._index):
            await self._make_anew()
            link = self._links.observe(self._interface)
            if link is None:
                raise DeviceError(f"make interface {self._interface}", errno.ENODEV)
        self._index = link.index
        changes = diff_link(desired, link)
        if changes:
            self.statistics.changes += 1
            self._links.apply(self._interface, changes)
        self._link = desired
        await self._reconcile_mux(first=first)

    def _reconcile_device(self, desired: DesiredState) -> DeviceStatus:
        status = self.device.observe()
        change = diff_device(desired.device, status, applied_endpoints=self._applied_endpoints)
        if change is None:
            self._note_endpoints(desired)
            return status
        self.statistics.changes += 1
        self.device.apply(with_fresh_starts(change, desired.device, status))
        self._note_endpoints(desired)
        return self.device.observe()

    def _note_endpoints(self, desired: DesiredState) -> None:
        self._applied_endpoints = {
            key: peer.endpoint
            for key, peer in desired.device.peers.items()
            if peer.endpoint is not None
        }

    async def _reconcile_mux(self, *, first: bool) -> None:
        if self._mux is None:
            return
        if await trio.to_thread.run_sync(one_port.observe, self._mux):
            return
        await trio.to_thread.run_sync(one_port.apply, self._mux)
        if not first:
            self._repair("rules", "the nft rules of the one port were gone")

    async def _make_anew(self) -> None:
        """Make the interface again after somebody has deleted it."""
        self._making_anew = True
        self.device.close()
        self._applied_endpoints = {}
        private_key = self._desired().device.private_key
        try:
            self.device = await trio.to_thread.run_sync(
                lambda: open_device(self._interface, backend=self._backend, private_key=private_key)
            )
        except StartError as error:
            raise DeviceError(str(error), errno.ENODEV) from error
        self._making_anew = False
        self._index = None
        self._link_replaced()
        self._repair("interface", f"interface {self._interface} was gone")

    def _repair(self, kind: str, text: str) -> None:
        self.statistics.repairs[kind] = self.statistics.repairs.get(kind, 0) + 1
        self._repaired(kind, text)

    def _failed(self, error: DeviceError) -> None:
        self.statistics.errors += 1
        if self.error is None or str(self.error) != str(error):
            log.warning("the kernel refused a change: %s; trying again", error)
        self.error = error
