"""Finding out whether the router speaks UPnP: one question of SSDP, one answer.

The question goes to the router's own address, and only its own answer counts, if what it describes
itself by is on it as well: any machine of the LAN may call itself a router.  All the rest of UPnP
is a library's, in a process of its own: see `meshd.net.upnp_client`.

UPnP Device Architecture 1.1, section 1.3: a search may be unicast, and is answered at once.  Some
routers answer the multicast one only, some firewalls let in the answer to the unicast one only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from meshd.errors import BadPacket

if TYPE_CHECKING:
    from ipaddress import IPv4Address

PORT = 1900
MULTICAST = "239.255.255.250"
ANSWER_BYTES_MAX = 1500
URL_CHARS_MAX = 256
# A device of version 2 answers to this as well (section 1.3.2).
SEARCHED = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"


def search_request(target: str) -> bytes:
    """Return the question; `target` is whom it is sent to."""
    lines = (
        "M-SEARCH * HTTP/1.1",
        f"HOST: {target}:{PORT}",
        'MAN: "ssdp:discover"',
        "MX: 1",
        f"ST: {SEARCHED}",
        "",
        "",
    )
    return "\r\n".join(lines).encode()


def location_untrusted(answer: bytes, gateway: IPv4Address) -> str:
    """Return the URL at which the router describes itself."""
    if len(answer) > ANSWER_BYTES_MAX:
        raise BadPacket("SSDP answer too long")
    try:
        first, *lines = answer.decode("ascii").split("\r\n")
    except UnicodeDecodeError as exc:
        raise BadPacket("SSDP answer malformed") from exc
    if first.split(" ")[:2] != ["HTTP/1.1", "200"]:
        raise BadPacket("no SSDP answer")
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name.strip().lower() == "location":
            return url_untrusted(value.strip(), gateway)
    raise BadPacket("SSDP answer without a location")


def url_untrusted(url: str, gateway: IPv4Address) -> str:
    """Return a URL if it is the router's own."""
    if len(url) > URL_CHARS_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise BadPacket("UPnP location malformed")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise BadPacket("UPnP location malformed") from exc
    if parts.scheme != "http" or parts.username is not None or port == 0:
        raise BadPacket("UPnP location malformed")
    if parts.hostname != str(gateway):
        raise BadPacket("UPnP location is not on the router")
    return url
