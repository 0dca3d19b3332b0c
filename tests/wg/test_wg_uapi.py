from __future__ import annotations

import contextlib
import errno
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import DeviceError
from meshd.keys import PresharedKey, WireGuardKey, WireGuardPrivateKey
from meshd.wg import uapi
from meshd.wg.types import DeviceChange, DeviceStatus, Endpoint, PeerChange, PeerStatus
from wg.wg_strategies import device_changes, device_statuses

A = WireGuardKey(b"\x0a" * 32)
B = WireGuardKey(b"\x0b" * 32)

known_names = st.sampled_from([
    b"private_key",
    b"listen_port",
    b"fwmark",
    b"public_key",
    b"preshared_key",
    b"endpoint",
    b"persistent_keepalive_interval",
    b"allowed_ip",
    b"last_handshake_time_sec",
    b"last_handshake_time_nsec",
    b"rx_bytes",
    b"tx_bytes",
    b"errno",
])  # fmt: skip
hostile_values = st.one_of(
    st.binary(max_size=40),
    st.integers().map(lambda number: str(number).encode()),
    st.text(max_size=10).map(str.encode),
    st.sampled_from([b"0" * 64, b"a" * 64, "é".encode() * 32, b"9" * 5000, b"1_0", b" 1", b"+1"]),
    st.sampled_from([b"[::1]:1", b"1.2.3.4:99999", b":1", b"[fe80::1%1]:2", b"10.0.0.0/8"]),
    st.sampled_from([b"10.0.0.1/8", b"::/129", b"0.0.0.0/33", b"/", b"fe80::1%eth0/64"]),
)
hostile_answers = st.binary(max_size=300) | st.lists(
    st.tuples(known_names, hostile_values).map(b"=".join), max_size=8
).map(lambda lines: b"\n".join(lines) + b"\n\n")


def answer(status):
    """What wireguard-go says of a device: it leaves out what is zero."""
    lines = []
    if status.private_key is not None:
        lines.append(f"private_key={status.private_key.hex()}")
    if status.listen_port:
        lines.append(f"listen_port={status.listen_port}")
    if status.fwmark:
        lines.append(f"fwmark={status.fwmark}")
    for key, peer in status.peers.items():
        lines += [
            f"public_key={key.hex()}",
            f"preshared_key={(peer.preshared_key or bytes(32)).hex()}",
            "protocol_version=1",
        ]
        if peer.endpoint is not None:
            lines.append(f"endpoint={peer.endpoint}")
        lines += [
            f"last_handshake_time_sec={int(peer.last_handshake_time)}",
            "last_handshake_time_nsec=0",
            f"tx_bytes={peer.tx_bytes}",
            f"rx_bytes={peer.rx_bytes}",
            f"persistent_keepalive_interval={peer.persistent_keepalive}",
            *(f"allowed_ip={network}" for network in peer.allowed_ips),
        ]
    return "\n".join([*lines, "errno=0", "", ""]).encode()


def read(data):
    return uapi.StatusReader().read(data)


def test_a_change_has_these_lines():
    change = DeviceChange(
        private_key=WireGuardPrivateKey(b"\x40" * 32),
        listen_port=51820,
        fwmark=0x1234,
        peers=(
            PeerChange(B, remove=True),
            PeerChange(
                A,
                update_only=True,
                replace_allowed_ips=True,
                allowed_ips=frozenset({IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/48")}),
                endpoint=Endpoint(IPv6Address("2001:db8::1"), 51820),
                persistent_keepalive=25,
                preshared_key=PresharedKey(b"\x33" * 32),
            ),
        ),
    )

    (request,) = uapi.encode_set(change)

    assert request.decode().split("\n") == [
        "set=1",
        "private_key=" + "40" * 32,
        "listen_port=51820",
        "fwmark=4660",
        "public_key=" + "0b" * 32,
        "remove=true",
        "public_key=" + "0a" * 32,
        "update_only=true",
        "preshared_key=" + "33" * 32,
        "endpoint=[2001:db8::1]:51820",
        "replace_allowed_ips=true",
        "allowed_ip=10.0.0.0/8",
        "allowed_ip=fd00::/48",
        "persistent_keepalive_interval=25",
        "",
        "",
    ]


def test_an_answer_is_read_like_this():
    lines = f"""\
private_key={"40" * 32}
listen_port=51820
something_new=1
public_key={"0a" * 32}
preshared_key={"00" * 32}
protocol_version=1
endpoint=192.0.2.1:1234
last_handshake_time_sec=1700000000
last_handshake_time_nsec=500000000
tx_bytes=7
rx_bytes=8
persistent_keepalive_interval=25
allowed_ip=10.0.0.1/32
allowed_ip=fd00::/48
errno=0

"""

    assert read(lines.encode()) == DeviceStatus(
        private_key=WireGuardPrivateKey(b"\x40" * 32),
        listen_port=51820,
        fwmark=0,
        peers={
            A: PeerStatus(
                allowed_ips=frozenset({IPv4Network("10.0.0.1/32"), IPv6Network("fd00::/48")}),
                endpoint=Endpoint(IPv4Address("192.0.2.1"), 1234),
                persistent_keepalive=25,
                preshared_key=None,
                last_handshake_time=1700000000.5,
                rx_bytes=8,
                tx_bytes=7,
            )
        },
    )


def test_a_change_of_nothing_is_no_request():
    assert list(uapi.encode_set(DeviceChange())) == []


def test_many_peers_go_out_in_chunks():
    peers = tuple(PeerChange(WireGuardKey(i.to_bytes(32, "big"))) for i in range(600))

    requests = list(uapi.encode_set(DeviceChange(listen_port=1, peers=peers)))

    assert [request.count(b"public_key=") for request in requests] == [256, 256, 88]
    assert [request.count(b"listen_port=") for request in requests] == [1, 0, 0]


@given(device_changes)
def test_each_request_is_one_section_ended_by_one_empty_line(change):
    for request in uapi.encode_set(change):
        assert request.startswith(b"set=1\n")
        assert request.find(b"\n\n") == len(request) - 2


@given(device_statuses())
def test_what_wireguard_go_says_is_what_the_device_is(status):
    assert read(answer(status)) == status


@given(st.lists(device_statuses(), max_size=4))
def test_what_was_said_before_changes_nothing_of_what_is_said_now(statuses):
    reader = uapi.StatusReader()

    assert [reader.read(answer(status)) for status in statuses] == statuses


def test_only_the_peers_whose_lines_have_changed_are_read_again():
    reader, peer = uapi.StatusReader(), "public_key={}\nrx_bytes={}\n"
    unchanged, other = peer.format(A.hex(), 7), peer.format(B.hex(), 7)
    before = reader.read(f"{unchanged}{other}errno=0\n\n".encode())

    after = reader.read(f"{unchanged}{peer.format(B.hex(), 8)}errno=0\n\n".encode())

    assert after.peers[A] is before.peers[A]
    assert (before.peers[B].rx_bytes, after.peers[B].rx_bytes) == (7, 8)


@given(hostile_answers)
def test_any_bytes_give_a_status_or_a_device_error(data):
    with contextlib.suppress(DeviceError):
        read(data)
    with contextlib.suppress(DeviceError):
        uapi.raise_for_error(data, "try")


@given(
    status=device_statuses(),
    damage=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_a_damaged_answer_gives_a_status_or_a_device_error(status, damage):
    data = bytearray(answer(status))
    for position, value in damage:
        data[position % len(data)] = value
    with contextlib.suppress(DeviceError):
        read(bytes(data))


@pytest.mark.parametrize("sign", ["", "-"])
def test_an_errno_is_raised_whatever_its_sign(sign):
    with pytest.raises(DeviceError, match=r"^try: Address already in use$") as refused:
        uapi.raise_for_error(f"errno={sign}{errno.EADDRINUSE}\n\n".encode(), "try")

    assert refused.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("data", [b"", b"errno=0", b"errno=0\n", b"\n\n", b"errno=x\n\n"])
def test_an_answer_without_its_end_is_an_error(data):
    with pytest.raises(DeviceError, match="Bad message"):
        uapi.raise_for_error(data, "try")


def test_a_garbled_key_is_in_no_error():
    secret = "5" * 63 + "x"

    with pytest.raises(DeviceError) as refused:
        read(f"private_key={secret}\nerrno=0\n\n".encode())

    error = refused.value
    assert secret not in repr(error) + str(error)
    assert error.__cause__ is None


def test_a_peer_listed_twice_is_one_peer():
    lines = f"public_key={A.hex()}\nallowed_ip=10.0.0.1/32\n" * 2 + "errno=0\n\n"

    status = read(lines.encode())

    assert replace(status.peers[A], allowed_ips=frozenset()).endpoint is None
    assert status.peers[A].allowed_ips == {IPv4Network("10.0.0.1/32")}
