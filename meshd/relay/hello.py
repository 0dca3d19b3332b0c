"""Hellos at a relay's ports: who is where, proven, and answered.

    member                                   relay, at the member's port
      │ hello                                  │
      │───────────────────────────────────────▶│ sealed by the member the port is allotted to
      │ pong: observed, challenge, not bound   │
      │◀───────────────────────────────────────│ to where the hello came from
      │ hello: challenge                       │
      │───────────────────────────────────────▶│ from there: bound, and forwarded from here on
      │ pong: observed, challenge, bound       │
      │◀───────────────────────────────────────│
      │            … every 15 s …              │ bound already: nothing changes

Rule 1: only the member that has the port is heard there.  All else is dropped, counted, and not
        answered.

Rule 2: an address is bound only by a hello that brings back the challenge sent to that address.
        Whoever repeats a hello from elsewhere, at whatever time, cannot open the answer, and so
        moves nothing; the replay guard is for cost.

Rule 3: a challenge is a keyed hash of whom, where to and where from: there is nothing to remember,
        so hellos without end fill no table.  A new run has a new key, and what is bound stays so.

Rule 4: no answer is longer than its question, and each member gets a bounded number.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from meshd.bootstrap.limits import Buckets
from meshd.codec import pack_address
from meshd.errors import BadPacket
from meshd.keys import fingerprint
from meshd.path.candidates import usable
from meshd.path.wire import CHALLENGE_BYTES, NONCE_BYTES, Probe, ProbeSealer, ProbeType
from meshd.relay.allocations import Binding
from meshd.underlay import DatagramType, ReplayGuard, datagram_type_untrusted

if TYPE_CHECKING:
    from random import Random

    from meshd.codec import IPAddress, IPNetwork
    from meshd.keys import BootstrapKey, MeshId, NodeId, NodeKey
    from meshd.relay.allocations import Allocations, Side
    from meshd.wg.types import Endpoint

CHALLENGE_LIFETIME = 120.0  # seconds; each is good for one to two of these
SECRET_BYTES = 32
REPLAYS_REMEMBERED_MAX = 16_384
# A member says hello to each of its ports every 15 s, and to all of them at once when it moves.
HELLOS_PER_SECOND_MAX = 64
HELLOS_BURST_MAX = 1024
GREETERS_MAX = 4096


class RelayOutgoing(NamedTuple):
    """A datagram to be sent from a port that this node relays by."""

    datagram: bytes
    target: Endpoint
    port: int
    source: IPAddress  # the local address to send it from


@dataclass(frozen=True, slots=True)
class HelloStatistics:
    """Counts since the start."""

    answered: int = 0
    bound: int = 0  # addresses, new or moved
    replayed: int = 0
    limited: int = 0
    strangers: int = 0  # at a port that is not theirs, or nobody's


class Greeter:
    """See the module docstring.  `rng` must be unpredictable outside tests."""

    def __init__(
        self,
        key: NodeKey,
        mesh: MeshId,
        bootstrap_key: BootstrapKey,
        older: BootstrapKey | None,
        *,
        allocations: Allocations,
        rng: Random,
    ) -> None:
        self._sealer = ProbeSealer(key, mesh, bootstrap_key, older)
        self._allocations = allocations
        self._rng = rng
        self._secret = rng.randbytes(SECRET_BYTES)
        self._replays = ReplayGuard(REPLAYS_REMEMBERED_MAX)
        self._limits: Buckets[NodeId] = Buckets(
            rate=HELLOS_PER_SECOND_MAX, burst=HELLOS_BURST_MAX, keys_max=GREETERS_MAX
        )
        self._outbox: list[RelayOutgoing] = []
        self._counts: Counter[str] = Counter()

    def rekey(self, bootstrap_key: BootstrapKey, older: BootstrapKey | None) -> None:
        """Take the present bootstrap key, and the one before."""
        self._sealer.rekey(bootstrap_key, older)

    def receive_untrusted(
        self,
        datagram: bytes,
        source: Endpoint,
        port: int,
        local: IPAddress,
        excluded: tuple[IPNetwork, ...],
        now: float,
    ) -> bool:
        """Handle what came to a port, from `source` to `local`.  Return whether it was a hello.

        `excluded` are the networks that no address may be bound in: the mesh's own.
        """
        side = self._allocations.at_port(port)
        if side is None or datagram_type_untrusted(datagram) is not DatagramType.RELAY_HELLO:
            return self._drop("strangers")
        sealed = self._sealer.open_sender_untrusted(datagram)
        if sealed.sender != side.member:
            return self._drop("strangers")
        mark = sealed.sender + sealed.nonce
        if mark in self._replays:
            return self._drop("replayed")
        if not self._limits.take(side.member, now):
            return self._drop("limited")
        hello = self._sealer.open_probe_untrusted(sealed)
        self._replays.add(mark)
        if hello.type is not ProbeType.HELLO:
            raise BadPacket("relay hello of another type")
        # Those that come over TCP are handed to us by this very host.
        if not (source.address.is_loopback or usable(source, excluded)):
            raise BadPacket("relay hello from an impossible address")
        bound = self._bind(side, hello, Binding(source, local), now)
        self._answer(side, hello, Binding(source, local), now, bound=bound, older=sealed.older)
        return True

    def datagrams_to_send(self) -> list[RelayOutgoing]:
        """Take the queued datagrams."""
        datagrams, self._outbox = self._outbox, []
        return datagrams

    def statistics(self) -> HelloStatistics:
        """Return counts for people."""
        return HelloStatistics(**self._counts)

    def _drop(self, why: str) -> bool:
        self._counts[why] += 1
        return False

    def _bind(self, side: Side, hello: Probe, binding: Binding, now: float) -> bool:
        """Return whether the port is bound to where a hello came from, after that."""
        if side.binding == binding:
            return True
        if hello.challenge not in {
            self._challenge(side, binding, now - age) for age in (0.0, CHALLENGE_LIFETIME)
        }:
            return False
        self._counts["bound"] += 1
        self._allocations.bind(side, binding, now)
        return True

    def _answer(
        self, side: Side, hello: Probe, binding: Binding, now: float, *, bound: bool, older: bool
    ) -> None:
        pong = Probe(
            type=ProbeType.HELLO_PONG,
            transaction=hello.transaction,
            observed=binding.endpoint,
            challenge=self._challenge(side, binding, now),
            bound=bound,
        )
        datagram = self._sealer.seal(
            pong, side.member, self._rng.randbytes(NONCE_BYTES), older=older
        )
        self._counts["answered"] += 1
        self._outbox.append(RelayOutgoing(datagram, binding.endpoint, side.port, binding.local))

    def _challenge(self, side: Side, binding: Binding, at: float) -> bytes:
        return fingerprint(
            self._secret,
            side.member,
            _number(side.port),
            pack_address(binding.endpoint.address),
            _number(binding.endpoint.port),
            pack_address(binding.local),
            _number(int(at // CHALLENGE_LIFETIME)),
            size=CHALLENGE_BYTES,
            person=b"meshd.hello",
        )


def _number(value: int) -> bytes:
    return value.to_bytes(8, "big", signed=True)
