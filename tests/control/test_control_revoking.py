"""`meshctl revoke`: who is meant, what is shown, what is asked, and what is done."""

from __future__ import annotations

import json
import os
import pty
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
import trio

from control.scripted import REVOCATION, ScriptedController, node_id, serving
from meshd import meshctl
from meshd.control.api import not_allowed
from meshd.control.revoking import RevokeRequest, find_exactly
from meshd.control.routes import ApiError

if TYPE_CHECKING:
    from pathlib import Path

B, C, D = node_id(2), node_id(3), node_id(4)
MEMBERS = {B: "web", C: "web-2"}
GONE = {D: "old"}


# Who is meant


@pytest.mark.parametrize("text", ["web", str(B), B.short])
def test_a_member_is_meant_by_its_whole_name_and_its_id(text: str) -> None:
    assert find_exactly(MEMBERS, GONE, text) == B


@pytest.mark.parametrize("text", ["we", "web-", "WEB", str(B)[:9], str(B)[:11], "100.64.0.2"])
def test_no_part_of_a_name_or_id_and_no_address_will_do(text: str) -> None:
    with pytest.raises(ApiError) as error:
        find_exactly(MEMBERS, GONE, text)
    assert error.value.code == "unknown-member"
    assert "web" in error.value.message


def test_a_name_that_looks_like_anothers_id_means_neither() -> None:
    with pytest.raises(ApiError) as error:
        find_exactly({**MEMBERS, D: B.short}, {}, B.short)
    assert error.value.code == "ambiguous-member"
    assert str(B) in error.value.message
    assert str(D) in error.value.message


def test_who_is_gone_is_meant_only_where_no_member_is() -> None:
    assert find_exactly(MEMBERS, GONE, "old") == D
    assert find_exactly({**MEMBERS, node_id(5): "old"}, GONE, "old") == node_id(5)


def test_a_full_id_may_be_that_of_a_node_not_known_here() -> None:
    assert find_exactly({}, {}, str(node_id(9))) == node_id(9)


# The command


@pytest.fixture
def ctl(tmp_path: Path):
    """Run meshctl against the sockets in `tmp_path`, in a thread."""

    async def run(*arguments: str) -> int:
        argv = ["--runtime-dir", str(tmp_path), *arguments]
        return await trio.to_thread.run_sync(partial(meshctl.main, argv))

    return run


@pytest.fixture
def answering(monkeypatch):
    """Put a terminal in place of standard input, on which somebody types an answer."""
    controller, descriptor = pty.openpty()
    with os.fdopen(descriptor) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        yield lambda text: os.write(controller, text.encode())
    os.close(controller)


async def test_with_yes_it_is_done_in_one_request(tmp_path, ctl, capsys) -> None:
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        assert await ctl("revoke", "--yes", "b") == 0
    assert controller.asked == [RevokeRequest("b", cascade=False, sure=True)]
    assert capsys.readouterr().out == f"revoked b ({B})\n"


async def test_json_is_the_document_of_what_was_done(tmp_path, ctl, capsys) -> None:
    answer = replace(REVOCATION, falls=((C, "c"),), stays=())
    async with serving(ScriptedController(revocation=answer), tmp_path):
        assert await ctl("revoke", "b", "--cascade", "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": "meshd.revoke/1",
        "revoked": True,
        "id": str(B),
        "name": "b",
        "ipv4": "100.64.0.2",
        "ipv6": "fd00::2",
        "state": "alive",
        "cascade": True,
        "signer": "the mesh key",
        "revoked_at": "2023-11-14T22:13:20.000Z",
        "falls": [{"id": str(C), "name": "c"}],
        "stays": [],
    }


async def test_without_a_terminal_it_has_to_be_confirmed_by_the_flag(tmp_path, ctl, capsys) -> None:
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        assert await ctl("revoke", "b") == 2
    assert [request.sure for request in controller.asked] == [False]
    assert "confirm with --yes" in capsys.readouterr().err


@pytest.mark.parametrize(("typed", "status"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("yeah\n", 1)])
async def test_on_a_terminal_it_asks_and_shows_what_it_comes_to(
    tmp_path, ctl, capsys, answering, typed, status
) -> None:
    controller = ScriptedController()
    answering(typed)
    async with serving(controller, tmp_path):
        assert await ctl("revoke", "b") == status
    done = [RevokeRequest(str(B), cascade=False, sure=True)]  # by its id
    asked = [RevokeRequest("b", cascade=False, sure=False), *done][: 2 - status]
    assert controller.asked == asked
    shown = capsys.readouterr().err
    assert f"b: {B}, 100.64.0.2, fd00::2, alive\n" in shown
    assert "let in through it, and staying: c" in shown
    assert "Revoke it? [y/N]" in shown
    assert ("nothing was done" in shown) == (status == 1)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (not_allowed("this node may not revoke; ask one of: a"), 4),
        (ApiError(HTTPStatus.CONFLICT, "already-revoked", "b is revoked already"), 1),
        (ApiError(HTTPStatus.NOT_FOUND, "unknown-member", "no member is called 'b'"), 1),
    ],
    ids=["no right", "already", "unknown"],
)
async def test_a_refusal_is_told_with_its_status(tmp_path, ctl, capsys, error, status) -> None:
    async with serving(ScriptedController(revocation=error), tmp_path):
        assert await ctl("revoke", "b", "--yes") == status
    assert capsys.readouterr().err == f"meshctl: {error.message}\n"
