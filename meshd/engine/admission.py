"""Letting others in: judges bootstrap requests, or hands them to a member that may.

    newcomer            this member                       a member with `admit`
       │ request            │                                      │
       │───────────────────▶│ brings a record: the ledger judges it │
       │                    │ brings an invite, and we may admit: we judge it
       │                    │ brings an invite, and we may not ────▶│ judges it
       │ answer             │◀──────────────────────── its verdict │
       │◀───────────────────│

Rule 1: a request sets no endpoint and spends no invite by itself; only an invite's key, shown to be
        held by a signature over this very handshake, does.

Rule 2: what we hand over is what we were sent, so that the other member verifies it for itself; and
        only verdicts on what we handed to that member are taken from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.bootstrap import events as bootstrap_events
from meshd.bootstrap.messages import (
    AdmissionVerdict,
    decode_admission_request_untrusted,
    decode_admission_verdict_untrusted,
    encode_admission_request,
    encode_admission_verdict,
    open_request_untrusted,
)
from meshd.bootstrap.responder import PENDING_LIFETIME, PENDING_MAX, Responder
from meshd.engine import events
from meshd.engine.handover import Handover, mark, split
from meshd.errors import BadPacket
from meshd.gossip.claim import MemberState
from meshd.trust.admission import Application, admit
from meshd.trust.fact import FactKind
from meshd.trust.refusal import Refusal, RefusalCode

if TYPE_CHECKING:
    from random import Random

    from meshd.bootstrap.messages import AdmissionRequest, Verdict
    from meshd.codec import IPAddress
    from meshd.engine.engine import Engine
    from meshd.keys import BootstrapKey, NodeId
    from meshd.underlay import Outgoing, Timer
    from meshd.wg.types import Endpoint


class Admission:
    """Owns the responder."""

    def __init__(self, engine: Engine, *, rng: Random, now: float) -> None:
        self._engine = engine
        self._rng = rng
        identity = engine.identity
        self._responder = Responder(
            identity.node_key,
            identity.mesh,
            identity.bootstrap_key,
            rng=rng,
            now=now,
            older_bootstrap_key=identity.older_bootstrap_key,
        )
        self._handed_over: dict[bytes, tuple[NodeId, float]] = {}  # by reference, oldest first

    # Inputs

    def receive_request(
        self, datagram: bytes, source: Endpoint, local: IPAddress | None, now: float
    ) -> bool:
        """Handle a bootstrap request, which may be anything.  Return whether it is judged."""
        if not self._engine.presence.blob or self._engine.revoking.revocation is not None:
            self._engine.bad_packets["request to one who is not in"] += 1
            return False
        self._responder.swamped = self._engine.swamped
        return self._responder.receive_datagram(datagram, source, local, now)

    def rekey(self, bootstrap_key: BootstrapKey, older: BootstrapKey | None) -> None:
        """Take the present bootstrap key, and the one before."""
        self._responder.rekey(bootstrap_key, older)

    def receive_handover(self, datagram: bytes, source: NodeId, now: float, wall: float) -> None:
        """Handle a request or a verdict from a member's tunnel."""
        kind, data = split(datagram)
        try:
            match kind:
                case Handover.ADMISSION_REQUEST:
                    self._judge_for_untrusted(data, source, now, wall)
                case Handover.ADMISSION_VERDICT:
                    self._take_verdict_untrusted(data, source, wall)
                case _:
                    raise AssertionError(kind)
        except BadPacket as exc:
            self._engine.bad_packets[exc.reason] += 1

    def handle_timer(self, now: float) -> None:
        """Let go of what has waited too long."""
        self._responder.handle_timer(now)
        while self._handed_over:
            reference, (_, handed_at) = next(iter(self._handed_over.items()))
            if now - handed_at < PENDING_LIFETIME:
                return
            del self._handed_over[reference]

    def settle(self, now: float, wall: float) -> bool:
        """Judge what has been opened.  Return whether there was anything."""
        busy = False
        while (event := self._responder.next_event()) is not None:
            busy = True
            match event:
                case bootstrap_events.RequestOpened():
                    self._on_request(event, now, wall)
                case bootstrap_events.BadPacketReceived(_, reason):
                    self._engine.bad_packets[reason] += 1
        return busy

    # Outputs

    def datagrams_to_send(self) -> list[Outgoing]:
        """Take the queued datagrams."""
        return self._responder.datagrams_to_send()

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline."""
        return self._responder.get_timer()

    @property
    def dropped(self) -> dict[str, int]:
        """How many requests were not judged though they opened, by reason."""
        statistics = self._responder.statistics()
        return {"replayed": statistics.replayed, "too many requests": statistics.limited}

    # Inside

    def _on_request(self, event: bootstrap_events.RequestOpened, now: float, wall: float) -> None:
        request = event.request
        if request.record is not None:
            # What it knows of roots shows in its record; the verdict may teach us more of them.
            successions = self._engine.following.successions_since(request.record)
            verdict = self._judge_record(request.node, request.record, now, wall)
            self._answer(event.reference, verdict, wall, request.node, successions)
            return
        assert request.application is not None
        verdict = self._judge_application(request.application, now, wall)
        if isinstance(verdict, Refusal) and verdict.code in _OTHERS_MAY_KNOW_BETTER:
            other = self._member_to_ask(wall)
            if other is not None and event.handover is not None:
                self._hand_over(event.handover, other, now)
                return
        self._answer(event.reference, verdict, wall, request.node)

    def _judge_record(self, node: NodeId, record: bytes, now: float, wall: float) -> Verdict:
        engine = self._engine
        if engine.ledger.revocation(node) is not None:
            return engine.revoking.refusal(node)  # nothing that it says is passed on
        if engine.ledger.lineage.in_place_of(node) is not None:
            return engine.rekeyed.refusal(node)
        try:
            if engine.following.has_ended_untrusted(record):
                return engine.following.refusal  # and it is not kept either
            engine.learn(FactKind.RECORD, record, now, wall)
        except BadPacket as exc:
            return Refusal(
                RefusalCode.FOREIGN, f"your record does not verify in this mesh: {exc.reason}"
            )
        standing = engine.ledger.standing(node)
        if standing is None:
            return Refusal(
                RefusalCode.FULL,
                "the mesh has as many members as it can hold; 'meshctl forget' those that are gone",
            )
        if standing.revoked:
            return engine.revoking.refusal(node)
        if standing.unfounded:
            return engine.rekeyed.unfounded
        if not standing.admitted:
            return engine.invites.refusal(standing)
        return ()

    def _judge_application(self, application: Application, now: float, wall: float) -> Verdict:
        engine = self._engine
        outcome = admit(
            engine.ledger,
            application,
            key=engine.identity.node_key,
            chain=engine.identity.chain,
            wall=wall,
        )
        if isinstance(outcome, Refusal):
            return outcome
        if outcome.use is not None:
            engine.learn(FactKind.INVITE_USE, outcome.use, now, wall)
        engine.emit(
            events.Notice(
                "member-admitted",
                f"admitted {outcome.credential.name} by invite",
                application.subject,
                outcome.credential.name,
            )
        )
        return outcome.chain

    def _answer(
        self,
        reference: bytes,
        verdict: Verdict,
        wall: float,
        newcomer: NodeId | None = None,
        successions: tuple[bytes, ...] = (),
    ) -> None:
        identity = self._engine.identity
        revocation = b""
        if newcomer is not None and isinstance(verdict, Refusal):
            engine = self._engine
            revocation = engine.revoking.blob_against(newcomer)
            if verdict.code is RefusalCode.SUCCEEDED:
                revocation = engine.rekeyed.blob_against(newcomer)
        self._responder.answer(
            reference,
            verdict,
            record=self._engine.presence.blob,
            chain=identity.chain,
            ipv4_prefix=identity.ipv4_prefix,
            wall=wall,
            revocation=revocation,
            successions=successions,
        )

    # Through other members

    def _member_to_ask(self, wall: float) -> NodeId | None:
        engine = self._engine
        able = [
            view.node
            for view in engine.gossip.members()
            if view.state is MemberState.ALIVE and engine.ledger.may_admit(view.node, wall)
        ]
        return self._rng.choice(able) if able else None

    def _hand_over(self, request: AdmissionRequest, other: NodeId, now: float) -> None:
        if len(self._handed_over) >= PENDING_MAX:
            return  # the newcomer asks again
        self._handed_over[request.reference] = (other, now)
        self._engine.send_overlay(
            mark(Handover.ADMISSION_REQUEST, encode_admission_request(request)), other
        )

    def _judge_for_untrusted(self, data: bytes, source: NodeId, now: float, wall: float) -> None:
        handed = decode_admission_request_untrusted(data)
        request = open_request_untrusted(handed.payload, handed.binding, self._engine.identity.mesh)
        if request.application is None:
            raise BadPacket("handed over without an invite")
        verdict = self._judge_application(request.application, now, wall)
        self._engine.send_overlay(
            mark(
                Handover.ADMISSION_VERDICT,
                encode_admission_verdict(AdmissionVerdict(handed.reference, verdict)),
            ),
            source,
        )

    def _take_verdict_untrusted(self, data: bytes, source: NodeId, wall: float) -> None:
        verdict = decode_admission_verdict_untrusted(data)
        asked, _ = self._handed_over.get(verdict.reference, (None, 0.0))
        if asked != source:
            raise BadPacket("verdict on nothing we handed over")
        del self._handed_over[verdict.reference]
        self._answer(verdict.reference, verdict.verdict, wall)


# What a member refuses for reasons of its own, another may grant.
_OTHERS_MAY_KNOW_BETTER = {
    RefusalCode.NOT_ALLOWED,
    RefusalCode.INVITER_UNKNOWN,
    RefusalCode.CHAIN_TOO_LONG,
    RefusalCode.CANNOT_NARROW,
}
