"""The audit log: what has changed in this mesh, as this node saw it, chained by hashes.

    genesis ◀── 1 ◀── 2 ◀── 3 ◀── … ◀── head          hash = BLAKE2b-256(hash before ‖ entry)

Rule 1: an entry's hash covers the hash before it, its number and all it says, each field with its
        length.  So an entry that is changed, removed, put elsewhere or put in between is found, and
        the first number that is wrong is named.

Rule 2: numbers go up by one.  What could not be kept is an entry of its own (`entries-lost`).

Rule 3: the oldest entries may be dropped only by a `checkpoint`: an entry like any other, which
        says through which number they went and what the hash of the last of them was.  The first
        entry that is left continues that hash.

               4 ◀── 5 ◀── 6 (checkpoint: through 3, hash of 3) ◀── 7
               └── follows the hash that 6 names

Rule 4: the head is kept apart from the entries, and so is the end of the log known.

What this cannot show by itself: whoever can write to the state directory can make all hashes anew,
or put back an older state whole.  Against that a head helps that was noted elsewhere: `verify`
says whether the log still contains it.

| kind                      | subject           | signed by                        |
| ------------------------- | ----------------- | -------------------------------- |
| `log-opened`              | this node         |                                  |
| `member-admitted`         | the new member    | who issued its credential        |
| `credential-renewed`      | the member        | who issued the new one           |
| `credential-adopted`      | this node         | who issued it                    |
| `credential-granted`      | the member        | a root, for one that was away    |
| `routes-granted`          | the member        | who issued its credential        |
| `member-revoked`          | the member        | mesh key, or who revoked it      |
| `member-forgotten`        | the member        | this node                        |
| `member-restless`         | the member        |                                  |
| `mesh-sealed`             | the new root      | the root before it               |
| `mesh-key-rotated`        | the new root      | the root before it               |
| `bootstrap-key-rotated`   |                   | who made it                      |
| `invite-issued`           | the invite        | this node                        |
| `approval-opened`         | this node         | this node                        |
| `newcomer-approved`       | the newcomer      | this node                        |
| `invite-used`             | who came by it    | who admitted it                  |
| `invite-withdrawn`        | the invite        | who withdrew it                  |
| `wireguard-key-rotated`   | the member        | itself                           |
| `node-key-announced`      | the new node id   | the former one                   |
| `node-key-rotated`        | the new node id   | this node, under the former one  |
| `configuration-changed`   | this node         | this node                        |
| `checkpoint`              |                   |                                  |
| `entries-lost`            |                   |                                  |
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from meshd.keys import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshd.keys import MeshId, NodeId

HASH_BYTES = 32
NOTED_BYTES_MIN = 8  # of a hash, for people; nobody finds another entry with the same ones
DETAILS_BYTES_MAX = 4096
ENTRIES_MAX = 100_000
DROPPED_AT_ONCE = 1_000  # so that there is one checkpoint to a thousand entries, not one to each
CHECKPOINT = "checkpoint"
LOST = "entries-lost"

Detail: TypeAlias = "str | int | float | bool | list[str] | None"


@dataclass(frozen=True, slots=True)
class Act:
    """Something that has happened and is to be kept.  Names are those of the moment."""

    at: int  # wall clock
    kind: str
    subject: str = ""  # an id in full
    subject_name: str = ""
    signer: str = ""  # an id in full; empty where nobody has signed
    signer_name: str = ""
    details: str = "{}"  # JSON, see `details_text`


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: the number and hash of its newest entry."""

    number: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.number}:{self.hash.hex()}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read what somebody has noted: as `str` gives it, or cut short.  Raise ValueError."""
        number, _, digest = text.partition(":")
        head = cls(int(number), bytes.fromhex(digest))
        if head.number < 0 or not NOTED_BYTES_MIN <= len(head.hash) <= HASH_BYTES:
            raise ValueError("not a number and a hash")
        return head


@dataclass(frozen=True, slots=True)
class Entry:
    """An act with its place in the chain."""

    number: int
    act: Act
    hash: bytes

    @property
    def head(self) -> Head:
        """The head of a chain that ends here."""
        return Head(self.number, self.hash)


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that is wrong in a log."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification has found.  `first` and `count` are of the entries that are there."""

    first: int  # 0: there is none
    count: int
    head: Head  # as kept apart from the entries
    fault: Fault | None


def details_text(details: Mapping[str, Detail]) -> str:
    """Return details in their one canonical form.  What is too long is left out, visibly."""
    text = json.dumps(dict(details), sort_keys=True, separators=(",", ":"))
    return text if len(text) <= DETAILS_BYTES_MAX else json.dumps({"omitted_bytes": len(text)})


def genesis(mesh: MeshId, node: NodeId) -> Head:
    """Return what the first entry follows: no log is another node's, or another mesh's."""
    return Head(0, fingerprint(mesh, node, size=HASH_BYTES, person=b"meshd.audit.0"))


def chain(head: Head, acts: Iterable[Act]) -> list[Entry]:
    """Return entries that continue a chain."""
    entries = []
    for act in acts:
        entry = Entry(head.number + 1, act, _hash(head, act))
        entries.append(entry)
        head = entry.head
    return entries


def checkpoint(through: Head, at: int) -> Act:
    """Return the act of dropping all entries through one."""
    details: dict[str, Detail] = {"through": through.number, "hash": through.hash.hex()}
    return Act(at, CHECKPOINT, details=details_text(details))


def lost(count: int, at: int) -> Act:
    """Return the act of not having been able to keep so many others."""
    return Act(at, LOST, details=details_text({"count": count}))


def verify(
    entries: Iterable[Entry], *, start: Head, head: Head, checkpoints: Iterable[Entry] = ()
) -> Verdict:
    """Check all entries of a log, in the order of their numbers.

    `start` is its genesis, `head` what is kept apart, `checkpoints` are its entries of that kind.
    """
    hints = {through.number: through for through in map(_through, checkpoints) if through}
    checker = _Checker(start, hints)
    for entry in entries:
        checker.take(entry)
    return Verdict(checker.first, checker.count, head, checker.fault or checker.judge_end(head))


class _Checker:
    """Follows a chain.  After the first fault it only counts."""

    def __init__(self, start: Head, hints: Mapping[int, Head]) -> None:
        self.first = 0
        self.count = 0
        self.fault: Fault | None = None
        self._before = start
        self._hints = hints
        self._dropped = start  # through where the entries have been dropped, by the newest word
        self._trusted = True  # the first entry follows what it has to

    def take(self, entry: Entry) -> None:
        """Take the next entry."""
        self.count += 1
        if self.count == 1:
            self.first = entry.number
            self._begin(entry)
        if self.fault is None:
            self.fault = self._judge(entry)
            self._before = entry.head
            through = _through(entry)
            if through is not None:
                self._dropped = through

    def judge_end(self, head: Head) -> Fault | None:
        """Return what is wrong with beginning or end, given that the chain itself is whole."""
        expected = self._dropped.number + 1
        if self.count and not (self._trusted and self.first == expected):
            if self.first > expected:
                return Fault(expected, "it is missing, and no checkpoint tells of that")
            return Fault(self.first, "it was changed, or it was dropped and has been put back")
        if head.number > self._before.number:
            return Fault(self._before.number + 1, "it is missing: the log was cut off before it")
        if head.number < self._before.number:
            return Fault(head.number + 1, "it was added behind the head that was kept")
        if head.hash != self._before.hash:
            return Fault(head.number, "it was changed, or the head that was kept")
        return None

    def _begin(self, entry: Entry) -> None:
        """Find what the first entry follows: the genesis, or else what a checkpoint says."""
        if entry.number == self._before.number + 1:
            return
        hint = self._hints.get(entry.number - 1)
        if hint is not None and entry.hash == _hash(hint, entry.act):
            self._before = hint
        else:
            # Either this entry is wrong or the checkpoint, and if so that shows in its own place.
            self._trusted = False
            self._before = Head(entry.number - 1, b"")

    def _judge(self, entry: Entry) -> Fault | None:
        expected = self._before.number + 1
        if entry.number != expected:
            return Fault(expected, "it is missing")
        if self.count == 1 and not self._trusted:
            return None  # `judge_end` has the last word
        if entry.hash == _hash(self._before, entry.act):
            return None
        blamed = self.first if self.count == 2 and not self._trusted else entry.number
        return Fault(blamed, "it was changed")


def _hash(before: Head, act: Act) -> bytes:
    return fingerprint(
        before.hash,
        (before.number + 1).to_bytes(8, "big", signed=True),
        act.at.to_bytes(8, "big", signed=True),
        *(
            text.encode("utf-8", "surrogatepass")
            for text in (
                act.kind,
                act.subject,
                act.subject_name,
                act.signer,
                act.signer_name,
                act.details,
            )
        ),
        size=HASH_BYTES,
        person=b"meshd.audit",
    )


def _through(entry: Entry) -> Head | None:
    """Return what a checkpoint names; None for any other entry, and for one that was changed."""
    if entry.act.kind != CHECKPOINT:
        return None
    try:
        details = json.loads(entry.act.details)
        return Head(int(details["through"]), bytes.fromhex(details["hash"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
