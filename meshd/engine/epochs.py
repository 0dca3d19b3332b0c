"""The bootstrap key: which one is the present one, and how a member gets it.

    epoch learnt ──▶ is our key the one it names? ── no ──▶ ask its maker, then any live member
                                                             │ 0xF8 { 1 fingerprint }
       the key before is kept as the older one               ▼
       on disk, then used ◀── fits the fingerprint ◀── 0xF9 { 1 key }

Rule 1: the key is told through the tunnel alone, and only to members under the newest root: who
        is a member by a root that is about to end learns nothing.

Rule 2: only what fits the fingerprint of the present epoch is taken, from whomever.

Rule 3: who has not got it goes on with the key it has, and asks again and again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meshd.codec import Fields, pack
from meshd.engine import events
from meshd.engine.handover import Handover, mark, split
from meshd.errors import BadPacket
from meshd.gossip.claim import MemberState
from meshd.keys import KEY_BYTES, BootstrapKey
from meshd.trust.epoch import bootstrap_fingerprint
from meshd.underlay import Timer

if TYPE_CHECKING:
    from random import Random

    from meshd.engine.engine import Engine
    from meshd.keys import NodeId

ASK_INTERVAL_MIN = 0.5
ASK_INTERVAL_MAX = 30.0


class Epochs:
    """See the module docstring."""

    def __init__(self, engine: Engine, *, rng: Random, now: float) -> None:
        self._engine = engine
        self._rng = rng
        self._ask_at = now
        self._tries = 0

    @property
    def lacking(self) -> bytes | None:
        """The fingerprint of the key that the mesh has and we have not; None if there is none."""
        identity, epoch = self._engine.identity, self._engine.ledger.epoch
        if epoch is None or not identity.chain:
            return None
        ours = bootstrap_fingerprint(identity.bootstrap_key, identity.mesh)
        return None if ours == epoch.fingerprint else epoch.fingerprint

    # Inputs

    def epoch_changed(self, now: float) -> None:
        """Ask at once: there is another epoch."""
        self._tries = 0
        self._ask_at = now

    def handle_timer(self, now: float) -> None:
        """Ask for the key, if we lack it."""
        wanted = self.lacking
        if wanted is None or now < self._ask_at:
            return
        pause = min(ASK_INTERVAL_MAX, ASK_INTERVAL_MIN * 2**self._tries)
        self._ask_at = now + pause * (0.75 + 0.5 * self._rng.random())
        member = self._member_to_ask()
        if member is not None:
            self._tries = min(self._tries + 1, 10)
            self._engine.send_overlay(mark(Handover.BOOTSTRAP_WANTED, pack({1: wanted})), member)

    def receive_handover(self, datagram: bytes, source: NodeId, now: float, wall: float) -> None:
        """Handle a question for the key, or the key."""
        del wall
        kind, data = split(datagram)
        try:
            if kind is Handover.BOOTSTRAP_WANTED:
                self._answer_untrusted(data, source)
            else:
                self._take_untrusted(data, now)
        except BadPacket as exc:
            self._engine.bad_packets[exc.reason] += 1

    def get_timer(self) -> Timer | None:
        """Return when to ask."""
        return None if self.lacking is None else Timer(self._ask_at, "bootstrap key")

    # Inside

    def _member_to_ask(self) -> NodeId | None:
        engine = self._engine
        alive = [v.node for v in engine.gossip.members() if v.state is MemberState.ALIVE]
        epoch = engine.ledger.epoch
        assert epoch is not None
        if epoch.maker in alive and self._tries % 2 == 0:
            return epoch.maker
        return self._rng.choice(alive) if alive else None

    def _answer_untrusted(self, data: bytes, source: NodeId) -> None:
        fields = Fields.unpack_untrusted(data, what="question for the bootstrap key")
        wanted = fields.blob(1, size=KEY_BYTES)
        fields.done()
        engine = self._engine
        identity = engine.identity
        if bootstrap_fingerprint(identity.bootstrap_key, identity.mesh) != wanted:
            return  # we lack it as well
        if not engine.ledger.is_under_newest_root(source):
            raise BadPacket("bootstrap key asked for by a member under an older root")
        engine.send_overlay(
            mark(Handover.BOOTSTRAP_KEY, pack({1: bytes(identity.bootstrap_key)})), source
        )

    def _take_untrusted(self, data: bytes, now: float) -> None:
        fields = Fields.unpack_untrusted(data, what="bootstrap key")
        key = BootstrapKey(fields.blob(1, size=KEY_BYTES))
        fields.done()
        engine = self._engine
        identity = engine.identity
        wanted = self.lacking
        if wanted is None:
            if key not in (identity.bootstrap_key, identity.older_bootstrap_key):
                raise BadPacket("bootstrap key that nobody asked for")
            return  # an answer that came twice
        if bootstrap_fingerprint(key, identity.mesh) != wanted:
            raise BadPacket("bootstrap key of another epoch")
        engine.become(
            replace(identity, bootstrap_key=key, older_bootstrap_key=identity.bootstrap_key), now
        )
        engine.emit(
            events.Notice(
                "bootstrap-key-changed",
                "has the mesh's new bootstrap key; tokens made before are void",
            )
        )
