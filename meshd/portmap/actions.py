"""What a mapper wants done; `meshd.daemon.portmap` does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a datagram to the router's port for PCP and NAT-PMP."""

    datagram: bytes


@dataclass(frozen=True, slots=True)
class Search:
    """Send a datagram to the port for SSDP of the router, or of everybody in the LAN."""

    datagram: bytes
    target: str


@dataclass(frozen=True, slots=True)
class Call:
    """Have the UPnP process do what a line says; its answer goes to `upnp_answered`."""

    line: bytes


Action: TypeAlias = Ask | Search | Call
