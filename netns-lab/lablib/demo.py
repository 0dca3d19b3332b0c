"""The story that `lab demo` tells: a mesh forms across NATs, loses members, and heals.

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
from lablib.sites import topology
from lablib.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lablib.node import Node
    from lablib.ping import Matrix

# Two machines with public addresses, two on a wire behind one NAT, and two each behind a NAT that
# shows every destination another port: those two cannot meet but by a relay.
TOPOLOGY = "nats:home,apd"
RELAYED = ("apd1", "apd2")
STEP_TIMEOUT = 60.0
FLOW_RATE = 100.0  # pings a second while something is broken
KILLED_FOR = 5.0  # seconds its tunnels are watched


def run(*, name: str) -> int:
    """Tell the story in a lab of its own; return the exit status."""
    plan = topology(TOPOLOGY)
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
    _two_are_relayed(lab)
    _daemon_is_killed(lab, _relay(lab))
    _cable_is_pulled(lab)
    one, other = RELAYED
    for command in (["status"], ["why", other]):
        console.say(f"\n{one}$ meshctl {' '.join(command)}")
        console.say(lab[one].meshctl(*command).stdout)


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


def _relay(lab: Lab) -> Node:
    """Return who relays for the two that cannot meet."""
    one, other = RELAYED
    return lab[mesh.member(lab[one], other)["relay"]]


def _two_are_relayed(lab: Lab) -> None:
    one, other = (lab[name] for name in RELAYED)
    with _step(f"{one.name} and {other.name} cannot meet: a relay forwards their ciphertext"):
        mesh.wait_path(one, other.name, "relayed", timeout=STEP_TIMEOUT)
    relay = _relay(lab)
    console.say(f"            it is {relay.name}, in its kernel; it has no key to what it forwards")


def _daemon_is_killed(lab: Lab, killed: Node) -> None:
    console.say(f"the daemon of {killed.name} is killed (-9); its tunnels go on, and it relays on:")
    one, other = (lab[name] for name in RELAYED)
    others = [node for node in lab.nodes.values() if node is not killed]
    flows = [
        one.ping_flow(killed.status()["self"]["ipv4"], rate=FLOW_RATE),
        one.ping_flow(other.status()["self"]["ipv4"], rate=FLOW_RATE),
    ]
    killed.kill_daemon()
    with _step("the others hold it for dead"):
        mesh.wait_state(others, killed.name, "dead", timeout=STEP_TIMEOUT)
    time.sleep(KILLED_FOR)
    for flow, target in zip(flows, (killed, other), strict=True):
        report = flow.stop()
        console.say(f"            pings from {one.name} to {target.name} meanwhile: {report}")
        if report.lost:
            raise LabError(f"pings were lost when {killed.name}'s daemon was killed")
    with _step("it is started again, with no option: all see all"):
        killed.start_daemon()
        mesh.wait_whole(list(lab.nodes.values()), timeout=STEP_TIMEOUT)


def _cable_is_pulled(lab: Lab) -> None:
    one, other = (lab[name] for name in RELAYED)
    with _step(f"a second relay stands ready for {one.name} and {other.name}"):
        mesh.wait_path(one, other.name, "relayed", timeout=STEP_TIMEOUT)
        mesh.wait_spare(one, other.name, timeout=STEP_TIMEOUT)
    cut = _relay(lab)
    console.say(f"the cable of {cut.name} is pulled:")
    others = [node for node in lab.nodes.values() if node is not cut]
    addresses = mesh.addresses(list(lab.nodes.values()), version=4)
    flow = one.ping_flow(other.status()["self"]["ipv4"], rate=FLOW_RATE)
    cut.link_down()
    with _step("the others hold it for dead"):
        mesh.wait_state(others, cut.name, "dead", timeout=STEP_TIMEOUT)
    console.say(f"            pings from {one.name} to {other.name} meanwhile: {flow.stop()}")
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
