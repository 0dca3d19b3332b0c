"""What the path agent says: pings, pongs and hellos, sealed and queued.

Rule 1: our record goes into a ping for who lacks it, but only to an address that the peer's own
        record lists, or that has been proven: a forged source cannot draw datagrams longer than
        its own.

Rule 2: after a change of the bootstrap key, members are asked under both keys until they are heard
        under the new one, and answered under the one by which they asked.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meshd.path.nat import Contacted
from meshd.path.wire import NONCE_BYTES, TRANSACTION_BYTES, Probe, ProbeSealer, ProbeType
from meshd.underlay import Outgoing

if TYPE_CHECKING:
    from collections import Counter
    from random import Random

    from meshd.codec import IPAddress
    from meshd.keys import NodeId
    from meshd.path.candidates import Fence
    from meshd.path.pair import Pair
    from meshd.path.peer import Peer
    from meshd.wg.types import Endpoint


class Prober:
    """See the module docstring."""

    def __init__(
        self, sealer: ProbeSealer, *, fence: Fence, counts: Counter[str], rng: Random
    ) -> None:
        self.sealer = sealer
        self.record = b""  # our own
        self.sequence = 0  # of our record
        self.contacted = Contacted()
        self._fence = fence
        self._counts = counts
        self._rng = rng
        self._outbox: list[Outgoing] = []

    def datagrams_to_send(self) -> list[Outgoing]:
        """Take the queued datagrams."""
        datagrams, self._outbox = self._outbox, []
        return datagrams

    def ping(self, peer: Peer, pair: Pair, now: float, *, yours: bytes | None = None) -> None:
        """Ask a peer at one of its addresses.  `yours` is its own record, which it lacks."""
        if not pair.bound or not self._fence.allows(pair.control):
            return
        lacks_record = peer.holds < self.sequence and yours is None
        may_have_it = pair.listed or pair.proven_at > -math.inf
        ping = Probe(
            type=ProbeType.PING,
            transaction=self._rng.randbytes(TRANSACTION_BYTES),
            installed=peer.installed,
            held=peer.sequence,
            sequence=self.sequence,
            record=self.record if lacks_record and may_have_it else None,
            yours=yours,
            preshared=peer.preshared_ours,
            uses=pair is peer.selected,
        )
        pair.open_transaction(ping.transaction, now)
        if ping.record is not None:
            pair.shown_at = now
        if yours is not None:
            pair.returned_at = now
        self._counts["pings_sent"] += 1
        self.contacted.note(pair.control, now)
        self._send(ping, peer.node, pair.control, pair.local)
        if self.sealer.has_older and not peer.rekeyed:
            self._send(ping, peer.node, pair.control, pair.local, older=True)

    def pong(
        self,
        peer: Peer,
        ping: Probe,
        source: Endpoint,
        local: IPAddress | None,
        now: float,
        *,
        older: bool = False,
    ) -> None:
        """Answer a ping, from the address that it was sent to."""
        pong = Probe(
            type=ProbeType.PONG,
            transaction=ping.transaction,
            installed=peer.awaits(ping),
            held=peer.sequence,
            sequence=self.sequence,
            observed=source,
            preshared=peer.preshared_ours,
            uses=peer.selected is not None and peer.selected.control == source,
        )
        self._counts["pongs_sent"] += 1
        self.contacted.note(source, now)
        self._send(pong, peer.node, source, local, older=older)

    def hello(self, relay: NodeId, port: Endpoint, now: float, *, challenge: bytes | None) -> bytes:
        """Say hello to our port of a relay.  Return the transaction."""
        transaction = self._rng.randbytes(TRANSACTION_BYTES)
        if self._fence.allows(port):
            hello = Probe(ProbeType.HELLO, transaction, challenge=challenge)
            self._counts["hellos_sent"] += 1
            self.contacted.note(port, now)
            self._send(hello, relay, port, None)
            if self.sealer.has_older:
                self._send(hello, relay, port, None, older=True)
        return transaction

    def _send(
        self,
        probe: Probe,
        target: NodeId,
        address: Endpoint,
        source: IPAddress | None,
        *,
        older: bool = False,
    ) -> None:
        nonce = self._rng.randbytes(NONCE_BYTES)
        datagram = self.sealer.seal(probe, target, nonce, older=older)
        self._outbox.append(Outgoing(datagram, address, source))
