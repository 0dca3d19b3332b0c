"""What is done to a cluster, and what is measured of it.

    trial    all start at once · [idle] · news · one leaves · one joins · a crash · a lost machine
    loss     all are there, and of all packets some are lost
    stalls   all are there, and some are stopped again and again

The number of members is the same whenever something is measured: whoever went is replaced by a
newcomer, under a new name and address.
"""

from __future__ import annotations

import math
import os
import signal
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from membership import namespace
from membership.cluster import What
from membership.ours import Ours
from membership.serf import Serf

if TYPE_CHECKING:
    from collections.abc import Collection
    from random import Random

    from membership.cluster import Cluster
    from membership.results import Results

SIDES: dict[str, type[Cluster]] = {"ours": Ours, "serf": Serf}

# What can be selected: parts of a trial, and what needs a cluster of its own.
PARTS = ("cold", "steady", "event", "leave", "join", "crash", "blackhole")
LONG = ("loss", "stalls")

WHOLE_TIMEOUT = 60.0
HASTE_TIMEOUT = 3.0  # for all to see all, where that is not what is measured
NEWS_TIMEOUT = 30.0
CRASH_TIMEOUT = 45.0
LEAVE_LINGER = 2.0  # in which a leaver might yet be taken for dead
HEAL_TIMEOUT = 60.0
CALM_BYTES_PER_S = 600.0  # of each: more than either side sends when nothing happens
CALM_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class Spans:
    """How many seconds things may take, or are watched."""

    cold_timeout: float = 20.0
    calm_timeout: float = 40.0  # for the news of a start to be told
    settle: float = 1.5  # between two things that happen
    steady: float = 60.0
    loss: float = 120.0
    stalls: float = 120.0
    linger: float = 15.0  # in which a suspicion of before may yet become a death


LOSS_PERCENT = 30
STALLED_MEMBERS = 4
STALL_SECONDS = (5.0, 10.0)
RUN_SECONDS = (2.0, 5.0)  # between two stalls of the same member


class Trial:
    """One cluster of one side, from its start to its end."""

    def __init__(
        self,
        cluster: Cluster,
        size: int,
        results: Results,
        *,
        spans: Spans,
        rng: Random,
    ) -> None:
        self._cluster = cluster
        self._size = size
        self._results = results
        self._spans = spans
        self._rng = rng
        self._began_at = time.monotonic()
        self._others_cpu = self._others_cpu_seconds()

    def run(self, parts: Collection[str]) -> None:
        """Do all that is selected."""
        self._start(measured="cold" in parts)
        if set(parts) != {"cold"}:
            self._calm()
        if "steady" in parts:
            self._steady()
        for part, do in (
            ("event", self._event),
            ("leave", self._leave),
            ("join", self._join),
            ("crash", self._crash),
            ("blackhole", self._blackhole),
        ):
            if part in parts:
                self._settle()
                do()
        self._end()

    def run_loss(self) -> None:
        """Lose packets for some time."""
        self._start(measured=False)
        self._calm()
        before, accused = len(self._cluster.notes), self._cluster.accusations()
        sent, began_at = namespace.sent(), time.monotonic()
        namespace.lose(LOSS_PERCENT)
        self._cluster.pass_time(self._spans.loss)
        spent, seconds = namespace.sent().since(sent), time.monotonic() - began_at
        namespace.heal()
        whole_after = self._whole_after()
        deaths = self._cluster.deaths(self._cluster.running.keys(), since=before)
        self._record("loss_false_deaths", deaths)
        self._record("loss_suspicions", self._cluster.accusations() - accused)
        self._record("loss_bytes_per_s", _gossip_bytes(spent) / seconds / self._size)
        self._record("loss_whole_after_s", whole_after)
        self._results.detail("loss", self._size, self._cluster.side, self._cluster.counters())
        self._end()

    def run_stalls(self) -> None:
        """Stop some members again and again, each in its own rhythm."""
        self._start(measured=False)
        self._calm()
        before = len(self._cluster.notes)
        names = list(self._cluster.running)
        stalled = self._rng.sample(names, min(STALLED_MEMBERS, len(names) - 1))
        end = time.monotonic() + self._spans.stalls
        pending = {name: time.monotonic() + self._rng.uniform(*RUN_SECONDS) for name in stalled}
        stopped: set[str] = set()
        bursts = 0
        while (at := min(pending.values())) < end:
            self._cluster.pass_time(at - time.monotonic())
            name = min(pending, key=pending.__getitem__)
            if name in stopped:
                stopped.discard(name)
                self._cluster.signal(name, signal.SIGCONT)
                pending[name] = at + self._rng.uniform(*RUN_SECONDS)
            else:
                stopped.add(name)
                bursts += 1
                self._cluster.signal(name, signal.SIGSTOP)
                pending[name] = at + self._rng.uniform(*STALL_SECONDS)
        for name in stopped:
            self._cluster.signal(name, signal.SIGCONT)
        whole_after = self._whole_after()
        others = set(names) - set(stalled)
        self._record("stalls_false_deaths_of_others", self._cluster.deaths(others, since=before))
        self._record("stalls_deaths_of_stopped", self._cluster.deaths(stalled, since=before))
        self._record("stalls_bursts", bursts)
        self._record("stalls_whole_after_s", whole_after)
        self._results.detail("stalls", self._size, self._cluster.side, self._cluster.counters())
        self._end()

    # Parts of a trial

    def _start(self, *, measured: bool) -> None:
        """Start all at once."""
        cluster = self._cluster
        names = cluster.start(self._size)
        began_at = time.monotonic()
        for name in names[1:]:
            cluster.join(name)
        timeout = self._spans.cold_timeout if measured else HASTE_TIMEOUT
        whole = cluster.wait_for(cluster.whole, timeout)
        if measured:
            last = max(note.at for note in cluster.notes if note.what is What.ALIVE)
            seconds = last - began_at if whole else math.inf
            self._record("cold_s", seconds, f"within {timeout:.0f} s: {cluster.missing()}")

    def _steady(self) -> None:
        cluster = self._cluster
        sent, cpu, began_at = namespace.sent(), self._cpu(), time.monotonic()
        cluster.pass_time(self._spans.steady)
        spent, cpu_spent = namespace.sent().since(sent), self._cpu() - cpu
        seconds = (time.monotonic() - began_at) * self._size
        self._record("steady_bytes_per_s", _gossip_bytes(spent) / seconds)
        self._record("steady_packets_per_s", spent.packets / seconds)
        self._record("cpu_ms_per_s", 1000.0 * cpu_spent / seconds)
        memory = [namespace.memory_bytes(pid) for pid in cluster.running.values()]
        for kind in ("rss", "pss", "private"):
            median = statistics.median(each[kind] for each in memory)
            self._record(f"{kind}_mib", median / 2**20)
        protocols = {name: count / seconds for name, count in spent.bytes.items()}
        self._results.detail("steady_bytes_per_s", self._size, cluster.side, protocols)
        self._results.detail("steady", self._size, cluster.side, cluster.counters())

    def _event(self) -> None:
        cluster = self._cluster
        teller = self._rng.choice(list(cluster.running))
        since, began_at = len(cluster.notes), time.monotonic()
        news = cluster.publish(teller)
        observers = cluster.running.keys() - {teller}
        at = cluster.all_saw(news, What.NEWS, observers, since=since, within=NEWS_TIMEOUT)
        self._record("event_s", math.inf if at is None else at - began_at)

    def _leave(self) -> None:
        cluster = self._cluster
        leaver = self._anybody()
        since, began_at = len(cluster.notes), time.monotonic()
        cluster.leave(leaver)
        observers = cluster.running.keys() - {leaver}
        at = cluster.all_saw(leaver, What.LEFT, observers, since=since, within=NEWS_TIMEOUT)
        cluster.reap(leaver, NEWS_TIMEOUT)
        cluster.pass_time(LEAVE_LINGER)
        self._record("leave_s", math.inf if at is None else at - began_at)
        self._record("leaves_taken_for_deaths", cluster.deaths({leaver}, since=since))

    def _join(self) -> None:
        """Replace whoever went, or else be one more."""
        cluster = self._cluster
        (newcomer,) = cluster.start(1)
        since, began_at = len(cluster.notes), time.monotonic()
        cluster.join(newcomer)
        observers = cluster.running.keys() - {newcomer}
        at = cluster.all_saw(newcomer, What.ALIVE, observers, since=since, within=NEWS_TIMEOUT)
        self._record("join_s", math.inf if at is None else at - began_at)
        self._make_whole("after one more has joined")

    def _crash(self) -> None:
        cluster = self._cluster
        victim = self._victim()
        since, began_at = len(cluster.notes), time.monotonic()
        cluster.kill(victim)
        self._watch_death("crash", victim, since, began_at)

    def _blackhole(self) -> None:
        cluster = self._cluster
        self._replace()
        victim = self._victim()
        namespace.lose_all_of(cluster.address(victim))
        since, began_at = len(cluster.notes), time.monotonic()
        cluster.kill(victim)
        self._watch_death("blackhole", victim, since, began_at)

    def _watch_death(self, what: str, victim: str, since: int, began_at: float) -> None:
        cluster = self._cluster
        at = cluster.all_saw(victim, What.DEAD, cluster.running, since=since, within=CRASH_TIMEOUT)
        suspected = cluster.first(victim, {What.SUSPECT, What.DEAD}, since=since)
        first = min(suspected.values()) - began_at if suspected else math.inf
        self._record(f"{what}_suspect_s", first)
        self._record(f"{what}_s", math.inf if at is None else at - began_at)
        others = cluster.deaths(cluster.running.keys(), since=since)
        self._record(f"{what}_false_deaths", others)

    # Steps

    def _victim(self) -> str:
        """Choose who is next, at a moment that has nothing to do with anybody's rhythm."""
        self._cluster.pass_time(self._rng.random())
        return self._anybody()

    def _anybody(self) -> str:
        """Choose a member, but not the one that newcomers join."""
        return self._rng.choice([n for n in self._cluster.running if n != self._cluster.seed])

    def _replace(self) -> None:
        """Have as many members as in the beginning."""
        cluster = self._cluster
        for newcomer in cluster.start(self._size - len(cluster.running)):
            cluster.join(newcomer)
        self._make_whole("after the dead were replaced")
        self._settle()

    def _make_whole(self, when: str) -> None:
        """Wait until all see all, and help if that takes long."""
        cluster = self._cluster
        if not cluster.wait_for(cluster.whole, HASTE_TIMEOUT):
            cluster.heal()
            cluster.must(f"all see all {when}", cluster.whole, WHOLE_TIMEOUT)

    def _whole_after(self) -> float:
        """Return how long it takes until all see all again, and still do after a while."""
        began_at, cluster = time.monotonic(), self._cluster
        cluster.wait_for(cluster.whole, HEAL_TIMEOUT)
        seconds = time.monotonic() - began_at
        cluster.pass_time(self._spans.linger)
        return seconds if cluster.whole() else math.inf

    def _calm(self) -> None:
        """Wait until all see all, and what had to be told after the start has been."""
        self._make_whole("after their start")
        began_at, sent = time.monotonic(), namespace.sent()
        while (waited := time.monotonic() - began_at) < self._spans.calm_timeout:
            self._cluster.pass_time(CALM_INTERVAL)
            before, sent = sent, namespace.sent()
            if _gossip_bytes(sent.since(before)) < CALM_BYTES_PER_S * CALM_INTERVAL * self._size:
                break
        self._record("calm_after_s", waited)

    def _settle(self) -> None:
        self._cluster.pass_time(self._spans.settle)

    def _end(self) -> None:
        """Say how busy others have kept the machine: with them figures mean little."""
        spent = self._others_cpu_seconds() - self._others_cpu
        self._record("others_cpus", max(0.0, spent / (time.monotonic() - self._began_at)))

    def _others_cpu_seconds(self) -> float:
        return namespace.machine_cpu_seconds() - sum(os.times()[:4]) - self._cpu()

    def _cpu(self) -> float:
        return sum(namespace.cpu_seconds(pid) for pid in self._cluster.running.values())

    def _record(self, metric: str, value: float, failing: str = "") -> None:
        self._results.record(metric, self._size, self._cluster.side, value, failing)


def _gossip_bytes(traffic: namespace.Traffic) -> int:
    return sum(count for name, count in traffic.bytes.items() if name != "introductions")


def spans_for(*, quick: bool) -> Spans:
    """Return the spans of a full run, or of one that only shows that all works."""
    return Spans(10.0, 10.0, 1.0, 5.0, 10.0, 15.0, 5.0) if quick else Spans()


def describe(spans: Spans) -> dict[str, Any]:
    """Return the spans for the record."""
    return asdict(spans)
