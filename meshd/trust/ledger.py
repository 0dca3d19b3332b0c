"""All facts a node holds, and what they come to: members, their standing, their names.

    merge_untrusted ──▶ facts (records, revocations, uses of invites,      kept: by precedence
                          │    grants, the epoch of the bootstrap key)
                          │
                          ▼  derived on demand, from the facts alone
                        Judgement ──▶ Standing of each member ──▶ Names
                          (worked out once, until a fact that bears on it changes)

Rule 1: a fact is kept or not by its own content and that of the fact it competes with (`fact`),
        never by the order of arrival and never by what others say about its signer.  Ledgers that
        were given the same facts are equal.

Rule 2: therefore the record of a revoked node is kept as well.  It counts for nothing as long as
        the revocation stands, and a revocation that arrives before the record waits for it.

Rule 3: every kind of fact has a bound.  At the bound what is new is refused (`Outcome.FULL`) and
        what is known may still be updated.  The last quarter of the revocations is for the mesh
        key alone, so that no member can fill the table against it.  Among records those that rank
        worse make room for those that rank better (`places`), but for that of our own node.

Rule 4: two records of one node with one sequence number and different bodies are proof of two
        machines with the same key.  The one of greater precedence is kept, everywhere, and the
        outcome says EQUIVOCATION.

Rule 5: no clock takes part in any of this.  Expiry is asked of a `Standing`, with the time.

Rule 6: all of it is seen from one line of `roots`, which ledgers that agree have in common.  A
        succession that follows is adopted here and now; one that contradicts an adopted one is
        refused (`Outcome.RIVAL`) whatever it says.  What is signed under a root that is not known
        yet waits until it is (`take_waiting`).  A record under a root that has ended is kept, and
        counts only with a grant for its node, and by that (`Standing.ended`).

Rule 7: which ids are one member follows from the facts held (`lineage`), ahead of all judgement.
"""

from __future__ import annotations

import bisect
import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from meshd.keys import SIGNATURE_BYTES, NodeId
from meshd.trust.credential import CredentialCache, UnknownRoot
from meshd.trust.epoch import OpenedEpoch, epoch_fact, open_epoch_untrusted
from meshd.trust.fact import Fact, FactKind
from meshd.trust.grammar import WALL_MAX
from meshd.trust.grant import OpenedGrant, grant_fact, open_grant_untrusted
from meshd.trust.invite_use import (
    InviteState,
    OpenedUse,
    open_invite_use_untrusted,
    resolve_uses,
    use_fact,
)
from meshd.trust.lineage import Claim, Lineage
from meshd.trust.names import Named, Names
from meshd.trust.node_succession import (
    NodeSuccession,
    kept_digest,
    node_succession_fact,
    open_node_succession_untrusted,
    word_date,
)
from meshd.trust.places import Places, Rank, seat_of, sponsors_of
from meshd.trust.record import open_record_untrusted, record_fact
from meshd.trust.revocation import (
    Judgement,
    OpenedRevocation,
    open_revocation_untrusted,
    revocation_fact,
    revocation_key,
)
from meshd.trust.roots import Roots, Verdict
from meshd.trust.standing import Standing
from meshd.trust.succession import open_succession_untrusted, succession_fact
from meshd.trust.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meshd.keys import InviteId, MeshId
    from meshd.trust.credential import Credential
    from meshd.trust.epoch import BootstrapEpoch
    from meshd.trust.record import Record
    from meshd.trust.revocation import Revocation
    from meshd.trust.succession import Succession

MEMBERS_MAX = 65536
REVOCATIONS_MAX = 8192
REVOCATIONS_BY_MEMBERS_MAX = REVOCATIONS_MAX * 3 // 4
INVITE_USES_MAX = 65536
ISSUED_KEPT_MAX = 16


NO_ROOM = "no room for another statement of its kind"  # how FULL is counted


class Outcome(enum.StrEnum):
    """What became of a statement.  The values are metric labels."""

    NEW = "new"
    UPDATED = "updated"
    KNOWN = "known"  # held already
    STALE = "stale"  # one of greater precedence is held
    EQUIVOCATION = "equivocation"  # rule 4
    FULL = "full"  # rule 3
    RIVAL = "rival-succession"  # rule 6
    UNCONNECTED = "unconnected"  # a succession between roots that are not known; so far
    UNKNOWN_KIND = "unknown-kind"  # of a later version; neither kept nor anyone's fault


class Merge(NamedTuple):
    """The result of merging one statement."""

    outcome: Outcome
    fact: Fact | None  # what is held under its key from here on, if anything is
    changed: bool  # whether that is this very statement, and was not held before: pass it on
    evicted: tuple[NodeId, ...] = ()  # whose records were dropped: there was no place for them


@dataclass(frozen=True, slots=True)
class LedgerStatistics:
    """Counts for metrics."""

    records: int
    revocations: int
    invite_uses: int
    credentials_cached: int


@dataclass(frozen=True, slots=True)
class _OpenedRecord:
    record: Record
    credentials: tuple[Credential, ...]
    blob: bytes


_Opened = _OpenedRecord | OpenedRevocation | OpenedUse | OpenedGrant | OpenedEpoch | NodeSuccession


class Ledger:
    """See the module docstring.

    `cache` may be used by others that open statements of this mesh.
    """

    def __init__(
        self,
        mesh: MeshId,
        *,
        own: NodeId | None = None,
        roots: Roots | None = None,
        members_max: int = MEMBERS_MAX,
        revocations_max: int = REVOCATIONS_MAX,
        revocations_by_members_max: int = REVOCATIONS_BY_MEMBERS_MAX,
        invite_uses_max: int = INVITE_USES_MAX,
    ) -> None:
        self.mesh = mesh
        self._own = own
        self._members_max = members_max
        self._places = Places(places_max=members_max)
        self._ranks_known = True  # whether all places are by what is held at present
        self._revocations_max = revocations_max
        self._revocations_by_members_max = revocations_by_members_max
        self._invite_uses_max = invite_uses_max
        self.cache = CredentialCache()
        self.roots = roots or Roots.first(mesh)
        self.rivals = 0  # successions refused that somebody with an adopted root's key has signed
        self.rival: Succession | None = None  # the last of them
        self._waiting = Waiting()
        self._facts: dict[FactKind, dict[bytes, Fact]] = {kind: {} for kind in FactKind}
        # By blob: what needs no verifying, and what merging it again comes to.
        self._held: dict[tuple[int, bytes], Merge] = {}
        self._records: dict[NodeId, _OpenedRecord] = {}
        self._order: list[NodeId] = []  # of `_records`, sorted
        self._invited: dict[InviteId, dict[NodeId, None]] = {}  # whose credential names an invite
        self._revocations: dict[bytes, OpenedRevocation] = {}
        self._revocations_by_members = 0
        self._uses: dict[InviteId, dict[bytes, OpenedUse]] = {}
        self._grants: dict[NodeId, OpenedGrant] = {}
        self._epoch: OpenedEpoch | None = None
        self.lineage = Lineage()
        self._issued: deque[bytes] = deque(maxlen=ISSUED_KEPT_MAX)  # digests, see `signed_by`
        self._judgement: Judgement | None = None
        self._invites: dict[InviteId, InviteState] = {}
        self._standings: dict[NodeId, Standing] = {}
        self._names: Names | None = None
        self.follow(self.roots)

    # Facts

    def merge_untrusted(self, kind: int, blob: bytes, wall: float) -> Merge:
        """Take in a statement, from anywhere and in any order.  Raise BadPacket; nothing changes.

        Merging again what is held costs one look-up.
        """
        del wall  # rule 5; the callers all have it, and the next kind of fact may need it
        known = self._held.get((kind, blob))
        if known is not None:
            return known
        try:
            fact_kind = FactKind(kind)
        except ValueError:
            return Merge(Outcome.UNKNOWN_KIND, None, changed=False)
        if fact_kind is FactKind.SUCCESSION:
            return self._merge_succession_untrusted(blob)
        try:
            fact, opened = self._open_untrusted(fact_kind, blob)
        except UnknownRoot:
            self._waiting.put(kind, blob)
            raise
        held = self._facts[fact_kind].get(fact.key)
        outcome = _outcome(fact, held)
        if held is not None and held.precedence > fact.precedence:
            return Merge(outcome, held, changed=False)
        evicted: tuple[NodeId, ...] = ()
        if isinstance(opened, _OpenedRecord):
            has_place, evicted = self._make_room(opened)
            if not has_place:
                return Merge(Outcome.FULL, None, changed=False, evicted=evicted)
        elif held is None and self._full(opened):
            return Merge(Outcome.FULL, None, changed=False)
        if held is not None:
            self._drop(held)
        self._keep(fact, opened)
        return Merge(outcome, fact, changed=True, evicted=evicted)

    def follow(self, roots: Roots) -> None:
        """See everything from another line of roots: one that has grown, or settled."""
        self.roots = roots
        self.cache.roots = roots.keys
        self._drop_strange()
        for step in roots.line:
            fact = succession_fact(step, self.mesh)
            self._facts[fact.kind][fact.key] = fact
            self._held[fact.kind, fact.blob] = Merge(Outcome.KNOWN, fact, changed=False)
        self._judge_anew()
        self._rank_anew()

    def take_waiting(self) -> list[tuple[int, bytes]]:
        """Return the statements that waited for a root: merge them again when one is new."""
        return self._waiting.take()

    def facts(self) -> Iterator[Fact]:
        """Give every fact held, ordered by kind and key."""
        for kind in FactKind:
            for _, fact in sorted(self._facts[kind].items()):
                yield fact

    def get(self, kind: int, key: bytes) -> Fact | None:
        """Return the fact held under a key, if any."""
        try:
            return self._facts[FactKind(kind)].get(key)
        except ValueError:
            return None

    def forget(self, node: NodeId) -> bool:
        """Drop a node's record, and say whether there was one.  It may come back by a merge."""
        fact = self._facts[FactKind.RECORD].get(bytes(node))
        if fact is None:
            return False
        self._drop(fact)
        self._places.drop(node)
        if self.lineage.claim(node, None):
            self._judge_anew()
        return True

    # What the facts come to

    def members(self) -> Mapping[NodeId, Standing]:
        """Return a live view of every node with a record, ordered by node id, admitted or not."""
        return _Members(self, self._order)

    def standing(self, node: NodeId) -> Standing | None:
        """Return what is known of one node; None without a record of it."""
        standing = self._standings.get(node)
        if standing is not None:
            return standing
        opened = self._records.get(node)
        if opened is None:
            return None
        return self._standings.setdefault(node, self._stand(opened))

    def admitted(self, node: NodeId) -> bool:
        """Whether a node is a member: it has a record, is not revoked, and lost no invite."""
        standing = self.standing(node)
        return standing is not None and standing.admitted

    def may_admit(self, node: NodeId, wall: float) -> bool:
        """Whether a member may admit others at this time."""
        standing = self.standing(node)
        return standing is not None and standing.may_admit(wall)

    def names(self) -> Mapping[NodeId, str]:
        """Return the name each admitted member is shown under; no two are the same."""
        return MappingProxyType(self._named().shown)

    def name_owner(self, name: str) -> NodeId | None:
        """Return the member a name belongs to."""
        return self._named().owners.get(name)

    def revocation(self, node: NodeId) -> Revocation | None:
        """Return a standing revocation of a node id, whether or not it has a record here."""
        return self.judgement().against(node)

    def judgement(self) -> Judgement:
        """Return what all revocations come to."""
        if self._judgement is None:
            self._judgement = Judgement(self._heeded(self._revocations), self.lineage.ids_of)
        return self._judgement

    def foresee(self, opened: OpenedRevocation) -> Judgement:
        """Return what all revocations would come to together with one more."""
        key = revocation_key(opened.revocation)
        heeded = self._heeded({**self._revocations, key: opened})
        return Judgement(heeded, self.lineage.ids_of)

    @property
    def epoch(self) -> BootstrapEpoch | None:
        """Which bootstrap key is the present one; None while it is the first."""
        return None if self._epoch is None else self._epoch.epoch

    def grant(self, node: NodeId) -> OpenedGrant | None:
        """Return what the newest root has granted a node."""
        grant = self._grants.get(node)
        newest = grant is not None and grant.credential.issuer == self.roots.newest
        return grant if newest else None

    def granted(self) -> int:
        """Return how many nodes the newest root has granted something."""
        newest = self.roots.newest
        return sum(grant.credential.issuer == newest for grant in self._grants.values())

    def is_under_newest_root(self, node: NodeId) -> bool:
        """Whether a member would be one if no other root were trusted."""
        standing = self.standing(node)
        if standing is None or not standing.admitted:
            return False
        return standing.chain[0].issuer == self.roots.newest or self.grant(node) is not None

    def has_ended_untrusted(self, record: bytes) -> bool:
        """Whether a record would count for nothing because its root has ended.  Raise BadPacket."""
        opened, credentials = open_record_untrusted(record, self.mesh, self.cache)
        return not self._counting(opened.node, credentials)

    def successions_since_untrusted(self, record: bytes) -> tuple[bytes, ...]:
        """Return how the newest root follows that of a record.  Raise BadPacket."""
        _, credentials = open_record_untrusted(record, self.mesh, self.cache)
        number = self.roots.number_of(credentials[0].issuer)
        assert number is not None, "the cache knows no others"
        return tuple(step.blob for step in self.roots.line if step.number > number)

    def counts(self, chain: Sequence[bytes], opened: Sequence[Credential]) -> bool:
        """Whether a chain would let its node in, if nobody is revoked."""
        return self.roots.trusts(opened[0].issuer) and self.lineage.chain_counts(chain, opened)

    def invite(self, invite: InviteId) -> InviteState:
        """Return how far an invite has been used, or withdrawn."""
        state = self._invites.get(invite)
        if state is None:
            judgement = self.judgement()
            opened_uses = self._uses.get(invite, {})
            state = resolve_uses(
                opened.use
                for key, opened in opened_uses.items()
                if self.roots.heeds(opened.credentials[0].issuer)
                and judgement.against_issuers(opened.credentials) is None
                and self._use_counts(key, opened)
            )
            # Only invites that were used are remembered, so that questions cost no memory.
            if opened_uses:
                self._invites[invite] = state
        return state

    def invites(self) -> Iterator[InviteId]:
        """Give every invite of which a use or a withdrawal is on record, in no order."""
        return (invite for invite, uses in self._uses.items() if uses)

    def admitted_by(self, invite: InviteId) -> tuple[NodeId, ...]:
        """Return those whose credential names an invite, whether or not they are members."""
        return tuple(self._invited.get(invite, ()))

    def has_room_for(self, node: NodeId, issuers: Sequence[Credential]) -> bool:
        """Whether a node that is admitted now will find its record and its use kept.

        `issuers` is the chain of who admits it.
        """
        if node in self._records:
            return True
        if len(self._facts[FactKind.INVITE_USE]) >= self._invite_uses_max:
            return False
        last = Rank(out=False, admitted_at=WALL_MAX, node=node)
        return self._leaving_for(last, sponsors_of((*issuers, issuers[-1]))) is not None

    def statistics(self) -> LedgerStatistics:
        """Return counts for metrics."""
        return LedgerStatistics(
            records=len(self._records),
            revocations=len(self._revocations),
            invite_uses=len(self._facts[FactKind.INVITE_USE]),
            credentials_cached=len(self.cache),
        )

    # Inside

    def _heeded(self, revocations: Mapping[bytes, OpenedRevocation]) -> Iterator[OpenedRevocation]:
        for key, opened in revocations.items():
            revocation = opened.revocation
            fact = self._facts[FactKind.REVOCATION].get(key)  # none: a draft
            if (
                self.roots.heeds(opened.root)
                and (fact is None or self.lineage.counts(revocation.signer, fact.blob))
                and self.lineage.chain_counts(revocation.chain, opened.credentials)
            ):
                yield opened

    def _use_counts(self, key: bytes, opened: OpenedUse) -> bool:
        """Whether a use still counts that a succeeded id may have signed."""
        use, lineage = opened.use, self.lineage
        if not lineage.chain_counts(use.chain, opened.credentials):
            return False
        # Of uses there may be more than a succession has room for.  One without a member that was
        # let in by the invite would only be there to take it from somebody.
        return use.subject in self._invited.get(use.invite, {}) or lineage.counts(
            use.signer, self._facts[FactKind.INVITE_USE][key].blob
        )

    def _judge_anew(self) -> None:
        """Work out everything again when it is asked for."""
        self._judgement = None
        self._ranks_known = False
        self._names = None
        self._invites.clear()
        self._standings.clear()

    def _open_untrusted(self, kind: FactKind, blob: bytes) -> tuple[Fact, _Opened]:
        match kind:
            case FactKind.RECORD:
                record, credentials = open_record_untrusted(blob, self.mesh, self.cache)
                return record_fact(record, blob), _OpenedRecord(record, credentials, blob)
            case FactKind.REVOCATION:
                revocation = open_revocation_untrusted(blob, self.mesh, self.cache)
                return revocation_fact(revocation.revocation, blob), revocation
            case FactKind.INVITE_USE:
                use = open_invite_use_untrusted(blob, self.mesh, self.cache)
                return use_fact(use.use, blob), use
            case FactKind.GRANT:
                grant = open_grant_untrusted(blob, self.mesh, self.roots, self.cache)
                return grant_fact(grant, self.roots), grant
            case FactKind.BOOTSTRAP_EPOCH:
                epoch = open_epoch_untrusted(blob, self.mesh, self.cache)
                return epoch_fact(epoch, blob, self.roots), epoch
            case FactKind.NODE_SUCCESSION:
                followed = open_node_succession_untrusted(blob, self.mesh)
                return node_succession_fact(followed), followed
            case FactKind.SUCCESSION:
                raise AssertionError("these do not compete: see _merge_succession_untrusted")

    def _merge_succession_untrusted(self, blob: bytes) -> Merge:
        succession = open_succession_untrusted(blob, self.mesh)
        fact = succession_fact(succession, self.mesh)
        match self.roots.judge(succession):
            case Verdict.FOLLOWS | Verdict.PRECEDES:
                self.follow(self.roots.grown(succession))
                return Merge(Outcome.NEW, fact, changed=True)
            case Verdict.HELD:
                return Merge(Outcome.KNOWN, fact, changed=False)
            case Verdict.RIVAL:
                self.rivals += 1
                self.rival = succession
                held = self._facts[FactKind.SUCCESSION].get(fact.key)
                return Merge(Outcome.RIVAL, held, changed=False)
            case Verdict.UNCONNECTED:
                self._waiting.put(FactKind.SUCCESSION, blob)
                return Merge(Outcome.UNCONNECTED, None, changed=False)

    def _full(self, opened: _Opened) -> bool:
        match opened:
            case OpenedRevocation(credentials=()):
                return len(self._revocations) >= self._revocations_max
            case OpenedRevocation():
                return (
                    len(self._revocations) >= self._revocations_max
                    or self._revocations_by_members >= self._revocations_by_members_max
                )
            case OpenedUse():
                return len(self._facts[FactKind.INVITE_USE]) >= self._invite_uses_max
            case OpenedGrant(credential=credential):
                # Who knows the key of a root that was followed cannot fill the table against it.
                newest = credential.issuer == self.roots.newest
                return len(self._grants) >= self._members_max // (1 if newest else 2)
            case OpenedEpoch() | _OpenedRecord():
                return False  # there is one epoch; of records see `_make_room`
            case NodeSuccession():
                return not self.lineage.has_room_for(opened)

    def _make_room(self, opened: _OpenedRecord) -> tuple[bool, tuple[NodeId, ...]]:
        """Give a record a place if it gets one.  Return whether, and who went for that."""
        node = opened.record.node
        rank, sponsors = seat_of(self._stand(opened))
        leaving = self._leaving_for(rank, sponsors)
        if leaving is None:
            self._places.drop(node)
            if node == self._own:
                return True, ()
            return False, (node,) if self.forget(node) else ()
        for each in leaving:
            self._places.drop(each)
        gone = tuple(each for each in leaving if each != self._own)
        for each in gone:
            self.forget(each)
        self._places.put(rank, sponsors)
        return True, gone

    def _leaving_for(self, rank: Rank, sponsors: tuple[bytes, ...]) -> tuple[NodeId, ...] | None:
        leaving = self._places.room_for(rank, sponsors)
        if leaving != () and not self._ranks_known:
            self._rank_anew()
            leaving = self._places.room_for(rank, sponsors)
        return leaving

    def _rank_anew(self) -> None:
        self._ranks_known = True
        members = self.members().items()
        self._places.reset([seat_of(each) for node, each in members if node in self._places])

    def _keep(self, fact: Fact, opened: _Opened) -> None:
        self._facts[fact.kind][fact.key] = fact
        self._held[fact.kind, fact.blob] = Merge(Outcome.KNOWN, fact, changed=False)
        self._names = None
        match opened:
            case _OpenedRecord(record=record):
                self._records[record.node] = opened
                bisect.insort(self._order, record.node)
                invite = opened.credentials[-1].invite
                if invite is not None:
                    self._invited.setdefault(invite, {})[record.node] = None
                    self._invites.pop(invite, None)
                if self.lineage.claim(record.node, _claim(opened)):
                    self._judge_anew()
            case OpenedRevocation():
                self._revocations[fact.key] = opened
                self._revocations_by_members += bool(opened.credentials)
                self._judgement = None
                self._ranks_known = False
                self._invites.clear()
                self._standings.clear()
            case OpenedUse(use=use):
                self._uses.setdefault(use.invite, {})[fact.key] = opened
                self._invites.pop(use.invite, None)
                for node in self._invited.get(use.invite, ()):
                    self._standings.pop(node, None)
                    self._ranks_known = False
            case OpenedGrant(credential=credential):
                self._grants[credential.subject] = opened
                self._standings.pop(credential.subject, None)
                self._ranks_known = False
            case OpenedEpoch():
                self._epoch = opened
            case NodeSuccession():
                self.lineage.keep(opened)
                self._judge_anew()

    def _drop(self, fact: Fact) -> None:
        """Undo `_keep`: of a forgotten record, or of what a fact of greater precedence replaces."""
        del self._facts[fact.kind][fact.key]
        del self._held[fact.kind, fact.blob]
        self._names = None
        match fact.kind:
            case FactKind.RECORD:
                self._drop_record(NodeId(fact.key))
            case FactKind.REVOCATION:
                opened = self._revocations.pop(fact.key)
                self._revocations_by_members -= bool(opened.credentials)
            case FactKind.GRANT:
                del self._grants[NodeId(fact.key)]
                self._standings.pop(NodeId(fact.key), None)
            case FactKind.BOOTSTRAP_EPOCH:
                self._epoch = None
            case FactKind.NODE_SUCCESSION:
                self.lineage.drop(NodeId(fact.key))
            case FactKind.INVITE_USE | FactKind.SUCCESSION:
                pass  # `_keep`, or `follow`, replaces it under the same key

    def _drop_strange(self) -> None:
        """Drop what belongs to another line of roots, which a token has led us away from."""
        number_of = self.roots.number_of
        strange = [
            node
            for node, grant in self._grants.items()
            if number_of(grant.credential.issuer) is None
        ]
        for node in strange:
            self._drop(self._facts[FactKind.GRANT][bytes(node)])
        for fact in list(self._facts[FactKind.BOOTSTRAP_EPOCH].values()):
            if self._epoch is not None and number_of(self._epoch.root) is None:
                self._drop(fact)
        for fact in list(self._facts[FactKind.SUCCESSION].values()):
            self._drop(fact)

    def _drop_record(self, node: NodeId) -> None:
        invite = self._records.pop(node).credentials[-1].invite
        del self._order[bisect.bisect_left(self._order, node)]
        self._standings.pop(node, None)
        if invite is not None:
            del self._invited[invite][node]
            if not self._invited[invite]:
                del self._invited[invite]

    def _stand(self, opened: _OpenedRecord) -> Standing:
        counting = self._counting(opened.record.node, opened.credentials)
        chain = counting or opened.credentials
        credential = chain[-1]
        node, lineage = opened.record.node, self.lineage
        return Standing(
            record=opened.record,
            credential=credential,
            chain=chain,
            blob=opened.blob,
            revocation=self.judgement().against_chain(chain),
            losing_invite=self._loses_invite(node, credential),
            ended=not counting,
            succeeded_by=lineage.in_place_of(node),
            unfounded=(
                chain is opened.credentials
                and not lineage.chain_counts(opened.record.chain, opened.credentials)
            ),
        )

    def _loses_invite(self, node: NodeId, credential: Credential) -> bool:
        """Whether a member's invite, or that of the nearest id before which had one, was lost."""
        for each in self.lineage.line(node):
            opened = self._records.get(each)
            if each != node and opened is not None:
                credential = opened.credentials[-1]
            if credential.invite is not None:
                return self.invite(credential.invite).loses(each, credential.admitted_at)
        return False

    def _counting(self, node: NodeId, chain: tuple[Credential, ...]) -> tuple[Credential, ...]:
        """Return what admits a node: its chain, or else a grant; empty if the root has ended."""
        if self.roots.trusts(chain[0].issuer):
            return chain
        grant = self._grants.get(node)
        if grant is not None and self.roots.trusts(grant.credential.issuer):
            return (grant.credential,)
        return ()

    def issued(self, credential: bytes) -> None:
        """Take note of a credential that this node has signed for somebody."""
        self._issued.append(kept_digest(credential))

    def signed_by(self, node: NodeId) -> frozenset[bytes]:
        """Return what a succession of a node has to list (`NodeSuccession.kept`).

        For our own: with what we have just signed, and have not met again in any fact.
        """
        kept = set(self._issued) if node == self._own else set()

        def look(chain: Sequence[bytes], credentials: Sequence[Credential]) -> None:
            for credential, blob in zip(credentials, chain, strict=True):
                if credential.issuer == node:
                    kept.add(kept_digest(blob))

        for record in self._records.values():
            look(record.record.chain, record.credentials)
        for key, revoked in self._revocations.items():
            look(revoked.revocation.chain, revoked.credentials)
            if revoked.revocation.signer == node:
                kept.add(kept_digest(self._facts[FactKind.REVOCATION][key].blob))
        for uses in self._uses.values():
            for key, used in uses.items():
                look(used.use.chain, used.credentials)
                if used.use.signer == node and used.use.subject is None:
                    kept.add(kept_digest(self._facts[FactKind.INVITE_USE][key].blob))
        return frozenset(kept)

    def _named(self) -> Names:
        if self._names is None:
            self._names = Names(
                Named(standing.admitted_at, node, standing.credential.name)
                for node, standing in self.members().items()
                if standing.admitted
            )
        return self._names


class _Members(Mapping[NodeId, Standing]):
    """The nodes of a ledger with their standing.  Merging while iterating is allowed."""

    def __init__(self, ledger: Ledger, order: list[NodeId]) -> None:
        self._ledger = ledger
        self._order = order

    def __getitem__(self, node: NodeId) -> Standing:
        standing = self._ledger.standing(node)
        if standing is None:
            raise KeyError(node)
        return standing

    def __iter__(self) -> Iterator[NodeId]:
        return iter(tuple(self._order))

    def __len__(self) -> int:
        return len(self._order)


def _claim(opened: _OpenedRecord) -> Claim | None:
    former = opened.credentials[-1].succeeds
    return None if former is None else Claim(former, word_date(opened.record.former_word))


def _outcome(fact: Fact, held: Fact | None) -> Outcome:
    if held is None:
        return Outcome.NEW
    if (
        fact.kind is FactKind.RECORD
        and fact.version == held.version
        # One body under two signatures of the same key is odd, but contradicts nothing.
        and fact.blob[SIGNATURE_BYTES:] != held.blob[SIGNATURE_BYTES:]
    ):
        return Outcome.EQUIVOCATION
    return Outcome.UPDATED if fact.precedence > held.precedence else Outcome.STALE
