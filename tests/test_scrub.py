"""What `ps` shows of a secret that was given as an argument."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SECRET = "meshd1.c2VjcmV0IGZvciBhIHRlc3Q"
PROGRAM = """
import sys
from pathlib import Path
from meshd.scrub import scrub_argument
found = scrub_argument(sys.argv[1])
print(found)
print(Path('/proc/self/cmdline').read_bytes().replace(b'\\0', b' ').decode())
print(sys.argv[2])
"""


def run(*arguments: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def test_a_secret_is_gone_from_the_process_list_and_still_known_to_the_program() -> None:
    found, *shown, known = run(SECRET, f"--token={SECRET}", "--name", "b")

    assert found == "True"
    assert SECRET not in "\n".join(shown)
    assert "--token=------" in "\n".join(shown)
    assert "--name b" in "\n".join(shown)
    assert known == f"--token={SECRET}"


def test_what_is_too_short_for_a_secret_is_left_alone() -> None:
    found, *shown, _ = run("b", "--name", "b")

    assert found == "False"
    assert "--name b" in "\n".join(shown)


def test_the_daemon_scrubs_its_token_before_anything_else(tmp_path: Path) -> None:
    """The configuration is read from a pipe that nobody writes to: it waits there."""
    fifo = tmp_path / "meshd.toml"
    os.mkfifo(fifo)
    command = [sys.executable, "-m", "meshd", "--token", SECRET, "--config", str(fifo)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            with fifo.open("wb"):  # opened by both: the program has come as far as that
                shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        finally:
            process.terminate()

    assert SECRET.encode() not in shown
    assert b"--token\0------" in shown
