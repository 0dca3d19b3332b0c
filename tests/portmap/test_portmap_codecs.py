"""What routers are asked and answer, byte for byte."""

from ipaddress import IPv4Address

import pytest

from meshd.errors import BadPacket
from meshd.portmap import natpmp, pcp, ssdp, upnp
from meshd.portmap.gateway import Gateway

US = IPv4Address("192.168.1.2")
ROUTER = IPv4Address("192.168.1.1")
NONCE = b"nonce-of-ours"[:12]
MAPPED_US = "00000000000000000000ffffc0a80102"
ANY = "00000000000000000000ffff00000000"


def test_a_pcp_question_is_these_bytes():
    asked = pcp.map_request(US, NONCE, 51820, 51821, 7200)

    assert asked.hex() == (
        "0201000000001c20" + MAPPED_US + NONCE.hex() + "11000000" + "ca6c" + "ca6d" + ANY
    )


def test_the_end_of_a_mapping_suggests_no_port():
    assert pcp.map_request(US, NONCE, 51820, 51821, 0)[40:44].hex() == "ca6c0000"
    assert natpmp.map_request(51820, 51821, 0).hex() == "00010000ca6c000000000000"


def test_a_pcp_answer_is_read():
    data = bytes.fromhex(
        "0281000000000e10" + "0000002a" + "00" * 12
        + NONCE.hex() + "11000000" + "ca6c" + "1234" + "00000000000000000000ffffcb007109"
    )  # fmt: skip

    assert pcp.decode_untrusted(data) == pcp.Mapped(
        42, NONCE, 51820, 0x1234, IPv4Address("203.0.113.9"), 3600
    )


def test_a_pcp_refusal_and_an_announcement_are_read():
    refused = bytes.fromhex("0281000800000078" + "00000001" + "00" * 12)
    announced = bytes.fromhex("0280000000000000" + "00000007" + "00" * 12)

    assert pcp.decode_untrusted(refused) == pcp.Refused(pcp.Result.NO_RESOURCES, 120)
    assert pcp.decode_untrusted(announced) == pcp.Announced(7)


def test_nat_pmp_questions_and_answers_are_these_bytes():
    assert natpmp.address_request() == b"\0\0"
    assert natpmp.map_request(51820, 51821, 7200).hex() == "00010000ca6cca6d00001c20"
    assert natpmp.decode_untrusted(
        bytes.fromhex("00800000" + "0000002a" + "cb007109")
    ) == natpmp.ExternalAddress(42, IPv4Address("203.0.113.9"))
    assert natpmp.decode_untrusted(
        bytes.fromhex("00810000" + "0000002a" + "ca6c1234" + "00000e10")
    ) == natpmp.Mapped(42, 51820, 0x1234, 3600)


@pytest.mark.parametrize("tail", ["", "00000007", "00000007" + "00" * 4])
def test_what_a_nat_pmp_router_says_to_pcp_is_read_however_long_it_is(tail):
    told = natpmp.decode_untrusted(bytes.fromhex("00810001" + tail))

    assert told == natpmp.Refused(natpmp.Result.UNSUPPORTED_VERSION)


@pytest.mark.parametrize(
    "data",
    ["", "00", "0080", "0001000000000001", "00820000" + "00" * 8, "00800000" + "00" * 7],
)
def test_what_is_no_answer_of_nat_pmp_is_refused(data):
    with pytest.raises(BadPacket):
        natpmp.decode_untrusted(bytes.fromhex(data))


def test_the_location_of_the_router_is_found():
    answer = b"HTTP/1.1 200 OK\r\nST: x\r\nLocation: http://192.168.1.1:1900/d.xml\r\n\r\n"

    assert ssdp.location_untrusted(answer, ROUTER) == "http://192.168.1.1:1900/d.xml"


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.1.7:80/d.xml",
        "http://example.org/d.xml",
        "http://192.168.1.1@example.org/",
        "http://user@192.168.1.1/",
        "https://192.168.1.1/",
        "file:///etc/passwd",
        "http://192.168.1.1:99999/",
        "http://[::1",
        "http://192.168.1.1/" + "a" * 300,
        "http://192.168.1.1/a b",
    ],
)
def test_a_location_that_is_not_on_the_router_is_refused(url):
    with pytest.raises(BadPacket):
        ssdp.url_untrusted(url, ROUTER)


def test_a_question_to_the_upnp_process_is_one_line():
    gateway = Gateway(ROUTER, US, "eth0")
    line = upnp.question("http://192.168.1.1/", gateway, 51820, external_port=1, lifetime=7200)

    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b'{"error": 1}',
        b'{"error": "<script>"}',
        b'{"address": "203.0.113.9", "external_port": true, "lifetime": 0}',
        b'{"address": "203.0.113.9", "external_port": 0, "lifetime": 0}',
        b'{"address": "203.0.113", "external_port": 1, "lifetime": 0}',
        b'{"address": "203.0.113.9", "external_port": 1, "lifetime": -1}',
        b"[" * 500,
    ],
)
def test_a_line_that_is_no_answer_is_refused(line):
    with pytest.raises(BadPacket):
        upnp.answer_untrusted(line)


def test_the_answers_of_the_upnp_process_are_read():
    mapped = b'{"address": "203.0.113.9", "external_port": 51820, "lifetime": 7200}\n'

    assert upnp.answer_untrusted(mapped) == upnp.Mapped(IPv4Address("203.0.113.9"), 51820, 7200)
    assert upnp.answer_untrusted(b'{"error": "Invalid Args"}') == upnp.Refused("Invalid Args")
