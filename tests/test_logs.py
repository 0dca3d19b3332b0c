from __future__ import annotations

import io
import json
import logging
import os
import re
import tempfile

import pytest

from meshd import logs

log = logging.getLogger("meshd.test")


@pytest.fixture(autouse=True)
def _restore():
    root = logging.getLogger("meshd")
    before = root.handlers[:], root.level, root.propagate
    yield
    root.handlers, root.level, root.propagate = before[0], before[1], before[2]


def logged(log_format: str | None, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(level, log_format, stream)
    return stream


def fail() -> None:
    try:
        int("broken")
    except ValueError:
        log.exception("failed")


def test_json_is_one_object_a_line_with_its_fields() -> None:
    stream = logged("json")
    log.warning("%s is suspect", "b", extra=logs.fields(reason="no\nack", level="forged"))
    (line,) = stream.getvalue().splitlines()
    document = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document.pop("at"))
    assert document == {
        "level": "warning",
        "logger": "meshd.test",
        "message": "b is suspect",
        "reason": "no\nack",
    }


def test_text_is_one_line_that_nobody_can_forge() -> None:
    stream = logged("text")
    log.info("hello\n12:00:00 error forged\x1b[2J", extra=logs.fields(member="b", why="a b=c"))
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} info    hello\\n12:00:00 error forged\\x1b\[2J"
        r'  member=b why="a b=c"\n',
        stream.getvalue(),
    )


def test_off_a_terminal_the_log_is_json() -> None:
    stream = logged(None)
    log.info("x")
    assert json.loads(stream.getvalue())["message"] == "x"


def test_what_is_below_the_level_is_not_logged() -> None:
    stream = logged("json", "warning")
    log.info("x")
    assert stream.getvalue() == ""


def test_configuring_again_replaces_the_handler() -> None:
    first, second = logged("json"), logged("json")
    log.info("x")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_is_not_lost(log_format: str) -> None:
    stream = logged(log_format)
    fail()
    assert "ValueError: invalid literal" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_journal_learns_the_priority_of_each_line(monkeypatch, log_format: str) -> None:
    with tempfile.TemporaryFile("w+") as file:
        status = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        logs.configure("info", log_format, file)
        log.warning("x")
        fail()
        file.seek(0)
        lines = file.read().splitlines()
    assert lines[0].startswith("<4>")
    assert all(line.startswith("<3>") for line in lines[1:])
