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
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from meshd.gossip.claim import (
    INCARNATION_MAX,
    Belief,
    MemberState,
    peek_claim_untrusted,
    sign_claim,
    verify_claim_untrusted,
)
from meshd.gossip.events import (
    Event,
    Heard,
    IncarnationRaised,
    MemberJoined,
    MemberRemoved,
    MemberStateChanged,
)
from meshd.gossip.index import belief_digest
from meshd.gossip.member import UNKNOWN_INCARNATION, Member, belief_version
from meshd.gossip.suspicion import start_suspicion
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import CLAIM_ITEM, Item

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

    from meshd.gossip.broadcast import BroadcastQueue
    from meshd.gossip.claim import Claim
    from meshd.gossip.config import GossipConfig
    from meshd.gossip.index import Index
    from meshd.gossip.timers import Timers
    from meshd.gossip.wire import Message
    from meshd.keys import MeshId, NodeId, NodeKey

_LIVE = {MemberState.ALIVE, MemberState.SUSPECT}


class Membership:
    """See the module docstring.  Part of a `Node`, whose index, queue and timers it shares."""

    def __init__(
        self,
        key: NodeKey,
        mesh: MeshId,
        *,
        config: GossipConfig,
        rng: Random,
        index: Index,
        broadcasts: BroadcastQueue,
        timers: Timers,
        incarnation: int,
    ) -> None:
        self._key = key
        self._mesh = mesh
        self._config = config
        self._rng = rng
        self._index = index
        self._broadcasts = broadcasts
        self._timers = timers
        self._members: dict[NodeId, Member] = {}
        self._live: dict[NodeId, None] = {}
        self._live_nodes: tuple[NodeId, ...] | None = None
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
        if self._live_nodes is None:
            self._live_nodes = tuple(self._live)
        return self._live_nodes

    @property
    def lonely(self) -> bool:
        """Whether there is nobody to tell anything."""
        return not self._live

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def get(self, node: NodeId) -> Member | None:
        """Return a member."""
        return self._members.get(node)

    def silent_count(self) -> int:
        """How many members are neither live nor gone on purpose."""
        return sum(member.shown is MemberState.DEAD for member in self._members.values())

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
        member = self._members[node]
        items = []
        if member.knows < self.own.incarnation or self.left:
            items.append(Item(CLAIM_ITEM, self.own.blob))
        if member.belief is not None:
            belief = member.belief
            if member.claims < belief.incarnation or belief.own.state is MemberState.LEFT:
                items.append(Item(CLAIM_ITEM, belief.own.blob))
            items += [Item(CLAIM_ITEM, claim.blob) for claim in self._accusations(belief)]
        return items

    # Who is a member

    def refresh(self, admitted: Sequence[NodeId], now: float) -> None:
        """Take in which nodes are members."""
        present = dict.fromkeys(admitted)
        for node in [node for node in self._members if node not in present]:
            self.remove(node)
        for node in admitted:
            self.add(node, now)

    def add(self, node: NodeId, now: float) -> None:
        """Begin to know a member."""
        if node == self.id or node in self._members:
            return
        self._members[node] = Member(node, silent_since=now)
        self.events.append(MemberJoined(node))
        if not self.left:
            delay = self._config.first_contact_timeout * (1.0 + 0.25 * self._rng.random())
            self._timers.set(TimerKind.CONTACT, now + delay, node)

    def remove(self, node: NodeId) -> None:
        """Forget a member, and what it has said about others."""
        member = self._members.pop(node, None)
        if member is None:
            return
        self._live.pop(node, None)
        self._live_nodes = None
        self._index.remove(CLAIM_ITEM, node)
        self._timers.cancel(TimerKind.CONTACT, node)
        self._timers.cancel(TimerKind.SUSPICION, node)
        if member.belief is not None:
            self._broadcasts.drop((CLAIM_ITEM, node, b""))
            self._drop_accusations(member.belief)
        for other in self._members.values():
            self._retract(other, node)
        self.events.append(MemberRemoved(node))

    # What is said

    def merge_claim_untrusted(self, blob: bytes, now: float, *, relay: bool) -> tuple[Claim, bool]:
        """Judge a claim.  Return it, and whether it was one about ourselves that we refuted.

        If it is news it is passed on, unless `relay` is false: then only if it revises something.
        """
        claim = peek_claim_untrusted(blob)
        if claim.subject == self.id:
            return claim, self._answer(claim)
        member = self._members.get(claim.subject)
        if member is None or (claim.signer != self.id and claim.signer not in self._members):
            self.claims_dropped += 1
            return claim, False
        belief = self._merged(member, claim)
        if belief is not None and belief != member.belief:
            verify_claim_untrusted(claim, self._mesh)
            self.claims_verified += 1
            first = member.belief is None
            self._believe(member, belief, claim, now, relay=relay or not first)
        return claim, False

    def hear(self, member: Member, message: Message) -> bool:
        """Note that a message came through a member's tunnel.  Return whether that is news."""
        member.claims = message.incarnation
        member.knows = UNKNOWN_INCARNATION if message.known is None else message.known
        if member.heard or member.state is MemberState.LEFT:
            return False
        before = member.shown
        member.heard = True
        self.events.append(Heard(member.node))
        self._show(member, before, "heard")
        return True

    def accuse(self, node: NodeId, reason: str, now: float) -> None:
        """Say that a member did not answer us."""
        member = self._members.get(node)
        if member is None or member.belief is None or not member.heard:
            return
        if member.state not in _LIVE or member.belief.accused_by(self.id) is not None:
            return
        self.suspicions += 1
        claim = sign_claim(
            node, member.incarnation, MemberState.SUSPECT, key=self._key, mesh=self._mesh
        )
        self._believe(member, member.belief.add(claim), claim, now, relay=True, reason=reason)

    def conclude_dead(self, node: NodeId, now: float) -> None:
        """Act on a suspicion that has run out."""
        member = self._members.get(node)
        if member is None or member.belief is None or member.suspicion is None:
            return
        before = member.shown
        accusers = ", ".join(claim.signer.short for claim in member.belief.accusations)
        span = now - member.suspicion.started_at
        member.suspicion = None
        member.dead = True
        member.heard = False
        member.silent_since = now
        member.tries = 0
        self.deaths += 1
        if member.belief.accused_by(self.id) is not None:
            # Only what we have seen ourselves do we sign.
            claim = sign_claim(
                node, member.incarnation, MemberState.DEAD, key=self._key, mesh=self._mesh
            )
            member.belief = member.belief.add(claim)
            self._broadcast(claim)
        self._put_index(member)
        self._show(member, before, f"accused by {accusers}, not refuted in {span:.1f} s")
        self._contact_in(member, self._config.dead_retry_min, now)

    def forgive(self, now: float) -> None:
        """Give every suspect some time more: we were ourselves away when it might have answered."""
        for member in self._members.values():
            due = self._timers.at(TimerKind.SUSPICION, member.node)
            if due is not None:
                self._timers.set(
                    TimerKind.SUSPICION,
                    max(due, now + 2.0 * self._config.probe_interval),
                    member.node,
                )

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
        reason: str | None = None,
    ) -> None:
        before, known = member.shown, member.belief
        member.belief = belief
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
        self._show(member, before, reason or _REASONS[claim.state], accuser=claim.signer)

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
            config = self._config
            member.suspicion = start_suspicion(
                now,
                members=len(self.live) + 1,
                probe_interval=config.probe_interval,
                suspicion_mult=config.suspicion_mult,
                suspicion_max_timeout_mult=config.suspicion_max_timeout_mult,
                confirmations_expected=config.confirmations_expected,
            )
        deadline = member.suspicion.deadline(len(member.belief.accusations))
        self._timers.set(TimerKind.SUSPICION, deadline, member.node)

    def _retract(self, member: Member, accuser: NodeId) -> None:
        """Take back what a node that is a member no more has said about another."""
        if member.belief is None or member.belief.accused_by(accuser) is None:
            return
        before = member.shown
        self._broadcasts.drop((CLAIM_ITEM, member.node, accuser))
        member.belief = member.belief.without(accuser)
        if not member.belief.accusations and member.suspicion is not None:
            member.suspicion = None
            self._timers.cancel(TimerKind.SUSPICION, member.node)
        self._show(member, before, "accuser removed")

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
        elif claim.incarnation > self.own.incarnation or claim.signer not in self._members:
            return False
        if claim.incarnation >= INCARNATION_MAX:
            return False
        verify_claim_untrusted(claim, self._mesh)
        self.claims_verified += 1
        self.refutations += 1
        self.own = self._claim_self(claim.incarnation + 1, MemberState.ALIVE)
        self.events.append(IncarnationRaised(self.own.incarnation))
        return True

    def _claim_self(self, incarnation: int, state: MemberState) -> Claim:
        claim = sign_claim(self.id, incarnation, state, key=self._key, mesh=self._mesh)
        version = belief_version(incarnation, state)
        self._index.put(CLAIM_ITEM, self.id, version, belief_digest(self.id, version))
        self._broadcast(claim)
        return claim

    def _broadcast(self, claim: Claim) -> None:
        signer = b"" if claim.by_subject else claim.signer
        self._broadcasts.put((CLAIM_ITEM, claim.subject, signer), Item(CLAIM_ITEM, claim.blob))

    def _drop_accusations(self, belief: Belief) -> None:
        for accusation in belief.accusations:
            self._broadcasts.drop((CLAIM_ITEM, accusation.subject, accusation.signer))

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
        reason: str,
        *,
        accuser: NodeId | None = None,
    ) -> None:
        after = member.shown
        if after == before:
            return
        self._live_nodes = None
        self._live.pop(member.node, None)
        if after in _LIVE:
            self._live[member.node] = None
            member.tries = 0
            self._timers.cancel(TimerKind.CONTACT, member.node)
        if accuser is not None and accuser not in {member.node, self.id}:
            reason = f"{reason} {accuser.short}"
        self.events.append(
            MemberStateChanged(member.node, before, after, member.incarnation, reason)
        )


_REASONS = {
    MemberState.ALIVE: "alive by its own word",
    MemberState.SUSPECT: "suspected by",
    MemberState.DEAD: "declared dead by",
    MemberState.LEFT: "left",
}
