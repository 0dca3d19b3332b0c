"""Whose public addresses are whose own.

What comes from there, for another member, has been forwarded: it is a port of a relay, perhaps one
that was granted to us and is no longer, or not yet.  Taken for an address of the peer's own it
would be preferred to the relay's ports that we hold, and the two sides would take turns.

Only addresses that a record lists as its host's own count, and only public ones: behind one NAT
there are many members, and in many sites the same private addresses.  A member that lists another's
has addresses that are in no record ranked lower, no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.path.candidates import PathClass, observed_class, path_class

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.codec import IPAddress
    from meshd.keys import NodeId
    from meshd.trust.record import Candidate
    from meshd.wg.types import Endpoint


class Hosts:
    """See the module docstring."""

    def __init__(self) -> None:
        self._owners: dict[IPAddress, NodeId] = {}
        self._addresses: dict[NodeId, tuple[IPAddress, ...]] = {}

    def listed(self, node: NodeId, candidates: Iterable[Candidate]) -> None:
        """Take what a member's record lists; who has listed an address first, has it."""
        self.forget(node)
        own = {each.address: node for each in candidates if path_class(each) is PathClass.HOST}
        free = {address: node for address in own if address not in self._owners}
        self._addresses[node] = tuple(free)
        self._owners.update(free)

    def forget(self, node: NodeId) -> None:
        """Drop what a member has listed."""
        for address in self._addresses.pop(node, ()):
            del self._owners[address]

    def relay(self, endpoint: Endpoint, peer: NodeId) -> NodeId | None:
        """Return who has forwarded what a peer sends from there; None: nobody that is known."""
        owner = self._owners.get(endpoint.address)
        return None if owner == peer else owner

    def observed_class(self, endpoint: Endpoint, peer: NodeId) -> PathClass:
        """Return the class of a path by an address of a peer that no record lists."""
        relayed = self.relay(endpoint, peer) is not None
        return PathClass.RELAYED if relayed else observed_class(endpoint)
