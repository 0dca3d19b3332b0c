"""How much a node may hold, whatever it was sent.

Rule 1: every table and queue stays within its `_MAX`, or within what its members allow.

Rule 2: no container that can be reached from the node, whatever its name, holds more than
        CONTAINER_MAX things, and all that can be reached is no more than OBJECTS_MAX objects.  That
        rule holds for tables that this file has never heard of.

Rule 3: the memory of the process does not grow.
"""

from __future__ import annotations

import gc
import os
import types
from pathlib import Path

from fuzz.oracle import Violation
from meshd.gossip.broadcast import QUEUE_MAX
from meshd.gossip.claim import ACCUSERS_MAX
from meshd.gossip.observers import WATCHED_MAX
from meshd.gossip.pings import PINGS_MAX, RELAYED_MAX
from meshd.gossip.probe import PROBES_MAX
from meshd.gossip.sync import PUSHED_MAX, SUMMARIES_MAX, WANTED_MAX, WINDOW_MAX, WISHES_MAX

CONTAINER_MAX = max(QUEUE_MAX, WANTED_MAX, PINGS_MAX)
OBJECTS_MAX = 40_000
RSS_GROWTH_MAX = 24 << 20  # bytes, since the process was warm

# Of one member: contact, suspicion, watch, and the two of a probe.  Of a node: a handful.
_TIMERS_PER_MEMBER = 5
_TIMERS = 8
_HEAP_SLACK = 64  # deadlines that were replaced leave the heap in batches
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_NOT_HELD = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
_CONTAINERS = (dict, list, set, tuple, frozenset)


def check_tables(node, members):
    """Check rule 1, where no more than `members` others were ever known."""
    statistics = node.statistics()
    timers_max = _TIMERS + _TIMERS_PER_MEMBER * members + RELAYED_MAX
    prober, membership, timers = node._prober, node._membership, node._timers
    sizes = {
        "broadcasts": (statistics.broadcasts_queued, (members + 1) * (3 + ACCUSERS_MAX)),
        "entries": (statistics.entries, 3 * (members + 1)),
        "pings": (statistics.pings_waiting, PINGS_MAX),
        "timers": (statistics.timers_set, timers_max),
        "heap of timers": (len(timers._heap), _HEAP_SLACK + 1 + 5 * timers_max),
        "words held": (len(membership._held), members),
        "probes": (len(prober._probes), PROBES_MAX),
        "watched": (len(prober._watched), WATCHED_MAX),
        "round": (len(prober._order._round), 2 * members),
        "wishes": (len(node._sync._wishes), WISHES_MAX),
        "events": (len(membership.events), 0),
        "accusers": (max((len(view.accusers) for view in node.members()), default=0), ACCUSERS_MAX),
    }
    exchange = node._sync._exchange
    if exchange is not None:
        sizes["wanted"] = len(exchange.wanted), WANTED_MAX
        sizes["asked"] = len(exchange.asked), WINDOW_MAX
    for what, (size, size_max) in sizes.items():
        if size > size_max:
            raise Violation(f"{what}: {size}, more than {size_max}")


def outputs_max(members):
    """Return how many datagrams one input may give rise to.

    A digest is answered in so many; all pings for others may fall due together.
    """
    return max(SUMMARIES_MAX + PUSHED_MAX, RELAYED_MAX) + WINDOW_MAX + 4 * members


def check_reachable(root):
    """Check rule 2.  Return how many objects can be reached."""
    seen = {id(root)}
    waiting = [root]
    for held in waiting:  # which grows meanwhile
        if isinstance(held, _CONTAINERS) and len(held) > CONTAINER_MAX:
            raise Violation(f"a {type(held).__name__} of {len(held)}: {repr(held)[:200]}")
        for other in gc.get_referents(held):
            if id(other) not in seen and not isinstance(other, _NOT_HELD):
                seen.add(id(other))
                waiting.append(other)
        if len(waiting) > OBJECTS_MAX:
            raise Violation(f"more than {OBJECTS_MAX} objects")
    return len(waiting)


def resident_bytes():
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
