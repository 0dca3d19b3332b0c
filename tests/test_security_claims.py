"""The security model names the tests that show it; each of them is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
NAME = re.compile(r"`(test_\w+)`")
DEFINITION = re.compile(r"^(?:async )?def (test_\w+)\(", re.MULTILINE)


def defined(folder):
    files = (ROOT / "tests" / folder).rglob("test_*.py")
    return {name for file in files for name in DEFINITION.findall(file.read_text())}


def test_every_test_that_the_security_model_names_is_there():
    named = NAME.findall(PAGE)
    assert len(named) > 100, "the table is found"

    assert set(named) - defined(".") == set()


def test_every_attempt_of_the_adversary_is_in_the_security_model():
    attempts = defined("adversary")
    assert len(attempts) > 50, "they are found"

    assert attempts - set(NAME.findall(PAGE)) == set()


def test_every_attempt_names_what_shows_that_it_fails():
    table = PAGE.split("## What shows it\n")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    attempts = [row for row in rows if not row.startswith("| **")]
    assert len(attempts) > 30, "the table is found"

    assert [row for row in attempts if not NAME.search(row)] == []
