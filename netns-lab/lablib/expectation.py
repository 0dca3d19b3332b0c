"""What two members must come to: the reference model of the NAT matrix.

It follows from RFC 4787's terms alone and shares nothing with meshd.  Each side is taken to know
where the other was seen by two public members, to answer from where it was asked, and to try for as
long as it takes, both at once.  Then a direct path is there as soon as one datagram gets in on
either side, for its receiver sees where it came from and its answer finds the way back.

    b gets in at a, when                                   a filters   and
    b knows a's outside: a maps ei                         ei          -
    and a lets b in                                        ad          - (a has sent to b's address)
                                                           apd         b maps ei (a has sent to it)

A NAT that answers strangers maps `apd` towards those whose first datagram was there before its own,
and that is a matter of luck: the model then says so, and holds for `either`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lablib.nats import Dependence, Firewall, Nat

if TYPE_CHECKING:
    from lablib.nats import Kind


class Expected(enum.Enum):
    """How packets between two members flow in the end."""

    DIRECT = "direct"
    RELAYED = "relayed"
    EITHER = "direct or relayed"
    RELAYED_OVER_TCP = "relayed over TCP"
    EITHER_OVER_TCP = "direct or relayed over TCP"

    def allows(self, path: str) -> bool:
        """Whether a path, `direct` or `relayed`, perhaps with `over TCP`, is what was expected."""
        over_tcp = " over TCP" if self.over_tcp else ""
        ways = self.value.removesuffix(over_tcp).split(" or ")
        return path in {f"{way}{over_tcp}" for way in ways}

    @property
    def over_tcp(self) -> bool:
        """Whether it is the last resort."""
        return self in {Expected.RELAYED_OVER_TCP, Expected.EITHER_OVER_TCP}


@dataclass(frozen=True, slots=True)
class Outside:
    """A member as those outside see it over one IP version, through all its routers."""

    mapping: Dependence
    filtering: Dependence
    fickle: bool  # answers strangers, so its mapping may turn out to be dependent


def expected(one: Kind, other: Kind) -> Expected:
    """Return what the first member of one kind and the second of another must come to."""
    if one is other and one.shared:
        return Expected.DIRECT  # on their wire
    if not (_passes_udp(one) and _passes_udp(other)):
        # A public member takes TCP itself, if it is one of those that are connected.
        public = one.router is None or other.router is None
        return Expected.EITHER_OVER_TCP if public else Expected.RELAYED_OVER_TCP
    if one is other and one.carrier is not None and not one.carrier.hairpins:
        return Expected.RELAYED  # at the carrier's own address there is no way back in
    by_version = [
        {_meet(a, b) for a in _readings(mine) for b in _readings(theirs)}
        for version in (4, 6)
        if (mine := outside(one, version)) and (theirs := outside(other, version))
    ]
    if {True} in by_version:
        return Expected.DIRECT
    return Expected.EITHER if {True, False} in by_version else Expected.RELAYED


def outside(kind: Kind, version: int) -> Outside | None:
    """Return how a kind looks from outside over an IP version, or None where it has none."""
    if kind.router is None:
        return Outside(Dependence.NOTHING, Dependence.NOTHING, fickle=False)
    if isinstance(kind.router, Firewall):
        if version == 4:
            return None
        return Outside(Dependence.NOTHING, Dependence.ADDRESS_AND_PORT, fickle=False)
    if version == 6:
        return None
    routers = [router for router in (kind.router, kind.carrier) if router is not None]
    return Outside(
        mapping=max(router.mapping for router in routers),
        filtering=max(_filtering(router) for router in routers),
        fickle=any(router.answers_strangers for router in routers),
    )


def _filtering(router: Nat) -> Dependence:
    """Return who is let in: at a forwarded port it is everybody."""
    return Dependence.NOTHING if router.forwards_port else router.filtering


def _readings(side: Outside) -> tuple[Outside, ...]:
    if not side.fickle:
        return (side,)
    return (side, replace(side, mapping=Dependence.ADDRESS_AND_PORT))


def _meet(one: Outside, other: Outside) -> bool:
    """Whether there is a direct path between two that try at once."""
    return _gets_in(one, other) or _gets_in(other, one)


def _gets_in(one: Outside, other: Outside) -> bool:
    """Whether a datagram of the other's gets in at one: the table above."""
    if one.mapping is not Dependence.NOTHING:
        return False
    if one.filtering is Dependence.ADDRESS_AND_PORT:
        return other.mapping is Dependence.NOTHING
    return True


def _passes_udp(kind: Kind) -> bool:
    return not isinstance(kind.router, Nat) or kind.router.passes_udp
