"""Every way in which meshd fails on purpose.

Five kinds, told apart by whose fault they are and by what happens next:

| error         | whose fault      | what happens                                             |
| ------------- | ---------------- | -------------------------------------------------------- |
| `BadPacket`   | a peer's         | the input is dropped and counted; nothing is closed      |
| `UsageError`  | the operator's   | one line on standard error, exit status 2                |
| `StartError`  | this machine's   | one line on standard error, exit status 1                |
| `DeviceError` | the kernel's     | an event, a pause, and the reconciler tries again        |
| `StoreError`  | the disk's       | a finding in `status`; it is written again later         |

Anything else is a bug of ours: it is not caught, the process ends, and the supervisor restarts it
while the data plane carries on.
"""

from __future__ import annotations

import os


class MeshdError(Exception):
    """Base of all errors raised on purpose."""


class BadPacket(MeshdError):
    """Bytes from outside broke a rule.  No state has changed.

    `reason` is a short constant string, fit for a metric's label: it never holds the bytes.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UsageError(MeshdError):
    """The operator asked for something that cannot be meant.  No state has changed."""


class ConfigError(UsageError):
    """A configuration value is wrong; the message names file, key, value and what is allowed."""


class StartError(MeshdError):
    """This machine, or its state directory, does not let meshd run.  No state has changed."""


class DeviceError(MeshdError):
    """The kernel, or a userspace WireGuard, refused an operation.

    What came before the refused part may have been applied: observe again before the next diff.
    """

    def __init__(self, operation: str, errno: int) -> None:
        super().__init__(f"{operation}: {os.strerror(errno)}")
        self.operation = operation
        self.errno = errno


class StoreError(MeshdError):
    """The state could not be written to disk.  Nothing of this write is there; all before is."""
