"""Epochs of the bootstrap key: which key is the present one.

The key itself is in none of this, only its fingerprint; it is handed over inside the tunnels
(`engine.keyring`).  A change of the key makes every token void that holds the one before.

Rule 1: there is one epoch at a time.  That of the newest root counts, then that of the greatest
        number; so nobody who knows the key of a root that was followed can begin one.

Rule 2: a root signs an epoch, or a member with `admit`.  In either case the maker is the member
        that has the key, and is the first to ask for it.

Rule 3: the upper half of the numbers is for roots alone.  So a member that takes the greatest it
        can, and has no key to show for it, does not keep the mesh from having another one.

Body:

    1 number       uint below 2^32, see rule 3     4 dated  time
    2 fingerprint  32 bytes                        5 chain  array of credential blobs, the
    3 maker        32 bytes, a node                         maker's; empty: a root has signed
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.codec import Fields, pack
from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, MeshId, NodeId, fingerprint
from meshd.trust.credential import (
    CHAIN_LENGTH_MAX,
    CREDENTIAL_BYTES_MAX,
    verify_admitter_untrusted,
    verify_root_untrusted,
)
from meshd.trust.fact import FACT_BYTES_MAX, FACT_KEY_BYTES, Fact, FactKind
from meshd.trust.grammar import wall_untrusted
from meshd.trust.signed import Statement, sign, split_untrusted, verify_signature_untrusted

if TYPE_CHECKING:
    from meshd.keys import BootstrapKey, MeshKey, NodeKey
    from meshd.trust.credential import CredentialCache
    from meshd.trust.roots import Roots

NUMBER_MAX = 2**32 - 1
NUMBER_BY_MEMBERS_MAX = 2**31 - 1
_NUMBER_BITS = 32


@dataclass(frozen=True, slots=True)
class BootstrapEpoch:
    """See the module docstring."""

    number: int
    fingerprint: bytes
    maker: NodeId
    dated: int
    chain: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class OpenedEpoch:
    """A verified epoch, and the root it is signed under."""

    epoch: BootstrapEpoch
    root: MeshId


def bootstrap_fingerprint(key: BootstrapKey, mesh: MeshId) -> bytes:
    """Return what names a bootstrap key without telling anything of it."""
    return fingerprint(mesh, key, size=KEY_BYTES, person=b"meshd.epoch-key")


def sign_epoch(epoch: BootstrapEpoch, key: NodeKey | MeshKey, mesh: MeshId) -> bytes:
    """Return the blob of an epoch."""
    assert bool(epoch.chain) == isinstance(key.id, NodeId)
    body: dict[int, object] = {
        1: epoch.number,
        2: epoch.fingerprint,
        3: bytes(epoch.maker),
        4: epoch.dated,
    }
    if epoch.chain:
        body[5] = epoch.chain
    return sign(Statement.BOOTSTRAP_EPOCH, mesh, key, pack(body))


def open_epoch_untrusted(blob: bytes, mesh: MeshId, cache: CredentialCache) -> OpenedEpoch:
    """Return a verified epoch, or raise BadPacket."""
    signature, body = split_untrusted(blob, bytes_max=FACT_BYTES_MAX)
    fields = Fields.unpack_untrusted(body, what="bootstrap epoch")
    epoch = BootstrapEpoch(
        number=fields.uint(1, maximum=NUMBER_MAX),
        fingerprint=fields.blob(2, size=KEY_BYTES),
        maker=NodeId(fields.blob(3, size=KEY_BYTES)),
        dated=wall_untrusted(fields, 4),
        chain=fields.blobs(5, count_max=CHAIN_LENGTH_MAX, bytes_max=CREDENTIAL_BYTES_MAX),
    )
    fields.done()
    if not epoch.chain:
        root = verify_root_untrusted(Statement.BOOTSTRAP_EPOCH, mesh, body, signature, cache)
        return OpenedEpoch(epoch, root)
    if epoch.number > NUMBER_BY_MEMBERS_MAX:
        raise BadPacket("epoch with a number for roots")
    verify_signature_untrusted(Statement.BOOTSTRAP_EPOCH, mesh, epoch.maker, body, signature)
    credentials = verify_admitter_untrusted(epoch.chain, mesh, epoch.maker, epoch.dated, cache)
    issuer = credentials[0].issuer
    assert isinstance(issuer, MeshId)
    return OpenedEpoch(epoch, issuer)


def epoch_fact(opened: OpenedEpoch, blob: bytes, roots: Roots) -> Fact:
    """Return the fact that an opened epoch is: there is one for the mesh."""
    number = roots.number_of(opened.root)
    assert number is not None
    key = fingerprint(roots.mesh, size=FACT_KEY_BYTES, person=b"meshd.epoch")
    return Fact(FactKind.BOOTSTRAP_EPOCH, key, number << _NUMBER_BITS | opened.epoch.number, blob)
