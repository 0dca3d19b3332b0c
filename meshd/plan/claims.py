"""Who has which IPv4 address, decided alike by everyone who holds the same records.

Rule 1: a member's claim is the address its credential pins, else the one in its record.

Rule 2: of several members that claim one address, it belongs to the first by
        (pinned before not pinned, admitted earlier, lower node id).
        All three are signed, so any two nodes with the same records agree, whatever the order in
        which they learnt them and whatever was partitioned from whatever.

Rule 3: a member that lost its claim makes another one.  Until then it is reached by IPv6, which
        cannot conflict.

Rule 4: a claim that holds is never given up: it is in the member's own signed record, which it
        keeps on disk.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.keys import fingerprint

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from ipaddress import IPv4Address, IPv4Network

    from meshd.keys import NodeId

# In a prefix half full, the chance that this many hashed guesses all hit a taken address is 2^-64.
_GUESSES_MAX = 64


@dataclass(frozen=True, slots=True)
class Claim:
    """One member's claim to one address."""

    node: NodeId
    address: IPv4Address
    pinned: bool
    admitted_at: int

    @property
    def precedence(self) -> tuple[bool, int, NodeId]:
        """Lower wins."""
        return (not self.pinned, self.admitted_at, self.node)


def usable(address: IPv4Address, prefix: IPv4Network) -> bool:
    """Whether an address can be a member's: inside the prefix and neither of its two ends."""
    return address in prefix and address not in {prefix.network_address, prefix.broadcast_address}


def resolve_claims(claims: Iterable[Claim], prefix: IPv4Network) -> dict[NodeId, IPv4Address]:
    """Return the address of each member whose claim holds."""
    holders: dict[IPv4Address, Claim] = {}
    for claim in claims:
        if not usable(claim.address, prefix):
            continue
        holder = holders.get(claim.address)
        if holder is None or claim.precedence < holder.precedence:
            holders[claim.address] = claim
    return {claim.node: address for address, claim in holders.items()}


def choose_claim(
    node: NodeId, *, taken: Collection[IPv4Address], prefix: IPv4Network
) -> IPv4Address | None:
    """Return an address to claim: a hash of the node id, the next hash if that one is taken.

    A node therefore asks for the same address wherever it starts.  None when the prefix is full.
    """
    size = prefix.num_addresses
    for attempt in range(_GUESSES_MAX):
        guess = fingerprint(node, bytes([attempt]), size=8, person=b"meshd.claim")
        address = prefix.network_address + int.from_bytes(guess, "big") % size
        if usable(address, prefix) and address not in taken:
            return address
    start = int.from_bytes(fingerprint(node, size=8, person=b"meshd.claim"), "big") % size
    for offset in itertools.islice(itertools.count(start), min(size, len(taken) + 3)):
        address = prefix.network_address + offset % size
        if usable(address, prefix) and address not in taken:
            return address
    return None
