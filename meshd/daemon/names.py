"""Host names that the operator has given, of seeds and of endpoints, and their addresses.

Looking up blocks for as long as the resolver likes, so it is done in threads, and given up after
`LOOK_UP_TIMEOUT`.  A name without an address is a finding: it may be mistyped, or appear later.
"""

from __future__ import annotations

import logging
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

import trio

from meshd.control.snapshot import HealthFinding
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    Resolved = dict[str, tuple[Endpoint, ...]]

log = logging.getLogger(__name__)

LOOK_UP_TIMEOUT = 5.0


class SeedResolver:
    """Looks up the seeds' names whenever it is asked to."""

    def __init__(self, found: Callable[[Resolved], Awaitable[object]]) -> None:
        """`found` takes the addresses, of all seeds at once."""
        self._found = found
        self._wanted = trio.Event()
        self._seeds: tuple[str, ...] = ()
        self._unknown: dict[str, None] = {}

    def want(self, seeds: tuple[str, ...]) -> None:
        """Ask for a look-up of these `host:port`."""
        self._seeds = seeds
        self._wanted.set()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            found = await look_up(self._seeds)
            self._note_unknown(seed for seed, endpoints in found.items() if not endpoints)
            await self._found(found)

    def findings(self) -> Iterator[HealthFinding]:
        """Name the seeds that have no address."""
        if self._unknown:
            yield HealthFinding("warning", "seed-name", _no_address(self._unknown))

    def _note_unknown(self, seeds: Iterable[str]) -> None:
        unknown = dict.fromkeys(seeds)
        if unknown.keys() - self._unknown.keys():
            log.warning("%s", _no_address(unknown))
        self._unknown = unknown


async def look_up(names: Iterable[str]) -> Resolved:
    """Return the addresses that each `host:port` has at present, none where it has none."""
    found: Resolved = dict.fromkeys(names, ())

    async def one(name: str) -> None:
        host, _, port = name.rpartition("://")[2].rpartition(":")  # without the scheme of a seed
        with trio.move_on_after(LOOK_UP_TIMEOUT):
            found[name] = await trio.to_thread.run_sync(
                _look_up, host.strip("[]"), int(port), abandon_on_cancel=True
            )

    async with trio.open_nursery() as nursery:
        for name in found:
            nursery.start_soon(one, name)
    return found


def _look_up(host: str, port: int) -> tuple[Endpoint, ...]:
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):  # the latter for what IDNA cannot encode, such as `a..b`
        return ()
    addresses = dict.fromkeys(str(info[4][0]).partition("%")[0] for info in infos)
    return tuple(Endpoint(ip_address(address), port) for address in addresses)


def _no_address(names: Iterable[str]) -> str:
    return (
        f"{', '.join(names)} has no address: check the spelling and this host's DNS (see "
        "`getent hosts NAME`)"
    )
