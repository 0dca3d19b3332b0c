"""All facts a node holds, and what they come to: members, their standing, their names.

    merge_untrusted ──▶ `opening` ──▶ `held`: records, revocations, uses of invites, grants, …
                        verified        │     kept by precedence; records as `places` allow
                                        ▼
                                      `standings`: derived on demand, from the facts alone

Rule 1: a fact is kept or not by its own content and that of the fact it competes with (`fact`),
        never by the order of arrival and never by what others say about its signer.  Ledgers that
        were given the same facts are equal.

Rule 2: therefore the record of a revoked node is kept as well.  It counts for nothing as long as
        the revocation stands, and a revocation that arrives before the record waits for it.

Rule 3: every kind of fact has a bound.  At the bound what is new is refused (`Outcome.FULL`) and
        what is known may still be updated (`held`).  Among records those that rank worse make room
        for those that rank better (`places`), but for that of our own node.

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

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from meshd.keys import SIGNATURE_BYTES, NodeId
from meshd.trust.credential import CredentialCache, UnknownRoot
from meshd.trust.fact import Fact, FactKind
from meshd.trust.grammar import WALL_MAX
from meshd.trust.held import INVITE_USES_MAX, REVOCATIONS_BY_MEMBERS_MAX, REVOCATIONS_MAX, Held
from meshd.trust.listing import Listing
from meshd.trust.opening import OpenedRecord, open_fact_untrusted
from meshd.trust.places import Places, Rank, seat_of, sponsors_of
from meshd.trust.record import open_record_untrusted
from meshd.trust.roots import Roots, Verdict
from meshd.trust.standings import Standings
from meshd.trust.succession import Succession, succession_fact
from meshd.trust.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from meshd.keys import InviteId, MeshId
    from meshd.trust.credential import Credential
    from meshd.trust.epoch import BootstrapEpoch
    from meshd.trust.grant import OpenedGrant
    from meshd.trust.invite_use import InviteState
    from meshd.trust.opening import Opened
    from meshd.trust.revocation import Judgement, OpenedRevocation, Revocation
    from meshd.trust.standing import Standing

MEMBERS_MAX = 65536
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
        self.cache = CredentialCache()
        self.rivals = 0  # successions refused that somebody with an adopted root's key has signed
        self.rival: Succession | None = None  # the last of them
        self._held = Held(
            grants_max=members_max,
            revocations_max=revocations_max,
            revocations_by_members_max=revocations_by_members_max,
            invite_uses_max=invite_uses_max,
        )
        # By blob: what needs no verifying, and what merging it again comes to.
        self._known: dict[tuple[int, bytes], Merge] = {}
        self._waiting = Waiting()
        self.lineage = self._held.lineage
        self._listing = Listing(self._held, own=own)
        self._standings = standings = Standings(self._held, roots or Roots.first(mesh))
        self._places = Places(
            places_max=members_max, seats=lambda: map(seat_of, standings.values())
        )
        self.follow(self.roots)

    @property
    def roots(self) -> Roots:
        """The line of roots from which everything is seen: rule 6."""
        return self._standings.roots

    # Facts

    def merge_untrusted(self, kind: int, blob: bytes, wall: float) -> Merge:
        """Take in a statement, from anywhere and in any order.  Raise BadPacket; nothing changes.

        Merging again what is held costs one look-up.
        """
        del wall  # rule 5; the callers all have it, and the next kind of fact may need it
        known = self._known.get((kind, blob))
        if known is not None:
            return known
        try:
            fact_kind = FactKind(kind)
        except ValueError:
            return Merge(Outcome.UNKNOWN_KIND, None, changed=False)
        try:
            fact, opened = open_fact_untrusted(fact_kind, blob, self.mesh, self.roots, self.cache)
        except UnknownRoot:
            self._waiting.put(kind, blob)
            raise
        if isinstance(opened, Succession):
            return self._merge_succession(fact, opened)
        held = self._held.by_kind[fact_kind].get(fact.key)
        outcome = _outcome(fact, held)
        if held is not None and held.precedence > fact.precedence:
            return Merge(outcome, held, changed=False)
        evicted: tuple[NodeId, ...] = ()
        if isinstance(opened, OpenedRecord):
            has_place, evicted = self._make_room(opened)
            if not has_place:
                return Merge(Outcome.FULL, None, changed=False, evicted=evicted)
        elif held is None and self._held.full(opened, self.roots):
            return Merge(Outcome.FULL, None, changed=False)
        if held is not None:
            self._drop(held)
        self._keep(fact, opened)
        return Merge(outcome, fact, changed=True, evicted=evicted)

    def follow(self, roots: Roots) -> None:
        """See everything from another line of roots: one that has grown, or settled."""
        self.cache.roots = roots.keys
        self._standings.roots = roots
        for fact in self._held.strange(roots):
            self._drop(fact)
        for step in roots.line:
            self._keep(succession_fact(step, self.mesh), step)
        self._judge_anew()
        self._places.rank_anew()

    def take_waiting(self) -> list[tuple[int, bytes]]:
        """Return the statements that waited for a root: merge them again when one is new."""
        return self._waiting.take()

    def facts(self) -> Iterator[Fact]:
        """Give every fact held, ordered by kind and key."""
        return self._held.facts()

    def get(self, kind: int, key: bytes) -> Fact | None:
        """Return the fact held under a key, if any."""
        try:
            return self._held.by_kind[FactKind(kind)].get(key)
        except ValueError:
            return None

    def forget(self, node: NodeId) -> bool:
        """Drop a node's record, and say whether there was one.  It may come back by a merge."""
        fact = self._held.by_kind[FactKind.RECORD].get(bytes(node))
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
        return self._standings

    def standing(self, node: NodeId) -> Standing | None:
        """Return what is known of one node; None without a record of it."""
        return self._standings.of(node)

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
        return MappingProxyType(self._standings.names().shown)

    def name_owner(self, name: str) -> NodeId | None:
        """Return the member a name belongs to."""
        return self._standings.names().owners.get(name)

    def revocation(self, node: NodeId) -> Revocation | None:
        """Return a standing revocation of a node id, whether or not it has a record here."""
        return self.judgement().against(node)

    def judgement(self) -> Judgement:
        """Return what all revocations come to."""
        return self._standings.judgement()

    def foresee(self, opened: OpenedRevocation) -> Judgement:
        """Return what all revocations would come to together with one more."""
        return self._standings.foresee(opened)

    @property
    def epoch(self) -> BootstrapEpoch | None:
        """Which bootstrap key is the present one; None while it is the first."""
        return None if self._held.epoch is None else self._held.epoch.epoch

    def grant(self, node: NodeId) -> OpenedGrant | None:
        """Return what the newest root has granted a node."""
        grant = self._held.grants.get(node)
        newest = grant is not None and grant.credential.issuer == self.roots.newest
        return grant if newest else None

    def granted(self) -> int:
        """Return how many nodes the newest root has granted something."""
        newest = self.roots.newest
        return sum(grant.credential.issuer == newest for grant in self._held.grants.values())

    def is_under_newest_root(self, node: NodeId) -> bool:
        """Whether a member would be one if no other root were trusted."""
        standing = self.standing(node)
        if standing is None or not standing.admitted:
            return False
        return standing.chain[0].issuer == self.roots.newest or self.grant(node) is not None

    def has_ended_untrusted(self, record: bytes) -> bool:
        """Whether a record would count for nothing because its root has ended.  Raise BadPacket."""
        opened, credentials = open_record_untrusted(record, self.mesh, self.cache)
        return not self._standings.admitting(opened.node, credentials)

    def successions_since_untrusted(self, record: bytes) -> tuple[bytes, ...]:
        """Return how the newest root follows that of a record.  Raise BadPacket."""
        _, credentials = open_record_untrusted(record, self.mesh, self.cache)
        number = self.roots.number_of(credentials[0].issuer)
        assert number is not None, "the cache knows no others"
        return tuple(step.blob for step in self.roots.line if step.number > number)

    def counts(self, chain: Sequence[bytes], opened: Sequence[Credential]) -> bool:
        """Whether a chain would let its node in, if nobody is revoked."""
        return self._standings.counts(chain, opened)

    def invite(self, invite: InviteId) -> InviteState:
        """Return how far an invite has been used, or withdrawn."""
        return self._standings.invite(invite)

    def invites(self) -> Iterator[InviteId]:
        """Give every invite of which a use or a withdrawal is on record, in no order."""
        return (invite for invite, uses in self._held.uses.items() if uses)

    def admitted_by(self, invite: InviteId) -> tuple[NodeId, ...]:
        """Return those whose credential names an invite, whether or not they are members."""
        return tuple(self._held.invited.get(invite, ()))

    def has_room_for(self, node: NodeId, issuers: Sequence[Credential]) -> bool:
        """Whether a node that is admitted now will find its record and its use kept.

        `issuers` is the chain of who admits it.
        """
        if node in self._held.records:
            return True
        if self._held.uses_full:
            return False
        last = Rank(out=False, admitted_at=WALL_MAX, node=node)
        return self._places.room_for(last, sponsors_of((*issuers, issuers[-1]))) is not None

    def issued(self, credential: bytes) -> None:
        """Take note of a credential that this node has signed for somebody."""
        self._listing.issued(credential)

    def signed_by(self, node: NodeId) -> frozenset[bytes]:
        """Return what a succession of a node has to list (`NodeSuccession.kept`).

        For our own: with what we have just signed, and have not met again in any fact.
        """
        return self._listing.signed_by(node)

    def statistics(self) -> LedgerStatistics:
        """Return counts for metrics."""
        return LedgerStatistics(
            records=len(self._held.records),
            revocations=len(self._held.revocations),
            invite_uses=len(self._held.by_kind[FactKind.INVITE_USE]),
            credentials_cached=len(self.cache),
        )

    # Inside

    def _merge_succession(self, fact: Fact, succession: Succession) -> Merge:
        match self.roots.judge(succession):
            case Verdict.FOLLOWS | Verdict.PRECEDES:
                self.follow(self.roots.grown(succession))
                return Merge(Outcome.NEW, fact, changed=True)
            case Verdict.HELD:
                return Merge(Outcome.KNOWN, fact, changed=False)
            case Verdict.RIVAL:
                self.rivals += 1
                self.rival = succession
                held = self._held.by_kind[FactKind.SUCCESSION].get(fact.key)
                return Merge(Outcome.RIVAL, held, changed=False)
            case Verdict.UNCONNECTED:
                self._waiting.put(fact.kind, fact.blob)
                return Merge(Outcome.UNCONNECTED, None, changed=False)

    def _make_room(self, opened: OpenedRecord) -> tuple[bool, tuple[NodeId, ...]]:
        """Give a record a place if it gets one.  Return whether, and who went for that."""
        node = opened.record.node
        rank, sponsors = seat_of(self._standings.stand(opened))
        leaving = self._places.room_for(rank, sponsors)
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

    def _keep(self, fact: Fact, opened: Opened) -> None:
        self._known[fact.kind, fact.blob] = Merge(Outcome.KNOWN, fact, changed=False)
        if self._held.keep(fact, opened):
            self._judge_anew()
        elif self._standings.kept(opened):
            self._places.outdate()

    def _drop(self, fact: Fact) -> None:
        """Undo `_keep`: see `Held.drop`."""
        del self._known[fact.kind, fact.blob]
        self._held.drop(fact)
        self._standings.dropped(fact)

    def _judge_anew(self) -> None:
        self._standings.judge_anew()
        self._places.outdate()


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
