"""What members and relays say to each other, and hellos at a relay's ports."""

from random import Random

from fuzz.registry import Target, decoder, target
from meshd.errors import BadPacket
from meshd.path.wire import ProbeType
from meshd.relay import wire
from meshd.relay.hello import Greeter
from relay.members import BOOTSTRAP_KEY, LOCAL, MESH, RELAY, A, B, endpoint, hello, opened, table

_DECODERS = {
    wire.Request(B.id): wire.decode_request_untrusted,
    wire.Grant(B.id, 51900, 600, rtt=0.01, load=3): wire.decode_grant_untrusted,
    wire.Refused(B.id, wire.Reason.FULL): wire.decode_refused_untrusted,
    wire.Release(B.id): wire.decode_release_untrusted,
    wire.Draining(draining=True): wire.decode_draining_untrusted,
    wire.Gone(B.id): wire.decode_gone_untrusted,
}

for _message, _decode in _DECODERS.items():
    decoder(
        f"relay-{type(_message).__name__.lower()}",
        _decode,
        lambda message=_message: [wire.encode(message)],
        encode=wire.encode,
    )


@target("relay-hello")
def _hello():
    """A relay's port, at which its member, and everybody else, says what it likes."""
    allocations = table()
    side = allocations.request(A.id, B.id, 0.0).side(A.id)
    greeter = Greeter(RELAY, MESH, BOOTSTRAP_KEY, None, allocations=allocations, rng=Random(1))
    here, elsewhere = endpoint("192.0.2.1"), endpoint("192.0.2.2")

    def say(datagram, source):
        return greeter.receive_untrusted(datagram, source, side.port, LOCAL, (), 0.0)

    say(hello(A, nonce=b"0" * 24), here)
    (pong,) = greeter.datagrams_to_send()
    proof = opened(A, pong.datagram).challenge
    say(hello(A, challenge=proof, nonce=b"1" * 24), here)
    bound = side.binding

    def decode(datagram):
        let_in = say(datagram, elsewhere)
        assert side.binding == bound, "moved by somebody else"
        for sent in greeter.datagrams_to_send():
            assert len(sent.datagram) <= len(datagram)
        if not let_in:
            raise BadPacket("not let in")
        return let_in

    seeds = [hello(A, nonce=bytes([number]) * 24, challenge=proof) for number in range(3)]
    seeds += [hello(B, nonce=b"b" * 24), hello(A, kind=ProbeType.PING)]
    return Target(decode, seeds)
