"""Waiting for a condition instead of sleeping for a while."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from lablib.errors import DeadlineExceeded, LabError

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_INTERVAL = 0.05
DUTY_MAX = 0.25  # of the time, lest those who are asked have none left for their work

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    what: str,
    *,
    timeout: float,
    interval: float = POLL_INTERVAL,
) -> T:
    """Poll a condition until it returns something true, and return that.

    A condition that raises AssertionError or LabError does not hold yet, and says why: so a
    function made of asserts is a fine condition.  Raise DeadlineExceeded, with the last reason,
    when `timeout` seconds have passed; the condition is always tried once more at the end.
    """
    started_at = time.monotonic()
    while True:
        tried_at = time.monotonic()
        last_try = tried_at - started_at >= timeout
        cause: Exception | None = None
        try:
            value = condition()
        except (AssertionError, LabError) as exc:
            cause = exc
            reason = str(exc) or type(exc).__name__
        else:
            if value:
                return value
            reason = f"the condition gave {value!r}"
        if last_try:
            raise DeadlineExceeded(
                f"not within {timeout:g} s: {what}; at last: {reason}"
            ) from cause
        took = time.monotonic() - tried_at
        time.sleep(max(interval, took * (1 / DUTY_MAX - 1)))
