"""Following the mesh to a new root.

    succession adopted ──▶ the line on disk ──▶ grants come ──▶ settled: the predecessor has ended
       (by the ledger)      our own grant becomes our chain      when all are here, or time is over

Rule 1: the ledger adopts, this part has the line put on disk before anything leaves the node: the
        event goes out in the same step.

Rule 2: until it has settled a node trusts the predecessor as well.  A seal is settled when as many
        grants are held as it says, or after SETTLE_TIMEOUT; a rotation at the end of its overlap.

Rule 3: a grant for ourselves under a newer root than that of our chain becomes our chain.

Rule 4: what waited for a root is judged again as soon as there is a new one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from meshd.engine import events
from meshd.errors import BadPacket
from meshd.trust.credential import CredentialCache, verify_chain_untrusted
from meshd.trust.fact import FactKind
from meshd.trust.granting import utc
from meshd.trust.refusal import Refusal, RefusalCode
from meshd.underlay import Timer

if TYPE_CHECKING:
    from meshd.engine.engine import Engine
    from meshd.keys import MeshId
    from meshd.trust.fact import Fact
    from meshd.trust.invite import Token

SETTLE_TIMEOUT = 60.0
RIVAL_INTERVAL = 60.0  # between two reports
OVERLAP_CHECK_MAX = 3600.0  # the wall clock may be set meanwhile


class Following:
    """See the module docstring."""

    def __init__(self, engine: Engine, *, now: float) -> None:
        self._engine = engine
        self._unsettled_since = now
        self._check_at = now
        self._told: MeshId | None = None  # the last rival reported
        self._told_at = -math.inf
        self._due = True  # what the disk holds: the last run may have ended in between

    # Inputs

    def fact_changed(self, fact: Fact, now: float) -> None:
        """Take note of a succession or a grant that the ledger has taken in."""
        if fact.kind is FactKind.SUCCESSION:
            self._unsettled_since = now
        self._due = self._due or fact.kind in {FactKind.SUCCESSION, FactKind.GRANT}

    def settle(self, now: float, wall: float) -> bool:
        """Follow, if there is anything to.  Return whether anything was done."""
        self._tell_rivals(now)
        if not self._due:
            return False
        self._due = False
        self._follow(now, wall)
        return True

    def handle_timer(self, now: float, wall: float) -> None:
        """Settle, if it is time to."""
        if now >= self._check_at:
            self._settle(now, wall)

    def get_timer(self) -> Timer | None:
        """Return when to look whether the predecessor has ended."""
        if self._engine.ledger.roots.settled:
            return None
        return Timer(self._check_at, "predecessor of the root")

    # What others are told

    @property
    def refusal(self) -> Refusal:
        """What is said to a node whose root has ended, and that has no grant."""
        step = self._engine.ledger.roots.last_step
        if step is not None and step.seal:
            why = (
                f"was sealed at {utc(step.dated)}: its former secret or key admits nobody any more"
            )
        else:
            why = "has another key since, and this node was not known when it was made"
        return Refusal(
            RefusalCode.SEALED,
            f"the mesh {why}; ask for a token, which 'meshctl invite' on a member makes",
        )

    def successions_since(self, record: bytes) -> tuple[bytes, ...]:
        """Return how our root follows that of a record; nothing for one that does not verify."""
        ledger = self._engine.ledger
        try:
            return ledger.successions_since_untrusted(record) if ledger.roots.number else ()
        except BadPacket:
            return ()

    def has_ended_untrusted(self, record: bytes) -> bool:
        """Whether a record is of a node that we have left behind.  Raise BadPacket."""
        ledger = self._engine.ledger
        return bool(ledger.roots.number) and ledger.has_ended_untrusted(record)

    # Ourselves

    def verify_untrusted(self, chain: tuple[bytes, ...]) -> None:
        """Raise BadPacket unless a chain speaks for us, from a root that we know by now."""
        identity, ledger = self._engine.identity, self._engine.ledger
        verify_chain_untrusted(chain, identity.mesh, identity.node, ledger.cache)

    def take_token_untrusted(
        self, token: Token, chain: tuple[bytes, ...], successions: tuple[bytes, ...], now: float
    ) -> None:
        """Begin anew with what a token that was honoured names, and with what the answer brought.

        Raise BadPacket if that does not hang together; nothing has changed.
        """
        engine = self._engine
        identity = engine.identity
        roots = engine.ledger.roots
        if roots.misses(token.roots):
            roots = token.roots
        roots = roots.grown_untrusted(successions)
        cache = CredentialCache()
        cache.roots = roots.keys
        verify_chain_untrusted(chain, identity.mesh, identity.node, cache)
        if roots != engine.ledger.roots:
            engine.ledger.follow(roots)
            self._unsettled_since = now
            self._due = True
        if token.bootstrap_key != identity.bootstrap_key:
            identity = replace(
                identity,
                bootstrap_key=token.bootstrap_key,
                older_bootstrap_key=identity.bootstrap_key,
            )
        engine.become(replace(identity, pinned=engine.ledger.roots, chain=chain, origin=()), now)

    @property
    def left_behind(self) -> bool:
        """Whether the mesh has gone on to another root without us."""
        engine = self._engine
        chain = engine.own_chain
        return (
            bool(chain)
            and not engine.ledger.roots.trusts(chain[0].issuer)
            and engine.ledger.grant(engine.identity.node) is None
        )

    # Inside

    def _follow(self, now: float, wall: float) -> None:
        engine = self._engine
        roots = engine.ledger.roots
        if roots != engine.identity.roots:
            adopted = roots.number > engine.identity.roots.number
            step = roots.last_step
            sealed = adopted and step is not None and step.seal
            open_mesh = engine.identity.open_mesh and not sealed
            engine.become(replace(engine.identity, pinned=roots, open_mesh=open_mesh), now)
            if adopted:
                self._tell(sealed=sealed)
            for kind, blob in engine.ledger.take_waiting():
                try:
                    engine.learn(FactKind(kind), blob, now, wall)
                except BadPacket as exc:
                    engine.bad_packets[exc.reason] += 1
        self._take_grant(now)
        self._settle(now, wall)

    def _take_grant(self, now: float) -> None:
        engine = self._engine
        grant = engine.ledger.grant(engine.identity.node)
        chain = engine.own_chain
        if grant is None or not chain:
            return
        ours = engine.ledger.roots.number_of(chain[0].issuer)
        granted = engine.ledger.roots.number_of(grant.credential.issuer)
        assert granted is not None
        if ours is None or ours < granted:
            engine.become(replace(engine.identity, chain=(grant.blob,), origin=()), now)

    def _settle(self, now: float, wall: float) -> None:
        engine = self._engine
        roots = engine.ledger.roots
        step = roots.last_step
        if roots.settled or step is None:
            return
        if step.seal:
            self._check_at = self._unsettled_since + SETTLE_TIMEOUT
            over = now >= self._check_at or engine.ledger.granted() >= step.grants
        else:
            over = wall >= step.overlap_until
            self._check_at = now + min(max(0.0, step.overlap_until - wall), OVERLAP_CHECK_MAX)
        if not over:
            return
        engine.ledger.follow(roots.settle())
        engine.become(replace(engine.identity, pinned=roots.settle()), now)
        engine.membership.standings_changed(now)

    def _tell(self, *, sealed: bool) -> None:
        roots = self._engine.ledger.roots
        if sealed:
            event, text = (
                "mesh-sealed",
                "the mesh is sealed: its former secret or key admits nobody any more",
            )
        else:
            event, text = "mesh-key-rotated", "the mesh has a new key"
        self._engine.emit(events.Notice(event, f"{text}; its root is {roots.newest.short}"))

    def _tell_rivals(self, now: float) -> None:
        """Report a succession that was refused: one that comes again and again only once."""
        ledger = self._engine.ledger
        rival = ledger.rival
        if rival is None or rival.successor == self._told or now - self._told_at < RIVAL_INTERVAL:
            return
        self._told, self._told_at = rival.successor, now
        self._engine.emit(
            events.Notice(
                "rival-succession",
                "refused to follow another root: somebody with the mesh's former secret or key has "
                f"signed {rival.successor.short} to follow it, where we follow "
                f"{ledger.roots.newest.short}",
                details={"refused": ledger.rivals},
            )
        )
