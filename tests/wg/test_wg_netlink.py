from __future__ import annotations

import contextlib
import errno
import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.errors import DeviceError
from meshd.keys import PresharedKey, WireGuardKey, WireGuardPrivateKey
from meshd.wg import genetlink, netlink
from meshd.wg.types import DeviceChange, DeviceStatus, Endpoint, PeerChange
from wg.fake_device import EMPTY_PEER, FakeDevice
from wg.wg_strategies import KEYS, device_changes, device_statuses

NESTED = genetlink.NLA_F_NESTED
GENERIC_HEADER = bytes(4)

# What a decoder may be given: anything, and anything that resembles what it expects.
hostile_bytes = st.binary(max_size=200)
attribute_types = st.integers(0, 12)
nested_bytes = st.recursive(
    hostile_bytes,
    lambda inner: st.lists(st.tuples(attribute_types, inner), max_size=6).map(
        lambda pairs: b"".join(genetlink.encode_attribute(kind, value) for kind, value in pairs)
    ),
    max_leaves=20,
)


def attribute(kind, value):
    return genetlink.encode_attribute(kind, value)


def dump_allowed_ip(network):
    family = 2 if network.version == 4 else 10
    return attribute(
        NESTED,
        attribute(1, struct.pack("=H", family))
        + attribute(2, network.network_address.packed)
        + attribute(3, bytes([network.prefixlen])),
    )


def dump_peer(key, peer, networks, *, more):
    """A peer as `wg_get_peer` writes it; with `more`, the part in a message further on."""
    content = attribute(1, key)
    if not more:
        content += attribute(2, peer.preshared_key or bytes(32))
        content += attribute(6, struct.pack("=qq", int(peer.last_handshake_time), 0))
        content += attribute(5, struct.pack("=H", peer.persistent_keepalive))
        content += attribute(8, struct.pack("=Q", peer.tx_bytes))
        content += attribute(7, struct.pack("=Q", peer.rx_bytes))
        if peer.endpoint is not None:
            port = peer.endpoint.port.to_bytes(2, "big")
            content += attribute(4, b"\2\0" + port + peer.endpoint.address.packed + bytes(8))
        content += attribute(10, struct.pack("=I", 1))
    content += attribute(9 | NESTED, b"".join(map(dump_allowed_ip, networks)))
    return attribute(NESTED, content)


def dump(status, per_message):
    """A dump's payloads, with so many allowed-ips in each."""
    first = attribute(1, struct.pack("=I", 7)) + attribute(2, b"mesh0\0")
    first += attribute(6, struct.pack("=H", status.listen_port))
    first += attribute(7, struct.pack("=I", status.fwmark))
    if status.private_key is not None:
        first += attribute(3, status.private_key) + attribute(4, status.private_key.public)
    payloads = [GENERIC_HEADER + first]
    for key, peer in status.peers.items():
        networks = sorted(peer.allowed_ips, key=str)
        for start in range(0, len(networks) or 1, per_message):
            part = dump_peer(key, peer, networks[start : start + per_message], more=start > 0)
            payloads.append(GENERIC_HEADER + attribute(2, b"mesh0\0") + attribute(8, part))
    return payloads


def read(payloads):
    reader = netlink.DeviceReader()
    for payload in payloads:
        reader.feed(payload)
    return reader.status()


def decode_request(request):
    """What a request asks for: its device attributes, and its peers' attributes in order."""
    device = genetlink.fields(genetlink.body(request.payload))
    peers = [genetlink.fields(p) for _, p in genetlink.attributes(device.pop(8, b""))]
    return device, peers


def apply_requests(requests):
    """Make of requests a device, by the rules of `drivers/net/wireguard/netlink.c`."""
    fake = FakeDevice()
    for request in requests:
        _, peers = decode_request(request)
        for peer in peers:
            flags = struct.unpack("=I", peer[3])[0]
            networks = [
                genetlink.fields(entry) for _, entry in genetlink.attributes(peer.get(9, b""))
            ]
            change = PeerChange(
                WireGuardKey(peer[1]),
                remove=bool(flags & 1),
                replace_allowed_ips=bool(flags & 2),
                update_only=bool(flags & 4),
                allowed_ips=frozenset(
                    (IPv4Network if len(n[2]) == 4 else IPv6Network)((n[2], n[3][0]))
                    for n in networks
                ),
            )
            fake.apply(DeviceChange(peers=(change,)))
    return fake.observe()


def test_a_change_has_these_bytes():
    change = DeviceChange(
        private_key=WireGuardPrivateKey(b"\x40" * 32),
        listen_port=51820,
        fwmark=0x1234,
        peers=(
            PeerChange(
                WireGuardKey(b"\x22" * 32),
                update_only=True,
                replace_allowed_ips=True,
                allowed_ips=frozenset({IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/48")}),
                endpoint=Endpoint(IPv4Address("192.0.2.1"), 51820),
                persistent_keepalive=25,
                preshared_key=PresharedKey(b"\x33" * 32),
            ),
        ),
    )

    (request,) = netlink.encode_set_device("mesh0", change)

    assert genetlink.frame(request, family=0x1C, sequence=9).hex(" ", -4) == (
        # nlmsghdr, genlmsghdr
        "10010000 1c000500 09000000 00000000 01010000 "
        # WGDEVICE_A_IFNAME, PRIVATE_KEY, LISTEN_PORT, FWMARK
        "0a000200 6d657368 30000000 24000300 " + "40404040 " * 8 + "06000600 6cca0000 "
        "08000700 34120000 "
        # WGDEVICE_A_PEERS, its first entry, PUBLIC_KEY, FLAGS, PRESHARED_KEY
        "bc000880 b8000080 24000100 " + "22222222 " * 8 + "08000300 06000000 "
        "24000200 " + "33333333 " * 8 +
        # ENDPOINT, PERSISTENT_KEEPALIVE_INTERVAL
        "14000400 0200ca6c c0000201 00000000 00000000 06000500 19000000 "
        # ALLOWEDIPS: FAMILY, IPADDR, CIDR_MASK
        "48000980 1c000080 06000100 02000000 08000200 0a000000 05000300 08000000 "
        "28000080 06000100 0a000000 14000200 fd000000 00000000 00000000 00000000 "
        "05000300 30000000"
    )


def test_an_ipv6_endpoint_keeps_its_scope():
    endpoint = Endpoint(IPv6Address("fe80::1%7"), 51820)
    change = DeviceChange(peers=(PeerChange(KEYS[0], endpoint=endpoint),))

    (request,) = netlink.encode_set_device("mesh0", change)
    _, (peer,) = decode_request(request)
    shown = GENERIC_HEADER + attribute(
        8,
        attribute(
            0,
            dump_peer(KEYS[0], EMPTY_PEER, [], more=False)[4:] + attribute(4, peer[4]),
        ),
    )

    assert read([shown]).peers[KEYS[0]].endpoint == endpoint


def test_a_change_of_nothing_is_no_request():
    assert list(netlink.encode_set_device("mesh0", DeviceChange())) == []


@given(device_changes)
def test_the_settings_of_a_device_go_out_once_and_first(change):
    requests = list(netlink.encode_set_device("mesh0", change))

    for number, request in enumerate(requests):
        device, _ = decode_request(request)
        settings = device.keys() - {netlink.WGDEVICE_A_IFNAME}
        wanted = {
            kind
            for kind, value in (
                (3, change.private_key),
                (6, change.listen_port),
                (7, change.fwmark),
            )
            if value is not None
        }
        assert settings == (wanted if number == 0 else set())


@settings(max_examples=25)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 2, 700, 812, 813, 2000]), max_size=4),
    replace_allowed_ips=st.booleans(),
)
def test_chunks_are_short_and_amount_to_the_change(sizes, replace_allowed_ips):
    peers = tuple(
        PeerChange(
            WireGuardKey(bytes([number]) * 32),
            replace_allowed_ips=replace_allowed_ips,
            allowed_ips=frozenset(IPv6Network(((number << 64) + i, 128)) for i in range(size)),
        )
        for number, size in enumerate(sizes, 1)
    )

    requests = list(netlink.encode_set_device("mesh0", DeviceChange(peers=peers)))

    assert all(len(request.payload) < netlink.CHUNK_BYTES_MAX + 100 for request in requests)
    made = apply_requests(requests).peers
    assert {key: peer.allowed_ips for key, peer in made.items()} == {
        peer.public_key: peer.allowed_ips for peer in peers
    }


def test_many_peers_share_a_chunk():
    peers = tuple(
        PeerChange(
            WireGuardKey(number.to_bytes(32, "big")),
            allowed_ips=frozenset({IPv4Network((number, 32)), IPv6Network((number, 128))}),
            endpoint=Endpoint(IPv6Address(number), 51820),
        )
        for number in range(1, 1001)
    )

    requests = list(netlink.encode_set_device("mesh0", DeviceChange(peers=peers)))

    assert len(requests) == 5


@given(status=device_statuses(), per_message=st.integers(1, 9))
def test_a_dump_in_pieces_gives_the_whole_device(status, per_message):
    assert read(dump(status, per_message)) == status


def test_a_peer_that_spans_messages_is_merged():
    networks = frozenset(IPv4Network((number, 32)) for number in range(1000))
    status = DeviceStatus(None, 1, 0, {KEYS[0]: replace(EMPTY_PEER, allowed_ips=networks)})

    payloads = dump(status, per_message=300)

    assert len(payloads) == 5
    assert read(payloads) == status


def test_a_private_key_of_zeros_is_none():
    assert read([GENERIC_HEADER + attribute(3, bytes(32))]).private_key is None


@given(st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=20)), max_size=5))
def test_messages_come_apart_as_they_were_put_together(parts):
    datagram = b""
    for number, (kind, payload) in enumerate(parts):
        framed = genetlink.frame(genetlink.Request(0, payload), kind, number)
        datagram += framed + bytes(-len(framed) % 4)

    assert [(m.type, m.payload) for m in genetlink.split_messages(datagram)] == parts


@given(hostile_bytes | nested_bytes)
def test_any_bytes_give_messages_or_a_device_error(data):
    accept_only_device_errors(genetlink.split_messages, data)


@given(hostile_bytes | nested_bytes)
def test_any_payload_gives_a_status_or_a_device_error(data):
    accept_only_device_errors(lambda payload: read([payload]), GENERIC_HEADER + data)
    accept_only_device_errors(lambda payload: read([payload]), data)


@given(
    status=device_statuses(),
    damage=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=5),
    cut=st.integers(0, 2000),
)
def test_a_damaged_dump_gives_a_status_or_a_device_error(status, damage, cut):
    payloads = [bytearray(payload) for payload in dump(status, per_message=3)]
    for payload in payloads:
        for position, value in damage:
            payload[position % len(payload)] = value
    accept_only_device_errors(read, [bytes(payload[: cut or None]) for payload in payloads])


@given(data=hostile_bytes | nested_bytes, flags=st.integers(0, 0xFFFF), kind=st.integers(2, 3))
def test_any_error_message_gives_nothing_or_a_device_error(data, flags, kind):
    message = genetlink.Message(kind, flags, 1, data)
    accept_only_device_errors(lambda m: genetlink.raise_for_error(m, "try"), message)


@given(hostile_bytes | nested_bytes)
def test_any_bytes_give_a_family_or_a_device_error(data):
    accept_only_device_errors(genetlink.decode_family, GENERIC_HEADER + data)


def accept_only_device_errors(function, data):
    with contextlib.suppress(DeviceError):
        function(data)


def refusal(*, flags, tail, kind=genetlink.NLMSG_ERROR, number=-errno.EINVAL):
    return genetlink.Message(kind, flags, 1, struct.pack("=i", number) + tail)


REQUEST_HEADER = struct.pack("=IHHII", 36, 28, 5, 1, 0)
WORDS = attribute(genetlink.NLMSGERR_ATTR_MSG, b"no such thing\0") + attribute(2, bytes(4))


@pytest.mark.parametrize(
    "message",
    [
        refusal(flags=0x300, tail=REQUEST_HEADER + WORDS),
        refusal(flags=0x200, tail=REQUEST_HEADER + b"secret" * 3 + b"..." + WORDS[1:]),
        refusal(flags=0x202, tail=WORDS, kind=genetlink.NLMSG_DONE),
    ],
    ids=["capped", "whole request", "end of a dump"],
)
def test_the_kernels_own_words_are_in_the_error(message):
    if message.flags == 0x200:
        # 36 bytes of request: its header and 20 more.
        message = refusal(flags=0x200, tail=REQUEST_HEADER + bytes(20) + WORDS)

    with pytest.raises(DeviceError, match=r"^try \(no such thing\): Invalid argument$"):
        genetlink.raise_for_error(message, "try")


def test_an_error_without_words_has_operation_and_errno():
    with pytest.raises(DeviceError, match=r"^try: Invalid argument$") as refused:
        genetlink.raise_for_error(refusal(flags=0x100, tail=REQUEST_HEADER), "try")

    assert (refused.value.operation, refused.value.errno) == ("try", errno.EINVAL)


def test_errno_zero_is_an_acknowledgement():
    genetlink.raise_for_error(refusal(flags=0x100, tail=REQUEST_HEADER, number=0), "try")
