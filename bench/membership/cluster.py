"""What both sides have in common: processes, and notes of who saw what when.

A cluster is driven from one thread.  Nothing is read but while it waits, so everything that takes
long waits by way of `wait_for` or `pass_time`.
"""

from __future__ import annotations

import enum
import os
import resource
import selectors
import signal
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from membership import namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from types import TracebackType

LOOK_INTERVAL = 0.02  # between two looks at what is waited for
READY_TIMEOUT = 60.0
DESCRIPTORS = 4096


class What(enum.StrEnum):
    """What a member can see of another."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"
    NEWS = "news"  # the subject is a piece of news, and no member


class Note(NamedTuple):
    """What one member saw, and when on the monotonic clock."""

    at: float
    observer: str
    what: What
    subject: str


class NotInTime(Exception):
    """Something that must happen did not, within its time."""


class Cluster(ABC):
    """Members of one side, each a process, each under a name that is used once only."""

    side: str

    def __init__(self) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))
        self.notes: list[Note] = []
        self.running: dict[str, int] = {}  # name to process id
        self.seed = ""  # whom all join
        self._alive: dict[str, set[str]] = {}
        self._selector = selectors.DefaultSelector()
        self._started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in list(self.running):
            self.kill(name)
        namespace.heal()
        for key in list(self._selector.get_map().values()):
            assert not isinstance(key.fileobj, int)
            key.fileobj.close()  # type: ignore[attr-defined]
        self._selector.close()

    # What a side does in its own way

    @abstractmethod
    def _start(self, names: list[str]) -> None:
        """Start processes, and wait until they are ready to be told something."""

    @abstractmethod
    def join(self, name: str) -> None:
        """Have a member that knows nobody join the seed."""

    @abstractmethod
    def heal(self) -> None:
        """Have those that missed something at the start learn it."""

    @abstractmethod
    def publish(self, name: str) -> str:
        """Have a member tell all something new.  Return what it is called in notes."""

    @abstractmethod
    def leave(self, name: str) -> None:
        """Have a member leave gracefully."""

    @abstractmethod
    def address(self, name: str) -> str:
        """Return where a member is."""

    @abstractmethod
    def accusations(self) -> int:
        """Return how often any member found by its own probe that another is silent."""

    @abstractmethod
    def counters(self) -> dict[str, Any]:
        """Return what else the members have counted, over all of them."""

    # Doing

    def start(self, count: int) -> list[str]:
        """Start so many members, which know nobody yet.  Return their names."""
        names = [f"m{self._started + number}" for number in range(count)]
        self._started += count
        self.seed = self.seed or names[0]
        for name in names:
            self._alive[name] = set()
        self._start(names)
        return names

    def kill(self, name: str) -> None:
        """End a process as a crash would."""
        pid = self.running.pop(name)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a member's process."""
        os.kill(self.running[name], number)

    def reap(self, name: str, within: float) -> None:
        """Wait until a member that leaves has ended."""
        pid = self.running[name]

        def ended() -> bool:
            return os.waitpid(pid, os.WNOHANG)[0] == pid

        if not self.wait_for(ended, within):
            raise NotInTime(f"{self.side}: {name} was to leave, and has not ended in {within} s")
        del self.running[name]

    # Waiting

    def wait_for(self, condition: Callable[[], bool], within: float) -> bool:
        """Read what members say until a condition holds.  Return whether it does."""
        deadline = time.monotonic() + within
        look_at = 0.0
        while (now := time.monotonic()) < deadline:
            if now >= look_at:
                if condition():
                    return True
                look_at = now + LOOK_INTERVAL
            self._read(min(look_at, deadline) - now)
        return condition()

    def must(self, what: str, condition: Callable[[], bool], within: float) -> None:
        """Wait for what has to happen; raise NotInTime."""
        if not self.wait_for(condition, within):
            raise NotInTime(f"{self.side}: not within {within:.0f} s: {what}")

    def pass_time(self, seconds: float) -> None:
        """Read what members say for some time."""
        self.wait_for(lambda: False, seconds)

    def _read(self, timeout: float) -> None:
        for key, _ in self._selector.select(max(0.0, timeout)):
            key.data()

    # Seeing

    def note(self, at: float, observer: str, what: What, subject: str) -> None:
        """Take down what a member saw."""
        if observer == subject:
            return
        self.notes.append(Note(at, observer, what, subject))
        if what in {What.DEAD, What.LEFT}:
            self._alive[observer].discard(subject)
        elif what is What.ALIVE:
            self._alive[observer].add(subject)

    def first(self, subject: str, whats: Collection[What], *, since: int = 0) -> dict[str, float]:
        """Return when each observer first saw one of these, counting notes from `since`."""
        seen: dict[str, float] = {}
        for note in self.notes[since:]:
            if note.subject == subject and note.what in whats:
                seen.setdefault(note.observer, note.at)
        return seen

    def all_saw(
        self, subject: str, what: What, observers: Iterable[str], *, since: int, within: float
    ) -> float | None:
        """Wait until all observers have seen something.  Return when the last one did."""
        observers = [name for name in observers if name != subject]

        def seen_by_all() -> bool:
            return self.first(subject, {what}, since=since).keys() >= set(observers)

        if not self.wait_for(seen_by_all, within):
            return None
        seen = self.first(subject, {what}, since=since)
        return max(seen[name] for name in observers)

    def whole(self) -> bool:
        """Whether all running members see all others alive."""
        running = set(self.running)
        return all(self._alive[name] | {name} >= running for name in running)

    def missing(self) -> str:
        """Say who does not see whom, in brief."""
        running = set(self.running)
        gaps = {name: len(running - self._alive[name] - {name}) for name in running}
        gaps = {name: gap for name, gap in gaps.items() if gap}
        return f"{sum(gaps.values())} of {len(running) * (len(running) - 1)} pairs unseen"

    def deaths(self, subjects: Collection[str], *, since: int = 0) -> int:
        """Return how often any member took one of these for dead."""
        return sum(n.what is What.DEAD and n.subject in subjects for n in self.notes[since:])
