"""The sans-IO fence: ruff refuses clocks, sockets and hidden randomness in meshd/gossip."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUFF = Path(sys.executable).with_name("ruff")


def check(code):
    """Lint some code as if it were a module of meshd/gossip."""
    ruff = str(RUFF) if RUFF.exists() else shutil.which("ruff")
    assert ruff is not None, "ruff is among the development dependencies"
    name = str(ROOT / "meshd" / "gossip" / "intruder.py")
    command = [ruff, "check", "--no-cache", "--output-format=concise", "--stdin-filename", name]
    text = f'"""An intruder."""\n\n{code}\n'
    return subprocess.run(
        [*command, "-"], input=text, capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.parametrize(
    "code",
    [
        "import trio",
        "import socket",
        "from socket import AF_INET6",
        "import time",
        "from time import monotonic",
        "import datetime",
        "import secrets",
        "import logging",
        "import os\n\nNOISE = os.urandom(8)",
        "from os import urandom",
        "import random\n\nNOISE = random.random()",
        "from random import choice",
        "from random import shuffle",
        "from random import SystemRandom",
    ],
)
def test_what_has_no_place_in_a_pure_core_is_refused(code):
    result = check(code)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "TID251" in result.stdout, result.stdout


def test_an_injected_generator_is_welcome():
    code = (
        "from __future__ import annotations\n\n"
        "from typing import TYPE_CHECKING\n\n"
        "if TYPE_CHECKING:\n"
        "    from random import Random\n\n\n"
        "def flip(rng: Random) -> bool:\n"
        '    """Toss a coin."""\n'
        "    return rng.random() < 0.5\n"
    )
    result = check(code.rstrip())
    assert "TID251" not in result.stdout, result.stdout
