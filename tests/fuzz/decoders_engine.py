"""A whole engine, to which members and outsiders send whatever they like.

What each part decodes has a target of its own; these find what happens behind the decoders, and
reach what comes to be handed over later without anybody's doing.
"""

import functools
from random import Random

from engine.engine_world import World
from fuzz.people import datagrams
from fuzz.registry import Target, target
from meshd.codec import pack
from meshd.engine.handover import Handover
from meshd.errors import BadPacket
from meshd.keys import SIGNATURE_BYTES, NodeKey
from meshd.trust.node_succession import sign_node_succession
from meshd.underlay import DatagramType, header

_REASONS_MAX = 256  # of all decoders behind one door
_STEP = 0.05  # seconds between two inputs: no limit is what decides


class _Engine:
    """One engine of a mesh of three, and the clock that goes on with each input."""

    def __init__(self):
        self._world = World(seed=7)
        member, other, _ = self._world.mesh_of(3)
        self.heard = self._captured(other)
        self.engine = member.engine
        self.other = other.engine.identity.ipv6
        self.endpoint = self.engine.path.endpoint(other.node)
        self.now, self.wall = self._world.now, self._world.wall
        self.rng = Random(7)

    def _captured(self, sender):
        """Return what a member's daemon has sent on the underlay after it was cut off."""
        underlay = self._world.underlay
        underlay.capture = []
        sender.local_changed()
        sender.unplug()
        sender.plug()
        self._world.run_for(10.0)
        capture, underlay.capture = underlay.capture, None
        sent = (each.payload for each in capture if each.sender == sender.name)
        return list(dict.fromkeys(payload for payload in sent if isinstance(payload, bytes)))[-20:]

    def take(self, give):
        """Give one input and drain; what was refused is a `BadPacket`."""
        self.now += _STEP
        self.wall += _STEP
        refused = self.engine.bad_packets.copy()
        give(self.now, self.wall)
        events = []
        while (event := self.engine.next_event()) is not None:
            events.append(event)
        sent = self.engine.underlay_datagrams(), self.engine.overlay_datagrams()
        self.engine.streams_to_open()
        for reason in self.engine.bad_packets - refused:
            raise BadPacket(reason)
        return events, sent


@functools.cache
def _shared():
    return _Engine()


@target("engine-underlay")
def _engine_underlay():
    under = _shared()

    def decode(datagram):
        return under.take(
            lambda now, wall: under.engine.underlay_datagram(
                datagram, under.endpoint, None, now, wall
            )
        )

    seeds = [*under.heard, *(header(kind) + bytes(1195) for kind in DatagramType)]
    # Half of the inputs are what was really sent, so that there is more than refusals.
    return Target(decode, seeds, sign=lambda _: under.rng.choice(under.heard))


@target("engine-overlay")
def _engine_overlay():
    under = _shared()
    # Whatever a part expects: numbers from 1 on, of the sizes that are usual.
    bodies = [
        {1: bytes(8), 2: bytes(32), 3: bytes(700)},
        {1: bytes(8), 2: (bytes(200),)},
        {1: bytes(8), 2: bytes(300)},
        {1: bytes(8), 3: 1, 4: "no"},
        {1: 1, 2: bytes(32), 3: bytes(1184)},
        {1: bytes(32)},
    ]

    def decode(datagram):
        return under.take(
            lambda now, wall: under.engine.overlay_datagram(datagram, under.other, now, wall)
        )

    handed = [bytes([mark]) + pack(body) for mark in Handover for body in bodies]
    return Target(decode, [*handed, *datagrams()], head=1, reasons_max=_REASONS_MAX)


@target("engine-told-of-its-succession")
def _engine_succession():
    under = _Engine()  # of its own: what believes it falls silent
    identity = under.engine.identity

    def decode(blob):
        return under.take(lambda now, wall: under.engine.rekeyed.take_untrusted(blob))

    successor = NodeKey(b"b" * 32)
    ours = sign_node_succession(identity.node_key, successor, identity.mesh, dated=1).blob
    others = sign_node_succession(NodeKey(b"a" * 32), successor, identity.mesh, dated=1).blob
    return Target(decode, [others, ours], SIGNATURE_BYTES, sign=lambda _: ours)


@target("engine-stream")
def _engine_stream():
    under = _shared()

    def decode(frame):
        return under.take(
            lambda now, wall: under.engine.overlay_stream(frame, under.other, now, wall)
        )

    return Target(decode, datagrams(), head=2)
