"""Revocations: who is out, for good.

A revocation carries its signer's chain, so it can be judged before anything else about signer or
subject has arrived.  It is signed by the mesh key, or by a member with `admit` that had not
expired at the date it gives.

Revocations may contradict one another, for a signer may itself be revoked.  They are judged
together, never by the order of arrival, so that everybody who holds the same ones agrees:

Rule 1: what the mesh key signs stands.

Rule 2: a revocation without `cascade` puts out its subject and nothing else: what the subject has
        signed stands.  Dates cannot tell what was signed before from what was signed after, for
        they are the signer's own word; who fears for the key of the revoked one must cascade.

Rule 3: with `cascade`, whoever is in on the word of the subject falls, by its chain or by its
        line (`line`), and so do uses of invites that were signed by it or by such.

Rule 4: revocations that were signed by such fall as well, but only if the word against them is
        undisputed: the mesh key's, or that of a signer whom nobody has revoked in turn, nor
        anyone in its chain.  (A revocation that falls by the mesh key disputes nothing.)

        So whoever is revoked can bring nobody back, neither alone nor together with others that
        are: what they sign only ever adds to who is out.  Members that revoke one another are all
        out, and the mesh key has the last word.

Rule 5: a revoked node id stays out as long as a revocation of it stands.  The machine comes back
        under a new node key, and as another member.

Rule 6: the ids that a member has had one after the other (`lineage`) are one: whichever of them is
        revoked, all are.  So nobody escapes a revocation that is under way by a new node key.

Body:

    1 subject     32 bytes                       4 revoked_at  time
    2 signer      32 bytes, absent = mesh key    5 chain       array of credential blobs,
    3 cascade     bool, absent = false                         the signer's; empty for the mesh key
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
    Credential,
    verify_admitter_untrusted,
    verify_root_untrusted,
)
from meshd.trust.fact import FACT_BYTES_MAX, FACT_KEY_BYTES, Fact, FactKind
from meshd.trust.grammar import wall_untrusted
from meshd.trust.line import let_in_by, line_id
from meshd.trust.signed import Statement, sign, split_untrusted, verify_signature_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from meshd.keys import MeshKey, NodeKey
    from meshd.trust.credential import CredentialCache


@dataclass(frozen=True, slots=True)
class Revocation:
    """See the module docstring."""

    subject: NodeId
    signer: MeshId | NodeId
    cascade: bool
    revoked_at: int
    chain: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class OpenedRevocation:
    """A verified revocation with its signer's chain; the mesh key's is empty."""

    revocation: Revocation
    credentials: tuple[Credential, ...]
    # The signer and on whose word it is in, by their short ids; none for the mesh key.
    voices: frozenset[bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        signers = [line_id(link.subject) for link in self.credentials[-1:]]
        voices = frozenset((*signers, *let_in_by(self.credentials)))
        object.__setattr__(self, "voices", voices)

    @property
    def rank(self) -> tuple[bool, int, bytes]:
        """The order in which revocations of one subject are named as the reason it is out."""
        return bool(self.credentials), self.revocation.revoked_at, self.revocation.signer

    @property
    def root(self) -> MeshId | NodeId:
        """The root it is signed under."""
        return self.credentials[0].issuer if self.credentials else self.revocation.signer


class Judgement:
    """What a set of revocations comes to."""

    def __init__(
        self,
        opened: Iterable[OpenedRevocation],
        ids_of: Callable[[NodeId], Iterable[NodeId]] = lambda node: (node,),
    ) -> None:
        """`ids_of` gives all ids of the member that has one: rule 6."""

        def shorts(revocations: Iterable[OpenedRevocation]) -> set[bytes]:
            subjects = [each.revocation.subject for each in revocations]
            return {line_id(node) for subject in subjects for node in ids_of(subject)}

        ranked = sorted(opened, key=lambda opened: opened.rank)
        by_mesh = [each for each in ranked if not each.credentials]
        undone = shorts(each for each in by_mesh if each.revocation.cascade)
        by_members = [
            each for each in ranked if each.credentials and undone.isdisjoint(each.voices)
        ]
        disputed = shorts((*by_mesh, *by_members))
        undone |= shorts(
            each
            for each in by_members
            if each.revocation.cascade and disputed.isdisjoint(each.voices)
        )
        standing = [each for each in by_members if undone.isdisjoint(each.voices)]
        self._against: dict[NodeId, Revocation] = {}
        self._cascading: dict[NodeId, Revocation] = {}
        self._cascading_lines: dict[bytes, Revocation] = {}  # by short id
        for each in (*by_mesh, *standing):
            for node in ids_of(each.revocation.subject):
                self._against.setdefault(node, each.revocation)
                if each.revocation.cascade:
                    self._cascading.setdefault(node, each.revocation)
                    self._cascading_lines.setdefault(line_id(node), each.revocation)

    def against(self, node: NodeId) -> Revocation | None:
        """Return the first standing revocation of a node itself."""
        return self._against.get(node)

    def cascades(self, node: NodeId) -> bool:
        """Whether what a node has let in is out with it."""
        return node in self._cascading

    def standing(self) -> Iterable[Revocation]:
        """Return one standing revocation of each node that is out, a cascading one if there is."""
        return tuple(
            dict.fromkeys(
                self._cascading.get(subject, revocation)
                for subject, revocation in self._against.items()
            )
        )

    def against_chain(self, chain: Sequence[Credential]) -> Revocation | None:
        """Return what a chain falls by: a revocation of its subject, or a cascade of an issuer."""
        direct = self._against.get(chain[-1].subject)
        return direct or self.against_issuers(chain[:-1]) or self._against_lines(chain[-1:])

    def against_issuers(self, issuers: Sequence[Credential]) -> Revocation | None:
        """Return the first cascading revocation of anyone among the subjects of credentials.

        Or of anyone in their lines.  Given a whole chain, that is what a statement by its last
        subject falls by.
        """
        for credential in issuers:
            if credential.subject in self._cascading:
                return self._cascading[credential.subject]
        return self._against_lines(issuers)

    def _against_lines(self, credentials: Sequence[Credential]) -> Revocation | None:
        for credential in credentials:
            for short in credential.line:
                if short in self._cascading_lines:
                    return self._cascading_lines[short]
        return None


def sign_revocation(revocation: Revocation, key: NodeKey | MeshKey, mesh: MeshId) -> bytes:
    """Return the blob of a revocation."""
    assert revocation.signer == key.id
    assert bool(revocation.chain) == isinstance(key.id, NodeId)
    body: dict[int, object] = {1: bytes(revocation.subject)}
    if revocation.chain:
        body[2] = bytes(revocation.signer)
    if revocation.cascade:
        body[3] = True
    body[4] = revocation.revoked_at
    if revocation.chain:
        body[5] = revocation.chain
    return sign(Statement.REVOCATION, mesh, key, pack(body))


def open_revocation_untrusted(
    blob: bytes, mesh: MeshId, cache: CredentialCache
) -> OpenedRevocation:
    """Return a verified revocation, or raise BadPacket."""
    signature, body = split_untrusted(blob, bytes_max=FACT_BYTES_MAX)
    fields = Fields.unpack_untrusted(body, what="revocation")
    signer: MeshId | NodeId
    if fields.has(2):
        signer = NodeId(fields.blob(2, size=KEY_BYTES))
        verify_signature_untrusted(Statement.REVOCATION, mesh, signer, body, signature)
    else:
        signer = verify_root_untrusted(Statement.REVOCATION, mesh, body, signature, cache)
    revocation = Revocation(
        subject=NodeId(fields.blob(1, size=KEY_BYTES)),
        signer=signer,
        cascade=fields.flag(3),
        revoked_at=wall_untrusted(fields, 4),
        chain=fields.blobs(5, count_max=CHAIN_LENGTH_MAX, bytes_max=CREDENTIAL_BYTES_MAX),
    )
    fields.done()
    if isinstance(signer, NodeId):
        credentials = verify_admitter_untrusted(
            revocation.chain, mesh, signer, revocation.revoked_at, cache
        )
        return OpenedRevocation(revocation, credentials)
    if revocation.chain:
        raise BadPacket("mesh key needs no chain")
    return OpenedRevocation(revocation, ())


def revocation_fact(revocation: Revocation, blob: bytes) -> Fact:
    """Return the fact that an opened revocation is."""
    key = revocation_key(revocation)
    return Fact(FactKind.REVOCATION, key, int(revocation.cascade), blob)


def revocation_key(revocation: Revocation) -> bytes:
    """Return the key of a revocation's fact: there is one for each subject and signer."""
    return fingerprint(
        revocation.subject, revocation.signer, size=FACT_KEY_BYTES, person=b"meshd.revoked"
    )
