"""Throwing a member out; and knowing that we are out ourselves.

    operator     this member                      other members                the revoked one
       │ revoke      │ signs, keeps                    │                              │
       │────────────▶│ to all live members at once     │                              │
       │             │────────────────────────────────▶│ keeps                        │
       │             │ the revocation, through the tunnel: 0xFA                       │
       │             │─────────────────────────────────┼─────────────────────────────▶│ says why
       │◀────────────│ drops its peer                  │ drops its peer               │ it is out

Rule 1: the mesh key signs where this node holds it, for its word is the last one.  Else the node's
        own key does, which takes `admit`.

Rule 2: what a revocation comes to is found out before anybody hears of it: the draft is judged
        together with all that the ledger holds.

Rule 3: whoever falls by a revocation is told once by each member that drops it, just before.  One
        that was away is told in the sealed answer to its next request to be let in.

Rule 4: a revocation counts by its signature, not by its bearer.

Rule 5: a node that is out goes on running and tears nothing down, for the mesh key may undo what
        a member has signed.  It says why it is out, and seldom asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.engine import events
from meshd.engine.handover import Handover, mark, split
from meshd.errors import BadPacket
from meshd.keys import MeshId
from meshd.trust.fact import FactKind
from meshd.trust.granting import utc
from meshd.trust.line import let_in_by, line_id
from meshd.trust.refusal import REFUSAL_TEXT_BYTES_MAX, Refusal, RefusalCode
from meshd.trust.revocation import (
    Revocation,
    open_revocation_untrusted,
    revocation_key,
    sign_revocation,
)

if TYPE_CHECKING:
    from meshd.engine.engine import Engine
    from meshd.keys import MeshKey, NodeId
    from meshd.trust.fact import Fact


_AS_ANOTHER = "to come back, start with a new state directory and another token"
_AS_ITSELF = "to come back, start it with a token from another member (--token-file)"


@dataclass(frozen=True, slots=True)
class Draft:
    """A signed revocation that nobody has heard of, and what it would come to."""

    revocation: Revocation
    blob: bytes = field(repr=False)
    changes: bool  # False: the subject is out already, in that very way
    falls: tuple[NodeId, ...]  # members that would be out, perhaps with ourselves
    stays: tuple[NodeId, ...]  # members that were let in through the subject, and would stay


class Revoking:
    """See the module docstring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.revocation: Revocation | None = None  # what puts us out

    # What the operator asks for

    def draft(
        self, subject: NodeId, *, cascade: bool, mesh_key: MeshKey | None, wall: float
    ) -> Draft | None:
        """Sign a revocation and find out what it would come to; None if we have no right to."""
        engine, identity = self._engine, self._engine.identity
        if mesh_key is not None and mesh_key.id != engine.ledger.roots.newest:
            mesh_key = None  # the mesh has another one by now
        if mesh_key is None and not engine.ledger.may_admit(identity.node, wall):
            return None
        key = mesh_key or identity.node_key
        chain = () if mesh_key is not None else identity.chain
        revocation = Revocation(subject, key.id, cascade, int(wall), chain)
        blob = sign_revocation(revocation, key, identity.mesh)
        foreseen = engine.ledger.foresee(
            open_revocation_untrusted(blob, identity.mesh, engine.ledger.cache)
        )
        present = engine.ledger.judgement()
        falls, stays = [], []
        for node, standing in engine.ledger.members().items():
            if not standing.admitted:
                continue
            if foreseen.against_chain(standing.chain) is not None:
                falls.append(node)
            elif line_id(subject) in let_in_by(standing.chain):
                stays.append(node)
        return Draft(
            revocation=revocation,
            blob=blob,
            changes=present.against(subject) is None or (cascade and not present.cascades(subject)),
            falls=tuple(falls),
            stays=tuple(stays),
        )

    # What follows from facts

    def judge(self, fact: Fact | None = None) -> None:
        """Take that others may be out, or we: before tunnels go, for they are told through them."""
        self._judge_ourselves()
        if fact is None or fact.kind is not FactKind.REVOCATION:
            return
        engine = self._engine
        engine.emit(events.EndRest())
        for node, standing in engine.ledger.members().items():
            revocation = standing.revocation
            if revocation is None or not engine.is_member_address(engine.ipv6_of(node)):
                continue  # a member still, or none that we have a tunnel to
            name = standing.credential.name
            engine.emit(
                events.Notice(
                    "member-revoked",
                    self._why(revocation, node),
                    node,
                    name,
                    {"signer": self.signer(revocation), "cascade": revocation.cascade},
                )
            )
            engine.send_overlay(mark(Handover.REVOKED, self._blob_of(revocation)), node)

    def refusal(self, node: NodeId) -> Refusal:
        """Return what a revoked node is told that asks to be let in."""
        revocation = self._against(node)
        assert revocation is not None
        text = (
            f"node {node.short} is not a member of this mesh any more, "
            f"{self._why(revocation, node)}; {self._way_back(revocation, node)}"
        )
        return Refusal(RefusalCode.REVOKED, text[:REFUSAL_TEXT_BYTES_MAX])

    def blob_against(self, node: NodeId) -> bytes:
        """Return the revocation that puts a node out; empty if none does."""
        revocation = self._against(node)
        return b"" if revocation is None else self._blob_of(revocation)

    def signer(self, revocation: Revocation) -> str:
        """Return who has signed a revocation, for people."""
        signer = revocation.signer
        return "the mesh key" if isinstance(signer, MeshId) else self._engine.called(signer)

    # What others tell us

    def receive_handover(self, datagram: bytes, source: NodeId, now: float, wall: float) -> None:
        """Handle what a member says puts us out."""
        del source  # rule 4
        _, blob = split(datagram)
        self.take_untrusted(blob, now, wall)

    def take_untrusted(self, blob: bytes, now: float, wall: float) -> None:
        """Learn a revocation that is said to put us out; count it if it does not."""
        engine = self._engine
        try:
            engine.learn(FactKind.REVOCATION, blob, now, wall)
        except BadPacket as exc:
            engine.bad_packets[exc.reason] += 1
            return
        if self.revocation is None:
            engine.bad_packets["told of a revocation that is not ours"] += 1

    # Ourselves

    @property
    def text(self) -> str:
        """Why we are out, and what to do.  Only if we are."""
        assert self.revocation is not None
        node = self._engine.identity.node
        why, way = self._why(self.revocation, node), self._way_back(self.revocation, node)
        return f"this node is out of the mesh, {why}; {way}"

    def _judge_ourselves(self) -> None:
        engine = self._engine
        judgement = engine.ledger.judgement()
        chain = engine.own_chain
        revocation = (
            judgement.against_chain(chain) if chain else judgement.against(engine.identity.node)
        )
        if revocation == self.revocation:
            return
        self.revocation = revocation
        if revocation is None:
            engine.emit(events.Notice("reinstated", "what put this node out was undone"))
            return
        engine.emit(
            events.Notice(
                "revoked",
                self.text,
                details={
                    "signer": self.signer(revocation),
                    "revoked_at": utc(revocation.revoked_at),
                    "cascade": revocation.cascade,
                },
            )
        )

    # Inside

    def _against(self, node: NodeId) -> Revocation | None:
        standing = self._engine.ledger.standing(node)
        return self._engine.ledger.revocation(node) if standing is None else standing.revocation

    def _blob_of(self, revocation: Revocation) -> bytes:
        fact = self._engine.ledger.get(FactKind.REVOCATION, revocation_key(revocation))
        assert fact is not None, "what the ledger judges by, it holds"
        return fact.blob

    def _why(self, revocation: Revocation, node: NodeId) -> str:
        what = "revoked with all it let in" if revocation.cascade else "revoked"
        text = f"{what} by {self.signer(revocation)} at {utc(revocation.revoked_at)}"
        if self._is_subject(revocation, node):
            return text
        return f"let in through {self._engine.called(revocation.subject)}, {text}"

    def _way_back(self, revocation: Revocation, node: NodeId) -> str:
        """Say what it takes: who is revoked stays out, another's chain can be replaced."""
        return _AS_ANOTHER if self._is_subject(revocation, node) else _AS_ITSELF

    def _is_subject(self, revocation: Revocation, node: NodeId) -> bool:
        """Whether a node itself is revoked, be it under an id that it had before."""
        return node in self._engine.ledger.lineage.ids_of(revocation.subject)
