"""The numbers of the protocol, with their reasons.

Each idea beyond plain SWIM has a number here that switches it off, so that what it is worth can be
measured alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """Seconds, unless a name says otherwise.  All members of a mesh should use the same.

    The defaults are memberlist's for a LAN where it has the like.
    """

    # Probing (see `probe`, `order`, `rtt`)
    probe_interval: float = 1.0
    neighbour_every: int = 2  # turns; 0: never, all turns are random
    probe_timeout: float = 0.5  # for an ack from a member whose round trips are not known
    probe_timeout_min: float = (
        0.1  # however short its round trips; probe_timeout: do not follow them
    )
    indirect_probes: int = 3
    stream_timeout: float = 2.0  # for a probe over TCP; 0: none

    # Doubting ourselves first (see `health`)
    health_score_max: int = 8  # 0: never

    # Suspicion (see `suspicion`)
    suspicion_mult: float = 4.0
    suspicion_max_timeout_mult: float = 6.0
    confirmations_expected: int = 3  # 0: the same wait for all
    refutation_interval: float = 0.12  # for a suspect to be told, on a network without delay
    staples: int = 1  # accusations sent along to the accused, up to 4; 0: it hears like all others

    # Looking at suspects (see `observers`)
    observers: int = 5  # 0: nobody looks but in turn
    watch_interval: float = 0.2

    # After a sleep (see `node`)
    resume_grace: float = 15.0  # for networks to come up, NATs to be opened, tunnels to be keyed

    # What the kernel knows (see `evidence`)
    evidence_max: int = 3  # failed probes in a row that traffic excuses; 0: evidence is ignored

    # Dissemination (see `broadcast`, `pace`)
    gossip_interval: float = 0.2
    gossip_interval_min: float = 0.05  # for what is new; gossip_interval: no difference is made
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
    digest_settle: float = 1.0
    digest_retry: float = 0.25
    answer_timeout: float = 0.4
