"""Successions of nodes: a machine goes on under another node key, and so under another id.

The former key's word, in every record of the new id:

    date, 8 bytes ‖ former key's signature over {1 former, 2 node, 3 date}

The succession, told once and ahead of these:

    former key's signature ‖ { 1 what is said, 2 the new key's signature over that }

    what is said:
    1 former   32 bytes                3 dated  time
    2 node     32 bytes, the new id    4 kept   digests of 8 bytes, ascending, joined; absent = none

Rule 1: both keys sign.  Neither can somebody who has found a former key go on as another's new id,
        nor a new id claim a member that knows nothing of it.

Rule 2: who is the member follows from the records: see `lineage`.  They prove it by themselves,
        because whoever has been away, or is new, may hear of nobody but the new id at first.

Rule 3: a succession changes nothing but what the former key's signatures are worth.  `kept` lists
        what that key has signed as one with `admit`, and is to go on counting: credentials,
        revocations, withdrawals of invites.  From the record on nothing else does that bears its
        signature, whatever date it bears.

There may be several from one former id, for its machine may have been copied; there is one for each
new id, and of two the later dated is kept, for only who has both keys can sign another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.codec import Fields, pack
from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, SIGNATURE_BYTES, NodeId, fingerprint
from meshd.trust.fact import FACT_BYTES_MAX, Fact, FactKind
from meshd.trust.grammar import WALL_MAX, wall_untrusted
from meshd.trust.signed import Statement, sign, signature, verify_signature_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.keys import MeshId, NodeKey

KEPT_BYTES = 8  # to find another statement with one of the digests takes 2^57 signatures
KEPT_MAX = 96  # what fits into a fact
DATE_BYTES = 8
WORD_BYTES = DATE_BYTES + SIGNATURE_BYTES


@dataclass(frozen=True, slots=True)
class NodeSuccession:
    """See the module docstring."""

    former: NodeId
    node: NodeId
    dated: int
    kept: tuple[bytes, ...] = field(default=(), repr=False)  # of `kept_digest`, ascending
    blob: bytes = field(default=b"", repr=False, compare=False)


def sign_former_word(former: NodeKey, node: NodeId, mesh: MeshId, dated: int) -> bytes:
    """Return the word of a former key that a new id succeeds it."""
    said = _word(former.id, node, dated)
    return dated.to_bytes(DATE_BYTES, "big") + signature(
        Statement.NODE_SUCCESSION, mesh, former, said
    )


def former_word_untrusted(word: bytes, former: NodeId, node: NodeId, mesh: MeshId) -> int:
    """Return the date of a former key's word, or raise BadPacket."""
    if len(word) != WORD_BYTES:
        raise BadPacket("word of a former node key of the wrong length")
    dated = word_date(word)
    if dated > WALL_MAX or former == node:
        raise BadPacket("word of a former node key makes no sense")
    said = _word(former, node, dated)
    verify_signature_untrusted(Statement.NODE_SUCCESSION, mesh, former, said, word[DATE_BYTES:])
    return dated


def word_date(word: bytes) -> int:
    """Return the date of a word that has been verified."""
    return int.from_bytes(word[:DATE_BYTES], "big")


def kept_digest(blob: bytes) -> bytes:
    """Return the KEPT_BYTES by which a succession names a statement."""
    return fingerprint(blob, size=KEPT_BYTES, person=b"meshd.kept")


def sign_node_succession(
    former: NodeKey, node: NodeKey, mesh: MeshId, *, dated: int, kept: Iterable[bytes] = ()
) -> NodeSuccession:
    """Return a signed succession.  `kept` are digests, at most KEPT_MAX, in any order."""
    listed = tuple(sorted(set(kept)))
    assert len(listed) <= KEPT_MAX
    said: dict[int, object] = {1: bytes(former.id), 2: bytes(node.id), 3: dated}
    if listed:
        said[4] = b"".join(listed)
    packed = pack(said)
    by_node = signature(Statement.NODE_SUCCESSION, mesh, node, packed)
    blob = sign(Statement.NODE_SUCCESSION, mesh, former, pack({1: packed, 2: by_node}))
    assert len(blob) <= FACT_BYTES_MAX
    return NodeSuccession(former.id, node.id, dated, listed, blob)


def open_node_succession_untrusted(blob: bytes, mesh: MeshId) -> NodeSuccession:
    """Return a succession that both its keys have signed, or raise BadPacket."""
    if not SIGNATURE_BYTES < len(blob) <= FACT_BYTES_MAX:
        raise BadPacket("node succession of the wrong length")
    body = blob[SIGNATURE_BYTES:]
    outer = Fields.unpack_untrusted(body, what="node succession")
    packed = outer.blob(1, maximum=FACT_BYTES_MAX)
    by_node = outer.blob(2, size=SIGNATURE_BYTES)
    outer.done()
    said = Fields.unpack_untrusted(packed, what="node succession")
    joined = said.blob(4, maximum=KEPT_BYTES * KEPT_MAX) if said.has(4) else b""
    succession = NodeSuccession(
        former=NodeId(said.blob(1, size=KEY_BYTES)),
        node=NodeId(said.blob(2, size=KEY_BYTES)),
        dated=wall_untrusted(said, 3),
        kept=tuple(joined[at : at + KEPT_BYTES] for at in range(0, len(joined), KEPT_BYTES)),
        blob=blob,
    )
    said.done()
    if succession.former == succession.node:
        raise BadPacket("node succession leads nowhere")
    if len(joined) % KEPT_BYTES or list(succession.kept) != sorted(set(succession.kept)):
        raise BadPacket("node succession keeps in disorder")
    verify_signature_untrusted(
        Statement.NODE_SUCCESSION, mesh, succession.former, body, blob[:SIGNATURE_BYTES]
    )
    verify_signature_untrusted(Statement.NODE_SUCCESSION, mesh, succession.node, packed, by_node)
    return succession


def _word(former: NodeId, node: NodeId, dated: int) -> bytes:
    return pack({1: bytes(former), 2: bytes(node), 3: dated})


def node_succession_fact(succession: NodeSuccession) -> Fact:
    """Return the fact that an opened succession is: one for each new id."""
    return Fact(FactKind.NODE_SUCCESSION, bytes(succession.node), succession.dated, succession.blob)
