"""argparse, with errors of one line that say what was probably meant."""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from typing import TYPE_CHECKING, NoReturn, TypeVar

from meshd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


class ArgumentParser(argparse.ArgumentParser):
    """A parser that raises UsageError where argparse would print its usage and exit."""

    def __init__(
        self,
        *,
        prog: str | None = None,
        description: str | None = None,
        epilog: str | None = None,
        usage: str | None = None,
        add_help: bool = True,
        parents: Sequence[argparse.ArgumentParser] = (),
    ) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            usage=usage,
            add_help=add_help,
            parents=list(parents),
            # An abbreviation that works today is ambiguous as soon as an option is added.
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Raise ArgumentError for what is none of the choices: with the one meant, or all."""
        if action.choices is None or value in action.choices:
            return
        close = get_close_matches(str(value), map(str, action.choices), n=1)
        listed = ", ".join(map(str, action.choices))
        hint = f"did you mean {close[0]}?" if close else f"there are {listed}"
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}; {hint}")

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parse a whole command line.  Raise UsageError."""
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            word = unknown[0].partition("=")[0]
            close = get_close_matches(word, self._flags(), n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; see {self.prog} --help"
            kind = "option" if word.startswith("-") else "argument"
            raise UsageError(f"unknown {kind} {word}{hint}")
        return parsed

    def _flags(self) -> list[str]:
        flags = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for child in action.choices.values():
                    flags += child._option_string_actions
        return flags


def reader(read: Callable[[str], T]) -> Callable[[str], T]:
    """Make a reader of `meshd.values` fit for argparse: its error text is what is shown."""

    def convert(text: str) -> T:
        try:
            return read(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(f"{text!r} {exc}") from None

    return convert
