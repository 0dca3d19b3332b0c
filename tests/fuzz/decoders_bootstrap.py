"""What anybody may send to the underlay port: headers, handshakes, requests, answers, cookies."""

from random import Random

from bootstrap import world as bootstrap
from fuzz.registry import Target, decoder, target
from meshd.bootstrap.cookie import CookieMaker, code_of, open_cookie_untrusted
from meshd.bootstrap.events import BadPacketReceived
from meshd.bootstrap.messages import (
    PAYLOAD_BYTES,
    PROLOGUE,
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
from meshd.bootstrap.noise import Initiator
from meshd.bootstrap.noise import Responder as NoiseResponder
from meshd.codec import pack, unpack_untrusted
from meshd.errors import BadPacket
from meshd.keys import SIGNATURE_BYTES
from meshd.trust.refusal import Refusal, RefusalCode
from meshd.trust.signed import Statement, sign
from meshd.underlay import DatagramType, datagram_type_untrusted, header, pad, unpad_untrusted
from trust import world as trust

_BINDING = bytes(range(32))
_KEYS = {"psk": bootstrap.BOOTSTRAP_KEY, "prologue": PROLOGUE}


def _underlay(datagram):
    datagram_type_untrusted(datagram)
    return unpad_untrusted(datagram[5:])


decoder("underlay", _underlay, lambda: [b"mesh\3" + pad(b"body", 64), b"mesh\1" + pad(b"", 8)])


# Requests


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


def _signed_again(payload, kind, *keys, binding=_BINDING):
    """Sign what a changed payload says, if there is anything to sign."""
    try:
        fields = unpack_untrusted(payload)
    except BadPacket:
        return payload
    if not isinstance(fields, dict) or not isinstance(fields.get(3), bytes):
        return payload
    message = binding + fields[3]
    for number, key in enumerate(keys, start=1):
        fields[number] = sign(kind, bootstrap.MESH, key, message)[:SIGNATURE_BYTES]
    return pack(fields)


decoder(
    "bootstrap-request",
    lambda payload: open_request_untrusted(payload, _BINDING, bootstrap.MESH),
    _requests,
    sign=lambda payload: _signed_again(
        payload, Statement.REQUEST, bootstrap.NEWCOMER, bootstrap.INVITE_KEY
    ),
)


def _initiator(rng):
    return Initiator(ephemeral=rng.randbytes(32), **_KEYS)


@target("noise-request")
def _noise_request():
    rng = Random(1)
    return Target(
        lambda message: NoiseResponder(**_KEYS).read_request_untrusted(message),
        [_initiator(rng).write_request(request) for request in _requests()],
        sign=lambda payload: _initiator(rng).write_request(payload),
    )


@target("noise-answer")
def _noise_answer():
    rng = Random(2)
    responder, initiator = NoiseResponder(**_KEYS), _initiator(rng)
    responder.read_request_untrusted(initiator.write_request(b"request"))
    responder.begin_answer_untrusted(rng.randbytes(32))
    answer = responder.write_answer(b"answer")

    def decode(message):
        again = Initiator(ephemeral=initiator._ephemeral, **_KEYS)
        again.write_request(b"request")
        return again.read_answer_untrusted(message)

    return Target(decode, [answer])


@target("responder")
def _responder():
    """A member, to whom holders of the bootstrap key send whatever they like.

    Half of the inputs are payloads, signed and sealed again; some of those with a cookie's code.
    """
    rng = Random(3)
    clock = [0.0]
    member = bootstrap.new_responder()

    def seal(payload):
        with_cookie = rng.random() < 0.5
        handshake = _initiator(rng)
        payload = _signed_again(
            payload,
            Statement.REQUEST,
            bootstrap.NEWCOMER,
            bootstrap.INVITE_KEY,
            binding=handshake.binding,
        )
        size = PAYLOAD_BYTES - (16 if with_cookie else 0)
        message = handshake.write_request(pad(payload[: size - 2], size))
        if not with_cookie:
            return header(DatagramType.BOOTSTRAP_REQUEST) + message
        head = header(DatagramType.REQUEST_WITH_COOKIE)
        cookie = member._cookies.cookie(bootstrap.NEWCOMER_AT, clock[0])
        return head + code_of(cookie, head, message) + message

    def decode(datagram):
        clock[0] += 0.02
        member.receive_datagram(datagram, bootstrap.NEWCOMER_AT, bootstrap.HERE, clock[0])
        answers = member.datagrams_to_send()
        assert sum(len(out.datagram) for out in answers) <= len(datagram), "longer than asked"
        assert len(member._sources) <= 1
        events = bootstrap.events_of(member)
        for event in events:
            if isinstance(event, BadPacketReceived):
                raise BadPacket(event.reason)
        return events

    return Target(decode, [seal(request) for request in _requests()], sign=seal)


# Answers


@target("bootstrap-answer")
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


@target("joiner")
def _joiner():
    """A newcomer, and whatever comes from the address that it has asked."""

    def begin():
        joiner = bootstrap.new_joiner()
        (request,) = bootstrap.asked(joiner)
        return joiner, request

    state = list(begin())
    request = state[1]
    member = bootstrap.new_responder()
    reference = bootstrap.opened(member, request).reference
    chain = (*bootstrap.chain_of(bootstrap.SEED), bootstrap.link_for(bootstrap.NEWCOMER))
    answer = bootstrap.answered(member, reference, chain)
    maker = CookieMaker(rng=Random(4))
    cookie = maker.sealed(bootstrap.NEWCOMER_AT, request[5:37], bootstrap.BOOTSTRAP_KEY, 0.0)
    foreign = maker.sealed(bootstrap.NEWCOMER_AT, bytes(32), bootstrap.BOOTSTRAP_KEY, 0.0)
    head = header(DatagramType.BOOTSTRAP_COOKIE)

    def decode(datagram):
        if state[0].finished:
            state[:] = begin()  # whose request is the same again
        joiner = state[0]
        joiner.receive_datagram(datagram, bootstrap.SEED_AT, 0.0)
        joiner.handle_timer(0.0, bootstrap.WALL)
        assert len(joiner.datagrams_to_send()) <= 1, "more than one more question"
        for event in bootstrap.events_of(joiner):
            if isinstance(event, BadPacketReceived):
                raise BadPacket(event.reason)

    return Target(decode, [answer, head + cookie, head + foreign])


@target("cookie")
def _cookie():
    sealed = CookieMaker(rng=Random(5)).sealed(
        bootstrap.NEWCOMER_AT, _BINDING, bootstrap.BOOTSTRAP_KEY, 0.0
    )
    return Target(
        lambda data: open_cookie_untrusted(data, _BINDING, bootstrap.BOOTSTRAP_KEY), [sealed]
    )


# Between members

decoder(
    "admission-request",
    decode_admission_request_untrusted,
    lambda: [encode_admission_request(AdmissionRequest(bytes(8), _BINDING, _requests()[0][:700]))],
    encode=encode_admission_request,
)


@target("admission-verdict")
def _admission_verdict():
    chain = bootstrap.chain_of(bootstrap.SEED)
    verdicts = [chain, (*chain, bootstrap.link_for(bootstrap.NEWCOMER))]
    verdicts += [Refusal(RefusalCode.USED, "the token has been used")]
    return Target(
        decode_admission_verdict_untrusted,
        [encode_admission_verdict(AdmissionVerdict(bytes(8), verdict)) for verdict in verdicts],
    )
