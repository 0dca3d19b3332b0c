"""Figures that tests see on their way, printed at the end of the run."""

import pytest

FIGURES = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[FIGURES] = []


@pytest.fixture
def measured(request):
    """Note a figure: `measured("seconds until whole", 1.23)`."""

    def note(what, value):
        request.config.stash[FIGURES].append((request.node.name, what, value))

    return note


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[FIGURES]:
        terminalreporter.section("measured")
    for test, what, value in config.stash[FIGURES]:
        terminalreporter.write_line(f"{value:10.2f} {what}  ({test})")
