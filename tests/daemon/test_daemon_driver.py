"""What goes between the engine and the sockets besides datagrams.

The sockets are real, on a loopback of their own; the engine is one that does as it is told.
"""

import contextlib
import math
import socket
import time
from collections import Counter
from ipaddress import IPv6Address

import pytest
import trio

from meshd.daemon.driver import REFUSED_DUTY_MAX, Driver
from meshd.daemon.sleep import SleepWatch
from meshd.engine.events import OverlayStream
from meshd.net.overlay import Overlay
from meshd.net.stream import Streams
from meshd.net.underlay import Underlay
from meshd.underlay import Timer
from meshd.wg.types import DeviceStatus
from net.namespaces import namespaces

pytestmark = pytest.mark.netns

A, B = IPv6Address("fd12:3456:789a::a"), IPv6Address("fd12:3456:789a::b")
NEVER = 60.0


class Engine:
    """Puts out what `say` is given, and keeps what it is told."""

    def __init__(self):
        self.plan_revision = 0
        self.heard = []  # inputs: name, then arguments without the clocks
        self.answer = b"ack"
        self.overlay = []
        self.streams = []
        self.looks = 0  # still wanted
        self._changed = trio.Event()

    # Inputs

    def __getattr__(self, name):
        def take(*arguments, **_clocks):
            self.heard.append((name, *(a for a in arguments if not isinstance(a, float))))
            self._changed.set()

        return take

    def overlay_stream(self, frame, source, now, wall):
        self.heard.append(("overlay_stream", frame, source))
        self._changed.set()
        return self.answer

    # Outputs

    def underlay_datagrams(self):
        return []

    def relay_datagrams(self):
        return []

    def overlay_datagrams(self):
        datagrams, self.overlay = self.overlay, []
        return datagrams

    def streams_to_open(self):
        streams, self.streams = self.streams, []
        return streams

    def wants_look(self, now):
        self.looks -= 1
        return self.looks >= 0

    def next_event(self):
        return None

    def get_timer(self):
        return Timer(math.inf, "never")

    def is_member_address(self, address):
        return address in (A, B)

    # For tests

    async def told(self, *expected):
        with trio.fail_after(5):
            while expected not in self.heard:
                self._changed = trio.Event()
                await self._changed.wait()


class Node:
    """A driver with its sockets and its engine."""

    def __init__(self, address, opened, device=None):
        self.engine = Engine()
        self.streams = opened.enter_context(Streams(address, "lo"))
        self.looked = Counter()
        self.asleep = 1000.0  # seconds since the machine was booted
        self.resumed = []
        self._device = device
        self.driver = Driver(
            self.engine,
            opened.enter_context(Underlay()),
            opened.enter_context(Overlay(address, "lo")),
            self.streams,
            on_event=lambda _: None,
            on_plan=lambda: None,
            look=self._look,
            send_relayed=lambda _: None,
            on_resumed=self.resumed.append,
            sleep=SleepWatch(lambda: self.asleep),
        )

    def _look(self):
        self.looked["times"] += 1
        return self._device

    async def say(self, **outputs):
        """Have the engine put something out after its next input."""

        def speak(_now, _wall):
            for name, value in outputs.items():
                setattr(self.engine, name, value)

        await self.driver.submit(speak)


def on_loopback(main):
    """Run an async function on a loopback of its own, that has both addresses."""
    with namespaces(1) as (here,):
        here.run(f"ip addr add {A}/128 dev lo nodad; ip addr add {B}/128 dev lo nodad")
        here.call(trio.run, main)


@contextlib.asynccontextmanager
async def running(*nodes):
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(node.driver.run)
        yield
        nursery.cancel_scope.cancel()


def test_a_probe_over_tcp_is_answered_by_the_other_engine():
    async def main():
        with contextlib.ExitStack() as opened:
            a, b = Node(A, opened), Node(B, opened)
            async with running(a, b):
                await a.say(streams=[OverlayStream(b"ping", B, NEVER)])

                await b.engine.told("overlay_stream", b"ping", A)
                await a.engine.told("overlay_datagram", b"ack", B)

    on_loopback(main)


def test_a_probe_that_is_not_answered_tells_the_engine_nothing():
    async def main():
        with contextlib.ExitStack() as opened:
            a, b = Node(A, opened), Node(B, opened)
            b.engine.answer = None
            async with running(a, b):
                await a.say(streams=[OverlayStream(b"rubbish", B, NEVER)])
                await b.engine.told("overlay_stream", b"rubbish", A)
                b.engine.answer = b"ack"
                await a.say(streams=[OverlayStream(b"ping", B, NEVER)])
                await a.engine.told("overlay_datagram", b"ack", B)

            assert [name for name, *_ in a.engine.heard].count("overlay_datagram") == 1
            assert sum(a.streams.statistics().failed.values()) == 1

    on_loopback(main)


def test_a_sleep_is_told_to_the_engine_before_anything_else():
    async def main():
        with contextlib.ExitStack() as opened:
            a = Node(A, opened)
            async with running(a):
                await a.say()
                assert a.engine.heard == []

                a.asleep += 3600.0
                await a.driver.submit(a.engine.local_changed)

                assert [heard[0] for heard in a.engine.heard] == ["resumed", "local_changed"]
                assert a.resumed == [3600.0]

    on_loopback(main)


def test_stopping_ends_what_is_under_way():
    async def main():
        with contextlib.ExitStack() as opened:
            a = Node(A, opened)
            silent = opened.enter_context(Streams(B, "lo"))  # accepts, and never answers
            async with running(a):
                await a.say(streams=[OverlayStream(b"ping", B, NEVER)])
                with trio.fail_after(5):
                    while not a.streams._exchanging:
                        await trio.lowlevel.checkpoint()

                a.driver.stop()
                a.engine.streams = [OverlayStream(b"late", B, NEVER)]
                a.driver.drain()

                with trio.fail_after(5):
                    while a.streams._exchanging:
                        await trio.lowlevel.checkpoint()
            assert a.engine.streams  # nobody took it
            assert silent.statistics().answered == 0

    on_loopback(main)


def test_a_drain_after_the_end_opens_no_stream():
    async def main():
        with contextlib.ExitStack() as opened:
            a = Node(A, opened)
            async with running(a):
                await a.say(streams=[])
            a.engine.streams = [OverlayStream(b"late", B, NEVER)]

            a.driver.drain()

            assert a.engine.streams

    on_loopback(main)


def test_the_word_of_a_kernel_that_nobody_listens_reaches_the_engine():
    async def main():
        with contextlib.ExitStack() as opened:
            a = Node(A, opened)
            async with running(a):
                await a.say(overlay=[(b"ping", B)])

                await a.engine.told("overlay_unreachable", B)

    on_loopback(main)


@pytest.mark.parametrize("device", [DeviceStatus(None, 0, 0), None])
def test_the_engine_gets_the_look_it_wants_and_no_other(device):
    async def main():
        with contextlib.ExitStack() as opened:
            a = Node(A, opened, device)
            async with running(a):
                await a.say(overlay=[])
                assert a.looked["times"] == 0
                await a.say(looks=1)

                await a.engine.told("counters_observed", device)
                assert a.looked["times"] == 1

    on_loopback(main)


class Swamped(Engine):
    """Refuses what comes from the underlay, and takes its time over it."""

    EACH = 0.0005  # seconds

    def __init__(self):
        super().__init__()
        self.refused = 0

    def underlay_datagram(self, datagram, source, local, now, wall):
        until = time.perf_counter() + self.EACH
        while time.perf_counter() < until:
            pass
        self.refused += 1
        return False


def test_what_is_refused_gets_half_a_core_and_everything_else_its_turn():
    flood, seconds = 4000, 1.0

    async def main():
        with contextlib.ExitStack() as opened:
            a, b = Node(A, opened), Node(B, opened)
            a.engine = a.driver._engine = Swamped()
            sender = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            port = a.driver._underlay.port
            async with running(a, b):
                for _ in range(flood):
                    sender.sendto(b"mesh\x01 rubbish", ("127.0.0.1", port))
                slowest = 0.0
                began_at = trio.current_time()
                while (asked_at := trio.current_time()) < began_at + seconds:
                    await b.say(overlay=[(b"ping", A)])
                    await a.driver.submit(lambda _now, _wall: None)
                    slowest = max(slowest, trio.current_time() - asked_at)
                elapsed = trio.current_time() - began_at
                refused = a.engine.refused

        assert 0 < refused < flood, "it was swamped throughout"
        assert refused * Swamped.EACH <= elapsed * (REFUSED_DUTY_MAX + 0.05)
        assert slowest < 0.25, "somebody asked waited for no more than a few turns"
        assert ("overlay_datagram", b"ping", B) in a.engine.heard

    on_loopback(main)
