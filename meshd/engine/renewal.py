"""Keeping our credential alive, and renewing those of others: `meshd.trust.renewal` over a tunnel.

    this member                             a member with `admit`
       │ RENEWAL_REQUEST {reference, origin}   │
       │──────────────────────────────────────▶│ who asks is known from the tunnel, what it
       │ RENEWAL_VERDICT {reference, chain}    │ holds from its record, and its past from its origin
       │◀──────────────────────────────────────│
       │ verified; then ours: a new record tells everybody

Rule 1: one member is asked at a time: of those alive that could help, whom we have asked least
        often for this credential, then the best.  After each failure the pause doubles, and begins
        anew once there is somebody to ask again.

Rule 2: a verdict counts only from the member that was asked, for the reference it was asked with;
        and a chain only if it verifies and is what a renewal may be.  It is not a way to give us
        more, or less, than we have.

Rule 3: it takes some failures in the last sixth of a credential's life, or later, before anybody is
        told: members that may admit are allowed to be off for a while.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from meshd.bootstrap.messages import (
    REFERENCE_BYTES,
    AdmissionVerdict,
    decode_admission_verdict_untrusted,
    encode_admission_verdict,
)
from meshd.codec import Fields, pack
from meshd.engine import events
from meshd.engine.handover import Handover, mark, split
from meshd.errors import BadPacket
from meshd.gossip.claim import MemberState
from meshd.trust.credential import (
    CHAIN_LENGTH_MAX,
    CREDENTIAL_BYTES_MAX,
    verify_chain_untrusted,
)
from meshd.trust.granting import utc
from meshd.trust.refusal import Refusal
from meshd.trust.renewal import (
    GRACE,
    Phase,
    issuer_rank,
    next_phase_at,
    phase,
    renew_untrusted,
    renews,
)
from meshd.underlay import Timer

if TYPE_CHECKING:
    from random import Random

    from meshd.engine.engine import Engine
    from meshd.keys import NodeId
    from meshd.trust.credential import Credential

ANSWER_TIMEOUT = 2.0
PAUSE_MIN = 1.0
PAUSE_MAX = 600.0
FAILURES_TOLD = 3  # see rule 3
LOOK_INTERVAL = 3600.0  # the wall clock may be set at any time
ANSWER_INTERVAL = 1.0  # of verdicts for one member: each costs a signature

_ASKS = {Phase.DUE, Phase.EXPIRING, Phase.EXPIRED}
_CODES = {
    Phase.EXPIRING: "credential-expiring",
    Phase.EXPIRED: "credential-expired",
    Phase.LATE: "credential-too-late",
}


class _Asked(NamedTuple):
    issuer: NodeId
    reference: bytes
    until: float


class Renewal:
    """See the module docstring."""

    def __init__(self, engine: Engine, *, rng: Random, now: float) -> None:
        self._engine = engine
        self._rng = rng
        self._answered: dict[NodeId, float] = {}  # when others were, oldest first
        self.begin(now)

    def begin(self, now: float) -> None:
        """Start anew, with the credential there is at present."""
        self.phase = Phase.FRESH
        self._asked: _Asked | None = None
        self._tries: dict[NodeId, int] = {}
        self._failures = 0
        self._pause = PAUSE_MIN
        self._alone = False  # there was nobody to ask
        self._trouble = ""  # why the last try has failed
        self._told: str | None = None
        self._ask_at = self._look_at = now

    # Inputs

    def receive_handover(self, datagram: bytes, source: NodeId, now: float, wall: float) -> None:
        """Handle a request or a verdict from a member's tunnel."""
        kind, data = split(datagram)
        try:
            if kind is Handover.RENEWAL_REQUEST:
                self._judge_untrusted(data, source, now, wall)
            else:
                self._take_verdict_untrusted(data, source, now, wall)
        except BadPacket as exc:
            self._engine.bad_packets[exc.reason] += 1

    def handle_timer(self, now: float, wall: float) -> None:
        """Ask if it is time to, and say what has come to be wrong."""
        if self._asked is not None and now >= self._asked.until:
            self._fail(f"{self._engine.name_of(self._asked.issuer)} does not answer", now)
        if now >= self._look_at:
            self._look(now, wall)

    # Outputs

    def get_timer(self) -> Timer:
        """Return the soonest deadline."""
        if self._asked is not None and self._asked.until < self._look_at:
            return Timer(self._asked.until, "renewal unanswered")
        return Timer(self._look_at, "renewal")

    @property
    def code(self) -> str | None:
        """What is wrong with our credential, for `status` and events; None if nothing is."""
        if self.phase is not Phase.LATE and self._failures < FAILURES_TOLD:
            return None
        return _CODES.get(self.phase)

    @property
    def message(self) -> str:
        """The same for people, with what to do about it."""
        credential = self._engine.own_credential
        assert credential is not None
        if self.phase is Phase.LATE:
            return (
                f"the credential of this node expired at {utc(credential.expires_at)}, more than "
                f"{GRACE // 86400} days ago, so no member renews it; its tunnels work, its rights "
                "are gone: run `meshctl invite` on a member that may admit, and start "
                "`meshd --token-file FILE` here; id, name and address stay"
            )
        passed = "expired" if self.phase is Phase.EXPIRED else "expires"
        return (
            f"the credential of this node {passed} at {utc(credential.expires_at)} and is not "
            f"renewed: {self._trouble}; without it the tunnels work, but this node may neither "
            "admit, nor offer networks, nor relay: start a member that may admit"
        )

    # Asking

    def _look(self, now: float, wall: float) -> None:
        engine = self._engine
        self._look_at = now + LOOK_INTERVAL
        credential = engine.own_credential
        if credential is None or not engine.ledger.admitted(engine.identity.node):
            return  # `begin` is called when that changes, or somebody else says what is wrong
        self.phase = phase(credential, wall)
        following = next_phase_at(credential, wall)
        if following is not None:
            self._look_at = min(self._look_at, now + (following - wall))
        if self.phase in _ASKS:
            if self._asked is None and now >= self._ask_at:
                self._ask(credential, now, wall)
            if self._asked is None:
                self._look_at = min(self._look_at, self._ask_at)
        self._tell()

    def _ask(self, credential: Credential, now: float, wall: float) -> None:
        engine = self._engine
        issuer = self._choose(credential, wall)
        if issuer is None:
            self._fail(self._nobody(wall), now)
            self._alone = True
            return
        if self._alone:
            self._pause = PAUSE_MIN
        self._alone = False
        self._tries[issuer] = self._tries.get(issuer, 0) + 1
        reference = self._rng.randbytes(REFERENCE_BYTES)
        self._asked = _Asked(issuer, reference, now + ANSWER_TIMEOUT)
        asked = pack({1: reference, 64: self._origin})
        engine.send_overlay(mark(Handover.RENEWAL_REQUEST, asked), issuer)

    @property
    def _origin(self) -> tuple[bytes, ...]:
        """The chain that we came in by, if it still counts for something; else the present one."""
        identity, ledger = self._engine.identity, self._engine.ledger
        if identity.origin:
            opened = verify_chain_untrusted(
                identity.origin, ledger.mesh, identity.node, ledger.cache
            )
            if ledger.counts(identity.origin, opened):
                return identity.origin
        return identity.chain

    def _choose(self, credential: Credential, wall: float) -> NodeId | None:
        engine = self._engine
        ranked = []
        for view in engine.gossip.members():
            standing = engine.ledger.standing(view.node)
            if view.state is not MemberState.ALIVE or standing is None:
                continue
            rank = issuer_rank(standing, credential, wall)
            if rank is not None:
                ranked.append((self._tries.get(view.node, 0), rank, view.node))
        return min(ranked)[2] if ranked else None

    def _nobody(self, wall: float) -> str:
        """Say why there is nobody to ask."""
        engine = self._engine
        names = [
            engine.name_of(view.node)
            for view in engine.gossip.members()
            if view.state is MemberState.ALIVE and engine.ledger.may_admit(view.node, wall)
        ]
        if not names:
            return "no member that may admit is alive"
        listed = ", ".join(names[:5]) + (" and others" if names[5:] else "")
        return f"what {listed} may grant is less than it, or ends no later"

    def _fail(self, trouble: str, now: float) -> None:
        """Let it be, for a while that doubles with each failure."""
        self._asked = None
        self._trouble = trouble
        self._failures += 1
        self._ask_at = now + self._pause * (0.75 + 0.5 * self._rng.random())
        self._pause = min(PAUSE_MAX, 2 * self._pause)
        self._look_at = min(self._look_at, self._ask_at)
        self._tell()

    def _tell(self) -> None:
        if self.code not in {None, self._told}:
            self._told = self.code
            self._engine.emit(events.Notice(self.code or "", self.message))

    def _take_verdict_untrusted(self, data: bytes, source: NodeId, now: float, wall: float) -> None:
        engine, asked = self._engine, self._asked
        verdict = decode_admission_verdict_untrusted(data)
        if asked is None or (asked.issuer, asked.reference) != (source, verdict.reference):
            raise BadPacket("renewal that was not asked for")
        if isinstance(verdict.verdict, Refusal):
            self._fail(verdict.verdict.text, now)
            return
        try:
            renewed = self._renewed_untrusted(verdict.verdict, source, wall)
        except BadPacket:
            self._fail(f"{engine.name_of(source)} answers with what is no renewal of it", now)
            raise
        renewed_identity = replace(engine.identity, chain=verdict.verdict, origin=self._origin)
        engine.become(renewed_identity, now)
        engine.emit(
            events.Notice(
                "credential-renewed",
                f"renewed our credential: it expires at {utc(renewed.expires_at)}",
                source,
                engine.name_of(source),
                {"expires_at": renewed.expires_at},
            )
        )

    def _renewed_untrusted(
        self, chain: tuple[bytes, ...], source: NodeId, wall: float
    ) -> Credential:
        engine = self._engine
        own, ledger = engine.own_credential, engine.ledger
        assert own is not None, "it was asked for a renewal of it"
        credentials = verify_chain_untrusted(chain, ledger.mesh, engine.identity.node, ledger.cache)
        renewed = credentials[-1]
        origin = verify_chain_untrusted(
            self._origin, ledger.mesh, engine.identity.node, ledger.cache
        )
        if renewed.issuer != source or not renews(credentials, own, origin, wall):
            raise BadPacket("renewal that is none")
        if ledger.judgement().against_chain(credentials) is not None:
            raise BadPacket("renewal through a revoked member")
        return renewed

    # Renewing others

    def _judge_untrusted(self, data: bytes, source: NodeId, now: float, wall: float) -> None:
        engine, identity = self._engine, self._engine.identity
        fields = Fields.unpack_untrusted(data, what="renewal request")
        reference = fields.blob(1, size=REFERENCE_BYTES)
        origin = fields.blobs(64, count_max=CHAIN_LENGTH_MAX, bytes_max=CREDENTIAL_BYTES_MAX)
        fields.done()
        if not identity.chain:
            raise BadPacket("renewal asked of one who is not in yet")
        if not self._has_time_for(source, now):
            raise BadPacket("renewals asked too often")
        verdict = renew_untrusted(
            engine.ledger,
            source,
            key=identity.node_key,
            chain=identity.chain,
            wall=wall,
            shown=origin,
        )
        engine.send_overlay(
            mark(
                Handover.RENEWAL_VERDICT,
                encode_admission_verdict(AdmissionVerdict(reference, verdict)),
            ),
            source,
        )

    def _has_time_for(self, source: NodeId, now: float) -> bool:
        while self._answered:
            oldest, answered_at = next(iter(self._answered.items()))
            if now - answered_at < ANSWER_INTERVAL:
                break
            del self._answered[oldest]
        if source in self._answered:
            return False
        self._answered[source] = now
        return True
