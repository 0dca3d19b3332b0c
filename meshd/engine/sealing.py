"""Giving the mesh a new root, or a new bootstrap key.

Rule 1: everything is signed first, and handed out as a `Draft`; the daemon has the new keys and the
        node's own new identity on disk before `Engine.publish` lets anybody hear of it.  So a crash
        at any moment leaves either nothing done, or a node that holds the key and goes on.

Rule 2: every admitted member gets a grant, whether it is here or away.

Rule 3: a seal makes a new bootstrap key as well, and signs anew the revocations that stand, for
        nothing else that was signed before it counts any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from meshd.errors import UsageError
from meshd.trust.epoch import BootstrapEpoch, bootstrap_fingerprint, sign_epoch
from meshd.trust.fact import FactKind
from meshd.trust.grant import sign_grant
from meshd.trust.ledger import Ledger
from meshd.trust.revocation import sign_revocation
from meshd.trust.succession import (
    ROOTS_MAX,
    Succession,
    open_succession_untrusted,
    sign_succession,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.engine.engine import Engine
    from meshd.engine.identity import Identity
    from meshd.keys import BootstrapKey, MeshKey, NodeId
    from meshd.trust.fact import Fact

OVERLAP = 30 * 86400  # seconds for which chains from the predecessor are good after a rotation


@dataclass(frozen=True, slots=True)
class Draft:
    """What nobody has heard of yet: see rule 1."""

    identity: Identity  # this node's own from then on
    facts: tuple[Fact, ...] = field(repr=False)
    granted: tuple[NodeId, ...] = ()
    mesh_key: MeshKey | None = None  # the new one, if there is one


def draft_seal(
    engine: Engine, secret_key: MeshKey, mesh_key: MeshKey, bootstrap_key: BootstrapKey, wall: float
) -> Draft:
    """Draft a seal: `secret_key` is what the secret comes to, the other keys are fresh."""
    facts, granted = _succession(engine, secret_key, mesh_key, overlap_until=0, wall=wall)
    facts += _carried_over(engine, mesh_key)
    facts.append(_epoch(engine, bootstrap_key, mesh_key, number=1, wall=wall))
    identity = replace(
        _after(engine, facts),
        bootstrap_key=bootstrap_key,
        older_bootstrap_key=engine.identity.bootstrap_key,
        open_mesh=False,
    )
    return Draft(identity, _opened(identity, facts, wall), granted, mesh_key)


def draft_rotation(
    engine: Engine, old_key: MeshKey, mesh_key: MeshKey, wall: float, *, overlap: int = OVERLAP
) -> Draft:
    """Draft a new mesh key in the place of the one that this node holds.

    Without overlap, nothing that was signed under the old one counts any more: it has leaked.
    """
    overlap_until = int(wall) + overlap if overlap else 0
    facts, granted = _succession(engine, old_key, mesh_key, overlap_until=overlap_until, wall=wall)
    if not overlap:
        facts += _carried_over(engine, mesh_key)
    identity = _after(engine, facts)
    return Draft(identity, _opened(identity, facts, wall), granted, mesh_key)


def draft_bootstrap(
    engine: Engine, bootstrap_key: BootstrapKey, wall: float, *, mesh_key: MeshKey | None
) -> Draft:
    """Draft a new bootstrap key, signed by the mesh key if it is here, else by this node."""
    identity = engine.identity
    epoch = engine.ledger.epoch
    number = 1 if epoch is None else epoch.number + 1
    fact = _epoch(engine, bootstrap_key, mesh_key, number=number, wall=wall)
    after = replace(
        identity, bootstrap_key=bootstrap_key, older_bootstrap_key=identity.bootstrap_key
    )
    return Draft(after, _opened(after, [fact], wall))


def _succession(
    engine: Engine, old_key: MeshKey, mesh_key: MeshKey, *, overlap_until: int, wall: float
) -> tuple[list[tuple[FactKind, bytes]], tuple[NodeId, ...]]:
    ledger, mesh = engine.ledger, engine.identity.mesh
    assert old_key.id == ledger.roots.newest
    if ledger.roots.full:
        raise UsageError(f"this mesh has had {ROOTS_MAX} keys, and cannot have another one")
    members = {node: each for node, each in ledger.members().items() if each.admitted}
    grants = [
        (FactKind.GRANT, sign_grant(standing.chain, mesh_key, mesh, int(wall)))
        for standing in members.values()
    ]
    succession = Succession(
        number=ledger.roots.number + 1,
        predecessor=old_key.id,
        successor=mesh_key.id,
        dated=int(wall),
        overlap_until=overlap_until,
        grants=len(grants),
    )
    blob = sign_succession(succession, old_key, mesh_key, mesh)
    return [(FactKind.SUCCESSION, blob), *grants], tuple(members)


def _carried_over(engine: Engine, mesh_key: MeshKey) -> Iterator[tuple[FactKind, bytes]]:
    """Sign anew the revocations that stand."""
    for standing in engine.ledger.judgement().standing():
        anew = replace(standing, signer=mesh_key.id, chain=())
        yield FactKind.REVOCATION, sign_revocation(anew, mesh_key, engine.identity.mesh)


def _epoch(
    engine: Engine, key: BootstrapKey, mesh_key: MeshKey | None, *, number: int, wall: float
) -> tuple[FactKind, bytes]:
    identity = engine.identity
    epoch = BootstrapEpoch(
        number=number,
        fingerprint=bootstrap_fingerprint(key, identity.mesh),
        maker=identity.node,
        dated=int(wall),
        chain=() if mesh_key is not None else identity.chain,
    )
    blob = sign_epoch(epoch, mesh_key or identity.node_key, identity.mesh)
    return FactKind.BOOTSTRAP_EPOCH, blob


def _opened(
    identity: Identity, signed: list[tuple[FactKind, bytes]], wall: float
) -> tuple[Fact, ...]:
    """Return the facts that these are, to somebody who has heard of nothing else."""
    ledger = Ledger(identity.mesh, roots=identity.roots)
    merges = [ledger.merge_untrusted(kind, blob, wall) for kind, blob in signed]
    return tuple(merge.fact for merge in merges if merge.fact is not None)


def _after(engine: Engine, facts: list[tuple[FactKind, bytes]]) -> Identity:
    """Return our identity with the succession that is the first of these facts."""
    identity = engine.identity
    roots = engine.ledger.roots.grown(open_succession_untrusted(facts[0][1], identity.mesh))
    return replace(identity, pinned=roots)
