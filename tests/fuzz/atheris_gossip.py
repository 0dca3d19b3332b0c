"""The same search, led by coverage: `tests/fuzz/atheris_gossip.py [directory] [-runs=N]`.

Takes atheris (`pip install atheris`), which is no dependency of meshd: libFuzzer keeps the inputs
that reach new code, and mutates those.  Each input is one history: a few messages, each with a
byte that says through whose tunnel it comes and how much time passes before it.

       0        1        2
    +--------+--------+--------+------------
    | source |  wait  | length | datagram …      again and again
    +--------+--------+--------+------------
      index    1/32 s   of the datagram, in 8 bytes

It knows nothing of signatures, and so gets no further than what the seeds can say; `fuzz_gossip` is
the one that goes deep.  The checks are the same.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed: `pip install atheris`, or use fuzz_gossip.py, without it")

with atheris.instrument_imports(include=["meshd.codec", "meshd.gossip", "meshd.trust"]):
    from fuzz.bounds import check_tables
    from fuzz.people import NAMES, datagrams
    from fuzz.table import Table
    from sim.memo import remember_signatures

_HEAD_BYTES = 3
_LENGTH_UNIT = 8


def one_input(data):
    """Play one history."""
    table = Table(1)
    while len(data) >= _HEAD_BYTES:
        source, wait, length = data[:_HEAD_BYTES]
        end = _HEAD_BYTES + length * _LENGTH_UNIT
        table.do(("wait", wait / 32))
        table.do(("datagram", NAMES[source % len(NAMES)], data[_HEAD_BYTES:end]))
        data = data[end:]
    check_tables(table.node, len(NAMES) - 1)


def write_seeds(directory):
    """Write each valid message as a history of one."""
    for number, datagram in enumerate(datagrams()):
        length = -(-len(datagram) // _LENGTH_UNIT)
        if length < 256:
            history = bytes((1, 8, length)) + datagram
            (directory / f"seed-{number}").write_bytes(history)


def main():
    remember_signatures()  # every history begins with the same records
    with tempfile.TemporaryDirectory() as scratch:
        seeds = Path(scratch)
        write_seeds(seeds)
        # The first directory is the one that libFuzzer writes what it finds into.
        atheris.Setup([*sys.argv, str(seeds)], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
