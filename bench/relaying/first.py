"""How long a new pair waits for its first datagram on a relay that has few, or many.

a sends, 1,000 a second ─────▶ relay ─────▶ b
│
t = 0   the engine says: this pair too
first   b has the first datagram: sockets carry it
kernel  the last datagram that a socket carried: from here on, the kernel does
"""

from __future__ import annotations

import json
import select
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from meshd.daemon.relay import RelayShell
from meshd.daemon.relay_keeper import KernelKeeper
from meshd.daemon.relay_kernel import RelayKernel
from meshd.net.forwarding import Note
from meshd.relay.maps import RelayMaps
from meshd.store import Store
from net.relays import MARK, PORTS, RELAY_TO_A, A, B, machines, pair_of
from relaying.plain import VERSION, WIREGUARD, others
from relaying.processes import running

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshd.net.relay_nft import FlowCount

INTERVAL = 0.001
SETTLE = 0.5  # within which the kernel has taken over, by far
ANSWER_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class FirstPacket:
    """Milliseconds, medians."""

    allocations: int
    first_ms: float
    kernel_ms: float


class _Engine:
    """Wants what it is told to, and hears nothing."""

    def receive_relay_datagram(self, *_: object) -> bool:
        return False

    def relay_traffic(
        self, traffic: Mapping[int, FlowCount], strangers: int, now: float
    ) -> None: ...

    def relay_port_taken(self, port: int, now: float, wall: float) -> None: ...


def measure(allocations: int, trials: int) -> FirstPacket:
    """Allot one pair more, again and again, on a relay that has so many with it."""
    with machines() as (a, relay, b):
        commands, theirs = socket.socketpair()
        with (
            running(relay, partial(_relay, theirs, allocations - 1)),
            a.call(_socket, A[VERSION]) as sender,
            b.call(_socket, B[VERSION]) as receiver,
        ):
            _answer(commands)
            found = [_once(commands, sender, receiver) for _ in range(trials)]
        commands.close()
        theirs.close()
    return FirstPacket(
        allocations,
        statistics.median(first for first, _ in found) * 1000,
        statistics.median(kernel for _, kernel in found) * 1000,
    )


def _once(
    commands: socket.socket, sender: socket.socket, receiver: socket.socket
) -> tuple[float, float]:
    """Return seconds until the first datagram, and until the kernel had taken over."""
    commands.send(b"+")
    first_at = None
    until = time.monotonic() + SETTLE
    while (now := time.monotonic()) < until:
        sender.sendto(bytes(100), (RELAY_TO_A[VERSION], PORTS.first))
        if select.select([receiver], [], [], INTERVAL)[0]:
            receiver.recv(2048)
            first_at = first_at or time.monotonic()
    assert first_at is not None, f"nothing came until {now - until + SETTLE:.1f} s"
    told = _answer(commands)
    return first_at - told["at"], told["last_at"] - told["at"]


def _answer(commands: socket.socket) -> dict[str, float]:
    if not select.select([commands], [], [], ANSWER_TIMEOUT)[0]:
        raise RuntimeError("the relay does not answer")
    answer: dict[str, float] = json.loads(commands.recv(4096))
    return answer


def _socket(address: str) -> socket.socket:
    member = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    member.bind((address, WIREGUARD))
    return member


def _relay(commands: socket.socket, beside: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory, "state")
        with Store.open(state) as store:
            trio.run(_serve, commands, store, beside)


async def _serve(commands: socket.socket, store: Store, beside: int) -> None:
    kernel = RelayKernel("mesh0", PORTS, MARK, Note())
    keeper = KernelKeeper(kernel, store, lambda: ("one", "two"))
    shell = RelayShell(_Engine(), PORTS, fwmark=MARK, keeper=keeper)
    there = others(beside)
    ports = {flow.arrives_at.port for flow in there}

    async def submit(give: Callable[[float, float], Any]) -> Any:  # noqa: ANN401
        return give(trio.current_time(), time.time())

    async with trio.open_nursery() as nursery:
        shell.set_ports(frozenset(ports))
        shell.set_maps(RelayMaps(there))
        nursery.start_soon(shell.run, submit)
        await trio.sleep(SETTLE)
        commands.send(json.dumps({}).encode())
        while True:
            await trio.lowlevel.wait_readable(commands)
            commands.recv(1)
            at = last_at = time.monotonic()
            shell.set_ports(frozenset({*ports, PORTS.first, PORTS.first + 1}))
            shell.set_maps(RelayMaps(there | pair_of(VERSION)))
            carried = shell.statistics().forwarded
            while time.monotonic() < at + SETTLE + 0.1:
                await trio.sleep(INTERVAL)
                if shell.statistics().forwarded != carried:
                    carried, last_at = shell.statistics().forwarded, time.monotonic()
            shell.set_maps(RelayMaps(there))
            shell.set_ports(frozenset(ports))
            await trio.sleep(SETTLE)
            commands.send(json.dumps({"at": at, "last_at": last_at}).encode())
