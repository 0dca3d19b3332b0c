"""One lab for all of these tests; each begins and ends with machines as good as new."""

import contextlib

import pytest

from badinput.machines import Machine
from lablib import Lab, lan

MACHINES = ("a", "b", "c", "d", "e", "f", "g")


@pytest.fixture(scope="session")
def bad_input_lab():
    with Lab(lan(len(MACHINES))) as lab:
        yield {name: Machine(node) for name, node in lab.nodes.items()}


@pytest.fixture
def machines(bad_input_lab):
    """All machines, by name."""
    with contextlib.ExitStack() as stack:
        for machine in bad_input_lab.values():
            stack.callback(machine.reset)
        yield bad_input_lab


@pytest.fixture
def machine(bad_input_lab):
    """One machine."""
    yield bad_input_lab["a"]
    bad_input_lab["a"].reset()
