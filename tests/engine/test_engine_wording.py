"""Causes in words for people, and in fields for programs."""

import pytest

from meshd.engine.wording import Wording
from meshd.gossip.cause import Cause, CauseKind
from meshd.gossip.claim import Testimony as Said  # by its own name pytest takes it for a test
from meshd.keys import NodeId

NAMES = {NodeId(bytes([number]) * 32): name for number, name in enumerate("abcdefgh", start=1)}
A, _, C, D, E, *_ = NAMES


@pytest.fixture
def wording():
    return Wording(NAMES.__getitem__, lambda: NAMES)


def prefixes(*nodes):
    return tuple(node[:4] for node in nodes)


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (Cause(CauseKind.HEARD), "heard through its tunnel"),
        (Cause(CauseKind.CLAIMED), "alive by its own word"),
        (Cause(CauseKind.REFUTED), "alive: it has refuted the suspicion"),
        (Cause(CauseKind.SUSPECTED, (A,)), "suspected by a"),
        (
            Cause(CauseKind.SUSPECTED, (A,), Said(0.3)),
            "suspected by a after no ack in 300 ms",
        ),
        (
            Cause(CauseKind.SUSPECTED, (A,), Said(0.0871, prefixes(C))),
            "suspected by a after no ack in 87 ms and no indirect ack from c",
        ),
        (
            Cause(CauseKind.SUSPECTED, (A,), Said(1.5, prefixes(C, D, E))),
            "suspected by a after no ack in 1500 ms and no indirect ack from c, d, e",
        ),
        (
            Cause(CauseKind.SUSPECTED, (A,), Said(0.0)),
            "suspected by a: its host answers that nobody listens there",
        ),
        (
            Cause(CauseKind.UNREFUTED, (A,), silent_for=3.6),
            "suspected by a, and silent for 3.6 s since",
        ),
        (
            Cause(CauseKind.UNREFUTED, (A, C), silent_for=1.26),
            "suspected by a and c, and silent for 1.3 s since",
        ),
        (
            Cause(CauseKind.UNREFUTED, (A, C, D, E), silent_for=0.62),
            "suspected by a, c, d and e, and silent for 0.6 s since",
        ),
        (Cause(CauseKind.LEFT), "left the mesh"),
        (
            Cause(CauseKind.RETRACTED),
            "no longer suspected: who suspected it is a member no more",
        ),
    ],
)
def test_the_text_of_each_cause(wording, cause, text):
    assert wording.text(cause) == text


@pytest.mark.parametrize(
    ("cause", "details"),
    [
        (Cause(CauseKind.HEARD), {"cause": "heard"}),
        (Cause(CauseKind.CLAIMED), {"cause": "claimed"}),
        (Cause(CauseKind.REFUTED), {"cause": "refuted"}),
        (Cause(CauseKind.LEFT), {"cause": "left"}),
        (Cause(CauseKind.RETRACTED), {"cause": "retracted"}),
        (Cause(CauseKind.SUSPECTED, (A,)), {"cause": "suspected", "accusers": ("a",)}),
        (
            Cause(CauseKind.SUSPECTED, (A,), Said(0.087, prefixes(C, D))),
            {"cause": "suspected", "accusers": ("a",), "waited_ms": 87, "asked": ("c", "d")},
        ),
        (
            Cause(CauseKind.SUSPECTED, (A,), Said(0.0)),
            {"cause": "suspected", "accusers": ("a",), "waited_ms": 0, "asked": ()},
        ),
        (
            Cause(CauseKind.UNREFUTED, (A, C), silent_for=0.62345),
            {"cause": "unrefuted", "accusers": ("a", "c"), "silent_for_s": 0.623},
        ),
    ],
)
def test_the_fields_of_each_cause(wording, cause, details):
    assert wording.details(cause) == details


def test_every_kind_of_cause_has_its_words_and_its_fields(wording):
    texts = {wording.text(Cause(kind, (A,))) for kind in CauseKind}
    assert len(texts) == len(CauseKind)
    assert {wording.details(Cause(kind, (A,)))["cause"] for kind in CauseKind} == set(CauseKind)


def test_the_names_of_causes_in_json_do_not_change():
    assert [kind.value for kind in CauseKind] == [
        "heard",
        "claimed",
        "refuted",
        "suspected",
        "unrefuted",
        "left",
        "retracted",
    ]


def test_a_member_that_we_do_not_know_is_called_by_the_beginning_of_its_id(wording):
    cause = Cause(CauseKind.SUSPECTED, (A,), Said(0.3, (C[:4], b"\xde\xad\xbe\xef")))
    assert wording.text(cause).endswith("no indirect ack from c, deadbeef")
    assert wording.details(cause)["asked"] == ("c", "deadbeef")
