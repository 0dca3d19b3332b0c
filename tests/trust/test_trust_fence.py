import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def complaints(source):
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--output-format=concise",
            "--no-cache",
            "--stdin-filename",
            "meshd/trust/intruder.py",
            "-",
        ],
        input=source,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    return checked.stdout


@pytest.mark.parametrize(
    "line",
    [
        "import trio",
        "import socket",
        "import time",
        "import random",
        "import os",
        "import secrets",
        "import logging",
        "from os import urandom",
        "import nacl.utils",
        "import datetime as dt\n\nNOW = dt.datetime.now(dt.UTC)",
    ],
)
def test_trust_cannot_reach_for_the_world(line):
    assert "TID251" in complaints(f'"""An intruder."""\n\n{line}\n')


def test_what_trust_needs_is_not_fenced_off():
    assert "TID251" not in complaints('"""A friend."""\n\nimport enum\n')
