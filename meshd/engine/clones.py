"""One identity, two machines: a virtual machine or a disk that was copied with its keys.

Each run of a daemon has a number, made of the moment it began and of chance.  A record says which
run has signed it, and, as its `rival`, above which other run's record it went.

    older run R1           the mesh                 younger run R2
       │ record: R1           │                          │
       │─────────────────────▶│─────────────────────────▶│ a record of ours that we have not signed:
       │                      │       record: R2 above R1│ an earlier life's, or another machine's
       │◀─────────────────────│◀─────────────────────────│
       │ R2 knows of R1, and lives: so do we.  Proof.     │
       │ record: R1 above R2, cloned                      │
       │─────────────────────▶│─────────────────────────▶│ R1 knows of R2, and is older:
       │ goes on              │ tells its operators      ■ falls silent, and says why

Rule 1: only what each has said of the other is proof.  Runs of one machine follow one another, so
        the earlier never knows of the later.  A restored backup therefore is never taken for a
        clone, whatever members still hold of its former lives: it goes above them, once each.

Rule 2: of two runs that are proven to live, the one that began earlier keeps the identity; chance
        decides within a millisecond.  Both see the same two numbers, so they agree.  What works
        goes on working: to start a copy disturbs the original for some seconds only.

Rule 3: the other one signs nothing more, sends nothing and has no peers, so that the tunnels of
        the members stay with the one that keeps it.  If that one cannot know yet, its own newest
        record is first signed once more with the news in it: nothing else changes for the members.

Rule 4: the record that says `cloned` tells everybody, also those who were away.  It says so until
        there has been no new proof for EVIDENCE_AGE, and members show it for as long.

Rule 5: the one that goes on makes its tunnels anew, once: their other ends encrypt for whichever of
        the two began a session last, and WireGuard would find that out after 15 s only.

This protects from an accident.  A thief who holds the keys can do whatever the node can, also this:
revoke the node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.engine import events
from meshd.underlay import Timer, TokenBucket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from meshd.engine.engine import Engine
    from meshd.keys import NodeId, WireGuardKey
    from meshd.trust.record import Record
    from meshd.wg.types import DeviceStatus

_MOMENT_BITS, _CHANCE_BITS = 42, 22  # milliseconds until the year 2109
EVIDENCE_AGE = 86_400.0
CLONES_MAX = 1024  # members known to exist twice; of more, only the first are named
LINGER = 2.0  # in which the last record of a run that falls silent spreads
REMAKE_AFTER = LINGER + 0.5
NOTICES_BURST, NOTICE_INTERVAL = 10, 60.0

WAY_OUT = (
    "end meshd on the copy, remove its state directory, and join there with a new token: then each "
    "has an identity of its own"
)

KEEP_THIS = ". To go on with this one, end the other for good and restart meshd here"


@dataclass(frozen=True, slots=True)
class _Evidence:
    run: int  # which had signed what shows it
    until: float


class Clones:
    """See the module docstring."""

    def __init__(self, engine: Engine, *, rng: Random, now: float, wall: float) -> None:
        self._engine = engine
        # A member that signs contradictions all the time is not to fill the log.
        self._notices = TokenBucket(rate=1 / NOTICE_INTERVAL, burst=NOTICES_BURST, now=now)
        moment = int(wall * 1000) % 2**_MOMENT_BITS  # whatever the clock says, it fits
        self.run = moment << _CHANCE_BITS | rng.getrandbits(_CHANCE_BITS)
        self.rival = 0  # the run above whose record we went; 0: none
        self._proof_until: float | None = None
        self._silent_at: float | None = None
        self.last_word: Record | None = None  # to be signed once more, see rule 3
        self.silent = False  # rule 3
        self._remake_at: float | None = None
        self.removed: set[WireGuardKey] = set()  # peers that are to be gone for a moment
        self._others: dict[NodeId, _Evidence] = {}

    @property
    def proven(self) -> bool:
        """Whether another machine has our identity."""
        return self._proof_until is not None

    @property
    def yielding(self) -> bool:
        """Whether the other machine keeps it, so that we sign nothing more."""
        return self._silent_at is not None

    @property
    def text(self) -> str:
        """What that means for this machine, and what to do.  Only if it is `proven`."""
        which = (
            "before; this one steps back and sends nothing more"
            if self.yielding
            else "later; this one goes on and that one steps back"
        )
        return (
            f"another machine has this node's keys and was started {which}. One of them is a copy: "
            f"{WAY_OUT}{KEEP_THIS if self.yielding else ''}"
        )

    def others(self) -> Iterator[NodeId]:
        """Give the other members that exist twice."""
        members = self._engine.ledger.members()
        return (node for node in self._others if node in members)

    # Inputs

    def met(self, record: Record, now: float) -> bool:
        """Take a record of ours that we have not signed.  Return whether to go above it."""
        if self.yielding:
            return False
        if record.run == self.run:
            return True  # our memory was put back, as a snapshot does: just another number
        if record.rival == self.run:
            self._prove(record, now)
            if record.run < self.run:
                return False
        self.rival = record.run
        return True

    def heard(self, record: Record, now: float) -> None:
        """Take a record of another member's."""
        evidence = self._others.get(record.node)
        if record.cloned:
            if evidence is None:
                self._tell(record.node, "its keys are in use on two machines", now)
            self._note(record.node, record.run, now)
        elif evidence is not None and evidence.run != record.run:
            del self._others[record.node]  # it has begun anew, and is alone

    def equivocation(self, node: NodeId, now: float) -> None:
        """Take that a member has signed two records with one number."""
        self._tell(node, "its keys are in use twice: two different records with one number", now)
        standing = self._engine.ledger.standing(node)
        if standing is not None and node != self._engine.identity.node:
            self._note(node, standing.record.run, now)

    def device_observed(self, device: DeviceStatus) -> None:
        """Take what the device holds: peers that are gone may come back."""
        gone = {key for key in self.removed if key not in device.peers}
        if gone:
            self.removed -= gone
            self._engine.replan()

    def handle_timer(self, now: float) -> None:
        """Fall silent, make tunnels anew, and forget what is long ago."""
        if self._remake_at is not None and now >= self._remake_at:
            self._remake_at = None
            self.removed = set(self._engine.device.peers)
            self._engine.replan()
        if self._silent_at is not None and now >= self._silent_at and not self.silent:
            self.silent = True
            self._engine.replan()
        if self._proof_until is not None and now >= self._proof_until and not self.yielding:
            self._proof_until = None
            self._engine.presence.due = True
        for node, evidence in list(self._others.items()):
            if now >= evidence.until:
                del self._others[node]

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline and its reason."""
        deadlines = [evidence.until for evidence in self._others.values()]
        if self._silent_at is not None and not self.silent:
            deadlines.append(self._silent_at)
        if self._proof_until is not None and not self.yielding:
            deadlines.append(self._proof_until)
        if self._remake_at is not None:
            deadlines.append(self._remake_at)
        return Timer(min(deadlines), "a clone") if deadlines else None

    def fall_silent(self) -> None:
        """Step back for the machine that goes on under another id: see `rekeyed`."""
        self.silent = True
        self._engine.replan()

    # Inside

    def _prove(self, record: Record, now: float) -> None:
        first = not self.proven
        self._proof_until = now + EVIDENCE_AGE
        if record.run < self.run:
            self._silent_at = now if record.cloned else now + LINGER
            self.last_word = None if record.cloned else record
            self._remake_at = None
        else:
            self._remake_at = now + REMAKE_AFTER
        if first or self.yielding:
            self._tell(record.node, self.text, now)

    def _note(self, node: NodeId, run: int, now: float) -> None:
        if node in self._others or len(self._others) < CLONES_MAX:
            self._others[node] = _Evidence(run, now + EVIDENCE_AGE)

    def _tell(self, node: NodeId, message: str, now: float) -> None:
        engine = self._engine
        if self._notices.take(now):
            engine.emit(events.Notice("identity-cloned", message, node, engine.name_of(node)))
