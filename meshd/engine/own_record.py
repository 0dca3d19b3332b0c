"""This node's own record: what it says of itself, signed anew whenever that changes.

Rule 1: a sequence number is never used for two different bodies.  Numbers come from a block that
        was reserved on disk before the run began: `starts << 20 | count` (see docs/adr/0003).

Rule 2: a record of our own that comes from elsewhere with a higher number than ours is from a
        later life of this node than our disk remembers (a restored backup), and we go on above it;
        or another machine has our keys, and `clones` decides who goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.plan.claims import Claim, choose_claim, usable
from meshd.trust.record import CANDIDATES_MAX, Record, sign_record

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from ipaddress import IPv4Address, IPv4Network

    from meshd.codec import IPNetwork
    from meshd.engine.identity import Identity
    from meshd.keys import WireGuardKey
    from meshd.trust.credential import Credential
    from meshd.trust.record import Candidate


@dataclass(frozen=True, slots=True)
class RecordContent:
    """What may change in the record while the node runs."""

    wireguard_key: WireGuardKey
    next_wireguard_key: WireGuardKey | None
    candidates: tuple[Candidate, ...]
    ipv4: IPv4Address | None
    routes: tuple[IPNetwork, ...]
    relay: bool
    version: str
    run: int
    rival: int
    cloned: bool
    tcp: int
    tls: int


class OwnRecord:
    """Signs the record; holds the newest one."""

    def __init__(self, *, sequence: int) -> None:
        self._next_sequence = sequence
        self._said: tuple[tuple[bytes, ...], RecordContent] | None = None
        self.record: Record | None = None
        self.blob = b""

    @property
    def sequence(self) -> int:
        """The newest record's sequence number; 0 before the first."""
        return 0 if self.record is None else self.record.sequence

    def outrun(self, sequence: int) -> bool:
        """Make the next record newer than `sequence`, and due.

        Return whether the number is beyond what our disk has reserved.
        """
        self._said = None
        if sequence < self._next_sequence:
            return False
        self._next_sequence = sequence + 1
        return True

    def update(self, identity: Identity, content: RecordContent) -> bool:
        """Sign a new record if it would say anything new.  Return whether it did."""
        if self._said == (identity.chain, content):
            return False
        self._said = (identity.chain, content)
        record = Record(
            node=identity.node,
            sequence=self._next_sequence,
            wireguard_key=content.wireguard_key,
            next_wireguard_key=content.next_wireguard_key,
            candidates=content.candidates[:CANDIDATES_MAX],
            ipv4=content.ipv4,
            routes=content.routes,
            relay=content.relay,
            version=content.version,
            chain=identity.chain,
            run=content.run,
            rival=content.rival,
            cloned=content.cloned,
            tcp=content.tcp,
            tls=content.tls,
            former_word=identity.former_word,
        )
        blob = sign_record(record, identity.node_key, identity.mesh)
        self.record, self.blob = record, blob
        self._next_sequence += 1
        return True


def own_claim(
    credential: Credential,
    others: Collection[Claim],
    *,
    admitted_at: int,
    prefix: IPv4Network,
    wanted: Iterable[IPv4Address | None],
) -> Claim | None:
    """Return our own claim to an IPv4 address: the first that holds against all others.

    `admitted_at` is since when we are a member.  A pinned address is the only one considered.
    `wanted` is tried in its order, then a hash of our id.  None if the pin is lost, or the prefix
    full.
    """

    def claim(address: IPv4Address) -> Claim:
        return Claim(credential.subject, address, credential.ipv4 is not None, admitted_at)

    def holds(address: IPv4Address) -> bool:
        own = claim(address)
        return usable(address, prefix) and not any(
            other.address == address and other.precedence < own.precedence for other in others
        )

    if credential.ipv4 is not None:
        return claim(credential.ipv4) if holds(credential.ipv4) else None
    for address in wanted:
        if address is not None and holds(address):
            return claim(address)
    taken = {other.address for other in others}
    chosen = choose_claim(credential.subject, taken=taken, prefix=prefix)
    return None if chosen is None else claim(chosen)
