"""What is shown of pre-shared keys: never the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.control.snapshot import HealthFinding
from meshd.daemon.wording import listed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.engine.engine import Engine
    from meshd.keys import NodeId


def psk_age(engine: Engine, node: NodeId, wall: float) -> float | None:
    """Return how old the key in use with a member is; None without one."""
    used = engine.preshared.ring(node).used
    return None if used is None else max(0.0, wall - used.agreed_at)


def preshared_findings(engine: Engine) -> Iterator[HealthFinding]:
    """Say with whom no key can be shared, and why."""
    if not engine.config.preshared.enabled:
        return
    if engine.preshared.unavailable:
        yield HealthFinding(
            "warning",
            "psk-unavailable",
            "this machine has no ML-KEM-768, so its tunnels are as safe as WireGuard alone makes "
            "them: install the Python package cryptography, version 48 or later, or set psk to no",
        )
        return
    without = [
        engine.name_of(node) for node, _ in engine.others() if engine.preshared.takes_no_part(node)
    ]
    if without:
        yield HealthFinding(
            "info",
            "no-psk",
            f"{listed(without)} cannot or will not share a pre-shared key: what is recorded of "
            "those tunnels today a quantum computer may open one day",
        )
