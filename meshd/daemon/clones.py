"""What `status` says of identities that exist twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.control.snapshot import HealthFinding
from meshd.daemon.wording import listed
from meshd.engine.clones import WAY_OUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.engine.engine import Engine


def clone_findings(engine: Engine) -> Iterator[HealthFinding]:
    """Say who exists twice, first of all whether we do."""
    clones = engine.clones
    if clones.proven:
        yield _finding(clones.text)
    others = [engine.name_of(node) for node in clones.others()]
    if others:
        yield _finding(f"the keys of {listed(others)} are in use on two machines: {WAY_OUT}")


def _finding(message: str) -> HealthFinding:
    return HealthFinding("error", "identity-cloned", message)
