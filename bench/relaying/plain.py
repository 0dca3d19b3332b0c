"""Plain UDP datagrams of WireGuard's size, so that no cryptography hides what a relay costs.

    wire        a ──────────────── b      no machine in between: what both ends cost
    router      a ── forwards ──── b      the same hops without a relay
    kernel      a ── nft maps ──── b
    userspace   a ── forwarder ─── b

A window of datagrams is under way at any moment, so that none is lost and the slowest part sets the
pace.  CPU is that of both ends and of whatever is in between, of which the relay's is what is more
than on the wire: see `processes.cpu_of`.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from meshd.net import forwarding, relay_nft
from meshd.net.forwarder import Forwarder
from meshd.net.forwarding import Note
from meshd.net.relay_nft import RelayTable
from net.namespaces import join, namespaces
from net.relays import MARK, PORTS, PORTS_MAX, RELAY_TO_A, A, B, end, machines, pair, pair_of
from relaying.processes import cpu_of, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.relay.maps import Flow
    from net.namespaces import Namespace

MODES = ("wire", "router", "kernel", "userspace")
DATAGRAM_BYTES = 1400
BATCH = 64
WINDOW = 512
BUFFER_BYTES = 8 << 20
LOSS_TIMEOUT = 5.0
VERSION = 4
WIREGUARD = 51820

SO_RCVBUFFORCE = 33  # asm-generic/socket.h
MSG_WAITFORONE = 0x10000  # linux/socket.h
_libc = ctypes.CDLL(None, use_errno=True)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):  # struct msghdr, man 2 recvmsg
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_IoVec)),
        ("vectors_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):  # struct mmsghdr, man 2 sendmmsg
    _fields_ = (("header", _Header), ("length", ctypes.c_uint))


@dataclass(frozen=True, slots=True)
class Run:
    """One run in one mode."""

    mode: str
    allocations: int
    per_second: float
    cpu_per_gb: float
    forwarder_cpu_per_gb: float  # its part in that, where there is one


def measure(mode: str, datagrams: int, *, allocations: int = 1) -> Run:
    """Send so many datagrams, and return how fast and how dear that was."""
    with _set_up(mode, allocations) as (a, b, target, forwarder):
        acknowledged = os.eventfd(0)
        with (
            a.call(_connected, A[VERSION], target) as sender,
            b.call(_bound, B[VERSION]) as receiver,
            running(b, partial(_receive, receiver.fileno(), acknowledged)) as other_end,
        ):
            _send(sender.fileno(), acknowledged, datagrams // 10)
            everybody = (os.getpid(), other_end, *forwarder)
            began_at, all_, own = time.monotonic(), cpu_of(*everybody), cpu_of(*forwarder)
            _send(sender.fileno(), acknowledged, datagrams)
            seconds = time.monotonic() - began_at
            all_, own = cpu_of(*everybody) - all_, cpu_of(*forwarder) - own
        os.close(acknowledged)
    gigabytes = datagrams * DATAGRAM_BYTES / 1e9
    return Run(
        mode,
        allocations,
        datagrams / seconds,
        all_ / gigabytes,
        own / gigabytes if forwarder else 0.0,
    )


@contextmanager
def _set_up(
    mode: str, allocations: int
) -> Iterator[tuple[Namespace, Namespace, tuple[str, int], tuple[int, ...]]]:
    """Yield both ends, where to send to, and the forwarder's process, if there is one."""
    if mode == "wire":
        with _wire() as (a, b):
            yield a, b, (B[VERSION], WIREGUARD), ()
        return
    with machines() as (a, relay, b), ExitStack() as opened:
        forwarders: tuple[int, ...] = ()
        target = RELAY_TO_A[VERSION], PORTS.first
        flows = pair_of(VERSION) | others(allocations - 1)
        if mode == "userspace":
            forwarder = Forwarder(lambda *_: None)
            for port in {flow.arrives_at.port for flow in flows}:
                assert relay.call(forwarder.open, port)
            assert not relay.call(forwarder.set_flows, flows)
            run = partial(trio.run, forwarder.run)
            forwarders = (opened.enter_context(running(relay, run)),)
        elif mode == "kernel":
            note = relay.call(forwarding.plan, Note(), ("one", "two"), ipv4=True, ipv6=False)
            table = RelayTable("mesh0", PORTS_MAX, MARK, relay.call(forwarding.fence, note))
            relay.call(relay_nft.apply, table, flows)
            relay.call(forwarding.switch_on, note)
        else:
            relay.run("sysctl -qw net.ipv4.ip_forward=1")
            target = B[VERSION], WIREGUARD
        yield a, b, target, forwarders


@contextmanager
def _wire() -> Iterator[tuple[Namespace, Namespace]]:
    with namespaces(2) as (a, b):
        join(a, "wire", b, "wire")
        a.run(f"ip addr add {A[VERSION]} peer {B[VERSION]} dev wire")
        b.run(f"ip addr add {B[VERSION]} peer {A[VERSION]} dev wire")
        yield a, b


def others(count: int) -> frozenset[Flow]:
    """Return the flows of so many pairs beside the one that is measured."""
    here = RELAY_TO_A[VERSION]
    return frozenset().union(
        *(
            pair(
                end(f"10.8.{index >> 8}.{index & 255}", WIREGUARD),
                end(here, PORTS.first + 2 * index + 2),
                end(here, PORTS.first + 2 * index + 3),
                end(f"10.9.{index >> 8}.{index & 255}", WIREGUARD),
            )
            for index in range(count)
        )
    )


def _connected(address: str, target: tuple[str, int]) -> socket.socket:
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind((address, WIREGUARD))
    sender.connect(target)
    return sender


def _bound(address: str) -> socket.socket:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    receiver.bind((address, WIREGUARD))
    return receiver


def _messages(count: int) -> ctypes.Array[_Message]:
    """Return messages that all have one buffer: nobody looks into it."""
    buffer = ctypes.create_string_buffer(DATAGRAM_BYTES)
    vector = _IoVec(ctypes.cast(buffer, ctypes.c_void_p), DATAGRAM_BYTES)
    messages = (_Message * count)()
    for message in messages:
        message.header.vectors = ctypes.pointer(vector)
        message.header.vectors_length = 1
    messages.kept = (buffer, vector)
    return messages


def _send(descriptor: int, acknowledged: int, count: int) -> None:
    messages = _messages(BATCH)
    sent = under_way = 0
    while sent < count or under_way:
        if sent < count and under_way <= WINDOW - BATCH:
            done = _libc.sendmmsg(descriptor, messages, min(BATCH, count - sent), 0)
            if done < 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            sent += done
            under_way += done
        else:
            if not select.select([acknowledged], [], [], LOSS_TIMEOUT)[0]:
                raise RuntimeError(f"{under_way} of {sent} datagrams were lost")
            under_way -= os.eventfd_read(acknowledged)


def _receive(descriptor: int, acknowledged: int) -> None:
    messages = _messages(BATCH)
    while True:
        count = _libc.recvmmsg(descriptor, messages, BATCH, MSG_WAITFORONE, None)
        if count > 0:
            os.eventfd_write(acknowledged, count)
