"""Newcomer and member, each against the other and against everybody else."""

from ipaddress import ip_address
from itertools import pairwise
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
from meshd.bootstrap.events import (
    BadPacketReceived,
    Joined,
    RefusedByMesh,
    RequestOpened,
    ResolveSeeds,
    Silent,
)
from meshd.bootstrap.joiner import ATTEMPTS_PER_ENDPOINT_MAX, SEED_ENDPOINTS_MAX, JoinerConfig
from meshd.bootstrap.messages import (
    PROLOGUE,
    decode_admission_request_untrusted,
    encode_admission_request,
    encode_request,
    open_request_untrusted,
)
from meshd.bootstrap.noise import KEY_BYTES, Initiator
from meshd.bootstrap.responder import (
    PENDING_LIFETIME,
    PENDING_MAX,
    REQUESTS_BURST_MAX,
)
from meshd.keys import BootstrapKey
from meshd.trust.refusal import Refusal, RefusalCode
from meshd.underlay import DATAGRAM_BYTES_MAX
from meshd.wg.types import Endpoint

CHAIN = (*chain_of(SEED), link_for(NEWCOMER))
USED = Refusal(RefusalCode.USED, "the token has been used")
UNKNOWN = Refusal(RefusalCode.INVITER_UNKNOWN, "this member has not heard of the inviter")
CONFIG = JoinerConfig(pause_jitter=0.0)
STRANGERS_KEY = BootstrapKey(b"\x77" * 32)


# The round trip


def test_a_newcomer_with_a_token_gets_its_chain():
    joiner, responder = new_joiner(), new_responder()
    (request,) = asked(joiner)
    event = opened(responder, request)
    assert event.request.node == NEWCOMER.id

    joiner.receive_datagram(answered(responder, event.reference, CHAIN), SEED_AT, 0.03)

    (joined,) = events_of(joiner)
    assert isinstance(joined, Joined)
    assert joined.chain == CHAIN
    assert joined.answer.seed.node == SEED.id
    assert (joined.answer.observed, joined.seed) == (NEWCOMER_AT, SEED_AT)
    assert joined.rtt == pytest.approx(0.03)
    assert joiner.finished
    assert joiner.get_timer() is None


def test_a_newcomer_with_a_record_is_welcomed_with_nothing_more():
    joiner, responder = new_joiner(by_record()), new_responder()
    (request,) = asked(joiner)
    event = opened(responder, request)
    assert event.request.record == by_record().record
    assert event.handover is None

    joiner.receive_datagram(answered(responder, event.reference, ()), SEED_AT, 0.03)

    (joined,) = events_of(joiner)
    assert joined.chain == ()


def test_a_final_refusal_ends_it():
    joiner, responder = new_joiner(), new_responder()
    (request,) = asked(joiner)

    event = opened(responder, request)
    joiner.receive_datagram(answered(responder, event.reference, USED), SEED_AT, 0.03)

    assert events_of(joiner) == [RefusedByMesh(USED, SEED_AT)]
    assert joiner.finished
    joiner.handle_timer(60.0, WALL)
    assert joiner.datagrams_to_send() == []


def test_after_a_passing_refusal_the_seeds_are_asked_again():
    joiner, responder = new_joiner(), new_responder()
    (request,) = asked(joiner)
    event = opened(responder, request)
    joiner.receive_datagram(answered(responder, event.reference, UNKNOWN), SEED_AT, 0.03)
    assert events_of(joiner) == [RefusedByMesh(UNKNOWN, SEED_AT)]

    joiner.handle_timer(joiner.get_timer().at, WALL)
    (request,) = (out.datagram for out in joiner.datagrams_to_send())
    event = opened(responder, request, now=0.3)
    joiner.receive_datagram(answered(responder, event.reference, UNKNOWN), SEED_AT, 0.33)
    assert events_of(joiner) == []  # it has been said

    joiner.handle_timer(joiner.get_timer().at, WALL)
    (request,) = (out.datagram for out in joiner.datagrams_to_send())
    event = opened(responder, request, now=1.0)
    joiner.receive_datagram(answered(responder, event.reference, CHAIN), SEED_AT, 1.03)
    assert joiner.finished


def test_an_answer_leaves_from_the_address_that_was_asked():
    joiner, responder = new_joiner(), new_responder()
    (request,) = asked(joiner)
    event = opened(responder, request)
    responder.answer(
        event.reference,
        CHAIN,
        record=record_of(SEED),
        chain=chain_of(SEED),
        ipv4_prefix=PREFIX,
        wall=WALL,
    )

    (out,) = responder.datagrams_to_send()

    assert (out.target, out.source) == (NEWCOMER_AT, HERE)
    assert len(out.datagram) <= len(request) == DATAGRAM_BYTES_MAX


def test_a_member_that_may_not_admit_lets_another_judge():
    joiner, responder = new_joiner(), new_responder()
    (request,) = asked(joiner)
    event = opened(responder, request)

    # The other member verifies what travelled; its own chain is the one that is extended.
    handed = decode_admission_request_untrusted(encode_admission_request(event.handover))
    assert handed.reference == event.reference
    assert open_request_untrusted(handed.payload, handed.binding, MESH) == event.request
    verdict = (*chain_of(OTHER, name="other"), link_for(NEWCOMER, issuer=OTHER))
    joiner.receive_datagram(answered(responder, handed.reference, verdict), SEED_AT, 0.2)

    (joined,) = events_of(joiner)
    assert joined.chain == verdict


# The responder against everybody


def test_nobody_without_the_bootstrap_key_gets_an_answer():
    responder = new_responder()
    (genuine,) = asked(new_joiner())
    (foreign,) = asked(new_joiner(bootstrap_key=STRANGERS_KEY))
    attempts = [b"", b"mesh", b"mesh\x01", foreign, Random(1).randbytes(1200)]
    attempts += [b"mesh" + bytes([kind]) + bytes(1195) for kind in range(256)]
    attempts += [genuine[:length] for length in range(0, len(genuine), 7)]
    attempts += [genuine + b"\0", genuine[:-1] + b"\0\0"]

    for attempt in attempts:
        responder.receive_datagram(attempt, NEWCOMER_AT, HERE, 0.0)

    assert {type(event) for event in events_of(responder)} == {BadPacketReceived}
    assert responder.datagrams_to_send() == []
    statistics = responder.statistics()
    assert (statistics.bad_packets, statistics.pending) == (len(attempts), 0)


def test_a_request_shorter_than_the_longest_answer_is_refused_however_well_sealed():
    responder = new_responder()
    sealer = Initiator(psk=BOOTSTRAP_KEY, prologue=PROLOGUE, ephemeral=b"\x31" * KEY_BYTES)
    payload = encode_request(
        by_invite(), key=NEWCOMER, mesh=MESH, binding=sealer.binding, wall=WALL
    )
    request = b"mesh\x01" + sealer.write_request(payload[:-1])

    event = opened(responder, request)

    assert event == BadPacketReceived(NEWCOMER_AT, "request of the wrong length")


def test_a_bit_flipped_anywhere_in_a_request_opens_nothing():
    responder = new_responder()
    (genuine,) = asked(new_joiner())
    for position in range(len(genuine)):
        flipped = bytearray(genuine)
        flipped[position] ^= 1 << position % 8
        responder.receive_datagram(bytes(flipped), NEWCOMER_AT, HERE, 0.0)

    assert responder.statistics().bad_packets == len(genuine)
    assert {type(event) for event in events_of(responder)} == {BadPacketReceived}
    assert isinstance(opened(responder, genuine), RequestOpened)


@given(st.binary(max_size=1300))
@settings(max_examples=50)
def test_arbitrary_bytes_draw_no_answer(datagram):
    responder, joiner = new_responder(), new_joiner()
    for attempt in (datagram, b"mesh\x01" + datagram, (b"mesh\x01" + datagram).ljust(1200)[:1200]):
        responder.receive_datagram(attempt, NEWCOMER_AT, HERE, 0.0)
        joiner.receive_datagram(attempt, SEED_AT, 0.0)

    assert responder.datagrams_to_send() == joiner.datagrams_to_send() == []


def test_a_replayed_request_changes_nothing_and_is_counted():
    responder = new_responder()
    (request,) = asked(new_joiner())
    event = opened(responder, request)
    answered(responder, event.reference, CHAIN)

    for at in range(50):
        responder.receive_datagram(request, OTHER_AT, HERE, float(at))

    assert events_of(responder) == []
    assert responder.datagrams_to_send() == []
    assert responder.statistics().replayed == 50


def test_a_request_is_answered_once():
    responder = new_responder()
    (request,) = asked(new_joiner())
    event = opened(responder, request)
    answered(responder, event.reference, CHAIN)

    assert not responder.answer(
        event.reference,
        CHAIN,
        record=record_of(SEED),
        chain=chain_of(SEED),
        ipv4_prefix=PREFIX,
        wall=WALL,
    )


def test_a_request_that_nobody_judges_is_let_go_of():
    responder = new_responder()
    (request,) = asked(new_joiner())
    event = opened(responder, request, now=1.0)
    assert responder.get_timer().at == 1.0 + PENDING_LIFETIME

    responder.handle_timer(1.0 + PENDING_LIFETIME)

    assert responder.get_timer() is None
    assert responder.statistics().expired == 1
    assert not responder.answer(
        event.reference,
        CHAIN,
        record=record_of(SEED),
        chain=chain_of(SEED),
        ipv4_prefix=PREFIX,
        wall=WALL,
    )


def test_a_flood_of_requests_fills_nothing():
    responder = new_responder()
    joiner = new_joiner(config=JoinerConfig(pause_min=0.001, pause_max=0.001))
    requests = asked(joiner)
    for tick in range(1, 400):
        joiner.handle_timer(float(tick), WALL)
        requests += [out.datagram for out in joiner.datagrams_to_send()]
    for request in requests:
        responder.receive_datagram(request, NEWCOMER_AT, HERE, 1.0)

    statistics = responder.statistics()
    assert statistics.opened <= min(REQUESTS_BURST_MAX, PENDING_MAX)
    assert statistics.pending == statistics.opened == len(events_of(responder))
    assert statistics.limited == len(requests) - statistics.opened


def test_a_request_of_our_own_is_dropped():
    responder = new_responder(NEWCOMER)
    (request,) = asked(new_joiner())

    assert opened(responder, request) == BadPacketReceived(NEWCOMER_AT, "request from ourselves")


# The joiner against everybody


def test_seeds_are_asked_with_growing_pauses_up_to_eight_seconds():
    joiner = new_joiner(config=CONFIG)
    joiner.seeds_resolved([("seed:51820", [SEED_AT])], 0.0)
    instants = []
    while (timer := joiner.get_timer()).at < 60.0:
        joiner.handle_timer(timer.at, WALL)
        instants += [timer.at] if joiner.datagrams_to_send() else []

    gaps = [b - a for a, b in pairwise(instants)]
    assert gaps[:7] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert set(gaps[7:]) == {8.0}


def test_jitter_only_shortens_pauses():
    joiner = new_joiner()
    joiner.seeds_resolved([("seed:51820", [SEED_AT])], 0.0)
    instants = []
    while (timer := joiner.get_timer()).at < 100.0:
        joiner.handle_timer(timer.at, WALL)
        instants += [timer.at] if joiner.datagrams_to_send() else []

    gaps = [b - a for a, b in pairwise(instants)]
    assert max(gaps) <= 8.0
    assert min(gaps[6:]) >= 6.0
    assert len(set(gaps)) == len(gaps)


def test_the_first_address_has_the_first_round_for_itself():
    joiner = new_joiner(seeds=("a:1", "b:2"))
    joiner.seeds_resolved([("a:1", [SEED_AT]), ("b:2", [OTHER_AT])], 0.0)
    joiner.handle_timer(0.0, WALL)
    assert [out.target for out in joiner.datagrams_to_send()] == [SEED_AT]

    joiner.handle_timer(joiner.get_timer().at, WALL)

    assert [out.target for out in joiner.datagrams_to_send()] == [SEED_AT, OTHER_AT]


def test_every_address_of_every_seed_is_asked_each_with_its_own_key():
    joiner = new_joiner(seeds=("a:1", "b:2"))
    joiner.seeds_resolved([("a:1", [SEED_AT, OTHER_AT]), ("b:2", [OTHER_AT, NEWCOMER_AT])], 0.0)
    joiner.handle_timer(0.0, WALL)
    joiner.datagrams_to_send()
    joiner.handle_timer(joiner.get_timer().at, WALL)

    sent = joiner.datagrams_to_send()

    assert [out.target for out in sent] == [SEED_AT, OTHER_AT, NEWCOMER_AT]
    assert len({out.datagram[5:37] for out in sent}) == 3


def test_a_name_with_many_addresses_is_asked_at_a_bounded_number():
    many = [Endpoint(ip_address(f"192.0.2.{n}"), 51820) for n in range(100)]

    joiner = new_joiner()
    asked(joiner, at=many)
    joiner.handle_timer(joiner.get_timer().at, WALL)

    assert len(joiner.datagrams_to_send()) == SEED_ENDPOINTS_MAX


def test_a_late_answer_to_an_earlier_request_counts():
    joiner, responder = new_joiner(config=CONFIG), new_responder()
    (first,) = asked(joiner)
    joiner.handle_timer(0.25, WALL)
    event = opened(responder, first)

    joiner.receive_datagram(answered(responder, event.reference, CHAIN), SEED_AT, 0.6)

    (joined,) = events_of(joiner)
    assert joined.rtt == pytest.approx(0.6)


def test_handshakes_under_way_are_bounded():
    joiner, responder = new_joiner(config=CONFIG), new_responder()
    (first,) = asked(joiner)
    while (timer := joiner.get_timer()).at < 60.0:
        joiner.handle_timer(timer.at, WALL)

    assert len(joiner._attempts[SEED_AT]) == ATTEMPTS_PER_ENDPOINT_MAX
    event = opened(responder, first)
    joiner.receive_datagram(answered(responder, event.reference, CHAIN), SEED_AT, 60.0)
    assert not joiner.finished


def rejected(joiner, datagram, source=SEED_AT):
    events_of(joiner)
    joiner.receive_datagram(datagram, source, 0.05)
    (event,) = events_of(joiner)
    assert isinstance(event, BadPacketReceived)
    assert not joiner.finished
    return event.reason


def test_an_answer_from_another_address_counts_for_nothing():
    joiner, responder = new_joiner(), new_responder()
    (request,) = asked(joiner)
    answer = answered(responder, opened(responder, request).reference, CHAIN)

    assert rejected(joiner, answer, OTHER_AT) == "answer to no request of ours"


def test_a_bit_flipped_anywhere_in_an_answer_opens_nothing():
    joiner, responder = new_joiner(), new_responder()
    (request,) = asked(joiner)
    answer = answered(responder, opened(responder, request).reference, CHAIN)

    for position in range(len(answer)):
        flipped = bytearray(answer)
        flipped[position] ^= 1 << position % 8
        rejected(joiner, bytes(flipped))
    joiner.receive_datagram(answer, SEED_AT, 0.1)
    assert joiner.finished


def test_a_chain_for_another_node_is_refused():
    joiner, responder = new_joiner(), new_responder()
    (request,) = asked(joiner)
    wrong = (*chain_of(SEED), link_for(OTHER))

    answer = answered(responder, opened(responder, request).reference, wrong)

    assert rejected(joiner, answer) == "credential of another subject"


def test_a_welcome_without_the_chain_that_was_asked_for_is_refused():
    joiner, responder = new_joiner(), new_responder()
    (request,) = asked(joiner)

    answer = answered(responder, opened(responder, request).reference, ())

    assert rejected(joiner, answer) == "chain too long or empty"


def test_a_holder_of_a_token_cannot_pose_as_a_member():
    joiner, impostor = new_joiner(), new_responder(OTHER)
    (request,) = asked(joiner)
    own_chain = (link_for(OTHER, issuer=OTHER),)
    record = record_of(OTHER, chain=own_chain)

    answer = answered(
        impostor,
        opened(impostor, request).reference,
        USED,
        key=OTHER,
        chain=own_chain,
        record=record,
    )

    rejected(joiner, answer)


def test_silence_is_reported_once_and_asking_goes_on():
    joiner = new_joiner(config=CONFIG)
    asked(joiner)
    events = []
    while (timer := joiner.get_timer()).at < 25.0:
        joiner.handle_timer(timer.at, WALL)
        events += [(timer.at, event) for event in events_of(joiner)]

    silent = [(at, event) for at, event in events if isinstance(event, Silent)]
    assert silent == [(5.0, Silent(("seed:51820",), (SEED_AT,)))]
    assert joiner.datagrams_to_send()


def test_names_are_looked_up_first_and_again_while_nobody_answers():
    joiner = new_joiner(config=CONFIG)
    assert events_of(joiner) == [ResolveSeeds(("seed:51820",))]
    asked(joiner)
    instants = []
    while (timer := joiner.get_timer()).at < 120.0:
        joiner.handle_timer(timer.at, WALL)
        instants += [timer.at for event in events_of(joiner) if isinstance(event, ResolveSeeds)]

    assert len(instants) == 3
    assert all(30.0 <= b - a <= 38.0 for a, b in pairwise(instants))


def test_a_seed_that_moves_is_asked_at_its_new_address_at_once():
    joiner = new_joiner(config=CONFIG)
    asked(joiner)
    joiner.handle_timer(20.0, WALL)
    joiner.datagrams_to_send()

    joiner.seeds_resolved([("seed:51820", [OTHER_AT])], 20.5)
    assert joiner.get_timer().at == 20.5
    joiner.handle_timer(20.5, WALL)

    assert {out.target for out in joiner.datagrams_to_send()} == {OTHER_AT}


def test_while_nobody_answers_each_round_asks_thrice_and_no_more_than_once_after_that():
    joiner, responder = new_joiner(config=CONFIG), new_responder()
    asked(joiner)
    joiner.handle_timer(5.0, WALL)  # that nobody answers is said
    thrice = [out.datagram for out in joiner.datagrams_to_send()]
    assert len({request[5:37] for request in thrice}) == 3

    event = opened(responder, thrice[1])
    joiner.receive_datagram(answered(responder, event.reference, UNKNOWN), SEED_AT, 5.1)
    joiner.handle_timer(20.0, WALL)

    assert len(joiner.datagrams_to_send()) == 1


def test_a_failed_look_up_keeps_what_was_known():
    joiner = new_joiner(config=CONFIG)
    asked(joiner)

    joiner.seeds_resolved([("seed:51820", [])], 1.0)
    joiner.handle_timer(1.0, WALL)

    assert [out.target for out in joiner.datagrams_to_send()] == [SEED_AT]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.0, 0.6))
def test_a_lossy_way_delays_but_does_not_prevent(seed, loss):
    rng = Random(seed)
    joiner, responder = new_joiner(seed=seed), new_responder(seed=seed + 1)
    joiner.seeds_resolved([("seed:51820", [SEED_AT])], 0.0)
    now = 0.0
    while not joiner.finished and now < 600.0:
        now = joiner.get_timer().at
        joiner.handle_timer(now, WALL)
        for out in joiner.datagrams_to_send():
            for _ in range(rng.choice([1, 1, 2])):
                if rng.random() >= loss:
                    responder.receive_datagram(out.datagram, NEWCOMER_AT, HERE, now)
        for event in events_of(responder):
            answer = answered(responder, event.reference, CHAIN)
            if rng.random() >= loss:
                joiner.receive_datagram(answer, SEED_AT, now)

    assert joiner.finished


def test_secrets_do_not_show():
    assert BOOTSTRAP_KEY.hex() not in repr(new_joiner()) + repr(BOOTSTRAP_KEY)
    introduction = by_invite()
    assert introduction.invite_key.seed.hex() not in repr(introduction)
    assert repr(introduction.invite_key.seed) not in repr(introduction)
