"""Over TCP: the sockets for what the engine wants carried, and for what comes to be carried.

    engine.carriage.wanted ──▶ carriers, each a task ──▶ up? endpoints? ──▶ engine
    engine                 ◀── who came, who went ─────  listener (`meshd.net.carrier_host`)

Level-triggered, as the reconciler is: it does not matter what woke it.
"""

from __future__ import annotations

import logging
import random
from functools import partial
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import trio

from meshd.carrier.resort import CarrierState
from meshd.control.snapshot import HealthFinding
from meshd.daemon.wording import listed
from meshd.net.carrier import LOOPBACK, OwnPort
from meshd.net.carrier_host import CarrierHost
from meshd.net.carrier_member import CarrierMember
from meshd.net.carrier_tls import host_context

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from meshd.config import Config
    from meshd.daemon.daemon import Daemon
    from meshd.engine.engine import Engine
    from meshd.wg.types import Endpoint

log = logging.getLogger(__name__)

RETRY_INTERVAL = 5.0  # where there was no socket to be had


def carrier_ports(config: Config) -> tuple[int, int]:
    """Return the TCP ports to listen on, without TLS and with it; 0 is none."""
    tcp = config.relay_tcp
    if tcp is None:
        tcp = config.port if config.relay else 0
    return tcp, config.relay_tls


def open_host(config: Config, own: OwnPort, *, fwmark: int) -> CarrierHost | None:
    """Listen, if this node is to.  Raise StartError."""
    tcp, tls = carrier_ports(config)
    ports = {tcp: None} if tcp else {}
    if tls:
        return CarrierHost({**ports, tls: host_context()}, own, fwmark=fwmark)
    return CarrierHost(ports, own, fwmark=fwmark) if ports else None


class Carriers:
    """See the module docstring."""

    def __init__(self, daemon: Daemon, own: OwnPort, *, fwmark: int) -> None:
        self._daemon = daemon
        self._own = own
        self._fwmark = fwmark
        self._changed = trio.Event()
        self._clients: frozenset[Endpoint] = frozenset()
        self.relay_ports: frozenset[int] = frozenset()  # of ours, that are allotted
        self._members: dict[int, tuple[CarrierMember, trio.CancelScope]] = {}

    def wake(self) -> None:
        """Ask for a look: something is wanted, or has changed."""
        self._changed.set()

    def findings(self) -> Iterator[HealthFinding]:
        """Say that there is no way over TCP either."""
        members = [member for member, _ in self._members.values()]
        failures = [member.failure for member in members if member.failure]
        if failures and not any(member.up for member in members):
            yield HealthFinding(
                "warning",
                "tcp-blocked",
                f"UDP does not get through to the relays, and TCP neither ({failures[0]}): let UDP "
                f"out from port {self._daemon.config.port}, or TCP to a relay's --relay-tls 443",
            )

    def dropped(self) -> Iterator[Mapping[str, int]]:
        """Return how many datagrams were not carried, by reason."""
        if self._daemon.host.carrier is not None:
            yield self._daemon.host.carrier.statistics().dropped
        for member, _ in self._members.values():
            yield member.dropped

    async def run(self) -> None:
        """Run until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._daemon.host.carrier is not None:
                nursery.start_soon(
                    partial(
                        self._daemon.host.carrier.serve,
                        relay_ports=lambda: self.relay_ports,
                        came=self._came,
                        went=self._went,
                    )
                )
            retry = False
            while True:
                with trio.move_on_after(RETRY_INTERVAL if retry else float("inf")):
                    await self._changed.wait()
                self._changed = trio.Event()
                retry = self._reconcile(nursery)
                states = {
                    number: CarrierState(member.up, dict(member.endpoints))
                    for number, (member, _) in self._members.items()
                }
                await self._daemon.driver.submit(
                    partial(self._daemon.engine.carriers_observed, states, self._clients)
                )

    def _reconcile(self, nursery: trio.Nursery) -> bool:
        """Have what is wanted, and nothing else.  Return whether something is to be tried again."""
        wanted = {each.number: each for each in self._daemon.engine.carriage.wanted}
        for number in [number for number in self._members if number not in wanted]:
            member, scope = self._members.pop(number)
            scope.cancel()
            member.close()
        failed = False
        for number, each in wanted.items():
            if number not in self._members:
                member = CarrierMember(
                    each.doors,
                    self._own,
                    address=IPv4Address(LOOPBACK),
                    rng=random.SystemRandom(),
                    changed=self.wake,
                    fwmark=self._fwmark,
                )
                scope = trio.CancelScope()
                self._members[number] = member, scope
                nursery.start_soon(_run, member, scope)
            member = self._members[number][0]
            member.doors = each.doors
            try:
                member.set_ports(each.ports)
            except OSError as error:
                log.warning("no socket for what goes over TCP: %s; trying again", error)
                failed = True
        return failed

    def _came(self, endpoint: Endpoint) -> None:
        self._clients |= {endpoint}
        # At once: what it says arrives sooner than the next look.
        self._daemon.engine.carriage.client_came(endpoint)

    def _went(self, endpoint: Endpoint) -> None:
        self._clients -= {endpoint}
        self.wake()


async def _run(member: CarrierMember, scope: trio.CancelScope) -> None:
    with scope:
        await member.run()


def carrier_findings(engine: Engine) -> Iterator[HealthFinding]:
    """Say that UDP does not get through, and what that costs."""
    hosts = [engine.name_of(node) for node in engine.carriage.over_tcp]
    if hosts:
        yield HealthFinding(
            "warning",
            "udp-blocked",
            "UDP does not get through to the relays, so everything goes over TCP by "
            f"{listed(hosts)}: slower, one lost packet holds up all, and it ends with this daemon; "
            f"let UDP out from port {engine.config.listen_port}, and the answers in",
        )
