"""The security model names the tests that show it; each of them is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"`(test_\w+)`")
DEFINITION = re.compile(r"^(?:async )?def (test_\w+)\(", re.MULTILINE)


def test_every_test_that_the_security_model_names_is_there():
    named = NAME.findall((ROOT / "docs" / "security.md").read_text())
    assert len(named) > 30, "the table is found"
    files = (ROOT / "tests").rglob("test_*.py")
    defined = {name for file in files for name in DEFINITION.findall(file.read_text())}

    assert [name for name in named if name not in defined] == []
