"""Calling a member that we cannot reach, so that both ping at the same moment.

    a                              c (reached by both)                 b
    │ pings b everywhere ─────────────────────────────▶ b's NAT drops them, a's is open for answers
    │ CALL (a calls b, a's record) ──▶│ CALL, as it is ───────────────▶│
    │                                                                  │ pings a everywhere
    │◀─────────────────────────────────────────────────────────────────│ and b's NAT is open
    │ next pings: through

     0xE8, then a map:  1 caller   id
                        2 called   id
                        3 record   the caller's own, verbatim: where it is to be pinged
                        4,5 seen   address and port, where the caller's NAT shows everybody another
                                   port: absent = there is a candidate for it, or no NAT

Rule 1: through the tunnel to the called one where there is one, by way of a relay; else by way of
        two members that we reach, another two each time.

Rule 2: a call is passed on once: only from the caller itself, only to the called one itself, and
        only between members.  Each member may have so many passed on.

Rule 3: what follows from a call is one round of pings to where the caller's records say that it is,
        so a member that makes calls up gains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.bootstrap.limits import Buckets
from meshd.codec import Fields, pack, pack_address
from meshd.engine.handover import Handover, mark, split
from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, NodeId
from meshd.trust.ledger import MEMBERS_MAX
from meshd.trust.record import RECORD_BYTES_MAX
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from random import Random

    from meshd.engine.engine import Engine

PORT_MAX = 0xFFFF
FORWARDERS_MAX = 2  # for each call
FORWARDS_PER_SECOND_MAX = 10  # for one member
FORWARDS_BURST_MAX = 40


@dataclass(frozen=True, slots=True)
class Call:
    """One member asks another one to ping it."""

    caller: NodeId
    called: NodeId
    record: bytes  # the caller's
    seen_at: Endpoint | None = None


def encode_call(call: Call) -> bytes:
    """Return the map of a call."""
    fields: dict[int, object] = {1: call.caller, 2: call.called, 3: call.record}
    if call.seen_at is not None:
        fields[4] = pack_address(call.seen_at.address)
        fields[5] = call.seen_at.port
    return pack(fields)


def decode_call_untrusted(data: bytes) -> Call:
    """Parse a call."""
    fields = Fields.unpack_untrusted(data, what="call")
    address = fields.address(4)
    call = Call(
        NodeId(fields.blob(1, size=KEY_BYTES)),
        NodeId(fields.blob(2, size=KEY_BYTES)),
        fields.blob(3, maximum=RECORD_BYTES_MAX),
        None if address is None else Endpoint(address, fields.uint(5, maximum=PORT_MAX)),
    )
    fields.done()
    return call


class Calling:
    """See the module docstring."""

    def __init__(self, engine: Engine, *, rng: Random) -> None:
        self._engine = engine
        self._rng = rng
        self._forwards: Buckets[NodeId] = Buckets(
            rate=FORWARDS_PER_SECOND_MAX, burst=FORWARDS_BURST_MAX, keys_max=MEMBERS_MAX
        )

    def call(self, node: NodeId) -> None:
        """Have a member ping us at once."""
        engine = self._engine
        if not engine.presence.blob:
            return
        me = engine.identity.node
        call = Call(me, node, engine.presence.blob, engine.path.seen_at)
        datagram = mark(Handover.CALL, encode_call(call))
        for way in self._ways(node):
            engine.send_overlay(datagram, way)

    def receive_handover(self, datagram: bytes, source: NodeId, now: float, wall: float) -> None:
        """Handle a call: for us, or to be passed on."""
        del wall
        try:
            call = decode_call_untrusted(split(datagram)[1])
            if call.called == self._engine.identity.node:
                self._heed(call, now)
            else:
                self._pass_on(call, datagram, source, now)
        except BadPacket as exc:
            self._engine.bad_packets[exc.reason] += 1

    def _heed(self, call: Call, now: float) -> None:
        if not self._is_member(call.caller):
            raise BadPacket("call of one that is no member")
        self._engine.path.called(call.caller, call.record, now, seen_at=call.seen_at)

    def _pass_on(self, call: Call, datagram: bytes, source: NodeId, now: float) -> None:
        if call.caller != source:
            raise BadPacket("call that was passed on before")
        if not self._is_member(call.called) or call.called == call.caller:
            raise BadPacket("call for one that is no member")
        if not self._hears(call.called):
            return  # the caller asks others as well
        if not self._forwards.take(call.caller, now):
            raise BadPacket("too many calls of one member")
        self._engine.send_overlay(datagram, call.called)

    def _ways(self, node: NodeId) -> list[NodeId]:
        if self._hears(node):
            return [node]
        members = [other for other, _ in self._engine.others() if other != node]
        self._rng.shuffle(members)
        heard = filter(self._hears, members)
        return [member for member, _ in zip(heard, range(FORWARDERS_MAX), strict=False)]

    def _hears(self, node: NodeId) -> bool:
        """Whether a tunnel is up: what is sent before would cross the other side's handshake."""
        view = self._engine.gossip.member(node)
        return view is not None and view.heard

    def _is_member(self, node: NodeId) -> bool:
        standing = self._engine.ledger.standing(node)
        return standing is not None and standing.admitted
