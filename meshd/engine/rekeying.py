"""A new node key for this machine, which goes on as the same member under another node id.

     we, as `former`              a member with `admit`                            everybody
        │ the new key is on disk       │                                               │
        │ REKEY_REQUEST {reference, succession}     not needed where we may admit,     │
        │─────────────────────────────▶│            or the mesh key is here            │
        │ REKEY_VERDICT {reference, chain}                                             │
        │◀─────────────────────────────│                                               │
        │ the succession, ahead of all else ──────────────────────────────────────────▶│ keeps it
        │             … SPREAD_TIME: nothing has changed …                             │
        │ `SwitchNode`: on disk, and a new engine                                      │
     we, as `node`                     │                                               │
        │ our record, by path probes ─────────────────────────────────────────────────▶│ one change
        │◀═══════════ tunnels as they were: WireGuard key, session, IPv4, name ═══════▶│

Rule 1: the record of the new id is what changes something, and it is on disk before anybody hears
        of it.  Until then we are `former`, and whatever fails leaves us that.

Rule 2: the succession lists what we have signed (`NodeSuccession.kept`).  If there is more by the
        time of the switch, another one is told first, and given its time.

Rule 3: a verdict counts only from the member that was asked, for the reference that it was asked
        with, and only if it gives what we had (`meshd.trust.rekeying`).

What the others do when it happens, and a copy of this machine: `rekeyed`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

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
from meshd.trust.credential import verify_chain_untrusted
from meshd.trust.fact import FACT_BYTES_MAX, FactKind
from meshd.trust.node_succession import (
    KEPT_MAX,
    NodeSuccession,
    kept_digest,
    open_node_succession_untrusted,
    sign_former_word,
    sign_node_succession,
)
from meshd.trust.record import record_fact, sign_record
from meshd.trust.refusal import Refusal
from meshd.trust.rekeying import is_succession, succeed, succeed_by_root
from meshd.trust.renewal import issuer_rank
from meshd.underlay import Timer

if TYPE_CHECKING:
    from random import Random

    from meshd.engine.engine import Engine
    from meshd.keys import MeshKey, NodeId, NodeKey

SPREAD_TIME = 3.0  # by then a fact is everywhere (docs/gossip.md)
ANSWER_TIMEOUT = 2.0
PATIENCE = 10.0  # while no member that could help is alive
TRIES_MAX = 8  # of all members together: those least often asked first
ANSWER_INTERVAL = 1.0  # of verdicts for one member: each costs a signature
ANSWERED_MAX = 1024


@dataclass(slots=True)
class _Attempt:
    key: NodeKey
    succession: NodeSuccession
    issuer: NodeId | None = None  # who is asked
    reference: bytes = b""
    tries: dict[NodeId, int] = field(default_factory=dict)
    refused: set[NodeId] = field(default_factory=set)
    chain: tuple[bytes, ...] = ()  # once we have it
    patient_until: float = 0.0
    due_at: float = math.inf  # when the answer is late, or all have heard
    trouble: str = ""


class Rekeying:
    """See the module docstring."""

    def __init__(self, engine: Engine, *, rng: Random) -> None:
        self._engine = engine
        self._rng = rng
        self._attempt: _Attempt | None = None
        self._answered: dict[NodeId, float] = {}  # to whom a verdict went, and when
        self.trouble = ""  # why the last attempt has failed

    # Our own

    @property
    def phase(self) -> str | None:
        """How far we are: `asking` for a credential, then `announced`; None: nothing goes on."""
        if self._attempt is None:
            return None
        return "announced" if self._attempt.chain else "asking"

    @property
    def prepared(self) -> NodeId | None:
        """Under which id we are about to go on."""
        return None if self._attempt is None else self._attempt.key.id

    def hindrance(self) -> str | None:
        """Return why this node cannot go on under another id at present; None if it can."""
        engine = self._engine
        if not engine.identity.chain or not engine.ledger.admitted(engine.identity.node):
            return "this node is no member at present: see `meshctl status`"
        if engine.clones.proven:
            return f"another machine has this node's keys: {engine.clones.text}"
        if engine.rotation.busy:
            return "its WireGuard key is being replaced: wait until that is done"
        signed = len(engine.ledger.signed_by(engine.identity.node))
        if signed >= KEPT_MAX:
            return (
                f"{signed} credentials and revocations that count were signed by this node, and a "
                f"new node key can vouch for {KEPT_MAX - 1} of them: have members renewed by "
                "others, or replace the mesh key first (`meshctl keys rotate --mesh`), which signs "
                "all members anew"
            )
        return None

    def begin(self, key: NodeKey, mesh_key: MeshKey | None, now: float, wall: float) -> None:
        """Prepare to go on under `key`, which is on disk.  `hindrance` has none."""
        if self._attempt is not None:
            return
        self.trouble = ""
        self._attempt = _Attempt(key, self._sign(key, wall), patient_until=now + PATIENCE)
        if mesh_key is not None and mesh_key.id == self._engine.ledger.roots.newest:
            self._settle_for(
                succeed_by_root(
                    self._engine.own_chain,
                    self._attempt.succession,
                    mesh_key,
                    self._engine.identity.mesh,
                    wall,
                ),
                now,
                wall,
            )
        elif self._engine.ledger.may_admit(self._engine.identity.node, wall):
            self._settle_for(self._by_ourselves(wall), now, wall)
        if self._attempt is not None and not self._attempt.chain:
            self._ask(now, wall)

    def failed(self, why: str) -> None:
        """Stay who we are: the disk has refused, or there is no way to a credential."""
        self._attempt = None
        self.trouble = why
        self._engine.emit(events.Notice("node-key-kept", f"the node key stays as it is: {why}"))

    def handle_timer(self, now: float, wall: float) -> None:
        """Ask somebody else, or switch."""
        attempt = self._attempt
        if attempt is None or now < attempt.due_at:
            return
        if attempt.chain:
            self._switch(attempt, now, wall)
            return
        if attempt.issuer is not None:
            attempt.trouble = f"{self._engine.name_of(attempt.issuer)} does not answer"
        self._ask(now, wall)

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline."""
        if self._attempt is None or math.isinf(self._attempt.due_at):
            return None
        return Timer(self._attempt.due_at, "a new node key")

    def _sign(
        self,
        key: NodeKey,
        wall: float,
        *,
        chain: tuple[bytes, ...] = (),
        before: NodeSuccession | None = None,
    ) -> NodeSuccession:
        """Sign a succession; one that takes the place of another is dated later."""
        identity = self._engine.identity
        return sign_node_succession(
            identity.node_key,
            key,
            identity.mesh,
            dated=int(wall) if before is None else max(int(wall), before.dated + 1),
            kept=self._engine.ledger.signed_by(identity.node).union(map(kept_digest, chain)),
        )

    def _by_ourselves(self, wall: float) -> tuple[bytes, ...] | Refusal:
        """Sign our own credential; the succession is to list that too."""
        engine, attempt = self._engine, self._attempt
        assert attempt is not None
        chain = succeed(
            engine.ledger,
            attempt.succession,
            key=engine.identity.node_key,
            chain=engine.identity.chain,
            wall=wall,
        )
        if not isinstance(chain, Refusal):
            attempt.succession = self._sign(attempt.key, wall, chain=chain[-1:])
        return chain

    def _settle_for(self, verdict: tuple[bytes, ...] | Refusal, now: float, wall: float) -> None:
        """Take a chain, and tell everybody; or note why there is none."""
        attempt = self._attempt
        assert attempt is not None
        if isinstance(verdict, Refusal):
            attempt.trouble = verdict.text
            return
        attempt.chain = verdict
        self._announce(attempt, now, wall)

    def _announce(self, attempt: _Attempt, now: float, wall: float) -> None:
        attempt.due_at = now + SPREAD_TIME
        blob = attempt.succession.blob
        self._engine.learn(FactKind.NODE_SUCCESSION, blob, now, wall, at_once=True)

    def _ask(self, now: float, wall: float) -> None:
        engine, attempt = self._engine, self._attempt
        assert attempt is not None
        attempt.issuer = self._choose(attempt, wall)
        if attempt.issuer is None and not attempt.tries and now < attempt.patient_until:
            attempt.due_at = now + ANSWER_TIMEOUT  # somebody may just be on its way back
            return
        if attempt.issuer is None:
            self.failed(
                f"{attempt.trouble or 'no member that may grant what this node has is alive'}; "
                "start one that may admit, or do this where the mesh key is"
            )
            return
        attempt.tries[attempt.issuer] = attempt.tries.get(attempt.issuer, 0) + 1
        attempt.reference = self._rng.randbytes(REFERENCE_BYTES)
        attempt.due_at = now + ANSWER_TIMEOUT
        request = pack({1: attempt.reference, 2: attempt.succession.blob})
        engine.send_overlay(mark(Handover.REKEY_REQUEST, request), attempt.issuer)

    def _choose(self, attempt: _Attempt, wall: float) -> NodeId | None:
        engine = self._engine
        credential = engine.own_credential
        assert credential is not None
        if sum(attempt.tries.values()) >= TRIES_MAX:
            return None
        # Whoever lasts as long will do here, as it could not for a renewal.
        wanted = replace(credential, expires_at=max(0, credential.expires_at - 1))
        ranked = []
        for view in engine.gossip.members():
            standing = engine.ledger.standing(view.node)
            if (
                view.state is not MemberState.ALIVE
                or standing is None
                or view.node in attempt.refused
                or (standing.credential.expires_at and not credential.expires_at)
            ):
                continue
            rank = issuer_rank(standing, wanted, wall)
            if rank is not None:
                ranked.append((attempt.tries.get(view.node, 0), rank, view.node))
        return min(ranked)[2] if ranked else None

    def _switch(self, attempt: _Attempt, now: float, wall: float) -> None:
        engine, identity = self._engine, self._engine.identity
        record = engine.presence.record
        trouble = self.hindrance()
        if trouble is not None or record is None:
            self.failed(trouble or "this node has no record of its own")
            return
        missing = engine.ledger.signed_by(identity.node).difference(attempt.succession.kept)
        if missing:
            attempt.succession = self._sign(
                attempt.key, wall, chain=attempt.chain[-1:], before=attempt.succession
            )
            self._announce(attempt, now, wall)
            return
        word = sign_former_word(
            identity.node_key, attempt.key.id, identity.mesh, attempt.succession.dated
        )
        record = replace(record, node=attempt.key.id, chain=attempt.chain, former_word=word)
        blob = sign_record(record, attempt.key, identity.mesh)
        attempt.due_at = math.inf
        engine.emit(
            events.SwitchNode(
                identity=replace(
                    identity,
                    node_key=attempt.key,
                    chain=attempt.chain,
                    origin=(),
                    former_word=word,
                    token=None,
                ),
                record=record_fact(record, blob),
            )
        )

    # What members say through their tunnels

    def receive_handover(self, datagram: bytes, source: NodeId, now: float, wall: float) -> None:
        """Handle a request or a verdict."""
        kind, data = split(datagram)
        try:
            if kind is Handover.REKEY_REQUEST:
                self._judge_untrusted(data, source, now, wall)
            else:
                self._take_verdict_untrusted(data, source, now, wall)
        except BadPacket as exc:
            self._engine.bad_packets[exc.reason] += 1

    def _take_verdict_untrusted(self, data: bytes, source: NodeId, now: float, wall: float) -> None:
        engine, attempt = self._engine, self._attempt
        verdict = decode_admission_verdict_untrusted(data)
        if (
            attempt is None
            or attempt.chain
            or (attempt.issuer, attempt.reference) != (source, verdict.reference)
        ):
            raise BadPacket("credential for a new node key that was not asked for")
        if isinstance(verdict.verdict, Refusal):
            attempt.trouble = f"{engine.name_of(source)} refuses: {verdict.verdict.text}"
            attempt.refused.add(source)
            self._ask(now, wall)
            return
        try:
            self._check_untrusted(verdict.verdict, source, attempt)
        except BadPacket:
            attempt.trouble = f"{engine.name_of(source)} answers with what is no such credential"
            attempt.refused.add(source)
            self._ask(now, wall)
            raise
        self._settle_for(verdict.verdict, now, wall)

    def _check_untrusted(self, chain: tuple[bytes, ...], source: NodeId, attempt: _Attempt) -> None:
        engine, ledger = self._engine, self._engine.ledger
        credentials = verify_chain_untrusted(chain, ledger.mesh, attempt.key.id, ledger.cache)
        if credentials[-1].issuer != source or not is_succession(
            credentials, engine.own_chain, attempt.succession
        ):
            raise BadPacket("credential for a new node key that is another one")
        if ledger.judgement().against_chain(credentials) is not None:
            raise BadPacket("credential for a new node key through a revoked member")

    def _judge_untrusted(self, data: bytes, source: NodeId, now: float, wall: float) -> None:
        engine, identity = self._engine, self._engine.identity
        fields = Fields.unpack_untrusted(data, what="request of a new node key")
        reference = fields.blob(1, size=REFERENCE_BYTES)
        blob = fields.blob(2, maximum=FACT_BYTES_MAX)
        fields.done()
        if not identity.chain:
            raise BadPacket("credential asked of one who is not in yet")
        if not self._has_time_for(source, now):
            raise BadPacket("new node keys asked for too often")
        succession = open_node_succession_untrusted(blob, identity.mesh)
        if succession.former != source:
            raise BadPacket("new node key for another member")
        verdict = succeed(
            engine.ledger, succession, key=identity.node_key, chain=identity.chain, wall=wall
        )
        answer = encode_admission_verdict(AdmissionVerdict(reference, verdict))
        engine.send_overlay(mark(Handover.REKEY_VERDICT, answer), source)

    def _has_time_for(self, source: NodeId, now: float) -> bool:
        while self._answered:
            oldest, answered_at = next(iter(self._answered.items()))
            if now - answered_at < ANSWER_INTERVAL and len(self._answered) < ANSWERED_MAX:
                break
            del self._answered[oldest]
        if source in self._answered:
            return False
        self._answered[source] = now
        return True
