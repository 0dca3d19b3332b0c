"""Members that go on under another node id, as the others see them; and a copy that does not know.

    succession ─▶ its host may be silent for a moment
    record     ─▶ the peer stays; its IPv6 address is another one; pre-shared keys go over

Rule 1: a member that goes on under another id keeps its peer, its endpoint and its pre-shared keys
        here.  It is neither dead nor new: `member-rekeyed` tells.

Rule 2: between the two runs the host of one that switches says that nobody listens there.  For a
        while after the announcement that is not held against it; silence is, as always.

Rule 3: whoever still comes under the former id is a copy of that machine.  It is refused with the
        succession itself, signed by its own key; a node that is shown one it does not prepare falls
        silent, for it has the WireGuard key of the one that goes on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meshd.engine import events
from meshd.engine.rekeying import SPREAD_TIME
from meshd.errors import BadPacket
from meshd.keys import NodeId
from meshd.trust.fact import FactKind
from meshd.trust.granting import utc
from meshd.trust.node_succession import open_node_succession_untrusted
from meshd.trust.refusal import REFUSAL_TEXT_BYTES_MAX, Refusal, RefusalCode

if TYPE_CHECKING:
    from meshd.engine.engine import Engine
    from meshd.trust.fact import Fact

SWITCH_TIME = 10.0  # of a daemon, to begin anew


class Rekeyed:
    """See the module docstring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._switching: dict[NodeId, float] = {}  # members that have announced it; until when
        self.successor: NodeId | None = None  # another machine goes on as us, under this id

    # The others

    def fact_changed(self, fact: Fact, now: float) -> None:
        """Take note that a member has announced that it is about to."""
        if fact.kind is not FactKind.NODE_SUCCESSION:
            return
        former = self._engine.ledger.lineage.announced(NodeId(fact.key))
        for node, until in list(self._switching.items()):
            if now >= until:
                del self._switching[node]
        if former is not None and self._engine.ledger.admitted(former):
            self._switching[former] = now + SPREAD_TIME + SWITCH_TIME

    def switches(self, node: NodeId, now: float) -> bool:
        """Whether nobody may listen at a member for a moment, because it begins anew."""
        return now < self._switching.get(node, -math.inf)

    def follows(self, node: NodeId) -> bool:
        """Whether a member is one that we knew under another id."""
        return self._engine.ledger.lineage.predecessor(node) is not None

    def took(self, node: NodeId, now: float) -> None:
        """Take a member, before anything else is done about it: it may be one we have already."""
        engine = self._engine
        former = engine.ledger.lineage.predecessor(node)
        if former is not None and former == engine.identity.node:
            self._judge_ourselves()
        elif former is not None and engine.is_member_address(engine.ipv6_of(former)):
            engine.membership.drop(former, now)
            engine.gossip.members_changed(now)

    def dropping(self, former: NodeId) -> None:
        """Take that a node is no member any more: it may go on under another id."""
        engine = self._engine
        node = engine.ledger.lineage.in_place_of(former)
        if node is None or not engine.is_member_address(engine.ipv6_of(former)):
            return
        engine.preshared.carry(former, node)
        engine.emit(
            events.Notice(
                "member-rekeyed",
                f"has a new node key: it was {former.short} and is {node.short}; name, IPv4 "
                f"address and tunnel stay, its IPv6 address is {engine.ipv6_of(node)}",
                node,
                engine.called(node),
                {"former": str(former), "node": str(node)},
            )
        )

    def refusal(self, node: NodeId) -> Refusal:
        """Return what a succeeded node is told that asks to be let in."""
        lineage = self._engine.ledger.lineage
        present = lineage.present(lineage.in_place_of(node) or node)
        return Refusal(RefusalCode.SUCCEEDED, self._text(node, present)[:REFUSAL_TEXT_BYTES_MAX])

    @property
    def unfounded(self) -> Refusal:
        """What a node is told whose credential lets nobody in here."""
        return Refusal(
            RefusalCode.UNFOUNDED,
            "your credential was signed by a node key that has been replaced, and that does not "
            "vouch for it; rejoin with a token: meshd --token-file FILE",
        )

    def blob_against(self, node: NodeId) -> bytes:
        """Return the succession by which a node is succeeded; empty if none is."""
        succession = self._engine.ledger.lineage.succession_of(node)
        return b"" if succession is None else succession.blob

    # Ourselves, if we are the copy

    def take_untrusted(self, blob: bytes) -> None:
        """Take what is said to be our succession by another machine; count it if it is not."""
        engine, identity = self._engine, self._engine.identity
        try:
            succession = open_node_succession_untrusted(blob, identity.mesh)
        except BadPacket as exc:
            engine.bad_packets[exc.reason] += 1
            return
        if succession.former == identity.node:
            self._stand_back(succession.node)
        else:
            engine.bad_packets["told of a succession that is not ours"] += 1

    @property
    def text(self) -> str:
        """Why this machine is out, and what to do.  Only if it is."""
        assert self.successor is not None
        return self._text(self._engine.identity.node, self.successor)

    def _judge_ourselves(self) -> None:
        successor = self._engine.ledger.lineage.in_place_of(self._engine.identity.node)
        assert successor is not None
        self._stand_back(successor)

    def _stand_back(self, successor: NodeId) -> None:
        if self.successor is not None or successor == self._engine.rekeying.prepared:
            return
        self.successor = successor
        self._engine.clones.fall_silent()
        self._engine.emit(events.Notice("succeeded", self.text, details={"node": str(successor)}))

    def _text(self, node: NodeId, present: NodeId) -> str:
        engine = self._engine
        succession = engine.ledger.lineage.succession_of(node)
        since = "" if succession is None else f" since {utc(succession.dated)}"
        return (
            f"node {node.short} goes on as {engine.name_of(present)} ({present.short}){since}, "
            "with a new node key; a machine that has the former one is a copy: remove its state "
            "directory, and join there with a new token"
        )
