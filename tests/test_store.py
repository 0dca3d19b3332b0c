from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.errors import StartError, StoreError
from meshd.keys import InviteId, MeshId, NodeId
from meshd.store import (
    EVENTS_KEPT_MAX,
    TRANSACTION_ROWS_MAX,
    Counter,
    Meta,
    Secret,
    Store,
    StoredEndpoint,
    StoredInvite,
)
from meshd.store_schema import VERSION
from meshd.trust.fact import Fact, FactKind
from meshd.wg.types import Endpoint

MESH = MeshId(bytes([7]) * 32)


def fact(number: int, version: int = 1, blob: bytes = b"blob") -> Fact:
    return Fact(FactKind.RECORD, number.to_bytes(32, "big"), version, blob)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "mesh0"


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.name != "lock"}


def in_mount_namespace(script: str, *, options: str, directory: Path) -> str:
    """Run a script with a tmpfs at `directory` that nobody else sees."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    directory.mkdir(parents=True, exist_ok=True)
    command = f'mount -t tmpfs -o {options} tmpfs "$0" && exec "$1" -c "$2" "$0"'
    ran = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "sh", "-ec", command),
            *(str(directory), sys.executable, textwrap.dedent(script)),
        ],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


# Opening


def test_the_node_key_is_made_once_and_kept(path: Path) -> None:
    with Store.open(path) as store:
        made = store.node_key.id
        store.bind(MESH)
    with Store.open(path) as store:
        assert store.node_key.id == made
        assert store.mesh == MESH


def test_nobody_else_can_read_the_state(path: Path) -> None:
    with Store.open(path) as store:
        store.bind(MESH)
        assert path.stat().st_mode & 0o777 == 0o700
        for file in path.iterdir():
            assert file.stat().st_mode & 0o077 == 0, file.name


def test_a_start_that_saves_nothing_leaves_nothing(path: Path) -> None:
    Store.open(path).close()
    assert not path.exists()
    assert not path.parent.exists()


def test_a_node_key_that_others_know_outlives_a_start_that_saves_nothing(path: Path) -> None:
    with Store.open(path) as store:
        shown = store.node_key.id
        store.keep()
    with Store.open(path) as store:
        assert store.node_key.id == shown


def test_a_start_that_saves_nothing_keeps_what_was_there(path: Path) -> None:
    with Store.open(path) as store:
        store.bind(MESH)
    before = contents(path)
    Store.open(path).close()
    assert contents(path) == before


def test_two_daemons_cannot_have_one_state_directory(path: Path) -> None:
    with Store.open(path) as store:
        store.bind(MESH)
        with pytest.raises(StartError, match=rf"is running \(pid {os.getpid()}\)"):
            Store.open(path)
    Store.open(path).close()


def test_the_state_of_another_mesh_is_refused(path: Path) -> None:
    other = MeshId(bytes([8]) * 32)
    with Store.open(path) as store:
        store.bind(MESH)
        store.bind(MESH)
        with pytest.raises(StartError, match=f"holds the state of mesh {MESH.short}, not of"):
            store.bind(other)
        assert store.mesh == MESH


def test_a_node_key_that_others_can_read_is_refused(path: Path) -> None:
    with Store.open(path) as store:
        store.bind(MESH)
    (path / "node.key").chmod(0o644)
    with pytest.raises(StartError, match=r"node\.key: has mode 0644.*chmod 600"):
        Store.open(path)


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 44, b"A" * 300])
def test_a_damaged_node_key_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    with Store.open(path) as store:
        store.bind(MESH)
    (path / "node.key").write_bytes(content)
    with pytest.raises(StartError, match=r"node\.key: is damaged"):
        Store.open(path)
    assert (path / "node.key").read_bytes() == content


@pytest.mark.parametrize("lost", ["removed", "replaced"])
def test_a_database_is_not_opened_under_another_node_key(path: Path, lost: str) -> None:
    with Store.open(path) as store:
        store.bind(MESH)
    key = path / "node.key"
    key.unlink()
    if lost == "replaced":
        with Store.open(path.with_name("other")) as other:
            other.bind(MESH)
        shutil.copy(path.with_name("other") / "node.key", key)
    with pytest.raises(StartError, match=r"put the right node\.key back"):
        Store.open(path)
    assert key.exists() == (lost == "replaced")


# Damage


def damage_truncate(database: Path) -> None:
    os.truncate(database, database.stat().st_size // 2)


def damage_empty(database: Path) -> None:
    os.truncate(database, 0)


def damage_header(database: Path) -> None:
    database.write_bytes(b"not a database at all" + database.read_bytes()[21:])


def damage_pages(database: Path) -> None:
    content = bytearray(database.read_bytes())
    content[4096 : 3 * 4096] = b"\xa5" * (2 * 4096)
    database.write_bytes(content)


def damage_foreign(database: Path) -> None:
    database.unlink()
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE music (title)")
    connection.commit()
    connection.close()
    database.chmod(0o600)


DAMAGES = [damage_truncate, damage_empty, damage_header, damage_pages, damage_foreign]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_database_is_named_and_left_untouched(path: Path, damage) -> None:
    with Store.open(path) as store:
        store.bind(MESH)
        store.save_facts(fact(number, blob=bytes(500)) for number in range(200))
    damage(path / "mesh.db")
    before = contents(path)
    with pytest.raises(StartError) as error:
        Store.open(path)
    assert f"{path}/mesh.db: is damaged" in str(error.value)
    assert "move it away and join again" in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(path) == before


def test_after_moving_a_damaged_database_away_the_node_is_the_same(path: Path) -> None:
    with Store.open(path) as store:
        store.bind(MESH)
        node = store.node_key.id
    (path / "mesh.db").rename(path / "mesh.db.damaged")
    with Store.open(path) as store:
        assert store.node_key.id == node
        assert store.mesh is None


def test_a_database_of_a_newer_version_is_left_untouched(path: Path) -> None:
    with Store.open(path) as store:
        store.bind(MESH)
    connection = sqlite3.connect(path / "mesh.db")
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    before = contents(path)
    with pytest.raises(StartError, match=r"newer meshd .* upgrade meshd"):
        Store.open(path)
    assert contents(path) == before


def test_a_secret_whose_bits_have_turned_is_not_used(path: Path) -> None:
    with Store.open(path) as store:
        store.save_secret(Secret.WIREGUARD_KEY, bytes(32))
    connection = sqlite3.connect(path / "mesh.db")
    connection.execute("UPDATE secrets SET value = ?", (bytes([1]) + bytes(31),))
    connection.commit()
    connection.close()
    with (
        Store.open(path) as store,
        pytest.raises(StartError, match="its wireguard-key has changed"),
    ):
        store.load_secret(Secret.WIREGUARD_KEY)


def test_what_a_killed_process_had_saved_is_there(path: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        from meshd.keys import MeshId
        from meshd.store import *
        store = Store.open(Path({str(path)!r}))
        store.bind(MeshId(bytes([7]) * 32))
        store.save_events(["{{}}"])
        print(store.reserve_sequence(Counter.RECORD, 10).stop, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout == "11\n", ran.stderr
    with Store.open(path) as store:
        assert store.mesh == MESH
        assert store.reserve_sequence(Counter.RECORD, 1).start == 11
        assert store.load_events() == ["{}"]


def test_a_killed_process_s_log_survives_a_damaged_database(path: Path) -> None:
    with Store.open(path) as store:
        store.bind(MESH)
    copy = path.with_name("copy")
    with Store.open(path) as store:
        store.save_facts([fact(1)])
        shutil.copytree(path, copy)
    damage_truncate(copy / "mesh.db")
    before = contents(copy)
    assert before["mesh.db-wal"]
    with pytest.raises(StartError, match="is damaged"):
        Store.open(copy)
    after = contents(copy)
    # The index of the log (-shm) is made anew by whoever opens it.
    assert {**after, "mesh.db-shm": b""} == {**before, "mesh.db-shm": b""}


def test_leftovers_of_a_crash_while_making_the_state_do_no_harm(path: Path) -> None:
    path.mkdir(parents=True)
    for name in ("node.key.partial", "mesh.db.partial", "mesh.db.partial-journal"):
        (path / name).write_bytes(b"half")
    with Store.open(path) as store:
        store.bind(MESH)
    assert sorted(contents(path)) == ["mesh.db", "node.key"]


# A disk that refuses


def test_a_read_only_disk_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "disk"
    script = """
        import sys
        from pathlib import Path
        from meshd.errors import StartError
        from meshd.store import Store
        try:
            Store.open(Path(sys.argv[1]) / "mesh0")
        except StartError as exc:
            print(exc)
    """
    told = in_mount_namespace(script, options="ro", directory=directory)
    assert told == (
        f"{directory}/mesh0: cannot be used for state: Read-only file system; "
        "mend that, or choose another --state-dir\n"
    )


@pytest.mark.parametrize("pages", [1, 3, 4, 8, 12, 14, 16, 18, 20])
def test_a_disk_that_is_full_at_the_first_start_is_left_empty(tmp_path: Path, pages: int) -> None:
    script = """
        import os, sys
        from pathlib import Path
        from meshd.errors import MeshdError
        from meshd.keys import MeshId
        from meshd.store import Store
        disk = Path(sys.argv[1])
        store = None
        try:
            store = Store.open(disk / "mesh0")
            store.bind(MeshId(bytes(32)))
        except MeshdError as exc:
            if store is not None:
                store.close()
            assert "\\n" not in str(exc)
            assert "damaged" not in str(exc)
            assert list(disk.iterdir()) == [], list((disk / "mesh0").iterdir())
            print("refused")
        else:
            store.close()
            print("room enough")
    """
    options = f"size={pages * 4096}"
    told = in_mount_namespace(script, options=options, directory=tmp_path / "disk")
    assert told in {"refused\n", "room enough\n"}
    if pages <= 4:
        assert told == "refused\n"


def test_a_disk_that_is_full_at_a_later_start_is_not_taken_for_damage(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from meshd.errors import StartError
        from meshd.keys import MeshId
        from meshd.store import Store
        disk = Path(sys.argv[1])
        with Store.open(disk / "mesh0") as store:
            store.bind(MeshId(bytes(32)))
        before = {path.name: path.read_bytes() for path in (disk / "mesh0").iterdir()}
        try:
            (disk / "rest").write_bytes(bytes(1024 * 1024))
        except OSError:
            pass
        try:
            Store.open(disk / "mesh0")
        except StartError as exc:
            print(exc)
        (disk / "rest").unlink()
        assert {path.name for path in (disk / "mesh0").iterdir()} == before.keys()
        with Store.open(disk / "mesh0") as store:
            assert store.mesh == MeshId(bytes(32))
    """
    told = in_mount_namespace(script, options="size=256k", directory=tmp_path / "disk")
    assert "is the disk full" in told
    assert "damaged" not in told


def test_facts_wait_in_memory_while_the_disk_is_full(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from meshd.errors import StoreError
        from meshd.keys import MeshId
        from meshd.store import Counter, Store
        from meshd.trust.fact import Fact, FactKind
        disk = Path(sys.argv[1])
        facts = [Fact(FactKind.RECORD, bytes([n]) * 32, 1, bytes(900)) for n in range(200)]
        store = Store.open(disk / "mesh0")
        store.bind(MeshId(bytes(32)))
        store.save_facts(facts[:10])
        with (disk / "ballast").open("wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(4096)):
                    pass
            except OSError:
                pass
        try:
            store.save_facts(facts[10:])
            raise SystemExit("the disk was not full")
        except StoreError as exc:
            print(exc)
        assert store.waiting == 190
        assert len(store.load_facts()) == 10
        try:
            for _ in range(1000):
                last = store.reserve_sequence(Counter.RECORD, 5)
        except StoreError:
            pass
        (disk / "ballast").unlink()
        store.flush()
        assert store.waiting == 0
        assert store.load_facts() == facts
        store.close()
        store = Store.open(disk / "mesh0")
        assert store.load_facts() == facts
        store.close()
    """
    told = in_mount_namespace(script, options="size=1m", directory=tmp_path / "disk")
    assert told.startswith(f"{tmp_path}/disk/mesh0/mesh.db: cannot be written: ")
    assert told.count("\n") == 1


def test_a_failed_write_changes_nothing(path: Path) -> None:
    with Store.open(path) as store:
        store.save_meta(Meta.NAME, b"before")
        with pytest.raises(StoreError):
            store.save_meta(Meta.NAME, None)  # type: ignore[arg-type]  # NOT NULL
        assert store.load_meta(Meta.NAME) == b"before"
        store.save_meta(Meta.NAME, b"after")
        assert store.load_meta(Meta.NAME) == b"after"


def save_half(store: Store) -> None:
    with store.together():
        store.bind(MESH)
        store.save_secret(Secret.MESH_KEY, b"key")
        assert store.mesh == MESH
        store.save_meta(Meta.NAME, None)  # type: ignore[arg-type]  # NOT NULL


def test_what_is_saved_together_is_kept_or_lost_together(path: Path) -> None:
    with Store.open(path) as store:
        with pytest.raises(StoreError):
            save_half(store)
        assert store.mesh is None
        assert store.load_secret(Secret.MESH_KEY) is None
        with store.together():
            store.bind(MESH)
            store.save_meta(Meta.NAME, b"a")
            assert store.reserve_sequence(Counter.STARTS, 1) == range(1, 2)
    with Store.open(path) as store:
        assert (store.mesh, store.load_meta(Meta.NAME)) == (MESH, b"a")


def test_a_start_that_fails_while_saving_leaves_nothing(path: Path) -> None:
    with Store.open(path) as store, pytest.raises(StoreError):
        save_half(store)
    assert not path.exists()


# Contents


def test_facts_come_back_as_they_were_saved(path: Path) -> None:
    facts = [
        Fact(FactKind.RECORD, bytes(32), 2**64 - 1, b"record"),
        Fact(FactKind.REVOCATION, bytes(32), 0, b""),
        Fact(FactKind.INVITE_USE, bytes([1]) * 32, 5, bytes(1000)),
    ]
    with Store.open(path) as store:
        store.save_facts(reversed(facts))
    with Store.open(path) as store:
        assert store.load_facts() == facts


def test_a_fact_takes_the_place_of_the_one_before(path: Path) -> None:
    with Store.open(path) as store:
        store.save_facts([fact(1, version=1), fact(2)])
        store.save_facts([fact(1, version=2)])
        store.delete_fact(FactKind.RECORD, fact(2).key)
        assert store.load_facts() == [fact(1, version=2)]


def test_more_facts_than_fit_one_transaction_are_saved(path: Path) -> None:
    facts = [fact(number) for number in range(2 * TRANSACTION_ROWS_MAX + 1)]
    with Store.open(path) as store:
        store.save_facts(facts)
        assert store.waiting == 0
        assert store.load_facts() == facts


@settings(max_examples=30, deadline=None)  # it waits for the disk
@given(
    runs=st.lists(
        st.lists(st.tuples(st.integers(1, 2**21), st.integers(0, 2**60)), max_size=4), max_size=4
    )
)
def test_a_reserved_number_is_never_given_twice(tmp_path_factory, runs) -> None:
    path = tmp_path_factory.mktemp("state") / "mesh0"
    before = 0
    for run in runs:
        with Store.open(path) as store:
            for count, above in run:
                numbers = store.reserve_sequence(Counter.RECORD, count, above=above)
                assert len(numbers) == count
                assert numbers[0] > max(before, above)
                before = numbers[-1]
    shutil.rmtree(path.parent)


def test_counters_do_not_share_their_numbers(path: Path) -> None:
    with Store.open(path) as store:
        assert store.reserve_sequence(Counter.STARTS, 1) == range(1, 2)
        assert store.reserve_sequence(Counter.INCARNATION, 1) == range(1, 2)


def test_secrets_come_back_and_can_be_forgotten(path: Path) -> None:
    with Store.open(path) as store:
        assert store.load_secret(Secret.MESH_KEY) is None
        store.save_secret(Secret.MESH_KEY, b"m" * 32)
        store.save_secret(Secret.BOOTSTRAP_KEY, b"b" * 32)
    with Store.open(path) as store:
        assert store.load_secret(Secret.MESH_KEY) == b"m" * 32
        store.delete_secret(Secret.MESH_KEY)
        assert store.load_secret(Secret.MESH_KEY) is None
        assert store.load_secret(Secret.BOOTSTRAP_KEY) == b"b" * 32


def test_endpoints_and_invites_come_back(path: Path) -> None:
    endpoints = {
        NodeId(bytes([1]) * 32): StoredEndpoint(Endpoint(ip_address("203.0.113.7"), 51820), 100),
        NodeId(bytes([2]) * 32): StoredEndpoint(Endpoint(ip_address("2001:db8::1"), 1), 200),
    }
    invites = [StoredInvite(InviteId(bytes([n]) * 32), n, b"signed") for n in (1, 2)]
    with Store.open(path) as store:
        store.save_endpoints(endpoints)
        for invite in invites:
            store.save_invite(invite)
    with Store.open(path) as store:
        assert store.load_endpoints() == endpoints
        assert store.load_invites() == invites
        store.delete_invite(invites[0].id)
        assert store.load_invites() == invites[1:]


def test_only_the_newest_events_are_kept(path: Path) -> None:
    numbers = [str(number) for number in range(EVENTS_KEPT_MAX + 10)]
    with Store.open(path) as store:
        store.save_events(numbers[:20])
        store.save_events(numbers[20:])
    with Store.open(path) as store:
        assert store.load_events() == numbers[10:]
