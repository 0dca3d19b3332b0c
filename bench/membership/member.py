"""One of our members, as a process: a real node, a real ledger, and real sockets.

    bench ──join, publish, leave, count──▶ ┌──────┐ ◀──▶ gossip      UDP, 7946
          ◀──ready, note, counts────────── │ node │ ◀──▶ probes      TCP, 7946
                                           └──────┘ ◀──▶ introductions  UDP, 7947

Rule 1: one input, then all outputs are drained, as in `meshd.daemon.driver`.

Rule 2: what meshd does on the underlay, before anything can go through a tunnel, is a round trip
        here: each side sends its record, and then both know that the path is ready.

            asks, until answered ──record──▶ the ledger takes it, the path is ready
            the path is ready    ◀──record── answers

Rule 3: there is no WireGuard, and so nobody has receive counters to look at: `EvidenceWanted` stays
        without an answer.  As with WireGuard, a datagram is taken from members only, and its source
        address says whose it is.

The process is forked, so that importing Python's modules is not part of any measurement.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from ipaddress import IPv6Address
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from membership.cluster import What
from membership.namespace import INTRODUCTION_PORT
from meshd.addresses import overlay_address
from meshd.collector import tune_collector
from meshd.errors import BadPacket
from meshd.gossip.claim import MemberState
from meshd.gossip.config import GossipConfig
from meshd.gossip.events import FactLearned, LeaveAnnounced, MemberJoined, MemberStateChanged
from meshd.gossip.node import Node
from meshd.keys import NodeId
from meshd.net.overlay import GOSSIP_PORT, Overlay
from meshd.net.stream import Streams
from meshd.trust.fact import FactKind
from meshd.trust.ledger import Ledger
from meshd.trust.record import Record, sign_record
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    import socket

    from meshd.codec import IPAddress
    from meshd.gossip.outbox import StreamProbe
    from meshd.keys import MeshId, NodeKey

INTERFACE = "lo"
ASK_TICK = 0.25
ASK_INTERVAL_MIN, ASK_INTERVAL_MAX = 1.0, 10.0
CONTROL_BYTES_MAX = 65536

_ASK, _ANSWER = b"?", b"!"
_SEEN = {
    MemberState.ALIVE: What.ALIVE,
    MemberState.SUSPECT: What.SUSPECT,
    MemberState.DEAD: What.DEAD,
    MemberState.LEFT: What.LEFT,
}


@dataclass(frozen=True, slots=True)
class Seat:
    """Who a member is."""

    name: str
    key: NodeKey
    mesh: MeshId
    record: bytes

    @property
    def address(self) -> IPv6Address:
        """Where it is."""
        return overlay_address(self.mesh, self.key.id)


class Member:
    """See the module docstring."""

    def __init__(self, seat: Seat, control: socket.socket) -> None:
        self._seat = seat
        self._say_to = control
        self._control = trio.socket.from_stdlib_socket(control)
        self._ledger = Ledger(seat.mesh)
        self._ledger.merge_untrusted(FactKind.RECORD, seat.record, time.time())
        self._record = seat.record
        self._node = Node(
            seat.key,
            seat.mesh,
            self._ledger,
            config=GossipConfig(),
            rng=Random(seat.key.id),
            now=trio.current_time(),
            incarnation=1,
        )
        self._gossip = Overlay(seat.address, INTERFACE)
        self._introductions = Overlay(seat.address, INTERFACE, port=INTRODUCTION_PORT)
        self._streams = Streams(seat.address, INTERFACE)
        self._members: dict[IPAddress, NodeId] = {}
        self._endpoints: dict[NodeId, Endpoint] = {}
        self._addresses: dict[NodeId, IPv6Address] = {}
        self._introduced: set[IPAddress] = set()
        self._asked: dict[IPAddress, float] = {}  # when
        self._to_ask: dict[IPv6Address, tuple[float, float]] = {}  # when, and the pause after that
        self._sleep = trio.CancelScope()
        self._scope = trio.CancelScope()
        self._counts: Counter[str] = Counter()
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Run until we have left."""
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._receive_gossip)
                self._nursery.start_soon(self._receive_introductions)
                self._nursery.start_soon(self._run_timers)
                self._nursery.start_soon(self._obey)
                self._nursery.start_soon(self._ask_again)
                self._nursery.start_soon(self._serve_streams)
                self._drain()
                self._say("ready")

    # Inputs

    async def _receive_gossip(self) -> None:
        while True:
            for datagram in await self._gossip.receive_batch():
                source = self._members.get(datagram.source.address)
                if source is None:
                    self._counts["strangers"] += 1
                    continue
                self._take_datagram(datagram.payload, source)
            for address in self._gossip.take_unreachable():
                if address in self._members:
                    self._node.unreachable(self._members[address], trio.current_time())
                    self._drain()

    def _take_datagram(self, payload: bytes, source: NodeId) -> None:
        self._node.receive_datagram(payload, source, trio.current_time(), time.time())
        self._drain()

    async def _run_timers(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._node.get_timer().at) as self._sleep:
                await trio.sleep_forever()
            self._node.handle_timer(trio.current_time())
            self._drain()

    async def _serve_streams(self) -> None:
        async def answer(frame: bytes, address: IPv6Address) -> bytes | None:
            now = trio.current_time()
            answer = self._node.answer_stream(frame, self._members[address], now, time.time())
            self._drain()
            return answer

        await self._streams.serve(answer, is_member=lambda address: address in self._members)

    async def _probe(self, probe: StreamProbe) -> None:
        address = self._addresses[probe.target]
        answer = await self._streams.exchange(probe.datagram, address, within=probe.timeout)
        if answer is not None:
            self._take_datagram(answer, probe.target)

    async def _obey(self) -> None:
        while True:
            command, *arguments = json.loads(await self._control.recv(CONTROL_BYTES_MAX))
            match command:
                case "join":
                    self._ask_in(IPv6Address(arguments[0]), 0.0)
                case "publish":
                    self._publish()
                case "leave":
                    self._node.leave(trio.current_time())
                    self._drain()
                case "count":
                    self._say("counts", self._count())
                case _:
                    raise ValueError(command)

    # Outputs

    def _drain(self) -> None:
        for payload, target in self._node.datagrams_to_send():
            self._gossip.send(payload, self._endpoints[target])
        for probe in self._node.streams_to_open():
            self._nursery.start_soon(self._probe, probe)
        while (event := self._node.next_event()) is not None:
            self._counts[type(event).__name__] += 1
            self._take_event(event)
        at = self._node.get_timer().at
        if at != self._sleep.deadline:
            self._sleep.deadline = at

    def _take_event(self, event: object) -> None:
        match event:
            case MemberJoined(node):
                address = overlay_address(self._seat.mesh, node)
                self._members[address] = node
                self._addresses[node] = address
                self._endpoints[node] = Endpoint(address, GOSSIP_PORT)
                # Of two that learn of each other one asks: the one that is to be pinged.
                late = ASK_INTERVAL_MIN if node > self._seat.key.id else 0.0
                self._ask_in(address, late)
            case MemberStateChanged(node=node, after=after):
                self._note(_SEEN[after], node)
            case FactLearned(fact):
                if fact.kind is FactKind.RECORD and fact.version > 1:
                    self._note(What.NEWS, NodeId(fact.key), fact.version)
            case LeaveAnnounced():
                self._scope.cancel()
            case _:
                pass  # it is counted

    def _note(self, what: What, node: NodeId, version: int = 0) -> None:
        self._say("note", time.monotonic(), what, node.hex(), version)

    def _say(self, *words: Any) -> None:  # noqa: ANN401 - whatever JSON takes
        self._say_to.send(json.dumps(words).encode())

    def _count(self) -> dict[str, Any]:
        return {
            "node": asdict(self._node.statistics()),
            "streams": asdict(self._streams.statistics()),
            "events": dict(self._counts),
        }

    # Records

    def _publish(self) -> None:
        known = self._ledger.standing(self._seat.key.id)
        assert known is not None
        old = known.record
        record = Record(
            old.node, old.sequence + 1, old.wireguard_key, version=old.version, chain=old.chain
        )
        self._record = sign_record(record, self._seat.key, self._seat.mesh)
        self._learn(self._record)

    def _learn(self, blob: bytes) -> NodeId:
        merge = self._ledger.merge_untrusted(FactKind.RECORD, blob, time.time())
        assert merge.fact is not None
        if merge.changed:
            self._node.fact_added(merge.fact, trio.current_time())
            self._drain()
        return NodeId(merge.fact.key)

    # Introductions

    def _ask_in(self, address: IPv6Address, seconds: float) -> None:
        self._to_ask[address] = (trio.current_time() + seconds, ASK_INTERVAL_MIN)
        if not seconds:
            self._ask(address)

    def _ask(self, address: IPv6Address) -> None:
        now = trio.current_time()
        _, pause = self._to_ask[address]
        self._to_ask[address] = (now + pause, min(2.0 * pause, ASK_INTERVAL_MAX))
        self._asked[address] = now
        self._introductions.send(_ASK + self._record, Endpoint(address, INTRODUCTION_PORT))

    async def _ask_again(self) -> None:
        while True:
            await trio.sleep(ASK_TICK)
            now = trio.current_time()
            for address in [address for address, (at, _) in self._to_ask.items() if at <= now]:
                self._ask(address)

    async def _receive_introductions(self) -> None:
        while True:
            for datagram in await self._introductions.receive_batch():
                try:
                    self._introduce(datagram.payload, datagram.source)
                except BadPacket:
                    self._counts["bad introductions"] += 1

    def _introduce(self, payload: bytes, source: Endpoint) -> None:
        kind, blob = payload[:1], payload[1:]
        node = self._learn(blob)
        if kind == _ASK:
            self._introductions.send(_ANSWER + self._record, source)
        if source.address not in self._introduced:
            self._introduced.add(source.address)
            self._to_ask.pop(source.address, None)
            now = trio.current_time()
            round_trip = now - self._asked.get(source.address, now)
            self._node.contact(node, now, rtt=round_trip)
            self._drain()


def run_member(seat: Seat, control: socket.socket) -> None:
    """Be a member, in a process of its own, until it has left."""
    tune_collector()

    async def main() -> None:
        await Member(seat, control).run()

    trio.run(main)
