"""A flood on the port everybody may send to: tunnels and gossip do not notice, newcomers get in.

    b ─── tunnel ───▶ a ◀─── junk from forged sources ─── outsider
                      ▲
                      └───── joins ─── newcomer

How much a machine bears depends on the machine; `bench/bench_flood.py` measures that.
"""

import contextlib
import os
from pathlib import Path

import pytest

from lablib import lan, wait_until
from lablib.flood import flood
from mesh import thief
from mesh.meshes import mesh_of
from meshd.trust.secret import derive
from meshd.underlay import DatagramType

pytestmark = [pytest.mark.netns, pytest.mark.slow]

PAGE = os.sysconf("SC_PAGE_SIZE")
GROWTH_MAX = 8 << 20  # bytes; a flood of thousands of datagrams a second is hundreds of MB
JUNK_RATE = 5_000
THIEF_RATE = 300
DISTINCT = 2048
UNTRUE = {"member-suspect", "member-dead", "member-left"}


def resident(node):
    """Its own memory in bytes, without files: libraries are loaded when they are first needed."""
    _, resident, shared, *_ = Path(f"/proc/{node.process.pid}/statm").read_text().split()
    return (int(resident) - int(shared)) * PAGE


def dropped(node, *reasons):
    counts = node.status()["self"]["counters"]["bad_packets"]
    return sum(counts.get(reason, 0) for reason in reasons)


def untrue_events(node):
    """What a node has said of the others, of whom none was ever gone."""
    events = node.control("/v1/events?recent=1000")["events"]
    return [event for event in events if event["event"] in UNTRUE]


@contextlib.contextmanager
def flooded(kind):
    """A mesh of three, pinging each other, with a flood on the first; yields it and a newcomer."""
    with mesh_of(lan(5)) as mesh:
        a, b, c, outsider, newcomer = mesh.nodes
        for node in (a, b, c):
            # Forged sources come in by the way that leads to the Internet.
            port = node.member.port.interface
            node.run(["ip", "route", "add", "default", "via", str(outsider.ipv4.ip), "dev", port])
        mesh.form([a, b, c])
        mesh.ping_all(a, b, c)
        rate = JUNK_RATE
        if kind == "thief":
            rate = THIEF_RATE
            mesh_key, bootstrap_key = derive(mesh.secret.encode())
            payloads = thief.requests(mesh_key.id, bootstrap_key, 20 * rate)
        else:
            payloads = thief.junk(DatagramType[kind], DISTINCT)
        flow = b.ping_flow(mesh.address(a), rate=50)
        with flood(outsider, a, payloads, rate=rate) as flooding:
            yield mesh, a, newcomer
        report = flow.stop()
        print(flooding.report, report)
        assert flooding.report.sent > rate  # for more than a second
        assert len(report.lost) <= report.sent * 0.01, report
        for node in (a, b, c):
            assert untrue_events(node) == []


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("BOOTSTRAP_REQUEST", "handshake does not open"),
        ("REQUEST_WITH_COOKIE", "handshake does not open"),
        ("PATH_PROBE", "probe does not open"),
    ],
)
def test_junk_is_dropped_and_counted_and_a_newcomer_gets_in(kind, reason, measured):
    with flooded(kind) as (mesh, a, newcomer):
        wait_until(lambda: dropped(a, reason) > 5_000, "junk is counted", timeout=120)
        before = resident(a)
        mesh.start(newcomer, seed=a)
        wait_until(
            lambda: newcomer.status()["mesh"]["members"]["alive"] == 4,
            "the newcomer is in",
            timeout=120,
        )
        mesh.ping_all(newcomer, a)

        assert resident(a) - before < GROWTH_MAX
        measured(f"MiB of growth under {kind}", (resident(a) - before) / 2**20)


def test_a_thief_of_the_bootstrap_key_keeps_nobody_out(measured):
    """Its requests open; they come from forged sources, so that no answer ever reaches it."""
    with flooded("thief") as (mesh, a, newcomer):
        wait_until(lambda: dropped(a, "too many requests") > 50, "it is told off", timeout=120)
        before = resident(a)
        mesh.start(newcomer, seed=a)
        wait_until(
            lambda: newcomer.status()["mesh"]["members"]["alive"] == 4,
            "the newcomer is in",
            timeout=120,
        )

        assert resident(a) - before < GROWTH_MAX
        measured("MiB of growth under requests that open", (resident(a) - before) / 2**20)
