"""Successions: one root of a mesh is followed by another.

    predecessor's signature ‖ { 1 what is said, 2 the successor's signature over that }

    what is said:
    1 number       uint from 1, the successor's; the mesh id is root number 0
    2 predecessor  32 bytes                  5 overlap_until  time, absent = 0: a seal
    3 successor    32 bytes                  6 grants         uint, how many the successor has made
    4 dated        time

Rule 1: both keys sign, so that a succession can be believed from either end: whoever trusts the
        predecessor learns of its successor, and whoever trusts the successor (from a token) learns
        what came before.

Rule 2: until `overlap_until` chains may start from either key, and all else that was signed under
        the predecessor stands for good.  A seal has no overlap: what was signed under the
        predecessor counts for nothing any more, except what the successor has signed anew.

Whether a succession is followed is for `roots` to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.codec import Fields, pack
from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, SIGNATURE_BYTES, MeshId, fingerprint
from meshd.trust.fact import FACT_KEY_BYTES, Fact, FactKind
from meshd.trust.grammar import wall_untrusted
from meshd.trust.signed import Statement, sign, signature, verify_signature_untrusted

if TYPE_CHECKING:
    from meshd.keys import MeshKey

ROOTS_MAX = 16  # of one mesh, ever: each may cost a verification per chain that is looked at
SUCCESSION_BYTES_MAX = 288
GRANTS_COUNT_MAX = 65536


@dataclass(frozen=True, slots=True)
class Succession:
    """See the module docstring."""

    number: int
    predecessor: MeshId
    successor: MeshId
    dated: int
    overlap_until: int = 0  # 0 = a seal
    grants: int = 0
    blob: bytes = field(default=b"", repr=False, compare=False)

    @property
    def seal(self) -> bool:
        """Whether the predecessor ends at once, with all that was signed under it."""
        return self.overlap_until == 0


def sign_succession(
    succession: Succession, predecessor: MeshKey, successor: MeshKey, mesh: MeshId
) -> bytes:
    """Return the blob of a succession."""
    assert succession.predecessor == predecessor.id
    assert succession.successor == successor.id
    said: dict[int, object] = {
        1: succession.number,
        2: bytes(succession.predecessor),
        3: bytes(succession.successor),
        4: succession.dated,
    }
    if succession.overlap_until:
        said[5] = succession.overlap_until
    said[6] = succession.grants
    packed = pack(said)
    by_successor = signature(Statement.SUCCESSION, mesh, successor, packed)
    return sign(Statement.SUCCESSION, mesh, predecessor, pack({1: packed, 2: by_successor}))


def open_succession_untrusted(blob: bytes, mesh: MeshId) -> Succession:
    """Return a succession that both its keys have signed, or raise BadPacket.

    The keys are anybody's: whether they are roots of this mesh is for `roots` to say.
    """
    if not SIGNATURE_BYTES < len(blob) <= SUCCESSION_BYTES_MAX:
        raise BadPacket("succession of the wrong length")
    body = blob[SIGNATURE_BYTES:]
    outer = Fields.unpack_untrusted(body, what="succession")
    packed = outer.blob(1, maximum=SUCCESSION_BYTES_MAX)
    by_successor = outer.blob(2, size=SIGNATURE_BYTES)
    outer.done()
    said = Fields.unpack_untrusted(packed, what="succession")
    succession = Succession(
        number=said.uint(1, maximum=ROOTS_MAX - 1),
        predecessor=MeshId(said.blob(2, size=KEY_BYTES)),
        successor=MeshId(said.blob(3, size=KEY_BYTES)),
        dated=wall_untrusted(said, 4),
        overlap_until=wall_untrusted(said, 5, default=0),
        grants=said.uint(6, maximum=GRANTS_COUNT_MAX),
        blob=blob,
    )
    said.done()
    if succession.number == 0 or succession.predecessor == succession.successor:
        raise BadPacket("succession leads nowhere")
    if (succession.number == 1) != (succession.predecessor == mesh):
        raise BadPacket("succession is misnumbered")
    verify_signature_untrusted(
        Statement.SUCCESSION, mesh, succession.predecessor, body, blob[:SIGNATURE_BYTES]
    )
    verify_signature_untrusted(
        Statement.SUCCESSION, mesh, succession.successor, packed, by_successor
    )
    return succession


def succession_fact(succession: Succession, mesh: MeshId) -> Fact:
    """Return the fact that an opened succession is: one for each number."""
    number = succession.number.to_bytes(1, "big")
    key = fingerprint(mesh, number, size=FACT_KEY_BYTES, person=b"meshd.succession")
    return Fact(FactKind.SUCCESSION, key, succession.number, succession.blob)
