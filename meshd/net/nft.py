"""Running nft(8): one transaction or one question at a time.

Loading is one transaction: the old rules hold until the new ones do, and a load that fails changes
nothing.  Calls block for as long as nft(8) runs, some 15 ms: use a thread.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess

from meshd.errors import DeviceError

TIMEOUT = 10.0  # another program may hold nft's lock for a while
SBIN = "/usr/sbin:/sbin"  # where nft is, and where a daemon's PATH need not lead


def in_name(interface: str) -> str:
    """Return an interface's name as part of a table's, a different one for each interface.

    What nft does not take in a name is written as its code between underscores.
    """
    return re.sub(r"[^A-Za-z0-9]", lambda match: f"_{ord(match[0]):x}_", interface)


def load(ruleset: str, *, operation: str) -> None:
    """Load a ruleset, all of it or nothing.  Raise DeviceError."""
    run("--file", "-", operation=operation, ruleset=ruleset)


def run(*arguments: str, operation: str, ruleset: str = "") -> str:
    """Run nft(8), and return what it prints.  Raise DeviceError."""
    environment = os.environ | {"LC_ALL": "C"}
    program = shutil.which("nft", path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")
    if program is None:
        raise DeviceError(f"{operation}: nft(8) is not installed", errno.ENOPKG)
    try:
        done = subprocess.run(
            [program, *arguments],
            input=ruleset,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise DeviceError(operation, errno.ETIMEDOUT) from exc
    if done.returncode != 0:
        raise DeviceError(operation, _errno_of(done.stderr))
    return done.stdout


def _errno_of(message: str) -> int:
    """Return the errno whose text nft(8) has printed; EINVAL for its own complaints."""
    known = (
        errno.ENOENT,
        errno.EEXIST,
        errno.EPERM,
        errno.EOPNOTSUPP,
        errno.EPROTONOSUPPORT,
        errno.EBUSY,
    )
    return next((number for number in known if os.strerror(number) in message), errno.EINVAL)
