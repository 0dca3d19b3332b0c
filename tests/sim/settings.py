"""What a mesh is worth in various places: `tests/sim/settings.py --sizes 5 25 100 --ablate`.

    start    converged      SETTLE                 WATCH                      crash of one
    │ from records │ quiet for │ the setting, in force to the end  │ until all know that it is dead
                               └ traffic, suspicions, false deaths ┘

With --ablate all is done again with each idea of `docs/gossip.md` switched off alone.  Prints
Markdown.  All numbers are of simulated time and follow from the seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import statistics
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from meshd.gossip.claim import MemberState  # noqa: E402
from meshd.gossip.config import GossipConfig  # noqa: E402
from meshd.gossip.events import MemberStateChanged, PathFault  # noqa: E402
from sim.cluster import Cluster  # noqa: E402
from sim.memo import remember_signatures  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

SETTLE = 10.0
WATCH = 60.0
CRASH_MAX = 60.0  # as long as is waited for all to know
_AFTER_STALL = 15.0  # for so long a death of who had stopped is not counted as false


@dataclasses.dataclass(frozen=True)
class Setting:
    """A place to be in.  `apply` returns who is in trouble there, and so not asked or counted."""

    name: str
    apply: Callable[[Cluster, Random], set[str]]
    lasting: bool = False  # it has always been like that, and what is measured there was, too


def _nothing(cluster, rng):
    return set()


def _loss(share):
    def apply(cluster, rng):
        cluster.network.loss = share
        return set()

    return apply


def _wan(cluster, rng):
    cluster.network.spread(cluster.hosts)
    return set()


def _wan_loss(cluster, rng):
    cluster.network.loss = 0.05
    return _wan(cluster, rng)


def _stalls(cluster, rng):
    """One member in six stops for 5 to 10 s, again and again."""
    stalled = [f"n{number}" for number in range(max(1, round(len(cluster.hosts) * 4 / 25)))]

    def stall(name):
        span = rng.uniform(5.0, 10.0)
        if cluster.hosts[name].running:
            cluster.stall(name, span)
        cluster.at(span + rng.uniform(2.0, 8.0), stall, name)

    for name in stalled:
        cluster.at(rng.uniform(0.0, 5.0), stall, name)
    return set(stalled)


def _one_way(cluster, rng):
    """Nothing passes from each member to the next one."""
    names = list(cluster.hosts)
    cluster.network.cut |= set(zip(names, [*names[1:], names[0]], strict=True))
    return set()


def _udp_blocked(cluster, rng):
    cluster.network.block_udp("n0", "n1")
    return set()


def _flapping(cluster, rng):
    """One member crashes and restarts, again and again."""

    def flap():
        host = cluster.hosts["n0"]
        if host.running:
            cluster.crash("n0")
        else:
            cluster.start("n0")
        cluster.at(rng.uniform(3.0, 8.0), flap)

    flap()
    return {"n0"}


def _starved(cluster, rng):
    """One member in four gets the CPU only now and then."""
    starved = [f"n{number}" for number in range(max(1, len(cluster.hosts) // 4))]

    def stall(name):
        span = rng.uniform(0.2, 1.2)
        if cluster.hosts[name].running:
            cluster.stall(name, span)
        cluster.at(span + rng.uniform(0.1, 1.0), stall, name)

    for name in starved:
        cluster.at(rng.uniform(0.0, 1.0), stall, name)
    return set(starved)


SETTINGS = [
    Setting("quiet LAN", _nothing),
    Setting("30 % loss", _loss(0.3)),
    Setting("WAN, 3 regions", _wan, lasting=True),
    Setting("WAN, 5 % loss", _wan_loss, lasting=True),
    Setting("1 in 6 stops for 5-10 s", _stalls),
    Setting("one-way links", _one_way),
    Setting("UDP blocked between two", _udp_blocked),
    Setting("one member flaps", _flapping),
    Setting("1 in 4 starved of CPU", _starved),
]

# For curves.
LOSSES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
LOSS_SETTINGS = [Setting(f"{share:.0%} of loss", _loss(share)) for share in LOSSES]

# See `docs/gossip.md`: each idea, and what switches it off.
SWITCHES = {
    "local health, nacks": {"health_score_max": 0},
    "confirmations": {"confirmations_expected": 0},
    "buddy system": {"staples": 0},
    "TCP probe": {"stream_timeout": 0.0},
    "neighbour": {"neighbour_every": 0},
    "RTT estimate": {"probe_timeout_min": GossipConfig().probe_timeout},
    "observers": {"observers": 0},
    "evidence": {"evidence_max": 0},
    "pace": {"gossip_interval_min": GossipConfig().gossip_interval},
}
ALL_OF_THESE = "all of these"  # what is left is SWIM, with our suspicion timeouts
SWITCHES[ALL_OF_THESE] = {key: value for off in SWITCHES.values() for key, value in off.items()}


@dataclasses.dataclass(frozen=True)
class Result:
    """Of one history.  Times in seconds after the crash, None if it took longer than CRASH_MAX."""

    first_suspicion: float | None
    all_know: float | None
    false_deaths: int  # conclusions of one node each, about members that were in no trouble
    troubled_deaths: int  # the same, about those in trouble
    suspicions: int  # of members that were in no trouble
    path_faults: int
    bytes_per_s: float  # sent, per member, with IP headers
    packets_per_s: float


def measure(setting, size, seed, *, config=None, watch=WATCH):
    """Run one history."""
    cluster = Cluster(size, seed=seed, mesh_started=True, config=config)
    rng = Random(f"setting {setting.name} {seed}")
    troubled = setting.apply(cluster, rng) if setting.lasting else set()
    cluster.run_until(cluster.converged, within=60.0, step=0.25)
    cluster.run_for(SETTLE)
    if not setting.lasting:
        troubled = setting.apply(cluster, rng)
    begin = cluster.now
    before = {host.name: host.sent.copy() for host in cluster.hosts.values()}
    cluster.run_for(watch)
    sent = [host.sent.since(before[host.name]) for host in cluster.hosts.values()]
    victim = f"n{size - 1}"
    first, all_know = _crash(cluster, victim, troubled)
    changes = [
        (at, cluster.names[event.node], event.after)
        for at, _, event in cluster.trace
        if isinstance(event, MemberStateChanged)
        and begin <= at
        and (cluster.names[event.node] != victim or at < begin + watch)
    ]
    deaths = [name for _, name, state in changes if state is MemberState.DEAD]
    return Result(
        first_suspicion=first,
        all_know=all_know,
        false_deaths=sum(name not in troubled for name in deaths),
        troubled_deaths=sum(name in troubled for name in deaths),
        suspicions=sum(
            state is MemberState.SUSPECT and name not in troubled for _, name, state in changes
        ),
        path_faults=sum(isinstance(e, PathFault) and begin <= at for at, _, e in cluster.trace),
        bytes_per_s=sum(traffic.bytes for traffic in sent) / watch / size,
        packets_per_s=sum(traffic.packets for traffic in sent) / watch / size,
    )


def _crash(cluster, victim, troubled):
    """Crash a member.  Return when it was first suspected, and when all knew that it is dead."""
    crashed_at = cluster.now
    cluster.crash(victim)
    unaware = {
        host.name
        for host in cluster.running()
        if host.name not in troubled and cluster.state(host.name, victim) is not MemberState.DEAD
    }

    def watch(host, event):
        if isinstance(event, MemberStateChanged) and cluster.names[event.node] == victim:
            if event.after is MemberState.DEAD:
                unaware.discard(host.name)
            elif event.after is MemberState.ALIVE and host.name not in troubled:
                unaware.add(host.name)  # what was on its way still came

    cluster.watchers.append(watch)
    while unaware and cluster.now - crashed_at < CRASH_MAX:
        cluster.run_for(0.02)
    bad = {MemberState.SUSPECT, MemberState.DEAD}
    suspected = [
        at for at, _, event in cluster.changes(of=victim) if at >= crashed_at and event.after in bad
    ]
    return (
        suspected[0] - crashed_at if suspected else None,
        None if unaware else cluster.now - crashed_at,
    )


# As a command


@dataclasses.dataclass(frozen=True)
class Job:
    """One history to run.  Names, as it goes to another process."""

    setting: str
    size: int
    switch: str | None
    seed: int


def run(job):
    remember_signatures()
    every = [*SETTINGS, *LOSS_SETTINGS]
    setting = next(setting for setting in every if setting.name == job.setting)
    config = dataclasses.replace(GossipConfig(), **SWITCHES.get(job.switch, {}))
    return job, measure(setting, job.size, job.seed, config=config)


def run_all(jobs, *, processes, progress=None):
    """Run histories on all cores.  Return the results by (setting, size, switch)."""
    results = {(job.setting, job.size, job.switch): [] for job in jobs}
    # The large ones first, so that no core waits for the other in the end.
    ordered = sorted(jobs, key=lambda job: -job.size)
    with multiprocessing.Pool(processes) as pool:
        for done, (job, result) in enumerate(pool.imap_unordered(run, ordered), start=1):
            results[job.setting, job.size, job.switch].append(result)
            if progress is not None:
                progress(done, len(jobs))
    return results


COLUMNS = [
    "first suspicion, s: median",
    "worst",
    "all know, s: median",
    "worst",
    "false deaths",
    "false suspicions",
    "of those in trouble",
    "path faults",
    "bytes/s",
    "packets/s",
]


def table(results, *, heading, row):
    """Return a Markdown table of results: `row` gives the first cells of a key."""
    lines = [
        f"| {' | '.join([*heading, *COLUMNS])} |",
        f"| {' | '.join(['---'] * len(heading) + ['---:'] * len(COLUMNS))} |",
    ]
    lines += [f"| {' | '.join([*row(key), *_cells(value)])} |" for key, value in results.items()]
    return "\n".join(lines)


def _cells(results):
    return [
        *_span([result.first_suspicion for result in results]),
        *_span([result.all_know for result in results]),
        str(sum(result.false_deaths for result in results)),
        str(sum(result.suspicions for result in results)),
        str(sum(result.troubled_deaths for result in results)),
        str(sum(result.path_faults for result in results)),
        f"{statistics.mean(result.bytes_per_s for result in results):.0f}",
        f"{statistics.mean(result.packets_per_s for result in results):.1f}",
    ]


def _span(seconds):
    """Return median and worst, of which None is the worst."""
    known = sorted(CRASH_MAX if span is None else span for span in seconds)
    return [
        f"> {CRASH_MAX:.0f}" if span >= CRASH_MAX else f"{span:.2f}"
        for span in (statistics.median(known), known[-1])
    ]


def by_setting(results):
    """Return the table of settings, with all switches on."""
    plain = {key: value for key, value in results.items() if key[2] is None}
    return table(plain, heading=["setting", "N"], row=lambda key: [key[0], str(key[1])])


def ablated(results):
    """Return a table for each setting and size: all ideas, and each one off alone."""
    parts = []
    for setting, size in dict.fromkeys(key[:2] for key in results):
        part = {key: value for key, value in results.items() if key[:2] == (setting, size)}
        row = lambda key: ["all on" if key[2] is None else f"without {key[2]}"]  # noqa: E731
        parts.append(f"### {setting}, N = {size}\n\n{table(part, heading=['ideas'], row=row)}")
    return "\n\n".join(parts)


def main():
    names = [setting.name for setting in SETTINGS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 25, 100], metavar="N")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="histories of each kind")
    parser.add_argument("--settings", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--ablate", action="store_true", help="each idea off alone, too")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), metavar="N")
    arguments = parser.parse_args()
    switches = [None, *SWITCHES] if arguments.ablate else [None]
    jobs = [
        Job(setting, size, switch, seed)
        for setting in arguments.settings
        for size in arguments.sizes
        for switch in switches
        for seed in range(arguments.seeds)
    ]

    def progress(done, count):
        print(f"\r{done} of {count}", end="", file=sys.stderr, flush=True)

    results = run_all(jobs, processes=arguments.jobs, progress=progress)
    print(file=sys.stderr)
    print(f"{arguments.seeds} histories each, {WATCH:.0f} s and a crash; deaths are sums.\n")
    print(by_setting(results))
    if arguments.ablate:
        print("\n" + ablated(results))


if __name__ == "__main__":
    main()
