"""The same signature over the same bytes is verified once, for all nodes of a process.

A mesh in one process checks each claim once for every node.  What a check costs is measured
elsewhere; here it would only be the greater part of the time.  Failures are not remembered.
"""

from __future__ import annotations

import functools

from meshd.trust import signed

_SIGNATURES_MAX = 1 << 16


@functools.cache
def remember_signatures():
    """Have this process remember which signatures were good."""
    # An exception is not cached, and so a bad signature is looked at each time.
    signed.verify = functools.lru_cache(_SIGNATURES_MAX)(signed.verify)
