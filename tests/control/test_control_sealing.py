"""`meshctl seal`, `keys rotate --mesh` and `--bootstrap`: what is asked, shown and sent."""

from dataclasses import dataclass, field
from functools import partial

import pytest
import trio

from control.scripted import ScriptedController, node_id, serving
from meshd import meshctl
from meshd.control.routes import ApiError
from meshd.control.sealing import NewBootstrapAnswer, NewRootAnswer
from meshd.daemon.sealing import _conflict
from meshd.keys import MeshId

MEMBERS = ((node_id(1), "a", "alive"), (node_id(2), "b", "dead"))
ROOT = MeshId(b"r" * 32)
KEY_TEXT = "a2V5" * 11


@pytest.fixture
def ctl(tmp_path):
    async def run(*arguments):
        argv = ["--runtime-dir", str(tmp_path), *arguments]
        return await trio.to_thread.run_sync(partial(meshctl.main, argv))

    return run


@dataclass
class SealingController(ScriptedController):
    refusal: ApiError | None = None
    sealing: list = field(default_factory=list)

    async def seal(self, secret, *, sure):
        self.sealing.append(("seal", secret, sure))
        if self.refusal is not None:
            raise self.refusal
        return NewRootAnswer(done=sure, root=ROOT if sure else None, members=MEMBERS)

    async def rotate_mesh_key(self, overlap, mesh_key, *, sure):
        self.sealing.append(("mesh", overlap, mesh_key, sure))
        return NewRootAnswer(done=sure, root=ROOT, members=MEMBERS, overlap_until=1_700_000_000)

    def mesh_key(self):
        return ROOT, KEY_TEXT

    def forget_mesh_key(self, root):
        self.sealing.append(("forget", root))

    async def rotate_bootstrap_key(self, *, sure):
        self.sealing.append(("bootstrap", sure))
        return NewBootstrapAnswer(done=sure, invites=2, away=("b",))


async def test_a_seal_says_who_is_in_for_good_and_where_the_mesh_key_is(tmp_path, ctl, capsys):
    controller = SealingController()
    async with serving(controller, tmp_path):
        assert await ctl("seal", "--yes") == 0

    out = capsys.readouterr().out
    assert "sealed, with a, b (dead)" in out
    assert "This node now holds the mesh key" in out
    assert controller.sealing == [("seal", None, False), ("seal", None, True)]


async def test_nothing_is_sealed_without_a_word(tmp_path, ctl, capsys):
    controller = SealingController()
    async with serving(controller, tmp_path):
        assert await ctl("seal") == 2

    assert "confirm with --yes" in capsys.readouterr().err
    assert controller.sealing == [("seal", None, False)]


async def test_the_secret_comes_from_a_file_and_is_shown_nowhere(tmp_path, ctl, capsys):
    file = tmp_path / "secret"
    file.write_text("correct horse battery\n")
    controller = SealingController()
    async with serving(controller, tmp_path):
        assert await ctl("seal", "--yes", "--secret-file", str(file)) == 0
        assert await ctl("seal", "--yes", "--secret-file", str(tmp_path / "none")) == 2

    shown = capsys.readouterr()
    assert controller.sealing[1] == ("seal", "correct horse battery\n", True)
    assert "horse" not in shown.out + shown.err
    assert "No such file" in shown.err


async def test_what_the_daemon_refuses_is_said_before_anything_is_confirmed(tmp_path, ctl, capsys):
    controller = SealingController(refusal=_conflict("not-open", "no secret admits anybody"))
    async with serving(controller, tmp_path):
        assert await ctl("seal", "--yes") == 1

    assert "no secret admits anybody" in capsys.readouterr().err
    assert [sure for _, _, sure in controller.sealing] == [False]


@pytest.mark.parametrize(
    ("arguments", "asked", "said"),
    [
        (
            ("--mesh",),
            ("mesh", 30 * 86400, None, True),
            "the mesh key is replaced, for a, b (dead)",
        ),
        (("--mesh", "--overlap", "1h"), ("mesh", 3600, None, True), "the mesh key is replaced"),
        (("--bootstrap",), ("bootstrap", True), "tokens made before are void"),
    ],
)
async def test_keys_of_the_mesh_are_rotated_on_request(
    tmp_path, ctl, capsys, arguments, asked, said
):
    controller = SealingController()
    async with serving(controller, tmp_path):
        assert await ctl("keys", "rotate", *arguments, "--yes") == 0

    assert controller.sealing[-1] == asked
    assert said in capsys.readouterr().out


async def test_the_mesh_key_goes_into_a_file_and_then_from_the_node(tmp_path, ctl, capsys):
    controller = SealingController()
    file = tmp_path / "mesh.key"
    async with serving(controller, tmp_path):
        assert await ctl("keys", "export-mesh", str(file), "--yes") == 0
        assert await ctl("keys", "export-mesh", str(file), "--yes") == 1, "it is there already"
        arguments = ("--mesh", "--mesh-key-file", str(file), "--yes")
        assert await ctl("keys", "rotate", *arguments) == 0

    shown = capsys.readouterr()
    assert file.read_text() == f"{KEY_TEXT}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert controller.sealing.count(("forget", str(ROOT))) == 1
    assert controller.sealing[-1] == ("mesh", 30 * 86400, f"{KEY_TEXT}\n", True)
    assert KEY_TEXT not in shown.out + shown.err
    assert "nothing was deleted" in shown.err


async def test_the_documents_name_roots_and_members(tmp_path, ctl, capsys):
    async with serving(SealingController(), tmp_path):
        assert await ctl("--json", "seal", "--yes") == 0
    out = capsys.readouterr().out
    for part in ('"schema": "meshd.seal/1"', '"sealed": true', str(ROOT), '"state": "dead"'):
        assert part in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "--mesh"),
        ("rotate", "--overlap", "1h"),
        ("rotate", "--mesh", "--bootstrap"),
        ("export-mesh",),
        ("show", "file"),
    ],
)
async def test_flags_that_make_no_sense_together_are_usage_errors(tmp_path, ctl, arguments):
    async with serving(SealingController(), tmp_path):
        assert await ctl("keys", *arguments) == 2
