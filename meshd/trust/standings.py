"""What the facts that are held come to: judgement, invites, the standing of each member, names.

    Held ──▶ Judgement ──▶ InviteState of each invite ──▶ Standing of each member ──▶ Names
    roots ─┘

Rule 1: all of it follows from the facts and the line of roots, and from no clock: expiry is asked
        of a `Standing`, with the time.

Rule 2: each is worked out when it is first asked for, and kept until a fact that bears on it
        comes or goes: the ledger tells (`kept`, `dropped`, `judge_anew`).

Rule 3: a statement counts only as long as its root does, and only as far as no succession of a
        node key speaks against it, be it the statement's own signature or that of one in the chain
        of its signer (`lineage`).

Rule 4: what admits a node is its chain, or, once the root of that has ended, a grant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from meshd.keys import NodeId
from meshd.trust.epoch import OpenedEpoch
from meshd.trust.fact import FactKind
from meshd.trust.grant import OpenedGrant
from meshd.trust.invite_use import InviteState, OpenedUse, resolve_uses
from meshd.trust.names import Named, Names
from meshd.trust.node_succession import NodeSuccession
from meshd.trust.opening import OpenedRecord
from meshd.trust.revocation import Judgement, OpenedRevocation, revocation_key
from meshd.trust.standing import Standing
from meshd.trust.succession import Succession

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meshd.keys import InviteId
    from meshd.trust.credential import Credential
    from meshd.trust.fact import Fact
    from meshd.trust.held import Held
    from meshd.trust.opening import Opened
    from meshd.trust.roots import Roots


class Standings(Mapping[NodeId, Standing]):
    """Every node with a record, ordered by node id, admitted or not.  See the module docstring.

    Facts may come and go while one iterates.
    """

    def __init__(self, held: Held, roots: Roots) -> None:
        self._held = held
        self._lineage = held.lineage
        self.roots = roots  # `judge_anew` after setting another one
        self._judgement: Judgement | None = None
        self._invites: dict[InviteId, InviteState] = {}
        self._standings: dict[NodeId, Standing] = {}
        self._names: Names | None = None

    def __getitem__(self, node: NodeId) -> Standing:
        standing = self.of(node)
        if standing is None:
            raise KeyError(node)
        return standing

    def __iter__(self) -> Iterator[NodeId]:
        return iter(tuple(self._held.order))

    def __len__(self) -> int:
        return len(self._held.order)

    # What bears on it

    def judge_anew(self) -> None:
        """Work out everything again when it is asked for."""
        self._judgement = None
        self._names = None
        self._invites.clear()
        self._standings.clear()

    def kept(self, opened: Opened) -> bool:
        """Take that a fact is held.  Return whether standings known before may be others by it."""
        self._names = None
        match opened:
            case OpenedRecord(invite=invite):
                if invite is not None:
                    self._invites.pop(invite, None)
            case OpenedRevocation():
                self.judge_anew()
                return True
            case OpenedUse(use=use):
                self._invites.pop(use.invite, None)
                nodes = self._held.invited.get(use.invite, {})
                for node in nodes:
                    self._standings.pop(node, None)
                return bool(nodes)
            case OpenedGrant(credential=credential):
                self._standings.pop(credential.subject, None)
                return True
            case NodeSuccession() | Succession() | OpenedEpoch():
                pass  # the first two are followed by `judge_anew`; an epoch bears on no standing
        return False

    def dropped(self, fact: Fact) -> None:
        """Take that a fact is not held any more."""
        self._names = None
        if fact.kind in {FactKind.RECORD, FactKind.GRANT}:
            self._standings.pop(NodeId(fact.key), None)

    # What counts

    def counts(self, chain: Sequence[bytes], opened: Sequence[Credential]) -> bool:
        """Whether a chain would let its node in, if nobody is revoked."""
        return self.roots.trusts(opened[0].issuer) and self._lineage.chain_counts(chain, opened)

    def admitting(self, node: NodeId, chain: tuple[Credential, ...]) -> tuple[Credential, ...]:
        """Return what admits a node of that chain, by rule 4; empty if nothing does."""
        if self.roots.trusts(chain[0].issuer):
            return chain
        grant = self._held.grants.get(node)
        if grant is not None and self.roots.trusts(grant.credential.issuer):
            return (grant.credential,)
        return ()

    def _heeded(self, revocations: Mapping[bytes, OpenedRevocation]) -> Iterator[OpenedRevocation]:
        for key, opened in revocations.items():
            revocation = opened.revocation
            fact = self._held.by_kind[FactKind.REVOCATION].get(key)  # none: a draft
            if (
                self.roots.heeds(opened.root)
                and (fact is None or self._lineage.counts(revocation.signer, fact.blob))
                and self._lineage.chain_counts(revocation.chain, opened.credentials)
            ):
                yield opened

    def _use_counts(self, key: bytes, opened: OpenedUse) -> bool:
        use, lineage = opened.use, self._lineage
        if not (
            self.roots.heeds(opened.credentials[0].issuer)
            and self.judgement().against_issuers(opened.credentials) is None
            and lineage.chain_counts(use.chain, opened.credentials)
        ):
            return False
        # Of uses there may be more than a succession has room for.  One without a member that was
        # let in by the invite would only be there to take it from somebody.
        return use.subject in self._held.invited.get(use.invite, {}) or lineage.counts(
            use.signer, self._held.by_kind[FactKind.INVITE_USE][key].blob
        )

    # What it comes to

    def of(self, node: NodeId) -> Standing | None:
        """Return the standing of one node; None without a record of it."""
        standing = self._standings.get(node)
        if standing is None and (opened := self._held.records.get(node)) is not None:
            standing = self._standings[node] = self.stand(opened)
        return standing

    def judgement(self) -> Judgement:
        """Return what all revocations come to."""
        if self._judgement is None:
            heeded = self._heeded(self._held.revocations)
            self._judgement = Judgement(heeded, self._lineage.ids_of)
        return self._judgement

    def foresee(self, opened: OpenedRevocation) -> Judgement:
        """Return what all revocations would come to together with one more."""
        key = revocation_key(opened.revocation)
        heeded = self._heeded({**self._held.revocations, key: opened})
        return Judgement(heeded, self._lineage.ids_of)

    def invite(self, invite: InviteId) -> InviteState:
        """Return how far an invite has been used, or withdrawn."""
        state = self._invites.get(invite)
        if state is None:
            uses = self._held.uses.get(invite, {})
            state = resolve_uses(
                opened.use for key, opened in uses.items() if self._use_counts(key, opened)
            )
            # Only invites that were used are remembered, so that questions cost no memory.
            if uses:
                self._invites[invite] = state
        return state

    def stand(self, opened: OpenedRecord) -> Standing:
        """Work out the standing that a record gives its node, be it held or only offered."""
        node, lineage = opened.record.node, self._lineage
        admitting = self.admitting(node, opened.credentials)
        chain = admitting or opened.credentials
        credential = chain[-1]
        return Standing(
            record=opened.record,
            credential=credential,
            chain=chain,
            blob=opened.blob,
            revocation=self.judgement().against_chain(chain),
            losing_invite=self._loses_invite(node, credential),
            ended=not admitting,
            succeeded_by=lineage.in_place_of(node),
            unfounded=(
                chain is opened.credentials
                and not lineage.chain_counts(opened.record.chain, opened.credentials)
            ),
        )

    def names(self) -> Names:
        """Return the names of all that are admitted."""
        if self._names is None:
            self._names = Names(
                Named(standing.admitted_at, node, standing.credential.name)
                for node, standing in self.items()
                if standing.admitted
            )
        return self._names

    def _loses_invite(self, node: NodeId, credential: Credential) -> bool:
        """Whether a member's invite, or that of the nearest id before which had one, was lost."""
        for each in self._lineage.line(node):
            opened = self._held.records.get(each)
            if each != node and opened is not None:
                credential = opened.credentials[-1]
            if credential.invite is not None:
                return self.invite(credential.invite).loses(each, credential.admitted_at)
        return False
