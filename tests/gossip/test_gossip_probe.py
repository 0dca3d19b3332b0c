"""Probes: direct, by others, over TCP, once more, and only then a suspicion."""

import pytest

from gossip.harness import (
    ALIVE,
    DEAD,
    QUIET,
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
from meshd.gossip.events import MemberStateChanged, PathFault
from meshd.gossip.probe import PROBES_MAX
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import MessageType

NAMES = "abcde"
PLAIN = GossipConfig(stream_timeout=0, evidence_max=0)


def probing(*names, config=PLAIN, name=None):
    """A node that has just begun its only probe.  Return it, the ping and whom it is to."""
    bench = Bench(*names, config=config)
    bench.meet(*names)
    while True:
        ping, target = bench.advance_to(MessageType.PING)
        found = name_of(target, names)
        if name in {None, found}:
            break
        bench.receive(found, MessageType.ACK, sequence=ping.sequence)
    bench.node._timers.cancel(TimerKind.PROBE)
    return bench, ping, found


def probe(bench, name):
    """Begin a probe.  Return the ping."""
    prober = bench.node._prober
    prober._begin(key(name).id, bench.now)
    (ping,) = to(bench._drain(), name, MessageType.PING)
    return ping


def late(bench, name):
    """Let time pass until the first ping is late.  Return what was sent then."""
    return bench.advance(bench.deadline(TimerKind.PROBE_TIMEOUT, name))


def ended(bench, name):
    """Let time pass until the probe is judged.  Return what was sent since."""
    return bench.advance(bench.deadline(TimerKind.PROBE_END, name))


def asked_in(sent):
    return [target for message, target in sent if message.type is MessageType.PING_REQ]


# The stages


def test_a_probe_goes_from_direct_to_indirect_to_suspicion():
    bench, ping, target = probing(*NAMES)
    assert asked_in(bench.advance(0.49)) == []
    sent = bench.advance(0.02)
    requests = [message for message, _ in sent if message.type is MessageType.PING_REQ]
    assert len(requests) == 3
    assert {(one.sequence, one.target) for one in requests} == {(ping.sequence, key(target).id)}
    assert key(target).id not in asked_in(sent)
    assert len(to(sent, target, MessageType.PING)) == 1, "and it is pinged again itself"
    bench.advance(0.98)
    assert bench.state(target) is ALIVE
    sent = bench.advance(0.02)
    assert bench.state(target) is SUSPECT
    (claim,) = {one.blob: one for one in accusations(items_in(sent), target)}.values()
    assert claim.signer == key("me").id


def test_a_suspicion_tells_what_was_tried():
    bench, _, target = probing(*NAMES)
    asked = asked_in(late(bench, target))
    ended(bench, target)
    change = bench.seen(MemberStateChanged)[-1]
    assert (change.node, change.after) == (key(target).id, SUSPECT)
    assert change.cause.kind is CauseKind.SUSPECTED
    assert change.cause.accusers == (key("me").id,)
    assert change.cause.testimony.waited == pytest.approx(1.5, abs=0.002)
    assert change.cause.testimony.asked == tuple(node[:4] for node in asked)


def test_others_are_asked_a_second_time_before_the_silence_is_judged():
    names = [f"m{number}" for number in range(12)]
    bench, ping, target = probing(*names)
    first = late(bench, target)
    until_end = bench.deadline(TimerKind.PROBE_END, target)
    until_again = bench.deadline(TimerKind.PROBE_TIMEOUT, target)
    assert until_again == pytest.approx(until_end / 2)
    assert asked_in(bench.advance(until_again - 0.01)) == []
    second = bench.advance(0.02)
    assert len(asked_in(first)) == len(asked_in(second)) == 3
    assert set(asked_in(second)) != set(asked_in(first)), "drawn anew"
    assert {m.sequence for m, _ in second if m.type is MessageType.PING_REQ} == {ping.sequence}
    assert len(to(second, target, MessageType.PING)) == 1
    assert asked_in(bench.advance(until_end / 2 - 0.02)) == []


def test_who_was_asked_the_second_time_is_believed_as_well():
    bench, ping, target = probing("a", "b", "c")
    late(bench, target)
    between = name_of(asked_in(late(bench, target))[0], "abc")
    bench.receive(between, MessageType.ACK, sequence=ping.sequence, target=key(target).id)
    ended(bench, target)
    assert bench.node.statistics().probes_acked_indirectly == 1
    assert bench.state(target) is ALIVE


def test_whoever_is_asked_has_as_long_as_the_slowest_of_them_is_allowed():
    bench = Bench("a", "b", "c", "d", config=QUIET)
    bench.meet("a", "b", "c", "d")
    for _ in range(40):
        for name, rtt in (("a", 0.001), ("b", 0.001), ("c", 0.3), ("d", 0.001)):
            sequence = bench.node.ping(key(name).id, bench.now)
            bench.advance(rtt)
            bench.receive(name, MessageType.ACK, sequence=sequence)
    slowest = bench.node._membership.allowance(key("c").id)
    assert slowest > 0.3
    probe(bench, "a")
    assert bench.deadline(TimerKind.PROBE_TIMEOUT, "a") == pytest.approx(0.1)
    assert key("c").id in asked_in(late(bench, "a"))
    assert bench.deadline(TimerKind.PROBE_END, "a") == pytest.approx(0.1 + slowest)


@pytest.mark.parametrize("after", [0.3, 0.7, 1.2, 1.45])
def test_a_late_direct_ack_is_still_a_direct_ack(after):
    bench, ping, target = probing("a", "b", "c")
    bench.advance(after)
    bench.receive(target, MessageType.ACK, sequence=ping.sequence)
    bench.advance(2.0)
    assert bench.state(target) is ALIVE
    assert bench.node.statistics().probes_acked == 1
    assert bench.seen(PathFault) == []


def test_an_ack_to_any_of_its_pings_ends_a_probe():
    bench, _, target = probing("a", "b", "c")
    (again,) = to(late(bench, target), target, MessageType.PING)
    bench.receive(target, MessageType.ACK, sequence=again.sequence)
    assert bench.deadline(TimerKind.PROBE_END, target) is None
    assert bench.deadline(TimerKind.PROBE_TIMEOUT, target) is None
    assert bench.node.statistics().probes_acked == 1


def test_several_members_are_probed_at_once_each_with_deadlines_of_its_own():
    bench = Bench(*NAMES, config=QUIET)
    bench.meet(*NAMES)
    for name in NAMES:
        probe(bench, name)
        bench.advance(0.05)
    assert len(bench.node._prober._probes) == len(NAMES)
    wait = bench.deadline(TimerKind.PROBE_TIMEOUT, "a")
    assert bench.deadline(TimerKind.PROBE_TIMEOUT, "c") == pytest.approx(wait + 0.1)


def test_there_is_one_probe_of_a_member_at_a_time():
    bench = Bench("a", config=QUIET)
    bench.meet("a")
    probe(bench, "a")
    bench.node._prober._begin(key("a").id, bench.now)
    assert to(bench._drain(), "a", MessageType.PING) == []


def test_no_more_members_are_probed_at_once_than_we_can_follow():
    names = [f"m{number}" for number in range(PROBES_MAX + 10)]
    bench = Bench(*names, config=QUIET)
    bench.meet(*names)
    for name in names:
        bench.node._prober._begin(key(name).id, bench.now)
    assert len(bench.node._prober._probes) == PROBES_MAX


def test_a_member_that_left_and_came_back_meanwhile_is_not_accused_for_it():
    bench, _, target = probing("a", "b")
    other = "a" if target == "b" else "b"
    bench.receive(other, items=[left(target, 1), alive(target, 2)])
    assert bench.state(target) is DEAD, "that is but hearsay"
    bench.run_with(6.0, other)
    assert bench.node.statistics().suspicions == 0


def test_a_member_that_is_forgotten_meanwhile_is_not_judged():
    bench, _, target = probing("a", "b")
    bench.ledger.forget(key(target).id)
    bench.do("forget", key(target).id, bench.now)
    assert key(target).id not in bench.node._prober._probes
    assert bench.deadline(TimerKind.PROBE_TIMEOUT, target) is None
    bench.advance(3.0)
    assert bench.node.statistics().probes_failed == 0


# Paths at fault


def ack_indirectly(bench, target, names, ping):
    """Play out a probe that is acked by a helper only.  Return the helper."""
    between = name_of(asked_in(late(bench, target))[0], names)
    bench.receive(between, MessageType.ACK, sequence=ping.sequence, target=key(target).id)
    return between


def test_one_indirect_ack_is_no_fault_yet_but_reason_to_probe_again_at_once():
    bench, ping, target = probing(*NAMES)
    ack_indirectly(bench, target, NAMES, ping)
    again = to(ended(bench, target), target, MessageType.PING)
    assert len(again) == 2, "the last of this probe, and the first of the next"
    assert bench.seen(PathFault) == []
    assert bench.node.statistics().probes_acked_indirectly == 1
    bench.receive(target, MessageType.ACK, sequence=again[-1].sequence)
    bench.advance(3.0)
    assert bench.seen(PathFault) == []
    assert bench.state(target) is ALIVE


def test_two_probes_in_a_row_acked_by_others_only_are_a_path_fault():
    bench, ping, target = probing(*NAMES)
    ack_indirectly(bench, target, NAMES, ping)
    ping = to(ended(bench, target), target, MessageType.PING)[-1]
    between = ack_indirectly(bench, target, NAMES, ping)
    ended(bench, target)
    assert bench.seen(PathFault) == [PathFault(key(target).id, key(between).id)]
    assert bench.state(target) is ALIVE
    assert bench.node.statistics().suspicions == 0


def test_a_direct_ack_in_between_makes_the_faults_begin_anew():
    bench, ping, target = probing(*NAMES)
    ack_indirectly(bench, target, NAMES, ping)
    ping = to(ended(bench, target), target, MessageType.PING)[-1]
    bench.receive(target, MessageType.ACK, sequence=ping.sequence)
    ping = probe(bench, target)
    ack_indirectly(bench, target, NAMES, ping)
    ended(bench, target)
    assert bench.seen(PathFault) == []


def test_only_a_member_that_was_asked_is_believed_and_only_for_this_probe():
    bench, ping, target = probing(*NAMES)
    asked = {name_of(node, NAMES) for node in asked_in(late(bench, target))}
    asked |= {name_of(node, NAMES) for node in asked_in(late(bench, target))}
    for name in set(NAMES) - asked:
        bench.receive(name, MessageType.ACK, sequence=ping.sequence, target=key(target).id)
    for name in asked - {target}:
        bench.receive(name, MessageType.ACK, sequence=ping.sequence + 1, target=key(target).id)
    record = bench.node._prober._probes[key(target).id]
    assert record.acked_via is None


# Over TCP


def test_a_late_probe_is_sent_over_tcp_as_well():
    bench, _, target = probing(*NAMES, config=GossipConfig())
    assert bench.streams == []
    late(bench, target)
    (stream,) = bench.streams
    assert stream.target == key(target).id
    assert stream.timeout == GossipConfig().stream_timeout
    late(bench, target)
    assert len(bench.streams) == 1, "once for each probe"
    assert bench.node.statistics().streams_opened == 1


def test_without_a_stream_timeout_nothing_is_sent_over_tcp():
    bench, _, target = probing(*NAMES)
    late(bench, target)
    ended(bench, target)
    assert bench.streams == []
    assert bench.state(target) is SUSPECT


# For others


def test_a_member_that_is_asked_pings_for_another_and_passes_the_answer_on():
    bench = Bench("a", "b")
    bench.meet("a", "b")
    sent = bench.receive("a", MessageType.PING_REQ, sequence=77, target=key("b").id)
    (ping,) = to(sent, "b", MessageType.PING)
    (ack,) = bench.receive("b", MessageType.ACK, sequence=ping.sequence)
    assert ack[1] == key("a").id
    assert (ack[0].type, ack[0].sequence) == (MessageType.ACK, 77)
    assert ack[0].target == key("b").id
    assert to(bench.advance(0.45), "a", MessageType.NACK) == []


def test_a_member_that_was_asked_says_that_it_has_tried_in_vain_while_that_is_waited_for():
    bench = Bench("a", "b", config=QUIET)
    bench.meet("a", "b")
    for _ in range(20):
        sequence = bench.node.ping(key("b").id, bench.now)
        bench.now += 0.2
        bench.receive("b", MessageType.ACK, sequence=sequence)
    bench.receive("a", MessageType.PING_REQ, sequence=77, target=key("b").id)
    allowed = bench.node._membership.allowance(key("b").id)
    assert 0.2 < allowed < 0.25
    assert to(bench.advance(0.79 * allowed), "a", MessageType.NACK) == []
    (nack,) = to(bench.advance(0.02 * allowed), "a", MessageType.NACK)
    assert (nack.sequence, nack.target) == (77, key("b").id)
