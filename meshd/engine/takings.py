"""A newcomer that takes a name or an address from a member that had it: said, and on whose word.

    web  100.64.7.7  a member for a year          web-2  moves
                                           ──▶
    web  100.64.7.7  never heard of before        web    100.64.7.7    let in by m: told here

Whoever may admit may pin any address to whom it lets in, and name it as it likes; what is contested
goes by the date of admission, which the one that admits writes.  After a partition it may be
as it should be.  If not, what undoes it is to revoke the one that let the newcomer in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.keys import MeshId

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address

    from meshd.engine.engine import Engine
    from meshd.keys import NodeId


class Takings:
    """See the module docstring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def joined(self, node: NodeId) -> None:
        """Look whose name a newcomer has."""
        ledger = self._engine.ledger
        standing = ledger.standing(node)
        if standing is None or ledger.name_owner(standing.credential.name) != node:
            return
        name = standing.credential.name
        for other, shown in ledger.names().items():
            if shown.startswith(f"{name}-") and other != node:
                held = ledger.standing(other)
                if held is not None and held.credential.name == name:
                    self._tell("name-taken-over", node, other, f"the name '{name}'", name=name)
                    return

    def resolved(
        self, before: Mapping[NodeId, IPv4Address], after: Mapping[NodeId, IPv4Address]
    ) -> None:
        """Look whose addresses newcomers have: of all members, a moment ago and at present."""
        newcomers = after.keys() - before.keys()
        if not newcomers or not before:
            return
        holders = {address: node for node, address in before.items()}
        for node in sorted(newcomers):
            address = after[node]
            other = holders.get(address)
            if other is not None and self._engine.ledger.admitted(other):
                self._tell(
                    "address-taken-over",
                    node,
                    other,
                    f"the address {address}",
                    address=str(address),
                )

    def _tell(self, event: str, node: NodeId, other: NodeId, what: str, **details: str) -> None:
        engine = self._engine
        standing = engine.ledger.standing(node)
        assert standing is not None, "it has a name, or an address"
        issuer = standing.credential.issuer
        by = "the mesh key" if isinstance(issuer, MeshId) else engine.called(issuer)
        engine.notice(
            event,
            node,
            f"is new, let in by {by}, and has {what} from now on, which {engine.name_of(other)} "
            f"had: if that is wrong, `meshctl revoke --cascade` whoever let it in",
            other=engine.name_of(other),
            issuer=by,
            pinned=standing.pinned,
            **details,
        )
