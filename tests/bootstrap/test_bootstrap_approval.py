"""Approval: the same code on both sides, unless somebody is in the middle."""

import hashlib
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstrap.approval_world import (
    MEMBER_AT,
    MIDDLE_AT,
    NEWCOMER_AT,
    NODE,
    OTHER_MEMBER_AT,
    WINDOW,
    carry,
    events_of,
    new_newcomer,
    new_window,
    poll,
    sent,
)
from meshd.bootstrap import approval, approval_member, approval_newcomer
from meshd.bootstrap.approval import Question, Reply, ReplyVerdict
from meshd.bootstrap.approval_code import parse_code
from meshd.bootstrap.approval_newcomer import Approved, Denied, Listed, Lost, Silent
from meshd.underlay import DATAGRAM_BYTES_MAX, DatagramType
from meshd.wg.types import Endpoint

APPROVED = Reply(ReplyVerdict.APPROVED, b"a token")


def at(number):
    return Endpoint(ip_address("10.0.1.0") + number, 40000)


def listed(*, seed=1):
    """Return a newcomer that waits, and the window in which it does."""
    newcomer, window = new_newcomer(seed=seed + 100), new_window(seed=seed)
    carry(newcomer, window)
    return newcomer, window


# What it is for


def test_both_sides_show_the_same_code():
    newcomer, window = listed()

    (event,) = events_of(newcomer)
    (pending,) = window.pending()
    assert event == Listed(pending.code, MEMBER_AT) == newcomer.listed
    assert parse_code(pending.code) == pending.code
    assert (pending.name, pending.node, pending.source) == ("web", NODE, NEWCOMER_AT)
    assert window.next_news() == pending
    assert window.next_news() is None


def test_who_is_approved_gets_the_token_with_its_next_question():
    newcomer, window = listed()
    events_of(newcomer)

    assert window.decide(window.pending()[0].code, APPROVED)
    poll(newcomer, window, 1.0)

    assert events_of(newcomer) == [Approved(b"a token", MEMBER_AT)]
    assert newcomer.get_timer() is None
    assert "a token" not in repr(Approved(b"a token", MEMBER_AT)) + repr(APPROVED)


def test_who_is_denied_is_told_so():
    newcomer, window = listed()
    events_of(newcomer)

    assert window.decide(window.pending()[0].code, Reply(ReplyVerdict.DENIED))
    poll(newcomer, window, 1.0)

    assert events_of(newcomer) == [Denied(MEMBER_AT)]


def test_a_decision_is_made_once():
    _, window = listed()
    code = window.pending()[0].code

    assert window.decide(code, Reply(ReplyVerdict.DENIED))
    assert not window.decide(code, APPROVED)
    assert not window.decide("AAAA-AAAA", APPROVED)


def test_a_decision_whose_reply_is_lost_is_told_again():
    newcomer, window = listed()
    events_of(newcomer)
    window.decide(window.pending()[0].code, APPROVED)

    newcomer.handle_timer(1.0)
    for datagram in sent(newcomer):
        window.receive_datagram(datagram, NEWCOMER_AT, None, 1.0)
    sent(window)  # lost
    assert events_of(newcomer) == []

    poll(newcomer, window, 2.0)
    assert events_of(newcomer) == [Approved(b"a token", MEMBER_AT)]


def test_codes_are_read_as_people_type_them():
    assert parse_code("k7qf 2mxa") == parse_code("K7QF-2MXA") == parse_code("K7QF2MXA")
    for wrong in ("", "K7QF", "K7QF-2MX0", "K7QF-2MX1", "K7QF-2MXAA", "web"):
        assert parse_code(wrong) is None


# Somebody in the middle


def middle(newcomer, window, *, seed, now=0.0, member_seed=None):
    """Be the member to one and the newcomer to the other, keeping all that can be kept alike.

    Returns the code that each side shows.
    """
    false_window = new_window(seed=seed if member_seed is None else member_seed)
    false_newcomer = new_newcomer(seed=seed + 1)
    carry(newcomer, false_window, now=now)
    carry(false_newcomer, window, now=now, source=MIDDLE_AT)
    return newcomer.listed.code, window.pending()[-1].code


@given(st.integers(0, 2**32), st.integers(0, 2**32))
@settings(deadline=None, max_examples=100)
def test_with_somebody_in_the_middle_the_two_sides_show_different_codes(honest, evil):
    newcomer, window = new_newcomer(seed=honest), new_window(seed=honest + 1)

    shown_by_newcomer, shown_by_member = middle(newcomer, window, seed=evil)

    assert shown_by_newcomer != shown_by_member


def test_the_middle_cannot_reuse_what_the_newcomer_committed_to():
    """It forwards the newcomer's own hello, so that commitment and key are the newcomer's."""
    newcomer, window, false_window = new_newcomer(), new_window(seed=5), new_window(seed=6)
    (hello,) = sent(newcomer)
    window.receive_datagram(hello, MIDDLE_AT, None, 0.0)
    sent(window)  # the member's welcome goes nowhere: the newcomer gets another one
    false_window.receive_datagram(hello, NEWCOMER_AT, None, 0.0)
    (welcome,) = sent(false_window)
    newcomer.receive_datagram(welcome, MEMBER_AT, 0.0)
    (question,) = sent(newcomer)

    false_window.receive_datagram(question, NEWCOMER_AT, None, 0.0)
    window.receive_datagram(question, MIDDLE_AT, None, 0.0)

    assert window.pending() == ()  # it cannot ask in the session it does not have the keys of


def test_the_newcomers_nonce_is_hidden_until_the_member_has_told_its_own():
    """All that anybody can read of a hello is a hash."""
    newcomer = new_newcomer()
    (hello,) = sent(newcomer)
    handshake = approval_member.Responder(
        psk=approval.PUBLIC_KEY, prologue=approval.PROLOGUE
    )  # anybody can do this: the key is public
    payload, _ = handshake.read_request_untrusted(hello[5:])

    committed = approval.decode_hello_untrusted(payload)

    nonce = newcomer._hellos[MEMBER_AT].nonce
    assert nonce not in payload
    assert committed == approval.commitment(nonce)


def test_a_nonce_other_than_the_one_committed_to_is_refused():
    newcomer, window = new_newcomer(), new_window()
    (hello,) = sent(newcomer)
    window.receive_datagram(hello, NEWCOMER_AT, None, 0.0)
    (welcome,) = sent(window)
    newcomer.receive_datagram(welcome, MEMBER_AT, 0.0)
    sent(newcomer)
    session = newcomer._asking.keys
    forged = approval.seal(
        DatagramType.APPROVAL_QUESTION,
        session.reference,
        session.newcomer_key,
        9,
        approval.encode_question(Question(b"\x55" * 32, "web", NODE)),
    )

    window.receive_datagram(forged, NEWCOMER_AT, None, 0.0)

    assert window.pending() == ()
    assert sent(window) == []
    assert window.bad_packets["approval nonce is not the one committed to"] == 1


def test_codes_are_spread_over_all_their_bits():
    codes = {listed(seed=seed)[1].pending()[0].code for seed in range(64)}

    assert len(codes) == 64
    for place in (0, 1, 2, 3, 5, 6, 7, 8):
        assert len({code[place] for code in codes}) > 16


# Limits


def test_without_a_window_nobody_gets_an_answer():
    newcomer, window = new_newcomer(), new_window(opened=False)
    carry(newcomer, window)

    assert newcomer.listed is None
    assert window.pending() == ()
    assert window.get_timer() is None
    assert window.bad_packets["approval asked for, and no window is open"] == 1


def test_the_window_closes_by_itself_and_those_who_wait_go_with_it():
    newcomer, window = listed()
    assert window.until == WINDOW
    for second in range(1, int(WINDOW)):
        poll(newcomer, window, float(second))
    assert len(window.pending()) == 1

    poll(newcomer, window, WINDOW)

    assert (window.until, window.pending()) == (None, ())
    events_of(newcomer)
    poll(newcomer, window, WINDOW + approval_newcomer.SILENCE_MAX)
    assert events_of(newcomer) == [Lost(MEMBER_AT)]


def test_a_decision_is_still_told_when_the_window_has_closed():
    newcomer, window = listed()
    events_of(newcomer)
    window.decide(window.pending()[0].code, APPROVED)
    window.close()

    poll(newcomer, window, 1.0)

    assert events_of(newcomer) == [Approved(b"a token", MEMBER_AT)]
    window.handle_timer(1.0 + approval_member.SILENCE_MAX)
    assert window.pending() == ()


def test_a_member_that_was_restarted_shows_another_code():
    newcomer, _ = listed()
    (first,) = events_of(newcomer)
    restarted = new_window(seed=77)
    now = 0.0
    while not restarted.pending():
        now += 0.5
        assert now < 30.0
        poll(newcomer, restarted, now)

    lost, second = events_of(newcomer)

    assert lost == Lost(MEMBER_AT)
    assert second.code == restarted.pending()[0].code != first.code


def test_a_newcomer_that_has_gone_is_listed_no_longer():
    _, window = listed()
    window.handle_timer(approval_member.SILENCE_MAX)
    assert window.pending() == ()


def test_no_more_than_sixteen_wait_at_once():
    window = new_window()
    newcomers = [new_newcomer(seed=1000 + number) for number in range(20)]
    for number, newcomer in enumerate(newcomers):
        carry(newcomer, window, now=number * 0.2, source=at(number))

    assert len(window.pending()) == approval_member.PENDING_MAX
    assert [n.listed is not None for n in newcomers] == [True] * 16 + [False] * 4


def test_one_source_has_few_sessions():
    window = new_window()
    newcomers = [new_newcomer(seed=1000 + number) for number in range(8)]
    for newcomer in newcomers:
        carry(newcomer, window)

    assert len(window.pending()) == approval_member.SESSIONS_PER_SOURCE_MAX
    assert window.bad_packets["too many ask for approval from one source"] == 4


def test_the_addresses_of_one_ipv6_network_are_one_source():
    window = new_window()
    for number in range(8):
        source = Endpoint(ip_address("2001:db8::1") + number, 40000)
        carry(new_newcomer(seed=1000 + number), window, source=source)

    assert len(window.pending()) == approval_member.SESSIONS_PER_SOURCE_MAX


def test_forged_hellos_in_its_name_do_not_keep_a_newcomer_out():
    window = new_window()
    for number in range(10):
        for hello in sent(new_newcomer(seed=1000 + number)):
            window.receive_datagram(hello, NEWCOMER_AT, None, 0.0)
    sent(window)

    carry(new_newcomer(), window)

    assert len(window.pending()) == 1


def test_hellos_from_everywhere_are_limited_and_keep_little():
    window = new_window()
    answered = 0
    for number in range(1000):
        now = number / 100
        (hello,) = sent(new_newcomer(seed=number))
        window.receive_datagram(hello, at(number), None, now)
        answered += len(sent(window))

    most = approval_member.HELLOS_BURST_MAX + 10 * approval_member.HELLOS_PER_SECOND_MAX
    assert answered <= most
    assert len(window._sessions) <= approval_member.HALF_OPEN_MAX


def test_questions_of_one_session_are_limited():
    newcomer, window = listed()
    sent(window)
    answered = 0
    for _ in range(100):
        newcomer._ask(newcomer._asking, 0.0)
        for datagram in sent(newcomer):
            window.receive_datagram(datagram, NEWCOMER_AT, None, 0.0)
        answered += len(sent(window))

    assert answered < approval_member.QUESTIONS_BURST_MAX


def test_forged_questions_do_not_silence_the_session_whose_reference_they_bear():
    newcomer, window = listed()
    reference = newcomer._asking.keys.reference
    for number in range(200):
        forged = b"mesh\x08" + reference + (1000 + number).to_bytes(8, "big") + bytes(1179)
        window.receive_datagram(forged, MIDDLE_AT, None, 0.5)
    assert sent(window) == []
    assert window.bad_packets["approval datagram does not open"] == 200

    window.decide(window.pending()[0].code, APPROVED)
    poll(newcomer, window, 1.0)

    assert events_of(newcomer)[-1] == Approved(b"a token", MEMBER_AT)


def test_no_answer_is_longer_than_its_question():
    newcomer, window = new_newcomer(), new_window()
    for _ in range(4):
        questions = sent(newcomer)
        for question in questions:
            assert len(question) == DATAGRAM_BYTES_MAX
            window.receive_datagram(question, NEWCOMER_AT, None, 0.0)
            if window.pending():
                code = window.pending()[0].code
                window.decide(code, Reply(ReplyVerdict.APPROVED, b"x" * approval.TOKEN_BODY_MAX))
        for answer in sent(window):
            assert len(answer) <= DATAGRAM_BYTES_MAX
            newcomer.receive_datagram(answer, MEMBER_AT, 0.0)


def test_a_repeated_question_gets_no_second_answer():
    newcomer, window = new_newcomer(), new_window()
    (hello,) = sent(newcomer)
    window.receive_datagram(hello, NEWCOMER_AT, None, 0.0)
    (welcome,) = sent(window)
    newcomer.receive_datagram(welcome, MEMBER_AT, 0.0)
    (question,) = sent(newcomer)
    window.receive_datagram(question, NEWCOMER_AT, None, 0.0)
    assert len(sent(window)) == 1

    window.receive_datagram(question, NEWCOMER_AT, None, 0.0)

    assert sent(window) == []
    assert window.bad_packets["approval question repeated"] == 1


# The newcomer


def test_of_two_members_the_first_that_answers_is_talked_to():
    newcomer = new_newcomer(at=(MEMBER_AT, OTHER_MEMBER_AT))
    first, second = new_window(seed=5), new_window(seed=6)
    to_first, to_second = sent(newcomer)
    for window, hello in ((first, to_first), (second, to_second)):
        window.receive_datagram(hello, NEWCOMER_AT, None, 0.0)
    (late,), (early,) = sent(first), sent(second)

    newcomer.receive_datagram(early, OTHER_MEMBER_AT, 0.0)
    newcomer.receive_datagram(late, MEMBER_AT, 0.0)
    carry(newcomer, second, member=OTHER_MEMBER_AT)

    assert newcomer.listed.member == OTHER_MEMBER_AT
    assert first.pending() == ()


def test_a_welcome_from_elsewhere_is_none():
    newcomer, window = new_newcomer(), new_window()
    carry(newcomer, window, member=MIDDLE_AT)

    assert newcomer.listed is None
    assert newcomer.bad_packets["welcome to no hello of ours"] == 1


def test_where_nobody_answers_that_is_said_once_and_hellos_go_on():
    newcomer = new_newcomer()
    hellos = 0
    for half_second in range(40):
        newcomer.handle_timer(half_second / 2)
        hellos += len(sent(newcomer))

    assert events_of(newcomer) == [Silent()]
    assert hellos == 20 / approval_newcomer.HELLO_INTERVAL


def test_each_hello_has_keys_and_a_nonce_of_its_own():
    newcomer = new_newcomer(at=(MEMBER_AT, OTHER_MEMBER_AT))
    newcomer.handle_timer(2.0)
    hellos = sent(newcomer)
    assert len(hellos) == 4
    assert len({hello[5:37] for hello in hellos}) == 4


@given(st.binary(max_size=1300), st.sampled_from([6, 7, 8, 9]))
@settings(deadline=None)
def test_anything_at_all_is_dropped_and_counted(junk, kind):
    newcomer, window = listed()
    pending, shown = window.pending(), newcomer.listed
    datagram = b"mesh" + bytes([kind]) + junk

    for padded in (datagram, datagram[:1200].ljust(1200, b"\0")):
        window.receive_datagram(padded, MIDDLE_AT, None, 0.0)
        newcomer.receive_datagram(padded, MEMBER_AT, 0.0)

    assert (window.pending(), newcomer.listed) == (pending, shown)
    assert sent(window) == []
    assert sum(window.bad_packets.values()) == 2
    assert sum(newcomer.bad_packets.values()) == 2


@given(st.integers(0, DATAGRAM_BYTES_MAX - 1), st.integers(1, 255))
@settings(deadline=None, max_examples=200)
def test_a_question_that_was_altered_on_the_way_counts_for_nothing(place, bits):
    newcomer, window = new_newcomer(), new_window()
    (hello,) = sent(newcomer)
    window.receive_datagram(hello, NEWCOMER_AT, None, 0.0)
    newcomer.receive_datagram(sent(window)[0], MEMBER_AT, 0.0)
    (question,) = sent(newcomer)
    altered = bytearray(question)
    altered[place] ^= bits

    window.receive_datagram(bytes(altered), NEWCOMER_AT, None, 0.0)

    assert window.pending() == ()


# Bytes


@given(st.binary(max_size=400))
def test_every_decoder_gives_a_message_or_bad_packet(data):
    for decode in (
        approval.decode_hello_untrusted,
        approval.decode_welcome_untrusted,
        approval.decode_question_untrusted,
        approval.decode_reply_untrusted,
    ):
        try:
            decode(data)
        except approval.BadPacket:
            continue


@pytest.mark.parametrize(
    "reply",
    [Reply(ReplyVerdict.WAIT), Reply(ReplyVerdict.DENIED), APPROVED],
)
def test_replies_survive_the_way(reply):
    assert approval.decode_reply_untrusted(approval.encode_reply(reply)) == reply


def test_questions_survive_the_way():
    question = Question(b"\x07" * 32, "web", NODE)
    assert approval.decode_question_untrusted(approval.encode_question(question)) == question


def test_a_verdict_of_a_later_version_is_waited_out():
    packed = approval.pad(approval.pack({1: 7}), 0)
    assert approval.decode_reply_untrusted(packed) == Reply(ReplyVerdict.WAIT)


def test_the_bytes_of_a_whole_exchange_stay_as_they_are():
    newcomer, window = new_newcomer(), new_window()
    (hello,) = sent(newcomer)
    window.receive_datagram(hello, NEWCOMER_AT, None, 0.0)
    (welcome,) = sent(window)
    newcomer.receive_datagram(welcome, MEMBER_AT, 0.0)
    (question,) = sent(newcomer)
    window.receive_datagram(question, NEWCOMER_AT, None, 0.0)
    (reply,) = sent(window)

    lengths = [len(datagram) for datagram in (hello, welcome, question, reply)]
    assert lengths == [1200, 89, 1200, 42]
    whole = hashlib.blake2b(hello + welcome + question + reply, digest_size=8).hexdigest()
    assert (whole, window.pending()[0].code) == ("30e2ead490a3e3c0", "JOAR-CRBQ")
