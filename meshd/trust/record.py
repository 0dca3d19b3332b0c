"""Records: what a node says of itself.

A record carries the chain that admits its node, so whoever holds it can verify everything in it
offline and pass it on.

Rule 1: only the node itself signs its record, and only it raises `sequence`.  The record with the
        highest one is the node's word.

Rule 2: a record says no more than its credential allows: routes within those granted, `relay`
        only with the right to it, the pinned address and no other.  One that does is refused
        whole, for its own node would not have signed it.

Rule 3: candidates come in the node's order of preference; those of a kind that is not known here
        are left out.

Body:

    1 node                 32 bytes        6 ipv4     4 bytes, the address it claims
    2 sequence             uint            7 routes   array of networks
    3 wireguard_key        32 bytes        8 relay    bool, absent = false
    4 next_wireguard_key   32 bytes        9 version  str, of its meshd
    5 candidates           array          10 chain    array of credential blobs
      each an array: kind, address, port, control_port (absent = the same port)
   11 former_word          72 bytes, of the node key before, absent = none: `node_succession`

   64 set aside for the services of a node
   72 run                 uint, of its daemon that has signed this, absent = 0
   73 rival               uint, another run above whose record this one went, absent = 0
   74 cloned              bool, rival is proven to live: see `meshd.engine.clones`
   80 tcp                 uint, TCP port at which it carries datagrams, absent = 0, none
   81 tls                 uint, the same with TLS: see `meshd.carrier`
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeGuard

from meshd.codec import Fields, address_untrusted, pack, pack_address, pack_network
from meshd.errors import BadPacket, UsageError
from meshd.keys import KEY_BYTES, NodeId, WireGuardKey
from meshd.trust.credential import (
    CHAIN_LENGTH_MAX,
    CREDENTIAL_BYTES_MAX,
    covered,
    verify_chain_untrusted,
)
from meshd.trust.fact import FACT_BYTES_MAX, Fact, FactKind
from meshd.trust.grammar import ipv4_untrusted
from meshd.trust.node_succession import WORD_BYTES, former_word_untrusted
from meshd.trust.signed import Statement, sign, split_untrusted, verify_signature_untrusted

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from meshd.codec import IPAddress, IPNetwork
    from meshd.keys import MeshId, NodeKey
    from meshd.trust.credential import Credential, CredentialCache

RECORD_BYTES_MAX = FACT_BYTES_MAX
CANDIDATES_MAX = 8
ROUTES_MAX = 16
SEQUENCE_MAX = 2**48 - 1
VERSION_BYTES_MAX = 32
PORT_MAX = 2**16 - 1
_CANDIDATE_ITEMS_MAX = 8  # four are known; later versions may append


class CandidateKind(enum.IntEnum):
    """How a node came to think that it is reached there.  On the wire.  Only append."""

    HOST = 1  # an address of one of its interfaces
    REFLEXIVE = 2  # what a member saw as source of its datagrams
    MAPPED = 3  # opened by the router on request
    CONFIGURED = 4  # said by the operator
    RELAYED = 5  # a port of a relay


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address on the underlay at which a node may be reached."""

    kind: CandidateKind
    address: IPAddress
    port: int  # WireGuard's
    control_port: int = 0  # meshd's; 0 = the same port


@dataclass(frozen=True, slots=True)
class Record:
    """See the module docstring."""

    node: NodeId
    sequence: int
    wireguard_key: WireGuardKey
    next_wireguard_key: WireGuardKey | None = None
    candidates: tuple[Candidate, ...] = ()
    ipv4: IPv4Address | None = None
    routes: tuple[IPNetwork, ...] = ()
    relay: bool = False
    version: str = ""
    chain: tuple[bytes, ...] = ()
    run: int = 0
    rival: int = 0
    cloned: bool = False
    tcp: int = 0
    tls: int = 0
    former_word: bytes = b""  # there if the credential succeeds somebody: see `node_succession`


def sign_record(record: Record, key: NodeKey, mesh: MeshId) -> bytes:
    """Return the blob of a record; the last candidates are left out if it would be too long.

    Raise UsageError if it is too long even without candidates: the routes are too many.
    """
    assert record.node == key.id
    while True:
        blob = sign(Statement.RECORD, mesh, key, _encode(record))
        if len(blob) <= RECORD_BYTES_MAX:
            return blob
        if not record.candidates:
            raise UsageError(
                f"advertise: {len(record.routes)} routes do not fit into this node's record; "
                "advertise fewer and wider ones"
            )
        record = replace(record, candidates=record.candidates[:-1])


def open_record_untrusted(
    blob: bytes, mesh: MeshId, cache: CredentialCache
) -> tuple[Record, tuple[Credential, ...]]:
    """Return a record and the chain that admits its node, both verified, or raise BadPacket."""
    signature, body = split_untrusted(blob, bytes_max=RECORD_BYTES_MAX)
    record = _decode_untrusted(body)
    verify_signature_untrusted(Statement.RECORD, mesh, record.node, body, signature)
    chain = verify_chain_untrusted(record.chain, mesh, record.node, cache)
    if chain[-1].succeeds is not None:
        former_word_untrusted(record.former_word, chain[-1].succeeds, record.node, mesh)
    _check_rights_untrusted(record, chain[-1])
    return record, chain


def record_fact(record: Record, blob: bytes) -> Fact:
    """Return the fact that an opened record is."""
    return Fact(FactKind.RECORD, bytes(record.node), record.sequence, blob)


def _check_rights_untrusted(record: Record, credential: Credential) -> None:
    if record.relay and not credential.relay:
        raise BadPacket("record relays without the right to")
    if not all(covered(route, credential.routes) for route in record.routes):
        raise BadPacket("record advertises routes not granted")
    if credential.ipv4 is not None and record.ipv4 not in {None, credential.ipv4}:
        raise BadPacket("record claims another address than its pin")


def _encode(record: Record) -> bytes:
    body: dict[int, object] = {
        1: bytes(record.node),
        2: record.sequence,
        3: bytes(record.wireguard_key),
    }
    if record.next_wireguard_key is not None:
        body[4] = bytes(record.next_wireguard_key)
    if record.candidates:
        body[5] = tuple(_pack_candidate(candidate) for candidate in record.candidates)
    if record.ipv4 is not None:
        body[6] = pack_address(record.ipv4)
    if record.routes:
        body[7] = tuple(pack_network(route) for route in record.routes)
    if record.relay:
        body[8] = True
    if record.version:
        body[9] = record.version
    body[10] = record.chain
    if record.former_word:
        body[11] = record.former_word
    if record.run:
        body[72] = record.run
    if record.rival:
        body[73] = record.rival
    if record.cloned:
        body[74] = True
    if record.tcp:
        body[80] = record.tcp
    if record.tls:
        body[81] = record.tls
    return pack(body)


def _decode_untrusted(body: bytes) -> Record:
    fields = Fields.unpack_untrusted(body, what="record")
    record = Record(
        node=NodeId(fields.blob(1, size=KEY_BYTES)),
        sequence=fields.uint(2, maximum=SEQUENCE_MAX),
        wireguard_key=WireGuardKey(fields.blob(3, size=KEY_BYTES)),
        next_wireguard_key=(
            WireGuardKey(fields.blob(4, size=KEY_BYTES)) if fields.has(4) else None
        ),
        candidates=_candidates_untrusted(fields.items(5, count_max=CANDIDATES_MAX)),
        ipv4=ipv4_untrusted(fields, 6),
        routes=fields.networks(7, count_max=ROUTES_MAX),
        relay=fields.flag(8),
        version=fields.text(9, bytes_max=VERSION_BYTES_MAX, default=""),
        chain=fields.blobs(10, count_max=CHAIN_LENGTH_MAX, bytes_max=CREDENTIAL_BYTES_MAX),
        run=fields.uint(72, default=0),
        rival=fields.uint(73, default=0),
        cloned=fields.flag(74),
        former_word=fields.blob(11, size=WORD_BYTES) if fields.has(11) else b"",
        tcp=fields.uint(80, maximum=PORT_MAX, default=0),
        tls=fields.uint(81, maximum=PORT_MAX, default=0),
    )
    fields.done()
    return record


def _pack_candidate(candidate: Candidate) -> tuple[object, ...]:
    head = (int(candidate.kind), pack_address(candidate.address), candidate.port)
    if candidate.control_port in {0, candidate.port}:
        return head
    return (*head, candidate.control_port)


def _candidates_untrusted(values: tuple[object, ...]) -> tuple[Candidate, ...]:
    candidates = (_candidate_untrusted(value) for value in values)
    return tuple(candidate for candidate in candidates if candidate is not None)


def _candidate_untrusted(value: object) -> Candidate | None:
    if not isinstance(value, tuple) or not 3 <= len(value) <= _CANDIDATE_ITEMS_MAX:
        raise BadPacket("malformed candidate")
    number, packed, port = value[:3]
    control_port = value[3] if len(value) > 3 else port
    if not _is_uint(number) or not _is_port(port) or not _is_port(control_port):
        raise BadPacket("malformed candidate")
    address = address_untrusted(packed)
    try:
        kind = CandidateKind(number)
    except ValueError:
        return None
    return Candidate(kind, address, port, 0 if control_port == port else control_port)


def _is_uint(value: object) -> TypeGuard[int]:
    # A bool is an int in Python, and msgpack has both.
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_port(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= PORT_MAX
