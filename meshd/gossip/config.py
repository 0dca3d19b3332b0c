"""The numbers of the protocol, with their reasons."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """Seconds, unless a name says otherwise.  All members of a mesh should use the same.

    The defaults are memberlist's for a LAN where it has the like.
    """

    # Probing (see `probe`)
    probe_interval: float = 1.0
    probe_timeout: float = 0.5
    indirect_probes: int = 3

    # Suspicion (see `suspicion`)
    suspicion_mult: float = 4.0
    suspicion_max_timeout_mult: float = 6.0
    confirmations_expected: int = 2

    # Dissemination (see `broadcast`)
    gossip_interval: float = 0.2
    gossip_fanout: int = 3
    retransmit_mult: int = 4
    leave_fanout: int = 8
    leave_rounds: int = 3

    # First contact and the dead (see `contact`)
    first_contact_timeout: float = 3.0
    contact_stagger: float = 0.15
    contact_retry_min: float = 0.5
    dead_retry_min: float = 2.0
    retry_max: float = 10.0
    retry_fast_lifetime: float = 600.0
    retry_slow: float = 60.0
    retry_slow_lifetime: float = 86400.0
    retry_idle: float = 600.0
    retry_spacing: float = 0.1

    # Anti-entropy (see `sync`)
    digest_interval: float = 10.0
    digest_settle: float = 2.0
    digest_retry: float = 0.25
    answer_timeout: float = 0.4
