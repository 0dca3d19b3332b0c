"""Values that several kinds of statement share: names, tags, wall-clock times.

| value | rule                                                                            |
| ----- | ------------------------------------------------------------------------------- |
| name  | one DNS label (RFC 1123): 1 to 63 of `a-z 0-9 -`, no hyphen at either end       |
| tag   | the same, up to 32 bytes; or `*`, which stands for the right to give any tag    |
| time  | whole seconds since the Unix epoch, below 2^40                                  |

Clocks of honest nodes may differ by `CLOCK_SKEW_MAX`.  It is granted wherever one node judges a
date that another has written, except for invites, whose whole life is often shorter than that.
"""

from __future__ import annotations

import re
import unicodedata
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from meshd.errors import BadPacket

if TYPE_CHECKING:
    from meshd.codec import Fields

NAME_BYTES_MAX = 63
TAG_BYTES_MAX = 32
TAGS_MAX = 8
ANY_TAG = "*"
WALL_MAX = 2**40 - 1
CLOCK_SKEW_MAX = 2 * 3600

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_NAME_OF_THE_NAMELESS = "node"


def is_name(text: str) -> bool:
    """Whether a text can be a member's name."""
    return len(text) <= NAME_BYTES_MAX and _LABEL.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether a text can be a tag."""
    return text == ANY_TAG or (len(text) <= TAG_BYTES_MAX and _LABEL.fullmatch(text) is not None)


def clean_name(hostname: str) -> str:
    """Return the name nearest to a hostname: its first label, with what cannot stay made a hyphen.

    Any text gives a valid name, and a valid name gives itself.
    """
    plain = unicodedata.normalize("NFKD", hostname).encode("ascii", "ignore").decode().lower()
    label = re.sub(r"[^a-z0-9-]+", "-", plain.partition(".")[0])
    return label.strip("-")[:NAME_BYTES_MAX].strip("-") or _NAME_OF_THE_NAMELESS


def name_untrusted(fields: Fields, key: int, *, default: str | None = None) -> str:
    """Read a name; `default` may be the empty string, for "none given"."""
    name = fields.text(key, bytes_max=NAME_BYTES_MAX, default=default)
    if name != default and not is_name(name):
        raise BadPacket("malformed name")
    return name


def tags_untrusted(fields: Fields, key: int) -> tuple[str, ...]:
    """Read an array of tags."""
    tags = []
    for tag in fields.items(key, count_max=TAGS_MAX):
        if not isinstance(tag, str) or not is_tag(tag):
            raise BadPacket("malformed tag")
        tags.append(tag)
    return tuple(tags)


def wall_untrusted(fields: Fields, key: int, *, default: int | None = None) -> int:
    """Read a wall-clock time or a span of it."""
    return fields.uint(key, maximum=WALL_MAX, default=default)


def ipv4_untrusted(fields: Fields, key: int) -> IPv4Address | None:
    """Read an IPv4 address; an absent one is None."""
    address = fields.address(key)
    if address is None or isinstance(address, IPv4Address):
        return address
    raise BadPacket("not an IPv4 address")
