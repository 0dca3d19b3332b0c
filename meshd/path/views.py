"""What the path agent shows of itself: for `meshctl why`, `status` and metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.keys import NodeId
    from meshd.path.candidates import PathClass
    from meshd.path.peer import Peer
    from meshd.wg.types import Endpoint


@dataclass(frozen=True, slots=True)
class PairView:
    """One address of a peer.  Instants are the agent's; -inf for never."""

    control: Endpoint
    endpoint: Endpoint | None
    path_class: PathClass
    listed: bool  # in the peer's record
    asked_at: float
    proven_at: float
    rtt: float  # seconds; inf before the first pong
    unanswered: int  # pings since the last pong
    relay: NodeId | None  # whose port it is
    draining: bool  # and that is to go
    bound: bool  # it forwards to us what comes for us
    losses: int  # times it has failed under traffic, of late


@dataclass(frozen=True, slots=True)
class PathView:
    """The state of the paths to one peer."""

    node: NodeId
    endpoint: Endpoint | None
    path_class: PathClass | None
    proven: bool
    ready: bool
    installed: bool
    installs_us: bool
    attempt: int
    rtt: float  # seconds, by the path in use; inf where it is not known
    relay: NodeId | None  # by which it is reached
    seen_from: Endpoint | None  # where the peer sees us come from
    pairs: tuple[PairView, ...]


@dataclass(frozen=True, slots=True)
class PathStatistics:
    """Counts since the start."""

    peers: int = 0
    pings_sent: int = 0
    pings_received: int = 0
    pongs_sent: int = 0
    pongs_received: int = 0
    pongs_unasked: int = 0  # for no open transaction, or from another address
    replayed: int = 0
    hellos_sent: int = 0  # to relays
    limited: int = 0  # pings not answered because their sender sent too many
    strangers: int = 0  # pings of nodes not known, passed up
    strangers_dropped: int = 0
    bad_packets: int = 0
    watched: int = 0  # paths that carry traffic
    unsealable: int = 0  # members whose id is no key to agree on: they cannot be probed


def view_of(peer: Peer) -> PathView:
    """Return a copy of a peer's state."""
    return PathView(
        node=peer.node,
        endpoint=peer.selected.endpoint if peer.selected else None,
        path_class=peer.selected.path_class if peer.selected else None,
        proven=peer.proven,
        ready=peer.ready,
        installed=peer.installed,
        installs_us=peer.installs_us,
        attempt=peer.attempt,
        rtt=peer.selected.rtt if peer.selected else math.inf,
        relay=peer.relay,
        seen_from=peer.selected.seen_from if peer.selected else None,
        pairs=tuple(
            PairView(
                control=pair.control,
                endpoint=pair.endpoint,
                path_class=pair.path_class,
                listed=pair.listed,
                asked_at=pair.asked_at,
                proven_at=pair.proven_at,
                rtt=pair.rtt,
                unanswered=pair.unanswered,
                relay=pair.relay,
                draining=pair.draining,
                bound=pair.bound,
                losses=pair.losses,
            )
            for pair in peer.pairs.values()
        ),
    )
