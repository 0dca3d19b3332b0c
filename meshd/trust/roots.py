"""The roots of a mesh, as one node has pinned them: which keys chains may start from.

    number      0            1            2
              mesh id ──▶  root  ──────▶ root      newest: what a token names
              sealed       rotated: trusted while the node has not settled

A `Roots` is a value.  The node keeps it in its store, and puts a new one there before it acts on
it; what it holds was verified then.

Rule 1: the line only grows.  Forward by a succession that follows the newest root, which is then
        adopted for good; backward, for whoever has begun with a token, by one that leads to the
        oldest root known, which that root has signed.

Rule 2: a succession that starts from a root of the line and contradicts it is a rival: somebody
        else knows that root's key.  It is never followed.

Rule 3: the newest root is trusted.  So is its predecessor until the node has settled: until all
        grants are here, or the overlap is over (`engine.following`).  All earlier ones have ended.

Rule 4: what was signed under a root that was sealed, or under any before it, counts for nothing.
        What was signed under a root that was only rotated stands.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from meshd.codec import Fields, pack
from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, MeshId
from meshd.trust.succession import (
    ROOTS_MAX,
    SUCCESSION_BYTES_MAX,
    Succession,
    open_succession_untrusted,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.keys import NodeId


class Verdict(enum.Enum):
    """What a succession is to a line of roots."""

    HELD = enum.auto()
    FOLLOWS = enum.auto()  # the newest root
    PRECEDES = enum.auto()  # the oldest root known
    RIVAL = enum.auto()  # rule 2
    UNCONNECTED = enum.auto()  # to any root known; so far


@dataclass(frozen=True, slots=True)
class Roots:
    """See the module docstring."""

    mesh: MeshId
    newest: MeshId
    number: int = 0  # of the newest
    line: tuple[Succession, ...] = ()  # the last of which leads to the newest
    settled: bool = True

    @classmethod
    def first(cls, mesh: MeshId) -> Self:
        """Return the line of a mesh that still has its first root."""
        return cls(mesh, mesh)

    # What it comes to

    @property
    def keys(self) -> tuple[MeshId, ...]:
        """All roots known, the newest first."""
        return (self.newest, *(step.predecessor for step in reversed(self.line)))

    @property
    def oldest_number(self) -> int:
        """The number of the first root known."""
        return self.number - len(self.line)

    @property
    def last_step(self) -> Succession | None:
        """The succession by which the newest root came, if it is known."""
        return self.line[-1] if self.line else None

    @property
    def full(self) -> bool:
        """Whether there can be no further root."""
        return self.number >= ROOTS_MAX - 1

    def number_of(self, root: MeshId | NodeId) -> int | None:
        """Return a root's number; None for one that is not of this line."""
        for back, key in enumerate(self.keys):
            if key == root:
                return self.number - back
        return None

    def trusts(self, root: MeshId | NodeId) -> bool:
        """Whether chains may start from a key (rule 3)."""
        if root == self.newest:
            return True
        return not self.settled and bool(self.line) and root == self.line[-1].predecessor

    def lasts(self, root: MeshId | NodeId) -> bool:
        """Whether what is granted by a chain from a key will last: it is not about to end."""
        if root == self.newest:
            return True
        return self.trusts(root) and not self.line[-1].seal

    def heeds(self, root: MeshId | NodeId) -> bool:
        """Whether statements other than chains count that were signed under a key (rule 4)."""
        number = self.number_of(root)
        if number is None:
            return False
        done = self.line if self.settled else self.line[:-1]
        return not any(step.seal and step.number > number for step in done)

    def misses(self, other: Roots) -> bool:
        """Whether another line has gone on from ours, or has parted from it and is as long."""
        return other.number >= self.number and other.newest not in self.keys

    def judge(self, succession: Succession) -> Verdict:
        """Say what a verified succession is to this line."""
        if any(step.blob == succession.blob for step in self.line):
            return Verdict.HELD
        if succession.number == self.number + 1:
            follows = succession.predecessor == self.newest
            return Verdict.FOLLOWS if follows else Verdict.UNCONNECTED
        if succession.number == self.oldest_number and succession.successor == self.keys[-1]:
            return Verdict.PRECEDES
        rival = self.number_of(succession.predecessor) == succession.number - 1
        return Verdict.RIVAL if rival else Verdict.UNCONNECTED

    # How it changes

    def grown(self, succession: Succession) -> Self:
        """Return the line with a succession that FOLLOWS or PRECEDES it."""
        if succession.number == self.number + 1:
            return replace(
                self,
                newest=succession.successor,
                number=succession.number,
                line=(*self.line, succession),
                settled=False,
            )
        return replace(self, line=(succession, *self.line))

    def grown_untrusted(self, blobs: Iterable[bytes]) -> Self:
        """Return the line with those of several statements that follow it, whatever they are."""
        roots = self
        for blob in blobs:
            succession = open_succession_untrusted(blob, self.mesh)
            if roots.judge(succession) is Verdict.FOLLOWS:
                roots = roots.grown(succession)
        return roots

    def settle(self) -> Self:
        """Return the line with its newest root alone."""
        return replace(self, settled=True)

    # On disk

    def encode(self) -> bytes:
        """Return the form that `decode_untrusted` takes."""
        return pack(
            {
                1: bytes(self.newest),
                2: self.number,
                3: tuple(step.blob for step in self.line),
                4: self.settled,
            }
        )

    @classmethod
    def decode_untrusted(cls, data: bytes, mesh: MeshId) -> Self:
        """Return what `encode` was given, verified again."""
        fields = Fields.unpack_untrusted(data, what="roots")
        blobs = fields.blobs(3, count_max=ROOTS_MAX, bytes_max=SUCCESSION_BYTES_MAX)
        roots = cls(
            mesh=mesh,
            newest=MeshId(fields.blob(1, size=KEY_BYTES)),
            number=fields.uint(2, maximum=ROOTS_MAX - 1),
            line=tuple(open_succession_untrusted(blob, mesh) for blob in blobs),
            settled=fields.flag(4),
        )
        fields.done()
        following = roots.newest
        for back, step in enumerate(reversed(roots.line)):
            if step.successor != following or step.number != roots.number - back:
                raise BadPacket("roots do not follow one another")
            following = step.predecessor
        if roots.oldest_number < 0 or (roots.oldest_number == 0) != (following == mesh):
            raise BadPacket("roots do not lead from the mesh id")
        return roots
