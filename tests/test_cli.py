from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import meshd.daemon
from meshd import __version__, cli
from meshd.config import OPTIONS
from meshd.errors import DeviceError, StartError, UsageError

if TYPE_CHECKING:
    from meshd.config import Config

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith(("MESHD_", "CREDENTIALS_")):
            monkeypatch.delenv(variable)


def test_version_and_help_need_nothing(capsys) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"meshd {__version__}\n"
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for option in OPTIONS:
        assert bool(re.search(rf"--{option.name}[ ,]", shown)) == option.flag


def test_checking_the_configuration_starts_nothing(capsys) -> None:
    assert cli.main(["--check-config", "--no-relay", "--seed", "a", "--seed", "b:1"]) == 0
    assert "given: relay, seeds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sed", "x"], "unknown option --sed; did you mean --seed?"),
        (["--prefix=1"], "unknown option --prefix"),
        (["extra"], "unknown argument extra"),
        (["--port"], "argument --port: expected one argument"),
        (["--port", "0"], "--port = '0': must be a whole number from 1 to 65535"),
        (["--config", "/nonexistent"], "--config /nonexistent: there is no such file"),
        (["--init", "--token", "x"], "--init and --token: either make a mesh or join one"),
    ],
)
def test_usage_errors_are_one_line_and_status_two(capsys, arguments, said) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("meshd: ")
    assert said in error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("say how"), 2),
        (StartError("no room"), 1),
        (DeviceError("link add", 1), 1),
        (ExceptionGroup("nursery", [ExceptionGroup("inner", [StartError("no room")])]), 1),
        (ExceptionGroup("nursery", [UsageError("say how"), StartError("no room")]), 2),
    ],
)
def test_errors_of_the_daemon_become_exit_statuses(monkeypatch, capsys, error, status) -> None:
    def run(_: Config) -> int:
        raise error

    monkeypatch.setattr(meshd.daemon, "run", run)
    assert cli.main([]) == status
    shown = capsys.readouterr().err
    assert shown.startswith("meshd: ")
    assert shown.count("\n") == 1


@pytest.mark.parametrize("bug", [ZeroDivisionError(), KeyError("x")])
def test_a_bug_of_ours_is_not_hidden(monkeypatch, bug) -> None:
    def run(_: Config) -> int:
        raise ExceptionGroup("nursery", [StartError("no room"), bug])

    monkeypatch.setattr(meshd.daemon, "run", run)
    with pytest.raises(ExceptionGroup) as group:
        cli.main([])
    assert group.value.exceptions[1] is bug


def test_the_daemon_gets_what_was_given(monkeypatch) -> None:
    got = []
    monkeypatch.setattr(meshd.daemon, "run", lambda config: got.append(config) or 0)
    monkeypatch.setenv("MESHD_NAME", "web-1")
    assert cli.main(["--seed", "a", "--init", "--no-mdns", "--relay"]) == 0
    (config,) = got
    assert config.given == {"seeds", "init", "mdns", "relay", "name"}
    assert (config.init, config.mdns, config.relay, config.name) == (True, False, True, "web-1")


def test_python_m_meshd_is_the_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "meshd", "--port", "x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "meshd: --port = 'x': must be a whole number from 1 to 65535\n"


def test_errors_do_not_wait_for_heavy_imports() -> None:
    script = (
        "import sys; from meshd import cli; cli.main(['--port', 'x']); "
        "print([name for name in ('trio', 'nacl', 'pyroute2') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"
