"""Members behind NATs of every kind get together, directly wherever that is possible at all."""

import os

import pytest

from lablib import matrix
from lablib.nats import KINDS

pytestmark = pytest.mark.netns

# One that anyone may answer, two that meet by punching only, one that takes a relay, and a carrier.
REDUCED = ("ei-ei", "ei-apd", "apd", "cgn")


def fill(names, measured):
    grid = matrix.run(names, name=f"matrix-{os.getpid()}")
    print(grid.render())
    for what, seconds in grid.medians().items():
        measured(what, seconds)
    return grid


@pytest.mark.slow
def test_members_behind_nats_meet_as_the_model_says(measured):
    grid = fill(REDUCED, measured)

    assert len(grid.cells) == (1 + len(REDUCED)) ** 2
    assert not grid.unexpected, grid.render()


@pytest.mark.long
def test_members_behind_all_kinds_of_nat_meet_as_the_model_says(measured):
    grid = fill((), measured)

    assert len(grid.cells) == len(KINDS) ** 2
    assert not grid.unexpected, grid.render()
