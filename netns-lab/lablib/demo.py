"""The story that `lab demo` tells: a mesh forms, loses members, and heals.

Every step says what happens, does it, waits for the outcome and prints how long that took, so the
terminal shows what a reader of the manual would have to believe.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from lablib import console, mesh
from lablib.daemon import Start, preload
from lablib.drawing import draw
from lablib.errors import LabError
from lablib.lab import Lab
from lablib.ping import ping_matrix
from lablib.topology import nat
from lablib.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lablib.node import Node
    from lablib.ping import Matrix

MEMBERS = 5
STEP_TIMEOUT = 60.0
FLOW_RATE = 100.0  # pings a second through the killed daemon's tunnels
KILLED_FOR = 5.0  # seconds its tunnels are watched


def run(*, name: str) -> int:
    """Tell the story in a lab of its own; return the exit status."""
    plan = nat(MEMBERS)
    console.say(f"{draw(plan)}\n")
    if Start.default() is Start.FORK:
        preload()
    lab = Lab(plan, name=name)
    with _step(f"{len(plan.members)} machines, {len(plan.routers)} routers and their wires"):
        lab.up()
    try:
        _tell(lab)
    except LabError:
        for node in lab.nodes.values():
            console.say(f"\nthe log of {node.name} ends:\n{node.log_tail()}")
        raise
    finally:
        with _step("everything is removed"):
            lab.down()
    return 0


def _tell(lab: Lab) -> None:
    _members_come_up(lab)
    _everyone_pings_everyone(lab)
    _daemon_is_killed(lab)
    _cable_is_pulled(lab)
    console.say("\nwhat any of them shows, here a:\n")
    console.say(lab["a"].meshctl("status").stdout)


@contextlib.contextmanager
def _step(text: str) -> Iterator[None]:
    """Say what happens, and how long it took."""
    started_at = time.monotonic()
    yield
    console.say(f"  {time.monotonic() - started_at:6.2f} s  {text}")


def _members_come_up(lab: Lab) -> None:
    console.say("members come up, one by one; each is up when all before it ping it and it them:")
    secret = mesh.new_secret()
    nodes = list(lab.nodes.values())
    for count, node in enumerate(nodes, start=1):
        seed = nodes[0] if count > 1 else None
        note = ", behind NAT" if node.member.behind_nat else ""
        how = f"meshd --secret-file … --seed {seed.ipv4.ip}" if seed else "meshd --secret-file …"
        with _step(f"{node.name}{note}: {how}"):
            mesh.join(node, secret=secret, seed=seed)
            mesh.wait_answering(node)
            _reach_newcomer(nodes[:count])
        _print_startup(node)


def _reach_newcomer(nodes: Sequence[Node]) -> None:
    """Ping between the last node and all before it, both ways, over both IP versions."""
    *others, newcomer = nodes
    if not others:
        return
    own = newcomer.status()["self"]
    theirs = {
        node.name: [status["ipv4"], status["ipv6"]]
        for node in others
        for status in [node.status()["self"]]
    }
    targets = {node.name: {v: own[v] for v in ("ipv4", "ipv6")} for node in others}
    targets[newcomer.name] = {
        f"{name} {address}": address for name, both in theirs.items() for address in both
    }
    sources = {node.name: node.namespace for node in nodes}
    _demand(ping_matrix(sources, targets, timeout=STEP_TIMEOUT))


def _print_startup(node: Node) -> None:
    """Show what the node's start was made of, as its daemon measured it."""
    phases = node.status()["self"].get("startup") or {}
    if phases:
        parts = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in phases.items())
        console.say(f"            of which {parts} s")


def _everyone_pings_everyone(lab: Lab) -> None:
    nodes = list(lab.nodes.values())
    with _step("all see all"):
        mesh.wait_whole(nodes, timeout=STEP_TIMEOUT)
    for version in (4, 6):
        matrix = mesh.ping(lab, version=version, timeout=STEP_TIMEOUT)
        console.say(f"\npings inside the mesh, IPv{version}, a row for each source:\n")
        console.say(f"{matrix.render()}\n")
        _demand(matrix)


def _daemon_is_killed(lab: Lab) -> None:
    console.say("the daemon of c is killed (-9); its tunnels go on:")
    killed, neighbour = lab["c"], lab["d"]
    others = [node for node in lab.nodes.values() if node is not killed]
    address = killed.status()["self"]["ipv4"]
    flow = neighbour.ping_flow(address, rate=FLOW_RATE)
    killed.kill_daemon()
    with _step("the others hold it for dead"):
        mesh.wait_state(others, killed.name, "dead", timeout=STEP_TIMEOUT)
    time.sleep(KILLED_FOR)
    report = flow.stop()
    console.say(f"            pings from {neighbour.name} meanwhile: {report}")
    if report.lost:
        raise LabError(f"pings were lost when {killed.name}'s daemon was killed")
    with _step("it is started again, with no option: all see all"):
        killed.start_daemon()
        mesh.wait_whole(list(lab.nodes.values()), timeout=STEP_TIMEOUT)


def _cable_is_pulled(lab: Lab) -> None:
    console.say("the cable of e is pulled:")
    cut = lab["e"]
    others = [node for node in lab.nodes.values() if node is not cut]
    addresses = mesh.addresses(list(lab.nodes.values()), version=4)
    cut.link_down()
    with _step("the others hold it for dead"):
        mesh.wait_state(others, cut.name, "dead", timeout=STEP_TIMEOUT)
    with _step("it is plugged in again: all see all, and all pings are answered"):
        cut.link_up()
        mesh.wait_whole(list(lab.nodes.values()), timeout=STEP_TIMEOUT)
        wait_until(
            lambda: not lab.ping_all(addresses).silent,
            "all pings are answered",
            timeout=STEP_TIMEOUT,
        )


def _demand(matrix: Matrix) -> None:
    if matrix.silent:
        pairs = ", ".join(f"{source} to {target}" for source, target in matrix.silent)
        raise LabError(f"pings without an answer: {pairs}")
