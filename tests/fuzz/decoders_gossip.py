"""What comes through tunnels from members, and probes on the underlay."""

from bootstrap import world as bootstrap
from fuzz.people import accused, datagrams, said, signed_claim
from fuzz.registry import Target, decoder, signer, target
from gossip.harness import MESH as GOSSIP_MESH
from meshd.engine.calling import Call, decode_call_untrusted, encode_call
from meshd.gossip import wire as gossip_wire
from meshd.gossip.claim import peek_claim_untrusted
from meshd.gossip.wire import encode
from meshd.keys import SIGNATURE_BYTES
from meshd.path import wire as path_wire
from meshd.path.wire import Probe, ProbeSealer, ProbeType
from meshd.trust.signed import Statement
from trust import world as trust

_NONCE = bytes(24)

decoder("gossip-datagram", gossip_wire.decode_untrusted, datagrams, head=2, encode=encode)


@target("gossip-claim")
def _gossip_claim():
    odd = {1: bytes(32), 2: 0, 3: 1, 4: b"a" * 32, 5: 0, 6: bytes(16)}
    items = [said("a", 1), accused("a", 1, "b"), accused("a", 1, "b", 0), signed_claim(odd, "a")]
    sign_again = signer(Statement.CLAIM, trust.A, GOSSIP_MESH)
    seeds = [item.blob for item in items]
    return Target(peek_claim_untrusted, seeds, SIGNATURE_BYTES, sign_again)


decoder(
    "call",
    decode_call_untrusted,
    lambda: [
        encode_call(Call(trust.A.id, trust.B.id, b"record", seen_at))
        for seen_at in (None, bootstrap.SEED_AT)
    ],
    encode=encode_call,
)


def _path_sealer(key):
    return ProbeSealer(key, trust.MESH, trust.BOOTSTRAP_KEY)


def _probes():
    record = trust.record_blob(trust.A, trust.founding_chain(trust.A))
    return [
        Probe(ProbeType.PING, b"12345678", installed=True, held=3, sequence=2**48),
        Probe(ProbeType.PING, b"12345678", installed=False, held=0, sequence=7, record=record),
        Probe(ProbeType.PONG, b"12345678", False, 0, 7, observed=bootstrap.SEED_AT),
        Probe(ProbeType.PONG, b"12345678", True, 9, 2**64 - 1, observed=bootstrap.NEWCOMER_AT),
        Probe(ProbeType.PING, b"12345678", uses=True),
    ]


@target("path-datagram")
def _path_datagram():
    sealer, opener = _path_sealer(trust.A), _path_sealer(trust.B)
    seeds = [sealer.seal(probe, trust.B.id, _NONCE) for probe in _probes()]

    def decode(datagram):
        return opener.open_probe_untrusted(opener.open_sender_untrusted(datagram))

    return Target(decode, seeds)


# What is inside both boxes, for whoever holds the keys.
decoder(
    "path-body",
    path_wire._decode_untrusted,
    lambda: [path_wire._encode(probe) for probe in _probes()],
    encode=path_wire._encode,
)
