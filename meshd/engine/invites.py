"""Invites after they were given away: taking one back, and telling whom a double use has put out.

    M1 ── admits W by the invite ──┐                      ┌── W wins: it was used first
                 (neither can hear the other)  ──healed──▶│
    M2 ── admits L by the invite ──┘                      └── L is no member, on every node alike

The ledger decides (`meshd.trust.invite_use`), and the plan drops the loser's tunnel by itself.
Here it is only said: on the loser what to do about it, and on all others that it happened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.engine import events
from meshd.trust.admission import withdraw
from meshd.trust.fact import FactKind
from meshd.trust.refusal import Refusal, RefusalCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.engine.engine import Engine
    from meshd.keys import InviteId, NodeId
    from meshd.trust.invite_use import InviteState
    from meshd.trust.standing import Standing


class Invites:
    """Watches what becomes of invites.  Keeps which losers were told of."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._told: dict[NodeId, InviteId] = {}

    def withdraw(self, invite: InviteId, uses: int, now: float, wall: float) -> InviteState:
        """Sign that an invite admits nobody from now on, tell all, and return what it came to.

        `uses` is how often it could be used, 0 if that is not known.
        """
        engine = self._engine
        identity = engine.identity
        blob = withdraw(
            invite,
            uses=uses,
            key=identity.node_key,
            chain=identity.chain,
            ledger=engine.ledger,
            wall=wall,
        )
        engine.learn(FactKind.INVITE_USE, blob, now, wall)
        engine.emit(
            events.Notice(
                "invite-withdrawn", f"withdrew invite {invite.short}: it admits nobody any more"
            )
        )
        return engine.ledger.invite(invite)

    def standing_changed(self, node: NodeId, standing: Standing | None) -> None:
        """Tell of a node that its invite did not admit after all, once for each invite."""
        invite = None if standing is None else standing.credential.invite
        if standing is None or invite is None or not standing.losing_invite:
            self._told.pop(node, None)
            return
        if self._told.get(node) == invite:
            return
        self._told[node] = invite
        engine = self._engine
        name: str | None = standing.credential.name
        if node == engine.identity.node:
            name, text = None, self.own_loss(standing)
        else:
            text = (
                f"is out: its token {self._why(invite)}; start it with a new token to have it "
                f"back, or `meshctl forget {node.short}`"
            )
        engine.emit(events.Notice("invite-lost", text, node, name))

    def losers(self) -> Iterator[tuple[NodeId, Standing]]:
        """Give every other node that is out because of its invite."""
        me = self._engine.identity.node
        for node in self._told:
            standing = self._engine.ledger.standing(node)
            if node != me and standing is not None and standing.losing_invite:
                yield node, standing

    def own_loss(self, standing: Standing | None) -> str:
        """Say why this node is out because of its invite, and what to do; empty if it is not."""
        if standing is None or not standing.losing_invite:
            return ""
        assert standing.credential.invite is not None
        return f"this node is out: its token {self._why(standing.credential.invite)}; {_WAY_BACK}"

    def refusal(self, standing: Standing) -> Refusal:
        """Return the answer to a node that asks to be let in and is out because of its invite."""
        invite = standing.credential.invite
        assert invite is not None
        spent = self._engine.ledger.invite(invite).spent
        return Refusal(
            RefusalCode.USED if spent else RefusalCode.WITHDRAWN,
            f"your token {self._why(invite)}; {_WAY_BACK}",
        )

    def _why(self, invite: InviteId) -> str:
        engine = self._engine
        state = engine.ledger.invite(invite)
        if not state.spent:
            return "had been withdrawn before it was used"
        winners = [engine.name_of(node) for node in state.winners]
        more = f" and {len(winners) - 1} more" if len(winners) > 1 else ""
        return f"had been used before by {winners[0]}{more}"


_WAY_BACK = "get a new one, and start meshd again with --token-file: name and address stay"
