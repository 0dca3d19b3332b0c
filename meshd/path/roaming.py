"""Us and our peers in other places: what WireGuard sees, and what happens to this host.

Rule 1: when WireGuard has moved an endpoint, an authenticated packet came from there, and that is
        where the peer is.  An observation that only repeats the last one says nothing, for what we
        have selected in between may not have been applied yet; unless that was long ago, or it was
        insisted on: then packets that were on their way have moved it back.  Where that is still so
        though the peer says that it uses the new path as we do, it is insisted on again.

Rule 2: when this host's addresses change, when it has slept, and, but for what stays within a LAN,
        when its default route moves, every path is proven anew.  What is in use stays in use
        meanwhile, unless we have no address of its family any longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.path.agent import Agent
    from meshd.path.candidates import PathClass
    from meshd.path.peer import Peer
    from meshd.wg.types import Endpoint


class Roaming:
    """See the module docstring."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def endpoint_observed(self, peer: Peer, endpoint: Endpoint, now: float) -> None:
        """Take the endpoint that the kernel has for a peer (rule 1)."""
        agent = self._agent
        settled = now - peer.selected_at >= agent.config.settle_time
        if now < peer.insist_until or (endpoint == peer.in_kernel and not settled):
            return
        if self._echoes(peer, endpoint) and agent.upgrading.insist_again(peer, now):
            return
        selected, first = peer.selected, peer.in_kernel is None
        peer.in_kernel = endpoint
        if not agent.fence.allows(endpoint):
            return
        if selected is not None and (selected.endpoint == endpoint or first):
            return
        pair = peer.pair_of_endpoint(endpoint)
        if pair is peer.left and selected is not None:
            selected.losses += 1  # the move did not last: it is tried again, but more rarely
        pair.proven_at = max(pair.proven_at, now)
        agent.select(peer, pair, "peer roamed", now)
        agent.announce(peer)
        agent.search(peer, now)

    def _echoes(self, peer: Peer, endpoint: Endpoint) -> bool:
        """Whether only packets of before a planned move, answering each other, are seen there."""
        selected, left = peer.selected, peer.left
        moved = selected is not None and selected.peer_uses and peer.proven
        return moved and left is not None and left is not selected and endpoint == left.endpoint

    def begin_anew(self, now: float, *, but: PathClass | None = None) -> None:
        """Prove every path anew, except proven ones of a class (rule 2)."""
        agent = self._agent
        for peer in agent.peers.values():
            for pair in peer.pairs.values():
                pair.losses = 0
                if but is not None and pair.path_class is not but:
                    pair.local = None  # left to the kernel's routing
            selected = peer.selected
            if selected is not None and not agent.surroundings.sees_family(selected.control):
                selected.doubt()
            if but is not None and peer.proven and peer.path_class is but:
                continue
            peer.searching_since = now
            agent.watching.again(peer, now)
            agent.demand_proof(peer, now)
        agent.relaying.hello_again(now)
