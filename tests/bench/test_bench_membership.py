"""The parts of the membership bench that judge what it measures, and the bench itself, in small."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))

from membership.cluster import Note, What  # noqa: E402
from membership.results import Results  # noqa: E402
from membership.serf import Serf  # noqa: E402


def results(**samples):
    """Results with one metric at N=100: medians over `ours` and `serf`."""
    collected = Results()
    for metric, sides in samples.items():
        for side, values in sides.items():
            for value in values:
                collected.record(metric, 100, side, value)
    return collected


def row(collected, metric):
    (found,) = [row for row in collected.rows() if row["metric"] == metric]
    return found


def test_a_target_is_met_by_median_and_worst_together():
    fast = results(crash_s={"ours": [1.0, 2.0, 3.0], "serf": [9.0, 10.0, 11.0]})
    assert row(fast, "crash_s")["ratio"] == pytest.approx(0.2)
    assert row(fast, "crash_s")["met"]
    tailed = results(crash_s={"ours": [1.0, 2.0, 8.0], "serf": [9.0, 10.0, 11.0]})
    assert not row(tailed, "crash_s")["met"]


def test_what_never_happened_misses_its_target_and_is_no_number_in_json():
    collected = results(cold_s={"ours": [1.0, math.inf], "serf": [1.0, 1.0]})
    assert not row(collected, "cold_s")["met"]
    assert json.loads(json.dumps(collected.as_json(), allow_nan=False))["samples"]["cold_s"] == {
        "100": {"ours": [1.0, None], "serf": [1.0, 1.0]}
    }


def test_beside_what_never_happened_anything_is_faster():
    assert row(results(cold_s={"ours": [1.0], "serf": [math.inf]}), "cold_s")["ratio"] == 0.0


def test_what_neither_side_did_in_time_is_missed_by_ours():
    never = results(crash_s={"ours": [math.inf], "serf": [math.inf]})
    assert row(never, "crash_s")["met"] is False


def test_one_failure_of_two_is_no_median():
    halved = results(cold_s={"ours": [2.0, 3.0], "serf": [4.0, math.inf]})
    assert row(halved, "cold_s")["ratio"] == 0.5


def test_a_target_says_nothing_about_one_side_alone():
    assert row(results(crash_s={"ours": [1.0]}), "crash_s")["met"] is None


def test_serfs_log_lines_become_notes():
    cluster = Serf()
    cluster._alive = {"m1": set()}
    for line in (
        b"    2026/01/01 00:00:00 [INFO] serf: EventMemberJoin: m1 127.1.0.2",
        b"    2026/01/01 00:00:00 [INFO] serf: EventMemberJoin: m2 127.1.0.3",
        b"    2026/01/01 00:00:00 [INFO] agent: Received event: user-event: news1",
        b"    2026/01/01 00:00:00 [INFO] memberlist: Suspect m2 has failed, no acks received",
        b"    2026/01/01 00:00:00 [INFO] serf: EventMemberFailed: m2 127.1.0.3",
        b"    2026/01/01 00:00:00 [WARN] memberlist: Refuting a suspect message (from: m3)",
    ):
        cluster._take_line("m1", line, 5.0)
    assert cluster.notes == [
        Note(5.0, "m1", What.ALIVE, "m2"),
        Note(5.0, "m1", What.NEWS, "news1"),
        Note(5.0, "m1", What.SUSPECT, "m2"),
        Note(5.0, "m1", What.DEAD, "m2"),
    ]
    assert cluster.counters()["refutations"] == 1
    assert cluster.deaths({"m2"}) == 1


@pytest.mark.netns
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_three_members_are_measured(tmp_path):
    file = tmp_path / "report.json"
    options = "--quick --sides ours --sizes 3 --only cold,event,leave,join,crash --json"
    subprocess.run(
        [sys.executable, BENCH / "bench_membership.py", *options.split(), file],
        check=True,
        timeout=60,
        capture_output=True,
    )
    report = json.loads(file.read_text())
    assert {row["metric"] for row in report["table"]} >= {"cold_s", "event_s", "crash_s", "leave_s"}
    assert all(row["ours"] is not None for row in report["table"])
