"""The database's schema: how it is made, brought up to date, and judged before it is touched.

A new database is built under another name and renamed when it is complete, so a `mesh.db` that is
empty or short was damaged, and is never taken for a fresh one.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

from meshd.errors import StartError
from meshd.state_directory import check_private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshd.state_directory import StateDirectory

APPLICATION_ID = 0x6D657368  # "mesh"
HEADER = b"SQLite format 3\0"
BUSY_TIMEOUT = 2.0  # for people who look into the database while the daemon runs

# Each brings the schema from the version of its index to the next.  Only append.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL)
        STRICT, WITHOUT ROWID;
    CREATE TABLE facts (kind INTEGER, key BLOB, version BLOB NOT NULL, blob BLOB NOT NULL,
        PRIMARY KEY (kind, key)) STRICT;
    CREATE TABLE endpoints (node BLOB PRIMARY KEY, address BLOB NOT NULL, port INTEGER NOT NULL,
        seen_at INTEGER NOT NULL) STRICT;
    CREATE TABLE invites (id BLOB PRIMARY KEY, issued_at INTEGER NOT NULL, blob BLOB NOT NULL)
        STRICT;
    CREATE TABLE events (id INTEGER PRIMARY KEY, document TEXT NOT NULL) STRICT;
    """,
    """
    CREATE TABLE audit (number INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind TEXT NOT NULL,
        subject TEXT NOT NULL, subject_name TEXT NOT NULL, signer TEXT NOT NULL,
        signer_name TEXT NOT NULL, details TEXT NOT NULL, hash BLOB NOT NULL) STRICT;
    """,
    """
    CREATE TABLE preshared_keys (node BLOB, place INTEGER, key BLOB NOT NULL,
        agreed_at INTEGER NOT NULL, used_since INTEGER, PRIMARY KEY (node, place)) STRICT;
    """,
    """
    CREATE TABLE relay_ports (port INTEGER PRIMARY KEY, member BLOB NOT NULL, other BLOB NOT NULL,
        asked_until INTEGER NOT NULL, address BLOB, address_port INTEGER, local BLOB) STRICT;
    """,
)
VERSION = len(MIGRATIONS)

# What SQLite says of a file's contents; all else it says of the disk the file is on.
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

DAMAGED_ADVICE = (
    "it is left as it is for recovery: move it away and join again with a token or the secret "
    "(node.key beside it keeps this node's identity)"
)


def create_database(directory: StateDirectory, path: Path) -> None:
    """Make an empty database of the present version.  Raise StartError; then there is none."""
    partial = path.with_name(path.name + ".partial")
    journal = path.with_name(partial.name + "-journal")
    try:
        for leftover in (partial, journal):
            leftover.unlink(missing_ok=True)
        partial.touch(mode=0o600, exist_ok=False)
        with closing(sqlite3.connect(partial, isolation_level=None)) as database:
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _migrate(database, 0)
    except (sqlite3.Error, OSError) as exc:
        for leftover in (partial, journal):
            leftover.unlink(missing_ok=True)
        raise StartError(f"{path}: cannot be made: {exc}; is the disk full?") from exc
    directory.put(partial, path)
    directory.expect(*_beside(path))


def open_database(path: Path) -> sqlite3.Connection:
    """Open a database and bring it up to date.  Raise StartError without having touched it."""
    for file in (path, *_beside(path)):
        with suppress(FileNotFoundError):
            check_private(file)
    with _nothing_left_beside(path):
        version = _judge(path)
        return _open(path, version)


def overwrite_deleted(database: sqlite3.Connection) -> None:
    """Leave nothing of what was replaced so far in the files.  Raise sqlite3.Error."""
    database.execute("VACUUM")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _open(path: Path, version: int) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(
            path, isolation_level=None, timeout=BUSY_TIMEOUT, check_same_thread=False
        )
        try:
            # Persistent from the first time on; readers and `kill -9` do not disturb it.
            database.execute("PRAGMA journal_mode = WAL")
            # A key that was replaced is gone from the file, and not only from the table.
            database.execute("PRAGMA secure_delete = ON")
            _migrate(database, version)
        except BaseException:
            database.close()
            raise
    except sqlite3.Error as exc:
        raise unopenable(path, exc) from exc
    return database


def damaged(path: Path, how: str) -> StartError:
    """Return the error that says what to do about a damaged database."""
    return StartError(f"{path}: is damaged ({how}); {DAMAGED_ADVICE}")


def unopenable(path: Path, error: sqlite3.Error) -> StartError:
    """Return what an error of SQLite's means: a full disk must not be taken for a damaged file."""
    # The low byte is the error, the rest its circumstances: https://sqlite.org/rescode.html
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
        return damaged(path, str(error))
    return StartError(f"{path}: cannot be opened: {error}; is the disk full, or read-only?")


def _migrate(database: sqlite3.Connection, version: int) -> None:
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        database.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")


def _judge(path: Path) -> int:
    """Return the version of a sound database, without changing it."""
    try:
        with path.open("rb") as file:
            head = file.read(len(HEADER))
    except OSError as exc:
        raise StartError(f"{path}: cannot be read: {exc.strerror}") from exc
    if head != HEADER:
        raise damaged(path, "it is no SQLite database" if head else "it is empty")
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT)) as database:
            application = _pragma(database, "application_id")
            version = _pragma(database, "user_version")
            verdict = _pragma(database, "quick_check(1)")
    except sqlite3.Error as exc:
        raise unopenable(path, exc) from exc
    if verdict != "ok":
        raise damaged(path, str(verdict).splitlines()[-1])
    if application != APPLICATION_ID or not isinstance(version, int):
        raise damaged(path, "it is some other program's database")
    if version > VERSION:
        raise StartError(
            f"{path}: was written by a newer meshd (schema {version}, this one knows {VERSION}); "
            "upgrade meshd"
        )
    return version


def _pragma(database: sqlite3.Connection, name: str) -> object:
    value: object = database.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _beside(path: Path) -> tuple[Path, ...]:
    """Return the files that SQLite has beside an open database."""
    return tuple(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))


@contextmanager
def _nothing_left_beside(path: Path) -> Iterator[None]:
    """Remove the files that SQLite makes beside a database, if it cannot be opened after all."""
    absent = [other for other in _beside(path) if not other.exists()]
    try:
        yield
    except BaseException:
        for other in absent:
            other.unlink(missing_ok=True)
        raise
