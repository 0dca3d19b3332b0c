"""What is still to be told to others, and how often.

Rule 1: each item is sent retransmit_mult * ceil(log10(members + 1)) times, to members chosen at
        random; with that many, all but a few hear of it whatever the size of the mesh, and
        anti-entropy sees to those (SWIM, section 4.1).

Rule 2: what was sent least often goes first; among equals the newest.  So news overtakes, and
        nothing starves.

Rule 3: a datagram is filled by bytes: an item that does not fit is passed over for a smaller one.

Rule 4: a newer item about the same thing replaces the older one, and starts counting anew.

Rule 5: while there is more to tell than a few datagrams hold, what comes back from others counts
        as sent several times (Demers et al., "Epidemic algorithms", 1987: feedback and counter), so
        that a mesh which starts all at once soon stops telling itself what it knows.  Whoever is
        missed has anti-entropy.  With little to tell it does not count: then each copy is needed
        for everybody to hear at once.

    sent 0 times:  claim d, record d        ◀── new items
    sent 1 time:   claim b
    sent 2 times:  record a, claim c
    ...                                      ──▶ gone
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, TypeAlias

from meshd.gossip.wire import ITEMS_MAX
from meshd.keys import KEY_BYTES, SIGNATURE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.gossip.wire import Item

QUEUE_MAX = 4096
BACKLOG_MIN = 32  # items: about four datagrams
COME_BACK_SENDS = 3
_SCAN_MAX = 32  # items looked at to fill one datagram
# Every item is signed and about somebody, so that less room than this is none.
_ITEM_COST_MIN = SIGNATURE_BYTES + KEY_BYTES

# What an item is about: its kind, its subject's key, and who accuses, if anybody does.  A newer
# item with the same key replaces the older one.
BroadcastKey: TypeAlias = tuple[int, bytes, bytes]


class BroadcastQueue:
    """Items in tiers by how often they were sent."""

    def __init__(self, *, retransmit_mult: int) -> None:
        self._retransmit_mult = retransmit_mult
        self._tiers: list[dict[BroadcastKey, Item]] = []
        self._tier_of: dict[BroadcastKey, int] = {}
        self.accusations = 0  # how many of the items are

    def __len__(self) -> int:
        return len(self._tier_of)

    def put(self, key: BroadcastKey, item: Item) -> None:
        """Queue an item, replacing what is queued under the same key."""
        self.drop(key)
        if len(self._tier_of) >= QUEUE_MAX:
            # What was sent most often has the best chance to be known already.
            tier = next(tier for tier in reversed(self._tiers) if tier)
            self.drop(next(iter(tier)))
        self._place(key, item, 0)

    def drop(self, key: BroadcastKey) -> None:
        """Forget an item, if it is queued."""
        if key in self._tier_of:
            self._take_out(key)

    def came_back(self, key: BroadcastKey, blob: bytes, *, members: int) -> None:
        """Take note that another member has told us what we may be telling ourselves (rule 5)."""
        if not self.backlogged:
            return
        sent = self._tier_of.get(key)
        if sent is not None and self._tiers[sent][key].blob == blob:
            self._count(key, self.limit(members), sends=COME_BACK_SENDS)

    def take(self, budget: int, *, members: int, count_max: int = ITEMS_MAX) -> list[Item]:
        """Choose items for one datagram of so many bytes, and count them as sent once more."""
        limit = self.limit(members)
        chosen: dict[BroadcastKey, Item] = {}
        for key, item in itertools.islice(self._in_order(), _SCAN_MAX):
            if budget < _ITEM_COST_MIN or len(chosen) >= count_max:
                break
            cost = item.cost
            if cost <= budget:
                budget -= cost
                chosen[key] = item
        for key in chosen:
            self._count(key, limit)
        return list(chosen.values())

    def limit(self, members: int) -> int:
        """Return how often an item is sent in a mesh of so many (rule 1)."""
        return self._retransmit_mult * math.ceil(math.log10(members + 1))

    @property
    def backlogged(self) -> bool:
        """Whether there is more to tell than a few datagrams hold."""
        return len(self._tier_of) > BACKLOG_MIN

    @property
    def sends_min(self) -> int:
        """How often the item that was sent least often was sent.  Only where there is one."""
        return next(sent for sent, tier in enumerate(self._tiers) if tier)

    def _count(self, key: BroadcastKey, limit: int, *, sends: int = 1) -> None:
        sent, item = self._take_out(key)
        if sent + sends < limit:
            self._place(key, item, sent + sends)

    def _take_out(self, key: BroadcastKey) -> tuple[int, Item]:
        sent = self._tier_of.pop(key)
        self.accusations -= key[2] != b""
        return sent, self._tiers[sent].pop(key)

    def _in_order(self) -> Iterator[tuple[BroadcastKey, Item]]:
        return itertools.chain.from_iterable(reversed(tier.items()) for tier in self._tiers)

    def _place(self, key: BroadcastKey, item: Item, sent: int) -> None:
        while len(self._tiers) <= sent:
            self._tiers.append({})
        self._tiers[sent][key] = item
        self._tier_of[key] = sent
        self.accusations += key[2] != b""
