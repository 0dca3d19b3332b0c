"""What goes into the plan: each member with what the parts of the engine know of it.

    ledger     who it is, its WireGuard key ┐
    presence   its addresses                │
    preshared  the key it shares with us    ├──▶ PlannedMember ──▶ make_plan ──▶ DesiredState
    gossip     whether it is alive          │
    path       where it is reached          ┘

Rule 1: members that have left have no tunnel (`reactions`), and for a moment nobody has one after
        a clone of this machine has shown up, so that all are made anew (`clones`).

Rule 2: a node that is silent, because another machine is it, plans no peers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.gossip.claim import MemberState
from meshd.plan.plan import PlannedMember, PlannedSelf, make_plan

if TYPE_CHECKING:
    from meshd.engine.engine import Engine
    from meshd.keys import NodeId
    from meshd.plan.plan import DesiredState
    from meshd.trust.standing import Standing

_LIVE = {MemberState.ALIVE, MemberState.SUSPECT}


class Planning:
    """See the module docstring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.key_conflicts: tuple[NodeId, ...] = ()  # members without a tunnel: see the plan

    def desired_state(self) -> DesiredState:
        """Return what the kernel should hold, by all that is known at present."""
        engine = self._engine
        plan = make_plan(
            PlannedSelf(
                mesh=engine.identity.mesh,
                private_key=engine.identity.wireguard_key,
                listen_port=engine.config.listen_port,
                fwmark=engine.config.fwmark,
                ipv4=engine.presence.ipv4,
                ipv4_prefix=engine.identity.ipv4_prefix,
                ipv6=engine.identity.ipv6,
                retired_ipv4=engine.presence.retired,
            ),
            (
                self._planned(node, standing)
                for node, standing in engine.others()
                if not engine.reactions.has_left(node)
                and not engine.clones.silent
                and standing.record.wireguard_key not in engine.clones.removed
            ),
        )
        self.key_conflicts = plan.key_conflicts
        return plan

    def _planned(self, node: NodeId, standing: Standing) -> PlannedMember:
        engine = self._engine
        view = engine.gossip.member(node)
        return PlannedMember(
            node=node,
            admitted_at=standing.admitted_at,
            wireguard_key=standing.record.wireguard_key,
            ipv4=engine.presence.addresses.get(node),
            ipv6=engine.ipv6_of(node),
            preshared_key=engine.preshared.preshared_key(node),
            live=view is not None and view.state in _LIVE,
            endpoint=engine.path.endpoint(node),
            insists=engine.path.insists(node),
            keepalive=engine.path.keepalive(node),
        )
