"""Brings the agreements on pre-shared keys together with tunnels, probes and the plan.

    gossip: alive, or not ─▶ ┌────────────┐ ─▶ datagrams through tunnels (0xF5 … 0xF7)
    pongs: what they hold ─▶ │ Agreements │ ─▶ events: keys to persist, notices
    tunnels: 0xF5 … 0xF7  ─▶ └────────────┘ ─▶ plan: the peer's `preshared_key`
                                            ─▶ probes: what we hold

The kernel has no peer whose key differs from what the agreements say: the plan always names one,
and 32 zero bytes where there is none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meshd.engine import events
from meshd.engine.handover import Handover, mark, split
from meshd.errors import BadPacket
from meshd.preshared.agreements import Agreements, KemWanted, KeyAgreed, KeyLost, RingChanged
from meshd.preshared.keys import NO_KEY
from meshd.preshared.wire import (
    Answer,
    Confirm,
    Message,
    Offer,
    decode_answer_untrusted,
    decode_confirm_untrusted,
    decode_offer_untrusted,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from meshd.engine.engine import Engine
    from meshd.keys import NodeId, PresharedKey
    from meshd.preshared.kem import Kem
    from meshd.preshared.keys import Keyring, SharedKey
    from meshd.underlay import Timer
    from meshd.wg.types import PeerStatus

_DECODERS: dict[Handover, Callable[[bytes], Message]] = {
    Handover.KEY_OFFER: decode_offer_untrusted,
    Handover.KEY_ANSWER: decode_answer_untrusted,
    Handover.KEY_CONFIRM: decode_confirm_untrusted,
}


class Preshared:
    """Owns the agreements."""

    def __init__(
        self, engine: Engine, *, memory: Mapping[NodeId, Keyring], rng: Random, now: float
    ) -> None:
        self._engine = engine
        identity = engine.identity
        self._agreements = Agreements(
            identity.node_key,
            identity.mesh,
            config=engine.config.preshared,
            memory=memory,
            rng=rng,
            now=now,
        )
        for node in memory.keys() - engine.ledger.members().keys():
            self._agreements.remove(node)
        self._noticed: list[tuple[NodeId, bool]] = []  # who has come alive, or gone, not yet told
        self._seen: dict[NodeId, tuple[SharedKey, float]] = {}  # in the kernel, and since when
        self.unavailable = False  # this machine has no ML-KEM-768

    # Inputs

    def add(self, node: NodeId, now: float) -> bytes | None:
        """Take a member.  Return what probes to it say of our keys."""
        self._agreements.add(node, now)
        return self._agreements.told(node)

    def remove(self, node: NodeId) -> None:
        """Forget a member and its keys."""
        self._seen.pop(node, None)
        self._agreements.remove(node)

    def carry(self, former: NodeId, node: NodeId) -> None:
        """Keep the keys that are shared with a member for when it comes under another id."""
        self._agreements.carry(former, node)

    def state_changed(self, node: NodeId, *, alive: bool) -> None:
        """Take whether a member is heard through its tunnel."""
        self._noticed.append((node, alive))

    def heard(self, node: NodeId, told: bytes | None, now: float, wall: float) -> None:
        """Take what a pong says that its sender holds."""
        try:
            self._agreements.heard(node, told, now, wall)
        except BadPacket as exc:
            self._engine.bad_packets[exc.reason] += 1

    def receive_handover(self, datagram: bytes, source: NodeId, now: float, wall: float) -> None:
        """Handle what a member says through its tunnel."""
        kind, data = split(datagram)
        try:
            message = _DECODERS[kind](data)
            self._agreements.receive_untrusted(message, source, now, wall)
        except BadPacket as exc:
            self._engine.bad_packets[exc.reason] += 1
        self._tell_path(source)

    def take_kem(self, kem: Kem | None, wall: float) -> None:
        """Take the mechanism, after `KemWanted`; None: there is none here."""
        self.unavailable = kem is None
        self._agreements.take_kem(kem, wall)
        if kem is None:
            for node, _ in self._engine.others():
                self._tell_path(node)

    def handle_timer(self, now: float, wall: float) -> None:
        """Do what is due."""
        self._agreements.handle_timer(now, wall)

    def settle(self, now: float, wall: float) -> bool:
        """Pass on what has come of the last input.  Return whether there was anything."""
        noticed, self._noticed = self._noticed, []
        for node, alive in noticed:
            if alive:
                self._agreements.alive(node, now, wall)
            else:
                self._agreements.away(node)
        busy = bool(noticed)
        while (event := self._agreements.next_event()) is not None:
            busy = True
            match event:
                case RingChanged(node, ring):
                    self._engine.emit(events.KeyringChanged(node, ring))
                    self._engine.replan()
                    self._tell_path(node)
                case KeyAgreed(node):
                    self._notice("psk-agreed", node, "shares a new pre-shared key with this node")
                case KeyLost(node, left):
                    fallen = "the one before is used" if left else "none is used"
                    self._notice(
                        "psk-lost",
                        node,
                        f"lacks the pre-shared key that was in use; {fallen} until the next "
                        "agreement",
                    )
                case KemWanted():
                    self._engine.emit(events.KemWanted())
        for message, node in self._agreements.datagrams_to_send():
            self._engine.send_overlay(mark(_mark_of(message), encode(message)), node)
        return busy

    # Outputs

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline."""
        return self._agreements.get_timer()

    def preshared_key(self, node: NodeId) -> PresharedKey:
        """Return the key to use with a member; 32 zero bytes for none."""
        return self._agreements.preshared_key(node)

    def ring(self, node: NodeId) -> Keyring:
        """Return what is held of a pair."""
        return self._agreements.ring(node)

    def applied(self, node: NodeId, peer: PeerStatus) -> bool:
        """Whether the kernel's peer has the key that is to be used with a member."""
        return (peer.preshared_key or NO_KEY) == self.preshared_key(node)

    def post_quantum(self, node: NodeId, peer: PeerStatus) -> bool:
        """Whether a member's session comes from a handshake with the key in use."""
        ring = self.ring(node)
        if ring.used is None or not self.applied(node, peer):
            return False
        # What is on disk are whole seconds, and was noted before the kernel had it.
        since = ring.used_since + 1.0
        key, seen_at = self._seen.get(node, (None, math.inf))
        return peer.last_handshake_time > (min(since, seen_at) if key == ring.used else since)

    def peer_observed(self, node: NodeId, peer: PeerStatus, wall: float) -> None:
        """Note since when, at the latest, the kernel has had the key that is used with a member."""
        used = self.ring(node).used
        if (
            used is not None
            and self._seen.get(node, (None,))[0] != used
            and self.applied(node, peer)
        ):
            self._seen[node] = (used, wall)

    def takes_no_part(self, node: NodeId) -> bool:
        """Whether a member has said that it agrees on no keys."""
        return self._agreements.takes_no_part(node)

    # Inside

    def _tell_path(self, node: NodeId) -> None:
        agreements = self._agreements
        self._engine.path.preshared_changed(
            node, ours=agreements.told(node), theirs=agreements.believed(node)
        )

    def _notice(self, event: str, node: NodeId, message: str) -> None:
        self._engine.emit(events.Notice(event, message, node, self._engine.name_of(node)))


def _mark_of(message: Message) -> Handover:
    match message:
        case Offer():
            return Handover.KEY_OFFER
        case Answer():
            return Handover.KEY_ANSWER
        case Confirm():
            return Handover.KEY_CONFIRM
