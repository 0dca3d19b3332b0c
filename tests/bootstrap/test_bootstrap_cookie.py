"""Floods of requests that open, since their sender has the bootstrap key, and who still gets in."""

from ipaddress import ip_address
from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstrap.world import (
    BOOTSTRAP_KEY,
    HERE,
    MESH,
    NEWCOMER,
    NEWCOMER_AT,
    OTHER,
    OTHER_AT,
    PREFIX,
    SEED,
    SEED_AT,
    WALL,
    answered,
    asked,
    by_invite,
    by_record,
    chain_of,
    events_of,
    link_for,
    new_joiner,
    new_responder,
    opened,
    record_of,
)
from meshd.bootstrap.cookie import (
    SEALED_BYTES,
    SECRET_LIFETIME,
    CookieMaker,
    code_of,
    open_cookie_untrusted,
)
from meshd.bootstrap.events import BadPacketReceived, Joined, RequestOpened
from meshd.bootstrap.joiner import JoinerConfig
from meshd.bootstrap.limits import Buckets, source_of
from meshd.bootstrap.messages import PROLOGUE, ByRecord, encode_request
from meshd.bootstrap.noise import Initiator
from meshd.bootstrap.responder import (
    PENDING_LIFETIME,
    PENDING_MAX,
    PENDING_PER_SOURCE_MAX,
    PENDING_UNPROVEN_MAX,
    REQUESTS_BURST_MAX,
    REQUESTS_PER_SECOND_MAX,
    SOURCE_REQUESTS_BURST_MAX,
    SOURCES_MAX,
    SWAMPED_REQUESTS_BURST_MAX,
)
from meshd.errors import BadPacket
from meshd.keys import BootstrapKey
from meshd.trust.record import RECORD_BYTES_MAX
from meshd.trust.refusal import REFUSAL_TEXT_BYTES_MAX, Refusal, RefusalCode
from meshd.underlay import DATAGRAM_BYTES_MAX, DatagramType, datagram_type_untrusted, header
from meshd.wg.types import Endpoint

CHAIN = (*chain_of(SEED), link_for(NEWCOMER))
CONFIG = JoinerConfig(pause_jitter=0.0)
MARK = b"\x31" * 32
THIEF_AT = Endpoint(ip_address("192.0.2.66"), 6666)
USED = Refusal(RefusalCode.USED, "the token has been used")


def addresses(family=4):
    """Forged sources, all of different parties."""
    for number in count():
        text = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        yield Endpoint(ip_address(text if family == 4 else (0x20010DB8 << 96) + (number << 64)), 9)


class Thief:
    """Has the bootstrap key and an invite, and makes as many requests as it likes."""

    def __init__(self, seed=99):
        self._rng = Random(seed)
        self._introduction = by_invite()

    def request(self, cookie=b""):
        handshake = Initiator(
            psk=BOOTSTRAP_KEY, prologue=PROLOGUE, ephemeral=self._rng.randbytes(32)
        )
        payload = encode_request(
            self._introduction,
            key=OTHER,
            mesh=MESH,
            binding=handshake.binding,
            wall=WALL,
            size=1147 - (16 if cookie else 0),
        )
        message = handshake.write_request(payload)
        if not cookie:
            return handshake.public, header(DatagramType.BOOTSTRAP_REQUEST) + message
        head = header(DatagramType.REQUEST_WITH_COOKIE)
        return handshake.public, head + code_of(cookie, head, message) + message

    def cookie(self, responder, source, now=0.0):
        """Ask until a cookie comes, and return it."""
        while True:
            mark, request = self.request()
            responder.receive_datagram(request, source, HERE, now)
            for out in responder.datagrams_to_send():
                if datagram_type_untrusted(out.datagram) is DatagramType.BOOTSTRAP_COOKIE:
                    return open_cookie_untrusted(out.datagram[5:], mark, BOOTSTRAP_KEY)


def judged(responder, now=0.0):
    """Answer all that wait, as a member that refuses them, and return how many there were."""
    events = [event for event in events_of(responder) if isinstance(event, RequestOpened)]
    for event in events:
        assert responder.answer(
            event.reference,
            USED,
            record=record_of(SEED),
            chain=chain_of(SEED),
            ipv4_prefix=PREFIX,
            wall=WALL,
        )
    responder.datagrams_to_send()
    return len(events)


def crowded(responder, now=0.0):
    """Close the first door with requests from forged sources."""
    thief = Thief(now)
    for source, _ in zip(addresses(), range(REQUESTS_BURST_MAX + 1), strict=False):
        responder.receive_datagram(thief.request()[1], source, HERE, now)
        judged(responder)
    responder.datagrams_to_send()
    return responder


def joins(joiner, responder, *, now=0.0):
    """Run both against each other over a perfect way.  Return when the newcomer was let in."""
    source, until = NEWCOMER_AT, now + 60.0
    events_of(responder)  # of others, and never judged
    responder.datagrams_to_send()
    joiner.seeds_resolved([("seed:51820", [SEED_AT])], now)
    while not joiner.finished and now < until:
        joiner.handle_timer(now, WALL)
        for out in joiner.datagrams_to_send():
            responder.receive_datagram(out.datagram, source, HERE, now)
        for event in events_of(responder):
            if isinstance(event, RequestOpened):
                datagram = answered(responder, event.reference, CHAIN)
                joiner.receive_datagram(datagram, SEED_AT, now)
        for out in responder.datagrams_to_send():
            if out.target == source:
                joiner.receive_datagram(out.datagram, SEED_AT, now)
        if not joiner.finished:
            now = max(now, joiner.get_timer().at)
    return now if joiner.finished else None


# Getting in all the same


def test_a_newcomer_gets_through_a_crowd_of_forged_sources_with_one_more_round_trip():
    responder, joiner = crowded(new_responder()), new_joiner(config=CONFIG)

    assert joins(joiner, responder) == 0.0

    assert any(isinstance(event, Joined) for event in events_of(joiner))
    assert (joiner.statistics().requests, joiner.statistics().cookies) == (2, 1)


def test_one_source_that_asks_too_often_keeps_nobody_else_out():
    responder, thief = crowded(new_responder()), Thief(1)
    cookie = thief.cookie(responder, THIEF_AT)
    for _ in range(1000):
        responder.receive_datagram(thief.request(cookie)[1], THIEF_AT, HERE, 0.0)
        judged(responder)

    assert joins(new_joiner(config=CONFIG), responder) == 0.0


def test_one_source_that_is_never_answered_takes_no_more_than_its_places():
    """As when this member may not admit, and hands over to one that is silent."""
    responder, thief = crowded(new_responder()), Thief(1)
    cookie = thief.cookie(responder, THIEF_AT)
    for _ in range(1000):
        responder.receive_datagram(thief.request(cookie)[1], THIEF_AT, HERE, 0.0)

    assert responder.statistics().pending == PENDING_PER_SOURCE_MAX
    assert joins(new_joiner(config=CONFIG), responder) == 0.0


def test_requests_that_are_never_judged_leave_places_for_those_with_a_cookie():
    responder, thief = new_responder(), Thief()
    for source, _ in zip(addresses(), range(PENDING_UNPROVEN_MAX * 2), strict=False):
        responder.receive_datagram(thief.request()[1], source, HERE, 0.0)
    assert responder.statistics().pending == PENDING_UNPROVEN_MAX

    assert joins(new_joiner(config=CONFIG), responder) == 0.0


@pytest.mark.parametrize("proven", [False, True])
def test_a_flood_of_requests_costs_no_more_than_the_doors_allow(proven):
    responder, thief = crowded(new_responder()), Thief(1)
    judged_count, seconds = 0, 5
    for tick in range(seconds * 100):
        now = tick / 100
        for source, _ in zip(addresses(), range(4), strict=False):
            cookie = responder._cookies.cookie(source, now) if proven else b""
            responder.receive_datagram(thief.request(cookie)[1], source, HERE, now)
        judged_count += judged(responder)

    most = REQUESTS_BURST_MAX + seconds * REQUESTS_PER_SECOND_MAX
    assert 100 <= judged_count <= most
    assert responder.statistics().pending <= PENDING_MAX


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_a_newcomer_gets_in_however_the_flood_is_mixed(seed, answers):
    """Forged sources, sources with cookies, wrong codes, old secrets; judged or never."""
    rng, thief = Random(seed), Thief(seed)
    responder, joiner = new_responder(seed=seed), new_joiner(seed=seed + 1)
    forged = addresses(rng.choice([4, 6]))
    real = [Endpoint(ip_address(f"192.0.2.{n}"), 7) for n in range(1, 9)]
    joiner.seeds_resolved([("seed:51820", [SEED_AT])], 0.0)
    now = 0.0
    while not joiner.finished and now < 3 * SECRET_LIFETIME:
        for _ in range(rng.choice([10, 300])):
            source = rng.choice([next(forged), rng.choice(real)])
            known = source in real
            cookie = rng.choice([b"", b"w" * 16])
            if known and rng.random() < 0.7:
                cookie = responder._cookies.cookie(source, now)
            responder.receive_datagram(thief.request(cookie)[1], source, HERE, now)
            if answers:
                judged(responder)
        events_of(responder)
        responder.datagrams_to_send()
        joiner.handle_timer(now, WALL)
        for _ in range(2):  # a question may come back with a cookie
            for out in joiner.datagrams_to_send():
                responder.receive_datagram(out.datagram, NEWCOMER_AT, HERE, now)
            for event in events_of(responder):
                joiner.receive_datagram(answered(responder, event.reference, CHAIN), SEED_AT, now)
            for out in responder.datagrams_to_send():
                joiner.receive_datagram(out.datagram, SEED_AT, now)
            joiner.handle_timer(now, WALL)
        if not joiner.finished:
            now = max(now + 0.01, joiner.get_timer().at)

    assert joiner.finished
    assert now <= PENDING_LIFETIME + 8.0  # one pause after the places behind the first door clear


# What outsiders get: nothing


def test_nobody_without_the_bootstrap_key_gets_a_cookie():
    responder = crowded(new_responder())
    (foreign,) = asked(new_joiner(bootstrap_key=BootstrapKey(b"\x77" * 32)))
    rng = Random(3)
    attempts = [foreign, *(b"mesh" + bytes([kind]) + rng.randbytes(1195) for kind in range(10))]

    for attempt in attempts:
        responder.receive_datagram(attempt, THIEF_AT, HERE, 0.0)

    assert responder.datagrams_to_send() == []
    assert {type(event) for event in events_of(responder)} == {BadPacketReceived}


def test_a_recorded_request_draws_one_cookie_only_however_often_it_is_sent():
    responder = crowded(new_responder())
    (request,) = asked(new_joiner())
    for _ in range(50):
        responder.receive_datagram(request, THIEF_AT, HERE, 0.0)

    assert len(responder.datagrams_to_send()) == 1
    assert responder.statistics().replayed == 49


def test_forged_sources_fill_no_table():
    responder, thief = crowded(new_responder()), Thief()
    for source, _ in zip(addresses(), range(500), strict=False):
        for cookie in (b"", b"w" * 16):
            responder.receive_datagram(thief.request(cookie)[1], source, HERE, 0.0)

    assert len(responder._sources) == 0


# Cookies


def test_a_cookie_is_good_for_one_address_and_port_and_until_the_secret_changes():
    maker = CookieMaker(rng=Random(1))
    cookie = maker.cookie(THIEF_AT, 0.0)

    assert maker.cookie(THIEF_AT, SECRET_LIFETIME - 1) == cookie
    others = [THIEF_AT._replace(port=1), THIEF_AT._replace(address=OTHER_AT.address)]
    assert cookie not in [maker.cookie(other, 0.0) for other in others]
    assert maker.cookie(THIEF_AT, SECRET_LIFETIME) != cookie


def test_a_wrong_code_gets_another_cookie():
    responder, thief = crowded(new_responder()), Thief(1)
    cookie = thief.cookie(responder, THIEF_AT)

    mark, request = thief.request(cookie)
    responder.receive_datagram(request, NEWCOMER_AT, HERE, 0.0)

    (out,) = responder.datagrams_to_send()
    assert out.target == NEWCOMER_AT
    assert open_cookie_untrusted(out.datagram[5:], mark, BOOTSTRAP_KEY) != cookie


def test_a_newcomer_whose_cookie_has_gone_stale_gets_in_with_another():
    responder, joiner = crowded(new_responder()), new_joiner(config=CONFIG)
    (first,) = asked(joiner)
    responder.receive_datagram(first, NEWCOMER_AT, HERE, 0.0)
    (out,) = responder.datagrams_to_send()
    joiner.receive_datagram(out.datagram, SEED_AT, 0.0)
    responder._cookies.cookie(NEWCOMER_AT, SECRET_LIFETIME)
    crowded(responder, SECRET_LIFETIME)

    assert joins(joiner, responder, now=SECRET_LIFETIME) == SECRET_LIFETIME


def test_a_cookie_for_another_request_is_dropped():
    joiner = new_joiner()
    asked(joiner)
    maker = CookieMaker(rng=Random(1))
    forged = header(DatagramType.BOOTSTRAP_COOKIE)
    forged += maker.sealed(NEWCOMER_AT, MARK, BOOTSTRAP_KEY, 0.0)

    for datagram in (forged, forged[:-1], forged + b"\0"):
        joiner.receive_datagram(datagram, SEED_AT, 0.0)
        (event,) = events_of(joiner)
        assert event == BadPacketReceived(SEED_AT, "cookie for no request of ours")
    joiner.handle_timer(0.0, WALL)
    assert joiner.datagrams_to_send() == []


def test_cookies_without_end_make_a_newcomer_ask_once_more_a_round():
    joiner = new_joiner(config=CONFIG)
    (request,) = asked(joiner)
    maker = CookieMaker(rng=Random(1))
    for _ in range(100):
        datagram = header(DatagramType.BOOTSTRAP_COOKIE)
        datagram += maker.sealed(NEWCOMER_AT, request[5:37], BOOTSTRAP_KEY, 0.0)
        joiner.receive_datagram(datagram, SEED_AT, 0.1)
        joiner.handle_timer(0.1, WALL)

    assert joiner.statistics().cookies == 100
    assert joiner.statistics().requests == 2
    assert joiner.get_timer().at == 0.25


def test_a_sealed_cookie_is_these_bytes():
    maker = CookieMaker(rng=Random(1))
    maker._secret = bytes(range(32))
    sealed = maker.sealed(Endpoint(ip_address("192.0.2.1"), 51820), MARK, BOOTSTRAP_KEY, 0.0)

    cookie = open_cookie_untrusted(sealed, MARK, BOOTSTRAP_KEY)
    assert len(sealed) == SEALED_BYTES
    assert cookie.hex() == "b1db5839f9fd47f550c7fb7ecc003ab7"
    code = code_of(cookie, b"mesh\x05", bytes(range(200)))
    assert code.hex() == "919c673b1fb20c8f5070bbefde013f48"


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_no_cookie(data):
    with pytest.raises(BadPacket):
        open_cookie_untrusted(data, MARK, BOOTSTRAP_KEY)


# Buckets


def test_a_source_is_an_ipv4_address_or_64_bits_of_ipv6():
    sources = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"]

    a, b, c, d, e = (source_of(ip_address(text)) for text in sources)

    assert c == d
    assert len({a, b, c, e}) == 4


def test_buckets_are_bounded_and_forget_who_asked_longest_ago():
    buckets = Buckets(rate=1.0, burst=1, keys_max=3)
    assert [buckets.take(key, 0.0) for key in "abcab"] == [True, True, True, False, False]

    assert buckets.take("d", 0.0)  # in place of c

    assert len(buckets) == 3
    assert not buckets.take("a", 0.0)
    assert buckets.take("c", 0.0)


def test_a_source_has_its_burst_and_then_its_rate():
    responder, thief = crowded(new_responder()), Thief(1)
    cookie = thief.cookie(responder, THIEF_AT)
    taken = 0
    for _ in range(100):
        responder.receive_datagram(thief.request(cookie)[1], THIEF_AT, HERE, 0.0)
        taken += judged(responder)

    assert taken == SOURCE_REQUESTS_BURST_MAX
    assert SOURCES_MAX * 200 < 1 << 20  # bytes: the table stays small


# No answer is longer than the question


@settings(max_examples=30, deadline=None)
@given(
    record_bytes=st.integers(0, 8),
    with_record=st.booleans(),
    busy=st.booleans(),
    verdict=st.sampled_from(
        [
            (),
            CHAIN,
            USED,
            Refusal(RefusalCode.OTHER, "x" * REFUSAL_TEXT_BYTES_MAX),
            Refusal(RefusalCode.FULL, ""),
        ]
    ),
)
def test_no_answer_is_longer_than_its_question(record_bytes, with_record, busy, verdict):
    responder = crowded(new_responder()) if busy else new_responder()
    joiner = new_joiner(by_record() if with_record else by_invite(), config=CONFIG)
    record = record_of(SEED, candidates=record_bytes, version="v" * 32)
    questions = asked(joiner)
    drawn = []
    for _ in range(2):
        for question in questions:
            assert len(question) == DATAGRAM_BYTES_MAX
            responder.receive_datagram(question, NEWCOMER_AT, HERE, 0.0)
            for event in events_of(responder):
                assert responder.answer(
                    event.reference,
                    verdict,
                    record=record,
                    chain=chain_of(SEED),
                    ipv4_prefix=PREFIX,
                    wall=WALL,
                )
            answers = responder.datagrams_to_send()
            assert sum(len(out.datagram) for out in answers) <= len(question)
            drawn += answers
            for out in answers:
                joiner.receive_datagram(out.datagram, SEED_AT, 0.0)
        joiner.handle_timer(0.0, WALL)
        questions = [out.datagram for out in joiner.datagrams_to_send()]
    kinds = [datagram_type_untrusted(out.datagram) for out in drawn]
    assert kinds[-1] is DatagramType.BOOTSTRAP_ANSWER
    assert (kinds[0] is DatagramType.BOOTSTRAP_COOKIE) == busy


def test_the_longest_record_fits_beside_a_code():
    responder = crowded(new_responder())
    record = b"r" * RECORD_BYTES_MAX
    joiner = new_joiner(ByRecord(record), config=CONFIG)
    (request,) = asked(joiner)
    responder.receive_datagram(request, NEWCOMER_AT, HERE, 0.0)
    (out,) = responder.datagrams_to_send()
    joiner.receive_datagram(out.datagram, SEED_AT, 0.0)
    joiner.handle_timer(0.0, WALL)
    (again,) = joiner.datagrams_to_send()

    assert opened(responder, again.datagram).request.record == record


def test_while_more_comes_in_than_can_be_read_few_are_judged_without_a_cookie():
    responder, thief = new_responder(), Thief(1)
    responder.swamped = True
    for source, _ in zip(addresses(), range(100), strict=False):
        responder.receive_datagram(thief.request()[1], source, HERE, 0.0)
    assert judged(responder) == SWAMPED_REQUESTS_BURST_MAX

    assert joins(new_joiner(config=CONFIG), responder) == 0.0
