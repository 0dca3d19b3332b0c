"""Times and bounds of the path agent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PathConfig:
    """Seconds, unless said otherwise.

        demand ──ping──┬─.1─┬─.2─┬─.5─┬─ 1 ─┬─ 1 ─┬─ 2 ─ 2 ─ 2 ─┬─ 5 ─┬─ 10 ─ … ─ 10 ─┬─ 60 ─ …
               all addresses of the peer, until one is proven            `patience`

    Each pause is shortened by up to `backoff_jitter` of itself, never lengthened, so that the last
    of the first ten minutes is also the longest a path can stay unnoticed after it is back.
    """

    backoff: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 1.0, 2.0, 2.0, 2.0, 5.0, 10.0)
    backoff_jitter: float = 0.25  # fraction of a pause
    returning_attempt: int = 3  # where in the backoff to go on when a lost peer is heard again
    returned_after: float = 15.0  # of silence, heard again means that it was lost
    patience: float = 600.0  # of searching for a path, before it is searched for rarely
    patient_interval: float = 60.0
    probe_spacing: float = 0.1  # between two pings to one address
    update_spacing: float = 1.0  # between two pings that only bring our record
    transaction_lifetime: float = 20.0  # a pong that takes longer proves nothing
    # How long the address in use may take to prove itself again before another takes its place:
    # three of its pings have gone by then.
    selection_grace: float = 0.5
    recheck_interval: float = 1.0  # between two searches because a ping came from elsewhere
    suspect_interval: float = 5.0  # between two searches because of suspicions
    upgrade_attempts_max: int = 4  # rounds towards better addresses while one is proven
    upgrade_interval: float = 30.0  # at most, between two such rounds while it is relayed
    trial: float = 1.0  # a better pair has to do well for so long, see `upgrading`
    trial_max: float = 300.0  # after it has been lost again and again
    losses_forgotten_after: float = 600.0  # of use without any
    check_interval: float = 0.25  # of a path that carries traffic
    checks_per_second_max: int = 128  # of all paths; the interval grows where they are many
    late_min: float = 0.1  # an answer is not late before; see `Pair.patience`
    burst_interval: float = 0.04
    silence_max: float = 0.5  # of a burst; longer where answers take longer
    relay_wait: float = 0.3  # without a path, before relays are asked for
    relay_linger: float = 10.0  # of ports that are not needed any longer
    spare_linger: float = 60.0  # of the spare after the last traffic
    settle_time: float = 3.0  # after a move, for packets that were on their way by the old path
    insist_time: float = 1.0  # after a move under traffic, see `upgrading` rule 4
    insist_interval: float = 0.05
    called_interval: float = 0.5  # between two calls of a peer that are heeded
    call_wait: float = 0.3  # without a direct path, before it is called
    call_interval: float = 2.0  # between two calls to a peer, at first
    sole_witness_wait: float = 2.0  # see `witnesses`, rule 2
    pace: float = 0.01  # between two batches of `PEERS_PER_BATCH_MAX`
