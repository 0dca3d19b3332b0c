"""Members that ask a relay, and the relay's answers, for all tests of relays."""

from __future__ import annotations

from ipaddress import ip_address

from meshd.keys import BootstrapKey, MeshKey, NodeId, NodeKey
from meshd.path.wire import Probe, ProbeSealer, ProbeType
from meshd.relay.allocations import Allocations, Binding
from meshd.values import PortRange
from meshd.wg.types import Endpoint

MESH = MeshKey(b"m" * 32).id
BOOTSTRAP_KEY = BootstrapKey(b"b" * 32)
KEYS = sorted((NodeKey(bytes([number]) * 32) for number in range(1, 8)), key=lambda key: key.id)
RELAY, A, B, C, D, E, F = KEYS
PORTS = PortRange(51900, 51919)  # ten pairs
LOCAL = ip_address("198.51.100.1")


def somebody(number):
    """Return one of many ids of which nobody has the key."""
    return NodeId(number.to_bytes(32, "big"))


def endpoint(address, port=51820):
    return Endpoint(ip_address(address), port)


def binding(address, port=51820, local=LOCAL):
    return Binding(endpoint(address, port), local)


def bound(allocation, table, now=0.0):
    """Have both sides of a pair bound, each to an address of its own."""
    for number, side in enumerate(allocation.sides, start=1):
        table.bind(side, binding(f"192.0.2.{number}", side.port), now)
    return allocation


def table(ports=PORTS):
    return Allocations(ports)


def hello(key, *, challenge=None, nonce=b"n" * 24, kind=ProbeType.HELLO):
    """Return the datagram in which a member says hello to the relay."""
    sealer = ProbeSealer(key, MESH, BOOTSTRAP_KEY)
    observed = endpoint("192.0.2.9") if kind in {ProbeType.PONG, ProbeType.HELLO_PONG} else None
    probe = Probe(kind, b"12345678", challenge=challenge, observed=observed)
    return sealer.seal(probe, RELAY.id, nonce)


def opened(key, datagram):
    """Return what the relay says to a member."""
    sealer = ProbeSealer(key, MESH, BOOTSTRAP_KEY)
    sealed = sealer.open_sender_untrusted(datagram)
    assert sealed.sender == RELAY.id
    return sealer.open_probe_untrusted(sealed)
