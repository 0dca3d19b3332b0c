#!/usr/bin/env python3
"""What membership is worth at any size and in any weather, in simulation: tables, JSON and plots.

The nodes are the real ones; network and time are simulated (see `tests/sim`), so that all numbers
but the seconds that a run takes follow from the seeds, on any machine.

    bench/bench_simulation.py [--sizes 10,100,1000,10000] [--trials N] [--out DIR] [--json FILE]

    scale    detection time and traffic against the number of members, which begins converged
    loss     false deaths, suspicions and traffic against loss, with and without what helps there
    ideas    each idea of docs/gossip.md switched off alone, where it is meant to help
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from sim import settings  # noqa: E402
from sim.scale import LargeMesh, crash_trial, rest  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = (10, 100, 1_000, 10_000)
TRIALS = 7
TRIALS_LARGE = 3  # from so many members on, each takes a minute
LARGE = 5_000
REST_SECONDS = 30.0
REST_SECONDS_LARGE = 10.0
PAUSE_MAX = 5.0  # between two crashes in one mesh
CRASHED_SHARE = 100  # of so many members, one is crashed

RATES = ("false_deaths", "troubled_deaths", "suspicions", "bytes_per_s", "packets_per_s")
WEATHER_SIZE = 25
WEATHER_TRIALS = 3  # there are many kinds
LOSS_VARIANTS = (
    *(None, "TCP probe", "local health, nacks", "observers", "buddy system"),
    settings.ALL_OF_THESE,
)
IDEA_SETTINGS = (
    "quiet LAN",
    "30 % loss",
    "WAN, 3 regions",
    "1 in 6 stops for 5-10 s",
    "1 in 4 starved of CPU",
)


def main() -> int:
    """Measure, print tables, draw plots, and write JSON if asked to."""
    parts = {"scale": _scale, "loss": _loss, "ideas": _ideas}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=_numbers, default=SIZES, metavar="N,N")
    parser.add_argument("--trials", type=int, default=TRIALS, metavar="N", help="of each")
    parser.add_argument("--only", choices=parts, action="append", help="one part; may be repeated")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), metavar="N")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs", metavar="DIR", help="where plots go, as PNG"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    report = {name: parts[name](arguments) for name in arguments.only or parts}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers") from None


# Scale


def _scale(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    print("| N | first suspicion, s | all know, s: median | worst | at rest, bytes/s | packets/s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    rows = []
    for size in arguments.sizes:
        # A process of its own, so that its memory is given back.
        with multiprocessing.Pool(1) as pool:
            row = pool.apply(_scale_at, (size, arguments.trials))
        rows.append(row)
        print(
            f"| {size:,} | {row['first_suspicion_s']['median']:.2f} "
            f"| {row['all_know_s']['median']:.2f} | {row['all_know_s']['worst']:.2f} "
            f"| {row['bytes_per_s']:.0f} | {row['packets_per_s']:.2f} |",
            flush=True,
        )
    _plot_scale(rows, arguments.out / "simulation-scale.png")
    return rows


def _scale_at(size: int, trials: int) -> dict[str, Any]:
    """Let meshes rest, then crash members one after another, of each mesh only a few."""
    # Nothing is garbage but what is freed at once, and looking for more takes longer than all else.
    gc.disable()
    large = size >= LARGE
    started_at = time.monotonic()
    wanted = min(trials, TRIALS_LARGE) if large else trials
    crashes, traffic = [], []
    for seed in itertools.count(1):
        rng = Random(f"bench {seed}")
        mesh = LargeMesh(size, seed=seed)
        mesh.run_for(1.0)
        traffic.append(rest(mesh, REST_SECONDS_LARGE if large else REST_SECONDS))
        for victim in rng.sample(list(mesh.hosts), min(wanted, max(1, size // CRASHED_SHARE))):
            mesh.run_for(rng.uniform(1.0, PAUSE_MAX))
            crashes.append(crash_trial(mesh, victim))
        if len(crashes) >= wanted:
            break
    return {
        "members": size,
        "trials": len(crashes),
        "first_suspicion_s": _summary(crash.first_suspicion for crash in crashes),
        "half_know_s": _summary(crash.half_know for crash in crashes),
        "all_know_s": _summary(crash.all_know for crash in crashes),
        "crash_bytes_per_member": statistics.median(crash.bytes_per_member for crash in crashes),
        "bytes_per_s": statistics.mean(sent for sent, _ in traffic),
        "packets_per_s": statistics.mean(packets for _, packets in traffic),
        "run_s": round(time.monotonic() - started_at, 1),
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _summary(seconds: Iterable[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"median": statistics.median(ordered), "best": ordered[0], "worst": ordered[-1]}


# Weather and ideas


def _loss(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    results = _run(arguments, settings.LOSS_SETTINGS, LOSS_VARIANTS)
    _plot_loss(results, arguments.out / "simulation-loss.png")
    return results


def _ideas(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    places = [place for place in settings.SETTINGS if place.name in IDEA_SETTINGS]
    results = _run(arguments, places, (None, *settings.SWITCHES))
    _plot_ideas(results, arguments.out / "simulation-ideas.png")
    return results


def _run(
    arguments: argparse.Namespace,
    places: list[settings.Setting],
    variants: tuple[str | None, ...],
) -> list[dict[str, Any]]:
    trials = min(arguments.trials, WEATHER_TRIALS)
    jobs = [
        settings.Job(place.name, WEATHER_SIZE, variant, seed)
        for place, variant, seed in itertools.product(places, variants, range(trials))
    ]
    results = settings.run_all(jobs, processes=arguments.jobs)
    print("\n" + settings.ablated(results), flush=True)
    return [
        {
            "setting": name,
            "members": size,
            "without": variant,
            "trials": len(found),
            "all_know_s": _summary(
                settings.CRASH_MAX if one.all_know is None else one.all_know for one in found
            ),
            **{field: statistics.mean(getattr(one, field) for one in found) for field in RATES},
        }
        for (name, size, variant), found in results.items()
    ]


# Plots


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels side by side."""
    # Not at the top: the tables need no plotting library.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * panels, 3.6), layout="constrained", dpi=120)
    axes = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    for each in axes:
        each.grid(visible=True, alpha=0.3)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plot_scale(rows: list[dict[str, Any]], path: Path) -> None:
    figure, (known, sent) = _figure(2)
    sizes = [row["members"] for row in rows]
    for key, label in (
        ("all_know_s", "all know"),
        ("first_suspicion_s", "first suspicion"),
    ):
        medians = [row[key]["median"] for row in rows]
        spread = [
            [row[key]["median"] - row[key]["best"] for row in rows],
            [row[key]["worst"] - row[key]["median"] for row in rows],
        ]
        known.errorbar(sizes, medians, spread, marker="o", capsize=3, label=label)
    known.set(xscale="log", xlabel="members", ylabel="seconds after the crash", ylim=(0, None))
    known.set_title("A crash: median, best and worst")
    known.legend()
    rates = [row["bytes_per_s"] for row in rows]
    sent.plot(sizes, rates, marker="o")
    sent.set(xscale="log", xlabel="members", ylabel="IP bytes/s", ylim=(0, 1.3 * max(rates)))
    sent.set_title("What a member sends at rest")
    figure.savefig(path)


def _plot_loss(results: list[dict[str, Any]], path: Path) -> None:
    panels = (
        ("false_deaths", "false deaths in 60 s"),
        ("suspicions", "false suspicions in 60 s"),
        ("bytes_per_s", "IP bytes/s of a member"),
    )
    figure, axes = _figure(len(panels))
    for each, (field, title) in zip(axes, panels, strict=True):
        for variant in LOSS_VARIANTS:
            values = [row[field] for row in results if row["without"] == variant]
            width = 3.0 if variant is None else 1.2
            shares = [100 * share for share in settings.LOSSES]
            each.plot(
                shares, values, marker="o", markersize=4, linewidth=width, label=_name(variant)
            )
        each.set(xlabel="% of packets lost", ylim=(0, None), title=title)
    axes[0].legend(fontsize="small")
    figure.suptitle(
        f"{WEATHER_SIZE} members; false deaths and suspicions are sums over all of them"
    )
    figure.savefig(path)


def _plot_ideas(results: list[dict[str, Any]], path: Path) -> None:
    panels = (
        ("all_know_s", "s until all know of a crash"),
        ("suspicions", "false suspicions in 60 s"),
        ("troubled_deaths", "deaths of who had stopped"),
        ("bytes_per_s", "IP bytes/s of a member"),
    )
    figure, axes = _figure(len(panels))
    figure.set_size_inches(16.0, 6.4)
    variants = list(dict.fromkeys(row["without"] for row in results))
    height = 0.8 / len(IDEA_SETTINGS)
    for each, (field, title) in zip(axes, panels, strict=True):
        for number, place in enumerate(IDEA_SETTINGS):
            values = [row[field] for row in results if row["setting"] == place]
            if field == "all_know_s":
                values = [value["median"] for value in values]
            at = [row + number * height for row in range(len(variants))]
            each.barh(at, values, height, label=place)
        each.set_yticks([row + 0.4 - height / 2 for row in range(len(variants))])
        each.set_yticklabels([_name(variant) for variant in variants] if each is axes[0] else [])
        each.invert_yaxis()
        each.set_title(title)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(f"{WEATHER_SIZE} members, each idea switched off alone; sums over all of them")
    figure.savefig(path)


def _name(variant: str | None) -> str:
    return "all on" if variant is None else f"without {variant}"


if __name__ == "__main__":
    raise SystemExit(main())
