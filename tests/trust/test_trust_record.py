from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.codec import pack
from meshd.errors import BadPacket, UsageError
from meshd.keys import WireGuardKey
from meshd.trust.fact import FactKind
from meshd.trust.record import (
    CANDIDATES_MAX,
    RECORD_BYTES_MAX,
    SEQUENCE_MAX,
    Candidate,
    CandidateKind,
    Record,
    open_record_untrusted,
    record_fact,
    sign_record,
)
from meshd.trust.signed import Statement, sign
from trust.world import (
    HOST,
    HOST6,
    MESH,
    OTHER_MESH_KEY,
    WALL,
    WIREGUARD_KEY,
    A,
    B,
    cache,
    chain_to,
    founding_chain,
    record_blob,
)

CHAIN = founding_chain(A)
ROUTES = (IPv4Network("10.1.0.0/16"), IPv6Network("2001:db8:1::/48"))

ports = st.integers(1, 65535)
addresses = st.one_of(
    st.ip_addresses(v=4),
    st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None),
)
candidates = st.builds(Candidate, st.sampled_from(CandidateKind), addresses, ports).flatmap(
    lambda candidate: ports.map(
        lambda port: replace(candidate, control_port=0 if port == candidate.port else port)
    )
)
records = st.builds(
    Record,
    node=st.just(A.id),
    sequence=st.integers(0, SEQUENCE_MAX),
    wireguard_key=st.binary(min_size=32, max_size=32).map(WireGuardKey),
    next_wireguard_key=st.none() | st.binary(min_size=32, max_size=32).map(WireGuardKey),
    candidates=st.lists(candidates, max_size=CANDIDATES_MAX).map(tuple),
    ipv4=st.none() | st.ip_addresses(v=4),
    routes=st.lists(st.sampled_from(ROUTES), max_size=16).map(tuple),
    relay=st.booleans(),
    version=st.text(st.characters(codec="ascii"), max_size=32),
    chain=st.just(CHAIN),
    run=st.integers(0, 2**64 - 1),
    rival=st.integers(0, 2**64 - 1),
    cloned=st.booleans(),
)


@given(records)
def test_a_record_opens_as_what_was_signed(record):
    opened, credentials = open_record_untrusted(sign_record(record, A, MESH), MESH, cache())

    assert opened == record
    assert credentials[-1].name == "a"


def test_a_record_of_one_mesh_is_none_of_another():
    other = OTHER_MESH_KEY.id
    blob = record_blob(A, CHAIN)
    foreign = record_blob(A, founding_chain(A, mesh_key=OTHER_MESH_KEY), mesh=other)

    assert open_record_untrusted(foreign, other, cache())
    with pytest.raises(BadPacket):
        open_record_untrusted(blob, other, cache())
    with pytest.raises(BadPacket):
        open_record_untrusted(foreign, MESH, cache())
    with pytest.raises(BadPacket):
        open_record_untrusted(record_blob(A, CHAIN, mesh=other), other, cache())


def test_nobody_signs_for_another():
    record = Record(A.id, 1, WIREGUARD_KEY, chain=CHAIN)
    genuine = sign_record(record, A, MESH)

    with pytest.raises(BadPacket, match="bad signature"):
        open_record_untrusted(sign(Statement.RECORD, MESH, B, genuine[64:]), MESH, cache())


def test_a_record_with_the_chain_of_another_is_refused():
    with pytest.raises(BadPacket, match="another subject"):
        open_record_untrusted(record_blob(B, CHAIN), MESH, cache())


def test_a_record_without_a_chain_is_refused():
    with pytest.raises(BadPacket, match="empty"):
        open_record_untrusted(record_blob(A, ()), MESH, cache())


def member(**grants):
    return chain_to(B, by=A, through=CHAIN, name="b", **grants)


@pytest.mark.parametrize("routes", [ROUTES, ROUTES[:1], (IPv4Network("10.1.2.0/24"),), ()])
def test_a_granted_prefix_covers_what_lies_inside_it(routes):
    blob = record_blob(B, member(routes=ROUTES), routes=routes)

    assert open_record_untrusted(blob, MESH, cache())[0].routes == routes


@pytest.mark.parametrize(
    "routes", [("10.0.0.0/8",), ("10.2.0.0/16",), ("0.0.0.0/0",), ("10.1.0.0/16", "::/0")]
)
def test_a_prefix_that_was_not_granted_cannot_be_advertised(routes):
    networks = tuple(IPv6Network(route) if ":" in route else IPv4Network(route) for route in routes)

    with pytest.raises(BadPacket, match="routes not granted"):
        open_record_untrusted(record_blob(B, member(routes=ROUTES), routes=networks), MESH, cache())


def test_nobody_relays_without_the_right_to():
    assert open_record_untrusted(record_blob(B, member(relay=True), relay=True), MESH, cache())
    with pytest.raises(BadPacket, match="relays without"):
        open_record_untrusted(record_blob(B, member(), relay=True), MESH, cache())


def test_a_pinned_node_claims_no_other_address():
    pin, other = IPv4Address("100.64.0.7"), IPv4Address("100.64.0.8")
    chain = member(ipv4=pin)

    for claim in (pin, None):
        assert open_record_untrusted(record_blob(B, chain, ipv4=claim), MESH, cache())
    with pytest.raises(BadPacket, match="than its pin"):
        open_record_untrusted(record_blob(B, chain, ipv4=other), MESH, cache())


@settings(max_examples=25)
@given(st.integers(0, 16))
def test_the_least_preferred_candidates_are_left_out_where_space_ends(routes):
    record = Record(
        A.id,
        1,
        WIREGUARD_KEY,
        next_wireguard_key=WIREGUARD_KEY,
        candidates=tuple(replace(HOST6, port=port) for port in range(1, CANDIDATES_MAX + 1)),
        routes=ROUTES[1:] * routes,
        chain=chain_of_three(),
    )
    record = replace(record, node=B.id)

    blob = sign_record(record, B, MESH)

    opened, _ = open_record_untrusted(blob, MESH, cache())
    assert len(blob) <= RECORD_BYTES_MAX
    assert opened.candidates == record.candidates[: len(opened.candidates)]
    assert replace(opened, candidates=()) == replace(record, candidates=())


def chain_of_three():
    middle = chain_to(B, by=A, through=CHAIN, name="b", admit=True, routes=ROUTES)
    return chain_to(B, by=B, through=middle, name="b", routes=ROUTES)


def test_too_many_routes_are_the_operators_error():
    routes = tuple(IPv6Network((number << 80, 48)) for number in range(16))
    record = Record(
        A.id, 1, WIREGUARD_KEY, WIREGUARD_KEY, routes=routes, chain=CHAIN * 4, version="v" * 32
    )

    with pytest.raises(UsageError, match="16 routes do not fit"):
        sign_record(record, A, MESH)


def candidate_record(*values):
    body = {1: bytes(A.id), 2: 1, 3: bytes(WIREGUARD_KEY), 5: values, 10: CHAIN}
    return sign(Statement.RECORD, MESH, A, pack(body))


def test_a_candidate_of_an_unknown_kind_is_left_out():
    blob = candidate_record((9, HOST.address.packed, 1), (1, HOST.address.packed, 51820, 51821, 7))

    record, _ = open_record_untrusted(blob, MESH, cache())
    assert record.candidates == (replace(HOST, control_port=51821),)


@pytest.mark.parametrize(
    "value",
    [
        (1, HOST.address.packed),
        (1, HOST.address.packed, 0),
        (1, HOST.address.packed, 65536),
        (1, HOST.address.packed, True),
        (1, HOST.address.packed, 1, 0),
        (1, HOST.address.packed, 1, None),
        (-1, HOST.address.packed, 1),
        (True, HOST.address.packed, 1),
        (1, "192.0.2.1", 1),
        (1, IPv6Address("::ffff:192.0.2.1").packed, 1),
        (9, b"", 1),
        (1, HOST.address.packed, 1, 1, 1, 1, 1, 1, 1),
        "candidate",
    ],
)
def test_a_malformed_candidate_spoils_the_record(value):
    with pytest.raises(BadPacket, match="malformed"):
        open_record_untrusted(candidate_record(value), MESH, cache())


def test_a_record_has_a_size_limit():
    body = {1: bytes(A.id), 2: 1, 3: bytes(WIREGUARD_KEY), 10: CHAIN, 64: bytes(1000)}

    with pytest.raises(BadPacket, match="too long"):
        open_record_untrusted(sign(Statement.RECORD, MESH, A, pack(body)), MESH, cache())


def test_what_a_later_version_adds_is_forwarded_and_otherwise_ignored():
    body = {1: bytes(A.id), 2: 1, 3: bytes(WIREGUARD_KEY), 10: CHAIN, 64: ["service"]}
    blob = sign(Statement.RECORD, MESH, A, pack(body))

    record, _ = open_record_untrusted(blob, MESH, cache())
    assert record == Record(A.id, 1, WIREGUARD_KEY, chain=CHAIN)
    assert record_fact(record, blob).blob == blob


def test_a_records_fact_is_filed_by_node_and_sequence():
    blob = record_blob(A, CHAIN, sequence=7)
    fact = record_fact(open_record_untrusted(blob, MESH, cache())[0], blob)

    assert (fact.kind, fact.key, fact.version) == (FactKind.RECORD, bytes(A.id), 7)
    assert len(fact.digest) == 8


def test_the_body_is_pinned():
    record = Record(
        node=A.id,
        sequence=258,
        wireguard_key=WIREGUARD_KEY,
        next_wireguard_key=WireGuardKey(b"n" * 32),
        candidates=(HOST, replace(HOST6, kind=CandidateKind.REFLEXIVE, control_port=4500)),
        ipv4=IPv4Address("100.64.1.1"),
        routes=ROUTES,
        relay=True,
        version="0.1.0",
        chain=(b"link",),
    )

    assert sign_record(record, A, MESH)[64:].hex() == (
        "8a"
        "01c420af06a3e3291714e4f356c19c9b15cd1951ec6e6662aa77be07547f289383341d"
        "02cd0102"
        "03c4207777777777777777777777777777777777777777777777777777777777777777"
        "04c4206e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e"
        "05929301c404c0000201cdca6c9402c41020010db8000000000000000000000001cdca6ccd1194"
        "06c40464400101"
        "0792c4050a01000010c41120010db800010000000000000000000030"
        "08c3"
        "09a5302e312e30"
        "0a91c4046c696e6b"
    )


def test_typical_sizes():
    founder = record_blob(A, CHAIN)
    chain = chain_to(B, by=A, through=CHAIN, name="laptop", expires_at=WALL + 1)

    assert len(CHAIN[0]) <= 150
    assert len(founder) <= 340
    assert len(record_blob(B, chain)) <= 470
