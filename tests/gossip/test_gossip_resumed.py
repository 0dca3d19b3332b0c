"""After a sleep the clock stood still, NATs and tunnels have forgotten us: nobody is to blame."""

from gossip.harness import ALIVE, SUSPECT, Bench, accuse, to
from meshd.gossip.config import GossipConfig
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import MessageType

NAMES = "abcdef"
CONFIG = GossipConfig(stream_timeout=0)


def asleep_until_now():
    """A node that has just woken up, with everybody out of its reach."""
    bench = Bench(*NAMES, config=CONFIG)
    bench.meet(*NAMES)
    bench.run_with(10.0, *NAMES)
    sent = bench.do("resumed", bench.now)
    return bench, sent


def test_who_has_slept_accuses_nobody_while_its_network_comes_up():
    bench, _ = asleep_until_now()

    bench.advance(CONFIG.resume_grace)

    assert {bench.state(name) for name in NAMES} == {ALIVE}


def test_who_is_gone_after_that_is_suspected_as_ever():
    bench, _ = asleep_until_now()

    bench.run_with(CONFIG.resume_grace + 10.0, *"abcde")

    assert bench.state("f") is not ALIVE
    assert {bench.state(name) for name in "abcde"} == {ALIVE}


def test_who_has_slept_is_heard_by_some_at_once():
    _, sent = asleep_until_now()

    assert len([name for name in NAMES if to(sent, name, MessageType.PING)]) == len(NAMES)


def test_a_suspicion_from_before_the_sleep_gets_the_same_time():
    bench = Bench(*NAMES, config=CONFIG)
    bench.meet(*NAMES)
    bench.run_with(10.0, *NAMES)
    bench.receive("a", items=[accuse("f", by="a")])
    assert bench.state("f") is SUSPECT
    before = bench.deadline(TimerKind.SUSPICION, "f")

    bench.do("resumed", bench.now)

    assert bench.deadline(TimerKind.SUSPICION, "f") >= before + CONFIG.resume_grace
