"""What one node's record comes to, given everything else that is known.

| right                     | in good standing | expired credential | revoked, lost its invite or |
|                           |                  |                    | root without a grant,       |
|                           |                  |                    | succeeded, unfounded        |
| ------------------------- | ---------------- | ------------------ | --------------------------- |
| be a member, be reached   | yes              | yes                | no                          |
| claim an address, a name  | yes              | yes                | no                          |
| advertise routes, relay   | as granted       | no                 | no                          |
| admit, renew, revoke      | as granted       | no                 | no                          |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.trust.credential import covered
from meshd.trust.line import member_since

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from meshd.codec import IPNetwork
    from meshd.keys import NodeId
    from meshd.trust.credential import Credential
    from meshd.trust.record import Record
    from meshd.trust.revocation import Revocation


@dataclass(frozen=True, slots=True)
class Standing:
    """See the module docstring."""

    record: Record
    credential: Credential  # the last of the chain
    chain: tuple[Credential, ...] = field(repr=False)  # a root's first; or the one of a grant
    blob: bytes = field(repr=False)  # the record's
    revocation: Revocation | None  # why it is out: its own, or a cascade of an issuer
    losing_invite: bool  # somebody else was first to use its invite
    ended: bool = False  # its root is trusted no more, and there is no grant for it
    succeeded_by: NodeId | None = None  # who is the member in its place: see `lineage`
    unfounded: bool = False  # a succeeded id has signed what lets it in, and does not list it

    @property
    def revoked(self) -> bool:
        """Whether a revocation puts it out."""
        return self.revocation is not None

    @property
    def admitted(self) -> bool:
        """Whether it is a member."""
        return not (
            self.revoked
            or self.losing_invite
            or self.ended
            or self.succeeded_by is not None
            or self.unfounded
        )

    @property
    def admitted_at(self) -> int:
        """Since when it is a member, where names, addresses and keys are contested: see `line`."""
        return member_since(self.chain)

    @property
    def ipv4(self) -> IPv4Address | None:
        """The address it claims: the pin of its credential, else what its record says."""
        return self.credential.ipv4 or self.record.ipv4

    @property
    def pinned(self) -> bool:
        """Whether its credential pins the address."""
        return self.credential.ipv4 is not None

    def routes(self, wall: float) -> tuple[IPNetwork, ...]:
        """Return the networks it advertises and may advertise at this time."""
        if not self._privileged(wall):
            return ()
        # Where a grant stands in for the chain of the record, it may give less.
        granted = self.credential.routes
        return tuple(route for route in self.record.routes if covered(route, granted))

    def relays(self, wall: float) -> bool:
        """Whether it offers to relay and may do so at this time."""
        return self.record.relay and self.credential.relay and self._privileged(wall)

    def may_admit(self, wall: float) -> bool:
        """Whether it may admit, renew and revoke at this time."""
        return self.credential.admit and self._privileged(wall)

    def _privileged(self, wall: float) -> bool:
        return self.admitted and not self.credential.expired(wall)
