"""What metrics and `status` read of a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.gossip.claim import MemberState


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    """Counters since the node was made, and sizes as they are."""

    members: dict[MemberState, int]
    incarnation: int
    datagrams_sent: int
    bytes_sent: int
    datagrams_received: int
    bytes_received: int
    bad_packets: int
    probes_acked: int
    probes_acked_indirectly: int
    probes_acked_streams: int
    probes_excused: int
    probes_failed: int
    streams_opened: int
    health_score: int
    suspicions: int
    deaths: int
    refutations: int
    claims_verified: int
    claims_dropped: int
    facts_learned: int
    exchanges: int
    broadcasts_queued: int
    pings_waiting: int
    timers_set: int
    entries: int
