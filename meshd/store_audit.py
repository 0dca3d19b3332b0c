"""The audit log as a table: written in order, read without disturbing whoever writes.

Rule 1: entries and head are written in one transaction, so that neither is ever ahead.

Rule 2: readers have a connection of their own that cannot write, so that a whole log is checked
        beside a daemon that runs, or without one.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from meshd import audit
from meshd.audit import Act, Entry, Head
from meshd.errors import StartError
from meshd.keys import MeshId, NodeId
from meshd.store_schema import BUSY_TIMEOUT, unopenable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_Row: TypeAlias = tuple[int, int, str, str, str, str, str, str, bytes]

HEAD_KEY = "audit-head"
_COLUMNS = "number, at, kind, subject, subject_name, signer, signer_name, details, hash"
_NUMBER_BYTES = 8
_NUMBER_MAX = 2**62 - 1  # SQLite's integers have 63 bits; a damaged head must not exceed them


def append(
    database: sqlite3.Connection, acts: Sequence[Act], *, entries_max: int = audit.ENTRIES_MAX
) -> None:
    """Continue the chain by one act or more, inside the caller's transaction."""
    head = load_head(database)
    # Somebody may have been at the table.  We go on all the same, in a way that shows it.
    newest = database.execute("SELECT max(number) FROM audit").fetchone()[0] or 0
    entries = audit.chain(Head(max(head.number, newest), head.hash), acts)
    _insert(database, entries)
    for entry in (*entries[-1:], *_drop(database, entries[-1].head, entries_max)):
        head = entry.head
    value = head.number.to_bytes(_NUMBER_BYTES, "big") + head.hash
    database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (HEAD_KEY, value))


def load_head(database: sqlite3.Connection) -> Head:
    """Return the head that is kept apart; the genesis before the first entry."""
    rows = database.execute("SELECT value FROM meta WHERE key = ?", (HEAD_KEY,)).fetchall()
    if not rows:
        return _genesis(database)
    value = bytes(rows[0][0])
    return Head(int.from_bytes(value[:_NUMBER_BYTES], "big") & _NUMBER_MAX, value[_NUMBER_BYTES:])


class AuditReader:
    """A log that is read, by a connection of its own.  For one thread."""

    def __init__(self, database: sqlite3.Connection) -> None:
        # Text that is none was not written by us: it is to be found, not to end the search.
        database.text_factory = partial(str, encoding="utf-8", errors="replace")
        self._database = database

    def before_last(self, count: int) -> int:
        """Return the number before the `count` newest entries."""
        row = self._database.execute(
            "SELECT number FROM audit ORDER BY number DESC LIMIT 1 OFFSET ?", (count,)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def after(self, number: int, count: int) -> list[Entry]:
        """Return up to `count` entries with greater numbers, oldest first."""
        query = f"SELECT {_COLUMNS} FROM audit WHERE number > ? ORDER BY number LIMIT ?"  # noqa: S608 - constants
        return list(map(_entry, self._database.execute(query, (number, count))))

    def entries(self) -> Iterator[Entry]:
        """Give all entries, oldest first."""
        query = f"SELECT {_COLUMNS} FROM audit ORDER BY number"  # noqa: S608 - a constant
        return map(_entry, self._database.execute(query))

    def verify(self) -> audit.Verdict:
        """Check the whole log."""
        self._database.execute("BEGIN")  # one state of the file for all that is read
        try:
            query = f"SELECT {_COLUMNS} FROM audit WHERE kind = ?"  # noqa: S608 - a constant
            checkpoints = self._database.execute(query, (audit.CHECKPOINT,)).fetchall()
            return audit.verify(
                self.entries(),
                start=_genesis(self._database),
                head=load_head(self._database),
                checkpoints=map(_entry, checkpoints),
            )
        finally:
            self._database.execute("ROLLBACK")

    def contains(self, noted: Head) -> bool | None:
        """Whether a head noted earlier is in the log; None if it is older than what is kept."""
        rows = self._database.execute(
            "SELECT hash FROM audit WHERE number = ?", (noted.number,)
        ).fetchall()
        if rows:
            return bytes(rows[0][0]).startswith(noted.hash)
        first = self._database.execute("SELECT min(number) FROM audit").fetchone()[0]
        return None if first is not None and noted.number < first else False


@contextmanager
def reading(path: Path) -> Iterator[AuditReader]:
    """Open the log in a database that others may be writing to.  Raise StartError."""
    # Without a log of writes nobody has it open, and SQLite need not make files to read it.
    alone = not path.with_name(path.name + "-wal").exists()
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
        with closing(
            sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
        ) as database:
            yield AuditReader(database)
    except sqlite3.Error as exc:
        raise unopenable(path, exc) from exc


def _drop(database: sqlite3.Connection, head: Head, entries_max: int) -> list[Entry]:
    """Drop the oldest entries beyond the bound.  Return the checkpoint that tells of it, if so."""
    first = database.execute("SELECT min(number) FROM audit").fetchone()[0]
    if first is None or head.number - first < entries_max:
        return []
    number = head.number - entries_max + min(audit.DROPPED_AT_ONCE, entries_max // 2)
    row = database.execute("SELECT hash FROM audit WHERE number = ?", (number,)).fetchone()
    if row is None:
        return []  # it is missing, and `verify` is to find that: nothing else is taken away
    newest = database.execute("SELECT max(at) FROM audit").fetchone()[0]
    database.execute("DELETE FROM audit WHERE number <= ?", (number,))
    entries = audit.chain(head, [audit.checkpoint(Head(number, bytes(row[0])), newest)])
    _insert(database, entries)
    return entries


def _insert(database: sqlite3.Connection, entries: Sequence[Entry]) -> None:
    database.executemany("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_row, entries))


def _genesis(database: sqlite3.Connection) -> Head:
    query = "SELECT key, value FROM meta WHERE key IN ('mesh', 'node', 'first-node')"
    rows = dict(database.execute(query))
    try:
        # The log goes on when this machine goes on under another node id.
        return audit.genesis(MeshId(rows["mesh"]), NodeId(rows.get("first-node", rows["node"])))
    except (KeyError, ValueError) as exc:
        raise StartError("this state is of no mesh yet, and so has no audit log") from exc


def _row(entry: Entry) -> _Row:
    act = entry.act
    return (
        entry.number,
        act.at,
        act.kind,
        act.subject,
        act.subject_name,
        act.signer,
        act.signer_name,
        act.details,
        entry.hash,
    )


def _entry(row: _Row) -> Entry:
    number, at, kind, subject, subject_name, signer, signer_name, details, digest = row
    act = Act(at, kind, subject, subject_name, signer, signer_name, details)
    return Entry(number, act, bytes(digest))
