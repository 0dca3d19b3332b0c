"""From an operator's text to typed values.

Each reader takes one string and returns its value, or raises ValueError whose text says what is
allowed, so that whoever knows where the string came from can put that in front.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from meshd.trust.grammar import NAME_BYTES_MAX, clean_name, is_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.codec import IPNetwork

DEFAULT_PORT = 51820
PORT_MAX = 65535
SEED_PORTS = {"tcp": DEFAULT_PORT, "tls": 443}  # where a seed over TCP names none
HOST_LENGTH_MAX = 253
INTERFACE_LENGTH_MAX = 15  # IFNAMSIZ less its final zero
RELAY_PORTS_MIN = 2  # a relayed pair of peers takes two
IPV4_PREFIX_LENGTHS = range(8, 29)

_HOST = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?)*\.?"
)
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
DURATION_MIN = 60.0  # of what is done again and again
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w|)", re.ASCII)
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
# The kernel keeps settings for all interfaces under these two names.
_RESERVED_INTERFACES = frozenset({"all", "default", "lo"})


class HostPort(NamedTuple):
    """Where to find something: a name or address, and a port."""

    host: str
    port: int
    scheme: str = ""  # of a seed: `tcp` or `tls`; else it is asked by UDP

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}" if self.scheme else f"{host}:{self.port}"


class PortRange(NamedTuple):
    """The ports from first to last, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


DEFAULT_RELAY_PORTS = PortRange(51900, 53947)


def text(value: str) -> str:
    """Read anything that is not empty."""
    if not value:
        raise ValueError("must not be empty")
    return value


def path(value: str) -> Path:
    """Read a path; an empty one would be the current directory."""
    return Path(text(value))


def passphrase(value: str) -> bytes:
    """Read a shared secret: whatever bytes it has, but a newline at its end."""
    return text(value.rstrip("\r\n")).encode(errors="surrogateescape")


def choice(*words: str) -> Callable[[str], str]:
    """Return a reader of one of a few words."""

    def read(value: str) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value

    return read


def flag(value: str) -> bool:
    """Read yes or no, as environment variables have it."""
    word = value.lower()
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise ValueError("must be true or false")


def port(value: str) -> int:
    """Read a UDP or TCP port."""
    if not value.isascii() or not value.isdigit() or not 0 < int(value[:6]) <= PORT_MAX:
        raise ValueError(f"must be a whole number from 1 to {PORT_MAX}")
    return int(value[:6])


def port_or_none(value: str) -> int:
    """Read a port, or 0, which stands for none."""
    return 0 if value == "0" else port(value)


def port_range(value: str) -> PortRange:
    """Read FIRST-LAST."""
    first, dash, last = value.partition("-")
    try:
        ports = PortRange(port(first), port(last))
    except ValueError:
        dash = ""
    if not dash or ports.last - ports.first + 1 < RELAY_PORTS_MIN:
        raise ValueError(f"must be FIRST-LAST, {RELAY_PORTS_MIN} ports or more up to {PORT_MAX}")
    return ports


def host_port(value: str) -> HostPort:
    """Read HOST:PORT; an IPv6 address stands in brackets."""
    host, port_text = _split_host(value)
    if not port_text:
        raise ValueError("must be HOST:PORT, [ADDRESS]:PORT for IPv6")
    return HostPort(_host(host), port(port_text))


def host_maybe_port(value: str) -> HostPort:
    """Read HOST[:PORT]; an IPv6 address stands in brackets where a port follows."""
    host, port_text = _split_host(value)
    return HostPort(_host(host), port(port_text) if port_text else DEFAULT_PORT)


def seed(value: str) -> HostPort:
    """Read HOST[:PORT], with tcp:// or tls:// in front or not."""
    scheme, separator, rest = value.partition("://")
    if not separator:
        return host_maybe_port(value)
    if scheme not in SEED_PORTS:
        raise ValueError(f"may begin with {' or '.join(f'{s}://' for s in SEED_PORTS)} only")
    host, port_text = _split_host(rest)
    return HostPort(_host(host), port(port_text) if port_text else SEED_PORTS[scheme], scheme)


def _split_host(value: str) -> tuple[str, str]:
    if value.startswith("["):
        host, bracket, rest = value[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")) or rest == ":":
            raise ValueError("must be [ADDRESS] or [ADDRESS]:PORT")
        return host, rest[1:]
    if value.count(":") > 1:
        return value, ""
    host, colon, port_text = value.partition(":")
    if colon and not port_text:
        raise ValueError("has a colon and no port behind it")
    return host, port_text


def _host(value: str) -> str:
    try:
        return str(ip_address(value))
    except ValueError:
        pass
    if ":" in value:
        raise ValueError("has a malformed IPv6 address")
    # Four numbers that are no address are a slip of the keyboard, not a name.
    if re.fullmatch(r"[\d.]+", value):
        raise ValueError("has a malformed IPv4 address")
    if len(value) > HOST_LENGTH_MAX or not _HOST.fullmatch(value):
        raise ValueError("needs a host name or an IP address")
    return value


def label(value: str) -> str:
    """Read a DNS label: what a node's name may be."""
    if not is_name(value):
        raise ValueError(
            f"must be 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -, with no - at an end; "
            f"{clean_name(value)!r} would do"
        )
    return value


def interface(value: str) -> str:
    """Read a network interface's name."""
    if len(value) > INTERFACE_LENGTH_MAX or not _INTERFACE.fullmatch(value):
        raise ValueError(
            f"must be 1 to {INTERFACE_LENGTH_MAX} of letters, digits, '.', '_' and '-', beginning "
            "with a letter or digit"
        )
    if value in _RESERVED_INTERFACES:
        raise ValueError("means something else to the kernel; choose another name")
    return value


def ipv4_address(value: str) -> IPv4Address:
    """Read an IPv4 address."""
    try:
        return IPv4Address(value)
    except ValueError:
        raise ValueError("must be an IPv4 address A.B.C.D") from None


def ipv4_prefix(value: str) -> IPv4Network:
    """Read the network that members' IPv4 addresses come from."""
    prefix = network(value)
    low, high = IPV4_PREFIX_LENGTHS[0], IPV4_PREFIX_LENGTHS[-1]
    if not isinstance(prefix, IPv4Network) or prefix.prefixlen not in IPV4_PREFIX_LENGTHS:
        raise ValueError(f"must be an IPv4 network of /{low} to /{high}")
    return prefix


def network(value: str) -> IPNetwork:
    """Read a network in CIDR notation."""
    try:
        return ip_network(value)
    except ValueError:
        pass
    try:
        near = ip_network(value, strict=False)
    except ValueError:
        raise ValueError("must be a network in CIDR notation") from None
    raise ValueError(f"has bits set behind its prefix; did you mean {near}?")


def duration(value: str) -> float:
    """Read a span such as 90s, 1.5h, 7d, or a bare number of seconds."""
    match = _DURATION.fullmatch(value)
    if match is None:
        raise ValueError("must be a span of time such as 90s, 10m, 1h or 7d")
    return float(match[1]) * _SECONDS[match[2]]


def duration_or_never(value: str) -> float:
    """Read a span of a minute or more, or 0, which stands for never."""
    span = duration(value)
    if 0 < span < DURATION_MIN:
        raise ValueError("must be a minute or more, or 0 for never")
    return span


def printable(value: str) -> str:
    """Return a text that cannot forge a line or steer a terminal, whoever wrote it."""
    if value.isprintable():
        return value
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in value)
