"""`meshctl audit`, by the daemon's socket and without a daemon."""

import json
from functools import partial

import pytest
import trio

from control.scripted import ScriptedController, serving
from meshd import meshctl
from meshd.audit import Act, details_text
from meshd.keys import MeshKey
from meshd.store import Store

ENTRIES = 1200  # more than are read at once


@pytest.fixture
def log(tmp_path):
    """A state directory with a log, as a daemon keeps it open."""
    with Store.open(tmp_path / "state" / "mesh0") as store:
        store.bind(MeshKey(bytes([1]) * 32).id)
        for number in range(1, ENTRIES):
            store.save_acts(Act(1_700_000_000 + number, "member-admitted", f"id{number}", "b"))
        granted = details_text({"tags": ["web", "\x1b[2J"]})
        store.save_acts(Act(1_700_002_000, "invite-issued", "x", "", "y", "a", granted))
        store.flush(durable=True)
        yield store


@pytest.fixture
def ctl(tmp_path, log, capsys):
    """Run `meshctl audit` against the daemon, or offline, and return status and output."""

    async def run(place, *arguments):
        where = ["--runtime-dir", str(tmp_path)]
        if place == "offline":
            where += ["audit", *arguments, "--state-dir", str(tmp_path / "state")]
        else:
            where += ["audit", *arguments]
        async with serving(ScriptedController(database=log.path), tmp_path):
            status = await trio.to_thread.run_sync(partial(meshctl.main, where))
        return status, capsys.readouterr()

    return run


places = pytest.mark.parametrize("place", ["daemon", "offline"])


@places
async def test_the_last_entries_are_shown_a_line_each(ctl, place):
    status, printed = await ctl(place, "-n", "2")

    assert status == 0
    first, second = printed.out.splitlines()
    assert first == "1199  2023-11-14T22:33:19Z  member-admitted  b(id1199)"
    assert second.startswith("1200  2023-11-14T22:46:40Z  invite-issued  (x)  by a(y)  tags=web,")
    assert "\x1b" not in printed.out


@places
async def test_export_is_all_of_it_as_json_lines(ctl, place):
    status, printed = await ctl(place, "--export")

    assert status == 0
    entries = [json.loads(line) for line in printed.out.splitlines()]
    assert [entry["number"] for entry in entries] == list(range(1, ENTRIES + 1))
    assert entries[-1]["signer"] == {"id": "y", "name": "a"}
    assert entries[0]["signer"] is None
    assert {entry["schema"] for entry in entries} == {"meshd.audit-entry/1"}


@places
async def test_verify_says_what_it_has_seen_and_what_it_cannot_see(ctl, log, place):
    status, printed = await ctl(place, "verify")

    assert status == 0
    assert printed.out.startswith(f"{ENTRIES} entries, head {log.audit_head()}\n")
    assert "note the head elsewhere" in printed.out


@places
async def test_verify_names_the_first_entry_that_is_wrong(ctl, log, place):
    log._database.execute("UPDATE audit SET subject_name = 'mallory' WHERE number = 700")

    status, printed = await ctl(place, "verify", "--json")

    assert status == 1
    document = json.loads(printed.out)
    assert document["fault"] == {"number": 700, "reason": "it was changed"}
    assert document["ok"] is False


@places
async def test_a_noted_head_is_looked_for(ctl, log, place):
    head = str(log.audit_head())

    assert (await ctl(place, "verify", "--noted", head[:21]))[0] == 0
    status, printed = await ctl(place, "verify", "--noted", "1200:" + "00" * 32)
    assert status == 1
    assert "is not in the log" in printed.out
    assert (await ctl(place, "verify", "--noted", "rubbish"))[0] == 2


async def test_without_a_state_directory_there_is_an_error_that_says_so(ctl, tmp_path, capsys):
    status = await trio.to_thread.run_sync(
        partial(meshctl.main, ["audit", "--state-dir", str(tmp_path / "nowhere")])
    )

    assert status == 1
    assert "nowhere" in capsys.readouterr().err
