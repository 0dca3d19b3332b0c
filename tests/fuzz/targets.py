"""Every function that reads bytes from outside, so that one fuzzer can be pointed at each.

Rule 1: any bytes give a value, or `BadPacket` with a short constant reason; nothing else.

Rule 2: where there is an encoder, what was decoded is encoded into bytes that decode to the same.

A target that checks a signature first would turn away all that a fuzzer makes.  Where there is a
`sign`, half of the inputs are signed again after they were changed, as a member gone bad would.
"""

from __future__ import annotations

import functools
import random
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from bootstrap import world as bootstrap
from fuzz.mutate import Mutator, seed_of
from fuzz.people import accused, datagrams, said, signed_claim
from gossip.harness import MESH as GOSSIP_MESH
from meshd.bootstrap.messages import (
    AdmissionRequest,
    AdmissionVerdict,
    decode_admission_request_untrusted,
    decode_admission_verdict_untrusted,
    encode_admission_request,
    encode_admission_verdict,
    encode_answer,
    encode_request,
    open_answer_untrusted,
    open_request_untrusted,
)
from meshd.codec import pack, unpack_untrusted
from meshd.errors import BadPacket
from meshd.gossip import wire as gossip_wire
from meshd.gossip.claim import peek_claim_untrusted
from meshd.gossip.wire import encode
from meshd.keys import SIGNATURE_BYTES
from meshd.path import wire as path_wire
from meshd.path.wire import Probe, ProbeSealer, ProbeType
from meshd.trust.credential import verify_chain_untrusted
from meshd.trust.fact import FactKind
from meshd.trust.invite import format_token, open_invite_untrusted, parse_token_untrusted
from meshd.trust.invite_use import open_invite_use_untrusted
from meshd.trust.ledger import Ledger
from meshd.trust.record import open_record_untrusted
from meshd.trust.refusal import Refusal, RefusalCode
from meshd.trust.revocation import open_revocation_untrusted
from meshd.trust.signed import Statement, sign
from meshd.underlay import datagram_type_untrusted, pad, unpad_untrusted
from trust import world as trust

if TYPE_CHECKING:
    from collections.abc import Callable

REASONS_MAX = 64  # of one decoder: they are metric labels
_REASON_CHARS_MAX = 80
_BINDING = bytes(range(32))
_NONCE = bytes(24)


class Target(NamedTuple):
    """One way in."""

    decode: Callable[[bytes], object]
    seeds: list[bytes]
    head: int = 0  # bytes before the msgpack value
    sign: Callable[[bytes], bytes] | None = None  # makes a changed seed pass for genuine
    encode: Callable[[object], bytes] | None = None


@dataclass
class Result:
    """What came of fuzzing one target."""

    inputs: int = 0
    accepted: int = 0
    reasons: set = field(default_factory=set)
    seconds: float = 0.0
    wrong: str = ""
    data: bytes = b""

    @property
    def rate(self):
        return self.inputs / max(self.seconds, 1e-9)


def fuzz(name, *, inputs, seed, seconds=float("inf")):
    """Hand mutated bytes to a target until one breaks a rule."""
    target = TARGETS[name]()
    rng = random.Random(f"{name} {seed}")
    mutator = Mutator(rng, [seed_of(data, head=target.head) for data in target.seeds])
    result = Result()
    begin, until = time.process_time(), time.monotonic() + seconds
    while result.inputs < inputs:
        data = mutator.mutate(mutator.seed())
        if target.sign is not None and rng.random() < 0.5:
            data = target.sign(data)
        result.inputs += 1
        try:
            judge(target, data, result)
        except Exception:  # any error at all is what is searched for
            result.wrong, result.data = traceback.format_exc(), data
            break
        if result.inputs % 4096 == 0 and time.monotonic() > until:
            break
    result.seconds = time.process_time() - begin
    return result


def judge(target, data, result):
    """Check the rules for one input."""
    try:
        value = target.decode(data)
    except BadPacket as exc:
        reason = exc.reason
    else:
        result.accepted += 1
        _check_again(target, value)
        return
    result.reasons.add(reason)
    assert len(reason) <= _REASON_CHARS_MAX, reason
    assert len(result.reasons) <= REASONS_MAX, sorted(result.reasons)


def _check_again(target, value):
    """Check rule 2."""
    if target.encode is not None:
        again = target.decode(target.encode(value))
        assert again == value, f"{again} is not {value}"


def _signer(kind, key, mesh):
    return lambda blob: sign(kind, mesh, key, blob[SIGNATURE_BYTES:])


def _signed(decode, seeds, kind, key):
    """A statement of `meshd.trust`, whose cache lasts."""
    return Target(decode, seeds, SIGNATURE_BYTES, _signer(kind, key, trust.MESH))


_CHAIN = trust.founding_chain(trust.A)


def _gossip_datagram():
    return Target(gossip_wire.decode_untrusted, datagrams(), head=2, encode=encode)


def _gossip_claim():
    odd = {1: bytes(32), 2: 0, 3: 1, 4: b"a" * 32, 5: 0, 6: bytes(16)}
    items = [said("a", 1), accused("a", 1, "b"), accused("a", 1, "b", 0), signed_claim(odd, "a")]
    sign_again = _signer(Statement.CLAIM, trust.A, GOSSIP_MESH)
    seeds = [item.blob for item in items]
    return Target(peek_claim_untrusted, seeds, SIGNATURE_BYTES, sign_again)


def _path_sealer(key):
    return ProbeSealer(key, trust.MESH, trust.BOOTSTRAP_KEY)


def _probes():
    record = trust.record_blob(trust.A, _CHAIN)
    return [
        Probe(ProbeType.PING, b"12345678", installed=True, held=3, sequence=2**48),
        Probe(ProbeType.PING, b"12345678", installed=False, held=0, sequence=7, record=record),
        Probe(ProbeType.PONG, b"12345678", False, 0, 7, observed=bootstrap.SEED_AT),
        Probe(ProbeType.PONG, b"12345678", True, 9, 2**64 - 1, observed=bootstrap.NEWCOMER_AT),
    ]


def _path_datagram():
    sealer, opener = _path_sealer(trust.A), _path_sealer(trust.B)
    seeds = [sealer.seal(probe, trust.B.id, _NONCE) for probe in _probes()]

    def decode(datagram):
        return opener.open_probe_untrusted(opener.open_sender_untrusted(datagram))

    return Target(decode, seeds)


def _path_body():
    """What is inside both boxes, for whoever holds the keys."""
    return Target(
        path_wire._decode_untrusted,
        [path_wire._encode(probe) for probe in _probes()],
        encode=path_wire._encode,
    )


def _requests():
    return [
        unpad_untrusted(
            encode_request(
                introduction,
                key=bootstrap.NEWCOMER,
                mesh=bootstrap.MESH,
                binding=_BINDING,
                wall=bootstrap.WALL,
            )
        )
        for introduction in (bootstrap.by_invite(), bootstrap.by_record())
    ]


def _bootstrap_request():
    def decode(payload):
        return open_request_untrusted(payload, _BINDING, bootstrap.MESH)

    keys = bootstrap.NEWCOMER, bootstrap.INVITE_KEY
    return Target(
        decode,
        _requests(),
        sign=lambda payload: _signed_again(payload, Statement.REQUEST, *keys),
    )


def _signed_again(payload, kind, *keys):
    """Sign what a changed payload says, if there is anything to sign."""
    try:
        fields = unpack_untrusted(payload)
    except BadPacket:
        return payload
    if not isinstance(fields, dict) or not isinstance(fields.get(3), bytes):
        return payload
    message = _BINDING + fields[3]
    for number, key in enumerate(keys, start=1):
        fields[number] = sign(kind, bootstrap.MESH, key, message)[:SIGNATURE_BYTES]
    return pack(fields)


def _bootstrap_answer():
    cache = trust.cache()
    verdicts = [(), (bootstrap.link_for(bootstrap.NEWCOMER),), Refusal(RefusalCode.USED, "used")]
    seeds = [
        unpad_untrusted(
            encode_answer(
                verdict,
                key=bootstrap.SEED,
                mesh=bootstrap.MESH,
                binding=_BINDING,
                record=bootstrap.record_of(bootstrap.SEED),
                chain=bootstrap.chain_of(bootstrap.SEED),
                observed=bootstrap.NEWCOMER_AT,
                ipv4_prefix=bootstrap.PREFIX,
                wall=bootstrap.WALL,
            )
        )
        for verdict in verdicts
    ]

    def decode(payload):
        return open_answer_untrusted(pad(payload[:0xFFFF], 0), _BINDING, bootstrap.MESH, cache)

    return Target(
        decode,
        seeds,
        sign=lambda payload: _signed_again(payload, Statement.ANSWER, bootstrap.SEED),
    )


def _admission_request():
    request = AdmissionRequest(bytes(8), _BINDING, _requests()[0][:700])
    return Target(
        decode_admission_request_untrusted,
        [encode_admission_request(request)],
        encode=encode_admission_request,
    )


def _admission_verdict():
    chain = bootstrap.chain_of(bootstrap.SEED)
    verdicts = [chain, (*chain, bootstrap.link_for(bootstrap.NEWCOMER))]
    verdicts += [Refusal(RefusalCode.USED, "the token has been used")]
    return Target(
        decode_admission_verdict_untrusted,
        [encode_admission_verdict(AdmissionVerdict(bytes(8), verdict)) for verdict in verdicts],
    )


def _record():
    cache = trust.cache()
    seeds = [trust.record_blob(trust.A, _CHAIN), trust.record_blob(trust.A, _CHAIN, candidates=())]
    return _signed(
        lambda blob: open_record_untrusted(blob, trust.MESH, cache),
        seeds,
        Statement.RECORD,
        trust.A,
    )


def _credential():
    # Without a cache: one that is right is to be looked at as closely as one that is not.
    return _signed(
        lambda blob: verify_chain_untrusted((blob,), trust.MESH, trust.A.id, trust.cache()),
        list(_CHAIN),
        Statement.CREDENTIAL,
        trust.MESH_KEY,
    )


def _revocation():
    cache = trust.cache()
    by_member = trust.revocation_blob(trust.B, by=trust.A, chain=_CHAIN)
    return _signed(
        lambda blob: open_revocation_untrusted(blob, trust.MESH, cache),
        [trust.revocation_blob(trust.B), by_member],
        Statement.REVOCATION,
        trust.A,
    )


def _invite():
    return _signed(
        lambda blob: open_invite_untrusted(blob, trust.MESH),
        [trust.invite_blob(trust.A, tags=("db",)), trust.invite_blob(trust.A)],
        Statement.INVITE,
        trust.A,
    )


def _invite_use():
    cache = trust.cache()
    return _signed(
        lambda blob: open_invite_use_untrusted(blob, trust.MESH, cache),
        [trust.use_blob(trust.B, by=trust.A, chain=_CHAIN)],
        Statement.INVITE_USE,
        trust.A,
    )


def _ledger():
    ledger = Ledger(trust.MESH)
    kinds = list(FactKind)
    record, revocation = trust.record_blob(trust.A, _CHAIN), trust.revocation_blob(trust.B)
    use = trust.use_blob(trust.B, by=trust.A, chain=_CHAIN)

    def decode(blob):
        kind = kinds[len(blob) % len(kinds)]
        return ledger.merge_untrusted(kind, blob, trust.WALL)

    return Target(
        decode,
        [record, revocation, use],
        SIGNATURE_BYTES,
        _signer(Statement.RECORD, trust.A, trust.MESH),
    )


def _token():
    texts = [format_token(trust.token()), format_token(trust.token(seeds=()))]
    return Target(
        lambda data: parse_token_untrusted(data.decode("latin-1")),
        [text.encode() for text in texts],
    )


def _underlay():
    def decode(datagram):
        datagram_type_untrusted(datagram)
        return unpad_untrusted(datagram[5:])

    return Target(decode, [b"mesh\3" + pad(b"body", 64), b"mesh\1" + pad(b"", 8)])


TARGETS = {
    name: functools.cache(make)
    for name, make in {
        "gossip-datagram": _gossip_datagram,
        "gossip-claim": _gossip_claim,
        "path-datagram": _path_datagram,
        "path-body": _path_body,
        "bootstrap-request": _bootstrap_request,
        "bootstrap-answer": _bootstrap_answer,
        "admission-request": _admission_request,
        "admission-verdict": _admission_verdict,
        "record": _record,
        "credential": _credential,
        "revocation": _revocation,
        "invite": _invite,
        "invite-use": _invite_use,
        "ledger": _ledger,
        "token": _token,
        "underlay": _underlay,
    }.items()
}
