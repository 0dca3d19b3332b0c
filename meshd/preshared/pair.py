"""One pair of members, as one of the two sees it.

heard   theirs           what we use
─────   ──────────────   ────────────────────────────────────────────
no      ?                what we used in the run before
yes     None             none: the other takes no part
yes     their tags       the newest that both hold (`keys`, rule 2)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from meshd.preshared.keys import HELD_MAX, Keyring, SharedKey, Tags, tag_in_use, tags_of

if TYPE_CHECKING:
    from meshd.underlay import TokenBucket


@dataclass(slots=True, eq=False)
class Pair:
    """See the module docstring."""

    ring: Keyring
    lower: bool  # we are the lower node, the one that offers
    allowance: TokenBucket  # of what the other may say
    alive: bool = False  # a datagram through the tunnel will arrive
    heard: bool = False
    theirs: Tags | None = None
    believed: Tags | None = None  # what the other believes we hold, as it said last
    answered: tuple[bytes, bytes] | None = None  # reference and ciphertext of our last answer
    failures: int = 0

    @property
    def tags(self) -> Tags:
        """What we hold."""
        return tags_of(self.ring.held)

    @property
    def in_step(self) -> bool:
        """Whether each knows what the other holds."""
        return self.heard and self.theirs is not None and self.believed == self.tags

    def hear(self, theirs: Tags | None) -> bool:
        """Take what the other holds.  Return whether that is news."""
        news = not self.heard or theirs != self.theirs
        self.heard, self.theirs = True, theirs
        return news

    def add(self, key: SharedKey) -> None:
        """Take a new key.  It stands beside the one in use, until the other has it as well."""
        others = () if self.ring.used is None else (self.ring.used,)
        self.ring = replace(self.ring, held=(key, *others)[:HELD_MAX])

    def settle(self, wall: float) -> bool:
        """Decide which key to use.  Return whether it is another one."""
        if not self.heard:
            return False
        theirs = self.theirs or ()
        tag = tag_in_use(self.tags, theirs) if self.lower else tag_in_use(theirs, self.tags)
        return self.use(next((key for key in self.ring.held if key.tag == tag), None), wall)

    def use(self, key: SharedKey | None, wall: float) -> bool:
        """Use a key, or none.  Return whether it is another one."""
        if key == self.ring.used:
            return False
        self.ring = replace(self.ring, used=key, used_since=int(wall))
        return True
