"""`meshctl invite`, `invites`, `pending`, `approve` and `deny`, with a daemon that is scripted."""

from __future__ import annotations

import io
import json
import stat
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING

import pytest
import trio

from control.scripted import PENDING, ScriptedController, node_id, serving
from meshd import meshctl
from meshd.control.approval import ApprovalSnapshot, OwnCode
from meshd.ctl import qr
from meshd.ctl.render import Screen
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "meshd1." + "Ab3-_x" * 90


@pytest.fixture
def ctl(tmp_path: Path):
    async def run(*arguments: str) -> int:
        argv = ["--runtime-dir", str(tmp_path), *arguments]
        return await trio.to_thread.run_sync(partial(meshctl.main, argv))

    return run


class Terminal(io.StringIO):
    def __init__(self, text: str = "") -> None:
        super().__init__(text)

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch, width: int) -> None:
    monkeypatch.setattr(meshctl, "_screen", lambda **_: Screen(width=width, colour=True))


# invite


@pytest.mark.parametrize(
    ("given", "uses", "said"),
    [
        ((), 1, "For one machine"),
        (("--reusable",), 0, "For any number of machines"),
        (("--reusable", "5"), 5, "For 5 machines"),
    ],
)
async def test_an_invite_is_for_one_machine_a_number_or_all(
    tmp_path, ctl, capsys, given, uses, said
) -> None:
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        assert await ctl("invite", *given) == 0
    captured = capsys.readouterr()
    assert captured.out == "meshd1.token\n"
    assert said in captured.err
    assert "meshctl invites withdraw aucqkbifau" in captured.err
    (asked,) = controller.asked
    assert (asked.uses, asked.lifetime) == (uses, 3600.0)


async def test_the_inviter_may_pin_an_address(tmp_path, ctl) -> None:
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        assert await ctl("invite", "--address", "100.64.0.9") == 0
    assert controller.asked[0].ipv4 == IPv4Address("100.64.0.9")


@pytest.mark.parametrize(
    "given",
    [
        ("--expires", "31d"),
        ("--expires", "59s"),
        ("--expires", "0"),
        ("--reusable", "0"),
        ("--reusable", "70000"),
        ("--reusable", "2", "--name", "web"),
        ("--reusable", "--address", "100.64.0.9"),
        ("--address", "fd00::1"),
        ("--qr", "--qr-file", "x.png"),
        ("--qr-file", "x.jpeg"),
        ("--qr",),  # this is no terminal
        ("--json", "--qr"),
    ],
)
async def test_invites_that_cannot_be_meant_are_usage_errors(tmp_path, ctl, given) -> None:
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        assert await ctl("invite", *given) == 2
    assert controller.asked == []


async def test_a_token_is_drawn_instead_of_written(tmp_path, ctl, capsys, monkeypatch) -> None:
    on_terminal(monkeypatch, 200)
    async with serving(ScriptedController(token=TOKEN), tmp_path):
        assert await ctl("invite", "--qr") == 0
    out = capsys.readouterr().out
    assert TOKEN not in out
    assert out == qr.terminal_text(qr.modules_of(TOKEN)) + "\n"


async def test_on_a_narrow_terminal_the_token_is_written(
    tmp_path, ctl, capsys, monkeypatch
) -> None:
    on_terminal(monkeypatch, 80)
    async with serving(ScriptedController(token=TOKEN), tmp_path):
        assert await ctl("invite", "--qr") == 0
    captured = capsys.readouterr()
    assert captured.out == TOKEN + "\n"
    assert "this terminal has 80" in captured.err


@pytest.mark.parametrize(("name", "begins"), [("t.png", b"\x89PNG"), ("t.svg", b"<?xml")])
async def test_a_drawn_file_is_its_owners_alone(tmp_path, ctl, capsys, name, begins) -> None:
    drawn = tmp_path / name
    async with serving(ScriptedController(token=TOKEN), tmp_path):
        assert await ctl("invite", "--qr-file", str(drawn)) == 0
    assert drawn.read_bytes().startswith(begins)
    assert stat.S_IMODE(drawn.stat().st_mode) == 0o600
    captured = capsys.readouterr()
    assert TOKEN not in captured.out + captured.err


async def test_no_file_is_overwritten_and_none_left_behind(tmp_path, ctl) -> None:
    there = tmp_path / "there.png"
    there.write_bytes(b"mine")
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        assert await ctl("invite", "--qr-file", str(there)) == 2
    assert there.read_bytes() == b"mine"
    assert controller.asked == []

    async with serving(ScriptedController(may_invite=False), tmp_path):
        assert await ctl("invite", "--qr-file", str(tmp_path / "new.svg")) == 4
    assert not (tmp_path / "new.svg").exists()


def read_terminal(text: str) -> list[list[bool]]:
    """Undo `terminal_text`, as a terminal would show it."""
    rows = []
    for line in text.split("\n"):
        upper, lower, colours = [], [], (False, False)
        for part in line.split("\x1b[")[1:]:
            control, blocks = part.split("m", 1)
            if control != "0":
                _, _, above, _, _, below = control.split(";")
                colours = (above == "16", below == "16")
            upper += [colours[0]] * len(blocks)
            lower += [colours[1]] * len(blocks)
        rows += [upper, lower]
    return rows


@pytest.mark.parametrize("length", [400, 700, 1600])
def test_what_a_terminal_shows_is_the_code(length) -> None:
    modules = qr.modules_of("meshd1." + "x" * (length - 7))

    shown = read_terminal(qr.terminal_text(modules))

    assert shown[: len(modules)] == modules
    assert not any(any(row) for row in shown[len(modules) :])
    assert not any(any(row) for row in (modules[: qr.QUIET_ZONE] + modules[-qr.QUIET_ZONE :]))


def test_the_longest_token_fits_into_a_code() -> None:
    assert len(qr.modules_of("x" * 1600)) == 133 + 2 * qr.QUIET_ZONE


# invites


async def test_an_invite_is_withdrawn_by_what_its_id_begins_with(tmp_path, ctl, capsys) -> None:
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        assert await ctl("invites", "withdraw", "aydam") == 0
        assert await ctl("invites", "withdraw") == 2
    assert controller.asked == [("withdraw", "aydam")]
    assert "who came in by it stays: b, c" in capsys.readouterr().out


# pending, approve, deny


async def test_who_waits_is_shown_with_the_code_to_compare(tmp_path, ctl, capsys) -> None:
    async with serving(ScriptedController(), tmp_path):
        assert await ctl("pending") == 0
        assert await ctl("--json", "pending") == 0
    out = capsys.readouterr().out
    head, _, _, line, advice, document = out.splitlines()
    assert "for 10m more" in head
    assert line.split() == ["K7QF-2MXA", "web", "10.0.0.9:40000", "3s", "waiting"]
    assert "the very same code" in advice
    assert json.loads(document)["pending"][0]["id"] == str(node_id(9))


async def test_the_window_is_opened_and_closed(tmp_path, ctl, capsys) -> None:
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        assert await ctl("pending", "--open") == 0
        assert await ctl("pending", "--open", "5m") == 0
        assert await ctl("pending", "--close") == 0
        assert await ctl("pending", "--open", "2h") == 2
    assert controller.asked == [("open", 600.0), ("open", 300.0), ("close",)]
    assert "no window is open" in capsys.readouterr().out


async def test_a_newcomer_shows_its_own_code(tmp_path, ctl, capsys) -> None:
    own = OwnCode("K7QF-2MXA", Endpoint(ip_address("10.0.0.1"), 51820))
    async with serving(ScriptedController(pending=ApprovalSnapshot(own=own)), tmp_path):
        assert await ctl("pending") == 0
    assert "meshctl approve K7QF-2MXA" in capsys.readouterr().out


async def test_approval_takes_the_code_however_it_is_typed(tmp_path, ctl, capsys) -> None:
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        assert await ctl("approve", "k7qf2mxa", "--tag", "web", "--admit") == 0
    ((what, code, grants),) = controller.asked
    assert (what, code) == ("approve", "K7QF-2MXA")
    assert (grants.tags, grants.admit, grants.uses) == (("web",), True, 1)
    assert "approved web (K7QF-2MXA)" in capsys.readouterr().out


async def test_a_code_that_nobody_shows_approves_nobody(tmp_path, ctl, capsys) -> None:
    async with serving(ScriptedController(), tmp_path):
        assert await ctl("approve", "AAAA-AAAA") == 1
    assert "no newcomer waits with the code AAAA-AAAA" in capsys.readouterr().err


async def test_a_name_alone_approves_nobody(tmp_path, ctl, monkeypatch) -> None:
    controller = ScriptedController()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # no terminal
    async with serving(controller, tmp_path):
        assert await ctl("approve", "web") == 2
    assert controller.asked == []


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
async def test_by_name_the_code_is_asked_about(
    tmp_path, ctl, capsys, monkeypatch, answer, status
) -> None:
    controller = ScriptedController()
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    async with serving(controller, tmp_path):
        assert await ctl("approve", "web") == status
    assert len(controller.asked) == (1 if status == 0 else 0)
    assert "K7QF-2MXA" in capsys.readouterr().err


async def test_of_two_with_one_name_neither_is_meant(tmp_path, ctl, capsys) -> None:
    both = (PENDING, replace(PENDING, code="AAAA-2222"))
    pending = ApprovalSnapshot(open_for=10.0, pending=both)
    async with serving(ScriptedController(pending=pending), tmp_path):
        assert await ctl("deny", "web") == 1
        assert await ctl("deny", "db") == 1
    err = capsys.readouterr().err
    assert "K7QF-2MXA, AAAA-2222" in err
    assert "nobody called 'db' waits" in err


async def test_who_is_denied_is_named(tmp_path, ctl, capsys) -> None:
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        assert await ctl("deny", "K7QF-2MXA") == 0
    assert controller.asked == [("deny", "K7QF-2MXA")]
    assert capsys.readouterr().out == "denied web (K7QF-2MXA)\n"
