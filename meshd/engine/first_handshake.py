"""The first handshake with a member, when WireGuard has wasted its first initiation.

WireGuard begins a handshake when there is something to send.  What people send before a path is
known, or before the other side's kernel knows us, wastes it: it goes nowhere, and for 5 s
(REKEY_TIMEOUT) the next one is not sent, whatever the path has become.  That holds for each side by
itself.  A peer that is removed and made again begins at once.

    path ready ─▶ ping ── heard ─▶ all is well: nothing was wasted, or by one side only
                    └─ not heard for as long as a handshake takes
    seconds, besides round trips:  0    0.1    0.15   0.3   0.4   0.7  1.2  1.5
                     lower id      ping renew         renew       renew     renew
                     higher id                 ping         renew      renew

Rule 1: only a peer that never had a session is renewed: whoever does it looks at the device first.
        What waits to be sent to it is lost, so our ping comes first.

Rule 2: of two members the one with the lower id is the sooner, and what they begin is further
        apart than a round trip: each of two initiations that cross spoils the other.

Rule 3: after `RENEWALS_MAX` it is left to WireGuard, which tries again by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.engine import events
from meshd.underlay import Timer

if TYPE_CHECKING:
    from meshd.engine.engine import Engine
    from meshd.keys import NodeId, WireGuardKey

# Seconds at first, twice as long each time, and round trips of the path besides.  The one with the
# higher id has pinged by then as well (`meshd.gossip.contact`, rule 2).
LOWER_ID_PATIENCE, HIGHER_ID_PATIENCE = 0.1, 0.4
ROUND_TRIPS, HIGHER_ID_FIRST_ROUND_TRIPS = 1.5, 4.0
RENEWALS_MAX = 4
# A probe's round trip has both daemons in it, which may be busy; a handshake has only kernels.
RTT_MAX = 0.3


@dataclass(slots=True)
class _Contact:
    """A member whose path is ready, and that has not been heard by it."""

    rtt: float
    due_at: float
    renewals: int = 0


class FirstHandshake:
    """See the module docstring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._contacts: dict[NodeId, _Contact] = {}

    def contacted(self, node: NodeId, now: float, *, rtt: float) -> None:
        """Take that a member's path is ready, and that it is pinged by it."""
        if not self._heard(node):
            contact = _Contact(rtt=min(rtt, RTT_MAX), due_at=math.inf)
            contact.due_at = now + self._patience(node, contact)
            self._contacts[node] = contact

    def member_dropped(self, node: NodeId) -> None:
        """Forget a node that is no member any more."""
        self._contacts.pop(node, None)

    def handle_timer(self, now: float) -> None:
        """Begin the handshakes that should have been made by now."""
        for node, contact in list(self._contacts.items()):
            if now < contact.due_at:
                continue
            if self._heard(node) or contact.renewals == RENEWALS_MAX:
                del self._contacts[node]
                continue
            key = self._key(node)
            peer = self._engine.device.peers.get(key)
            if peer is None or peer.last_handshake_time:
                del self._contacts[node]
                continue
            contact.renewals += 1
            contact.due_at = now + self._patience(node, contact)
            self._engine.emit(events.RenewPeer(key))
            self._engine.gossip.ping(node, now)

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline and its reason."""
        if not self._contacts:
            return None
        return Timer(min(each.due_at for each in self._contacts.values()), "first handshake")

    def _key(self, node: NodeId) -> WireGuardKey:
        standing = self._engine.ledger.standing(node)
        assert standing is not None, "a member that was dropped is forgotten here"
        return standing.record.wireguard_key

    def _patience(self, node: NodeId, contact: _Contact) -> float:
        if self._engine.identity.node < node:
            return LOWER_ID_PATIENCE * (1 << contact.renewals) + ROUND_TRIPS * contact.rtt
        round_trips = ROUND_TRIPS if contact.renewals else HIGHER_ID_FIRST_ROUND_TRIPS
        return HIGHER_ID_PATIENCE * (1 << contact.renewals) + round_trips * contact.rtt

    def _heard(self, node: NodeId) -> bool:
        view = self._engine.gossip.member(node)
        return view is None or view.heard
