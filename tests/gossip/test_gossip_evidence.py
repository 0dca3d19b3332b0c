"""What else speaks for or against a member that has not answered a probe."""

import pytest

from gossip.harness import (
    ALIVE,
    DEAD,
    SUSPECT,
    Bench,
    accusations,
    alive,
    items_in,
    key,
    left,
    name_of,
    to,
)
from meshd.gossip.cause import CauseKind
from meshd.gossip.config import GossipConfig
from meshd.gossip.events import EvidenceWanted, MemberStateChanged, PathFault
from meshd.gossip.evidence import FAULTS_MIN
from meshd.gossip.probe import ATTEMPTS_MAX
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import MessageType

NAMES = "abcde"
CONFIG = GossipConfig(probe_interval=1e5, stream_timeout=0)
BLIND = GossipConfig(probe_interval=1e5, stream_timeout=0, evidence_max=0)


def probing(config=CONFIG, name="a"):
    bench = Bench(*NAMES, config=config)
    bench.meet(*NAMES)
    bench.advance(0.01)
    bench.node._prober._begin(key(name).id, bench.now)
    bench._drain()
    return bench


def late(bench, name="a"):
    bench.advance(bench.deadline(TimerKind.PROBE_TIMEOUT, name))


def judged(bench, name="a"):
    """Let time pass until the probe is judged."""
    if bench.deadline(TimerKind.PROBE_END, name) is None:
        late(bench, name)
    bench.advance(bench.deadline(TimerKind.PROBE_END, name))


def under_probe(bench, name="a"):
    return key(name).id in bench.node._prober._probes


# Heard since, or newer


def test_a_member_heard_since_the_probe_began_is_probed_once_more_and_not_accused():
    bench = probing()
    late(bench)
    bench.receive("a")
    judged(bench)
    assert bench.state("a") is ALIVE
    assert bench.node.statistics().probes_excused == 1
    assert under_probe(bench)
    judged(bench)
    assert bench.state("a") is SUSPECT, "it was not heard since that began"


def test_what_was_heard_before_the_probe_began_is_no_excuse():
    bench = probing()
    judged(bench)
    assert bench.state("a") is SUSPECT
    assert bench.node.statistics().probes_excused == 0


def test_what_a_member_has_said_of_itself_since_then_excuses_it_whoever_brought_it():
    bench = probing()
    bench.receive("b", items=[alive("a", 2)])
    judged(bench)
    assert bench.state("a") is ALIVE
    assert bench.node.statistics().probes_excused == 1
    judged(bench)
    assert bench.state("a") is SUSPECT


def test_a_member_that_is_heard_but_never_answers_is_left_alone_until_its_next_turn():
    bench = probing()
    for attempt in range(ATTEMPTS_MAX):
        assert under_probe(bench), attempt
        bench.receive("a")
        judged(bench)
    assert not under_probe(bench)
    assert bench.state("a") is ALIVE
    assert bench.node.statistics().probes_excused == ATTEMPTS_MAX


def test_a_member_that_is_heard_is_excused_without_evidence_from_the_kernel():
    bench = probing(BLIND)
    late(bench)
    bench.receive("a")
    judged(bench)
    assert bench.state("a") is ALIVE


# Traffic


def test_evidence_is_wanted_when_a_ping_is_late_once_for_each_probe():
    bench = probing()
    assert bench.seen(EvidenceWanted) == []
    late(bench)
    assert bench.seen(EvidenceWanted) == [EvidenceWanted(key("a").id)]
    late(bench)
    judged(bench)
    assert len(bench.seen(EvidenceWanted)) == 1


def test_traffic_excuses_a_silence_so_often_and_no_more():
    bench = probing()
    for excuses in range(CONFIG.evidence_max):
        assert bench.node.statistics().probes_excused == excuses
        late(bench)
        bench.do("carried", key("a").id, bench.now)
        judged(bench)
        assert bench.state("a") is ALIVE
        assert under_probe(bench), "each is followed by another at once"
    late(bench)
    bench.do("carried", key("a").id, bench.now)
    judged(bench)
    assert bench.state("a") is SUSPECT
    assert len(bench.seen(EvidenceWanted)) == CONFIG.evidence_max + 1


def test_an_ack_makes_the_excuses_begin_anew():
    bench = probing()
    for _ in range(CONFIG.evidence_max):
        late(bench)
        bench.do("carried", key("a").id, bench.now)
        judged(bench)
    ping = to(bench.sent, "a", MessageType.PING)[-1]
    bench.receive("a", MessageType.ACK, sequence=ping.sequence)
    assert not under_probe(bench)
    bench.advance(0.01)
    bench.node._prober._begin(key("a").id, bench.now)
    late(bench)
    bench.do("carried", key("a").id, bench.now)
    judged(bench)
    assert bench.state("a") is ALIVE


def test_traffic_before_the_probe_began_is_no_excuse():
    bench = Bench(*NAMES, config=CONFIG)
    bench.meet(*NAMES)
    bench.do("carried", key("a").id, bench.now)
    bench.advance(0.01)
    bench.node._prober._begin(key("a").id, bench.now)
    judged(bench)
    assert bench.state("a") is SUSPECT


def test_traffic_of_a_stranger_is_nothing():
    bench = probing()
    assert bench.do("carried", key("stranger").id, bench.now) == []


def test_where_evidence_is_off_none_is_wanted_and_traffic_excuses_nothing():
    bench = probing(BLIND)
    late(bench)
    bench.do("carried", key("a").id, bench.now)
    judged(bench)
    assert bench.seen(EvidenceWanted) == []
    assert bench.state("a") is SUSPECT


# ICMP


def test_a_member_whose_host_refuses_our_pings_is_accused_at_once():
    bench = Bench(*NAMES, config=CONFIG)
    bench.meet(*NAMES)
    sent = bench.do("unreachable", key("a").id, bench.now)
    assert bench.state("a") is SUSPECT
    cause = bench.seen(MemberStateChanged)[-1].cause
    assert (cause.kind, cause.accusers) == (CauseKind.SUSPECTED, (key("me").id,))
    assert cause.testimony.waited == 0.0
    assert cause.testimony.refused
    assert all(claim.testimony.refused for claim in accusations(items_in(sent), "a"))
    assert to(sent, "a"), "which is told"


def test_nothing_excuses_a_member_whose_host_refuses():
    bench = probing()
    late(bench)
    bench.receive("a")
    bench.do("carried", key("a").id, bench.now)
    bench.do("unreachable", key("a").id, bench.now)
    assert bench.state("a") is SUSPECT
    assert bench.deadline(TimerKind.PROBE_END, "a") is None, "there is nothing left to judge"


def test_one_refusal_is_one_accusation_however_often_it_comes():
    bench = Bench(*NAMES, config=CONFIG)
    bench.meet(*NAMES)
    bench.do("unreachable", key("a").id, bench.now)
    for _ in range(5):
        assert bench.do("unreachable", key("a").id, bench.now) == []
    assert bench.node.statistics().suspicions == 1


def test_whom_we_have_not_heard_we_do_not_accuse_for_a_refusal():
    bench = Bench(*NAMES, config=CONFIG)
    bench.meet("a")
    bench.receive("a", items=[alive("b")])
    for name in ("b", "c", "stranger", "me"):
        assert bench.do("unreachable", key(name).id, bench.now) == []
    assert bench.node.statistics().suspicions == 0


@pytest.mark.parametrize("gone", ["left", "dead"])
def test_whoever_is_gone_is_not_accused_for_a_refusal(gone):
    bench = Bench(*NAMES, config=CONFIG)
    bench.meet(*NAMES)
    if gone == "left":
        bench.receive("a", items=[left("a")])
    else:
        bench.do("unreachable", key("a").id, bench.now)
        bench.advance(60.0)
        assert bench.state("a") is DEAD
    before = bench.node.statistics().suspicions
    bench.do("unreachable", key("a").id, bench.now)
    assert bench.node.statistics().suspicions == before


def test_a_refused_member_that_lives_refutes_it_like_any_other_accusation():
    bench = Bench(*NAMES, config=CONFIG)
    bench.meet(*NAMES)
    bench.do("unreachable", key("a").id, bench.now)
    bench.receive("a", items=[alive("a", 2)], incarnation=2)
    assert bench.state("a") is ALIVE


def refused_and_refuted(bench, incarnation):
    """Have a refusal be followed by a sign of life that is no ack."""
    bench.do("unreachable", key("a").id, bench.now)
    assert bench.state("a") is SUSPECT
    bench.receive("b", items=[alive("a", incarnation)])
    assert bench.state("a") is ALIVE


def test_one_that_was_there_after_all_twice_is_behind_a_firewall_and_not_accused_again():
    bench = Bench(*NAMES, config=CONFIG)
    bench.meet(*NAMES)
    for incarnation in range(2, 2 + FAULTS_MIN):
        refused_and_refuted(bench, incarnation)
    assert bench.do("unreachable", key("a").id, bench.now) == []
    assert bench.state("a") is ALIVE


def test_a_refusal_is_believed_again_once_a_member_has_answered():
    bench = Bench(*NAMES, config=CONFIG)
    bench.meet(*NAMES)
    for incarnation in range(2, 2 + FAULTS_MIN):
        refused_and_refuted(bench, incarnation)
    sequence = bench.node.ping(key("a").id, bench.now)
    bench.receive("a", MessageType.ACK, sequence=sequence)
    bench.do("unreachable", key("a").id, bench.now)
    assert bench.state("a") is SUSPECT


def test_behind_a_firewall_that_rejects_the_probes_find_the_path_at_fault():
    bench = Bench(*NAMES, config=CONFIG)
    bench.meet(*NAMES)
    for incarnation in range(2, 2 + FAULTS_MIN):
        refused_and_refuted(bench, incarnation)
    bench.node._prober._end(key("a").id)  # we are one of its observers
    bench.advance(0.01)
    bench.node._prober._begin(key("a").id, bench.now)
    (probe,) = to(bench._drain(), "a", MessageType.PING)
    late(bench)
    requests = [t for m, t in bench.sent if m.type is MessageType.PING_REQ]
    helper = name_of(requests[0], NAMES)
    bench.receive(helper, MessageType.ACK, sequence=probe.sequence, target=key("a").id)
    judged(bench)
    assert bench.seen(PathFault) == [PathFault(key("a").id, key(helper).id)]
    assert bench.state("a") is ALIVE


def test_where_evidence_is_off_a_refusal_is_nothing():
    bench = probing(BLIND)
    bench.do("unreachable", key("a").id, bench.now)
    assert bench.state("a") is ALIVE
    assert under_probe(bench)
    assert bench.node.statistics().suspicions == 0


def test_who_has_left_accuses_nobody_for_a_refusal():
    bench = Bench(*NAMES, config=CONFIG)
    bench.meet(*NAMES)
    bench.do("leave", bench.now)
    assert bench.do("unreachable", key("a").id, bench.now) == []
