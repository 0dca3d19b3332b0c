"""The command `meshd`: from arguments to a running daemon, and from errors to exit statuses.

| status | meaning                                                             |
| ------ | ------------------------------------------------------------------- |
| 0      | ended as asked: SIGTERM, `meshctl leave`, `--check-config`          |
| 1      | this machine, or the mesh, does not let it run; standard error says |
| 2      | it was asked for what cannot be meant                               |
| 130    | interrupted before it had begun                                     |

Whatever is heavy to import is imported once the whole configuration is known to be right.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING

from meshd import __version__, config, logs, values
from meshd.arguments import ArgumentParser
from meshd.errors import MeshdError, UsageError
from meshd.scrub import scrub_argument

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meshd.config import Config, Option

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon until it is told to end, and return the exit status."""
    _open_standard_streams()
    try:
        return _main(argv)
    except MeshdError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BaseExceptionGroup as group:
        # trio wraps whatever ends a nursery.  The first reason is the one to name, unless there is
        # a bug of ours among them: that one must be seen.
        ours, bugs = group.split(MeshdError)
        if bugs is not None or ours is None:
            raise
        return _fail(next(_leaves(ours)))


def _open_standard_streams() -> None:
    """Open those that are closed: a log line must not end up in a file that took the number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _fail(error: MeshdError) -> int:
    text = "\n".join(values.printable(line) for line in str(error).split("\n"))
    sys.stderr.write(f"meshd: {text}\n")
    return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED


def _main(argv: Sequence[str] | None) -> int:
    arguments = vars(make_parser().parse(argv))
    if arguments.pop("version", False):
        sys.stdout.write(f"meshd {__version__}\n")
        return EXIT_DONE
    scrub_argument(arguments.get("token") or "")
    only_check = arguments.pop("check_config", False)
    loaded = config.load(arguments)
    logs.configure(loaded.log_level, loaded.log_format)
    for warning in loaded.warnings:
        log.warning("%s", warning)
    if only_check:
        sys.stdout.write(f"{_describe(loaded)}\n")
        return EXIT_DONE

    from meshd.daemon import run

    return run(loaded)


def make_parser() -> ArgumentParser:
    """Return the parser of all flags that the table of options has."""
    parser = ArgumentParser(
        prog="meshd",
        description="Make this machine a member of a private WireGuard network.",
        epilog=f"""\
First start, one of:
  meshd --init                                  make a new mesh
  meshd --token-file FILE                       join with a token from `meshctl invite`
  meshd --secret-file FILE [--seed HOST]        join, or make, the mesh of a passphrase
  meshd --ask-approval --seed HOST              show a code that a member's operator approves
Later starts need none of them.

Every option has a key in {config.DEFAULT_FILE} and an environment variable:
--relay-ports is relay_ports there and MESHD_RELAY_PORTS here.""",
    )
    for option in config.OPTIONS:
        if option.flag:
            _add_flag(parser, option)
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="read the configuration, say if it is right, end",
    )
    parser.add_argument("--version", action="store_true", help="print the version, end")
    return parser


def _add_flag(parser: ArgumentParser, option: Option) -> None:
    flag = f"--{option.name}"
    # What is not given must be absent, or it would hide the environment and the file.
    absent = argparse.SUPPRESS
    if option.name in {"init", "ask-approval"}:
        parser.add_argument(flag, action="store_true", default=absent, help=option.help)
    elif option.toml is bool:
        parser.add_argument(
            flag,
            dest=option.field,
            action=argparse.BooleanOptionalAction,
            default=absent,
            help=option.help,
        )
    else:
        parser.add_argument(
            flag,
            dest=option.field,
            action="append" if option.many else "store",
            default=absent,
            metavar=option.metavar,
            help=option.help + (" (repeatable)" if option.many else ""),
        )


def _describe(loaded: Config) -> str:
    given = ", ".join(sorted(loaded.given)) or "nothing: all are defaults"
    return f"the configuration is right; given: {given}"


def _leaves(group: BaseExceptionGroup[MeshdError]) -> Iterator[MeshdError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
