"""The NAT matrix: a mesh with members behind every kind of NAT, and how each pair gets together.

One mesh has two members of each kind.  The cell in row x and column y is about x1 and y2:

    all are members ─▶ daemons and interfaces are ended ─▶ they are started again
                                                                 │
                       x1 pings y2 from then on, 10 times a second:    first packet
                       both are asked how packets between them flow:   settled, when that is
                                                                       what the model says

Time counts from the start of the later of the two daemons.  By blocks, a dozen members start at
the same time and share this machine's processors, and daemons are forked; one by one takes a
restart for each cell, holds the start of a Python, and tells what a user would see.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from lablib import faults, mesh
from lablib.daemon import Start, preload
from lablib.errors import DeadlineExceeded, LabError
from lablib.expectation import Expected, expected
from lablib.lab import Lab
from lablib.nats import FORWARDED_PORT, Nat, kinds_named
from lablib.ping import FirstAnswers, LastAnswers
from lablib.sites import member_of, nats
from lablib.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lablib.nats import Kind
    from lablib.node import Node

PING_INTERVAL = 0.1
KEPT_UP_RATE = 1.0  # pings a second to those that have answered
FORM_TIMEOUT = 120.0
SETTLE_TIMEOUT = 60.0
AT_ONCE_MAX = 6  # kinds, or members that join
NO_PATH = "none"
WORDS_MAX = 8  # kinds beyond which a cell has letters instead
OVER_TCP = " over TCP"
LETTERS = {"direct": "D", "relayed": "R", "direct over TCP": "DT", "relayed over TCP": "RT"}

T = TypeVar("T")
Changes: TypeAlias = "Mapping[str, Mapping[str, Sequence[tuple[float, str]]]]"


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of a pair.  Times are seconds; None for never."""

    source: str  # kinds
    target: str
    expected: Expected
    path: str
    first_packet: float | None
    settled: float | None

    @property
    def as_expected(self) -> bool:
        """Whether packets flow, and in the way the model says."""
        return self.first_packet is not None and self.expected.allows(self.path)

    def text(self, *, words: bool) -> str:
        """Return what stands in the grid."""
        path = self.path if words else LETTERS.get(self.path, self.path)
        settled = self.settled if self.expected is Expected.DIRECT else self.first_packet
        took = "-" if settled is None else f"{settled:.1f}"
        return f"{path} {took}{'' if self.as_expected else '!'}"


@dataclass(frozen=True, slots=True)
class Grid:
    """All cells, row by row."""

    kinds: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]

    @property
    def unexpected(self) -> tuple[Cell, ...]:
        """The cells that are not what the model says."""
        return tuple(cell for cell in self.cells.values() if not cell.as_expected)

    def medians(self) -> dict[str, float | None]:
        """Return the median times: to the first packet, and to direct where that is expected."""
        cells = self.cells.values()
        first = [cell.first_packet for cell in cells if cell.first_packet is not None]
        direct = [
            cell.settled
            for cell in cells
            if cell.settled is not None and cell.expected is Expected.DIRECT
        ]
        return {
            "first_packet_s": statistics.median(first) if first else None,
            "first_packet_worst_s": max(first, default=None),
            "direct_s": statistics.median(direct) if direct else None,
            "direct_worst_s": max(direct, default=None),
        }

    def render(self) -> str:
        """Draw a row for each kind that sends and a column for each that it sends to."""
        words = len(self.kinds) <= WORDS_MAX
        texts = {pair: cell.text(words=words) for pair, cell in self.cells.items()}
        width = max(map(len, [*self.kinds, *texts.values()])) + 2
        lines = ["".join(name.rjust(width) for name in ["", *self.kinds])]
        for source in self.kinds:
            cells = [texts.get((source, target), "") for target in self.kinds]
            lines.append("".join(text.rjust(width) for text in [source, *cells]))
        lines.append("")
        if not words:
            lines.append(", ".join(f"{letter} {path}" for path, letter in LETTERS.items()))
        lines.append("seconds to direct where it is possible, else to the first packet;")
        lines.append("! is not what the model says")
        for what, seconds in self.medians().items():
            lines.append(f"{what:22}{'-' if seconds is None else f'{seconds:.2f}'}")
        lines.append(f"{len(self.unexpected)} of {len(self.cells)} are not what the model says")
        return "\n".join(lines)

    def document(self) -> dict[str, Any]:
        """Return it all as JSON has it."""
        return {
            "schema": "lab.matrix/1",
            "kinds": list(self.kinds),
            "medians": self.medians(),
            "cells": [
                {
                    "source": cell.source,
                    "target": cell.target,
                    "expected": cell.expected.value,
                    "path": cell.path,
                    "as_expected": cell.as_expected,
                    "first_packet_s": cell.first_packet,
                    "settled_s": cell.settled,
                }
                for cell in self.cells.values()
            ],
        }


def run(names: Sequence[str], *, name: str, one_by_one: bool = False) -> Grid:
    """Make a lab with members behind these kinds of NAT, all without any, and fill the grid."""
    kinds = kinds_named(names)
    how = Start.default() if one_by_one else Start.FORK
    if how is Start.FORK:
        preload()
    with Lab(nats(kinds), name=name, how=how) as lab:
        made = Matrix(lab, kinds)
        made.form()
        return made.one_by_one() if one_by_one else made.by_blocks()


class Matrix:
    """A lab of the topology `nats`, and what is measured in it."""

    def __init__(self, lab: Lab, kinds: Sequence[Kind]) -> None:
        self._lab = lab
        self._kinds = tuple(kinds)
        self._addresses: dict[str, str] = {}

    def form(self) -> None:
        """Make all of them members of a new mesh, and wait until all see all."""
        secret = mesh.new_secret()
        first, *others = self._lab.nodes.values()
        mesh.join(first, *_arguments(self._lab, first), secret=secret, seed=None)
        mesh.wait_answering(first)
        for group in _groups(others):
            for node in group:
                mesh.join(node, *_arguments(self._lab, node), secret=secret, seed=first)
            for node in group:
                mesh.wait_state([first], node.name, "alive", timeout=FORM_TIMEOUT)
        mesh.wait_whole([first, *others], timeout=FORM_TIMEOUT)
        self._addresses = mesh.addresses([first, *others], version=4)

    def by_blocks(self, *, timeout: float = SETTLE_TIMEOUT) -> Grid:
        """For some rows and columns at a time, restart their members and watch all their pairs."""
        groups = list(_groups(self._kinds))
        blocks = [
            list(itertools.product(rows, columns))
            for rows, columns in itertools.product(groups, groups)
        ]
        return self._grid(self._measure(block, timeout) for block in blocks)

    def one_by_one(self, *, timeout: float = SETTLE_TIMEOUT) -> Grid:
        """For each pair, restart its two members only."""
        pairs = itertools.product(self._kinds, self._kinds)
        return self._grid(self._measure([pair], timeout) for pair in pairs)

    def _grid(self, measured: Iterable[Sequence[Cell]]) -> Grid:
        cells = {(cell.source, cell.target): cell for block in measured for cell in block}
        names = tuple(kind.name for kind in self._kinds)
        return Grid(names, {pair: cells[pair] for pair in itertools.product(names, names)})

    def _measure(self, pairs: Sequence[tuple[Kind, Kind]], timeout: float) -> list[Cell]:
        """Restart the members of these pairs and watch them until they are what is expected."""
        watched = [_Pair(pair, self._lab) for pair in pairs]
        nodes = {node.name: node for pair in watched for node in (pair.source, pair.target)}
        for node in nodes.values():
            _switch_off(node)
        started_at = {}
        for node in nodes.values():
            started_at[node.name] = time.monotonic()
            node.start_daemon(*_arguments(self._lab, node))
        with self._pings(watched, timeout) as answers:
            # What has not come until then is not what was expected, and the grid says so.
            with contextlib.suppress(DeadlineExceeded):
                wait_until(
                    lambda: _settled(watched) and all(each.done() for each in answers.values()),
                    "all pairs have the path that is expected",
                    timeout=timeout,
                )
            first = {name: each.stop() for name, each in answers.items()}
        changes = {name: _changes(node) for name, node in nodes.items()}
        return [
            pair.cell(
                changes,
                began_at=max(started_at[pair.source.name], started_at[pair.target.name]),
                first=first[pair.source.name].get(self._addresses[pair.target.name]),
            )
            for pair in watched
        ]

    @contextlib.contextmanager
    def _pings(self, pairs: Sequence[_Pair], timeout: float) -> Iterator[dict[str, FirstAnswers]]:
        """Ping along the pairs: fast until there is an answer, and slowly all the time."""
        targets: dict[str, list[str]] = {}
        for pair in pairs:
            targets.setdefault(pair.source.name, []).append(self._addresses[pair.target.name])
        spaces = self._lab.namespaces
        answers = {
            name: FirstAnswers(spaces[name], each, interval=PING_INTERVAL, timeout=timeout)
            for name, each in targets.items()
        }
        kept_up = [
            LastAnswers(spaces[name], each, rate=KEPT_UP_RATE) for name, each in targets.items()
        ]
        try:
            yield answers
        finally:
            for flow in kept_up:
                flow.stop()


class _Pair:
    """Two members that are to find each other."""

    def __init__(self, kinds: tuple[Kind, Kind], lab: Lab) -> None:
        self._kinds = kinds
        self.source: Node = lab[member_of(kinds[0], 1)]
        self.target: Node = lab[member_of(kinds[1], 2)]
        self._expected = expected(*kinds)
        self._path = NO_PATH

    def look(self, paths: Mapping[tuple[str, str], str]) -> bool:
        """Take both sides' paths by (whose, to whom); return whether it is what is expected."""
        names = self.source.name, self.target.name
        both = paths.get(names, NO_PATH), paths.get((names[1], names[0]), NO_PATH)
        ways = {path.removesuffix(OVER_TCP) for path in both}
        # Where only one side's UDP is blocked, the other speaks UDP to the relay.
        over_tcp = OVER_TCP if any(path.endswith(OVER_TCP) for path in both) else ""
        self._path = f"{ways.pop()}{over_tcp}" if len(ways) == 1 else "/".join(both)
        return self._expected.allows(self._path)

    def cell(self, changes: Changes, *, began_at: float, first: float | None) -> Cell:
        """Return what came of it, from the instants it began and a packet was first answered."""
        settled_at = max(
            self._settled_at(changes[self.source.name].get(self.target.name, ()), began_at),
            self._settled_at(changes[self.target.name].get(self.source.name, ()), began_at),
        )
        settled = settled_at < math.inf and self._expected.allows(self._path)
        return Cell(
            source=self._kinds[0].name,
            target=self._kinds[1].name,
            expected=self._expected,
            path=self._path,
            first_packet=None if first is None else first - began_at,
            settled=settled_at - began_at if settled else None,
        )

    def _settled_at(self, changes: Sequence[tuple[float, str]], began_at: float) -> float:
        """Return when one side's path came to be what is expected and stayed it; or infinity."""
        settled_at = math.inf
        over_tcp = OVER_TCP if self._expected.over_tcp else ""
        for at, path in changes:
            if not self._expected.allows(f"{path}{over_tcp}"):  # the event does not say which
                settled_at = math.inf
            elif at >= began_at:
                settled_at = min(settled_at, at)
        return settled_at


def _groups(things: Sequence[T]) -> Iterator[Sequence[T]]:
    """Part what would be too much at once for this machine's processors."""
    for first in range(0, len(things), AT_ONCE_MAX):
        yield things[first : first + AT_ONCE_MAX]


def _settled(pairs: Sequence[_Pair]) -> bool:
    """Ask all daemons; return whether every pair is what is expected."""
    paths = {}
    for node in {node.name: node for pair in pairs for node in (pair.source, pair.target)}.values():
        with contextlib.suppress(LabError):  # it is not up yet
            for member in node.status()["members"]:
                over_tcp = OVER_TCP if member["transport"] == "tcp" else ""
                paths[node.name, member["name"]] = f"{member['path'] or NO_PATH}{over_tcp}"
    settled = [pair.look(paths) for pair in pairs]
    return all(settled)


def _changes(node: Node) -> dict[str, list[tuple[float, str]]]:
    """Return by member when a node's path to it became which; instants are `time.monotonic`'s."""
    found: dict[str, list[tuple[float, str]]] = {}
    boot = time.time() - time.monotonic()
    for event in node.control("/v1/events")["events"]:
        if event["event"] == "path-changed":
            at = datetime.fromisoformat(event["at"]).timestamp() - boot
            found.setdefault(event["member"], []).append((at, event["path"]))
    return found


def _switch_off(node: Node) -> None:
    """End a node's daemon and its tunnels; its state stays."""
    if node.process is not None and node.process.poll() is None:
        node.stop_daemon()
    node.delete_interface("mesh0")


def _arguments(lab: Lab, node: Node) -> tuple[str, ...]:
    """Return what a node has to be told: to relay, or which port its router forwards."""
    behaviour = (router := faults.router_of(lab, node)).behaviour
    if behaviour is None:
        return ("--relay",)  # said aloud, it relays over TCP as well
    if isinstance(behaviour, Nat) and behaviour.forwards_port:
        return ("--endpoint", f"{router.uplink.ipv4.ip}:{FORWARDED_PORT}")
    return ()
