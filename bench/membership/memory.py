"""Where the memory of one of our processes goes: what each import adds to a bare interpreter.

Members here are forked and share all of that; a daemon on a machine of its own has it to itself.
"""

from __future__ import annotations

import subprocess
import sys

_STAGES = (
    ("Python", ""),
    ("trio", "import trio"),
    ("nacl, msgpack", "import nacl.signing, nacl.bindings, msgpack"),
    ("gossip, trust, net", "import meshd.gossip.node, meshd.trust.ledger, meshd.net.stream"),
)
_PROGRAM = """
import os
def resident():
    with open('/proc/self/smaps_rollup') as file:
        return next(line for line in file if line.startswith('Rss')).split()[1]
{stages}
"""


def imports_mib() -> dict[str, float]:
    """Return how much each stage adds, in MiB."""
    stages = "\n".join(f"{code}\nprint(resident())" for _, code in _STAGES)
    program = [sys.executable, "-c", _PROGRAM.format(stages=stages)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    added, before = {}, 0
    for (name, _), line in zip(_STAGES, done.stdout.split(), strict=True):
        added[name] = (int(line) - before) / 1024
        before = int(line)
    return added
