"""Python's collector of cyclic garbage, told what a daemon is like.

By default it looks for cycles after every 700 new objects, and now and then walks all there are.  A
daemon keeps nearly everything it makes, and makes cycles only in exceptions, so that a burst of
records would be walked again and again for nothing.
"""

from __future__ import annotations

import gc

ALLOCATIONS_MAX = 20_000  # new objects before the young are looked at
YOUNG_MAX = 20  # such looks before the middle-aged are
MIDDLE_AGED_MAX = 20  # and such before all are


def pause_collector() -> None:
    """Do not look at all, until `tune_collector`: while modules are imported nearly all stays.

    Walking what they make again and again takes a fifth of the time that importing takes.
    """
    gc.disable()


def tune_collector() -> None:
    """Look less often, and never again at what is there already: code, mostly."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS_MAX, YOUNG_MAX, MIDDLE_AGED_MAX)
    gc.enable()
