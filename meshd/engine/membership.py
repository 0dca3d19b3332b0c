"""Who is a member, and what that means to every part of the engine.

    a fact is new ────────▶ the standing of its node, or of all ──┬─ a member ────▶ taken
    a record is gone ─────▶                                       └─ none (more) ─▶ dropped
    a root has ended ─────▶

Rule 1: the ledger alone says who is a member.  It is asked again about every node that a fact
        may bear on: a record or a grant on one, any other kind of fact on all.

Rule 2: who is taken gets a path, a tunnel by the next plan, and its address here; who is dropped
        loses all of them in every part.  To take or to drop twice changes nothing.

Rule 3: only what is taken has an address: a datagram from any other is from no member.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.engine import events
from meshd.errors import BadPacket
from meshd.keys import NodeId
from meshd.trust.fact import ABOUT_ONE_NODE, FactKind
from meshd.trust.ledger import NO_ROOM, Outcome

if TYPE_CHECKING:
    from ipaddress import IPv6Address

    from meshd.engine.engine import Engine
    from meshd.trust.fact import Fact
    from meshd.trust.standing import Standing


class Membership:
    """See the module docstring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._nodes_by_ipv6: dict[IPv6Address, NodeId] = {}

    def at(self, address: IPv6Address) -> NodeId | None:
        """Return the other member whose overlay address that is, if it is one's."""
        return self._nodes_by_ipv6.get(address)

    # Facts

    def remember(self, fact: Fact, wall: float) -> None:
        """Take a fact that was on disk, before anything is done about any of them."""
        try:
            self._engine.ledger.merge_untrusted(fact.kind, fact.blob, wall)
        except BadPacket as exc:
            # A damaged row: others have it, and whatever verifies is as good as ever.
            self._engine.bad_packets[f"from our own disk: {exc.reason}"] += 1

    def learn(
        self, kind: FactKind, blob: bytes, now: float, wall: float, *, at_once: bool
    ) -> Fact | None:
        """See `Engine.learn`."""
        engine = self._engine
        merge = engine.ledger.merge_untrusted(kind, blob, wall)
        for node in merge.evicted:
            engine.gossip.forget(node, now)
            self.record_evicted(node, now)
        if merge.outcome is Outcome.FULL:
            engine.bad_packets[NO_ROOM] += 1
        if merge.fact is not None and merge.outcome is Outcome.EQUIVOCATION:
            engine.clones.equivocation(NodeId(merge.fact.key), now)
        if merge.fact is not None and merge.changed:
            engine.gossip.fact_added(merge.fact, now, at_once=at_once)
            self.fact_changed(merge.fact, now)
        return merge.fact

    def fact_changed(self, fact: Fact, now: float) -> None:
        """Act on a fact that the ledger has taken in."""
        engine = self._engine
        engine.emit(events.FactChanged(fact))
        engine.following.fact_changed(fact, now)
        engine.rekeyed.fact_changed(fact, now)
        if fact.kind is FactKind.BOOTSTRAP_EPOCH:
            engine.epochs.epoch_changed(now)
        elif fact.kind in ABOUT_ONE_NODE:
            self.take(NodeId(fact.key), now)
        else:
            # A revocation, or an invite that was used twice: anybody's standing may have changed.
            engine.revoking.judge(fact)
            self.take_all(now)
        engine.presence.due = True
        engine.replan()

    def standings_changed(self, now: float) -> None:
        """Act on standings that are others without a new fact: a root has ended."""
        self.take_all(now)
        self._engine.gossip.members_changed(now)
        self._engine.replan()

    def forget(self, node: NodeId, now: float) -> None:
        """Drop what is known of a member, by all ids that it has had."""
        engine = self._engine
        for each in engine.ledger.lineage.line(node):  # or one that it was before would be back
            engine.ledger.forget(each)
            engine.gossip.forget(each, now)
            self._record_gone(each, now)

    def record_evicted(self, node: NodeId, now: float) -> None:
        """Act on a record that the ledger has dropped for another."""
        if self._engine.ledger.standing(node) is None:  # it may have come back since
            self._engine.notice(
                "record-evicted",
                node,
                "is shown no more: the mesh holds as many records as it can, and others rank "
                "before it; `meshctl forget` those that are gone, or revoke whoever made them up",
            )
            self._record_gone(node, now)

    def _record_gone(self, node: NodeId, now: float) -> None:
        self.drop(node, now)
        self._engine.emit(events.RecordForgotten(node))

    # Members

    def take_all(self, now: float) -> None:
        """Act on what the ledger holds of every node."""
        for node in self._engine.ledger.members():
            self.take(node, now)

    def take(self, node: NodeId, now: float) -> None:
        """Act on what the ledger holds of a node."""
        engine = self._engine
        standing = engine.ledger.standing(node)
        engine.invites.standing_changed(node, standing)
        if node == engine.identity.node:
            if standing is not None:
                engine.presence.met_elsewhere(standing, now)
        elif standing is not None and standing.admitted:
            self._take_member(node, standing, now)
        else:
            self.drop(node, now)

    def _take_member(self, node: NodeId, standing: Standing, now: float) -> None:
        engine, record = self._engine, standing.record
        engine.rekeyed.took(node, now)
        self._nodes_by_ipv6[engine.ipv6_of(node)] = node
        engine.clones.heard(record, now)
        engine.carriage.record_changed(record, now)
        engine.path.update_peer(
            node,
            record.candidates,
            sequence=record.sequence,
            now=now,
            record=standing.blob,
            preshared=engine.preshared.add(node, now),
        )
        engine.rotation.member_says(node, record, now)
        engine.relays.member_says(node, record, now)

    def drop(self, node: NodeId, now: float) -> None:
        """Forget a node that is no member any more."""
        engine = self._engine
        engine.rekeyed.dropping(node)
        self._nodes_by_ipv6.pop(engine.ipv6_of(node), None)
        engine.reactions.member_dropped(node)
        engine.carriage.member_dropped(node, now)
        engine.rotation.member_dropped(node)
        engine.relays.member_dropped(node)
        engine.presence.due = True  # the address it had may be free for us, or another
        engine.preshared.remove(node)
        engine.path.remove_peer(node, now)
        engine.replan()
