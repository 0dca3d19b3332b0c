"""Where our datagrams come from, as others see it, and whom to believe.

A member reports the source of our ping in its pong.  One that lies could have our record name a
third party's address, and the whole mesh would probe that.  So for our own candidates:

Rule 1: an address that is not on this host is believed when two members report it, whom we reach at
        two addresses: a NAT that maps by address shows the same to all who share one.

Rule 2: a report from one address alone is believed when nobody elsewhere could have made one: all
        other peers with an address of that family have either been asked in vain for a while, or
        say that they see us without a NAT.  It stays believed until somebody reports another one.

Rule 3: we are behind a NAT as soon as anybody says so.  Believing a lie here costs a keepalive
        every 25 s; missing the truth would cost the tunnel.

Rule 4: when our addresses change, all reports are void, but what followed from them is kept until
        the new ones are in: the record and the keepalives do not flap when a host gets one more
        address.

A NAT whose mapping depends on the destination gives each member another port, so nothing is
believed by rule 1: rightly, since such an address is of no use to anybody else, but for opening a
NAT that filters by address (`unsteady`).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshd.codec import IPAddress
    from meshd.keys import NodeId
    from meshd.wg.types import Endpoint

WITNESSES_MAX = 256  # the oldest report gives way
BELIEVED_MAX = 2  # of each address family
CORROBORATION_MIN = 2


class Report(NamedTuple):
    """Where a member sees us come from, when we reach it at an address."""

    endpoint: Endpoint
    at: IPAddress


class OwnAddresses:
    """The newest report of each member for each address family, and what follows from them."""

    def __init__(self) -> None:
        self.reflexive: tuple[Endpoint, ...] = ()
        self.behind_nat = False
        self.due_at: float | None = None  # when to `review` without having been told anything
        self._local: frozenset[IPAddress] = frozenset()
        self._reports: dict[tuple[int, NodeId], Report] = {}
        self._settles_at = -math.inf

    def local_changed(self, local: Iterable[IPAddress], *, settles_at: float) -> None:
        """Take the addresses of this host; what was believed is kept until `settles_at`."""
        self._local = frozenset(local)
        self._reports.clear()
        settling = bool(self.reflexive) or self.behind_nat
        self._settles_at = settles_at if settling else -math.inf
        self.due_at = settles_at if settling else None

    def report(self, by: NodeId, endpoint: Endpoint, at: IPAddress) -> bool:
        """Take a report of a member that we reach at an address.  Return whether it is news."""
        key = (endpoint.address.version, by)
        before = self._reports.pop(key, None)
        report = self._reports[key] = Report(endpoint, at)
        if len(self._reports) > WITNESSES_MAX:
            del self._reports[next(iter(self._reports))]
        return before != report

    def heard(self, by: NodeId, version: int) -> bool:
        """Whether a member has said anything of this address family."""
        return (version, by) in self._reports

    def forget(self, by: NodeId) -> None:
        """Drop what a member said."""
        for version in (4, 6):
            self._reports.pop((version, by), None)

    def review(self, others_heard_at: Callable[[int], float], now: float) -> bool:
        """Decide what to believe.  Return whether that has changed.

        `others_heard_at` gives the instant from which rule 2 allows a sole witness of a family.
        """
        settling = now < self._settles_at
        deadlines = [self._settles_at] if settling else []
        believed: list[Endpoint] = []
        behind_nat = False
        for version in (4, 6):
            foreign = self._foreign(version)
            behind_nat = behind_nat or bool(foreign)
            sole = _is_sole(foreign) and foreign[0].endpoint not in self.reflexive
            heard_at = others_heard_at(version) if sole else now
            if heard_at > now:
                deadlines.append(heard_at)
            else:
                believed += _believed(foreign)
        if settling:
            believed += [endpoint for endpoint in self.reflexive if endpoint not in believed]
            behind_nat = behind_nat or self.behind_nat
        self.due_at = min(deadlines, default=None)
        before = (self.reflexive, self.behind_nat)
        self.reflexive, self.behind_nat = tuple(sorted(believed, key=_order)), behind_nat
        return before != (self.reflexive, self.behind_nat)

    @property
    def unsteady(self) -> Endpoint | None:
        """The newest report of an address that is not on this host, if none is believed.

        The address of two reports, that is: what changes from one to the next is only the port.
        """
        if self.reflexive:
            return None
        for version in (4, 6):
            foreign = self._foreign(version)
            addresses = Counter(report.endpoint.address for report in foreign)
            for report in reversed(foreign):
                if addresses[report.endpoint.address] >= CORROBORATION_MIN:
                    return report.endpoint
        return None

    def _foreign(self, version: int) -> list[Report]:
        """Return the reports of addresses that are not on this host, oldest first."""
        return [
            report
            for (reported_version, _), report in self._reports.items()
            if reported_version == version and report.endpoint.address not in self._local
        ]


def _is_sole(foreign: list[Report]) -> bool:
    """Whether all that is reported is reported from one address, and one and the same."""
    return len(set(foreign)) == 1


def _believed(foreign: list[Report]) -> list[Endpoint]:
    if _is_sole(foreign):
        return [foreign[0].endpoint]
    # Of two addresses, the one reported later comes first.
    counts = Counter(report.endpoint for report in dict.fromkeys(reversed(foreign)))
    corroborated = [e for e, count in counts.items() if count >= CORROBORATION_MIN]
    return corroborated[:BELIEVED_MAX]


def _order(endpoint: Endpoint) -> tuple[int, bytes, int]:
    return endpoint.address.version, endpoint.address.packed, endpoint.port
