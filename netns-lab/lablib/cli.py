"""The command `lab`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lablib import console, mesh, vm
from lablib.daemon import PROJECT
from lablib.drawing import draw
from lablib.errors import LabError, UsageError
from lablib.lab import DEFAULT_NAME, Lab, names, take_down
from lablib.namespace import environment
from lablib.nats import KINDS
from lablib.sites import MEMBERS_DEFAULT, NATS, NATS_SUMMARY, TOPOLOGIES, topology
from lablib.topology import MEMBERS_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

UNDERLAY_TIMEOUT = 2.0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
PROGRAM = PROJECT / "netns-lab" / "lab"


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    arguments = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    console.set_verbose(verbose=arguments.verbose)
    try:
        if arguments.vm:
            return _run_in_vm(argv, arguments)
        status: int = arguments.run(arguments)
    except UsageError as exc:
        print(f"lab: {exc}", file=sys.stderr)
        return EXIT_USAGE
    except LabError as exc:
        print(f"lab: {exc}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return status


def _end(number: int, _: object) -> NoReturn:
    """End by way of everybody's cleaning up."""
    raise SystemExit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab",
        description="Machines, routers and wires made of network namespaces, with meshd on them.",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print every command it runs")
    parser.add_argument("--name", default=DEFAULT_NAME, help="which lab; several can be up at once")
    parser.add_argument(
        "--vm",
        action="store_true",
        help="do it inside a virtual machine with the distribution's own kernel",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    up = commands.add_parser("up", help="build a network and start meshd on its members")
    _add_topology(up)
    up.add_argument("--secret", help="the passphrase of the mesh; by default a random one")
    up.add_argument("--no-daemons", action="store_true", help="build the network only")
    up.set_defaults(run=_up)

    down = commands.add_parser("down", help="remove everything the lab made")
    down.set_defaults(run=_down)

    execute = commands.add_parser("exec", help="run a command on a machine of the lab")
    execute.add_argument("node", metavar="NODE", help="a member, a router, or the fabric")
    execute.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER)
    execute.set_defaults(run=_exec)

    listing = commands.add_parser("list", help="list topologies, and draw the labs that are up")
    listing.set_defaults(run=_list)

    ping = commands.add_parser("ping", help="ping everyone from everyone and show the matrix")
    ping.add_argument("--underlay", action="store_true", help="outside the tunnels")
    ping.set_defaults(run=_ping)

    demo = commands.add_parser("demo", help="watch a mesh form, lose members and heal")
    demo.set_defaults(run=_demo)

    matrix = commands.add_parser("matrix", help="let members behind each kind of NAT meet")
    matrix.add_argument(
        "--kinds", default="", metavar="KIND,…", help="all of `lab list` by default"
    )
    matrix.add_argument(
        "--one-by-one", action="store_true", help="restart two members for each cell: honest times"
    )
    matrix.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    matrix.set_defaults(run=_matrix)

    guest = commands.add_parser("vm", help="run any command in the virtual machine")
    guest.add_argument("--timeout", type=float, default=vm.TIMEOUT, metavar="SECONDS")
    guest.add_argument("--out", type=Path, help="a directory that is /out inside")
    guest.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER)
    guest.set_defaults(run=_vm)
    return parser


def _add_topology(parser: argparse.ArgumentParser) -> None:
    known = ", ".join([*TOPOLOGIES, f"{NATS}[:KIND,…]"])
    parser.add_argument("topology", nargs="?", default="nat", help=known)
    parser.add_argument(
        "--nodes",
        type=int,
        metavar="N",
        help=f"1 to {MEMBERS_MAX}; {MEMBERS_DEFAULT} by default, and two of each kind with {NATS}",
    )


def _run_in_vm(argv: Sequence[str], arguments: argparse.Namespace) -> int:
    """Run the same command line, less --vm, in the virtual machine."""
    if arguments.run is _vm:
        raise UsageError("`lab vm` is in the virtual machine already")
    if arguments.run not in {_demo, _matrix}:
        raise UsageError(
            "the virtual machine ends with the command: only `demo` and `matrix` make sense in it; "
            "`lab vm -- CMD` runs any command there"
        )
    rest = [word for word in argv if word != "--vm"]
    return vm.VirtualMachine().run([sys.executable, str(PROGRAM), *rest])


def _up(arguments: argparse.Namespace) -> int:
    lab = Lab(topology(arguments.topology, arguments.nodes), name=arguments.name)
    lab.up()
    console.say(draw(lab.topology))
    try:
        if not arguments.no_daemons:
            mesh.start(lab, secret=arguments.secret or mesh.new_secret())
    except BaseException:
        lab.down()
        raise
    lab.keep()
    if arguments.no_daemons:
        return 0
    console.say(f"\nall {len(lab.nodes)} members see each other; try:")
    option = "" if lab.name == DEFAULT_NAME else f" --name {lab.name}"
    console.say(f"  netns-lab/lab{option} exec {next(iter(lab.nodes))} meshctl status")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    ended = take_down(arguments.name)
    console.say(f"{arguments.name}: ended {ended} processes" if ended else "nothing is up")
    return 0


def _exec(arguments: argparse.Namespace) -> int:
    lab = Lab.attach(arguments.name)
    if arguments.node not in lab.namespaces:
        raise UsageError(f"there is no {arguments.node!r}, only {', '.join(lab.namespaces)}")
    command = arguments.command or [os.environ.get("SHELL", "/bin/sh")]
    directory = Path.cwd()
    os.environ.update(environment())
    lab.namespaces[arguments.node].enter()
    with contextlib.suppress(OSError):
        os.chdir(directory)
    try:
        os.execvp(command[0], command)
    except OSError as exc:
        raise UsageError(f"cannot run {command[0]}: {exc.strerror}") from None


def _list(_: argparse.Namespace) -> int:
    console.say("topologies:")
    for name, make in TOPOLOGIES.items():
        console.say(f"  {name:10}{make(2).summary}")
    console.say(f"  {NATS:10}{NATS_SUMMARY}:")
    for kind in KINDS.values():
        console.say(f"    {kind.name:10}{kind.summary}")
    up = names()
    console.say("labs that are up:" if up else "no lab is up")
    for name in up:
        try:
            lab = Lab.attach(name)
        except LabError as exc:
            console.say(f"\n[{name}] {exc}")
            continue
        console.say(f"\n[{name}] {draw(lab.topology)}")
    return 0


def _ping(arguments: argparse.Namespace) -> int:
    lab = Lab.attach(arguments.name)
    silent = 0
    for version in (4, 6):
        if arguments.underlay:
            matrix = lab.ping_underlay(version=version, timeout=UNDERLAY_TIMEOUT)
        else:
            matrix = mesh.ping(lab, version=version)
        console.say(f"IPv{version}, a row for each source\n{matrix.render()}")
        silent += len(matrix.silent)
    return EXIT_FAILED if silent else 0


def _demo(arguments: argparse.Namespace) -> int:
    from lablib import demo

    return demo.run(name="demo" if arguments.name == DEFAULT_NAME else arguments.name)


def _matrix(arguments: argparse.Namespace) -> int:
    from lablib import matrix

    name = "matrix" if arguments.name == DEFAULT_NAME else arguments.name
    names = arguments.kinds.split(",") if arguments.kinds else []
    grid = matrix.run(names, name=name, one_by_one=arguments.one_by_one)
    console.say(grid.render())
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(grid.document(), indent=2) + "\n")
    return EXIT_FAILED if grid.unexpected else 0


def _vm(arguments: argparse.Namespace) -> int:
    command = arguments.command[arguments.command[:1] == ["--"] :]
    if not command:
        raise UsageError("`lab vm` takes a command")
    machine = vm.VirtualMachine(timeout=arguments.timeout, out=arguments.out)
    return machine.run(command)
