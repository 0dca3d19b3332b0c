"""Every member, what is believed about it, and what follows when a belief changes.

Everything that is said about anybody's liveness, by whatever message, passes
`merge_claim_untrusted`, so that no two ways can disagree.  The rules by which claims are judged are
in `claim`; here is what is done about the outcome: suspicions begin and end, news is queued for
others, the index is kept true, and what is shown changes with an event.

Rule 1: a claim is looked at only if its subject and its signer are members, and its signature is
        verified only if it would change something.

Rule 2: only a node that has heard a member in this run accuses it: one who never reached it knows
        nothing of its health.  Where nobody here has heard it, there is nothing to lose, and one
        accusation is believed at once.

Rule 3: an accusation of ourselves is answered by a higher incarnation, if it names the one we have.
        Our own word from an earlier run at a higher incarnation is answered likewise.

Rule 4: what we hear ourselves outweighs what others say.  A countdown that runs out although the
        suspect was heard since it began is begun anew; but not for ever, as there are members
        that cannot refute, and all are to agree.

Rule 5: whoever passes on an accusation that has been refuted has missed the refutation, and is
        told.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from meshd.gossip.cause import Cause, CauseKind, cause_of
from meshd.gossip.claim import (
    INCARNATION_MAX,
    Belief,
    MemberState,
    peek_claim_untrusted,
    sign_accusation,
    sign_claim,
    verify_claim_untrusted,
)
from meshd.gossip.events import (
    Believed,
    Event,
    Heard,
    IncarnationRaised,
    MemberJoined,
    MemberRemoved,
    MemberStateChanged,
)
from meshd.gossip.index import belief_digest
from meshd.gossip.member import UNKNOWN_INCARNATION, Member, belief_version
from meshd.gossip.member_table import LIVE
from meshd.gossip.rtt import RecentRoundTrips, allowance, measured
from meshd.gossip.suspicion import start_suspicion
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import CLAIM_ITEM, Item

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

    from meshd.gossip.broadcast import BroadcastKey, BroadcastQueue
    from meshd.gossip.claim import Claim, Testimony
    from meshd.gossip.config import GossipConfig
    from meshd.gossip.health import Health
    from meshd.gossip.index import Index
    from meshd.gossip.member_table import MemberTable
    from meshd.gossip.timers import Timers
    from meshd.gossip.wire import Message
    from meshd.keys import MeshId, NodeId, NodeKey

EXTENSIONS_MAX = 3  # of one countdown (rule 4)


class Membership:
    """See the module docstring.  Part of a `Node`, whose index, queue and timers it shares."""

    def __init__(
        self,
        key: NodeKey,
        mesh: MeshId,
        *,
        config: GossipConfig,
        rng: Random,
        table: MemberTable,
        index: Index,
        broadcasts: BroadcastQueue,
        timers: Timers,
        health: Health,
        incarnation: int,
    ) -> None:
        self._key = key
        self._mesh = mesh
        self._config = config
        self._rng = rng
        self._index = index
        self._broadcasts = broadcasts
        self._timers = timers
        self._health = health
        self._members = table
        self._held: dict[bytes, Claim] = {}  # members' own words, by blob: nothing is new in them
        self._suspected: dict[NodeId, None] = {}
        self._fresh: dict[NodeId, None] = {}
        self._removed: dict[NodeId, None] = {}
        self.round_trips = RecentRoundTrips()  # of all members together
        self.events: deque[Event] = deque()
        self.claims_verified = 0
        self.claims_dropped = 0
        self.refutations = 0
        self.suspicions = 0
        self.deaths = 0
        self.own = self._claim_self(incarnation, MemberState.ALIVE)

    # Reading

    @property
    def id(self) -> NodeId:
        """Who we are."""
        return self._key.id

    @property
    def left(self) -> bool:
        """Whether we have said that we leave."""
        return self.own.state is MemberState.LEFT

    @property
    def live(self) -> tuple[NodeId, ...]:
        """The members shown alive or suspect: those that can be told something."""
        return self._members.live

    @property
    def lonely(self) -> bool:
        """Whether there is nobody to tell anything."""
        return not self._members.live

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members)

    def get(self, node: NodeId) -> Member | None:
        """Return a member."""
        return self._members.get(node)

    @property
    def table(self) -> MemberTable:
        """All members."""
        return self._members

    def silent_count(self) -> int:
        """How many members are neither live nor gone on purpose."""
        return self._members.silent

    def claims_about(self, node: NodeId) -> list[Item]:
        """Return the claims that make up the belief about a node, ourselves included."""
        if node == self.id:
            return [Item(CLAIM_ITEM, self.own.blob)]
        member = self._members.get(node)
        if member is None or member.belief is None:
            return []
        claims = (member.belief.own, *self._accusations(member.belief))
        return [Item(CLAIM_ITEM, claim.blob) for claim in claims]

    def claims_for(self, node: NodeId) -> list[Item]:
        """Return what a member must be told first: who we are, and what is held against it.

        A suspect that is told first can refute before others believe it dead (Lifeguard's buddy
        system); one that came back with an old incarnation learns of the newer one.
        """
        member = self._members.get(node)
        assert member is not None
        items = []
        if member.knows < self.own.incarnation or self.left:
            items.append(Item(CLAIM_ITEM, self.own.blob))
        if member.belief is not None:
            belief = member.belief
            if member.claims < belief.incarnation or belief.own.state is MemberState.LEFT:
                items.append(Item(CLAIM_ITEM, belief.own.blob))
            # One that is dead already hears of it in any case: that is how partitions merge.
            stapled = belief.accusations[: max(self._config.staples, int(member.dead))]
            items += [Item(CLAIM_ITEM, claim.blob) for claim in stapled]
        return items

    # Who is a member

    def refresh(self, admitted: Sequence[NodeId], now: float) -> None:
        """Take in which nodes are members."""
        present = dict.fromkeys(admitted)
        for node in [member.node for member in self._members if member.node not in present]:
            self.remove(node, now)
        for node in admitted:
            self.add(node, now)

    def add(self, node: NodeId, now: float) -> None:
        """Begin to know a member."""
        if node == self.id or self._members.get(node) is not None:
            return
        self._members.add(Member(node, silent_since=now))
        self.events.append(MemberJoined(node))
        if not self.left:
            delay = self._config.first_contact_timeout * (1.0 + 0.25 * self._rng.random())
            self._timers.set(TimerKind.CONTACT, now + delay, node)

    def remove(self, node: NodeId, now: float) -> None:
        """Forget a member, and what it has said about others."""
        member = self._members.get(node)
        if member is None:
            return
        self._members.remove(node)
        self._removed[node] = None
        self._index.remove(CLAIM_ITEM, node)
        self._timers.cancel(TimerKind.CONTACT, node)
        self._timers.cancel(TimerKind.SUSPICION, node)
        if member.belief is not None:
            self._held.pop(member.belief.own.blob, None)
            self._broadcasts.drop((CLAIM_ITEM, node, b""))
            self._drop_accusations(member.belief)
        for other in self._members:
            self._retract(other, node, now)
        self.events.append(MemberRemoved(node))

    # What is said

    def merge_claim_untrusted(
        self, blob: bytes, now: float, *, relay: bool
    ) -> tuple[Claim, Claim | None]:
        """Judge a claim.  Return it, and what its bearer should hear, if that is news to it.

        If it is news to us it is passed on, unless `relay` is false: then only if it revises
        something.
        """
        held = self._held.get(blob)
        if held is not None:
            self._came_back(held)
            return held, None
        claim = peek_claim_untrusted(blob)
        if claim.subject == self.id:
            return claim, self.own if self._answer(claim) else None
        member = self._members.get(claim.subject)
        if member is None or not (claim.signer == self.id or self._members.get(claim.signer)):
            self.claims_dropped += 1
            return claim, None
        belief = self._merged(member, claim)
        if belief is not None and belief != member.belief:
            verify_claim_untrusted(claim, self._mesh)
            self.claims_verified += 1
            first = member.belief is None
            self._believe(member, belief, claim, now, relay=relay or not first)
        elif not claim.by_subject and claim.incarnation < member.incarnation:
            assert member.belief is not None
            return claim, member.belief.own  # rule 5
        else:
            self._came_back(claim)
        return claim, None

    def hear(self, member: Member, message: Message, now: float) -> bool:
        """Note that a message came through a member's tunnel.  Return whether that is news."""
        member.heard_at = now
        member.claims = message.incarnation
        member.knows = UNKNOWN_INCARNATION if message.known is None else message.known
        if member.heard or member.state is MemberState.LEFT:
            return False
        before = member.shown
        member.heard = True
        member.contact_at = now
        self.events.append(Heard(member.node))
        self._show(member, before, Cause(CauseKind.HEARD))
        return True

    def measured(self, member: Member, sample: float, *, typical: bool) -> None:
        """Take in how long an ack of a member's took, and whether it is typical of all members."""
        member.round_trip = measured(member.round_trip, sample)
        if typical:
            self.round_trips.add(sample)

    def allowance(self, node: NodeId) -> float:
        """Return how long an ack of a member's may take."""
        member, config = self._members.get(node), self._config
        return allowance(
            member.round_trip if member is not None else None,
            self.round_trips,
            minimum=config.probe_timeout_min,
            maximum=config.probe_timeout,
        )

    def accuse(self, node: NodeId, testimony: Testimony, now: float) -> Claim | None:
        """Say that a member did not answer us, unless that was said or means nothing."""
        member = self._members.get(node)
        if member is None or member.belief is None or not member.heard:
            return None
        if member.state not in LIVE or member.belief.accused_by(self.id) is not None:
            return None
        self.suspicions += 1
        claim = sign_accusation(node, member.incarnation, testimony, key=self._key, mesh=self._mesh)
        self._believe(member, member.belief.add(claim), claim, now, relay=True)
        return claim

    def take_suspected(self) -> list[NodeId]:
        """Return who has become suspect since this was last asked."""
        suspected, self._suspected = list(self._suspected), {}
        return suspected

    def take_fresh(self) -> list[NodeId]:
        """Return who has become live since this was last asked."""
        fresh, self._fresh = list(self._fresh), {}
        return fresh

    def take_removed(self) -> list[NodeId]:
        """Return who was removed since this was last asked."""
        removed, self._removed = list(self._removed), {}
        return removed

    def conclude_dead(self, node: NodeId, now: float) -> None:
        """Act on a suspicion that has run out."""
        member = self._members.get(node)
        if member is None or member.belief is None or member.suspicion is None:
            return
        suspicion = member.suspicion
        if member.heard_at > suspicion.started_at and suspicion.extensions < EXTENSIONS_MAX:
            member.suspicion = suspicion.extended(now)  # rule 4
            self._suspect(member, now)
            self._suspected[node] = None
            return
        before = member.shown
        accusers = tuple(claim.signer for claim in member.belief.accusations)
        silent_for = now - member.suspicion.started_at
        member.suspicion = None
        member.dead = True
        member.heard = False
        member.silent_since = now
        member.tries = 0
        self.deaths += 1
        self._put_index(member)
        cause = Cause(CauseKind.UNREFUTED, accusers, silent_for=silent_for)
        self._show(member, before, cause)
        self._contact_in(member, self._config.dead_retry_min, now)

    def postpone(self, node: NodeId, late: float) -> None:
        """Have a countdown begin later, for the time in which we did not run."""
        member = self._members.get(node)
        if member is not None and member.suspicion is not None:
            member.suspicion = member.suspicion.postponed(late)

    def leave(self) -> None:
        """Say that we leave.  It is final for this incarnation."""
        self.own = self._claim_self(self.own.incarnation, MemberState.LEFT)

    # Steps

    def _merged(self, member: Member, claim: Claim) -> Belief | None:
        if member.belief is not None:
            return member.belief.add(claim)
        return Belief(claim) if claim.by_subject else None

    def _believe(
        self,
        member: Member,
        belief: Belief,
        claim: Claim,
        now: float,
        *,
        relay: bool,
    ) -> None:
        before, known = member.shown, member.belief
        member.belief = belief
        if claim.by_subject:
            if known is not None:
                self._held.pop(known.own.blob, None)
            self._held[claim.blob] = claim
        if known is None or known.own.order[:2] != belief.own.order[:2]:
            if known is not None:
                self._drop_accusations(known)
            self._revise(member, known, now)
        elif claim.by_subject:
            pass  # another encoding of what it has said before
        elif member.heard and not member.dead:
            self._suspect(member, now)
        else:
            member.dead = True  # rule 2
        if relay and (claim.by_subject or not self._enough(member, claim)):
            self._broadcast(claim)
        self._put_index(member)
        self._show(member, before, cause_of(claim, known))

    def _revise(self, member: Member, known: Belief | None, now: float) -> None:
        """Take in a member's own newer word."""
        member.suspicion = None
        self._timers.cancel(TimerKind.SUSPICION, member.node)
        was_dead, member.dead = member.dead, False
        assert member.belief is not None
        if member.belief.own.state is MemberState.LEFT:
            member.heard = False
            member.silent_since = now
            self._timers.cancel(TimerKind.CONTACT, member.node)
        elif was_dead and not member.heard:
            # Its peer entry is still there, so that the path can be tried at once.
            member.silent_since = now
            stagger = self._config.contact_stagger * self._rng.random()
            self._contact_in(member, stagger, now)
        elif known is not None and known.own.state is MemberState.LEFT:
            member.silent_since = now
            self._contact_in(member, self._config.first_contact_timeout, now)

    def _suspect(self, member: Member, now: float) -> None:
        assert member.belief is not None
        if member.suspicion is None:
            member.suspicion = start_suspicion(
                now,
                members=len(self.live) + 1,
                round_trip=self.round_trips.typical,
                config=self._config,
            )
            self._suspected[member.node] = None
        deadline = member.suspicion.deadline(len(member.belief.accusations))
        self._timers.set(TimerKind.SUSPICION, max(deadline, now), member.node)

    def _retract(self, member: Member, accuser: NodeId, now: float) -> None:
        """Take back what a node that is a member no more has said about another."""
        if member.belief is None or member.belief.accused_by(accuser) is None:
            return
        before = member.shown
        self._broadcasts.drop((CLAIM_ITEM, member.node, accuser))
        member.belief = member.belief.without(accuser)
        if member.suspicion is not None and member.belief.accusations:
            self._suspect(member, now)
        elif member.suspicion is not None:
            member.suspicion = None
            self._timers.cancel(TimerKind.SUSPICION, member.node)
        self._show(member, before, Cause(CauseKind.RETRACTED))

    def _enough(self, member: Member, claim: Claim) -> bool:
        """Whether one more accusation helps nobody."""
        assert member.belief is not None
        if member.dead or claim not in member.belief.accusations:
            return True
        return len(member.belief.accusations) > self._config.confirmations_expected + 1

    def _accusations(self, belief: Belief) -> tuple[Claim, ...]:
        """As many accusations as it takes to convince the doubtful."""
        return belief.accusations[: self._config.confirmations_expected + 1]

    def _answer(self, claim: Claim) -> bool:
        """Refute what is said about ourselves (rule 3)."""
        if self.left or claim.incarnation < self.own.incarnation:
            return False
        if claim.by_subject:
            if claim.order <= self.own.order and claim.state is MemberState.ALIVE:
                return False
        elif claim.incarnation > self.own.incarnation or not self._members.get(claim.signer):
            return False
        if claim.incarnation >= INCARNATION_MAX:
            return False
        verify_claim_untrusted(claim, self._mesh)
        self.claims_verified += 1
        self.refutations += 1
        if not claim.by_subject:
            self._health.refuted()
        self.own = self._claim_self(claim.incarnation + 1, MemberState.ALIVE)
        self.events.append(IncarnationRaised(self.own.incarnation))
        return True

    def _claim_self(self, incarnation: int, state: MemberState) -> Claim:
        claim = sign_claim(incarnation, state, key=self._key, mesh=self._mesh)
        version = belief_version(incarnation, state)
        self._index.put(CLAIM_ITEM, self.id, version, belief_digest(self.id, version))
        self._broadcast(claim)
        return claim

    def _broadcast(self, claim: Claim) -> None:
        self._broadcasts.put(_broadcast_key(claim), Item(CLAIM_ITEM, claim.blob))

    def _came_back(self, claim: Claim) -> None:
        self._broadcasts.came_back(_broadcast_key(claim), claim.blob, members=len(self) + 1)

    def _drop_accusations(self, belief: Belief) -> None:
        for accusation in belief.accusations:
            self._broadcasts.drop(_broadcast_key(accusation))

    def _put_index(self, member: Member) -> None:
        version = member.version
        digest = belief_digest(member.node, version)
        self._index.put(CLAIM_ITEM, member.node, version, digest)

    def _contact_in(self, member: Member, delay: float, now: float) -> None:
        member.retry_min = self._config.dead_retry_min
        if not self.left:
            self._timers.set(TimerKind.CONTACT, now + delay, member.node)

    def _show(
        self,
        member: Member,
        before: MemberState,
        cause: Cause,
    ) -> None:
        live = member.state in LIVE
        if live != member.live:
            member.live = live
            self.events.append(Believed(member.node, live))
        after = member.shown
        if after == before:
            return
        self._members.shown_changed(member.node, before, after)
        if after in LIVE:
            if before not in LIVE:
                self._fresh[member.node] = None
            member.tries = 0
            self._timers.cancel(TimerKind.CONTACT, member.node)
        self.events.append(
            MemberStateChanged(member.node, before, after, member.incarnation, cause)
        )


def _broadcast_key(claim: Claim) -> BroadcastKey:
    return CLAIM_ITEM, claim.subject, b"" if claim.by_subject else claim.signer
