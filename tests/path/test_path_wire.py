import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.codec import pack
from meshd.errors import BadPacket
from meshd.keys import BootstrapKey, MeshKey
from meshd.path import wire
from meshd.path.wire import (
    BODY_BYTES_MIN,
    PRESHARED_BYTES_MAX,
    Probe,
    ProbeSealer,
    ProbeType,
    SealedProbe,
)
from meshd.trust.record import RECORD_BYTES_MAX
from meshd.underlay import DATAGRAM_BYTES_MAX
from meshd.wg.types import Endpoint
from path.world import BOOTSTRAP_KEY, MESH, A, B, C, Scripted, endpoint, record_of

NONCE = bytes(range(24))

uint64 = st.integers(0, 2**64 - 1)
transactions = st.binary(min_size=8, max_size=8)
endpoints = st.builds(Endpoint, st.ip_addresses(v=4), st.integers(0, 65535))
pings = st.builds(
    Probe,
    type=st.just(ProbeType.PING),
    transaction=transactions,
    installed=st.booleans(),
    held=uint64,
    sequence=uint64,
    record=st.none() | st.binary(max_size=RECORD_BYTES_MAX),
    preshared=st.none() | st.binary(max_size=PRESHARED_BYTES_MAX),
)
returning = st.builds(
    Probe,
    type=st.just(ProbeType.PING),
    transaction=transactions,
    installed=st.booleans(),
    held=uint64,
    sequence=uint64,
    yours=st.binary(max_size=RECORD_BYTES_MAX),
    preshared=st.none() | st.binary(max_size=PRESHARED_BYTES_MAX),
)
pongs = st.builds(
    Probe,
    type=st.just(ProbeType.PONG),
    transaction=transactions,
    installed=st.booleans(),
    held=uint64,
    sequence=uint64,
    observed=endpoints,
    preshared=st.none() | st.binary(max_size=PRESHARED_BYTES_MAX),
)
PING = Probe(ProbeType.PING, b"12345678", installed=True, held=3, sequence=2**48)
PONG = Probe(
    ProbeType.PONG, b"12345678", installed=False, held=0, sequence=7, observed=endpoint("192.0.2.1")
)


def sealer(key, *, bootstrap_key=BOOTSTRAP_KEY, mesh=MESH):
    return ProbeSealer(key, mesh, bootstrap_key)


def opened(by, datagram):
    sealed = by.open_sender_untrusted(datagram)
    return sealed.sender, by.open_probe_untrusted(sealed)


@given(pings | returning | pongs, st.binary(min_size=24, max_size=24))
def test_roundtrip(probe, nonce):
    assert opened(sealer(B), sealer(A).seal(probe, B.id, nonce)) == (A.id, probe)


@given(pings | returning, pongs)
def test_no_pong_is_longer_than_a_ping(ping, pong):
    seal = sealer(A).seal

    assert len(seal(pong, B.id, NONCE)) <= len(seal(ping, B.id, NONCE)) <= DATAGRAM_BYTES_MAX


def test_a_ping_with_the_longest_record_fits():
    probe = Probe(ProbeType.PING, bytes(8), True, 2**64 - 1, 2**64 - 1, record=bytes(1000))
    probe = replace(probe, preshared=bytes(PRESHARED_BYTES_MAX))

    assert len(sealer(A).seal(probe, B.id, NONCE)) <= DATAGRAM_BYTES_MAX


@given(st.binary(max_size=1300))
def test_arbitrary_bytes_only_ever_raise_bad_packet(datagram):
    with contextlib.suppress(BadPacket):
        opened(sealer(B), datagram)
    with contextlib.suppress(BadPacket):
        opened(sealer(B), b"mesh\x03" + datagram)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200))
def test_an_arbitrary_sender_only_ever_raises_bad_packet(sender, box):
    # What anybody with the bootstrap key can make us open.
    with pytest.raises(BadPacket):
        sealer(B).open_probe_untrusted(SealedProbe(type(A.id)(sender), NONCE, box))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers(0, 80), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.integers(0, 80), json_like, max_size=9))
@settings(max_examples=300)
def test_a_member_that_seals_rubbish_only_ever_causes_bad_packet(body):
    with contextlib.suppress(BadPacket):
        wire._decode_untrusted(pack(body))


@pytest.mark.parametrize("probe", [PING, PONG], ids=["ping", "pong"])
def test_a_bit_flipped_anywhere_opens_nothing(probe):
    datagram = sealer(A).seal(probe, B.id, NONCE)
    receiver = sealer(B)
    assert opened(receiver, datagram)

    for position in range(len(datagram)):
        for bit in range(8):
            flipped = bytearray(datagram)
            flipped[position] ^= 1 << bit
            with pytest.raises(BadPacket):
                opened(receiver, bytes(flipped))


def test_a_truncated_probe_opens_nothing():
    datagram = sealer(A).seal(PING, B.id, NONCE)

    for length in range(len(datagram)):
        with pytest.raises(BadPacket):
            opened(sealer(B), datagram[:length])


def test_another_bootstrap_key_or_another_mesh_opens_nothing():
    datagram = sealer(A).seal(PING, B.id, NONCE)

    with pytest.raises(BadPacket, match="does not open"):
        opened(sealer(B, bootstrap_key=BootstrapKey(b"\x03" * 32)), datagram)
    with pytest.raises(BadPacket, match="does not open"):
        opened(sealer(B, mesh=MeshKey(b"\x04" * 32).id), datagram)


def test_a_probe_for_another_member_opens_nothing():
    with pytest.raises(BadPacket, match="does not open"):
        opened(sealer(C), sealer(A).seal(PING, B.id, NONCE))


def rewrapped(datagram, sender):
    """What a holder of the bootstrap key can do: put another sender on the inner box."""
    stranger = sealer(C)
    sealed = stranger.open_sender_untrusted(datagram)
    inner = bytes(sender) + sealed.box
    return datagram[:29] + wire._seal(inner, sealed.nonce, stranger._probe_key)


def test_a_probe_cannot_be_turned_round_and_sent_back():
    datagram = sealer(A).seal(PING, B.id, NONCE)

    with pytest.raises(BadPacket, match="does not open"):
        opened(sealer(A), rewrapped(datagram, B.id))
    with pytest.raises(BadPacket, match="from ourselves"):
        opened(sealer(A), datagram)


def test_a_probe_cannot_be_given_another_sender():
    with pytest.raises(BadPacket, match="does not open"):
        opened(sealer(B), rewrapped(sealer(A).seal(PING, B.id, NONCE), C.id))


def test_probes_without_a_record_have_one_length():
    lengths = {len(sealer(A).seal(probe, B.id, NONCE)) for probe in (PING, PONG)}

    assert lengths == {5 + 24 + 16 + 32 + 16 + BODY_BYTES_MIN}


def test_the_longest_pong_is_no_longer_than_a_ping():
    long = replace(
        PONG,
        installed=True,
        held=2**64 - 1,
        sequence=2**64 - 1,
        observed=endpoint("2001:db8::1", 65535),
        preshared=bytes(PRESHARED_BYTES_MAX),
    )

    assert len(sealer(A).seal(long, B.id, NONCE)) == len(sealer(A).seal(PING, B.id, NONCE))


def test_an_id_that_is_no_key_cannot_be_sealed_for():
    assert sealer(A).can_seal(B.id)
    assert not sealer(A).can_seal(type(A.id)(bytes(32)))
    assert not sealer(A).can_seal(type(A.id)(b"\x01" + bytes(31)))


def test_a_record_travels_verbatim():
    blob = record_of(A)
    scripted = Scripted(A)

    _, probe = opened(sealer(B), scripted.ping(B, record=blob))

    assert probe.record == blob


def test_the_bytes_on_the_wire_do_not_change():
    datagram = sealer(A).seal(PING, B.id, NONCE)

    assert datagram.hex() == (
        "6d65736803000102030405060708090a0b0c0d0e0f1011121314151617c35036eb900446e20915954556756e"
        "200c67f07050dad6ce7c7b612bf5f4d60a67e8f358f72bd23cc2fa72912165f92e7a210c36bc925dda01b991"
        "1ca514f7ca9a7ce4ae9239c9577ebc2b9ee2f17771eb27abd8cdfaea508f7152a147ee9a09ab2306c5e536f3"
        "db725d9f76f28b7f18967c7f17ef4437ad7419d9535be57b45d8b19e9e53ebbad583711abb7096a8f9d56ad3"
        "91a1eefd6c9d6579813babd09d"
    )
