"""Whatever a node is sent, it only ever has events to tell.  See `fuzz_gossip` for longer searches.

The histories in `corpus/` have each broken something once, or nearly.
"""

from pathlib import Path

import pytest

from fuzz import fuzz_gossip, registry, targets
from fuzz.life import Life
from fuzz.oracle import Violation
from fuzz.people import MEMBERS, NODES, accused, encode, said, signed_claim
from fuzz.registry import Result
from fuzz.steps import format_history, parse_history, replay, shorten
from fuzz.table import Table
from meshd.gossip.claim import MemberState
from meshd.gossip.wire import Message, MessageType

CORPUS = sorted(Path(__file__).with_name("corpus").glob("*.txt"))
BYTES = sorted(Path(__file__).with_name("corpus").glob("*.hex"))
INPUTS = 20_000
TARGET_INPUTS = 400
NEVER = float("inf")


def gossip(*items):
    return encode(Message(MessageType.GOSSIP, 0, items=items))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_once_broke_a_node_breaks_none(path):
    replay(*parse_history(path.read_text()))


@pytest.mark.parametrize("path", BYTES, ids=lambda path: path.stem)
def test_what_once_broke_a_decoder_breaks_none(path):
    name, data = path.read_text().splitlines()
    registry.judge(targets.TARGETS[name.removeprefix("# ")](), bytes.fromhex(data), Result())


def test_any_bytes_give_events_and_change_nothing_unsigned():
    total = fuzz_gossip.Report()
    for task in fuzz_gossip.tasks_for(INPUTS):
        report = fuzz_gossip.live(task, seed="ci", until=NEVER)
        assert not report.wrong, report.wrong
        total.add(report)

    assert [state for state in fuzz_gossip.STATES if not total.met[state]] == []


@pytest.mark.parametrize("name", targets.TARGETS)
def test_any_bytes_are_a_value_or_a_bad_packet(name):
    result = targets.fuzz(name, inputs=TARGET_INPUTS, seed="ci")

    assert not result.wrong, f"{result.data.hex()}\n{result.wrong}"
    assert result.accepted, "none of them got anywhere"


def test_one_seed_is_one_history():
    histories = []
    for _ in range(2):
        steps = []
        Life("same", 500).run(record_step=steps.append)
        histories.append(steps)

    assert histories[0] == histories[1]


def test_a_history_survives_being_written_down():
    life, steps = Life("written", 300), []
    life.run(record_step=steps.append)

    text = format_history(life.rng_seed, steps, why="two\nlines")

    assert parse_history(text) == (life.rng_seed, steps)
    assert replay(life.rng_seed, steps).node.members() == life.table.node.members()


# The searcher itself: one that finds nothing wrong where something is would be worth nothing.


def test_a_belief_that_nobody_signed_is_found_out():
    table = Table(1)
    table.do(("datagram", "d", gossip(said("d", 1))))
    member = table.node._membership.get(NODES["d"])
    table._oracle._words.clear()
    member.belief = member.belief.add(member.belief.own)

    with pytest.raises(Violation, match="never said"):
        table.do(("tick",))


def test_a_forged_word_is_no_reason_to_believe_anything():
    table = Table(1)
    body = {1: bytes(NODES["d"]), 2: 9, 3: int(MemberState.ALIVE)}

    table.do(("datagram", "a", gossip(signed_claim(body, "a"))))

    assert (NODES["d"], 9, MemberState.ALIVE) not in table._oracle._words


def test_an_accusation_is_a_reason_only_against_whom_it_names():
    table = Table(1)

    table.do(("datagram", "a", gossip(said("d", 1), accused("d", 1, "a"))))

    assert table._oracle._accusations == {(NODES["d"], 1, NODES["a"])}


def test_an_endless_table_is_found_out():
    table = Table(1)
    table.node.something_new = dict.fromkeys(range(5000))

    with pytest.raises(Violation, match="dict of 5000"):
        table.check()


def test_a_failing_history_is_shortened_to_what_matters(monkeypatch):
    def break_when_late(table):
        if table.now >= 1005.0:
            raise Violation("late")

    monkeypatch.setattr(Table, "_tick", break_when_late)
    pings = [("ping", name) for name in MEMBERS]
    steps = [*pings, ("stall", 5.0), *pings, ("tick",), *pings]

    assert shorten(1, steps, seconds=NEVER) == [("stall", 5.0), ("tick",)]
