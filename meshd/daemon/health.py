"""What is wrong with this host rather than with the mesh, and telling of what is wrong at all."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import trio

from meshd.control.snapshot import HealthFinding
from meshd.daemon.snapshot import engine_findings
from meshd.engine.events import Notice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.daemon.daemon import Daemon

WATCH_INTERVAL = 2.0

# Findings that have a line of their own when they happen.
_TOLD_AT_ONCE = frozenset(
    {
        "no-answer",
        "refused",
        "revoked",
        "invite-lost",
        "invite-lost-by",
        "identity-cloned",
        "credential-expiring",
        "credential-expired",
        "credential-too-late",
    }
)


async def watch(daemon: Daemon) -> None:
    """Tell what `status` finds wrong in the mesh when it begins: not everybody looks there."""
    known: frozenset[str] = _TOLD_AT_ONCE
    while True:
        await trio.sleep(WATCH_INTERVAL)
        findings = {finding.code: finding for finding in engine_findings(daemon.engine)}
        for code, finding in findings.items():
            if code not in known:
                daemon.tell(Notice(code, finding.message))
        known = _TOLD_AT_ONCE | findings.keys()


def host_findings(daemon: Daemon) -> Iterator[HealthFinding]:
    """Say what is wrong with this host."""
    yield from daemon.disk.findings()
    yield from daemon.carriers.findings()
    if not daemon.engine.gossip.accompanied:  # no name is asked for after that
        yield from daemon.resolver.findings()
    if daemon.reconciler.error is not None:
        yield HealthFinding("error", "device", f"{daemon.reconciler.error}; trying again")
    yield from daemon.relay.findings()
    if daemon.host.mux is None:
        yield second_port(daemon)
    if daemon.port_mapping is not None:
        yield from daemon.port_mapping.findings()


def second_port(daemon: Daemon) -> HealthFinding:
    """Say what it costs that WireGuard and meshd do not share a port."""
    return HealthFinding(
        "warning",
        "one-port",
        f"nft is missing or not allowed, so UDP port {daemon.host.underlay.port} must be open "
        f"besides {daemon.config.port}, and is the one that joins: install nftables",
    )


def bad_packets(daemon: Daemon) -> dict[str, int]:
    """Return how many datagrams were dropped because of what they were, by reason."""
    counts = Counter(daemon.engine.bad_packets)
    counts.update(daemon.engine.admission.dropped)
    counts["replayed"] += daemon.engine.path.statistics().replayed
    if daemon.port_mapping is not None:
        counts.update(daemon.port_mapping.bad_packets)
    for dropped in daemon.carriers.dropped():
        counts.update(dropped)
    for statistics in (daemon.host.underlay.statistics(), daemon.host.overlay.statistics()):
        counts["datagram too long"] += statistics.oversized
        counts["source that cannot be answered"] += statistics.unanswerable
    return {reason: count for reason, count in sorted(counts.items()) if count}
