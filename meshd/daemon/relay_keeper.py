"""The task that keeps a relay's flows in the kernel, and watches what becomes of them there.

    wanted ──▶ note on disk ──▶ rules and forwarding ──▶ flows      `relay_kernel`, in a thread
       ▲                                                   │
       └── not those that the host lets not pass ◀── look ─┘

Rule 1: changes that come while one is being made are made together, with the next.

Rule 2: a host's firewall that lets nothing pass is told by what is taken and does not come out.
        Until something has, the kernel is watched closely; then the flows are left to the sockets,
        which such a firewall has nothing against.

Rule 3: whoever removes rules is heard at once, and it is looked whether ours were among them; what
        is changed without a sound, or not heard, is found by looking every LOOK_INTERVAL.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import trio

from meshd.control.snapshot import HealthFinding
from meshd.errors import DeviceError, StoreError
from meshd.net.forwarding import pack_note
from meshd.net.nft_monitor import RulesMonitor
from meshd.net.relay_nft import NOTHING, FlowCount, Observed, fits
from meshd.store import Meta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshd.daemon.relay_kernel import RelayKernel
    from meshd.relay.maps import Flow
    from meshd.store import Store

log = logging.getLogger(__name__)

LOOK_INTERVAL = 10.0
HEARD_INTERVAL = 0.2  # between two looks because of what was heard
RETRY_INTERVAL = 5.0
BLOCKED_DATAGRAMS_MIN = 8
WATCHED_INTERVAL = 0.5
WATCHED_FOR = 10.0  # after flows have come, while nothing has passed yet
BLOCKED_LIFETIME = 600.0  # then it is tried again


class KernelKeeper:
    """See the module docstring."""

    def __init__(
        self, kernel: RelayKernel, store: Store, interfaces: Callable[[], tuple[str, ...]]
    ) -> None:
        """`interfaces` are those that carry the underlay."""
        self._kernel = kernel
        self._store = store
        self._interfaces = interfaces
        self._wanted: frozenset[Flow] = frozenset()
        self._told = trio.Event()
        self._changed = trio.Event()
        self._used = False  # something of ours is in the kernel
        self._noted = bool(store.load_meta(Meta.FORWARDING))  # so it may be, and is on disk
        self._error: DeviceError | StoreError | None = None
        self._seen = Observed(intact=False)
        self._look_at = -math.inf
        self._heard = False  # rules were removed since the last look
        self._watched_until = -math.inf
        self._passes: set[int] = set()  # IP versions that the host has let pass
        self._blocked_until: dict[int, float] = {}  # the others
        self._traffic: dict[int, FlowCount] = {}

    def want(self, flows: frozenset[Flow]) -> None:
        """Have exactly these in the kernel, as far as it can."""
        self._wanted = frozenset(flow for flow in flows if fits(flow))
        self._told.set()
        self._changed.set()

    async def run(self) -> None:
        """Keep them there, until cancelled."""
        await self._told.wait()
        while True:
            self._changed = trio.Event()
            try:
                await self._attempt()
            except (DeviceError, StoreError) as error:
                if self._error is None:
                    log.warning("%s; relayed datagrams take the way through meshd", error)
                self._error = error
                pause = RETRY_INTERVAL
            else:
                self._error = None
                pause = self._look_at - trio.current_time() if self._used else math.inf
            with trio.move_on_after(max(0.0, pause)):
                await self._changed.wait()

    async def hear(self) -> None:
        """Look whenever rules are removed, until cancelled.  Returns where that is not told."""
        try:
            with RulesMonitor() as monitor:
                while True:
                    await monitor.wait()
                    self._heard = True
                    self._changed.set()
                    await trio.sleep(HEARD_INTERVAL)
        except DeviceError as error:
            log.info("%s; rules that somebody removes are missed after %g s", error, LOOK_INTERVAL)

    def remove(self) -> None:
        """Take all of it away for good.  Raise DeviceError or StoreError."""
        self._kernel.remove(end=True)
        self._forget_note()

    def take_traffic(self) -> dict[int, FlowCount]:
        """Return what the kernel has forwarded, by the port it came to, since last asked."""
        traffic, self._traffic = self._traffic, {}
        return traffic

    def findings(self) -> Iterator[HealthFinding]:
        """Say what keeps flows out of the kernel."""
        if self._error is not None:
            yield HealthFinding(
                "warning",
                "relay-kernel",
                f"{self._error}; relayed datagrams take the way through meshd, and so ten times "
                "the CPU; trying again",
            )
        for version in self._blocked_until:
            yield HealthFinding(
                "warning",
                "relay-firewall",
                f"this host's firewall lets no relayed IPv{version} datagram be forwarded, so they "
                "take the way through meshd, and ten times the CPU: let pass what has "
                f"the mark {self._kernel.mark:#x}",
            )

    async def _attempt(self) -> None:
        now = trio.current_time()
        flows = self._for_kernel(now)
        if flows or self._used:
            await self._reconcile(flows, now)
            self._used = True
        elif self._noted:  # by an earlier run
            await trio.to_thread.run_sync(self._kernel.remove)
            self._forget_note()

    def _for_kernel(self, now: float) -> frozenset[Flow]:
        for version, until in list(self._blocked_until.items()):
            if now >= until:
                del self._blocked_until[version]
        return frozenset(
            flow for flow in self._wanted if flow.source.address.version not in self._blocked_until
        )

    async def _reconcile(self, flows: frozenset[Flow], now: float) -> None:
        kernel = self._kernel
        note = kernel.plan(flows, self._interfaces())
        if note != kernel.note or not self._noted:
            self._store.save_meta(Meta.FORWARDING, pack_note(note))
            self._noted = True
            kernel.take_note(note)
        look = self._heard or now >= self._look_at
        self._heard = False
        observed = await trio.to_thread.run_sync(partial(kernel.reconcile, flows, look=look))
        came = flows - self._seen.flows.keys()
        if any(flow.source.address.version not in self._passes for flow in came):
            self._watched_until = now + WATCHED_FOR
        if observed is not None:
            self._judge(observed, now)
        if look:
            self._look_at = now + LOOK_INTERVAL
        if now < self._watched_until:
            self._look_at = min(self._look_at, now + WATCHED_INTERVAL)

    def _judge(self, observed: Observed, now: float) -> None:
        """Count what the kernel has taken, and see whether any of it came out."""
        seen, self._seen = self._seen, observed
        taken: Counter[int] = Counter()
        for flow, count in observed.flows.items():
            grown = FlowCount(*map(_grown, seen.flows.get(flow, NOTHING), count))
            taken[flow.source.address.version] += grown.datagrams
            if grown.datagrams:
                port = flow.arrives_at.port
                self._traffic[port] = self._traffic.get(port, NOTHING).plus(*grown)
        for version, datagrams in taken.items():
            if _grown(seen.passed.get(version, 0), observed.passed.get(version, 0)):
                self._passes.add(version)
            elif datagrams >= BLOCKED_DATAGRAMS_MIN:
                self._passes.discard(version)
                self._blocked_until[version] = now + BLOCKED_LIFETIME
                self._changed.set()

    def _forget_note(self) -> None:
        if self._noted:
            self._store.save_meta(Meta.FORWARDING, b"")
            self._noted = False


def _grown(before: int, after: int) -> int:
    """Return by how much a counter has grown; it may have begun anew."""
    return after - before if after >= before else after
