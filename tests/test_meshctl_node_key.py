"""`meshctl keys rotate --node`: what it says beforehand, and when it ends."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from control.scripted import ScriptedController, node_id, serving
from meshd import meshctl
from meshd.control.rekeying import NodeKeyAnswer

if TYPE_CHECKING:
    from pathlib import Path

FORMER = NodeKeyAnswer(
    node=node_id(1),
    name="alpha",
    ipv4="100.64.0.1",
    ipv6="fd00::1",
    phase=None,
    trouble="",
    invites=2,
)
PRESENT = replace(FORMER, node=node_id(2), ipv6="fd00::2", invites=0)


@dataclass
class Rekeying(ScriptedController):
    """Goes from one answer to the next with each look, once it was asked to."""

    answers: list[NodeKeyAnswer] = field(
        default_factory=lambda: [
            replace(FORMER, phase="asking"),
            replace(FORMER, phase="announced"),
            replace(FORMER, phase="announced"),
            PRESENT,
        ]
    )
    begun: trio.Event = field(default_factory=trio.Event)

    def node_key(self) -> NodeKeyAnswer:
        if not self.begun.is_set():
            return FORMER
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def rotate_node_key(self, *, sure: bool) -> NodeKeyAnswer:
        if sure:
            self.begun.set()
        return self.node_key()


@pytest.fixture
def ctl(tmp_path: Path):
    async def run(*arguments: str) -> int:
        argv = ["--runtime-dir", str(tmp_path), "keys", "rotate", "--node", *arguments]
        return await trio.to_thread.run_sync(partial(meshctl.main, argv))

    return run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_it_ends_when_the_new_node_answers(tmp_path, ctl, capsys) -> None:
    async with serving(Rekeying(), tmp_path):
        assert await ctl("--yes", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "meshd.node-key/1"
    assert document["node"] == str(node_id(2))


async def test_it_says_how_far_it_is_each_thing_once(tmp_path, ctl, capsys) -> None:
    async with serving(Rekeying(), tmp_path):
        assert await ctl("--yes") == 0
    shown = capsys.readouterr()
    assert shown.err.count("asking for a credential") == 1
    assert shown.err.count("telling the members") == 1
    assert f"alpha is node {node_id(2)} at fd00::2" in shown.out


async def test_it_says_what_changes_and_asks(tmp_path, ctl, capsys, monkeypatch) -> None:
    controller = Rekeying()
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    async with serving(controller, tmp_path):
        assert await ctl() == 1
    asked = capsys.readouterr().err
    assert "fd00::1 ends" in asked
    assert "IPv4 address (100.64.0.1)" in asked
    assert "2 tokens" in asked
    assert "meshctl revoke" in asked
    assert not controller.begun.is_set()


async def test_without_a_terminal_it_wants_to_be_told(tmp_path, ctl, capsys) -> None:
    async with serving(Rekeying(), tmp_path):
        assert await ctl() == 2
    assert "--yes" in capsys.readouterr().err


async def test_what_has_stopped_it_is_the_error(tmp_path, ctl, capsys) -> None:
    stopped = [replace(FORMER, phase="asking"), replace(FORMER, trouble="b does not answer")]
    async with serving(Rekeying(answers=stopped), tmp_path):
        assert await ctl("--yes") == 1
    assert "stays as it is: b does not answer" in capsys.readouterr().err


async def test_a_daemon_that_is_between_the_two_is_waited_for(tmp_path, ctl) -> None:
    """The connection is refused for a moment."""
    results: list[int] = []
    done = trio.Event()

    async def call() -> None:
        results.append(await ctl("--yes"))
        done.set()

    before = Rekeying(answers=[replace(FORMER, phase="announced")])
    after = Rekeying(answers=[PRESENT])
    after.begun.set()
    async with trio.open_nursery() as nursery:
        async with serving(before, tmp_path):
            nursery.start_soon(call)
            await before.begun.wait()
        async with serving(after, tmp_path):
            await done.wait()
    assert results == [0]
