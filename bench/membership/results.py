"""Samples, and the table they come to."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

SIDES = ("ours", "serf")
_INTEGER_MIN = 100  # from here on, decimals say nothing


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be shown of a metric; None where nothing is."""

    ratio: float | None = None  # of the medians, ours to serf's
    worst_ratio: float | None = None
    median: float | None = None  # of ours, in itself
    worst: float | None = None
    sizes: tuple[int, ...] = ()  # none: all


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table, for each number of members."""

    name: str
    title: str
    unit: str
    target: Target = Target()


_CRASH = Target(ratio=0.35, worst_ratio=0.6)
METRICS = (
    Metric("join_s", "one joins: all know", "s", Target(ratio=1.0, sizes=(100,))),
    Metric("cold_s", "all start at once: all see all", "s", Target(worst=5.0, sizes=(100,))),
    Metric("calm_after_s", "... until no more than usual is sent", "s"),
    Metric("crash_suspect_s", "SIGKILL: first suspicion", "s"),
    Metric("crash_s", "SIGKILL: all know", "s", _CRASH),
    Metric("crash_false_deaths", "SIGKILL: others taken for dead", ""),
    Metric("blackhole_suspect_s", "machine lost: first suspicion", "s"),
    Metric("blackhole_s", "machine lost: all know", "s", _CRASH),
    Metric("blackhole_false_deaths", "machine lost: others taken for dead", ""),
    Metric("leave_s", "one leaves: all know", "s", Target(ratio=1.0, sizes=(100,))),
    Metric("leaves_taken_for_deaths", "leaver taken for dead", "", Target(worst=0.0)),
    Metric("event_s", "news: all know", "s"),
    Metric("steady_bytes_per_s", "idle: sent by each", "B/s", Target(ratio=1.0, sizes=(100,))),
    Metric("steady_packets_per_s", "idle: packets sent by each", "/s"),
    Metric("cpu_ms_per_s", "idle: CPU of each", "ms/s", Target(median=10.0, sizes=(100,))),
    Metric("rss_mib", "idle: RSS of each", "MiB"),
    Metric("pss_mib", "idle: PSS of each", "MiB"),
    Metric("private_mib", "idle: private memory of each", "MiB"),
    Metric("loss_false_deaths", "30 % loss: taken for dead", "", Target(worst=0.0)),
    Metric("loss_suspicions", "30 % loss: accusations by own probe", ""),
    Metric("loss_bytes_per_s", "30 % loss: sent by each", "B/s"),
    Metric("loss_whole_after_s", "30 % loss: all see all afterwards", "s"),
    Metric("stalls_false_deaths_of_others", "stalls: others taken for dead", "", Target(worst=0.0)),
    Metric("stalls_deaths_of_stopped", "stalls: stopped ones taken for dead", ""),
    Metric("stalls_bursts", "stalls: how many", ""),
    Metric("stalls_whole_after_s", "stalls: all see all afterwards", "s"),
    Metric("others_cpus", "CPUs that other programs kept busy", ""),
)


class Results:
    """All samples: by metric, number of members and side."""

    def __init__(self) -> None:
        self._samples: defaultdict[tuple[str, int, str], list[float]] = defaultdict(list)
        self._details: dict[str, Any] = {}
        self.failed: list[str] = []  # trials that could not be done, and why
        self._began_at = time.monotonic()

    # Taking in

    def say(self, text: str) -> None:
        """Tell whoever is waiting what goes on."""
        print(f"[{time.monotonic() - self._began_at:5.0f} s] {text}", file=sys.stderr, flush=True)

    def record(self, metric: str, size: int, side: str, value: float, failing: str = "") -> None:
        """Add a sample; infinity says that it did not happen in time."""
        self._samples[metric, size, side].append(value)
        shown = f"{value:.3g}" if math.isfinite(value) else f"not in time {failing}"
        self.say(f"N={size} {side}: {metric} {shown}")

    def fail(self, text: str) -> None:
        """Note that a trial could not be done."""
        self.failed.append(text)
        self.say(text)

    def detail(self, what: str, size: int, side: str, value: Any) -> None:  # noqa: ANN401 - JSON
        """Add something that is in the JSON only."""
        self._details.setdefault(what, {}).setdefault(str(size), {})[side] = value

    # Giving out

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each metric and number of members that there are samples of."""
        sizes = sorted({size for _, size, _ in self._samples})
        return [
            row
            for metric in METRICS
            for size in sizes
            if (row := self._row(metric, size)) is not None
        ]

    def as_json(self) -> dict[str, Any]:
        """Return rows, samples and details."""
        samples: dict[str, dict[str, dict[str, list[float | None]]]] = {}
        for (metric, size, side), values in self._samples.items():
            by_side = samples.setdefault(metric, {}).setdefault(str(size), {})
            by_side[side] = [_finite(value) for value in values]
        rows = [
            {key: _finite(value) if isinstance(value, float) else value for key, value in r.items()}
            for r in self.rows()
        ]
        return {
            "table": rows,
            "samples": samples,
            "details": self._details,
            "failed": self.failed,
        }

    def print(self) -> None:
        """Print the table."""
        heading = f"{'':38}{'N':>4}  {'ours':>8}{'worst':>8}  {'serf':>8}{'worst':>8}  {'ratio':>6}"
        print(f"{heading}{'worst':>7}  target")
        for row in self.rows():
            numbers = [
                _show(row.get(key), width)
                for key, width in (
                    ("ours", 10),
                    ("ours_worst", 8),
                    ("serf", 10),
                    ("serf_worst", 8),
                    ("ratio", 8),
                    ("worst_ratio", 7),
                )
            ]
            title = f"{row['title']}{', ' + row['unit'] if row['unit'] else ''}"
            print(f"{title:<38}{row['size']:>4}{''.join(numbers)}  {row['target']}")

        for text in self.failed:
            print(f"not done: {text}")

    def _row(self, metric: Metric, size: int) -> dict[str, Any] | None:
        row: dict[str, Any] = {
            "metric": metric.name,
            "title": metric.title,
            "unit": metric.unit,
            "size": size,
        }
        for side in SIDES:
            if values := self._samples.get((metric.name, size, side)):
                # Not their mean where there are two in the middle: one of them may be infinite.
                row[side], row[f"{side}_worst"] = statistics.median_low(values), max(values)
                row[f"{side}_trials"] = len(values)
        if not any(side in row for side in SIDES):
            return None
        if all(side in row for side in SIDES):
            row["ratio"] = _ratio(row["ours"], row["serf"])
            row["worst_ratio"] = _ratio(row["ours_worst"], row["serf_worst"])
        target = metric.target
        applies = not target.sizes or size in target.sizes
        row["met"], row["target"] = _judge(target, row) if applies else (None, "")
        return row


def _judge(target: Target, row: dict[str, Any]) -> tuple[bool | None, str]:
    """Return whether all that is asked for is there, and how that is shown."""
    met: list[bool] = []
    asked: list[str] = []
    for key, limit, shown in (
        ("ratio", target.ratio, "ratio"),
        ("worst_ratio", target.worst_ratio, "worst"),
        ("ours", target.median, "median"),
        ("ours_worst", target.worst, "every time"),
    ):
        if limit is not None and row.get(key) is not None:
            met.append(row[key] <= limit)
            asked.append(f"{shown} ≤ {limit:g}")
    if not met:
        return None, ""
    return all(met), f"{', '.join(asked)}: {'met' if all(met) else 'MISSED'}"


def _ratio(ours: float, serf: float) -> float | None:
    """Return how ours compares; infinity if ours never came to an end, None to nothing at all."""
    if not math.isfinite(ours):
        return math.inf
    return ours / serf if serf else None


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _show(value: float | None, width: int) -> str:
    if value is None:
        return f"{'-':>{width}}"
    if not math.isfinite(value):
        return f"{'never':>{width}}"
    return f"{value:>{width}.0f}" if value >= _INTEGER_MIN else f"{value:>{width}.2f}"
