"""What newcomer and member say to each other in one bootstrap round trip.

    datagram:   "mesh" | type 1 or 2 | Noise message 1 or 2 (see `noise`), which holds

    length (2) | map                                              | zeros
                 1 signature      by the node key
                 2 signature      by the invite key   (request with an invite)
                 3 body

    request body                              answer body
    1 node     32 bytes                       1 record       blob: the answering member's own
    2 clock    Unix seconds                   2 clock        Unix seconds
    3 record   blob        } either           3 address      } where the request came from
    4 name     str         } or               4 port         }
    5 invite   blob        }                  5 ipv4_prefix  5 bytes
                                              6 chain        array of blob or int
                                              7 code         } a refusal
                                              8 text         }
                                             64 successions  array of blob: to roots that are
                                                             newer than that of the record shown
                                             65 revocation   blob: what puts the newcomer out

Rule 1: signatures cover the handshake's binding and the body.  So none can be taken into another
        handshake, and no other holder of the bootstrap key can alter what was signed.

Rule 2: a request is exactly as long as the longest answer, 1,200 bytes: nobody gets more out of a
        member than they put in.

Rule 3: a request can be read, and sent again, by every holder of the bootstrap key.  It holds
        nothing secret; admitting twice is admitting once; and no endpoint is taken from it.

Rule 4: an int in the chain stands for that link of the chain in the answering member's record.

Rule 5: the signer of an answer is the node of its record, whose chain leads to a root that the
        newcomer knows, or that one follows by the successions in the answer: a token does not let
        anybody pose as a member.

A member that may not admit hands the request to one that may, inside the tunnel, with the binding
(`AdmissionRequest`); that one verifies all of it again and sends its verdict (`AdmissionVerdict`).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, TypeAlias

from meshd.bootstrap.noise import KEY_BYTES as BINDING_BYTES
from meshd.bootstrap.noise import OVERHEAD_BYTES
from meshd.codec import Fields, network_untrusted, pack, pack_address, pack_network
from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, SIGNATURE_BYTES, NodeId
from meshd.trust.admission import Application
from meshd.trust.credential import CHAIN_LENGTH_MAX, CREDENTIAL_BYTES_MAX, CredentialCache
from meshd.trust.fact import FACT_BYTES_MAX
from meshd.trust.grammar import NAME_BYTES_MAX
from meshd.trust.invite import INVITE_BYTES_MAX, open_invite_untrusted
from meshd.trust.record import RECORD_BYTES_MAX, open_record_untrusted
from meshd.trust.refusal import REFUSAL_TEXT_BYTES_MAX, Refusal, RefusalCode, refusal_untrusted
from meshd.trust.roots import Roots
from meshd.trust.signed import Statement, signature, verify_signature_untrusted
from meshd.trust.succession import ROOTS_MAX, SUCCESSION_BYTES_MAX
from meshd.underlay import DATAGRAM_BYTES_MAX, HEADER_BYTES, MAGIC, pad, unpad_untrusted
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from meshd.keys import InviteKey, MeshId, NodeKey
    from meshd.trust.record import Record

VERSION = 1
PROLOGUE = MAGIC + bytes([VERSION])
PAYLOAD_BYTES = DATAGRAM_BYTES_MAX - HEADER_BYTES - OVERHEAD_BYTES
REFERENCE_BYTES = 8
CLOCK_MAX = 2**48 - 1
PORT_MAX = 0xFFFF
# What a verdict is about travels inside the tunnel, in a gossip datagram.
HANDED_PAYLOAD_BYTES_MAX = 800
# Of an answer, besides its record, its successions, and what may be cut: signature, clock, address,
# prefix, the heads of maps and arrays, a code.
_ANSWER_REST_BYTES = 160
_BLOB_HEAD_BYTES = 3

# What a newcomer gets: its chain, or () if it has brought its own; or a refusal.
Verdict: TypeAlias = tuple[bytes, ...] | Refusal


@dataclass(frozen=True, slots=True)
class ByRecord:
    """A newcomer that has a chain already: it knows the secret, or was a member before."""

    record: bytes


@dataclass(frozen=True, slots=True)
class ByInvite:
    """A newcomer with a token."""

    name: str
    invite: bytes
    invite_key: InviteKey


Introduction: TypeAlias = ByRecord | ByInvite


@dataclass(frozen=True, slots=True)
class Request:
    """A verified request: the node, and the invite's key if there is one, have signed it."""

    node: NodeId
    clock: int  # its wall clock
    record: bytes | None  # not yet opened
    application: Application | None  # exactly when there is no record


@dataclass(frozen=True, slots=True)
class Answer:
    """A verified answer."""

    seed: Record
    seed_record: bytes
    clock: int  # the seed's wall clock
    observed: Endpoint  # where the seed saw our request come from
    ipv4_prefix: IPv4Network
    verdict: Verdict
    revocation: bytes = b""  # what puts us out, if that is the reason; not yet verified
    successions: tuple[bytes, ...] = ()  # verified, where they follow our newest root


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """A request on its way to a member that may admit."""

    reference: bytes  # to find the waiting handshake by
    binding: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class AdmissionVerdict:
    """What that member says."""

    reference: bytes
    verdict: Verdict


def encode_request(
    introduction: Introduction,
    *,
    key: NodeKey,
    mesh: MeshId,
    binding: bytes,
    wall: float,
    size: int = PAYLOAD_BYTES,
) -> bytes:
    """Return the payload of a request, padded to `size`: less where a code goes before it."""
    body: dict[int, object] = {1: bytes(key.id), 2: int(wall)}
    if isinstance(introduction, ByRecord):
        body[3] = introduction.record
    else:
        body[4] = introduction.name
        body[5] = introduction.invite
    packed = pack(body)
    fields: dict[int, object] = {1: signature(Statement.REQUEST, mesh, key, binding + packed)}
    if isinstance(introduction, ByInvite):
        fields[2] = signature(Statement.REQUEST, mesh, introduction.invite_key, binding + packed)
    fields[3] = packed
    payload = pad(pack(fields), size)
    assert len(payload) == size, "records and invites are bounded so that this fits"
    return payload


def open_request_untrusted(payload: bytes, binding: bytes, mesh: MeshId) -> Request:
    """Parse and verify a request's payload, padding taken off."""
    fields = Fields.unpack_untrusted(payload, what="request")
    node_signature = fields.blob(1, size=SIGNATURE_BYTES)
    invite_signature = fields.blob(2, size=SIGNATURE_BYTES) if fields.has(2) else None
    packed = fields.blob(3, maximum=PAYLOAD_BYTES)
    fields.done()
    body = Fields.unpack_untrusted(packed, what="request body")
    node = NodeId(body.blob(1, size=KEY_BYTES))
    clock = body.uint(2, maximum=CLOCK_MAX)
    record = None
    application = None
    if body.has(3):
        record = body.blob(3, maximum=RECORD_BYTES_MAX)
    else:
        application = Application(
            subject=node,
            name=body.text(4, bytes_max=NAME_BYTES_MAX),
            invite=body.blob(5, maximum=INVITE_BYTES_MAX),
        )
    body.done()
    verify_signature_untrusted(Statement.REQUEST, mesh, node, binding + packed, node_signature)
    if application is not None:
        if invite_signature is None:
            raise BadPacket("request without the invite key")
        invite = open_invite_untrusted(application.invite, mesh)
        verify_signature_untrusted(
            Statement.REQUEST, mesh, invite.id, binding + packed, invite_signature
        )
    return Request(node=node, clock=clock, record=record, application=application)


def encode_answer(
    verdict: Verdict,
    *,
    key: NodeKey,
    mesh: MeshId,
    binding: bytes,
    record: bytes,
    chain: tuple[bytes, ...],
    observed: Endpoint,
    ipv4_prefix: IPv4Network,
    wall: float,
    revocation: bytes = b"",
    successions: tuple[bytes, ...] = (),
) -> bytes:
    """Return the payload of an answer by the member whose record and chain these are.

    What does not fit becomes a refusal; a revocation that does not fit is left out, and then a
    refusal's text is cut.  Successions go before all of that, the oldest first, but a record of
    the longest kind leaves no room for any.
    """
    body: dict[int, object] = {
        1: record,
        2: int(wall),
        3: pack_address(observed.address),
        4: observed.port,
        5: pack_network(ipv4_prefix),
    }
    room = PAYLOAD_BYTES - len(record) - _ANSWER_REST_BYTES
    if successions := _fitting(successions, room):
        body[64] = successions
    if not isinstance(verdict, Refusal):
        if verdict:
            known = {link: index for index, link in enumerate(chain)}
            body[6] = tuple(known.get(link, link) for link in verdict)
        payload = _sealed_answer(body, key=key, mesh=mesh, binding=binding)
        if len(payload) <= PAYLOAD_BYTES:
            return payload
        body.pop(6, None)
        verdict = Refusal(
            RefusalCode.ANSWER_TOO_LONG,
            "this member's record leaves no room for your credential; use another seed",
        )
    body[7] = int(verdict.code)
    text = verdict.text.encode()[:REFUSAL_TEXT_BYTES_MAX]
    if revocation:
        body[65] = revocation
    while True:
        body[8] = text.decode(errors="ignore")
        payload = _sealed_answer(body, key=key, mesh=mesh, binding=binding)
        excess = len(payload) - PAYLOAD_BYTES
        if excess <= 0:
            return payload
        if body.pop(65, None) is not None:
            continue
        assert text, "a record and an empty text fit"
        text = text[: max(0, len(text) - excess)]


def open_answer_untrusted(
    payload: bytes,
    binding: bytes,
    mesh: MeshId,
    cache: CredentialCache,
    roots: Roots | None = None,
) -> Answer:
    """Parse and verify an answer's payload, seen from the roots that are known here."""
    fields = Fields.unpack_untrusted(unpad_untrusted(payload), what="answer")
    claimed = fields.blob(1, size=SIGNATURE_BYTES)
    packed = fields.blob(3, maximum=PAYLOAD_BYTES)
    fields.done()
    body = Fields.unpack_untrusted(packed, what="answer body")
    blob = body.blob(1, maximum=RECORD_BYTES_MAX)
    clock = body.uint(2, maximum=CLOCK_MAX)
    address = body.address(3)
    if address is None:
        raise BadPacket("answer without the observed address")
    observed = Endpoint(address, body.uint(4, maximum=PORT_MAX))
    ipv4_prefix = network_untrusted(body.blob(5))
    if not isinstance(ipv4_prefix, IPv4Network):
        raise BadPacket("answer without an IPv4 prefix")
    links = body.items(6, count_max=CHAIN_LENGTH_MAX)
    refusal = None
    if body.has(7):
        code = body.uint(7)
        refusal = refusal_untrusted(code, body.text(8, bytes_max=REFUSAL_TEXT_BYTES_MAX))
    revocation = body.blob(65, maximum=FACT_BYTES_MAX) if body.has(65) else b""
    successions = body.blobs(64, count_max=ROOTS_MAX, bytes_max=SUCCESSION_BYTES_MAX)
    body.done()
    if successions:
        # Adopted by nobody yet: that is for the ledger, when all of the answer has been verified.
        cache = CredentialCache()
        cache.roots = (roots or Roots.first(mesh)).grown_untrusted(successions).keys
    seed, _ = open_record_untrusted(blob, mesh, cache)
    verify_signature_untrusted(Statement.ANSWER, mesh, seed.node, binding + packed, claimed)
    return Answer(
        seed=seed,
        seed_record=blob,
        clock=clock,
        observed=observed,
        ipv4_prefix=ipv4_prefix,
        verdict=refusal or tuple(_link_untrusted(link, seed.chain) for link in links),
        revocation=revocation,
        successions=successions,
    )


def encode_admission_request(request: AdmissionRequest) -> bytes:
    """Return a request for the way through the tunnel."""
    assert len(request.payload) <= HANDED_PAYLOAD_BYTES_MAX, "requests with an invite fit"
    return pack({1: request.reference, 2: request.binding, 3: request.payload})


def decode_admission_request_untrusted(data: bytes) -> AdmissionRequest:
    """Parse a handed-over request; `open_request_untrusted` verifies what is in it."""
    fields = Fields.unpack_untrusted(data, what="admission request")
    request = AdmissionRequest(
        reference=fields.blob(1, size=REFERENCE_BYTES),
        binding=fields.blob(2, size=BINDING_BYTES),
        payload=fields.blob(3, maximum=HANDED_PAYLOAD_BYTES_MAX),
    )
    fields.done()
    return request


def encode_admission_verdict(verdict: AdmissionVerdict) -> bytes:
    """Return a verdict for the way back."""
    fields: dict[int, object] = {1: verdict.reference}
    if isinstance(verdict.verdict, Refusal):
        fields[3] = int(verdict.verdict.code)
        fields[4] = verdict.verdict.text.encode()[:REFUSAL_TEXT_BYTES_MAX].decode(errors="ignore")
    else:
        fields[2] = verdict.verdict
    return pack(fields)


def decode_admission_verdict_untrusted(data: bytes) -> AdmissionVerdict:
    """Parse a verdict.  Its chain is verified by the newcomer, whom alone it concerns."""
    fields = Fields.unpack_untrusted(data, what="admission verdict")
    reference = fields.blob(1, size=REFERENCE_BYTES)
    chain = fields.blobs(2, count_max=CHAIN_LENGTH_MAX, bytes_max=CREDENTIAL_BYTES_MAX)
    refusal = None
    if fields.has(3):
        code = fields.uint(3)
        refusal = refusal_untrusted(code, fields.text(4, bytes_max=REFUSAL_TEXT_BYTES_MAX))
    fields.done()
    if refusal is None and not chain:
        raise BadPacket("admission verdict says nothing")
    return AdmissionVerdict(reference, refusal or chain)


def _sealed_answer(body: dict[int, object], *, key: NodeKey, mesh: MeshId, binding: bytes) -> bytes:
    packed = pack(body)
    return pad(pack({1: signature(Statement.ANSWER, mesh, key, binding + packed), 3: packed}), 0)


def _fitting(blobs: tuple[bytes, ...], room: int) -> tuple[bytes, ...]:
    """Return the first of several blobs that fit."""
    fitting: list[bytes] = []
    for blob in blobs:
        room -= len(blob) + _BLOB_HEAD_BYTES
        if room < 0:
            break
        fitting.append(blob)
    return tuple(fitting)


def _link_untrusted(link: object, chain: tuple[bytes, ...]) -> bytes:
    if isinstance(link, bytes) and len(link) <= CREDENTIAL_BYTES_MAX:
        return link
    if isinstance(link, int) and not isinstance(link, bool) and 0 <= link < len(chain):
        return chain[link]
    raise BadPacket("malformed chain")
