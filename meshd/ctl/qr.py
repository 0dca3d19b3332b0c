"""A token as a QR code, on a terminal or in a file.

A token has 400 to 1,600 characters, in letters of both cases: bytes, as QR has it.  At the lowest
level of error correction that is a code of 73 to 133 modules a side.  That level is right here: a
screen has no stains, and every level more makes the modules smaller, which is what cameras fail at.
(`segno` raises the level by itself where that takes no more modules.)

On a terminal each character is two modules, one above the other, in black and white whatever the
terminal's own colours are: many scanners read no code that is inverted.
"""

from __future__ import annotations

import io
from itertools import groupby
from typing import TYPE_CHECKING

import segno

if TYPE_CHECKING:
    from collections.abc import Sequence

QUIET_ZONE = 4  # modules of white on each side: ISO/IEC 18004 asks for so many
PIXELS_PER_MODULE = 6
KINDS = ("png", "svg")
# Of the 256 colours, for which terminals have no themes: 16 is black, 231 white.
_BLACK, _WHITE = 16, 231


def modules_of(text: str) -> list[list[bool]]:
    """Return the rows of a text's code, quiet zone and all; True is dark."""
    code = segno.make(text, error="l", mode="byte", micro=False)
    return [[bool(dark) for dark in row] for row in code.matrix_iter(border=QUIET_ZONE)]


def terminal_text(modules: Sequence[Sequence[bool]]) -> str:
    """Return a code to be written to a terminal: half as many lines as rows."""
    light = [False] * len(modules[0])
    rows = [*modules, light] if len(modules) % 2 else list(modules)
    lines = []
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        runs = [(pair, len(list(same))) for pair, same in groupby(zip(upper, lower, strict=True))]
        line = "".join(f"{_colours(*pair)}{'▀' * count}" for pair, count in runs)
        lines.append(f"{line}\x1b[0m")
    return "\n".join(lines)


def image_of(text: str, kind: str) -> bytes:
    """Return a text's code as a file of one of `KINDS`."""
    stream = io.BytesIO()
    code = segno.make(text, error="l", mode="byte", micro=False)
    code.save(stream, kind=kind, scale=PIXELS_PER_MODULE, border=QUIET_ZONE)
    return stream.getvalue()


def _colours(upper: bool, lower: bool) -> str:  # noqa: FBT001 - a pair of modules
    above, below = (_BLACK if dark else _WHITE for dark in (upper, lower))
    return f"\x1b[38;5;{above};48;5;{below}m"
