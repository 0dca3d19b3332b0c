"""Starting meshd on a node, in both ways."""

import os
import signal

import pytest

from lablib import Lab, LabError, Start, lan

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces takes root"),
    pytest.mark.parametrize("how", list(Start)),
]

TIMEOUT = 60


def test_output_goes_to_the_log_and_the_exit_status_is_carried(how):
    with Lab(lan(1), how=how) as lab:
        assert lab["a"].start_daemon("--version").wait(TIMEOUT) == 0
        assert lab["a"].start_daemon("--no-such-option").wait(TIMEOUT) == 2

        assert lab["a"].log_text().startswith("meshd 0.")
        assert "no-such-option" in lab["a"].log_tail()


def test_the_environment_is_handed_on(how):
    with Lab(lan(1), how=how) as lab:
        process = lab["a"].start_daemon("--check-config", env={"MESHD_PORT": "not-a-port"})

        assert process.wait(TIMEOUT) == 2
        assert "not-a-port" in lab["a"].log_text()


def test_a_daemon_reads_the_files_of_its_own_node(how):
    with Lab(lan(1), how=how) as lab:
        node = lab["a"]
        node.file("/etc/meshd/meshd.toml").write_text("port = 'inside a'")

        assert node.start_daemon("--check-config").wait(TIMEOUT) == 2
        assert "inside a" in node.log_text()


def test_stopping_what_was_never_started_is_a_mistake_that_is_named(how):
    with Lab(lan(1), how=how) as lab, pytest.raises(LabError, match="no meshd was started on a"):
        lab["a"].stop_daemon(signal.SIGTERM)
