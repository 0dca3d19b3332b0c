"""What routers say, and the process that asks them by UPnP."""

from ipaddress import IPv4Address, IPv4Network
from random import Random

from fuzz.registry import Target, decoder, target
from meshd.errors import BadPacket
from meshd.portmap import natpmp, pcp, ssdp, upnp
from meshd.portmap.gateway import Gateway
from meshd.portmap.mapper import Mapper, Method

_ROUTER = IPv4Address("192.168.1.1")
_LOCATION = b"HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:1900/d.xml\r\n\r\n"
_LINES = [
    b'{"address": "203.0.113.9", "external_port": 51820, "lifetime": 7200}',
    b'{"error": "ConflictInMappingEntry"}',
]
_NONCE = bytes(12)
_NAT_PMP = [
    bytes.fromhex("008000000000002acb007109"),
    bytes.fromhex("008100000000002aca6c123400000e10"),
    bytes.fromhex("0081000100000007"),
]
_PCP = [
    bytes.fromhex("0281000000000e100000002a" + "00" * 24 + "11000000ca6c1234")
    + bytes.fromhex("00000000000000000000ffffcb007109"),
    bytes.fromhex("028100080000007800000001" + "00" * 12),
    bytes.fromhex("028000000000000000000007" + "00" * 12),
]

decoder("nat-pmp", natpmp.decode_untrusted, lambda: _NAT_PMP)
decoder("pcp", pcp.decode_untrusted, lambda: _PCP)
decoder("upnp-answer", upnp.answer_untrusted, lambda: _LINES)
decoder("ssdp-answer", lambda data: ssdp.location_untrusted(data, _ROUTER), lambda: [_LOCATION])


@target("port-mapper")
def _mapper():
    """A node that takes whatever the router, or somebody in its name, says at any moment."""
    mapper = Mapper(51820, _NONCE, excluded=(IPv4Network("100.64.0.0/10"),), rng=Random(1))
    clock = [0.0]
    inputs = (
        mapper.receive_datagram,
        mapper.receive_announcement,
        mapper.receive_search_answer,
        mapper.upnp_answered,
    )

    def decode(data):
        clock[0] += 7.0
        if not data:
            source = IPv4Address("192.168.1.2") + int(clock[0]) % 3
            mapper.gateway_changed(Gateway(_ROUTER, source, "eth0"), clock[0])
        else:
            before = sum(mapper.bad_packets.values())
            inputs[data[0] % len(inputs)](data[1:], clock[0])
            if sum(mapper.bad_packets.values()) > before:
                raise BadPacket("from the router")
        mapper.handle_timer(clock[0])
        assert len(mapper.actions()) <= 4
        view = mapper.view()
        assert view.endpoint is None or view.method in Method
        assert mapper.get_timer().at > clock[0]
        return view

    mapper.gateway_changed(Gateway(_ROUTER, IPv4Address("192.168.1.2"), "eth0"), 0.0)
    seeds = [b"\0" + data for data in (*_NAT_PMP, *_PCP)]
    seeds += [b"\1" + _PCP[2], b"\2" + _LOCATION, *(b"\3" + line for line in _LINES)]
    return Target(decode, seeds, head=1)
