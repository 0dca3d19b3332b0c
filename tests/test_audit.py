"""The audit log: whatever is done to it shows, and names the first entry that is wrong."""

import json
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd import audit, store_audit
from meshd.audit import Act, Head
from meshd.errors import StartError, StoreError
from meshd.keys import MeshKey
from meshd.store import AUDIT_WAITING_MAX, DATABASE_NAME, Store
from meshd.store_schema import MIGRATIONS

MESH = MeshKey(bytes([1]) * 32).id
OTHER_MESH = MeshKey(bytes([2]) * 32).id
TEXTS = ("kind", "subject", "subject_name", "signer", "signer_name", "details")

texts = st.text(max_size=12)
acts = st.builds(
    Act,
    at=st.integers(0, 2**40),
    kind=st.one_of(st.just(audit.CHECKPOINT), texts),
    subject=texts,
    subject_name=texts,
    signer=texts,
    signer_name=texts,
    details=texts,
)


class Log:
    """A log in a database of its own, in memory, with a small bound."""

    def __init__(self, entries_max=1000):
        self.entries_max = entries_max
        self.database = sqlite3.connect(":memory:", isolation_level=None)
        for script in MIGRATIONS:
            self.database.executescript(script)
        rows = [("mesh", bytes(MESH)), ("node", bytes([3]) * 32)]
        self.database.executemany("INSERT INTO meta VALUES (?, ?)", rows)

    def append(self, *written):
        store_audit.append(self.database, written, entries_max=self.entries_max)

    def verify(self):
        return store_audit.AuditReader(self.database).verify()

    @property
    def numbers(self):
        return [row[0] for row in self.database.execute("SELECT number FROM audit ORDER BY number")]

    def row(self, number):
        return self.database.execute("SELECT * FROM audit WHERE number = ?", (number,)).fetchone()

    def change(self, query, *parameters):
        assert self.database.execute(query, parameters).rowcount == 1

    def swap(self, one, other):
        """Exchange two entries, all but their numbers."""
        rows = self.row(one), self.row(other)
        self.database.execute("DELETE FROM audit WHERE number IN (?, ?)", (one, other))
        for number, row in ((other, rows[0]), (one, rows[1])):
            self.insert(number, row)

    def insert(self, number, row):
        self.database.execute(
            "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (number, *row[1:])
        )

    def close(self):
        self.database.close()


def log_of(count, *, entries_max=1000):
    log = Log(entries_max)
    for number in range(count):
        log.append(Act(number, "member-admitted", subject=f"node {number}"))
    return log


written = st.lists(acts, min_size=1, max_size=30)


@given(written, st.integers(4, 40))
def test_what_was_only_written_is_whole(batch, entries_max):
    with closing(Log(entries_max)) as log:
        for act in batch:
            log.append(act)

        assert log.verify().fault is None
        assert len(log.numbers) <= entries_max + 1


@given(written, st.integers(4, 40), st.data())
def test_any_one_change_is_found_and_named(batch, entries_max, data):
    """Without checkpoints made up beforehand: those that were written are the log's own."""
    with closing(Log(entries_max)) as log:
        for act in batch:
            log.append(Act(act.at, f"a {act.kind}", act.subject, details=act.details))
        numbers = log.numbers
        number = data.draw(st.sampled_from(numbers))
        kind = data.draw(
            st.sampled_from(("at", "text", "hash", "remove", "swap", "insert", "head"))
        )
        expected = number
        match kind:
            case "at":
                log.change("UPDATE audit SET at = at + 1 WHERE number = ?", number)
            case "text":
                column = data.draw(st.sampled_from(TEXTS))
                log.change(f"UPDATE audit SET {column} = {column} || 'x' WHERE number = ?", number)
            case "hash":
                log.change(
                    "UPDATE audit SET hash = ? WHERE number = ?", bytes(audit.HASH_BYTES), number
                )
            case "remove":
                log.change("DELETE FROM audit WHERE number = ?", number)
            case "swap":
                other = data.draw(st.sampled_from(numbers))
                expected = min(number, other)
                if log.row(number)[1:8] == log.row(other)[1:8]:
                    return
                log.swap(number, other)
            case "insert":
                # All later ones move on by one, so that only the content is out of place.
                for later in reversed([n for n in numbers if n >= number]):
                    log.change("UPDATE audit SET number = ? WHERE number = ?", later + 1, later)
                log.insert(number, log.row(number + 1))
            case "head":
                log.change("UPDATE meta SET value = ? WHERE key = 'audit-head'", bytes(40))
                expected = 1

        fault = log.verify().fault

        assert fault is not None
        if kind == "insert":
            # The copy in front is as good as the original, unless its number is covered: it is.
            assert fault.number in {number, number + 1}
        else:
            assert fault.number == expected


def test_cutting_off_the_end_shows_against_the_head_that_is_kept_apart():
    log = log_of(10)
    log.database.execute("DELETE FROM audit WHERE number > 7")

    assert log.verify().fault.number == 8
    assert "cut off" in log.verify().fault.reason


def test_a_log_made_anew_shows_only_against_a_head_that_was_noted_elsewhere():
    log = log_of(10)
    noted = log.verify().head
    forged = log_of(9)
    forged.append(Act(0, "member-admitted", subject="somebody else"))

    reader = store_audit.AuditReader(forged.database)

    assert forged.verify().fault is None, "as the docstring says"
    assert reader.contains(noted) is False
    assert store_audit.AuditReader(log.database).contains(noted)


def test_text_that_is_none_is_a_change_like_any():
    log = log_of(5)
    log.change("UPDATE audit SET subject = CAST(x'ff' AS TEXT) WHERE number = 3")

    assert log.verify().fault.number == 3


def test_the_log_of_another_node_is_not_ours():
    log = log_of(3)
    log.change("UPDATE meta SET value = ? WHERE key = 'mesh'", bytes(OTHER_MESH))

    assert log.verify().fault.number == 1


def test_the_oldest_are_dropped_behind_a_checkpoint_that_the_chain_continues():
    log = log_of(500, entries_max=100)

    verdict = log.verify()
    assert verdict.fault is None
    assert verdict.first > 1
    assert verdict.count <= 100
    (newest,) = log.database.execute(
        "SELECT details FROM audit WHERE kind = 'checkpoint' ORDER BY number DESC LIMIT 1"
    ).fetchone()
    assert json.loads(newest)["through"] == verdict.first - 1


@pytest.mark.parametrize("what", ["first", "second", "checkpoint", "more dropped", "put back"])
def test_the_beginning_of_a_log_with_checkpoints_is_no_place_to_hide(what):
    log = log_of(500, entries_max=100)
    first, second = log.numbers[:2]
    (mark,) = log.database.execute(
        "SELECT max(number) FROM audit WHERE kind = 'checkpoint'"
    ).fetchone()
    match what:
        case "first":
            log.change("UPDATE audit SET hash = zeroblob(32) WHERE number = ?", first)
            expected = first
        case "second":
            log.change("UPDATE audit SET kind = 'checkpoint' WHERE number = ?", second)
            expected = second
        case "checkpoint":
            log.change("UPDATE audit SET details = '{}' WHERE number = ?", mark)
            expected = mark
        case "more dropped":
            log.change("DELETE FROM audit WHERE number = ?", first)
            expected = first
        case "put back":
            log.insert(first - 1, log.row(first))
            expected = first - 1

    assert log.verify().fault.number == expected


def test_writing_goes_on_after_somebody_has_been_at_the_table_and_the_fault_stays():
    log = log_of(5)
    log.insert(6, log.row(5))

    log.append(Act(0, "later"), Act(0, "later still"))

    assert log.numbers[-1] == 8
    assert log.verify().fault.number == 6


@pytest.mark.parametrize("value", [b"", b"\xff" * 40, bytes(8)])
def test_a_head_of_rubbish_is_a_fault_and_stops_nothing(value):
    log = log_of(5)
    log.change("UPDATE meta SET value = ? WHERE key = 'audit-head'", value)
    assert log.verify().fault is not None

    log.append(Act(0, "later"))

    assert log.verify().fault is not None


def test_details_have_one_form_and_a_bound():
    assert audit.details_text({"b": 1, "a": ["x"]}) == '{"a":["x"],"b":1}'
    assert len(audit.details_text({"a": "x" * 10_000})) < 100


def test_a_head_is_written_and_read():
    head = Head(17, bytes(range(32)))

    assert Head.parse(str(head)) == head
    assert Head.parse("17:0001020304050607") == Head(17, bytes(range(8))), "cut short by people"
    for text in ("", "17", "17:00", "x:" + "00" * 32, "-1:" + "00" * 32):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever the reason
            Head.parse(text)


# On disk


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "mesh0") as store:
        store.bind(MESH)
        yield store


def read(path):
    with store_audit.reading(path) as log:
        return log.verify(), list(log.entries())


def test_a_log_is_read_beside_its_writer_and_after_it_without_leaving_a_file(tmp_path):
    directory = tmp_path / "mesh0"
    with Store.open(directory) as store:
        store.bind(MESH)
        store.save_acts(Act(1, "one"), Act(2, "two"))
        store.flush(durable=True)
        verdict, entries = read(store.path)
        assert verdict.fault is None
        assert [entry.act.kind for entry in entries] == ["one", "two"]
        assert verdict.head == store.audit_head()
    before = sorted(directory.iterdir())

    assert read(directory / DATABASE_NAME)[0] == verdict
    assert sorted(directory.iterdir()) == before


def test_what_the_disk_refuses_waits_in_its_order(store):
    store.save_acts(Act(1, "one"))
    store.flush()
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    refused = 0
    for number in range(2, 2000):
        store.save_acts(Act(number, f"{number}", details="x" * 1000))
        try:
            store.flush()
        except StoreError:
            refused += 1
    assert refused
    store._database.execute("PRAGMA max_page_count = 1000000")

    store.flush()

    verdict, entries = read(store.path)
    assert verdict.fault is None
    assert [entry.act.at for entry in entries] == list(range(1, 2000))


def test_what_is_too_much_to_wait_leaves_a_gap_that_says_so(store):
    store.save_acts(*(Act(number, "x") for number in range(AUDIT_WAITING_MAX + 5)))

    store.flush()

    _, entries = read(store.path)
    assert len(entries) == AUDIT_WAITING_MAX + 1
    assert entries[-1].act.kind == audit.LOST
    assert json.loads(entries[-1].act.details) == {"count": 5}


def test_no_fact_is_on_disk_without_the_entry_about_it(store):
    """An entry that cannot be written keeps all that follows back."""
    store.save_acts(Act(1, "one"))
    store._database.execute("ALTER TABLE audit RENAME TO elsewhere")

    with pytest.raises(StoreError):
        store.save_events(["{}"])

    assert store.load_events() == []


def test_a_state_of_no_mesh_has_no_log(tmp_path):
    with Store.open(tmp_path / "mesh0") as store, pytest.raises(StartError, match="no mesh"):
        store.audit_head()
