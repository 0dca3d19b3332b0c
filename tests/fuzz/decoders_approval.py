"""What somebody without any secret may send to a member whose window is open, and get from it."""

from random import Random

from bootstrap import approval_world as world
from bootstrap import world as bootstrap
from fuzz.registry import Target, decoder, target
from meshd.bootstrap.approval import (
    Question,
    Reply,
    ReplyVerdict,
    commitment,
    decode_hello_untrusted,
    decode_question_untrusted,
    decode_reply_untrusted,
    decode_welcome_untrusted,
    encode_hello,
    encode_question,
    encode_reply,
    encode_welcome,
)
from meshd.bootstrap.approval_member import HALF_OPEN_MAX, PENDING_MAX
from meshd.errors import BadPacket
from meshd.underlay import pad, unpad_untrusted

_NONCE = bytes(range(32))

decoder("approval-welcome", decode_welcome_untrusted, lambda: [encode_welcome(_NONCE)])


def _padded(name, decode, *seeds):
    """Register what is decoded after its padding has been taken off."""
    decoder(
        name,
        lambda data: decode(pad(data[:0xFFFF], 0)),
        lambda: [unpad_untrusted(seed) for seed in seeds],
    )


_padded("approval-hello", decode_hello_untrusted, encode_hello(commitment(_NONCE)))
_padded(
    "approval-question",
    decode_question_untrusted,
    encode_question(Question(_NONCE, "web", bootstrap.NEWCOMER.id)),
)
_padded(
    "approval-reply",
    decode_reply_untrusted,
    encode_reply(Reply(ReplyVerdict.WAIT)),
    encode_reply(Reply(ReplyVerdict.APPROVED, b"token")),
)


def _conversation():
    """Return what a newcomer and a member say to each other."""
    window, newcomer = world.new_window(), world.new_newcomer()
    said = []
    for now in (0.0, 1.0, 2.0):
        newcomer.handle_timer(now)
        for datagram in world.sent(newcomer):
            said.append(datagram)
            window.receive_datagram(datagram, world.NEWCOMER_AT, None, now)
        for datagram in world.sent(window):
            said.append(datagram)
            newcomer.receive_datagram(datagram, world.MEMBER_AT, now)
    return said


@target("approval-member")
def _approval_member():
    window = world.new_window()
    clock, rng = [0.0], Random(1)

    def decode(datagram):
        clock[0] += 0.05
        now = clock[0]
        window.open(now, world.WINDOW)
        window.handle_timer(now)
        source = rng.choice([world.NEWCOMER_AT, world.MIDDLE_AT])
        window.receive_datagram(datagram, source, None, now)
        answers = world.sent(window)
        assert sum(map(len, answers)) <= len(datagram), "longer than asked"
        assert len(window._sessions) <= HALF_OPEN_MAX + PENDING_MAX
        if not answers:
            raise BadPacket("not answered")
        return answers

    return Target(decode, _conversation())


@target("approval-newcomer")
def _approval_newcomer():
    newcomer = world.new_newcomer()
    world.sent(newcomer)
    clock = [0.0]

    def decode(datagram):
        clock[0] += 0.05
        newcomer.receive_datagram(datagram, world.MEMBER_AT, clock[0])
        newcomer.handle_timer(clock[0])
        events = world.events_of(newcomer)
        assert len(world.sent(newcomer)) <= 1
        return events

    return Target(decode, _conversation())
