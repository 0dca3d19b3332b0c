"""Steps as lines of a file: a failing history that anybody can read, replay and shorten.

    # why this is kept
    rng 7
    datagram a 0100…
    wait 0.25

`rng` is the seed of the node's own randomness, and comes first.  See `table` for the steps.
"""

from __future__ import annotations

import time
from pathlib import Path

from fuzz.oracle import Violation
from fuzz.table import Table

_BYTES_AT = {"datagram": 2, "stream": 2, "fact": 2}
_FLOAT_AT = {"wait": 1, "stall": 1, "contact": 2}
_INT_AT = {"fact": 1}


def format_history(rng_seed, steps, *, why):
    """Return a history as a file's text."""
    lines = [f"# {line}".rstrip() for line in why.splitlines()]
    lines.append(f"rng {rng_seed}")
    for step in steps:
        words = [part.hex() if isinstance(part, bytes) else str(part) for part in step]
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def parse_history(text):
    """Return the seed and the steps in a file's text."""
    # An empty datagram is a line that ends in a blank.
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    first, *rest = lines
    word, seed = first.split()
    assert word == "rng", "a history begins with the seed of the node's randomness"
    return int(seed), [_parse_step(line) for line in rest]


def replay(rng_seed, steps):
    """Do all steps to a new node, and check all there is to check.  Return its table."""
    table = Table(rng_seed)
    for step in steps:
        table.do(step)
    table.check()
    table.check_answers()
    return table


def signature_of(error):
    """Return what is the same in two errors with one cause."""
    where = error.__traceback__
    while where.tb_next is not None:
        where = where.tb_next
    code = where.tb_frame.f_code
    what = str(error).partition(":")[0] if isinstance(error, Violation) else code.co_qualname
    return f"{type(error).__name__} in {Path(code.co_filename).name}: {what}"


def failure_of(rng_seed, steps):
    """Return the signature of the error that a history ends in, or None."""
    try:
        replay(rng_seed, steps)
    except Exception as exc:  # any error at all is what is searched for
        return signature_of(exc)
    return None


def shorten(rng_seed, steps, *, seconds):
    """Leave out steps without which a history fails just the same."""
    wanted = failure_of(rng_seed, steps)
    deadline = time.monotonic() + seconds
    size = len(steps) // 2
    while wanted is not None and size:
        at = 0
        while at < len(steps) and time.monotonic() < deadline:
            fewer = steps[:at] + steps[at + size :]
            if failure_of(rng_seed, fewer) == wanted:
                steps = fewer
            else:
                at += size
        size //= 2
    return steps


def _parse_step(line):
    word, *rest = line.split(" ")
    step = [word, *rest]
    for table, parse in ((_BYTES_AT, bytes.fromhex), (_FLOAT_AT, float), (_INT_AT, int)):
        if word in table:
            step[table[word]] = parse(step[table[word]])
    return tuple(step)
