"""Pre-shared keys on disk."""

import sqlite3

import pytest

from meshd import store_schema
from meshd.errors import StartError, StoreError
from meshd.keys import MeshKey, NodeKey, PresharedKey
from meshd.preshared.keys import Keyring, SharedKey
from meshd.store import Store

MESH = MeshKey(b"\x07" * 32).id
A, B = (NodeKey(bytes([number]) * 32).id for number in (1, 2))
NEW, OLD = (SharedKey(PresharedKey(bytes([n]) * 32), 1_700_000_000 + n) for n in (9, 8))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "state" / "mesh0"
    with Store.open(path) as store:
        store.bind(MESH)
    return path


@pytest.mark.parametrize(
    "ring",
    [
        Keyring((NEW,), NEW, 1_700_000_100),
        Keyring((NEW, OLD), OLD, 1_700_000_100),
        Keyring((NEW, OLD), NEW, 1_700_000_100),
        Keyring((NEW, OLD), None, 0),
    ],
    ids=["one", "beside the one in use", "above the one before", "none in use"],
)
def test_what_is_kept_comes_back(path, ring):
    with Store.open(path) as store:
        store.save_keyring(A, Keyring((OLD,), OLD, 5))
        store.save_keyring(A, ring)
        store.save_keyring(B, Keyring((OLD,), OLD, 5))

    with Store.open(path) as store:
        assert store.load_keyrings() == {A: ring, B: Keyring((OLD,), OLD, 5)}


def test_an_empty_ring_deletes_what_there_was(path):
    with Store.open(path) as store:
        store.save_keyring(A, Keyring((NEW, OLD), NEW, 5))
        store.save_keyring(A, Keyring())
        assert store.load_keyrings() == {}

    assert bytes(NEW.key) not in b"".join(
        row[0]
        for row in sqlite3.connect(path / "mesh.db").execute("SELECT key FROM preshared_keys")
    )


def test_keys_wait_while_the_disk_is_full(path):
    with Store.open(path) as store:
        pages = store._database.execute("PRAGMA page_count").fetchone()[0]
        store._database.execute(f"PRAGMA max_page_count = {pages}")
        rings = {
            NodeKey(number.to_bytes(32, "big")).id: Keyring((NEW, OLD), NEW, 5)
            for number in range(1, 400)
        }
        refused = 0
        for node, ring in rings.items():
            try:
                store.save_keyring(node, ring)
            except StoreError:
                refused += 1
        assert refused
        assert store.waiting
        store._database.execute("PRAGMA max_page_count = 100000")

        store.flush()

        assert store.load_keyrings() == dict(sorted(rings.items()))


def test_a_database_of_before_gets_the_table(path):
    with sqlite3.connect(path / "mesh.db") as database:
        database.execute("DROP TABLE preshared_keys")
        # As many migrations as there were before the table came.
        before = next(
            number
            for number, script in enumerate(store_schema.MIGRATIONS)
            if "preshared_keys" in script
        )
        for table in _tables_of(store_schema.MIGRATIONS[before + 1 :]):
            database.execute(f"DROP TABLE {table}")
        database.execute(f"PRAGMA user_version = {before}")
    database.close()

    with Store.open(path) as store:
        assert store.load_keyrings() == {}
        store.save_keyring(A, Keyring((NEW,), NEW, 5))
        assert A in store.load_keyrings()


def _tables_of(scripts):
    words = " ".join(scripts).split()
    return [
        words[at + 2] for at, word in enumerate(words) if words[at : at + 2] == ["CREATE", "TABLE"]
    ]


def test_a_row_that_is_no_key_is_a_damaged_database(path):
    with sqlite3.connect(path / "mesh.db") as database:
        database.execute("INSERT INTO preshared_keys VALUES (?, 0, ?, 1, 1)", (bytes(A), b"short"))
    database.close()

    with Store.open(path) as store, pytest.raises(StartError, match="pre-shared key"):
        store.load_keyrings()
