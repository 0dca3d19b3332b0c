"""What is asked of the UPnP process, and what it may answer: one line of JSON each way.

    ▶ {"location": "http://192.168.0.1:1900/rootDesc.xml", "gateway": "192.168.0.1",
       "host": "192.168.0.2", "port": 51820, "external_port": 51820, "lifetime": 7200}
    ◀ {"address": "203.0.113.9", "external_port": 51820, "lifetime": 7200}
    ◀ {"error": "ConflictInMappingEntry"}

A lifetime of 0 in a question ends the mapping, in an answer it means: until it is ended.  The
process has parsed what the router sent, so its answer is as little to be believed as a datagram.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import TYPE_CHECKING

from meshd.errors import BadPacket

if TYPE_CHECKING:
    from meshd.portmap.gateway import Gateway

ANSWER_BYTES_MAX = 512
LIFETIME_MAX = 2**32 - 1
MISSING = "Missing"  # the library is not installed
CONFLICT = "ConflictInMappingEntry"  # the external port is another machine's
_ERROR = re.compile(r"[A-Za-z][A-Za-z0-9 _-]{0,79}")


@dataclass(frozen=True, slots=True)
class Mapped:
    """What the router has mapped."""

    address: IPv4Address
    external_port: int
    lifetime: int  # seconds; 0: until it is ended


@dataclass(frozen=True, slots=True)
class Refused:
    """Why it has not, in the library's words."""

    error: str


def question(
    location: str, gateway: Gateway, port: int, *, external_port: int, lifetime: int
) -> bytes:
    """Return the line for the process."""
    asked = {
        "location": location,
        "gateway": str(gateway.address),
        "host": str(gateway.source),
        "port": port,
        "external_port": external_port,
        "lifetime": lifetime,
    }
    return json.dumps(asked).encode() + b"\n"


def answer_untrusted(data: bytes) -> Mapped | Refused:
    """Read the process's line."""
    if len(data) > ANSWER_BYTES_MAX:
        raise BadPacket("UPnP answer too long")
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise BadPacket("UPnP answer malformed") from exc
    if not isinstance(answer, dict):
        raise BadPacket("UPnP answer malformed")
    error = answer.get("error")
    if isinstance(error, str) and _ERROR.fullmatch(error):
        return Refused(error)
    address, port, lifetime = (answer.get(k) for k in ("address", "external_port", "lifetime"))
    if not isinstance(address, str) or type(port) is not int or type(lifetime) is not int:
        raise BadPacket("UPnP answer malformed")
    if not (0 < port <= 0xFFFF and 0 <= lifetime <= LIFETIME_MAX):
        raise BadPacket("UPnP answer malformed")
    try:
        return Mapped(IPv4Address(address), port, lifetime)
    except AddressValueError as exc:
        raise BadPacket("UPnP answer malformed") from exc
