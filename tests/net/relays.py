"""What tests of relays share: two members' machines and a relay's between them.

   10.1.0.0/24, fd01::/64       10.2.0.0/24, fd02::/64
┌───┐                   ┌─────────┐                   ┌───┐
│ a ├───────────────────┤  relay  ├───────────────────┤ b │
└───┘ .2             .1 └─────────┘ .1             .2 └───┘
"""

import contextlib
import socket
from ipaddress import ip_address

from meshd.relay.maps import Flow
from meshd.values import PortRange
from meshd.wg.types import Endpoint
from net.namespaces import join, namespaces

MARK = 0x6D65
PORTS = PortRange(51900, 53947)
PORTS_MAX = PORTS.last - PORTS.first + 1
WIREGUARD = 51820
A = {4: "10.1.0.2", 6: "fd01::2"}
B = {4: "10.2.0.2", 6: "fd02::2"}
RELAY_TO_A = {4: "10.1.0.1", 6: "fd01::1"}
RELAY_TO_B = {4: "10.2.0.1", 6: "fd02::1"}
PROMPT = 5.0  # within which what comes at all comes


def end(address, port):
    return Endpoint(ip_address(address), port)


def pair(a, at_a, at_b, b):
    """The two flows between members, each at a port of the relay."""
    return frozenset({Flow(a, at_a, at_b, b), Flow(b, at_b, at_a, a)})


def pair_of(version, other=None, *, port=PORTS.first, source_port=WIREGUARD):
    """The flows between a and b, in one IP version or in two."""
    other = other or version
    return pair(
        end(A[version], source_port),
        end(RELAY_TO_A[version], port),
        end(RELAY_TO_B[other], port + 1),
        end(B[other], source_port),
    )


@contextlib.contextmanager
def machines():
    with namespaces(3) as (a, relay, b):
        join(a, "wire", relay, "one")
        join(b, "wire", relay, "two")
        for namespace, device, ipv4, ipv6 in (
            (a, "wire", A[4], A[6]),
            (b, "wire", B[4], B[6]),
            (relay, "one", RELAY_TO_A[4], RELAY_TO_A[6]),
            (relay, "two", RELAY_TO_B[4], RELAY_TO_B[6]),
        ):
            namespace.run(
                f"ip addr add {ipv4}/24 dev {device}; ip addr add {ipv6}/64 dev {device} nodad"
            )
        for namespace, near in ((a, RELAY_TO_A), (b, RELAY_TO_B)):
            namespace.run(f"ip route add default via {near[4]}")
            namespace.run(f"ip -6 route add default via {near[6]}")
        yield a, relay, b


@contextlib.contextmanager
def udp(namespace, address, port=WIREGUARD):
    """A socket of a member's, or of whoever else."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.call(socket.socket, family, socket.SOCK_DGRAM) as plain:
        plain.bind((address, port))
        plain.settimeout(PROMPT)
        yield plain


def source_of(plain, expected):
    """Receive a datagram, which has to be this one, and return where it came from."""
    payload, (host, port, *_) = plain.recvfrom(70000)
    assert payload == expected
    return end(host, port)
