"""What a node remembers between two runs: its keys, the mesh's facts, and a little more.

All of it is in one SQLite database beside `node.key` (see `state_directory`), so a mesh whose every
node was switched off comes back from these files alone.

Rule 1: every write is one bounded transaction.  What must never be forgotten once it has been used
        (keys, reserved numbers, the mesh we are bound to, invites) is on disk, durably, when its
        method returns; the rest may lose its last second when the power goes, because others
        have it too or it can be found out again.

Rule 2: a write that fails raises `StoreError` and has changed nothing.  Facts and endpoints wait in
        memory then and go with the next write, or with `flush`; of one key only the newest waits.
        Entries of the audit log wait in their order, and are written before any fact: no crash
        leaves a fact without its entry.

Rule 3: a database that is damaged is left exactly as it was found, and so is one that is newer than
        this program.  To look is not to touch: checks use a connection that cannot write.

Rule 4: where the node key was given, instead of being on disk, secrets are locked (`strongbox`).

Rule 5: a start that fails before anything has been written leaves nothing behind: what `open` has
        created is removed by `close`, unless something has been saved in between.  (What is only
        provisional does not count.)
"""

from __future__ import annotations

import enum
import sqlite3
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from meshd import audit, store_audit, store_preshared, store_relay
from meshd.codec import address_untrusted, pack_address
from meshd.errors import BadPacket, StartError, StoreError
from meshd.keys import InviteId, MeshId, NodeId, NodeKey, fingerprint
from meshd.state_directory import KEY_CREDENTIAL, StateDirectory
from meshd.store_schema import (
    create_database,
    damaged,
    open_database,
    overwrite_deleted,
    unopenable,
)
from meshd.strongbox import Strongbox, is_locked
from meshd.trust.fact import Fact, FactKind
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from meshd.audit import Act, Head
    from meshd.preshared.keys import Keyring
    from meshd.relay.allocations import Pair, StoredAllocation

DATABASE_NAME = "mesh.db"
TRANSACTION_ROWS_MAX = 1000
EVENTS_KEPT_MAX = 1000
EVENT_BYTES_MAX = 4096
AUDIT_WAITING_MAX = 10_000  # what comes while the disk takes nothing
CHECK_BYTES = 8
UINT64_BYTES = 8


# How secrets are read, and replaced one by one, wherever there are any.
_SECRETS = (
    ("SELECT value FROM secrets", "UPDATE secrets SET value = ? WHERE value = ?"),
    ("SELECT key FROM preshared_keys", "UPDATE preshared_keys SET key = ? WHERE key = ?"),
)


class Secret(enum.StrEnum):
    """Secrets other than the node key.  The values are on disk."""

    WIREGUARD_KEY = "wireguard-key"
    NEXT_WIREGUARD_KEY = "next-wireguard-key"
    BOOTSTRAP_KEY = "bootstrap-key"
    OLDER_BOOTSTRAP_KEY = "older-bootstrap-key"
    MESH_KEY = "mesh-key"
    NEXT_NODE_KEY = "next-node-key"  # see `Store.succeed`


class Counter(enum.StrEnum):
    """Numbers of which none may be used twice.  The values are on disk."""

    STARTS = "starts"
    RECORD = "record"
    INCARNATION = "incarnation"


class Meta(enum.StrEnum):
    """Single values, as bytes.  The values of the enumeration are on disk."""

    MESH = "mesh"
    NODE = "node"
    FIRST_NODE = "first-node"  # the id that the audit log begins with, once there is another
    NAME = "name"
    CHAIN = "chain"
    IPV4 = "ipv4"
    IPV4_PREFIX = "ipv4-prefix"
    SEEDS = "seeds"
    ROOTS = "roots"
    WIREGUARD_KEY_MADE_AT = "wireguard-key-made-at"
    OPEN_MESH = "open-mesh"  # whoever knows the secret can sign as the mesh: 1, else 0
    FORMER_WIREGUARD_KEY = "former-wireguard-key"  # its public half
    SETTINGS = "settings"  # digests, to tell which have changed
    FORWARDING = "forwarding"  # what was switched on in the kernel: `meshd.net.forwarding`


@dataclass(frozen=True, slots=True)
class StoredInvite:
    """An invite this node has issued.  Its token is not kept."""

    id: InviteId
    issued_at: int
    blob: bytes


@dataclass(frozen=True, slots=True)
class StoredEndpoint:
    """Where a member was last reached directly."""

    endpoint: Endpoint
    seen_at: int


class Store:
    """An open state directory.  One caller at a time; calls take milliseconds, mostly fsync."""

    def __init__(
        self,
        directory: StateDirectory,
        database: sqlite3.Connection,
        node_key: NodeKey,
        *,
        locks: bool,
    ) -> None:
        self.node_key = node_key
        self._strongbox = Strongbox(node_key.seed)
        self._locks = locks
        self.path = directory.path / DATABASE_NAME
        self._directory = directory
        self._database = database
        self._facts: dict[tuple[int, bytes], Fact | None] = {}  # None: to be deleted
        self._endpoints: dict[NodeId, StoredEndpoint] = {}
        self._events: deque[str] = deque(maxlen=EVENTS_KEPT_MAX)
        self._keyrings: dict[NodeId, Keyring] = {}
        self._allocations: dict[Pair, StoredAllocation | None] = {}  # None: to be deleted
        self._acts: deque[Act] = deque()
        self._acts_lost = 0

    @classmethod
    def open(cls, path: Path, given: NodeKey | None = None) -> Store:
        """Open, or begin, the state in `path`.  Raise StartError: one line, nothing changed.

        `given` is a node key that is not to be on this disk.
        """
        directory = StateDirectory.open(path)
        try:
            node_key = directory.node_key(given)
            database_path = path / DATABASE_NAME
            if not database_path.exists():
                create_database(directory, database_path)
            database = open_database(database_path)
            store = cls(directory, database, node_key, locks=given is not None)
        except BaseException:
            directory.close()
            raise
        try:
            store._finish_succession()
            store._check_node()
            store._lock_secrets()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Write what waits, if the disk lets us, and let go of everything."""
        with suppress(StoreError):
            self.flush()
        self._database.close()
        self._directory.close()

    def keep(self) -> None:
        """Leave what `open` has made in place, even if nothing is saved: others know our key."""
        self._directory.keep()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Identity

    @property
    def mesh(self) -> MeshId | None:
        """The mesh this state belongs to; None before the first `bind`."""
        stored = self.load_meta(Meta.MESH)
        return None if stored is None else MeshId(stored)

    def bind(self, mesh: MeshId) -> None:
        """Tie this state to a mesh for good.  Raise StartError if it is another one's."""
        bound = self.mesh
        if bound is not None and bound != mesh:
            raise StartError(
                f"{self._directory.path}: holds the state of mesh {bound.short}, not of "
                f"{mesh.short}; choose another --interface or --state-dir, "
                "or move that directory away to leave the old mesh for good"
            )
        if bound is None:
            rows = [(Meta.MESH, bytes(mesh)), (Meta.NODE, bytes(self.node_key.id))]
            with self._write(durable=True) as database:
                database.executemany("INSERT INTO meta VALUES (?, ?)", rows)

    @property
    def locks(self) -> bool:
        """Whether the node key was given, and is on no disk of ours."""
        return self._locks

    def succeed(self, node: NodeId) -> None:
        """Make this the state of another node id, whose key is NEXT_NODE_KEY.

        Part of what is saved `together`; it takes effect with the next `open`.  What a crash
        leaves: see `meshd.daemon.rekeying`.
        """
        assert self._database.in_transaction
        if self.load_meta(Meta.FIRST_NODE) is None:
            self.save_meta(Meta.FIRST_NODE, bytes(self.node_key.id))
        self._database.execute("UPDATE meta SET value = ? WHERE key = ?", (bytes(node), Meta.NODE))

    def _finish_succession(self) -> None:
        """Take up the key of the node that this state has come to be of, and no other copy of it.

        Raise StartError.
        """
        following = None if self._locks else self.load_secret(Secret.NEXT_NODE_KEY)
        if following is None or NodeKey(following).id != self.load_meta(Meta.NODE):
            return
        self.node_key = NodeKey(following)
        self._strongbox = Strongbox(following)
        self._directory.replace_node_key(self.node_key)
        with suppress(StoreError):  # the next start will
            self.delete_secret(Secret.NEXT_NODE_KEY)

    def _check_node(self) -> None:
        """Refuse a node key that is not the one this state was made with."""
        stored = self.load_meta(Meta.NODE)
        if stored is not None and stored != self.node_key.id:
            raise StartError(
                f"{self._directory.path}: node.key is not the key that mesh.db belongs to; put "
                f"the right node.key back, or the credential {KEY_CREDENTIAL} if it was one, or "
                "move mesh.db away and join again as this node"
            )

    def _lock_secrets(self) -> None:
        """Lock what an earlier run has left in clear, and leave no copy of that."""
        if not self._locks:
            return
        in_clear = 0
        for every, change in _SECRETS:
            clear = [raw for (raw,) in self._read(every) if not is_locked(raw)]
            with self._write(durable=True, keep=False) as database:
                database.executemany(change, [(self._strongbox.lock(raw), raw) for raw in clear])
            in_clear += len(clear)
        if in_clear:
            overwrite_deleted(self._database)

    def _kept(self, secret: bytes) -> bytes:
        """Return the form in which a secret lies on this disk."""
        return self._strongbox.lock(secret) if self._locks else secret

    def save_secret(self, name: Secret, value: bytes, *, provisional: bool = False) -> None:
        """Keep a secret, durably.

        A provisional one outlives a crash, and goes as `open`'s files do when nothing else is
        saved.
        """
        with self._write(durable=True, keep=not provisional) as database:
            row = (name, self._kept(value), _check(name, value))
            database.execute("INSERT OR REPLACE INTO secrets VALUES (?, ?, ?)", row)

    def load_secret(self, name: Secret) -> bytes | None:
        """Return a secret, None if there is none.  Raise StartError if it is damaged."""
        rows = self._read("SELECT value, checksum FROM secrets WHERE name = ?", (name,))
        if not rows:
            return None
        stored, check = rows[0]
        try:
            value = self._strongbox.unlock_untrusted(stored)
        except BadPacket as exc:
            raise self._damaged(f"its {name} has changed") from exc
        if check != _check(name, value):
            raise self._damaged(f"its {name} has changed")
        return value

    def delete_secret(self, name: Secret) -> None:
        """Forget a secret, durably."""
        with self._write(durable=True) as database:
            database.execute("DELETE FROM secrets WHERE name = ?", (name,))

    def reserve_sequence(self, counter: Counter, count: int, *, above: int = 0) -> range:
        """Return `count` numbers that no run before had, all greater than `above`.

        They are taken on disk before this returns; those not used by the end of the run are lost.
        """
        assert count > 0
        key = f"counter.{counter}"
        rows = self._read("SELECT value FROM meta WHERE key = ?", (key,))
        try:
            first = max(_from_uint64(rows[0][0]) if rows else 1, above + 1)
        except ValueError as exc:
            raise self._damaged(f"its {key} makes no sense") from exc
        with self._write(durable=True) as database:
            row = (key, _uint64(first + count))
            database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", row)
        return range(first, first + count)

    # Single values

    def save_meta(self, key: Meta, value: bytes) -> None:
        """Keep a value, durably."""
        assert key not in {Meta.MESH, Meta.NODE}, "see bind and succeed"
        with self._write(durable=True) as database:
            database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def load_meta(self, key: Meta) -> bytes | None:
        """Return a value, None if there is none."""
        rows = self._read("SELECT value FROM meta WHERE key = ?", (key,))
        return bytes(rows[0][0]) if rows else None

    # Facts and endpoints: they wait in memory while the disk refuses them

    def save_facts(self, facts: Iterable[Fact], *, durable: bool = False) -> None:
        """Keep facts, each in the place of the one with its kind and key."""
        for fact in facts:
            self._facts[(fact.kind, fact.key)] = fact
        self.flush(durable=durable)

    def save_facts_with(self, facts: Iterable[Fact]) -> None:
        """Keep facts as part of what is saved `together`."""
        assert self._database.in_transaction
        _write_facts(self._database, [((fact.kind, fact.key), fact) for fact in facts])

    def delete_fact(self, kind: FactKind, key: bytes) -> None:
        """Drop a fact."""
        self._facts[(kind, key)] = None
        self.flush()

    def load_facts(self) -> list[Fact]:
        """Return all facts in a fixed order.  They are ours, and yet to be verified like any."""
        rows = self._read("SELECT kind, key, version, blob FROM facts ORDER BY kind, key")
        try:
            return [Fact(FactKind(k), key, _from_uint64(v), blob) for k, key, v, blob in rows]
        except (ValueError, TypeError, AssertionError) as exc:
            raise self._damaged("a fact in it makes no sense") from exc

    def save_endpoints(self, endpoints: Mapping[NodeId, StoredEndpoint]) -> None:
        """Keep where members were last reached."""
        self._endpoints.update(endpoints)
        self.flush()

    def load_endpoints(self) -> dict[NodeId, StoredEndpoint]:
        """Return where members were last reached."""
        rows = self._read("SELECT node, address, port, seen_at FROM endpoints ORDER BY node")
        try:
            return {
                NodeId(node): StoredEndpoint(Endpoint(address_untrusted(address), port), seen_at)
                for node, address, port, seen_at in rows
            }
        except (ValueError, TypeError, BadPacket) as exc:
            raise self._damaged("an endpoint in it makes no sense") from exc

    def save_keyring(self, node: NodeId, ring: Keyring) -> None:
        """Keep the pre-shared keys of a pair, in place of what there was; none deletes them."""
        self._keyrings[node] = ring
        self.flush()

    def load_keyrings(self) -> dict[NodeId, Keyring]:
        """Return all pre-shared keys."""
        try:
            return store_preshared.read(self._database, self._strongbox.unlock_untrusted)
        except sqlite3.Error as exc:
            raise unopenable(self.path, exc) from exc
        except (ValueError, TypeError, BadPacket) as exc:
            raise self._damaged("a pre-shared key in it makes no sense") from exc

    def save_allocation(self, pair: Pair, allocation: StoredAllocation | None) -> None:
        """Keep what this node relays for a pair, in place of what there was; None deletes it."""
        self._allocations[pair] = allocation
        self.flush()

    def load_allocations(self) -> list[StoredAllocation]:
        """Return what this node relays."""
        try:
            return store_relay.read(self._database)
        except sqlite3.Error as exc:
            raise unopenable(self.path, exc) from exc
        except (ValueError, TypeError, BadPacket) as exc:
            raise self._damaged("a relayed pair in it makes no sense") from exc

    def save_events(self, events: Iterable[str]) -> None:
        """Keep events (JSON documents, oldest first), and drop the oldest beyond the bound."""
        self._events.extend(event for event in events if len(event) <= EVENT_BYTES_MAX)
        self.flush()

    def load_events(self) -> list[str]:
        """Return the events kept, oldest first."""
        return [str(row[0]) for row in self._read("SELECT document FROM events ORDER BY id")]

    def save_acts(self, *acts: Act) -> None:
        """Have acts follow each other in the audit log, and write them with the next `flush`.

        What is too much to wait is counted, and the log says so.
        """
        room = AUDIT_WAITING_MAX - len(self._acts)
        self._acts.extend(acts[:room])
        self._acts_lost += len(acts[room:])

    def audit_head(self) -> Head:
        """Return the audit log's head, as kept apart from its entries."""
        try:
            return store_audit.load_head(self._database)
        except sqlite3.Error as exc:
            raise unopenable(self.path, exc) from exc

    @property
    def waiting(self) -> int:
        """How many rows wait for a disk that takes them."""
        rows = len(self._facts) + len(self._endpoints) + len(self._events) + len(self._acts)
        return rows + len(self._keyrings) + len(self._allocations)

    def flush(self, *, durable: bool = False) -> None:
        """Write what waits, in bounded transactions.  Raise StoreError; the rest still waits.

        The audit log goes first.  All is on disk when this returns if it is to be `durable`.
        """
        assert not self._database.in_transaction, "see together"
        while self._acts:
            acts = list(islice(self._acts, TRANSACTION_ROWS_MAX))
            with self._write(durable=durable) as database:
                store_audit.append(database, acts)
            for _ in acts:
                self._acts.popleft()
            if self._acts_lost:
                self._acts.append(audit.lost(self._acts_lost, acts[-1].at))
                self._acts_lost = 0
        while self.waiting:
            facts = list(islice(self._facts.items(), TRANSACTION_ROWS_MAX))
            endpoints = list(islice(self._endpoints.items(), TRANSACTION_ROWS_MAX))
            events = list(self._events)
            rings = dict(islice(self._keyrings.items(), TRANSACTION_ROWS_MAX))
            allocations = dict(islice(self._allocations.items(), TRANSACTION_ROWS_MAX))
            with self._write(durable=durable) as database:
                _write_facts(database, facts)
                _write_endpoints(database, endpoints)
                _write_events(database, events)
                store_preshared.write(database, rings, self._kept)
                store_relay.write(database, allocations)
            for place, _ in facts:
                del self._facts[place]
            for node, _ in endpoints:
                del self._endpoints[node]
            self._events.clear()
            for node in rings:
                del self._keyrings[node]
            for pair in allocations:
                del self._allocations[pair]

    # Invites

    def save_invite(self, invite: StoredInvite) -> None:
        """Keep an invite we have issued, durably."""
        with self._write(durable=True) as database:
            row = (bytes(invite.id), invite.issued_at, invite.blob)
            database.execute("INSERT OR REPLACE INTO invites VALUES (?, ?, ?)", row)

    def delete_invite(self, invite: InviteId) -> None:
        """Drop an invite."""
        with self._write(durable=True) as database:
            database.execute("DELETE FROM invites WHERE id = ?", (bytes(invite),))

    def load_invites(self) -> list[StoredInvite]:
        """Return the invites we have issued, oldest first."""
        rows = self._read("SELECT id, issued_at, blob FROM invites ORDER BY issued_at, id")
        try:
            return [StoredInvite(InviteId(id_), at, blob) for id_, at, blob in rows]
        except (ValueError, TypeError) as exc:
            raise self._damaged("an invite in it makes no sense") from exc

    # SQLite

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make what is saved inside one durable transaction: all of it is kept, or nothing.

        What can wait (facts, endpoints, events) has no place inside.
        """
        with self._write(durable=True):
            yield

    @contextmanager
    def _write(self, *, durable: bool, keep: bool = True) -> Iterator[sqlite3.Connection]:
        """Run one transaction, or take part in the one that runs."""
        if self._database.in_transaction:
            yield self._database
            return
        try:
            # With WAL, FULL waits for the disk at each commit and NORMAL at checkpoints only.
            self._database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk may have ended it already
                    self._database.execute("ROLLBACK")
                raise
        except sqlite3.Error as exc:
            raise StoreError(f"{self.path}: cannot be written: {exc}") from exc
        if keep:
            self._directory.keep()

    def _read(self, query: str, parameters: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
        # The tables are STRICT, so SQLite vouches for the types of the columns.
        try:
            rows: list[tuple[Any, ...]] = self._database.execute(query, parameters).fetchall()
        except sqlite3.Error as exc:
            raise unopenable(self.path, exc) from exc
        return rows

    def _damaged(self, how: str) -> StartError:
        return damaged(self.path, how)


def _write_facts(
    database: sqlite3.Connection, facts: list[tuple[tuple[int, bytes], Fact | None]]
) -> None:
    kept = [fact for _, fact in facts if fact is not None]
    database.executemany(
        "DELETE FROM facts WHERE kind = ? AND key = ?", [at for at, fact in facts if fact is None]
    )
    database.executemany(
        "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?)",
        [(fact.kind, fact.key, _uint64(fact.version), fact.blob) for fact in kept],
    )


def _write_endpoints(
    database: sqlite3.Connection, endpoints: list[tuple[NodeId, StoredEndpoint]]
) -> None:
    database.executemany(
        "INSERT OR REPLACE INTO endpoints VALUES (?, ?, ?, ?)",
        [
            (bytes(node), pack_address(at.endpoint.address), at.endpoint.port, at.seen_at)
            for node, at in endpoints
        ],
    )


def _write_events(database: sqlite3.Connection, events: list[str]) -> None:
    if events:
        database.executemany(
            "INSERT INTO events (document) VALUES (?)", [(event,) for event in events]
        )
        database.execute(
            "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", (EVENTS_KEPT_MAX,)
        )


def _check(name: Secret, value: bytes) -> bytes:
    # Signatures guard facts; a key whose bits have turned would only look like another key.
    return fingerprint(name.encode(), value, size=CHECK_BYTES, person=b"meshd.store")


def _uint64(value: int) -> bytes:
    # SQLite's integers are signed.
    return value.to_bytes(UINT64_BYTES, "big")


def _from_uint64(value: bytes) -> int:
    if len(value) != UINT64_BYTES:
        raise ValueError("not eight bytes")
    return int.from_bytes(value, "big")
