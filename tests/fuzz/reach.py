"""Which functions that touch bytes from outside a fuzzer gets to, and which there are.

As a program it fuzzes every target a little, and prints what it got to.  That takes a process of
its own: what makes a target's first inputs is kept, and counts only the first time.
"""

import ast
import json
import sys
from pathlib import Path

import meshd
from fuzz import targets
from fuzz.life import Life

INPUTS = 300
LIFE_INPUTS = 2_000

_PACKAGE = Path(meshd.__file__).parent
_SUFFIX = "_untrusted"


def all_untrusted():
    """Return (file, name) of every function whose name says that it touches such bytes."""
    found = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.endswith(_SUFFIX):
                found[str(path.relative_to(_PACKAGE)), node.name] = None
    return list(found)


class Reached:
    """Notes, while it is entered, each such function that is called."""

    def __init__(self):
        self.functions = set()

    def __enter__(self):
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def _note(self, frame, event, _):
        if event == "call" and frame.f_code.co_name.endswith(_SUFFIX):
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(_PACKAGE):  # and no fake of a test's
                self.functions.add((str(path.relative_to(_PACKAGE)), frame.f_code.co_name))


def main():
    """See the module docstring."""
    with Reached() as noted:
        for name in targets.TARGETS:
            targets.fuzz(name, inputs=INPUTS, seed="reach")
        Life("reach", LIFE_INPUTS).run()
    print(json.dumps(sorted(noted.functions)))


if __name__ == "__main__":
    main()
