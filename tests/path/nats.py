"""NATs and firewalls in the terms of RFC 4787, sections 4.1 and 5, and who meets whom."""

import enum
import itertools
from dataclasses import dataclass, field

from meshd.wg.types import Endpoint

FIRST_PORT = 40_000


class Dependence(enum.Enum):
    """What a NAT's mapping, or its filtering, depends on."""

    NOTHING = enum.auto()  # endpoint-independent
    ADDRESS = enum.auto()
    ADDRESS_AND_PORT = enum.auto()

    def key(self, remote):
        if self is Dependence.NOTHING:
            return None
        return remote.address if self is Dependence.ADDRESS else remote


# Mapping and filtering as they are found together: one that maps by destination lets in nobody to
# whom nothing was sent.
BEHAVIOURS = [
    (mapping, filtering)
    for mapping, filtering in itertools.product(Dependence, repeat=2)
    if Dependence.NOTHING not in {mapping, filtering} or mapping is Dependence.NOTHING
]


@dataclass
class Nat:
    """One NAT: between a realm and the one that its `address` is in."""

    address: object
    mapping: Dependence
    filtering: Dependence
    parent: str = "internet"
    preserves: bool = False  # ports, where nobody else has that one
    hairpins: bool = False
    lifetime: float = float("inf")  # seconds that an idle binding is kept
    _ports: dict = field(default_factory=dict)  # (inside, key of remote) to outside port
    _inside: dict = field(default_factory=dict)  # outside port to inside
    _passed: dict = field(default_factory=dict)  # (outside port, key of remote) to when
    _used_at: dict = field(default_factory=dict)  # outside port to when
    _next_port: int = FIRST_PORT

    def outbound(self, inside, remote, now):
        key = (inside, self.mapping.key(remote))
        port = self._ports.get(key)
        if port is None or now - self._used_at[port] > self.lifetime:
            port = self._ports[key] = self._new_port(inside)
            self._inside[port] = inside
        self._used_at[port] = now
        self._passed[port, self.filtering.key(remote)] = now
        return Endpoint(self.address, port)

    def inbound(self, outside, remote, now):
        passed_at = self._passed.get((outside.port, self.filtering.key(remote)))
        if passed_at is None or now - self._used_at[outside.port] > self.lifetime:
            return None
        if now - passed_at > self.lifetime:
            return None
        self._used_at[outside.port] = now
        return self._inside[outside.port]

    def rebind(self):
        """Forget every mapping, as a NAT does that was restarted."""
        for table in (self._ports, self._inside, self._passed, self._used_at):
            table.clear()

    def _new_port(self, inside):
        if self.preserves and inside.port not in self._inside:
            return inside.port
        self._next_port += 7
        return self._next_port


@dataclass
class Firewall:
    """A stateful firewall without translation, as most IPv6 sites have one."""

    _passed: set = field(default_factory=set)  # (inside, outside)

    def outbound(self, inside, remote):
        self._passed.add((inside, remote))

    def lets_in(self, inside, remote):
        return (inside, remote) in self._passed


def meets(one, other):
    """Whether two members behind these NATs, None for none, come to a direct path over IPv4.

    Both know where the other is seen by others, and try at once.  One datagram that gets in is
    enough: its receiver sees where it came from, and its answer finds the way back.
    """
    return one is None or other is None or _gets_in(one, other) or _gets_in(other, one)


def _gets_in(one, other):
    if one.mapping is not Dependence.NOTHING:
        return False  # nobody can tell where to
    if one.filtering is Dependence.ADDRESS_AND_PORT:
        return other.mapping is Dependence.NOTHING  # else it could not have sent there before
    return True
