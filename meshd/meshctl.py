"""The command `meshctl`: ask and command the daemon on this host.

| status | meaning                                                |
| ------ | ------------------------------------------------------ |
| 0      | yes, done                                              |
| 1      | no, failed                                             |
| 2      | usage                                                  |
| 3      | no daemon there                                        |
| 4      | not allowed                                            |
| 130    | interrupted                                            |
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshd import __version__, values
from meshd.arguments import ArgumentParser, reader
from meshd.ctl import commands, keys
from meshd.ctl.approval import add_approve, add_deny, add_pending, approve, deny, pending
from meshd.ctl.audit import add_audit, audit
from meshd.ctl.client import DEFAULT_RUNTIME_DIR, Client, find_socket
from meshd.ctl.exits import Exit, Failed
from meshd.ctl.invites import add_invite, add_invites, invite, invites
from meshd.ctl.paths import add_why, drain, netcheck, relays, undrain, why
from meshd.ctl.render import Screen
from meshd.ctl.revoke import add_revoke, revoke
from meshd.ctl.sealing import add_seal, seal
from meshd.errors import MeshdError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Subparsers = Any  # argparse has no public name for it

STATES = ("alive", "suspect", "dead", "left")
RUNTIME_DIR_VARIABLE = "MESHD_RUNTIME_DIR"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit status."""
    _open_what_is_closed()
    try:
        return int(_main(argv))
    except commands.OutputFailed as exc:
        _drop_output()
        return int(_fail(exc, exc.status))
    except Failed as exc:
        return int(_fail(exc, exc.status))
    except UsageError as exc:
        return int(_fail(exc, Exit.USAGE))
    except KeyboardInterrupt:
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:
        _drop_output()  # whoever read along has had enough
        return int(Exit.DONE)


def _open_what_is_closed() -> None:
    """Have what a shell has closed by `>&-` be /dev/null, lest a socket get its descriptor."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - lasts as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115


def _drop_output() -> None:
    """Discard what is not written yet: Python would try, and complain, again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(argv: Sequence[str] | None) -> Exit:
    arguments = make_parser().parse(argv)
    if getattr(arguments, "version", False):
        sys.stdout.write(f"meshctl {__version__}\n")
        return Exit.DONE
    if arguments.command is None:
        raise UsageError("a command is needed, such as `meshctl status`; see meshctl --help")
    output = commands.Output(
        screen=_screen(no_color=getattr(arguments, "no_color", False)),
        json=getattr(arguments, "json", False),
    )
    run: Callable[[Client, argparse.Namespace, commands.Output], Exit] = arguments.run
    path = getattr(arguments, "socket", None)
    if path is None and getattr(arguments, "state_dir", None) is None:
        path = _socket(arguments)
    return run(Client(path or Path()), arguments, output)


def _fail(error: MeshdError, status: Exit) -> Exit:
    sys.stderr.write(f"meshctl: {values.printable(str(error))}\n")
    return status


def _screen(*, no_color: bool) -> Screen:
    if not sys.stdout.isatty():
        return Screen()
    # https://no-color.org: present and not empty, whatever its value.
    plain = no_color or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    try:
        width = os.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:
        width = 0
    return Screen(width=width or 80, colour=not plain)


def make_parser() -> ArgumentParser:
    """Return the parser of all commands."""
    shared = _shared_flags()
    parser = ArgumentParser(
        prog="meshctl",
        description="Ask and command the meshd on this host.",
        epilog="Exit status: 0 yes or done, 1 no or failed, 2 usage, 3 no daemon there, "
        "4 not allowed.",
        parents=[shared],
    )
    parser.add_argument("--version", action="store_true", help="print the version, end")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(
        name: str, run: Callable[[Client, argparse.Namespace, commands.Output], Exit], text: str
    ) -> ArgumentParser:
        added: ArgumentParser = subparsers.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=[shared]
        )
        added.set_defaults(run=run)
        return added

    _add_status(add("status", commands.status, "this node, the members, and what is wrong"))
    add("peers", commands.peers, "the tunnels, as WireGuard has them")
    _add_ping(add("ping", commands.ping, "measure the way through the tunnel to a member"))
    add_why(add("why", why, "why a member is reached as it is, and what was tried"))
    add("netcheck", netcheck, "what this node's NAT does, and where others reach it")
    add("relays", relays, "who relays for whom")
    add("drain", drain, "relay for nobody, and have those that are relayed here move first")
    add("undrain", undrain, "relay again")
    _add_wait(add("wait", commands.wait, "block until something holds"))
    add_invite(add("invite", invite, "make a token with which a machine can join"))
    add_invites(add("invites", invites, "which tokens are out, who came in by them; withdraw one"))
    add_pending(add("pending", pending, "machines without a secret that ask to be let in"))
    add_approve(add("approve", approve, "let in a machine that shows the same code as `pending`"))
    add_deny(add("deny", deny, "send such a machine away"))
    _add_keys(add("keys", keys.keys, "this node's keys, and a new WireGuard key for it"))
    _add_events(add("events", commands.events, "what has happened"))
    add_audit(add("audit", audit, "what has changed in the mesh, and who signed it"))
    add_revoke(add("revoke", revoke, "throw a member out of the mesh for good"))
    add_seal(add("seal", seal, "end the secret of a mesh: from then on it admits nobody"))
    add("leave", commands.leave, "say goodbye, remove the interface, end the daemon")
    forget = add("forget", commands.forget, "drop what is known of a member that is gone")
    forget.add_argument("name", metavar="NAME", help="name, id or address")
    return parser


def _shared_flags() -> ArgumentParser:
    """Return what may stand before and after the command."""
    parser = ArgumentParser(add_help=False)
    absent = argparse.SUPPRESS
    group = parser.add_argument_group("which daemon, which form")
    group.add_argument(
        "--socket",
        type=reader(values.path),
        default=absent,
        metavar="PATH",
        help="the daemon's socket",
    )
    group.add_argument(
        "--runtime-dir",
        type=reader(values.path),
        default=absent,
        metavar="DIR",
        help=f"where sockets are ({RUNTIME_DIR_VARIABLE}, {DEFAULT_RUNTIME_DIR})",
    )
    group.add_argument(
        "--interface",
        type=reader(values.interface),
        default=absent,
        metavar="NAME",
        help="which of several daemons",
    )
    group.add_argument("--json", action="store_true", default=absent, help="for programs")
    group.add_argument("--no-color", action="store_true", default=absent, help="plain text")
    return parser


def _add_status(parser: ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-w", "--watch", action="store_true", help="show it again every second")
    group.add_argument(
        "--check", choices=("live", "ready"), help="only say whether the daemon is that"
    )


def _add_ping(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name, id or address")
    parser.add_argument(
        "-c",
        "--count",
        type=reader(_count),
        metavar="N",
        help=f"so often (until one is answered directly, at most {commands.PINGS_UNTIL_DIRECT})",
    )
    parser.add_argument(
        "-i",
        "--interval",
        type=reader(values.duration),
        default=1.0,
        metavar="S",
        help="time between two (1s)",
    )


def _add_wait(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--members", type=reader(_count), metavar="N", help="so many alive, this node among them"
    )
    parser.add_argument("--name", metavar="NAME", help="this member alive, or what --state says")
    parser.add_argument("--state", choices=STATES, help="state of the member named")
    parser.add_argument(
        "--path", choices=("direct", "relayed"), help="path of the member named, or of all alive"
    )
    parser.add_argument(
        "--timeout",
        type=reader(values.duration),
        metavar="S",
        help="give up after this, such as 30s; the daemon may start meanwhile",
    )


def _add_keys(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("show", "rotate", "export-mesh"),
        metavar="show|rotate|export-mesh",
        help="show: public halves and their age; rotate: replace the WireGuard key, under traffic; "
        "export-mesh: move the mesh key from this node into FILE",
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="with export-mesh")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--mesh", action="store_true", help="rotate the mesh key, on the node that holds it"
    )
    which.add_argument(
        "--bootstrap", action="store_true", help="rotate the bootstrap key: tokens become void"
    )
    which.add_argument(
        "--node", action="store_true", help="rotate the node key: id and IPv6 address change"
    )
    parser.add_argument(
        "--mesh-key-file", type=Path, metavar="FILE", help="with --mesh: where the key was moved to"
    )
    parser.add_argument(
        "--overlap",
        type=reader(values.duration),
        metavar="SPAN",
        help="with --mesh: how long the key before is good for members not heard of (30d)",
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def _add_events(parser: ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on as they happen")
    parser.add_argument(
        "-n", "--number", type=reader(_count), metavar="N", help="so many of the last ones"
    )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= 1_000_000:
        raise ValueError("must be a whole number from 1 to 1000000")
    return int(text[:9])


def _socket(arguments: argparse.Namespace) -> Path:
    default = os.environ.get(RUNTIME_DIR_VARIABLE) or DEFAULT_RUNTIME_DIR
    runtime_dir = getattr(arguments, "runtime_dir", Path(default))
    return find_socket(runtime_dir, getattr(arguments, "interface", None))


if __name__ == "__main__":
    raise SystemExit(main())
