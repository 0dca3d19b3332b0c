from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from control.scripted import MESH, NOW, ScriptedController, node_id, serving
from meshd import meshctl
from meshd.control.keys import KeysSnapshot
from meshd.keys import WireGuardKey

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = WireGuardKey(b"o" * 32), WireGuardKey(b"n" * 32)
KEYS = KeysSnapshot(
    node=node_id(1),
    mesh=MESH.id,
    root=MESH.id,
    public_key=OLD,
    made_at=NOW,
    age=3 * 86400.0,
    next_public_key=None,
    due_at=NOW + 90 * 86400,
    rotating=False,
    bootstrap_epoch=2,
    bootstrap_key_held=True,
)


@dataclass
class Rotating(ScriptedController):
    """Has its key replaced some looks after it was asked to."""

    looks: int = 3
    shown: KeysSnapshot = field(default=KEYS)

    def keys(self) -> KeysSnapshot:
        if self.shown.rotating:
            self.looks -= 1
            if not self.looks:
                self.shown = replace(KEYS, public_key=NEW, age=0.0)
        return self.shown

    async def rotate_key(self) -> None:
        self.shown = replace(self.shown, rotating=True, next_public_key=NEW)


@pytest.fixture
def ctl(tmp_path: Path):
    async def run(*arguments: str) -> int:
        argv = ["--runtime-dir", str(tmp_path), *arguments]
        return await trio.to_thread.run_sync(partial(meshctl.main, argv))

    return run


async def test_keys_are_shown_with_their_age(tmp_path, ctl, capsys) -> None:
    async with serving(Rotating(), tmp_path):
        assert await ctl("keys", "show") == 0
    out = capsys.readouterr().out
    assert f"WireGuard key     {OLD}\n" in out
    assert "2023-11-14T22:13:20.000Z (3 days)" in out
    assert out.endswith("bootstrap key     epoch 2\n")
    assert "to be replaced  2024-02-12T22:13:20.000Z\n" in out


async def test_a_key_that_was_announced_is_shown(tmp_path, ctl, capsys) -> None:
    controller = Rotating(shown=replace(KEYS, next_public_key=NEW, due_at=None))
    async with serving(controller, tmp_path):
        assert await ctl("keys", "show") == 0
    out = capsys.readouterr().out
    assert f"  next            {NEW}\n" in out
    assert "on request only" in out


async def test_rotate_returns_when_the_key_is_replaced(tmp_path, ctl, capsys) -> None:
    async with serving(Rotating(), tmp_path):
        assert await ctl("keys", "rotate", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "meshd.keys/1"
    assert document["wireguard"]["public_key"] == str(NEW)
    assert document["wireguard"]["next_public_key"] is None


async def test_keys_takes_one_of_two_words(ctl, capsys) -> None:
    assert await ctl("keys") == 2
    assert "show" in capsys.readouterr().err
