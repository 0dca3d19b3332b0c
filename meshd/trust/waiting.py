"""Statements under roots that are not known yet.

Facts come in any order, so what a new root has signed may be here before the succession that says
so.  Until then it cannot be told from a forgery: it is refused, and the sender is counted as one
that sends bad packets, but the bytes are kept for a while and judged again when a root is new.

Rule: of the last ones, a bounded number.  Whoever fills it with rubbish makes others fetch again
what has gone, and nothing else.
"""

from __future__ import annotations

WAITING_MAX = 512


class Waiting:
    """See the module docstring."""

    def __init__(self, *, statements_max: int = WAITING_MAX) -> None:
        self._statements_max = statements_max
        self._statements: dict[tuple[int, bytes], None] = {}  # kind and blob, oldest first

    def __len__(self) -> int:
        return len(self._statements)

    def put(self, kind: int, blob: bytes) -> None:
        """Keep a statement, of a length that its decoder has accepted."""
        self._statements.pop((kind, blob), None)
        self._statements[kind, blob] = None
        if len(self._statements) > self._statements_max:
            del self._statements[next(iter(self._statements))]

    def take(self) -> list[tuple[int, bytes]]:
        """Return all, oldest first, and keep none."""
        statements = list(self._statements)
        self._statements.clear()
        return statements
