"""Where a newcomer can ask to be let in: the addresses that a token names as seeds.

1. This node's own come first: they let it in also where it is the only member, or in the same LAN.
2. Where a stranger cannot reach any of them by IPv4, because a NAT is before this node, half of the
   places are those of living members that may admit and have an address that strangers reach:
   whoever may admit lets in by anybody's token.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from meshd.engine.relays import is_public
from meshd.gossip.claim import MemberState
from meshd.trust.invite import SEEDS_MAX
from meshd.trust.record import CandidateKind
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meshd.daemon.daemon import Daemon
    from meshd.trust.record import Record

OWN_SHARE = SEEDS_MAX // 2  # where others are named as well
_OPEN = {CandidateKind.MAPPED, CandidateKind.CONFIGURED}


def token_seeds(daemon: Daemon) -> tuple[str, ...]:
    """Return what a token says where to ask, best first."""
    engine, wall = daemon.engine, time.time()
    states = {view.node: view.state for view in engine.gossip.members()}
    standing = engine.ledger.standing(engine.identity.node)
    record = None if standing is None else standing.record
    records = [
        standing.record
        for node, standing in engine.others()
        if states.get(node) is MemberState.ALIVE and standing.may_admit(wall)
    ]
    return tuple(map(str, choose(daemon.seed_endpoints(), record, records)))


def choose(
    own: Sequence[Endpoint], record: Record | None, others: Sequence[Record]
) -> tuple[Endpoint, ...]:
    """Return at most SEEDS_MAX addresses; `others` are the records of who else lets in."""
    if record is not None and any(each.address.version == 4 for each in _doors(record)):
        return tuple(own[:SEEDS_MAX])
    first = [next(_doors(each), None) for each in others]
    more = list(dict.fromkeys(each for each in first if each is not None and each not in own))
    kept = max(OWN_SHARE, SEEDS_MAX - len(more))
    return (*own[:kept], *more[: SEEDS_MAX - len(own[:kept])])


def _doors(record: Record) -> Iterator[Endpoint]:
    """Yield where a stranger reaches a member, as its record says; IPv4 first."""
    for each in sorted(record.candidates, key=lambda candidate: candidate.address.version):
        host = each.kind is CandidateKind.HOST and is_public(each.address)
        if host or each.kind in _OPEN:
            yield Endpoint(each.address, each.control_port or each.port)
