"""A relay's sockets and kernel maps, as the engine wants them: it decides, this obeys.

    engine ── ports ──▶ forwarder: sockets        hellos, traffic ──▶ engine
           ── maps ───▶ forwarder: lanes, at once
                  └───▶ kernel: elements, in a thread, some 20 ms later
           ── pongs ──▶ forwarder: the port that was asked

Rule 1: what the engine says is all there is to be, never a difference; the newest counts.

Rule 2: the kernel is an acceleration.  Whatever it does not take, or the host's firewall does not
        let pass, goes by the sockets, and `status` says so.

Rule 3: before the engine has said what it wants, the kernel is not touched: what the run before has
        left there goes on.  Then it is cleared, if nothing is wanted.

Rule 4: hellos that prove nothing get no more than a part of a core, as on the underlay.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import trio

from meshd.control.snapshot import HealthFinding
from meshd.daemon.driver import REFUSED_DUTY_MAX, TURN_SECONDS
from meshd.daemon.host import FWMARK
from meshd.daemon.relay_keeper import KernelKeeper
from meshd.daemon.relay_kernel import RelayKernel
from meshd.errors import DeviceError, StoreError
from meshd.net.forwarder import Forwarder, is_free, raise_descriptor_limit
from meshd.net.forwarding import unpack_note
from meshd.net.relay_nft import NOTHING, FlowCount
from meshd.store import Meta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from meshd.codec import IPAddress
    from meshd.daemon.daemon import Daemon
    from meshd.net.forwarder import ForwarderStatistics
    from meshd.relay.hello import RelayOutgoing
    from meshd.relay.maps import Flow, RelayMaps
    from meshd.values import PortRange
    from meshd.wg.types import Endpoint

log = logging.getLogger(__name__)

HELLOS_MAX = 1024  # waiting; a member says hello again soon
TRAFFIC_INTERVAL = 2.0

ResultT = TypeVar("ResultT")


class Submit(Protocol):
    """See `meshd.daemon.driver.Driver.submit`."""

    async def __call__(self, give: Callable[[float, float], ResultT]) -> ResultT:
        """Give the engine an input, called with both clocks, and return what it returns."""


class RelayEngine(Protocol):
    """What the engine takes in from its relay's sockets."""

    def receive_relay_datagram(
        self,
        datagram: bytes,
        source: Endpoint,
        port: int,
        local: IPAddress,
        now: float,
        wall: float,
    ) -> bool:
        """Take a hello that came to an allotted port.  Return whether it was let in."""

    def relay_traffic(self, traffic: Mapping[int, FlowCount], strangers: int, now: float) -> None:
        """Take note of datagrams and bytes by port, and of strangers' datagrams, since last."""

    def relay_port_taken(self, port: int, now: float, wall: float) -> None:
        """Take note of a port that cannot be had."""


class Hello(NamedTuple):
    """One that waits for the engine."""

    datagram: bytes
    source: Endpoint
    port: int
    local: IPAddress


class RelayShell:
    """Sockets, and what keeps the kernel's part where there is one."""

    def __init__(
        self,
        engine: RelayEngine,
        ports: PortRange,
        *,
        fwmark: int,
        keeper: KernelKeeper | None,
    ) -> None:
        """Open nothing yet."""
        self._range = ports
        self._engine = engine
        self._forwarder = Forwarder(self._on_hello, fwmark=fwmark)
        self._keeper = keeper
        self._begun = trio.Event()  # there are ports
        self._ports_max = 0  # for which there are descriptors
        self._hellos: deque[Hello] = deque()
        self._hello_came = trio.Event()
        self._hellos_lost = 0
        self._taken: set[int] = set()  # ports that are another program's
        self._failed: frozenset[Flow] = frozenset()  # whose address is not here
        self._strangers = 0

    # From the engine

    def set_ports(self, ports: frozenset[int]) -> None:
        """Have exactly these ports open."""
        for port in self._forwarder.ports - ports:
            self._forwarder.shut(port)
        missing = [port for port in ports if port not in self._forwarder.ports]
        if missing and not self._begun.is_set():
            self._ports_max = raise_descriptor_limit(self._range.last - self._range.first + 1)
            self._begun.set()
        for port in missing:
            room = len(self._forwarder.ports) < self._ports_max
            if not room or not self._forwarder.open(port):
                self._taken.add(port)
                self._hello_came.set()

    def set_maps(self, maps: RelayMaps) -> None:
        """Forward exactly this."""
        self._failed = self._forwarder.set_flows(maps.flows)
        if self._keeper is not None:
            self._keeper.want(maps.flows - self._failed)

    def send(self, out: RelayOutgoing) -> None:
        """Send a datagram of the engine's, or lose it."""
        self._forwarder.send(out.datagram, out.target, out.port, out.source)

    # Tasks

    async def run(self, submit: Submit) -> None:
        """Run until cancelled.  `submit` gives the engine an input."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._forwarder.run)
            nursery.start_soon(self._give_hellos, submit)
            nursery.start_soon(self._give_traffic, submit)
            nursery.start_soon(self._check_ports)
            if self._keeper is not None:
                nursery.start_soon(self._keeper.run)
                nursery.start_soon(self._keeper.hear)

    def close(self) -> None:
        """Close the sockets.  The kernel goes on forwarding."""
        self._forwarder.close()

    def remove(self) -> None:
        """Take everything down: this node has left.  Its tasks go on, with nothing to do."""
        self._forwarder.set_flows(frozenset())
        self.set_ports(frozenset())
        try:
            if self._keeper is not None:
                self._keeper.remove()
        except (DeviceError, StoreError) as error:
            log.error("%s; what has to do with relaying may still be in the kernel", error)

    def statistics(self) -> ForwarderStatistics:
        """Return what the sockets have done since the start."""
        return self._forwarder.statistics()

    def findings(self) -> Iterator[HealthFinding]:
        """Say what keeps it from relaying as well as it could."""
        if self._failed:
            yield HealthFinding(
                "warning",
                "relay-address",
                f"{len(self._failed)} relayed flows wait: their address is not on this host any "
                "more, and their members have to say hello at another one",
            )
        if self._keeper is not None:
            yield from self._keeper.findings()

    def _on_hello(self, datagram: bytes, source: Endpoint, port: int, local: IPAddress) -> None:
        if len(self._hellos) < HELLOS_MAX:
            self._hellos.append(Hello(datagram, source, port, local))
            self._hello_came.set()
        else:
            self._hellos_lost += 1

    async def _give_hellos(self, submit: Submit) -> None:
        while True:
            await self._hello_came.wait()
            self._hello_came = trio.Event()
            while self._taken:
                await submit(partial(self._engine.relay_port_taken, self._taken.pop()))
            while self._hellos:
                refused_seconds = await submit(self._take_hellos)
                await trio.sleep(refused_seconds * (1 / REFUSED_DUTY_MAX - 1))

    def _take_hellos(self, now: float, wall: float) -> float:
        """Give the engine a turn's worth.  Return seconds lost on those refused."""
        refused_seconds = 0.0
        until = now + TURN_SECONDS
        while self._hellos and now < until:
            let_in = self._engine.receive_relay_datagram(*self._hellos.popleft(), now, wall)
            began_at, now = now, trio.current_time()
            if not let_in:
                refused_seconds += now - began_at
        return refused_seconds

    async def _give_traffic(self, submit: Submit) -> None:
        while True:
            await trio.sleep(TRAFFIC_INTERVAL)
            traffic = {} if self._keeper is None else self._keeper.take_traffic()
            for port, count in self._forwarder.take_counts().items():
                traffic[port] = traffic.get(port, NOTHING).plus(*count)
            strangers = self._forwarder.statistics().strangers + self._hellos_lost
            new, self._strangers = strangers - self._strangers, strangers
            if traffic or new:
                await submit(partial(self._take_traffic, traffic, new))

    def _take_traffic(
        self, traffic: dict[int, FlowCount], strangers: int, now: float, _wall: float
    ) -> None:
        self._engine.relay_traffic(traffic, strangers, now)

    async def _check_ports(self) -> None:
        """Tell the engine which ports of the range are another program's, before it allots them."""
        await self._begun.wait()
        ours = set(self._forwarder.ports)
        every = range(self._range.first, self._range.last + 1)

        def taken() -> list[int]:
            return [port for port in every if port not in ours and not is_free(port)]

        found = await trio.to_thread.run_sync(taken)
        self._taken.update(set(found) - set(self._forwarder.ports))
        self._hello_came.set()


def make_relay(daemon: Daemon) -> RelayShell:
    """Return the relay of a daemon, which leaves all to its sockets where there is no nft."""
    config, host, store = daemon.config, daemon.host, daemon.store

    def interfaces() -> tuple[str, ...]:
        candidates = set(daemon.local_addresses())
        observed = host.links.host_addresses(fwmark=FWMARK)
        carrying = (each.interface for each in observed if each.address in candidates)
        return tuple(dict.fromkeys(carrying))

    keeper = None
    if host.mux is not None:
        note = unpack_note(store.load_meta(Meta.FORWARDING))
        kernel = RelayKernel(config.interface, config.relay_ports, FWMARK, note)
        keeper = KernelKeeper(kernel, store, interfaces)
    return RelayShell(daemon.engine, config.relay_ports, fwmark=FWMARK, keeper=keeper)
