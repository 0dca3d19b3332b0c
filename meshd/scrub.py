"""Taking a secret out of this process's arguments, which every user of the machine can list.

`/proc/PID/cmdline`, and so `ps`, shows the memory into which the kernel has put the arguments, and
a process may write to its own.  What was listed in the tenth of a second before, was listed; and
so were the arguments of whatever has started this process, such as `sudo`.
"""

from __future__ import annotations

import os
from pathlib import Path

SECRET_BYTES_MIN = 8
_ARG_START, _ARG_END = 48, 49  # fields of proc_pid_stat(5), counted from 1


def scrub_argument(secret: str) -> bool:
    """Overwrite a text wherever it stands in our arguments.  Return whether it did."""
    wanted = os.fsencode(secret)
    if len(wanted) < SECRET_BYTES_MIN:
        return False  # no secret, and it would garble everything else
    try:
        # The second field is the program's name, in parentheses, and may hold anything.
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = (int(fields[number - 3]) for number in (_ARG_START, _ARG_END))
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            place = arguments.find(wanted)
            found = place >= 0
            while place >= 0:
                memory.seek(start + place)
                memory.write(b"-" * len(wanted))
                place = arguments.find(wanted, place + len(wanted))
    except (OSError, ValueError, IndexError):
        return False
    return found
