"""What a relay has in the kernel, kept as it should be: rules, flows, forwarding.

Level-triggered: each call brings the kernel to what is given.  It looks at what is there when it is
told to, after an error, and the first time, when that is what the run before has left: flows that
are still wanted are not touched then, and carry on through it all.

Calls block, for up to some 0.2 s with 2,000 flows: use a thread.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from meshd.net import forwarding, relay_nft
from meshd.net.forwarding import Note
from meshd.net.relay_nft import Observed, RelayTable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.relay.maps import Flow
    from meshd.values import PortRange


class RelayKernel:
    """See the module docstring.  `note` is what has been switched on, as it is on disk."""

    def __init__(self, interface: str, ports: PortRange, mark: int, note: Note) -> None:
        self.note = note
        self._interface = interface
        self._ports_max = ports.last - ports.first + 1
        self.mark = mark
        self._lock = threading.Lock()
        self._ended = False
        self._fresh = False  # the note has grown, and was not obeyed yet
        self._table: RelayTable | None = None
        self._held: frozenset[Flow] | None = None  # None: look

    def plan(self, flows: Iterable[Flow], interfaces: Iterable[str]) -> Note:
        """Return what has to be noted before these flows can be forwarded.  Does not block."""
        versions = {flow.source.address.version for flow in flows}
        return forwarding.plan(self.note, interfaces, ipv4=4 in versions, ipv6=6 in versions)

    def take_note(self, note: Note) -> None:
        """Go by this note from now on: it is on disk."""
        self._fresh = self._fresh or note != self.note
        self.note = note

    def reconcile(self, flows: frozenset[Flow], *, look: bool) -> Observed | None:
        """Have exactly these flows forwarded.  Return what was there, if it was looked at.

        Raise DeviceError; then the next call looks.
        """
        with self._lock:
            if self._ended:
                return None
            fence = forwarding.fence(self.note)
            table = RelayTable(self._interface, self._ports_max, self.mark, fence)
            held, self._held = self._held, None
            observed = None
            if look or held is None or table != self._table:
                self._table = table
                observed = relay_nft.observe(table)
                held = frozenset(observed.flows)
                if not observed.intact:
                    # The fence first; and until the kernel forwards, nothing is taken from the
                    # sockets, which carry it meanwhile.
                    held = frozenset() if self._fresh else flows
                    relay_nft.apply(table, held)
            forwarding.switch_on(self.note)
            self._fresh = False
            relay_nft.change(table, held, flows)
            self._held = flows
            return observed

    def remove(self, *, end: bool = False) -> None:
        """Take all of it away, and put back what was switched on.  Raise DeviceError.

        Nothing comes back once it has to `end`.
        """
        with self._lock:
            self._ended = end
            self._held = self._table = None
            forwarding.put_back(self.note)
            relay_nft.remove(self._interface)
            self.note = Note()
